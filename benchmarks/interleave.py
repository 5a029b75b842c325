"""Interleaved timing: the contenders alternate for several rounds, and their medians are compared."""

import csv
import json
import os
import platform
import statistics
import tempfile
import time
from argparse import ArgumentParser
from collections.abc import Callable, Mapping
from datetime import date
from importlib.metadata import version
from pathlib import Path

from torch.profiler import ProfilerActivity, profile

PACKAGES = ("torch", "transformers", "accelerate")


def race(
    contenders: Mapping[str, Callable[[], None]],
    rounds: int = 7,
    warm: bool = True,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Measure the seconds of each contender in each round, after a warm-up round unless ``warm`` is False.

    Use `time.process_time` as ``clock`` where a round takes minutes, to reduce the effect of other load on the machine.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(0 if warm else 1, rounds + 1):
        for name, run in contenders.items():
            began = clock()
            run()
            if number:
                seconds[name].append(clock() - began)
    return seconds


def ratio(seconds: dict[str, list[float]], ours: str, theirs: str) -> float:
    """Median time of ``ours`` divided by that of ``theirs``; below 1, ours is faster."""
    return statistics.median(seconds[ours]) / statistics.median(seconds[theirs])


def peak_bytes(run: Callable[[], object]) -> int:
    """Peak of memory allocated during ``run``, beyond that allocated before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text(encoding="utf-8"))["traceEvents"]
    return max(event["args"]["Total Allocated"] for event in events if event["name"] == "[memory]")


def report(benchmark: str, figures: dict[str, float], seconds: dict[str, list[float]]) -> None:
    """Print the results and each contender's median and range; ``--json F`` writes the results, ``--csv F`` appends rows."""
    parser = ArgumentParser()
    parser.add_argument("--json", type=Path)
    parser.add_argument("--csv", type=Path)
    options = parser.parse_args()
    for name, times in seconds.items():
        print(f"{name:24} median {statistics.median(times):.4f} s, from {min(times):.4f} to {max(times):.4f}")
    for name, value in figures.items():
        print(f"{name:24} {value:.4f}")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    if options.csv:
        new = not options.csv.is_file()
        with options.csv.open("a", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            if new:
                writer.writerow(
                    ["benchmark", "figure", "value", "date", "machine", "cores", "torch", "transformers", "accelerate"]
                )
            versions = [version(name) for name in ("torch", "transformers", "accelerate")]
            for name, value in figures.items():
                row = [benchmark, name, f"{value:.4f}", date.today(), _machine(), os.cpu_count(), *versions]
                writer.writerow(row)


def _machine() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    names = [
        line.split(":")[1].strip()
        for line in cpuinfo.read_text(encoding="utf-8").splitlines()
        if line.startswith("model name")
    ]
    return names[0] if names else platform.processor() or platform.machine()
