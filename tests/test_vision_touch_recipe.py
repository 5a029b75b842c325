"""The recipes vision_touch and peg_policy: which splits they read, what their figures count, policies saved and resumed."""

import csv
import importlib
import io
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from mmgen.data.batch import collate
from mmgen.data.simulate.oracle import Oracle
from mmgen.data.simulate.peg_insertion import PegInsertion
from mmgen.data.simulate.scene import DEPTH
from mmgen.data.touch import Transitions, fit_processors
from mmgen.errors import UserError
from mmgen.judging.arms import code_moments, view
from mmgen.models.base import load
from mmgen.models.vision_touch import TOUCH, VisionTouch
from mmgen.training.recipe import load_recipe, recipe_config
from mmgen.training.stages import vision_touch
from mmgen.training.study import evaluate, train

for package in ("mujoco", "gymnasium", "stable_baselines3", "h5py"):
    pytest.importorskip(package, reason="pip install 'mmgen[robotics]'")

RECIPE = load_recipe("vision_touch")
MODULE = importlib.import_module("mmgen.recipes.vision_touch.train")
POLICY = load_recipe("peg_policy")
POLICY_MODULE = importlib.import_module("mmgen.recipes.peg_policy.train")


@pytest.fixture(scope="module")
def config():
    found = recipe_config(RECIPE, "smoke", [])
    try:
        found.data.files("train")
    except UserError as error:
        if "MUJOCO_GL" not in str(error):
            raise
        pytest.skip(str(error))
    return found


@pytest.fixture(scope="module")
def data(config):
    files = config.data.files("train")
    return Transitions(files, fit_processors(files, config.data.size, config.model.readings))


def test_training_reads_the_training_split_alone(config, tmp_path, monkeypatch):
    read, real = [], vision_touch.open_card

    def noted(card, split, **options):
        read.append(split)
        return real(card, split, **options)

    monkeypatch.setattr(vision_touch, "open_card", noted)
    train(RECIPE, replace(config, fit=replace(config.fit, steps=1)), tmp_path / "run")
    assert set(read) == {"train"}


def test_what_no_model_knows_scores_as_chance(config, data):
    torch.manual_seed(0)
    model = VisionTouch(size=config.data.size, latent_dim=4).eval()
    model.processors |= data.processors
    for head in (model.contact, model.displacement[-1], model.pairing[-1], model.flow.mask, *model.flow.flows):
        torch.nn.init.zeros_(head.weight)
        torch.nn.init.zeros_(head.bias)
    found = MODULE.scores(model, data, "test")
    assert found["flow_epe_ratio"] == pytest.approx(1) and found["pairing_accuracy"] == found["pairing_accuracy_hard"] == 0.5
    touching = np.mean([data[i]["contact"].item() for i in range(len(data))])
    assert found["contact_accuracy"] == pytest.approx(1 - touching)  # p = 0.5 is no contact
    assert found["contact_accuracy_chance"] == pytest.approx(max(touching, 1 - touching))
    moved = MODULE.scores(model, data, "test", without=("image", "depth"))
    assert "pairing_accuracy" not in moved and "flow_epe_ratio" not in moved


def test_touch_alone_tells_pairs_by_itself(config, data):
    torch.manual_seed(0)
    model = VisionTouch(TOUCH, size=config.data.size, latent_dim=4).eval()
    model.processors |= data.processors
    torch.nn.init.zeros_(model.pairing[-1].weight)
    torch.nn.init.constant_(model.pairing[-1].bias, 1.0)  # all are said to be of one moment
    noisy = Transitions(data.files, data.processors, "noise")
    for found in (MODULE.scores(model, data, "test"), MODULE.scores(model, noisy, "noise")):
        assert {key: value for key, value in found.items() if key.startswith("pairing")} == {
            "pairing_accuracy": 0.5, "pairing_accuracy_hard": 0.5, "pairing_accuracy_force": 0.5,
        }  # fmt: skip


def test_what_is_kept_under_the_panel_is_counted_from_a_baseline():
    assert MODULE.kept(0.95, 0.9, 0.55) == pytest.approx(0.875)
    assert MODULE.kept(0.95, 0.9, 0.93) == pytest.approx(-1.5)  # worse than the baseline
    assert MODULE.kept(0.5, 0.9, 0.5) == 0.0


def test_no_motion_has_a_pose_error_ratio_of_one(config, data):
    model = VisionTouch(size=config.data.size, latent_dim=4).eval()
    model.processors |= data.processors
    by = model.processors["displacement"]
    last = model.displacement[-1]
    torch.nn.init.zeros_(last.weight)
    last.bias.data = -torch.tensor(by.mean) / torch.tensor(by.std)
    assert MODULE.scores(model, data, "test")["pose_error_ratio"] == pytest.approx(1)


@pytest.mark.parametrize(
    ("recipe", "override", "words"),
    [
        (RECIPE, "model.size=32", ["model.size", "32", "set data.size"]),
        (RECIPE, "model.senses=[force]", ["model.senses", "force", "leave it out"]),
        (RECIPE, "data.card=digits", ["episode", "digits"]),
        (RECIPE, "data.episodes=-1", ["data.episodes", "-1", ">= 0"]),
        (POLICY, "arms=[ful]", ["arms", "ful", "did you mean 'full'?"]),
        (POLICY, "arms=[]", ["arms", "an empty list"]),
        (POLICY, "policy.shapes=[star]", ["shape", "star", "did you mean 'square'?"]),
        (POLICY, "evaluation.disturbances=[puhs]", ["evaluation.disturbances", "puhs", "did you mean 'push'?"]),
        (POLICY, "policy.steps=0", ["policy.steps", "0", ">= 1"]),
        (POLICY, "policy.environments=3", ["policy.environments", "3 for 2 shapes", "a multiple of 2"]),
        (POLICY, "policy.log_std=.nan", ["policy.log_std", "nan", "-10 to 2"]),
        (POLICY, "policy.reward_scale=-1.0", ["policy.reward_scale", "-1.0", "above 0"]),
        (POLICY, "policy.told_error=-0.1", ["policy.told_error", "-0.1", "0 to 0.1"]),
        (POLICY, "seed=401", ["seed: got 401, expected at most 400"]),
        (POLICY, "seeds=402", ["seed: got 401, expected at most 400"]),
    ],
)
def test_configs_that_cannot_be(recipe, override, words):
    with pytest.raises(UserError) as error:
        recipe_config(recipe, "smoke", [override])
    assert all(word in str(error.value) for word in words), str(error.value)


def test_recordings_are_read_by_their_own_card(config, tmp_path, monkeypatch):
    folder = tmp_path / "data" / "triangle_real_data"
    folder.mkdir(parents=True)
    one = config.data.files("train")[0]
    for i in range(30):
        shutil.copy(one, folder / f"triangle_real_{i}.h5")
    monkeypatch.setenv("MMGEN_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("MMGEN_CACHE", str(tmp_path / "cache"))
    data = replace(config.data, card="peg_recordings", episodes=0)
    found = {split: data.files(split) for split in ("train", "validation", "test")}
    assert sorted(file for of in found.values() for file in of) == sorted(str(file) for file in folder.iterdir())
    assert len(found["train"]) > 15 and len(replace(data, episodes=3).files("train")) == 3
    out = tmp_path / "run"
    recorded = recipe_config(RECIPE, "smoke", ["data.card=peg_recordings", "fit.steps=1"])
    train(RECIPE, recorded, out)
    assert evaluate(RECIPE, recorded, out, "test")["contact_accuracy"] >= 0
    for file in found["validation"]:
        (folder / Path(file).name).unlink()
    monkeypatch.setenv("MMGEN_CACHE", str(tmp_path / "other"))
    with pytest.raises(UserError, match=r"peg_recordings: validation: got no episode, expected at least one; choose"):
        evaluate(RECIPE, recorded, out, "validation")


@pytest.fixture(scope="module")
def run(config, tmp_path_factory):
    """A run whose policies of the raw pose and of encoders were trained, without pictures but for the codes."""
    out = tmp_path_factory.mktemp("policy") / "run"
    found = recipe_config(POLICY, "smoke", ["arms=[state,scratch]", "fit.steps=1"])
    train(POLICY, found, out)
    return found, out


def test_a_policy_is_saved_and_loaded_to_the_bit_and_without_pickle(run):
    from mmgen.judging.policy import load_training, save_training

    found, out = run
    for arm in found.arms:
        file = out / "stages" / "policy" / arm / "policy.safetensors"
        seen = POLICY_MODULE.environments(POLICY.run(out), found, arm, found.policy.shapes)
        ppo = POLICY_MODULE.make_ppo(found, arm, seen)
        before = {name: value.clone() for name, value in ppo.policy.state_dict().items()}
        load_training(ppo, file)
        assert any(not torch.equal(value, before[name]) for name, value in ppo.policy.state_dict().items())
        again = file.with_name("again.safetensors")
        save_training(ppo, again)
        assert again.read_bytes() == file.read_bytes() and ppo.num_timesteps == found.policy.steps
        seen.close()
    seen = POLICY_MODULE.environments(POLICY.run(out), found, "state", found.policy.shapes)
    ppo, file = POLICY_MODULE.make_ppo(found, "state", seen), out / "stages" / "policy" / "state" / "policy.safetensors"
    seen.made_by = "other"
    with pytest.raises(UserError, match="got a policy of another code, expected this policy's weights"):
        load_training(ppo, file)
    seen.close()
    codes = {POLICY_MODULE.environments(POLICY.run(out), found, arm, ["round"]).made_by for arm in ("full", "touch", "state")}
    assert len(codes) == 3 and "" in codes
    assert not [f for f in out.rglob("*") if f.suffix in (".zip", ".pkl", ".pth", ".pt")]
    with pytest.raises(UserError, match="expected this policy's weights"):
        seen = POLICY_MODULE.environments(POLICY.run(out), found, "state", found.policy.shapes)
        load_training(
            POLICY_MODULE.make_ppo(found, "state", seen), out / "stages" / "policy" / "scratch" / "policy.safetensors"
        )


def test_training_a_policy_goes_on_where_it_was_stopped(run, tmp_path):
    from mmgen.judging.policy import fit_policy

    found, out = run
    steps, weights = [], []
    for total in (16, 32):
        seen = POLICY_MODULE.environments(POLICY.run(out), found, "state", found.policy.shapes)
        fit_policy(POLICY_MODULE.make_ppo(found, "state", seen), total, tmp_path / "state")
        seen.close()
        with (tmp_path / "state" / "curve.csv").open(encoding="utf-8") as stream:
            steps.append([int(row["step"]) for row in csv.DictReader(stream)])
        weights.append(load_file(tmp_path / "state" / "checkpoint.safetensors"))
    assert steps == [[16], [16, 32]]
    with (tmp_path / "state" / "curve.csv").open("a", encoding="utf-8") as stream:
        stream.write("48,2,0.5,0.1\n")  # of a rollout whose update was cut off
    seen = POLICY_MODULE.environments(POLICY.run(out), found, "state", found.policy.shapes)
    fit_policy(POLICY_MODULE.make_ppo(found, "state", seen), 48, tmp_path / "state")
    seen.close()
    with (tmp_path / "state" / "curve.csv").open(encoding="utf-8") as stream:
        assert [int(row["step"]) for row in csv.DictReader(stream)] == [16, 32, 48]
    fresh = POLICY_MODULE.make_ppo(
        found, "state", POLICY_MODULE.environments(POLICY.run(out), found, "state", ["round"])
    ).policy.state_dict()
    for one, two in ((fresh, weights[0]), (weights[0], weights[1])):  # the checkpoint is of after the update it counts
        one = {name.removeprefix("policy."): value for name, value in one.items()}
        assert any(
            not torch.equal(one[name.removeprefix("policy.")], v) for name, v in two.items() if name.startswith("policy.")
        )


def test_arms_are_added_and_those_that_are_there_kept(run, tmp_path):
    found, out = run
    shutil.copytree(out, tmp_path / "run", symlinks=True)
    train(POLICY, replace(found, arms=["touch", *found.arms]), tmp_path / "run", resume=True)
    kept, folder = out / "stages" / "policy", tmp_path / "run" / "stages" / "policy"
    assert (folder / "touch" / "policy.safetensors").is_file() and (folder / "model").is_dir()
    codes = [file.relative_to(out) for file in out.rglob("model/model.safetensors")]
    assert len(codes) == 3 and all((out / file).read_bytes() == (tmp_path / "run" / file).read_bytes() for file in codes)
    for arm in found.arms:
        assert (folder / arm / "policy.safetensors").read_bytes() == (kept / arm / "policy.safetensors").read_bytes()


def test_policies_of_another_run_are_read_and_not_added_to(run, tmp_path):
    found, out = run
    train(POLICY, found, tmp_path / "run", stages_from={stage.name: out for stage in POLICY.stages})
    assert POLICY_MODULE.policies(POLICY.run(tmp_path / "run")) == (out / "stages" / "policy").resolve()
    with pytest.raises(UserError, match=r"policies of another run: got none of touch in .*policy\.from"):
        train(POLICY, replace(found, arms=[*found.arms, "touch"]), tmp_path / "run", resume=True)


def test_a_policy_that_is_not_there(tmp_path):
    from mmgen.judging.policy import load_training

    with pytest.raises(
        UserError, match=r"policy\.safetensors: got no such file, expected a trained policy; train it to the end"
    ):
        load_training(None, tmp_path / "policy.safetensors")
    save_file({"policy.x": torch.zeros(1)}, tmp_path / "policy.safetensors")
    with pytest.raises(UserError, match=r"policy\.safetensors: got no number of steps, expected this policy's weights"):
        load_training(None, tmp_path / "policy.safetensors")


def test_a_curve_that_was_removed_is_left_out(tmp_path):
    from mmgen.judging.policy import curve

    (tmp_path / "curve.csv").write_text("step,success\n8,0.5\n", encoding="utf-8")
    assert curve(tmp_path) == [{"step": "8", "success": "0.5"}] and curve(tmp_path / "touch") == []


def test_a_policy_sees_its_code_standardised(run, tmp_path):
    found, out = run
    shutil.copytree(out, tmp_path / "run", symlinks=True)
    train(POLICY, replace(found, arms=["touch", *found.arms]), tmp_path / "run", resume=True)
    model = load(out / "stages" / "touch").eval()
    mean, std = code_moments(model, Transitions(found.data.files("train"), model.processors))
    data = Transitions(found.data.files("train"), load(out).processors)
    with torch.no_grad():
        codes = model.encode(collate([data[i] for i in range(len(data))]).keep(["force", "proprioception"])).mean
    torch.testing.assert_close(mean, codes.double().mean(0), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(std, codes.double().std(0, correction=0).clamp(min=1e-3), rtol=1e-3, atol=1e-5)
    state = load_file(tmp_path / "run" / "stages" / "policy" / "touch" / "policy.safetensors")
    assert torch.equal(state["policy.features_extractor.mean"], mean.float())
    seen = POLICY_MODULE.environments(POLICY.run(out), found, "touch", ["round"])
    extract = POLICY_MODULE.make_ppo(found, "touch", seen, (mean, std)).policy.features_extractor
    seen.close()
    torch.testing.assert_close(extract(codes).mean(0), torch.zeros(len(mean)), rtol=0, atol=1e-3)


def test_the_place_is_told_with_an_error_of_the_episode_and_of_the_moment(config):
    env = Oracle(PegInsertion("square", vision=False), 0.0)
    told = env.reset(seed=0)[0]["told"]
    inner = env.unwrapped
    np.testing.assert_allclose(told[:2], inner.hole[:2] - inner.pose[:2], atol=1e-7)
    np.testing.assert_allclose(told[2], DEPTH - inner.pose[2], atol=1e-7)
    env.error = 0.003
    errors = []
    for seed in range(60):
        errors.append([])
        for moment in range(8):
            told = (env.reset(seed=seed)[0] if not moment else env.step(np.zeros(4))[0])["told"]
            way = [*inner.hole[:2] - inner.pose[:2], DEPTH - inner.pose[2]]
            errors[-1].append(told - way)
    errors = np.array(errors)  # (episodes, moments, 3)
    np.testing.assert_allclose(errors.std(1, ddof=1).mean(), 0.003, rtol=0.1)
    np.testing.assert_allclose(errors.mean(1).std(0, ddof=1), 0.003 * (1 + 1 / 8) ** 0.5, rtol=0.3)
    again = env.reset(seed=5)[0]["told"]
    assert np.array_equal(again, env.reset(seed=5)[0]["told"]) and not np.array_equal(again, env.reset(seed=6)[0]["told"])


def test_who_is_told_sees_no_picture_and_feels_only_with_touch(run, tmp_path):
    found, out = run
    for arm, width in (("told", 3), ("told_touch", 3 + 6 + 8)):
        seen = POLICY_MODULE.environments(POLICY.run(out), found, arm, ["round"])
        assert seen.reset().shape == (found.policy.environments, width)
        assert "image" not in seen.venv.observation_space.spaces
        seen.close()
    shutil.copytree(out, tmp_path / "run", symlinks=True)
    more = replace(found, arms=[*found.arms, "told", "told_touch"])
    train(POLICY, more, tmp_path / "run", resume=True)
    figures = evaluate(POLICY, more, tmp_path / "run", "test")
    assert {"success_told", "success_told_push", "success_told_touch", "success_told_touch_sampled"} <= figures.keys()
    assert "told_touch" in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")


def test_encoders_from_scratch_learn(run):
    found, out = run
    state = load_file(out / "stages" / "policy" / "scratch" / "policy.safetensors")
    torch.manual_seed(found.seed)
    new = VisionTouch(size=found.data.size, latent_dim=found.model.latent_dim, drop=0.0)
    name = "encoders.proprioception.layers.0.weight"
    learned = next(value for key, value in state.items() if key.endswith(name))
    assert not torch.equal(learned, new.state_dict()[name])


class Expert:
    """Moves above the hole of each environment, then down: it asks them where that is."""

    def __init__(self, environments):
        self.environments = environments

    def predict(self, observation, deterministic):
        actions = []
        for env in self.environments:
            off = env.hole[:2] - env.pose[:2]
            above = np.hypot(*off) > 0.002
            down = 1.0 if above and env.pose[2] < 0.04 else 0.0 if above else -1.0
            actions.append([*(off / 0.01).clip(-1, 1), down, 0.0])
        return np.array(actions, np.float32), None


class Still:
    def predict(self, observation, deterministic):
        return np.zeros((len(observation), 4), np.float32), None


def test_an_episode_counts_as_success_only_when_the_peg_is_in(run):
    from mmgen.judging.policy import successes

    found, out = run
    seen = POLICY_MODULE.environments(POLICY.run(out), found, "state", ["round"])
    assert successes(Still(), seen, 3, 0, "still") == [False] * 3
    asked, still = [], Still()
    watched = SimpleNamespace(predict=lambda seen, deterministic: asked.append(deterministic) or still.predict(seen, True))
    for noise in (False, True):
        successes(watched, seen, 2, 0, "still", noise)
    assert asked == sorted(asked, reverse=True) and set(asked) == {False, True}  # without its noise, then with it
    assert sum(successes(Expert(seen.venv.envs), seen, 4, 0, "expert")) >= 3
    seen.close()


def test_a_film_ends_with_what_came_of_it(run):
    from mmgen.judging.policy import film

    found, out = run
    seen = POLICY_MODULE.environments(POLICY.run(out), found, "scratch", ["round"])
    content = film(Expert(seen.venv.envs[:1]), seen, POLICY_MODULE.TRIED)
    env = seen.venv.envs[0]
    assert env.depth_inserted >= 0.024  # four fifths of the hole
    with Image.open(io.BytesIO(content)) as frames:
        frames.seek(frames.n_frames - 1)
        last = np.asarray(frames.convert("RGB").resize((found.data.size,) * 2, Image.Resampling.NEAREST)).astype(int)
    assert np.abs(last - env.render()).mean() < 8  # a GIF has 256 colours
    seen.close()


def test_the_last_observation_of_an_episode_is_coded_too(run):
    found, out = run
    seen = POLICY_MODULE.environments(POLICY.run(out), found, "state", ["round"])
    seen.seed(0)
    seen.reset()
    for _ in range(50):
        observations, _, ended, infos = seen.step(np.zeros((seen.num_envs, 4), np.float32))
    assert ended.all()
    for info, begun in zip(infos, observations):
        assert info["terminal_observation"].shape == begun.shape == (8,) and info["TimeLimit.truncated"]
        assert not np.allclose(info["terminal_observation"], begun)  # which is of the next episode
    seen.close()


def test_senses_are_masked_as_if_they_were_missing(run):
    found, out = run
    model = load(out).eval()
    code = view(model, "full", without=("force", "proprioception"))
    vision = view(model, "vision")
    seen = POLICY_MODULE.environments(POLICY.run(out), found, "scratch", ["round"])
    shown = seen.venv.reset()
    np.testing.assert_allclose(code(shown), vision(shown), rtol=1e-5, atol=1e-6)
    assert not np.allclose(code(shown), view(model, "full")(shown))
    seen.close()


def test_evaluation_leaves_the_weights_as_they_are(config, data):
    model = VisionTouch(size=config.data.size, latent_dim=4).eval()
    model.processors |= data.processors
    before = {name: value.clone() for name, value in model.state_dict().items()}
    MODULE.scores(model, data, "test")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
