"""Fixed camera in a MuJoCo scene: renders colour and depth in one pass, and maps pixels to world points and back."""

import ctypes.util
import importlib.util
import os
import sys
import weakref
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import numpy as np

from mmgen.errors import UserError

INSTALL = "pip install 'mmgen[robotics]'"
RENDERER = "apt install libegl1 (or apt install libosmesa6 and set MUJOCO_GL=osmesa)"


def load_mujoco() -> ModuleType:
    """Import the package mujoco, set up to render without a screen (EGL, else OSMesa) unless MUJOCO_GL is set.

    Returns:
        The module.

    Raises:
        UserError: mujoco is not installed, or no library can render here.
    """
    check_installed("mujoco")
    if not os.environ.get("MUJOCO_GL") and sys.platform.startswith("linux"):
        found = [name for name, library in (("egl", "EGL"), ("osmesa", "OSMesa")) if ctypes.util.find_library(library)]
        if not found:
            raise UserError("renderer", got="neither libEGL nor libOSMesa", expected="one of them", fix=RENDERER)
        os.environ["MUJOCO_GL"] = found[0]
    # Mesa's software renderer uses a thread for each core; small pictures render faster with a single thread
    os.environ.setdefault("LP_NUM_THREADS", "1")
    try:
        import mujoco
    except (ImportError, AttributeError, RuntimeError, OSError) as error:  # what its GL backends raise without a library
        got = f"MUJOCO_GL={os.environ.get('MUJOCO_GL')}: {error}"
        raise UserError("renderer", got=got, expected="one that works", fix=RENDERER) from error
    return mujoco


def check_installed(*packages: str) -> None:
    """Check that all ``packages``, of the extra ``robotics``, are installed.

    Raises:
        UserError: one is missing; the message contains the command that installs it.

    >>> check_installed("numpy")
    """
    missing = [name for name in packages if name not in sys.modules and importlib.util.find_spec(name) is None]
    if missing:
        raise UserError("package", got=f"no {' and no '.join(missing)}", expected="it installed", fix=INSTALL)


class Camera:
    """The first camera of a scene, with pictures of ``size`` x ``size`` pixels.

    Args:
        model: a compiled scene (``mujoco.MjModel``) with a fixed camera.
        data: the scene's state, after one forward pass.
        size: side of the pictures, pixels, >= 1.

    Raises:
        UserError: no renderer works here.
    """

    def __init__(self, model: Any, data: Any, size: int) -> None:
        self._mujoco = mujoco = load_mujoco()
        self._model, self.size = model, size
        try:
            # mujoco chose its backend on import, possibly before MUJOCO_GL was set
            backend = os.environ.get("MUJOCO_GL", "")
            own = importlib.import_module(f"mujoco.{backend}") if backend in ("egl", "osmesa") else mujoco
            self._gl = own.GLContext(size, size)
            self._gl.make_current()
            self._context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100)
        except Exception as error:  # each GL backend raises its own
            raise UserError("renderer", got=str(error), expected="one that works", fix=RENDERER) from error
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._context)
        # frees the renderer's memory once: when called or when the camera is garbage collected
        self.close = weakref.finalize(self, _free, self._gl, self._context)
        self.close.atexit = backend == "osmesa"  # with the other backends, the display is gone by then
        self._context.readDepthMap = mujoco.mjtDepthMap.mjDEPTH_ZEROFAR  # the buffer's own format: no loss of precision
        self.scene = mujoco.MjvScene(model, maxgeom=100)
        for flag in ("SHADOW", "REFLECTION", "SKYBOX", "FOG", "HAZE"):
            self.scene.flags[getattr(mujoco.mjtRndFlag, f"mjRND_{flag}")] = False
        self._view = mujoco.MjvCamera()
        self._view.type, self._view.fixedcamid = mujoco.mjtCamera.mjCAMERA_FIXED, 0
        self._option, self._rect = mujoco.MjvOption(), mujoco.MjrRect(0, 0, size, size)
        self._image = np.empty((size, size, 3), np.uint8)
        self._depth = np.empty((size, size), np.float32)
        self._near = model.vis.map.znear * model.stat.extent
        self._far = model.vis.map.zfar * model.stat.extent

        self.position = data.cam_xpos[0].copy()
        self._axes = data.cam_xmat[0].reshape(3, 3).copy()  # columns: right, up, back
        self._focal = size / 2 / np.tan(np.radians(model.cam_fovy[0]) / 2)  # pixels
        centres = (np.arange(size) + 0.5 - size / 2) / self._focal
        down, right = np.meshgrid(centres, centres, indexing="ij")
        rays = np.stack([right, -down, -np.ones_like(right)], -1)
        self._rays = (rays @ self._axes.T).astype(np.float32)  # (s, s, 3), at depth 1

    def render(self, data: Any) -> tuple[np.ndarray, np.ndarray]:
        """Render the scene.

        Args:
            data: the scene's state (``mujoco.MjData``) with up-to-date poses.

        Returns:
            The picture (s, s, 3) uint8 and the depth (s, s) float32, m along the optical axis, not along the ray.
        """
        mujoco = self._mujoco
        self._gl.make_current()
        every = mujoco.mjtCatBit.mjCAT_ALL.value
        mujoco.mjv_updateScene(self._model, data, self._option, None, self._view, every, self.scene)
        mujoco.mjr_render(self._rect, self.scene, self._context)
        mujoco.mjr_readPixels(self._image, self._depth, self._rect, self._context)
        # the buffer runs from 1 at the near plane to 0 at the far plane, linearly in 1 / depth; its first row is the bottom
        inverse = 1 / self._far + self._depth[::-1] * (1 / self._near - 1 / self._far)
        return self._image[::-1].copy(), (1 / inverse).astype(np.float32)

    def points(self, depth: np.ndarray, shown: np.ndarray | None = None) -> np.ndarray:
        """World points that pixels show.

        Args:
            depth: (s, s), m.
            shown: (s, s) bool, True at n pixels to convert; None: all.

        Returns:
            (s, s, 3) or (n, 3), m.
        """
        rays, depth = (self._rays, depth) if shown is None else (self._rays[shown], depth[shown])
        return rays * depth[..., None] + self.position.astype(np.float32)

    def heights(self, depth: np.ndarray) -> np.ndarray:
        """Height above the ground of the point that each pixel shows.

        Args:
            depth: (s, s), m.

        Returns:
            (s, s), m.
        """
        return self._rays[..., 2] * depth + np.float32(self.position[2])

    def project(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Project world points to pixels.

        Args:
            points: (..., 3), m, in front of the camera.

        Returns:
            Pixel coordinates (..., 2), right and down from the upper left corner (the first pixel's centre is 0.5, 0.5), and
            the depth (...), m.
        """
        right, up, back = np.moveaxis((points - self.position) @ self._axes, -1, 0)
        pixels = np.stack([right, -up], -1) * (self._focal / -back)[..., None] + self.size / 2
        return pixels, -back

    def box(self, foot: np.ndarray, radius: float, top: float) -> np.ndarray:
        """Bounding rectangle, in pixels, of an upright cylinder.

        Args:
            foot: (3,) the middle of its lower end, m.
            radius: radius of the cylinder, m.
            top: height of its upper end above the ground, m.

        Returns:
            (s, s) bool, True inside the rectangle.
        """
        across = [(x, y) for x in (-radius, radius) for y in (-radius, radius)]
        corners = np.array([[foot[0] + x, foot[1] + y, z] for x, y in across for z in (foot[2], top)])
        pixels = self.project(corners)[0]
        (left, first), (right, last) = pixels.min(0), pixels.max(0)
        shown = np.zeros((self.size, self.size), np.bool_)
        shown[max(int(first), 0) : max(int(last) + 1, 0), max(int(left), 0) : max(int(right) + 1, 0)] = True
        return shown

    def flow(self, depth: np.ndarray, moves: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> np.ndarray:
        """Optical flow when bodies slide and turn about the vertical.

        A body that moves from ``a = (x, y, z, yaw)`` to ``b`` takes a point p of it to ``p + (R - 1) (p - a) + (b - a)``,
        R the turn by ``b_yaw - a_yaw``.

        Args:
            depth: (s, s) of the first picture, m.
            moves: for each body that may move, the pixels that show it (s, s), bool, and its pose (4,) before and after, m and
                rad.

        Returns:
            (s, s, 2) float32, pixels right and down; exactly 0 where nothing moves.
        """
        flow = np.zeros((*depth.shape, 2), np.float32)
        for shown, before, after in moves:
            if np.array_equal(before, after):
                continue
            old = self.points(depth, shown).astype(np.float64)
            cos, sin = np.cos(after[3] - before[3]) - 1, np.sin(after[3] - before[3])
            x, y = (old[:, :2] - before[:2]).T
            turned = np.stack([cos * x - sin * y, sin * x + cos * y, np.zeros_like(x)], -1)
            new = old + turned + (after[:3] - before[:3])
            flow[shown] = self.project(new)[0] - self.project(old)[0]
        return flow


def _free(gl: Any, context: Any) -> None:
    gl.make_current()  # otherwise another camera's context would be freed
    context.free()
    gl.free()
