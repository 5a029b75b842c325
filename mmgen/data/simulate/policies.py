"""Policies that collect data of peg insertion: a random walk that presses and slides, and a heuristic search."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from mmgen.data.simulate.peg_insertion import PegInsertion
from mmgen.data.simulate.scene import DEPTH

Policy = Callable[[Mapping[str, np.ndarray]], np.ndarray]
MISS = 0.008  # m, standard deviation of the heuristic's error in the hole's x and y
TURN_MISS = 0.08  # rad, standard deviation of its error in the hole's yaw
HOVER = DEPTH + 0.012  # m, height at which the heuristic moves sideways
PRESS = (2.0, 20.0)  # N, range of the pressing force, drawn uniformly
PITCH = 0.0025  # m, distance between the turns of the search spiral


def random_policy(rng: np.random.Generator) -> Policy:
    """A smooth random walk near the block that often presses on it and slides.

    The action is ``a <- 0.7 a + 0.5 n``, n standard normal, plus a pull to the middle of the table and a vertical pull that
    alternates every few steps between up and down; going down, it stops at a pressing force drawn anew each time.

    Args:
        rng: generator of the moves.

    Returns:
        A policy for one episode, a function of the observation that returns an action (4,).

    >>> policy = random_policy(np.random.default_rng(0))
    >>> policy({"proprioception": np.zeros(8), "force": np.zeros((32, 6))}).shape
    (4,)
    """
    walk, down, force = np.zeros(4), True, rng.uniform(*PRESS)

    def act(observation: Mapping[str, np.ndarray]) -> np.ndarray:
        nonlocal walk, down, force
        x, y, z, yaw = observation["proprioception"][:4]
        if rng.random() < 0.12:
            down, force = not down, rng.uniform(*PRESS)
        walk = 0.7 * walk + 0.5 * rng.standard_normal(4)
        pressed = down and observation["force"][-1, 2] > force
        pull = [-x / 0.05, -y / 0.05, 0.2 if pressed else -0.5 if down or z > DEPTH + 0.03 else 0.5, -yaw]
        return np.clip(walk * [1, 1, 0.2 if down else 0.4, 0.8] + pull, -1, 1).astype(np.float32)

    return act


def heuristic_policy(env: PegInsertion, rng: np.random.Generator) -> Policy:
    """Heuristic search: move above the estimated hole, turn, press down and spiral; once inserted, pull out and try again.

    The estimate is the environment's true hole with a random error (`MISS`, `TURN_MISS`) drawn anew for every try.

    Args:
        env: the environment to act in.
        rng: generator of the errors.

    Returns:
        A policy for one episode, a function of the observation that returns an action (4,).
    """
    env = env.unwrapped
    state: dict[str, Any] = {}

    def begin() -> None:
        state.update(phase="reach", steps=0, miss=rng.normal(0, [MISS, MISS, TURN_MISS]), force=rng.uniform(*PRESS))

    def act(observation: Mapping[str, np.ndarray]) -> np.ndarray:
        x, y, z, _ = observation["proprioception"][:4]
        hole = env.hole[:2] + state["miss"][:2]
        across, turn = hole - (x, y), env.yaw_error + (state["miss"][2] if env.shape != "round" else 0)
        state["steps"] += 1
        if state["phase"] == "reach":
            height = HOVER if np.hypot(*across) > 0.006 or abs(turn) > 0.1 else DEPTH
            if z < DEPTH + 0.002:
                state["phase"], state["steps"] = "press", 0
            wished = [*across, height - 0.002 - z, turn]
        elif state["phase"] == "press":  # the spiral r = PITCH * angle / 2 pi, at about 4 mm a step
            angle = np.sqrt(2 * state["steps"] * 0.004 * 2 * np.pi / PITCH)
            r = PITCH * angle / (2 * np.pi)
            down = 0.001 if observation["force"][-1, 2] > state["force"] else -0.006
            inside = z < DEPTH - 0.004
            wished = [*([0, 0] if inside else across + r * np.array([np.cos(angle), np.sin(angle)])), down, turn]
            if z < 0.1 * DEPTH or state["steps"] > 14:
                state["phase"], state["steps"] = "leave", 0
        else:
            wished = [0, 0, HOVER + 0.02 - z, 0]
            if z > HOVER + 0.012:
                begin()
        noise = rng.normal(0, 0.05, 4)
        return np.clip(np.array(wished) / [0.01, 0.01, 0.01, 0.1] + noise, -1, 1).astype(np.float32)

    begin()
    return act
