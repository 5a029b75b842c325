"""Peg insertion as a Gymnasium environment in MuJoCo, with camera, depth, true flow, wrist forces, contact and joints."""

from typing import Any

import numpy as np

from mmgen.data.simulate.camera import Camera, check_installed, load_mujoco
from mmgen.data.simulate.disturbances import add_noise, occlude
from mmgen.data.simulate.scene import DEPTH, PEG_MASS, RANGE, SHAPES, STIFFNESS, TIMESTEP, inside_peg, mjcf
from mmgen.errors import UserError, check_at_least, check_one_of

try:
    import gymnasium

    Environment: Any = gymnasium.Env
except ImportError:  # the module can be imported without the extra; an environment cannot be made
    Environment = object

READINGS = 32  # sensor readings in a step, one after each physics substep
MOVE = np.array([0.01, 0.01, 0.01, 0.1])  # m and rad, move of the set point for an action of 1
LEASH = np.array([0.025, 0.025, 0.025, 0.3])  # m and rad, largest distance of the set point from the end effector
INSERTED = 0.8  # fraction of the hole's depth that counts as success
DISTURBANCES = ("occlusion", "noise", "push", "moving_hole")
HOLE, HOLE_YAW = 0.03, 0.5  # m and rad, largest offset of the hole in either direction
START, START_HEIGHT, START_YAW = 0.04, (0.005, 0.035), 0.3  # m in either direction, m above the block, rad in either direction
PUSH, PUSH_STEPS = 20.0, 5  # N, steps
SLIDE, SLIDE_STEPS = 0.03, 10  # m, steps
NEAR = 0.03  # m, the distance from the hole at which the first part of the reward has fallen to 24 %
BONUS = 50  # 1 / (1 - 0.98): with a discount of 0.98 or less, finishing is worth more than hovering at the hole
MARGIN = 2e-4  # m, largest distance of a pixel's point from the peg's surface at which it counts as part of the peg


class PegInsertion(Environment):
    """Insertion of a peg, held by an end effector with x, y, z and yaw, into a hole observed only by camera and touch.

    One step is 32 physics substeps of 2 ms. The reward is dense, and in [0, 1] before the bonus:
    ``r = 0.4 (1 - tanh(|tip - mouth| / NEAR)) (0.75 + 0.25 y) + 0.6 i + bonus``.
    Mouth is the middle of the hole at the block's top (once the tip is inside, only the horizontal distance counts),
    ``y = 1 - |yaw error| / largest`` modulo the shape's symmetry (1 for a round peg), ``i`` the fraction of the hole's depth
    that the tip has reached, and the bonus 50 at success (``i >= 0.8``), else 0. With a discount of 0.98 or less, finishing is
    therefore worth more than hovering, however few steps are left (for a learner that bootstraps at truncation).

    Observation, a dict: ``image`` (s, s, 3) uint8; ``depth`` (s, s) float32, m; ``force`` (32, 6) float32, N and N m, external
    force and torque on the peg at the wrist, in the peg's frame, without the peg's weight, one reading a substep; ``contact``
    (32,) bool, True where the peg touches the block or the table, to 0.3 mm; ``proprioception`` (8,) float32, the tip's x, y,
    z (m), yaw (rad) and their velocities; and with ``flow``, ``flow`` (s, s, 2) float32: motion in pixels, right and down,
    from the previous picture to this one, at the previous picture's pixels, without disturbances; 0 at reset. ``info``:
    ``hole`` (x, y, yaw), ``depth_inserted`` (m), ``success``.

    Action, in [-1, 1] (4,): the move of the set point in units of 1 cm and 0.1 rad. The set point stays within 2.5 cm and
    0.3 rad of the end effector.

    ``model`` and ``data`` are MuJoCo's, ``camera`` the `Camera`, and a push or slide begins at step ``disturb_at``.

    Args:
        shape: ``round``, ``square`` or ``triangle``.
        size: side of the pictures, pixels, >= 8.
        clearance: gap on each side of the peg, m.
        control: ``impedance`` (800 N/m, compliant) or ``position`` (5,000 N/m); both are limited to 25 N.
        disturbance: None, ``occlusion`` (a panel in front of the camera), ``noise`` (on all sensors), ``push`` (20 N sideways
            for 5 steps) or ``moving_hole`` (the block slides by 3 cm within 10 steps); the last two at a random time.
        flow: include the optical flow in observations.
        vision: include image, depth and flow in observations; without, nothing is rendered, which is over twice as fast.
        steps: number of steps after which an episode is truncated, >= 1.

    Raises:
        UserError: an argument is out of its range, or a package or renderer is missing.

    Source: Lee et al. 2019, Making Sense of Vision and Touch, arXiv 1810.10191, section V. Their simulator was not published;
    the scene, the sizes and the reward are our own.

    >>> env = PegInsertion("round", size=16)  # doctest: +SKIP
    >>> observation, info = env.reset(seed=0)  # doctest: +SKIP
    >>> observation, reward, terminated, truncated, info = env.step([0, 0, -1, 0])  # doctest: +SKIP
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 1 / (READINGS * TIMESTEP)}  # noqa: RUF012 - gymnasium's
    render_mode = "rgb_array"

    def __init__(
        self,
        shape: str = "round",
        size: int = 128,
        clearance: float = 0.003,
        control: str = "impedance",
        disturbance: str | None = None,
        flow: bool = True,
        steps: int = 50,
        vision: bool = True,
    ) -> None:
        check_one_of("shape", shape, SHAPES)
        check_one_of("control", control, STIFFNESS)
        if disturbance is not None:
            check_one_of("disturbance", disturbance, DISTURBANCES)
        check_at_least("size", size, 8)
        check_at_least("steps", steps, 1)
        if not -0.005 <= clearance <= 0.01:  # a NaN fails too
            fix = "use 0.003; a peg does not fit below 0"
            raise UserError("clearance", got=clearance, expected="metres between -0.005 and 0.01", fix=fix)
        check_installed("gymnasium", "mujoco")
        self._mujoco = load_mujoco()
        self.shape, self.size, self.clearance, self.control = shape, size, clearance, control
        self.disturbance, self.flow, self.steps, self.vision = disturbance, flow and vision, steps, vision
        self.model = self._mujoco.MjModel.from_xml_string(mjcf(shape, clearance, control, size))
        self.data = self._mujoco.MjData(self.model)
        self._mujoco.mj_forward(self.model, self.data)
        self.camera = Camera(self.model, self.data, size) if vision else None  # without vision: made by `render`
        self._image: np.ndarray | None = None
        self._hand, self._lamp = self.model.body("hand").id, self.model.light("lamp").id
        self._geoms = {name: self.model.geom(name).id for name in ("table", "peg")}
        self._blocks = [i for i in range(self.model.ngeom) if self.model.geom(i).name.startswith("block")]
        self._tare = np.array([0, 0, PEG_MASS * -self.model.opt.gravity[2], 0, 0, 0])
        spaces = gymnasium.spaces
        pictures: dict[str, gymnasium.Space] = {
            "image": spaces.Box(0, 255, (size, size, 3), np.uint8),
            "depth": spaces.Box(0, np.inf, (size, size), np.float32),
        }
        parts = (pictures if vision else {}) | {
            "force": spaces.Box(-np.inf, np.inf, (READINGS, 6), np.float32),
            "contact": spaces.Box(0, 1, (READINGS,), np.bool_),  # type: ignore[arg-type]
            "proprioception": spaces.Box(-np.inf, np.inf, (8,), np.float32),
        }
        if self.flow:
            parts["flow"] = spaces.Box(-np.inf, np.inf, (size, size, 2), np.float32)
        self.observation_space = spaces.Dict(parts)
        self.action_space = spaces.Box(-1, 1, (4,), np.float32)
        self._step = -1  # before the first reset

    @property
    def pose(self) -> np.ndarray:
        """(4,) the tip's x, y, z above the table (m) and yaw (rad)."""
        return self.data.qpos.copy()

    @property
    def hole(self) -> np.ndarray:
        """(3,) the x, y (m) and yaw (rad) of the hole, which observations do not contain."""
        self._check_begun()
        return self._hole.copy()

    @property
    def yaw_error(self) -> float:
        """Smallest turn (rad) that aligns the peg with the hole, given the shape's symmetry; 0 for a round peg."""
        symmetry = SHAPES[self.shape].symmetry
        if not symmetry:
            return 0.0
        turn = 2 * np.pi / symmetry
        return float((self._hole[2] - self.data.qpos[3] + turn / 2) % turn - turn / 2)

    @property
    def depth_inserted(self) -> float:
        """Depth (m) of the tip in the hole."""
        x, y, z, _ = self.data.qpos
        within = np.hypot(x - self._hole[0], y - self._hole[1]) < SHAPES[self.shape].outer + max(self.clearance, 0)
        return float(np.clip(DEPTH - z, 0, DEPTH)) if within else 0.0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[dict, dict]:
        """Begin an episode with a new hole, colours, light and start of the peg above the block.

        Args:
            seed: seed of the episode; with the same actions it gives the same observations. None: continue the generator.
            options: unused.

        Returns:
            The first observation, whose forces, contacts and flow are 0, and info.
        """
        super().reset(seed=seed)
        rng = self.np_random
        self._mujoco.mj_resetData(self.model, self.data)
        self._hole = rng.uniform(-1, 1, 3) * [HOLE, HOLE, HOLE_YAW]
        pose = rng.uniform(-1, 1, 4) * [START, START, 0, START_YAW]
        pose[2] = DEPTH + rng.uniform(*START_HEIGHT)
        self._paint(rng)
        self._panel = int(rng.integers(2**32))
        self.disturb_at = int(rng.integers(min(5, self.steps), max(self.steps // 2, 5) + 1))
        angle = rng.uniform(0, 2 * np.pi)
        self._push = PUSH * np.array([np.cos(angle), np.sin(angle)])
        self._slide = self._draw_slide(rng)
        self._noise = np.random.default_rng(rng.integers(2**32))
        self._step, self._done = 0, False
        return self.set_state(pose, self._hole), self._info()

    def set_state(self, pose: Any, hole: Any = None) -> dict[str, np.ndarray]:
        """Put the end effector at rest at a pose and, if given, the hole elsewhere.

        Args:
            pose: (4,) the tip's x, y, z above the table (m) and yaw (rad).
            hole: (3,) the hole's x, y (m) and yaw (rad); None: where it is.

        Returns:
            The observation, whose forces, contacts and flow are 0.

        Raises:
            UserError: an argument has another shape or is not finite, or `reset` was not called.
        """
        self._check_begun()
        fix = "give env.pose and env.hole for example"
        pose = _numbers("pose", pose, 4, "m, m, m, rad", fix)
        self._hole = self._hole if hole is None else _numbers("hole", hole, 3, "m, m, rad", fix)
        self._target, self.data.qpos[:], self.data.qvel[:] = pose, pose, 0
        self.data.mocap_quat[0] = [np.cos(self._hole[2] / 2), 0, 0, np.sin(self._hole[2] / 2)]
        self._place_block()
        return self._observe(np.zeros((READINGS, 6), np.float32), np.zeros(READINGS, np.bool_))

    def step(self, action: Any) -> tuple[dict, float, bool, bool, dict]:
        """Move for 64 ms.

        Args:
            action: (4,), clipped to [-1, 1].

        Returns:
            Observation, reward, terminated (success), truncated (after ``steps``), info.

        Raises:
            UserError: the action has another shape or is not finite, or `reset` was not called.
        """
        self._check_begun()
        move = _numbers("action", action, 4, "in [-1, 1]: x, y, z, yaw", "give env.action_space.sample() for example")
        before = self.pose, self._block_pose()
        goal = np.clip(self._target + move.clip(-1, 1) * MOVE, self.pose - LEASH, self.pose + LEASH).clip(*RANGE)
        path = self._target + np.linspace(1 / READINGS, 1, READINGS)[:, None] * (goal - self._target)  # (32, 4)
        since = self._step - self.disturb_at
        if self.disturbance == "push":
            self.data.xfrc_applied[self._hand, :2] = self._push if 0 <= since < PUSH_STEPS else 0
        sliding = self.disturbance == "moving_hole" and 0 <= since < SLIDE_STEPS
        forces, contacts = np.empty((READINGS, 6)), np.empty(READINGS, np.bool_)
        for i in range(READINGS):
            self.data.ctrl[:] = path[i]
            if sliding:
                self._hole[:2] += self._slide / (SLIDE_STEPS * READINGS)
                self._place_block()
            self._mujoco.mj_step(self.model, self.data)
            forces[i] = self.data.sensordata
            contacts[i] = self.data.ncon > 0  # nothing but the peg against the block and the table can touch
        self._target, self._step = goal, self._step + 1
        observation = self._observe((self._tare - forces).astype(np.float32), contacts, *before)
        info = self._info()
        reward = self.reward + BONUS * (info["success"] and not self._done)
        self._done = self._done or info["success"]
        return observation, float(reward), info["success"], self._step >= self.steps, info

    def render(self) -> np.ndarray:
        """The current picture (s, s, 3) uint8, without disturbances of the camera."""
        self._check_begun()
        if self._image is None:
            self._image, _ = self._drawn()
        return self._image.copy()

    def close(self) -> None:
        """Free the renderer; the environment cannot be used afterwards."""
        if self.camera is not None:
            self.camera.close()

    def _check_begun(self) -> None:
        if self._step < 0:
            raise UserError("environment", got="no episode", expected="reset first", fix="call env.reset(seed=0)")

    @property
    def reward(self) -> float:
        """Reward of the current state, without the bonus."""
        x, y, z, _ = self.data.qpos
        inserted = self.depth_inserted
        away = np.hypot(x - self._hole[0], y - self._hole[1])
        away = np.hypot(away, z - DEPTH) if not inserted else away
        symmetry = SHAPES[self.shape].symmetry
        aligned = 1 - abs(self.yaw_error) / (np.pi / symmetry) if symmetry else 1.0
        return 0.4 * (1 - np.tanh(away / NEAR)) * (0.75 + 0.25 * aligned) + 0.6 * inserted / DEPTH

    def _info(self) -> dict[str, Any]:
        inserted = self.depth_inserted
        return {"hole": self.hole, "depth_inserted": inserted, "success": inserted >= INSERTED * DEPTH}

    def _observe(
        self, force: np.ndarray, contact: np.ndarray, hand: np.ndarray | None = None, block: np.ndarray | None = None
    ) -> dict[str, np.ndarray]:
        """Make the current observation; ``hand`` and ``block`` are the poses at the previous picture."""
        proprioception = np.concatenate([self.data.qpos, self.data.qvel]).astype(np.float32)
        if not self.vision:
            self._image = None
            if self.disturbance == "noise":
                dark = np.zeros((1, 1, 3), np.uint8), np.zeros((1, 1), np.float32)
                _, _, force, proprioception = add_noise(*dark, force, proprioception, self._noise)
            return {"force": force, "contact": contact, "proprioception": proprioception}
        flow = np.zeros((self.size, self.size, 2), np.float32)
        if self.flow and self.camera and hand is not None and block is not None:
            flow = self._flow(self.camera, hand, block)
        self._image, self._depth = image, depth = self._drawn()
        if self.disturbance == "occlusion":
            image, depth = occlude(image, depth, np.random.default_rng(self._panel))
        elif self.disturbance == "noise":
            image, depth, force, proprioception = add_noise(image, depth, force, proprioception, self._noise)
        image = image if image is not self._image else image.copy()
        parts = {"image": image, "depth": depth.copy(), "force": force, "contact": contact, "proprioception": proprioception}
        return parts | ({"flow": flow} if self.flow else {})

    def _drawn(self) -> tuple[np.ndarray, np.ndarray]:
        """Render the current picture (s, s, 3) uint8 and depth (s, s), m."""
        self.camera = self.camera or Camera(self.model, self.data, self.size)
        self._mujoco.mj_kinematics(self.model, self.data)
        self._mujoco.mj_camlight(self.model, self.data)
        return self.camera.render(self.data)

    def _flow(self, camera: Camera, hand: np.ndarray, block: np.ndarray) -> np.ndarray:
        """The flow from the previous picture, whose depth identifies each pixel: only the hand is higher than the block."""
        height = camera.heights(self._depth)
        held = height > DEPTH + MARGIN
        if hand[2] < DEPTH + MARGIN:  # the tip is in the hole or beside the block
            low = camera.box(hand[:3], SHAPES[self.shape].outer + MARGIN, DEPTH) & ~held
            held[low] = inside_peg(self.shape, camera.points(self._depth, low), hand, MARGIN)
        moves = [(held, hand, self.pose)]
        if self.disturbance == "moving_hole":
            moves.append((~held & (height > MARGIN), block, self._block_pose()))
        return camera.flow(self._depth, moves)

    def _block_pose(self) -> np.ndarray:
        return np.array([*self._hole[:2], 0, self._hole[2]])

    def _place_block(self) -> None:
        self.data.mocap_pos[0, :2] = self._hole[:2]

    def _draw_slide(self, rng: np.random.Generator) -> np.ndarray:
        """Draw a move of the block that leaves the hole within the range of its positions at reset."""
        while True:
            angle = rng.uniform(0, 2 * np.pi)
            slide = SLIDE * np.array([np.cos(angle), np.sin(angle)])
            if (np.abs(self._hole[:2] + slide) <= HOLE + 1e-9).all():
                return slide

    def _paint(self, rng: np.random.Generator) -> None:
        """Draw different colours of peg, block and table, and the direction and brightness of the lamp."""
        hue = rng.uniform(0, 1)
        colours = [_colour((hue + turn + rng.uniform(-0.08, 0.08)) % 1, rng) for turn in (0, 1 / 3, 2 / 3)]
        self.model.geom_rgba[self._geoms["peg"], :3] = colours[0]
        self.model.geom_rgba[self._blocks, :3] = colours[1]
        self.model.geom_rgba[self._geoms["table"], :3] = 0.5 * colours[2] + 0.15
        angle, tilt = rng.uniform(0, 2 * np.pi), rng.uniform(0.2, 0.9)
        self.model.light_dir[self._lamp] = [np.sin(tilt) * np.cos(angle), np.sin(tilt) * np.sin(angle), -np.cos(tilt)]
        self.model.light_diffuse[self._lamp] = rng.uniform(0.4, 0.8)


def _numbers(what: str, given: Any, n: int, of: str, fix: str) -> np.ndarray:
    """Check that ``given`` is n finite numbers; return a copy as float64 (n,)."""
    try:
        numbers = np.array(given, np.float64)
    except (TypeError, ValueError):
        numbers = np.empty(0)
    if numbers.shape != (n,) or not np.isfinite(numbers).all():
        raise UserError(what, got=str(given), expected=f"{n} finite numbers {of}", fix=fix)
    return numbers


def _colour(hue: float, rng: np.random.Generator) -> np.ndarray:
    """Colour (3,) of a hue in [0, 1) with random saturation and brightness."""
    saturation, value = rng.uniform(0.4, 0.9), rng.uniform(0.6, 1.0)
    distance = np.abs((hue * 6 - np.array([0, 2, 4]) + 3) % 6 - 3)  # from red, green and blue, in sixths of the circle
    return value * (1 - saturation * np.clip(distance - 1, 0, 1))
