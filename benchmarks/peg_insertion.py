"""Speed of the peg insertion simulator: observations a second in one thread, and of episodes written by two processes.

python -m benchmarks.peg_insertion --json F

An observation is a picture and depth with sides of 128 pixels, the true flow, 32 readings of force and contact, and the
joints; the shapes alternate. ``steps_per_s`` is the speed of the environment alone, on one thread with the random policy.
``observations_per_s`` is the speed of ``simulate``, which also writes them, without the start of its two processes (``start of
two``), ``observations_per_s_with_start`` with it, for the few episodes here. All depend on other load on the machine.
"""

import os
import statistics
import tempfile
from pathlib import Path

os.environ.setdefault("LP_NUM_THREADS", "1")  # the renderer's threads, where it draws on the processor
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from mmgen.data.simulate.episodes import simulate
from mmgen.data.simulate.peg_insertion import PegInsertion
from mmgen.data.simulate.policies import random_policy
from mmgen.data.simulate.scene import SHAPES

SIZE, STEPS, EPISODES, WORKERS, ROUNDS = 128, 100, 36, 2, 3


def walk(env: PegInsertion) -> None:
    """Run one long episode."""
    policy = random_policy(np.random.default_rng(0))
    observation, _ = env.reset(seed=0)
    for _ in range(STEPS):
        observation, *_ = env.step(policy(observation))


if __name__ == "__main__":
    from benchmarks.interleave import race, report  # here, since it imports torch, which the processes do not need

    environments = [PegInsertion(shape, SIZE, steps=STEPS) for shape in SHAPES]
    with tempfile.TemporaryDirectory() as folder:
        names = iter(range(100))

        def episodes(number: int, size: int, steps: int) -> None:
            simulate(Path(folder) / str(next(names)), number, WORKERS, size=size, steps=steps)

        seconds = race(
            {
                "steps": lambda: [walk(env) for env in environments],
                "start of two": lambda: episodes(2, 8, 2),
                "episodes of two": lambda: episodes(EPISODES, SIZE, 50),
            },
            rounds=ROUNDS,
        )
    steps, start, whole = (statistics.median(times) for times in seconds.values())
    figures = {
        "steps_per_s": len(environments) * STEPS / steps,
        "observations_per_s": EPISODES * 50 / (whole - start),
        "observations_per_s_with_start": EPISODES * 50 / whole,
    }
    report("peg_insertion", figures, seconds)
