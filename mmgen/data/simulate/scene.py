"""The scene of peg insertion as MJCF: a table, a block with a hole, and a peg on an end effector of four joints."""

from dataclasses import dataclass

import numpy as np

DEPTH = 0.03  # m, depth of the hole and height of the block; the table is the floor of the hole
PEG_LENGTH = 0.06  # m, from the tip to the wrist
PEG_MASS, HAND_MASS = 0.1, 0.4  # kg
BLOCK = 0.045  # m, from the middle of the hole to a side of the block
REACH = np.array([0.075, 0.075, 0.11, 1.6])  # joint limits: +-x, +-y, z above the table (m), +-yaw (rad)
RANGE = np.stack([REACH * [-1, -1, 0, -1], REACH])  # (2, 4) lowest and highest x, y, z (m) and yaw (rad)
# control -> stiffness of x, y, z (N/m) and of yaw (N m/rad)
STIFFNESS = {"impedance": (800.0, 3.0), "position": (5000.0, 20.0)}
STRONGEST = (25.0, 1.0)  # N and N m, limits of the motors
INERTIA = 1e-3  # kg m^2, of the hand about the vertical
TOUCH = 3e-4  # m, distance that counts as contact, else the flag flickers while the peg slides; forces start at distance 0
TIMESTEP = 0.002  # s
ROUND_EDGES = 12  # edges of the polygonal hole of a round peg


@dataclass(frozen=True)
class Shape:
    """A peg's cross-section.

    Args:
        edges: edges of the hole's polygon; box ``i`` of the block is outside edge ``i``, whose normal has angle 2 pi i /
            edges.
        inner: distance from the middle of the peg to an edge, m.
        symmetry: order of rotational symmetry; a turn by 2 pi / symmetry leaves the peg unchanged. 0: any turn does.
        length: half the length of a box of the block along its edge, m.
    """

    edges: int
    inner: float
    symmetry: int
    length: float

    @property
    def outer(self) -> float:
        """Distance (m) from the middle to a corner."""
        return self.inner / np.cos(np.pi / self.edges)

    @property
    def normals(self) -> np.ndarray:
        """Outward unit normals of the edges (edges, 2)."""
        angles = 2 * np.pi * np.arange(self.edges) / self.edges
        return np.stack([np.cos(angles), np.sin(angles)], -1)


SHAPES = {
    "round": Shape(ROUND_EDGES, 0.014, 0, BLOCK * np.tan(np.pi / ROUND_EDGES)),
    "square": Shape(4, 0.0125, 4, BLOCK),
    "triangle": Shape(3, 0.0095, 3, BLOCK),
}


def mjcf(name: str, clearance: float, control: str, size: int) -> str:
    """The scene in MuJoCo's MJCF format.

    The end effector's origin is the peg's tip, so its joints are the tip's position (m) relative to the table's middle, and
    its yaw (rad). Motors act as springs towards a set point, with critical damping; gravity is compensated.

    Args:
        name: one of `SHAPES`.
        clearance: gap between the centred peg and each edge of the hole, m.
        control: one of `STIFFNESS`.
        size: side of the pictures, pixels.

    Returns:
        The XML.
    """
    shape = SHAPES[name]
    stiffness, turn = STIFFNESS[control]
    damping, turn_damping = 2 * np.sqrt(stiffness * (HAND_MASS + PEG_MASS)), 2 * np.sqrt(turn * INERTIA)
    joints = "".join(
        f'<joint name="{axis}" type="slide" axis="{line}" damping="{damping}" limited="true" range="{low} {high}"/>'
        for axis, line, low, high in zip("xyz", ("1 0 0", "0 1 0", "0 0 1"), *RANGE[:, :3])
    )
    motors = "".join(
        f'<position joint="{axis}" kp="{kp}" forcerange="{-most} {most}"/>'
        for axis, kp, most in zip(("x", "y", "z", "yaw"), [*[stiffness] * 3, turn], [*[STRONGEST[0]] * 3, STRONGEST[1]])
    )
    half = PEG_LENGTH / 2
    return f"""
<mujoco>
  <compiler angle="radian"/>
  <option timestep="{TIMESTEP}" integrator="implicitfast" cone="elliptic"/>
  <statistic extent="1" center="0 0 0"/>
  <visual>
    <global offwidth="{size}" offheight="{size}"/>
    <quality offsamples="0" shadowsize="0"/>
    <map znear="0.05" zfar="3"/>
    <headlight ambient="0.35 0.35 0.35" diffuse="0.15 0.15 0.15" specular="0 0 0"/>
  </visual>
  <default><geom solref="0.02 1" gap="{TOUCH / 2}" friction="0.2 0.005 0.0001" contype="0" conaffinity="0"/></default>
  <asset>{_prism(shape)}</asset>
  <worldbody>
    <camera name="fixed" pos="0 -0.26 0.26" xyaxes="1 0 0 0 0.66896 0.74329" fovy="27"/>
    <light name="lamp" directional="true" castshadow="false" pos="0 0 1" dir="0 0 -1" specular="0.1 0.1 0.1"/>
    <geom name="table" type="plane" size="2 2 0.1" conaffinity="1"/>
    <body name="block" mocap="true">{_boxes(shape, clearance)}</body>
    <body name="hand" gravcomp="1">
      <inertial pos="0 0 {PEG_LENGTH}" mass="{HAND_MASS}" diaginertia="{INERTIA} {INERTIA} {INERTIA}"/>
      {joints}
      <joint name="yaw" type="hinge" axis="0 0 1" damping="{turn_damping}" limited="true" range="{RANGE[0, 3]} {RANGE[1, 3]}"/>
      <geom type="cylinder" size="0.021 0.006" pos="0 0 {PEG_LENGTH + 0.006}" rgba="0.25 0.25 0.27 1"/>
      <geom type="box" size="0.024 0.013 0.04" pos="0 0 {PEG_LENGTH + 0.052}" rgba="0.55 0.55 0.58 1"/>
      <body name="peg" gravcomp="1">
        <inertial pos="0 0 {half}" mass="{PEG_MASS}" diaginertia="4e-5 4e-5 1e-5"/>
        {_peg(name, shape, half)}
        <site name="wrist" pos="0 0 {PEG_LENGTH}" size="0.001" rgba="0 0 0 0"/>
      </body>
    </body>
  </worldbody>
  <actuator>{motors}</actuator>
  <sensor><force site="wrist"/><torque site="wrist"/></sensor>
</mujoco>"""


def inside_peg(name: str, points: np.ndarray, pose: np.ndarray, margin: float) -> np.ndarray:
    """Test points for being inside the peg or within a margin of it.

    Args:
        name: one of `SHAPES`.
        points: (n, 3), m.
        pose: the tip's x, y, z (m) and yaw (rad).
        margin: largest distance outside the peg, m.

    Returns:
        (n,) bool.
    """
    shape = SHAPES[name]
    x, y, z = (points - pose[:3]).T
    if name == "round":
        across = np.hypot(x, y)
    else:
        cos, sin = np.cos(pose[3]), np.sin(pose[3])
        normals = shape.normals @ np.array([[cos, sin], [-sin, cos]])
        across = (np.stack([x, y], -1) @ normals.T).max(-1)
    return (across < shape.inner + margin) & (z > -margin) & (z < PEG_LENGTH + margin)


def _boxes(shape: Shape, clearance: float) -> str:
    """Boxes, one outside each edge of the hole, that together form the block."""
    inner = shape.inner + clearance
    middle, half = (BLOCK + inner) / 2, (BLOCK - inner) / 2
    return "".join(
        f'<geom type="box" name="block{i}" size="{half} {shape.length} {DEPTH / 2}" conaffinity="1" '
        f'pos="{x * middle} {y * middle} {DEPTH / 2}" euler="0 0 {np.arctan2(y, x)}"/>'
        for i, (x, y) in enumerate(shape.normals)
    )


def _peg(name: str, shape: Shape, half: float) -> str:
    solid = {
        "round": f'type="cylinder" size="{shape.inner} {half}" pos="0 0 {half}"',
        "square": f'type="box" size="{shape.inner} {shape.inner} {half}" pos="0 0 {half}"',
        "triangle": 'type="mesh" mesh="prism"',
    }
    return f'<geom name="peg" {solid[name]} contype="1"/>'


def _prism(shape: Shape) -> str:
    """Mesh of a prism with the peg's polygon as its base; the corners lie midway between the normals' angles."""
    angles = 2 * np.pi * (np.arange(shape.edges) + 0.5) / shape.edges
    corners = [
        f"{shape.outer * np.cos(angle):.8f} {shape.outer * np.sin(angle):.8f} {z}" for z in (0, PEG_LENGTH) for angle in angles
    ]
    return f'<mesh name="prism" vertex="{" ".join(corners)}"/>'
