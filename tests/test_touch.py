"""Moments of episodes: what belongs to each, what comes after, and touch of elsewhere; the processors of touch and flow."""

import numpy as np
import pytest
import torch

from mmgen.data.flow import FlowProcessor
from mmgen.data.image import DepthProcessor
from mmgen.data.processors import load_processors, save_processors
from mmgen.data.touch import FAR, NEAR, ForceProcessor, Transitions, fit_processors, sensed
from mmgen.errors import UserError
from mmgen.modalities.kinds import PROCESSORS

pytest.importorskip("h5py", reason="pip install 'mmgen[robotics]'")

MOMENTS, SIDE, READINGS = 7, 8, 4


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Three episodes whose numbers say where they are from: the hand walks 8 mm a moment, episodes begin 5 cm apart."""
    from mmgen.data.episode_file import write_episode

    folder = tmp_path_factory.mktemp("episodes")
    for e in range(3):
        rng = np.random.default_rng(e)
        t = np.arange(MOMENTS)
        proprio = rng.normal(size=(MOMENTS, 8)).astype(np.float32)
        proprio[:, :3] = 0
        proprio[:, 0] = 0.05 * e + 0.008 * t
        force = np.broadcast_to((100 * e + t)[:, None, None], (MOMENTS, READINGS, 6)) + np.arange(READINGS)[:, None]
        write_episode(
            folder / f"{e}.h5",
            {
                "action": np.stack([t, -t, t * t, rng.normal(size=MOMENTS)], 1).astype(np.float32),
                "contact": np.stack([t % 3 == 1, *[np.zeros(MOMENTS, bool)] * (READINGS - 1)], 1),
                "depth_data": np.broadcast_to(0.1 + 0.01 * t[:, None, None, None], (MOMENTS, SIDE, SIDE, 1)),
                "ee_forces_continuous": force,
                "image": np.broadcast_to((40 * e + t)[:, None, None, None], (MOMENTS, SIDE, SIDE, 3)).astype(np.uint8),
                "optical_flow": np.broadcast_to(t[:, None, None, None], (MOMENTS, SIDE, SIDE, 2)),
                "proprio": proprio,
            },
        )
    return sorted(folder.glob("*.h5"))


@pytest.fixture(scope="module")
def data(files):
    return Transitions(files, fit_processors(files, SIDE, READINGS))


def test_an_item_is_a_moment_with_what_comes_next(data):
    assert len(data) == 3 * (MOMENTS - 1)
    for i in range(len(data)):
        (e, t), item, by = data.place(i), data[i], data.processors
        assert (item["image"] * 255).round().unique().tolist() == [40 * e + t]
        torch.testing.assert_close(item["depth"], torch.full((1, SIDE, SIDE), 0.1 + 0.01 * t), atol=1e-4, rtol=0)
        np.testing.assert_allclose(by["force"].decode(item["force"])[0], 100 * e + t, atol=1e-3)
        assert by["action"].decode(item["action"])[:2] == pytest.approx([t + 1, -t - 1], abs=1e-4)
        assert item["contact"].item() == float((t + 1) % 3 == 1)
        assert item["touching"].item() == float(t % 3 == 1)
        assert by["displacement"].decode(item["displacement"])[0] == pytest.approx(0.008, abs=1e-6)
        assert item["flow"].unique().tolist() == [t]


def felt_otherwise(data, i):
    """Whether the near touch of moment i differs in the force alone."""
    alone = torch.equal(data[i]["near_proprioception"], data[i]["proprioception"])
    assert data[i]["force_alone"].item() == float(alone)
    return alone


def test_touch_of_elsewhere_is_far_and_of_the_episode_is_near(data):
    for i in range(len(data)):
        if felt_otherwise(data, i):
            continue
        (e, t), item = data.place(i), data[i]
        here = 0.05 * e + 0.008 * t
        moments = {
            name: divmod(round(data.processors["force"].decode(item[f"{name}_force"])[0, 0]), 100) for name in ("far", "near")
        }
        assert moments["near"][0] == e and moments["far"][0] != e
        for name, least in (("far", FAR), ("near", NEAR)):
            number, moment = moments[name]
            place = 0.05 * number + 0.008 * moment
            others = [e] if name == "near" else [n for n in range(3) if n != e]
            most = max(abs(0.05 * n + 0.008 * m - here) for n in others for m in range(MOMENTS))
            assert abs(place - here) >= min(least, most) - 1e-6
            known = data.processors["proprioception"].decode(item[f"{name}_proprioception"])[0]
            assert known == pytest.approx(place, abs=1e-5)


def test_of_some_near_touch_the_force_alone_is_of_another_contact(data):
    chosen = [i for i in range(len(data)) if felt_otherwise(data, i)]
    assert 0 < len(chosen) < len(data)
    for i in chosen:
        (e, t), force = data.place(i), data.processors["force"].decode(data[i]["near_force"])[0, 0]
        number, moment = divmod(round(force), 100)
        assert number == e and (moment % 3 == 1) != (t % 3 == 1)


def test_without_another_contact_near_touch_is_of_another_place(files, data):
    still = Transitions(files, data.processors)
    for episode in still.episodes:
        episode["contact"] = np.zeros_like(episode["contact"])
    assert not any(felt_otherwise(still, i) for i in range(len(still)))


def test_items_do_not_depend_on_what_was_read_before(data, files):
    again = Transitions(files, data.processors, in_memory=True)
    for i in (5, 0, 11):
        assert all(torch.equal(value, again[i][name]) for name, value in data[i].items())
    assert any(not torch.equal(data[0][f"far_{s}"], data[1][f"far_{s}"]) for s in ("force", "proprioception"))


def test_one_panel_covers_the_camera_for_an_episode(files, data):
    covered = Transitions(files, data.processors, "occlusion")
    places = {}
    for i in range(len(covered)):
        changed = (covered[i]["depth"] - data[i]["depth"]).abs() > 1e-6
        panel = (covered[i]["image"] - data[i]["image"]).abs().amax(0, keepdim=True) > 1e-6
        e, t = data.place(i)
        if t:  # at moment 0 the depth is as near as the panel
            assert torch.equal(changed, panel)
        places.setdefault(e, panel)
        assert torch.equal(places[e], panel)
    assert places[0].sum().item() == round(0.7 * SIDE) ** 2


def test_noise_is_on_senses_and_not_on_targets(files, data):
    noisy = Transitions(files, data.processors, "noise")
    changed = {name for name, value in data[3].items() if not torch.equal(noisy[3][name], value)}
    touch = {f"{of}{sense}" for of in ("", "far_", "near_") for sense in ("force", "proprioception")}
    assert changed == {"image", "depth", *touch}
    places = [data.processors["proprioception"].decode(d[3]["near_proprioception"])[0] for d in (data, noisy)]
    assert abs(places[0] - places[1]) < 0.02  # of the same moment, 3 mm of noise


def test_an_environments_observation_is_read_as_an_episode_is(data):
    seen = {
        "image": np.full((SIDE, SIDE, 3), 3, np.uint8), "depth": np.full((SIDE, SIDE), 0.13, np.float32),
        "force": np.full((READINGS, 6), 3.0) + np.arange(READINGS)[:, None],
        "proprioception": data.episodes[0]["proprio"][3], "contact": np.zeros(READINGS, bool),
    }  # fmt: skip
    item, read = data[3], sensed(seen, data.processors)
    assert {*read} == {"image", "depth", "force", "proprioception"}
    for name, value in read.items():
        torch.testing.assert_close(value, item[name], atol=1e-4, rtol=1e-4)


def test_flow_and_depth_of_another_size():
    flow = np.zeros((4, 4, 2), np.float32)
    flow[:2, :2] = [8.0, -4.0]
    assert FlowProcessor(2)(flow)[:, 0].tolist() == [[4.0, 0.0], [-2.0, 0.0]]
    depth = np.arange(16.0).reshape(4, 4)
    assert DepthProcessor(2)(depth).flatten().tolist() == [5.0, 7.0, 13.0, 15.0]
    assert DepthProcessor(4)(depth)[0].tolist() == depth.tolist()


def test_processors_travel_with_a_model(tmp_path, data):
    save_processors(data.processors, tmp_path)
    again = load_processors(tmp_path, PROCESSORS)
    assert again == data.processors


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: FlowProcessor(0), ["size", "0", ">= 1"]),
        (lambda: FlowProcessor(4)(np.zeros((4, 3, 2))), ["flow", "(4, 3, 2)", "(s, s, 2)"]),
        (lambda: FlowProcessor(4)(np.full((4, 4, 2), np.nan)), ["flow", "nan", "finite"]),
        (lambda: DepthProcessor(4)(np.zeros((4, 4, 1))), ["depth", "(4, 4, 1)", "(s, s)"]),
        (lambda: ForceProcessor([0.0] * 6, [0.0] * 6), ["force", "6 stds > 0"]),
        (lambda: ForceProcessor([0.0] * 6, [1.0] * 6, 8)(np.zeros((4, 6))), ["force", "(4, 6)", "at least 8"]),
        (lambda: ForceProcessor([0.0] * 6, [1.0] * 6, 2)(np.full((2, 6), np.inf)), ["force", "inf", "finite"]),
        (lambda: fit_processors([], 8), ["episodes", "none", "at least one file"]),
        (lambda: Transitions([], {}, "push"), ["disturbance", "push", "choose one of noise, occlusion"]),
    ],
)
def test_what_cannot_be_read(call, words):
    with pytest.raises(UserError) as error:
        call()
    assert all(word in str(error.value) for word in words), str(error.value)
