"""Behaviour for collecting data of peg insertion: a random walk that presses and slides, and a heuristic that searches."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from mmgen.data.simulate.scene import DEPTH

if TYPE_CHECKING:
    from mmgen.data.simulate.peg_insertion import PegInsertion

Policy = Callable[[Mapping[str, np.ndarray]], np.ndarray]
MISS = 0.008  # m, standard deviation of the heuristic's error of the hole's place, either way
TURN_MISS = 0.08  # rad, of its yaw
HOVER = DEPTH + 0.012  # m, the height at which it moves across
PRESS = (2.0, 20.0)  # N, how hard they press, drawn evenly
PITCH = 0.0025  # m, between the turns of its spiral


def random_policy(rng: np.random.Generator) -> Policy:
    """A smooth random walk near the block that often presses on it and slides.

    The wished move is ``a <- 0.7 a + 0.5 n``, n normal, pulled to the middle of the table and, by turns of a few steps, down
    until it presses with a force that is drawn for each turn, or up.

    Args:
        rng: draws the moves.

    Returns:
        A policy for one episode: called with the observation it gives an action (4,).

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
    """Move above where the hole is thought to be, turn, press down, and search in a spiral; once in, pull out and try again.

    It knows the hole by the environment, with an error of `MISS` and `TURN_MISS` that is drawn anew for every try.

    Args:
        env: the environment that it acts in.
        rng: draws the errors.

    Returns:
        A policy for one episode: called with the observation it gives an action (4,).
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
