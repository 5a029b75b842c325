"""Peg insertion: the camera's geometry, true flow, forces and contact, the holes, the disturbances, many episodes."""

import importlib.util
import json
import shutil
import subprocess
import sys
import warnings

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from mmgen import cli
from mmgen.data.cards import check_card, open_card, read_card
from mmgen.data.episode_file import check_episode, read_episode
from mmgen.data.simulate import camera, disturbances
from mmgen.data.simulate import peg_insertion as peg
from mmgen.data.simulate.disturbances import add_noise, occlude
from mmgen.data.simulate.episodes import SETTINGS_FILE, simulate
from mmgen.data.simulate.peg_insertion import BONUS, INSERTED, PegInsertion
from mmgen.data.simulate.policies import heuristic_policy, random_policy
from mmgen.data.simulate.scene import DEPTH, SHAPES, STIFFNESS
from mmgen.data.sources import peg_insertion as source
from mmgen.errors import UserError
from mmgen.storage import cache_folder

needs_package = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("mujoco", "gymnasium", "h5py")), reason="the extra robotics"
)
every_shape = pytest.mark.parametrize("shape", SHAPES)


@pytest.fixture(scope="module")
def made():
    """Environments by their settings, made once; skips where there is no package or no renderer."""
    environments = {}
    for name in ("mujoco", "gymnasium"):
        if importlib.util.find_spec(name) is None:
            pytest.skip("the extra robotics is not installed")

    def make(shape="round", size=16, **settings):
        key = shape, size, *sorted(settings.items())
        if key not in environments:
            try:
                environments[key] = PegInsertion(shape, size, **settings)
            except UserError as error:
                if "renderer" not in str(error):
                    raise
                pytest.skip(str(error))
        return environments[key]

    yield make
    for env in environments.values():
        env.close()


def above_the_hole(env, height=0.002):
    return np.array([*env.hole[:2], DEPTH + height, env.pose[3] + env.yaw_error])


# the camera


@every_shape
def test_pixels_are_where_the_world_is(made, shape):
    env = made(shape, 128)
    env.reset(seed=1)
    observation = env.set_state([-0.07, 0.07, 0.09, 0])
    depth, points = observation["depth"], env.camera.points(observation["depth"])
    assert np.allclose(env.camera.heights(depth), points[..., 2])
    height = points[..., 2]
    table = np.abs(height) < 1e-4
    top = np.abs(height - DEPTH) < 1e-4
    assert table.mean() > 0.4 and top.mean() > 0.05  # the two flat things are flat, to 0.1 mm
    # the block's top is where its sides say that it is, and not over the hole
    yaw = env.hole[2]
    turned = Rotation.from_euler("z", -yaw).apply(points[top] - [*env.hole[:2], DEPTH])[:, :2]
    across = (turned @ SHAPES[shape].normals.T).max(1)
    assert (
        across.min() > SHAPES[shape].inner + env.clearance - 1e-4 and across.min() < SHAPES[shape].inner + env.clearance + 2e-3
    )
    pixels, away = env.camera.project(points.astype(np.float64))
    down, right = np.mgrid[:128, :128] + 0.5
    assert np.allclose(pixels, np.stack([right, down], -1), atol=1e-2) and np.allclose(away, depth, atol=1e-5)
    assert observation["image"].std() > 10


@every_shape
@pytest.mark.parametrize("disturbance", [None, "moving_hole"])
def test_flow_is_true(made, shape, disturbance):
    env = made(shape, 64, disturbance=disturbance)
    observation, _ = env.reset(seed=2)
    policy = heuristic_policy(env, np.random.default_rng(2))
    hits, hidden, covered, kept, vanished, slid = 0, 0, 0, 0, 0, 0
    labels, agree = [], []
    for _ in range(36):
        before, hole, depth = env.pose, env.hole, observation["depth"]
        bodies = bodies_seen(env)
        observation, *_ = env.step(policy(observation))
        flow = observation["flow"].astype(np.float64)
        points = env.camera.points(depth).astype(np.float64)
        turn = Rotation.from_euler("z", env.pose[3] - before[3])
        held = np.isin(bodies, [env.model.body("hand").id, env.model.body("peg").id])
        block = bodies == env.model.body("block").id
        moves = np.abs(env.hole - hole).max() > 0
        slid += moves
        shown = held | (block & moves)
        moving = (flow != 0).any(-1)
        labels.append((moving == shown).mean())
        where = held & moving
        moved = turn.apply(points[where] - before[:3]) + env.pose[:3]
        pixels, away = env.camera.project(moved)
        down, right = np.nonzero(where)
        agree.append(np.isclose(np.stack([right, down], -1) + 0.5 + flow[where], pixels, atol=0.02).all(1))
        if moves:
            rest = moving & block & (points[..., 2] > 1e-3)
            ahead = env.camera.project(points[rest] + [*(env.hole - hole)[:2], 0])[0]
            down, right = np.nonzero(rest)
            agree.append(np.isclose(np.stack([right, down], -1) + 0.5 + flow[rest], ahead, atol=0.02).all(1))
        inside = ((pixels >= 1) & (pixels < 63)).all(1)
        right, down = pixels[inside].astype(int).T
        near = np.array([observation["depth"][down + dy, right + dx] for dy in (-1, 0, 1) for dx in (-1, 0, 1)])
        found = (np.abs(near - away[inside]) < 2e-3).any(0)
        hits += found.sum()
        hidden += (~found & (near < away[inside] - 2e-3).any(0)).sum()  # by what is nearer
        covered += inside.sum()
        # what does not move is where it was, or behind what moved
        kept += (~moving).sum()
        vanished += (observation["depth"][~moving] > depth[~moving] + 3e-3).sum()
    agree = np.concatenate(agree)
    assert np.mean(labels) > 0.998 and agree.mean() > 0.999  # all but pixels where peg and block meet
    assert covered > 3000 and hits > 0.95 * covered and hits + hidden > 0.995 * covered
    assert vanished < 1e-3 * kept
    assert slid == (10 if disturbance else 0)


def bodies_seen(env):
    """(s, s) the body that each pixel shows, by the renderer's own ids."""
    import mujoco

    camera = env.camera
    flags = mujoco.mjtRndFlag.mjRND_SEGMENT, mujoco.mjtRndFlag.mjRND_IDCOLOR
    for flag in flags:
        camera.scene.flags[flag] = True
    image = camera.render(env.data)[0].astype(int)
    for flag in flags:
        camera.scene.flags[flag] = False
    geoms = {g.segid + 1: g.objid for g in camera.scene.geoms[: camera.scene.ngeom]}
    ids = image @ [1, 2**8, 2**16]
    return np.vectorize(lambda i: env.model.geom_bodyid[geoms[i]] if i in geoms else -1)(ids)


def test_no_motion_has_no_flow(made):
    env = made("square", 32)
    observation, _ = env.reset(seed=0)
    assert not observation["flow"].any()
    for _ in range(3):
        observation, *_ = env.step(np.zeros(4))
        assert not observation["flow"].any()
    assert env.step([1, 0, 0, 0])[0]["flow"].any()


@needs_package
def test_an_environment_that_is_gone_takes_nothing_with_it(made):
    kept = made("square", 16)
    kept.reset(seed=0)
    before = kept.render()
    for _ in range(2):
        PegInsertion("round", 16).reset(seed=1)  # and collected
        other = PegInsertion("round", 24)
        other.reset(seed=1)
        other.close()
        other.close()
        kept.reset(seed=0)
        assert np.array_equal(kept.render(), before)


# the contract of an environment


@needs_package
@every_shape
def test_gymnasium_accepts_it(made, shape):
    from gymnasium.utils.env_checker import check_env

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=".*(not within the observation|infinity|spec|render_mode|unbounded).*")
        check_env(made(shape, 16, disturbance="noise"), skip_render_check=True)


@pytest.mark.parametrize("disturbance", [None, *peg.DISTURBANCES])
def test_a_seed_makes_an_episode(made, disturbance):
    env, runs = made("triangle", 16, disturbance=disturbance), []
    for seed in (3, 4, 3):
        observations, rewards = [env.reset(seed=seed)[0]], []
        policy = random_policy(np.random.default_rng(0))
        for _ in range(20):
            observation, reward, *_ = env.step(policy(observations[-1]))
            observations.append(observation)
            rewards.append(reward)
        runs.append((observations, rewards))
    assert runs[0][1] == runs[2][1] != runs[1][1]
    for name in runs[0][0][0]:
        same = [np.array_equal(a[name], b[name]) for a, b in zip(runs[0][0], runs[2][0])]
        assert all(same), name
    assert not np.array_equal(runs[0][0][0]["image"], runs[1][0][0]["image"])


def test_truncated_after_its_steps(made):
    env = made("round", 16, steps=3)
    env.reset(seed=0)
    assert [env.step([0, 0, 1, 0])[3] for _ in range(3)] == [False, False, True]


def test_the_observation_does_not_tell_the_hole(made):
    """Without the pictures nothing tells two holes apart while the peg is in the air."""
    env, senses = made("square", 16), []
    for shift in (0, 0.02):
        env.reset(seed=5)
        env.set_state([0, 0, 0.08, 0], env.hole - [shift, 0, 0])
        observation, *_ = env.step([0.1, 0, 0, 0])
        senses.append(
            {k: v for k, v in observation.items() if k not in ("image", "depth", "flow")} | {"seen": observation["depth"]}
        )
    assert all(np.array_equal(senses[0][name], senses[1][name]) for name in ("force", "contact", "proprioception"))
    assert not np.array_equal(senses[0]["seen"], senses[1]["seen"])


# forces and contact


@pytest.mark.parametrize("control", STIFFNESS)
def test_free_motion_feels_nothing_and_gets_there(made, control):
    env = made("square", 16, control=control)
    env.reset(seed=0)
    env.set_state([0, 0, 0.09, 0])
    for _ in range(3):
        observation, *_ = env.step([1, 0, 0, 0.5])
    for _ in range(8):
        observation, *_ = env.step(np.zeros(4))
    assert np.allclose(observation["proprioception"], [0.03, 0, 0.09, 0.15, 0, 0, 0, 0], atol=1e-3)
    assert np.abs(observation["force"]).max() < 0.02 and not observation["contact"].any()


@every_shape
@pytest.mark.parametrize("control", STIFFNESS)
def test_pressing_is_answered_by_the_stiffness(made, shape, control):
    env = made(shape, 16, control=control)
    env.reset(seed=0)
    env.set_state([*(env.hole[:2] - 0.03 * np.sign(env.hole[:2])), DEPTH + 0.001, 0])
    wished = 0.008 if control == "impedance" else 0.002  # m below the block's top
    env.step([0, 0, -(0.001 + wished) / 0.01, 0])
    for _ in range(6):
        observation, *_ = env.step(np.zeros(4))
    force = observation["force"].mean(0)
    balance = STIFFNESS[control][0] * (env.pose[2] - env.data.ctrl[2])
    assert observation["contact"].all() and balance > 5
    assert force[2] == pytest.approx(balance, rel=0.02)
    assert env.pose[2] == pytest.approx(DEPTH, abs=5e-4)  # it does not sink in


def test_contact_flags_agree_with_forces(made):
    env = made("square", 16)
    free, touching = [], []
    for seed in range(4):
        observation, _ = env.reset(seed=seed)
        policy = random_policy(np.random.default_rng(seed))
        for _ in range(40):
            observation, *_ = env.step(policy(observation))
            size = np.linalg.norm(observation["force"][:, :3], axis=1)
            free += size[~observation["contact"]].tolist()
            touching += size[observation["contact"]].tolist()
    assert len(free) > 1000 and len(touching) > 1000
    assert np.quantile(free, 0.9) < 1 and np.median(touching) > 5  # N; what is felt in the air is inertia
    from sklearn.metrics import roc_auc_score

    assert roc_auc_score([0] * len(free) + [1] * len(touching), free + touching) > 0.97


def test_a_wall_pushes_back_sideways(made):
    env = made("square", 16)
    env.reset(seed=0)
    env.set_state(above_the_hole(env, -0.02))
    for _ in range(6):
        observation, *_ = env.step([0.4, 0, 0, 0])
    turn = Rotation.from_euler("z", env.pose[3])
    force = turn.apply(observation["force"][:, :3].mean(0))
    assert force[0] < -4 and observation["contact"].all() and observation["force"][:, 4].mean() != 0


# holes, success and reward


@every_shape
@pytest.mark.parametrize(("clearance", "fits"), [(0.003, True), (0.0005, True), (-0.001, False)])
def test_a_peg_fits_its_hole_or_does_not(made, shape, clearance, fits):
    env = made(shape, 16, clearance=clearance)
    env.reset(seed=7)
    env.set_state(above_the_hole(env))
    for _ in range(12):
        _, _, terminated, _, info = env.step([0, 0, -1, 0])
    assert info["success"] is fits and terminated is fits
    assert (info["depth_inserted"] > 0.8 * DEPTH) if fits else (info["depth_inserted"] < 1e-3)


@pytest.mark.parametrize(("shape", "turn"), [("square", np.pi / 4), ("triangle", np.pi / 3)])
def test_a_turned_peg_does_not_fit(made, shape, turn):
    env = made(shape, 16)
    env.reset(seed=7)
    env.set_state(above_the_hole(env) + np.array([0, 0, 0, turn]))
    assert abs(env.yaw_error) == pytest.approx(turn)
    for _ in range(6):
        info = env.step([0, 0, -1, 0])[-1]
    assert info["depth_inserted"] < 1e-3


def test_symmetry(made):
    for shape, symmetry in (("square", 4), ("triangle", 3)):
        env = made(shape, 16)
        env.reset(seed=7)
        errors = []
        for turn in (0.2, 0.2 + 2 * np.pi / symmetry, 0.2 - 2 * np.pi / symmetry):
            env.set_state([*env.pose[:3], env.hole[2] - turn])
            errors.append(env.yaw_error)
        assert errors == pytest.approx([0.2] * 3)
    assert made("round", 16).yaw_error == 0


def test_reward_rises_along_the_way_and_ending_is_worth_more_than_staying(made):
    env = made("triangle", 16)
    env.reset(seed=7)
    goal = above_the_hole(env, 0)
    way = [(0.04, 0, 0.03, 0.5), (0.02, 0, 0.03, 0.5), (0.02, 0, 0.02, 0.1), (0, 0, 0.01, 0), (0, 0, 0, 0), (0, 0, -0.01, 0)]
    rewards = []
    for shift in way:
        env.set_state(goal + shift)
        rewards.append(env.reward)
    assert rewards == sorted(rewards) and len(set(rewards)) == len(rewards)
    assert rewards[4] == pytest.approx(0.4) and rewards[5] == pytest.approx(0.4 + 0.6 / 3)
    env.reset(seed=7)
    env.set_state(above_the_hole(env, -0.02))
    returns, done = [], 0
    while not done:
        _, reward, done, _, _ = env.step([0, 0, -1, 0])
        returns.append(reward)
    assert all(0 <= r <= 1 for r in returns[:-1])
    assert BONUS <= returns[-1] <= BONUS + 1
    below = 0.4 + 0.6 * INSERTED  # the most that a step earns short of success
    assert below / (1 - 0.98) < BONUS  # staying for ever, which is what a learner that bootstraps at the limit reckons with
    assert 0 <= env.step([0, 0, 0, 0])[1] <= 1  # the bonus comes once


def test_a_peg_beside_the_block_is_not_inserted(made):
    env = made("square", 16)
    env.reset(seed=0)
    env.set_state([*(env.hole[:2] - np.sign(env.hole[:2]) * 0.065), 0.001, 0])
    assert env.depth_inserted == 0


@every_shape
def test_the_heuristic_can_do_it_and_touches(made, shape):
    env = made(shape, 16, flow=False)
    successes, contact = 0, []
    for seed in range(12):
        observation, _ = env.reset(seed=seed)
        policy, inserted = heuristic_policy(env, np.random.default_rng(seed)), False
        for _ in range(49):
            observation, _, terminated, _, _ = env.step(policy(observation))
            contact.append(observation["contact"].any())
            inserted = inserted or terminated
        successes += inserted
    assert 4 <= successes <= 12 and 0.3 < np.mean(contact) < 0.9


def test_the_random_policy_touches_and_lets_go(made):
    env, contact = made("square", 16, flow=False), []
    for seed in range(8):
        observation, _ = env.reset(seed=seed)
        policy = random_policy(np.random.default_rng(seed))
        for _ in range(49):
            observation, *_ = env.step(policy(observation))
            contact.append(observation["contact"].any())
    assert 0.25 < np.mean(contact) < 0.75


# disturbances


def runs(made, disturbance, action=(0, 0, 0, 0), steps=40, size=16, seed=3):
    observations, holes = [], []
    for name in (None, disturbance):
        env = made("square", size, disturbance=name)
        seen, _ = env.reset(seed=seed)
        rows, where = [seen], [env.hole]
        for _ in range(steps):
            seen, *_ = env.step(action)
            rows.append(seen)
            where.append(env.hole)
        observations.append(rows)
        holes.append(np.array(where))
    return env, observations, holes


def test_a_push_moves_the_end_effector_and_ends(made):
    env, (calm, pushed), _ = runs(made, "push")
    away = np.array([np.linalg.norm((a["proprioception"] - b["proprioception"])[:2]) for a, b in zip(calm, pushed)])
    at = env.disturb_at
    assert not away[: at + 1].any() and away[at + 1 : at + 6].max() > 0.015
    assert away[at + 5] == pytest.approx(peg.PUSH / STIFFNESS["impedance"][0], rel=0.1)  # force over stiffness
    assert away[-1] < 1e-3
    assert np.abs((calm[5]["proprioception"] - pushed[5]["proprioception"])[2:4]).max() < 1e-6


def test_a_moving_hole_slides_and_stops(made):
    env, (calm, moved), (still, holes) = runs(made, "moving_hole", size=32)
    at = env.disturb_at
    assert not np.ptp(still, axis=0).any()
    lengths = np.linalg.norm(np.diff(holes[:, :2], axis=0), axis=1)
    assert np.allclose(lengths[at : at + 10], 0.003) and not lengths[:at].any() and not lengths[at + 10 :].any()
    assert np.linalg.norm(holes[-1, :2] - holes[0, :2]) == pytest.approx(0.03)
    assert np.abs(holes[:, :2]).max() <= peg.HOLE + 1e-6
    assert moved[at + 1]["flow"].any() and not calm[at + 1]["flow"].any() and not moved[-1]["flow"].any()
    assert np.array_equal(calm[at]["depth"], moved[at]["depth"]) and not np.array_equal(calm[-1]["depth"], moved[-1]["depth"])


def test_an_occluded_camera(made):
    env, (calm, covered), _ = runs(made, "occlusion", action=(0.3, 0, 0, 0), steps=5, size=20)
    panels = [o["depth"] == np.float32(disturbances.PANEL_DEPTH) for o in covered]
    assert all(np.array_equal(p, panels[0]) and p.sum() == 14 * 14 for p in panels)
    for a, b, panel in zip(calm, covered, panels):
        assert len(np.unique(b["image"][panel], axis=0)) == 1
        assert np.array_equal(a["image"][~panel], b["image"][~panel]) and np.array_equal(
            a["depth"][~panel], b["depth"][~panel]
        )
        assert all(np.array_equal(a[name], b[name]) for name in ("force", "contact", "proprioception", "flow"))
    assert not np.array_equal(env.render(), covered[-1]["image"])


def test_noise_in_the_environment(made):
    _, (calm, noisy), _ = runs(made, "noise", action=(0.3, 0, 0, 0), steps=5)
    for a, b in zip(calm, noisy):
        assert np.array_equal(a["flow"], b["flow"]) and np.array_equal(a["contact"], b["contact"])
        assert all((a[name] != b[name]).any() for name in ("image", "depth", "force", "proprioception"))
        assert all(a[name].dtype == b[name].dtype for name in a)


def test_the_noise_is_what_it_says():
    rng = np.random.default_rng(0)
    image, depth = np.full((40, 32, 32, 3), 128, np.uint8), np.full((40, 32, 32), 0.5, np.float32)
    force, pose = np.ones((4000, 6), np.float32), np.ones((4000, 8), np.float32)
    changed = add_noise(image, depth, force, pose, rng)
    deviations = [(a.astype(float) - b) for a, b in zip(changed, (image, depth, force, pose))]
    assert deviations[0].std() == pytest.approx(disturbances.IMAGE_NOISE, rel=0.02)
    assert deviations[1].std() == pytest.approx(disturbances.DEPTH_NOISE, rel=0.02)
    d = disturbances
    assert deviations[2].std(0) == pytest.approx([d.FORCE_NOISE] * 3 + [d.TORQUE_NOISE] * 3, rel=0.05)
    assert deviations[3].std(0) == pytest.approx(
        [d.POSITION_NOISE] * 3 + [d.YAW_NOISE] + [d.VELOCITY_NOISE] * 3 + [d.YAW_RATE_NOISE], rel=0.05
    )
    assert all(abs(x.mean()) < 0.05 * x.std() for x in deviations)
    assert (image == 128).all() and (force == 1).all()  # what was given is as it was
    dark = add_noise(np.zeros_like(image), np.zeros_like(depth), force, pose, rng)
    assert dark[0].max() < 200 and dark[1].min() == 0


def test_a_panel_is_the_same_for_an_episode_and_anywhere():
    image, depth = np.zeros((3, 20, 20, 3), np.uint8), np.ones((3, 20, 20), np.float16)
    places = set()
    for seed in range(40):
        a, b = occlude(image, depth, np.random.default_rng(seed))
        assert (b == b[0]).all() and (a == a[0]).all() and (b[0] < 1).sum() == 14 * 14 and b.dtype == np.float16
        places.add(tuple(np.argwhere(b[0] < 1)[0]))
    assert len(places) > 20 and not image.any() and (depth == 1).all()
    again = occlude(image[0], depth[0], np.random.default_rng(39))
    assert np.array_equal(again[0], a[0])  # of one moment as of all


@pytest.mark.parametrize(
    ("image", "depth"), [((4, 4), (4, 4)), ((4, 4, 3), (4, 4, 1)), ((4, 5, 3), (4, 5)), ((2, 4, 4, 3), (3, 4, 4))]
)
def test_pictures_that_do_not_belong_together(image, depth):
    with pytest.raises(UserError, match=r"pictures: got image \("):
        occlude(np.zeros(image, np.uint8), np.zeros(depth), np.random.default_rng(0))


def test_noise_on_readings_of_another_shape():
    zeros = np.zeros((4, 4, 3), np.uint8), np.zeros((4, 4))
    with pytest.raises(UserError, match=r"force: got shape \(32, 5\)"):
        add_noise(*zeros, np.zeros((32, 5)), np.zeros(8), np.random.default_rng(0))
    with pytest.raises(UserError, match=r"proprioception: got shape \(7,\)"):
        add_noise(*zeros, np.zeros((32, 6)), np.zeros(7), np.random.default_rng(0))


# bad inputs


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"shape": "rond"}, r"shape: got rond,.*'round'"),
        ({"control": "impedence"}, r"control: got impedence,.*'impedance'"),
        ({"disturbance": "pushing"}, r"disturbance: got pushing,.*'push'"),
        ({"size": 4}, r"size: got 4"),
        ({"steps": 0}, r"steps: got 0"),
        ({"clearance": 0.5}, r"clearance: got 0\.5,.*metres"),
        ({"clearance": float("nan")}, r"clearance: got nan"),
    ],
)
def test_bad_settings(settings, words):
    with pytest.raises(UserError, match=words):
        PegInsertion(**settings)


@pytest.mark.parametrize("action", [[0, 0, 0], [[0, 0, 0, 0]], [0, 0, 0, np.nan]])
def test_bad_actions(made, action):
    env = made("round", 16)
    env.reset(seed=0)
    with pytest.raises(UserError, match="action: got"):
        env.step(action)


@pytest.mark.parametrize(
    ("state", "what"), [(([0, 0, 0],), "pose"), (([0, 0, 0, 0], [0, 0, np.nan]), "hole"), (("up",), "pose")]
)
def test_bad_states(made, state, what):
    env = made("round", 16)
    env.reset(seed=0)
    with pytest.raises(UserError, match=f"{what}: got"):
        env.set_state(*state)


@needs_package
def test_a_step_before_the_reset(made):
    made("round", 16)  # skips without a renderer
    for verb in ("step", "set_state"):
        with pytest.raises(UserError, match="reset first"):
            getattr(PegInsertion("round", 8), verb)(np.zeros(4))


def test_without_the_packages(monkeypatch, tmp_path):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name in ("mujoco", "gymnasium", "h5py") else find(name)
    )
    for name in ("mujoco", "gymnasium", "h5py"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    for call in (lambda: PegInsertion(), lambda: simulate(tmp_path, 1)):
        with pytest.raises(UserError, match=r"mujoco.*pip install 'mmgen\[robotics\]'"):
            call()
    monkeypatch.delenv("MMGEN_DATA", raising=False)
    with pytest.raises(UserError, match=r"gymnasium, h5py, mujoco not installed.*pip install 'mmgen\[robotics\]'"):
        open_card("peg_insertion", "test", size=15)


def test_without_a_renderer(monkeypatch):
    monkeypatch.setattr(camera, "check_installed", lambda *packages: None)
    monkeypatch.setattr("ctypes.util.find_library", lambda name: None)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    monkeypatch.delitem(sys.modules, "mujoco", raising=False)
    with pytest.raises(UserError, match=r"renderer: got neither.*apt install libegl1.*libosmesa6.*MUJOCO_GL=osmesa"):
        camera.load_mujoco()


@needs_package
def test_a_renderer_that_does_not_work():
    code = "from mmgen.data.simulate.peg_insertion import PegInsertion as P\ntry: P()\nexcept ValueError as e: print(e)"
    env = {"MUJOCO_GL": "nonsense", "PATH": "/usr/bin", "HOME": "/tmp"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("renderer: got MUJOCO_GL=nonsense") and "apt install libegl1" in done.stdout


def test_importing_loads_no_simulator():
    check = "import mmgen, mmgen.cli, mmgen.data.cards, sys; assert not {'mujoco', 'gymnasium', 'h5py'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", check], check=True)
    check = "import mmgen.data.simulate.peg_insertion, sys; assert 'mujoco' not in sys.modules"
    subprocess.run([sys.executable, "-c", check], check=True)


# many episodes


def same_episode(a, b):
    """Every value and attribute; the bytes may differ, since lzf does not clear its table."""
    left, right = read_episode(a), read_episode(b)
    same = all(np.array_equal(left[name], right[name]) for name in left)
    return same and left.keys() == right.keys() and check_episode(a) == check_episode(b)


@needs_package
def test_episodes_are_the_same_whatever_the_workers(made, tmp_path):
    made("round", 16)
    settings = {"seed": 3, "size": 16, "steps": 6}
    one = simulate(tmp_path / "one", 7, workers=1, **settings)
    two = simulate(tmp_path / "two", 7, workers=2, **settings)
    names = sorted(path.name for path in (tmp_path / "one").glob("*.h5"))
    assert names == [f"episode_{i:06d}.h5" for i in range(7)]
    assert all(same_episode(tmp_path / "one" / name, tmp_path / "two" / name) for name in names)
    assert one["observations"] == one["made"] == 42 and one["in_contact"] == pytest.approx(two["in_contact"])
    facts = [check_episode(tmp_path / "one" / name) for name in names]
    assert [f["shape"] for f in facts] == [*SHAPES] * 2 + ["round"]
    assert [f["policy"] for f in facts] == ["random"] * 3 + ["heuristic"] * 3 + ["random"]
    # another seed makes others
    simulate(tmp_path / "other", 1, seed=4, size=16, steps=6)
    a, b = (read_episode(tmp_path / name / names[0])["proprio"] for name in ("one", "other"))
    assert not np.array_equal(a, b)


@needs_package
def test_the_rows_of_an_episode_belong_together(made, tmp_path):
    made("round", 16)
    simulate(tmp_path, 6, size=32, steps=12)
    fields = read_episode(tmp_path / "episode_000001.h5")
    assert not fields["action"][0].any() and not fields["contact"][0].any() and not fields["optical_flow"][-1].any()
    assert np.allclose(fields["ee_yaw_delta"][1:], np.diff(fields["proprio"][:, :4], axis=0), atol=1e-6)
    moved, wished = np.diff(fields["proprio"][:, :2], axis=0), fields["action"][1:, :2]
    follows = [np.corrcoef(wished.ravel(), moved.ravel())[0, 1], np.corrcoef(wished[1:].ravel(), moved[:-1].ravel())[0, 1]]
    assert follows[0] > 0.5 and follows[0] > follows[1]  # action t + 1 leads to moment t + 1
    # the flow from t to t + 1 is at the pixels of t, where the peg is
    for t in range(11):
        flow = fields["optical_flow"][t].astype(float)
        changed = np.abs(np.diff(fields["depth_data"][t : t + 2, ..., 0].astype(float), axis=0))[0] > 0.02
        moving = np.hypot(flow[..., 0], flow[..., 1]) > 0
        if changed.sum() > 20:
            assert (moving & changed).any()


@needs_package
def test_resumed_where_it_stopped(made, tmp_path):
    made("round", 16)
    settings = {"size": 16, "steps": 4}
    whole, part = tmp_path / "whole", tmp_path / "part"
    simulate(whole, 5, **settings)
    simulate(part, 3, **settings)
    (part / ".partial-episode_000003.h5-1").write_bytes(b"killed")
    kept = {path: path.stat().st_mtime_ns for path in part.glob("*.h5")}
    made_now = simulate(part, 5, **settings)
    assert made_now["made"] == 8 and made_now["observations"] == 20
    assert all(path.stat().st_mtime_ns == when for path, when in kept.items())
    for path in whole.glob("*.h5"):
        assert same_episode(part / path.name, path)
    assert not list(part.glob(".partial*"))
    assert simulate(part, 5, **settings)["made"] == 0
    for name, value in {"size": 24}.items() | {"steps": 5}.items() | {"seed": 1}.items() | {"disturbance": "push"}.items():
        with pytest.raises(UserError, match=rf"{SETTINGS_FILE}: got {name} {value}"):
            simulate(part, 5, **(settings | {name: value}))
    (part / "episode_000001.h5").write_bytes(b"damaged")
    with pytest.raises(UserError, match=r"episode_000001\.h5: got .*a whole HDF5 file"):
        simulate(part, 5, **settings)
    (part / SETTINGS_FILE).unlink()
    with pytest.raises(UserError, match=f"no {SETTINGS_FILE}"):
        simulate(part, 5, **settings)


@needs_package
def test_an_error_of_a_worker_is_told(made, tmp_path, monkeypatch):
    made("round", 16)
    monkeypatch.setenv("MUJOCO_GL", "nonsense")
    with pytest.raises(UserError, match=r"MUJOCO_GL=nonsense.*apt install libegl1"):
        simulate(tmp_path, 2, workers=2, size=16, steps=2)


@needs_package
@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"episodes": 0}, "episodes: got 0"),
        ({"workers": 0}, "workers: got 0"),
        ({"seed": -1}, "seed: got -1"),
        ({"shapes": []}, "shapes: got none"),
        ({"shapes": ["hexagon"]}, "shape: got hexagon"),
        ({"steps": 1}, "steps: got 1"),
        ({"disturbance": "quake"}, "disturbance: got quake"),
    ],
)
def test_bad_settings_of_a_simulation(tmp_path, settings, words):
    with pytest.raises(UserError, match=words):
        simulate(**({"out": tmp_path / "out", "episodes": 1} | settings))
    assert not (tmp_path / "out").exists()


@needs_package
def test_the_command(made, tmp_path, capsys):
    made("round", 16)
    command = ["data", "simulate", "peg_insertion", "--episodes", "2", "--out", str(tmp_path / "out"), "--size", "16"]
    assert (
        cli.main([*command, "--shape", "square", "triangle", "--disturbance", "push", "--json", str(tmp_path / "f.json")]) == 0
    )
    line = capsys.readouterr().out
    assert "2 episodes, 100 observations," in line and "% in contact" in line and "observations/s" in line
    figures = json.loads((tmp_path / "f.json").read_text(encoding="utf-8"))
    assert figures["observations"] == 100 and figures["observations_per_s"] > 1
    settings = json.loads((tmp_path / "out" / SETTINGS_FILE).read_text(encoding="utf-8"))
    assert settings["shapes"] == ["square", "triangle"] and settings["disturbance"] == "push"
    assert cli.main([*command, "--seed", "9"]) == 2
    assert "got seed 9, expected seed 0" in capsys.readouterr().err
    assert cli.main(["data", "simulate", "peg_insertoin", "--episodes", "2", "--out", "x"]) == 2
    assert "did you mean 'peg_insertion'" in capsys.readouterr().err


# the data card


@needs_package
def test_the_card_simulates_once(made, tmp_path, monkeypatch):
    made("round", 16)
    monkeypatch.setenv("MMGEN_CACHE", str(tmp_path))
    few = {name: (seed, 2, shapes, disturbance) for name, (seed, _, shapes, disturbance) in source.SPLITS.items()}
    monkeypatch.setattr(source, "SPLITS", few)
    train = open_card("peg_insertion", "train", size=16)
    assert train["shape"][:] == [0, 1] and "simulator peg_insertion" in train.info.description
    first = [read_episode(path)["image"] for path in train["episode"]]
    assert first[0].shape == (50, 16, 16, 3)
    pushed = open_card("peg_insertion", "test_push", size=16)
    assert pushed["shape"][:] == [2, 2] and check_episode(pushed["episode"][0])["disturbance"] == "push"
    shutil.rmtree(cache_folder() / "cards")  # rows are made again, episodes are not
    when = {path: path.stat().st_mtime_ns for path in cache_folder().rglob("*.h5")}
    again = open_card("peg_insertion", "train", size=16)
    assert again["episode"][:] == train["episode"][:] and len(when) == 4
    assert all(path.stat().st_mtime_ns == at for path, at in when.items())


def test_the_splits_are_those_of_the_card():
    assert check_card("peg_insertion", data=False) == []
    card = read_card("peg_insertion")
    assert card.splits == {name: episodes for name, (_, episodes, _, _) in source.SPLITS.items()}
    assert card.columns["shape"]["classes"] == list(source.CLASSES)
    assert len({seed for seed, *_ in source.SPLITS.values()}) == len(source.SPLITS)
    shown = {shape for name in ("train", "validation") for shape in source.SPLITS[name][2]}
    assert all(not shown & set(source.SPLITS[name][2]) for name in source.SPLITS if name.startswith("test"))
