"""Disturbances of a robot's sensors as pure functions of stored arrays: a covered camera, noise on every sensor."""

import numpy as np

from mmgen.errors import UserError

PANEL = 0.7  # side of the panel in front of the camera, as a fraction of the picture's side
PANEL_DEPTH = 0.1  # m, distance of the panel from the camera
# standard deviations of the noise
IMAGE_NOISE = 25.0  # of 255 levels
DEPTH_NOISE = 0.01  # m
FORCE_NOISE = 2.0  # N
TORQUE_NOISE = 0.05  # N m
POSITION_NOISE = 0.003  # m
YAW_NOISE = 0.03  # rad
VELOCITY_NOISE = 0.02  # m/s
YAW_RATE_NOISE = 0.2  # rad/s


def occlude(image: np.ndarray, depth: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Cover part of the camera's view by a square panel of one colour, at the same random position in all pictures.

    Args:
        image: (..., s, s, 3) uint8; the leading dimensions are the moments of one episode.
        depth: (..., s, s), m, at the same moments.
        rng: generator of the panel's position and colour.

    Returns:
        Copies of both with a square of side ``round(PANEL * s)`` in one colour and at depth `PANEL_DEPTH`.

    Raises:
        UserError: the shapes do not match.

    >>> image, depth = occlude(np.zeros((10, 10, 3), np.uint8), np.ones((10, 10)), np.random.default_rng(0))
    >>> int((depth < 1).sum()), int((image.reshape(-1, 3).max(1) > 0).sum())
    (49, 49)
    """
    _check_pictures(image, depth)
    side = image.shape[-2]
    width = round(PANEL * side)
    top, left = rng.integers(0, side - width + 1, 2)
    colour = rng.integers(1, 256, 3)
    image, depth = image.copy(), depth.copy()
    image[..., top : top + width, left : left + width, :] = colour
    depth[..., top : top + width, left : left + width] = PANEL_DEPTH
    return image, depth


def add_noise(
    image: np.ndarray, depth: np.ndarray, force: np.ndarray, proprioception: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Add independent Gaussian noise to every value of every sensor, with the standard deviations of this module.

    Args:
        image: (..., s, s, 3) uint8.
        depth: (..., s, s), m.
        force: (..., 6), N and N m.
        proprioception: (..., 8): x, y, z (m), yaw (rad) and their velocities.
        rng: generator of the noise.

    Returns:
        Noisy copies of the four, of the same types; pictures are clipped to 0..255, depth to 0 and above.

    Raises:
        UserError: an array has another shape.

    >>> zeros = np.zeros((2, 2, 3), np.uint8), np.zeros((2, 2)), np.zeros((32, 6)), np.zeros(8)
    >>> [a.shape for a in add_noise(*zeros, np.random.default_rng(0))]
    [(2, 2, 3), (2, 2), (32, 6), (8,)]
    """
    _check_pictures(image, depth)
    for name, array, last in (("force", force, 6), ("proprioception", proprioception, 8)):
        if array.shape[-1:] != (last,):
            raise UserError(name, got=f"shape {array.shape}", expected=f"(..., {last})", fix="give one reading a row")
    wrench = np.repeat([FORCE_NOISE, TORQUE_NOISE], 3)
    pose = np.array([*[POSITION_NOISE] * 3, YAW_NOISE, *[VELOCITY_NOISE] * 3, YAW_RATE_NOISE])

    def noisy(array: np.ndarray, deviation: float | np.ndarray) -> np.ndarray:
        return array + np.float32(deviation) * rng.standard_normal(array.shape, dtype=np.float32)

    return (
        np.rint(noisy(image, IMAGE_NOISE)).clip(0, 255).astype(image.dtype),
        noisy(depth, DEPTH_NOISE).clip(0).astype(depth.dtype),
        noisy(force, wrench).astype(force.dtype),
        noisy(proprioception, pose).astype(proprioception.dtype),
    )


def _check_pictures(image: np.ndarray, depth: np.ndarray) -> None:
    if image.ndim < 3 or image.shape[-1] != 3 or image.shape[-3] != image.shape[-2] or image.shape[:-1] != depth.shape:
        got = f"image {image.shape} and depth {depth.shape}"
        fix = "give (..., s, s, 3) and (..., s, s) of the same moments"
        raise UserError("pictures", got=got, expected="square pictures and their depth", fix=fix)
