"""The ``mmgen`` command as users run it, in a process of its own, or in this one, which has imported all that it needs."""

import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import torch
from safetensors.torch import load_file

from mmgen.cli import main
from mmgen.training.recipe import load_recipe

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parent.parent)}


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "mmgen.cli", *map(str, arguments)]


def alone(*arguments: object, stdin: str = "") -> subprocess.CompletedProcess:
    """The command in a process of its own, which reads ``stdin``."""
    environment = {**os.environ, **ENVIRONMENT, "MMGEN_CACHE": os.environ["MMGEN_CACHE"]}
    return subprocess.run(command(*arguments), env=environment, input=stdin, capture_output=True, text=True, timeout=300)


def here(*arguments: object) -> subprocess.CompletedProcess:
    """The command in this process: ten seconds less."""
    out, error = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(error):
        code = main([*map(str, arguments)])
    return subprocess.CompletedProcess(arguments, code, out.getvalue(), error.getvalue())


def killed(arguments: list[str], now: Callable[[], bool]) -> int:
    """The exit code of a command that is killed as soon as ``now()`` holds, if it has not ended before."""
    environment = {**os.environ, **ENVIRONMENT}
    process = subprocess.Popen(arguments, env=environment, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    while process.poll() is None and not now():
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    return process.wait()


def stages(name: str, run: Path) -> list[Path]:
    recipe = load_recipe(name)
    return [recipe.run(run).stage_folder(stage.name) for stage in recipe.stages]


def same_weights(name: str, one: Path, two: Path) -> bool:
    for a, b in zip(stages(name, one), stages(name, two)):
        if (name, a.name) == ("peg_policy", "policy"):  # its environments begin anew when it is resumed
            continue
        first, second = (load_file(folder / "model" / "model.safetensors") for folder in (a, b))
        if first.keys() != second.keys() or not all(torch.equal(first[k], second[k]) for k in first):
            return False
    return True
