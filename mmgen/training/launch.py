"""Launching of several processes of one command on this machine, and reports of their errors."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Literal

from mmgen.errors import UserError, UserErrors
from mmgen.processes import rank

ERRORS = "MMGEN_ERRORS"  # environment variable with the folder where processes write their errors for `launch`


def launch(processes: int, arguments: Sequence[str]) -> int:
    """Run ``mmgen ARGUMENTS`` in several processes on this machine, wait for them, and return their exit code.

    SIGTERM and Ctrl-C are forwarded, so that the processes save before they exit; when one fails, the others are stopped. On
    CPUs the cores are divided between them, unless ``OMP_NUM_THREADS`` is set. A process that fails without a `report` is
    named on stderr with its exception or exit code.

    Args:
        processes: number of processes, 2 or more.
        arguments: arguments of the command.

    Raises:
        UserErrors: the errors that processes passed to `report`, without duplicates.
        UserError: a process was killed, or there are fewer GPUs than processes, but at least one.
    """
    import torch

    if 0 < (gpus := torch.cuda.device_count()) < processes:
        fix = f"set --processes {gpus}, or CUDA_VISIBLE_DEVICES= to compute on the CPU"
        raise UserError("--processes", got=processes, expected=f"at most {gpus}, a GPU for each", fix=fix)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "MMGEN_PROCESSES": str(processes), "WORLD_SIZE": str(processes),
                   "LOCAL_WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}  # fmt: skip
    if not gpus:
        threads = max(1, (os.cpu_count() or 1) // processes)
        environment = {"OMP_NUM_THREADS": str(threads), **environment, "ACCELERATE_USE_CPU": "true"}
    command = [sys.executable, "-m", "mmgen.cli", *arguments]
    with tempfile.TemporaryDirectory() as errors:
        environment[ERRORS] = errors
        ended = _run(command, [{**environment, "RANK": str(n), "LOCAL_RANK": str(n)} for n in range(processes)])
        files = sorted(Path(errors).iterdir(), key=lambda file: file.stat().st_mtime_ns)
        reports = {file.name: file.read_text(encoding="utf-8").splitlines() for file in files}
    if lines := dict.fromkeys(line for name, own in reports.items() if name.endswith(".error") for line in own):
        raise UserErrors(UserError.from_line(line) for line in lines)
    failed = [number for number, code in ended.items() if code]
    if not failed:
        return 0
    number = min(failed, key=lambda number: f"{number}.lost" in reports)  # the first one with an error of its own
    code = ended[number]
    if code < 0 and -code not in (signal.SIGTERM, signal.SIGINT):
        fix = "see above; SIGKILL usually means a lack of memory: lower fit.batch_size, and continue with --resume"
        got = f"killed by {signal.Signals(-code).name}"
        raise UserError("a process", got=got, expected="all to end by themselves", fix=fix)
    if number or code not in (128 + signal.SIGTERM, 128 + signal.SIGINT):  # the first process reports an interruption itself
        bug, lost = (reports.get(f"{number}.{kind}") for kind in ("bug", "lost"))
        ending = f"exit code {code}" if code > 0 else f"killed by {signal.Signals(-code).name}"
        line = f"process {number}: {bug[0]}; see its traceback above" if bug else f"process {number}: {ending}"
        sys.stderr.write(f"mmgen: {lost[0] if lost else line}\n")
    return 128 - code if code < 0 else code


def launched() -> bool:
    """Test whether `launch` started this process, and therefore prints its error messages."""
    return ERRORS in os.environ


def report(lines: Sequence[str], kind: Literal["error", "bug", "lost"] = "error") -> None:
    """Pass messages to the `launch` that started this process.

    Args:
        lines: the messages.
        kind: "error" for user errors, "bug" for an exception whose traceback is printed by this process, "lost" for a lost
            connection to another process, printed only if there is nothing else.
    """
    file = Path(os.environ[ERRORS]) / f"{rank()}.{kind}"
    file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def _run(command: Sequence[str], environments: Sequence[dict[str, str]]) -> dict[int, int]:
    """Run a process in each environment; return rank -> exit code of those that ended on their own, in order of time."""
    running = [subprocess.Popen(command, env=environment) for environment in environments]

    def pass_on(number: int, frame: FrameType | None) -> None:
        for process in running:
            process.send_signal(signal.SIGTERM)

    before = {number: signal.signal(number, pass_on) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        ended: dict[int, int] = {}  # process -> exit code
        while not any(ended.values()) and len(ended) < len(running):
            time.sleep(0.1)
            ended |= {n: code for n, p in enumerate(running) if n not in ended and (code := p.poll()) is not None}
        if any(ended.values()):
            time.sleep(2)  # the others may be leaving for the same reason
            ended |= {n: code for n, p in enumerate(running) if n not in ended and (code := p.poll()) is not None}
            for process in running:
                process.terminate()
        for process in running:
            process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return ended
