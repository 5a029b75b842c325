"""A run folder has one writer at a time: who holds it is told, and nobody holds it after death."""

import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace

import pytest
from commands import ENVIRONMENT, here
from filelock import FileLock

from mmgen.errors import UserError
from mmgen.training import lock
from mmgen.training.lock import check_free, locked
from mmgen.training.recipe import Stage, load_recipe, recipe_config
from mmgen.training.result import Result
from mmgen.training.study import cached_run, evaluate, train

HOLD = """
import sys, time
from pathlib import Path
from mmgen.training.lock import locked
with locked([Path(sys.argv[1])], ["train", "judge", "--out", sys.argv[1]]):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the folder ``tmp_path / "a run"``."""
    command = [sys.executable, "-c", HOLD, str(tmp_path / "a run")]
    process = subprocess.Popen(command, env={**os.environ, **ENVIRONMENT}, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def told(holder, folder):
    return f"{folder}: got a folder in use by process {holder.pid} on ", f"wait until `mmgen train judge --out '{folder}'` has"


@pytest.mark.parametrize("resume", [(), ("--resume",), ("--processes", 2)], ids=str)
def test_a_second_command_is_told_who_holds_the_folder(tmp_path, holder, resume):
    out = tmp_path / "a run"
    (out / "model").mkdir()  # it has trained something: to add --resume is no advice yet
    before = sorted(out.iterdir())
    done = here("train", "judge", "--config", "smoke", "--out", out, *resume)
    (line,) = done.stderr.splitlines()
    assert done.returncode == 2 and all(part in line for part in told(holder, out))
    assert sorted(out.iterdir()) == before


def test_a_run_is_not_evaluated_while_another_command_writes_it(tmp_path, holder):
    recipe, out = load_recipe("judge"), tmp_path / "a run"
    (out / "model").mkdir()
    with pytest.raises(UserError) as error:
        evaluate(recipe, recipe_config(recipe, "smoke", []), out, "test")
    assert all(part in str(error.value) for part in told(holder, out))


def test_a_dead_holder_holds_nothing(tmp_path, holder):
    out = tmp_path / "a run"
    with pytest.raises(UserError, match="in use by process"):
        check_free(out)
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert (out / ".lock.json").is_file()  # it had no time to remove it
    with locked([out]):
        assert json.loads((out / ".lock.json").read_text(encoding="utf-8"))["pid"] == os.getpid()
    assert sorted(file.name for file in out.iterdir()) == [".lock"]


def test_whoever_waits_gets_the_folder_later(tmp_path, holder):
    began = time.monotonic()
    subprocess.Popen(["sh", "-c", f"sleep 0.5; kill -9 {holder.pid}"])
    with locked([tmp_path / "a run"], wait=True):
        assert time.monotonic() - began > 0.3


def test_a_holder_that_said_nothing_yet(tmp_path):
    with FileLock(tmp_path / ".lock"):
        for text in (None, "", '{"pid": 1'):
            if text is not None:
                (tmp_path / ".lock.json").write_text(text, encoding="utf-8")
            with pytest.raises(UserError, match=r"in use by another process, expected .*; wait until it has ended"):
                check_free(tmp_path)


def recipe_with(stage, figures=None):
    judge = load_recipe("judge")
    return replace(judge, stages=[Stage("judge", stage)], evaluate=figures)


def trained(run, config):
    (run.folder / "model").mkdir()


def test_a_study_and_each_of_its_seeds_are_held(tmp_path):
    def stage(run, config):
        trained(run, config)
        for folder in (tmp_path / "study", *(tmp_path / "study" / f"seed_{i}" for i in range(2))):
            with pytest.raises(UserError, match="in use by process"):
                check_free(folder)

    recipe = recipe_with(stage, lambda run, config, split: Result("judge", about={"accuracy": 1.0}))
    config = recipe_config(recipe, "smoke", ["seeds=2"])
    train(recipe, config, tmp_path / "study")
    assert (tmp_path / "study" / "seed_1" / "model").is_dir()
    assert evaluate(recipe, config, tmp_path / "study", "test")["accuracy"] == 1.0
    assert not list(tmp_path.rglob(".lock.json"))


def test_only_the_first_process_locks(tmp_path, monkeypatch):
    with locked([tmp_path]):
        monkeypatch.setenv("RANK", "1")
        with locked([tmp_path]):
            pass
        assert (tmp_path / ".lock.json").is_file()


def test_the_folder_is_free_again_after_a_failure(tmp_path):
    def fails(run, config):
        raise UserError("data", got="a mistake", expected="none", fix="mend it")

    config = recipe_config(load_recipe("judge"), "smoke", [])
    with pytest.raises(UserError, match="a mistake"):
        train(recipe_with(fails), config, tmp_path / "run")
    train(recipe_with(trained), config, tmp_path / "run")


def test_a_command_that_ended_between_the_check_and_the_lock(tmp_path, monkeypatch):
    recipe, out = recipe_with(trained), tmp_path / "run"
    config, one = recipe_config(recipe, "smoke", []), locked

    def after_another(*arguments):
        monkeypatch.undo()
        train(recipe, config, out)
        return one(*arguments)

    monkeypatch.setattr("mmgen.training.study.locked", after_another)
    with pytest.raises(UserError, match="got a folder that exists"):
        train(recipe, replace(config, seed=3), out)
    assert "seed: 0" in (out / "config.yaml").read_text(encoding="utf-8")


def test_a_folder_that_is_no_run_is_left_as_it_is(tmp_path):
    (tmp_path / "photo.png").touch()
    with pytest.raises(UserError, match="got a folder that exists"):
        train(recipe_with(trained), recipe_config(load_recipe("judge"), "smoke", []), tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["photo.png"]


def test_a_run_in_the_cache_is_waited_for(tmp_path, monkeypatch):
    monkeypatch.setenv("MMGEN_CACHE", str(tmp_path))
    begun, runs = [], []

    def stage(run, config):
        begun.append(run.folder)
        time.sleep(0.5)  # a second one that did not wait would begin meanwhile
        trained(run, config)

    recipe = recipe_with(stage)
    config = recipe_config(recipe, "smoke", [])
    threads = [threading.Thread(target=lambda: runs.append(cached_run(recipe, config, "judges"))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(runs) == 2 and runs[0] == runs[1] and begun == runs[:1]
    assert (runs[0] / "model").is_dir() and runs[0].parent == tmp_path / "judges"


def test_a_cache_that_cannot_hold_a_run(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("MMGEN_CACHE", str(tmp_path / "file"))
    recipe = recipe_with(trained)
    with pytest.raises(UserError, match="set MMGEN_CACHE to a folder"):
        cached_run(recipe, recipe_config(recipe, "smoke", []), "judges")


def never(run, config, split):
    pytest.fail("it was evaluated")


@pytest.mark.parametrize(
    "name",
    ["metrics.json", "report.html", "predictions", "predictions/test.json", "samples/a.png", "results/test.json", "."],
)
def test_a_run_that_cannot_be_written_is_not_evaluated(tmp_path, monkeypatch, name):
    (tmp_path / "model").mkdir()
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    file.mkdir(exist_ok=True) if name in (".", "predictions") else file.touch()
    monkeypatch.setattr(os, "access", lambda path, mode: path != file)  # permissions do not bind who runs tests as root
    with pytest.raises(UserError, match=rf"{file}: got no permission to write, expected .* copy the run"):
        evaluate(recipe_with(trained, never), recipe_config(load_recipe("judge"), "smoke", []), tmp_path, "test")


def test_figures_outlive_samples_that_cannot_be_saved(tmp_path, monkeypatch):
    def judged(run, config, split):
        return Result("judge", about={"n": 3})

    def full(self, run, split):
        raise OSError(28, "No space left on device")

    (tmp_path / "model").mkdir()
    monkeypatch.setattr(Result, "save", full)
    with pytest.raises(OSError, match="No space left"):
        evaluate(recipe_with(trained, judged), recipe_config(load_recipe("judge"), "smoke", []), tmp_path, "test")
    assert json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8"))["test"]["n"] == 3


@pytest.mark.parametrize("error", [PermissionError(13, "Permission denied"), OSError(30, "Read-only file system")])
def test_a_run_that_cannot_be_locked_is_not_evaluated(tmp_path, monkeypatch, error):
    def refuse(self, timeout):
        raise error

    (tmp_path / "model").mkdir()
    monkeypatch.setattr(lock.FileLock, "acquire", refuse)
    with pytest.raises(UserError, match=rf"{tmp_path}: got .*{error.strerror}, expected a folder that can be written; copy"):
        evaluate(recipe_with(trained, never), recipe_config(load_recipe("judge"), "smoke", []), tmp_path, "test")


def test_the_next_command_can_be_pasted(tmp_path):
    out = tmp_path / "it's a run"
    done = here("train", "judge", "--config", "smoke", "--out", out)
    assert done.returncode == 0, done.stderr[-3000:]
    command = done.stdout.splitlines()[-1].partition("next: ")[2]
    assert shlex.split(command) == ["mmgen", "evaluate", str(out)]
