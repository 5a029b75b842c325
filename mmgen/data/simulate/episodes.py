"""Simulation of peg insertion episodes into a folder: resumable, and the same files with any number of processes."""

import json
import multiprocessing
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from tqdm import tqdm

from mmgen.data.episode_file import check_episode, write_episode
from mmgen.data.simulate.camera import check_installed
from mmgen.data.simulate.peg_insertion import DISTURBANCES, READINGS, PegInsertion
from mmgen.data.simulate.policies import heuristic_policy, random_policy
from mmgen.data.simulate.scene import SHAPES, TIMESTEP
from mmgen.errors import UserError, check_at_least, check_one_of

REVISION = 1  # increased whenever the same settings give other episodes
SETTINGS_FILE = "simulation.json"
POLICIES = ("random", "heuristic")  # alternate

_environments: dict[tuple[Any, ...], PegInsertion] = {}  # environments of this process, by their settings


def simulate(
    out: str | Path,
    episodes: int,
    workers: int = 1,
    seed: int = 0,
    shapes: Sequence[str] = tuple(SHAPES),
    size: int = 128,
    disturbance: str | None = None,
    steps: int = 50,
) -> dict[str, float]:
    """Write episodes ``out/episode_000000.h5``, ...; existing files are checked and kept.

    Episode i is a function of the settings, the seed and i: shapes and policies (`POLICIES`) alternate, everything else is
    random. An episode continues after a success: the heuristic pulls the peg out and tries again. The first moment is the
    state after reset, with a zero action, no force and no contact.

    Args:
        out: the folder, created if missing; the settings are saved in it as `SETTINGS_FILE`.
        episodes: total number of episodes, >= 1; a later call may ask for more.
        workers: number of processes, >= 1; 1 simulates in this process.
        seed: seed of all episodes, >= 0.
        shapes: shapes of the pegs, from `SHAPES`.
        size: side of the pictures, pixels.
        disturbance: as in `PegInsertion`.
        steps: number of moments of an episode, >= 2.

    Returns:
        ``episodes``; ``observations``; ``in_contact``, the share of moments, excluding the first of each episode, at which the
        peg touches something; ``successes``, the number of episodes in which it was inserted; ``made``, the observations
        simulated by this call, and ``observations_per_s``, their rate (0 if all existed).

    Raises:
        UserError: an argument is out of its range, the folder holds episodes of other settings, a file there is damaged, a
            package or renderer is missing, or a process died.
    """
    settings = _settings(seed, shapes, size, disturbance, steps)
    check_at_least("episodes", episodes, 1)
    check_at_least("workers", workers, 1)
    check_installed("gymnasium", "mujoco", "h5py")
    out = Path(out)
    try:
        out.mkdir(parents=True, exist_ok=True)
        with FileLock(out / ".lock"):
            return _fill(out, episodes, workers, settings)
    except OSError as error:
        fix = "choose a folder with space that you may write to"
        raise UserError(str(out), got=str(error), expected="a folder that can be written", fix=fix) from error


def episode_path(out: Path, number: int) -> Path:
    """The file of an episode.

    >>> episode_path(Path("peg"), 3).name
    'episode_000003.h5'
    """
    return out / f"episode_{number:06d}.h5"


def roll_out(env: PegInsertion, policy: str, rng: np.random.Generator, steps: int) -> dict[str, np.ndarray]:
    """Simulate one episode in the layout of `episode_file`.

    Args:
        env: the environment.
        policy: one of `POLICIES`.
        rng: generator of the episode and of the policy's moves.
        steps: number of moments.

    Returns:
        Field -> array (steps, ...).
    """
    observation, info = env.reset(seed=int(rng.integers(2**31)))
    act = heuristic_policy(env, rng) if policy == "heuristic" else random_policy(rng)
    actions, observations, inserted = [np.zeros(4, np.float32)], [observation], [info["success"]]
    for _ in range(steps - 1):
        actions.append(act(observations[-1]))
        observation, *_, info = env.step(actions[-1])
        observations.append(observation)
        inserted.append(info["success"])
    seen = {name: np.stack([o[name] for o in observations]) for name in observations[0]}
    pose, velocity = seen["proprioception"][:, :4], seen["proprioception"][:, 4:]
    return {
        "action": np.stack(actions),
        "contact": seen["contact"],
        "depth_data": seen["depth"][..., None],
        "ee_forces_continuous": seen["force"],
        "ee_pos": pose[:, :3],
        "ee_vel": velocity[:, :3],
        "ee_yaw": pose,
        "ee_yaw_delta": np.diff(pose, axis=0, prepend=pose[:1]),
        "image": seen["image"],
        "optical_flow": np.concatenate([seen["flow"][1:], np.zeros_like(seen["flow"][:1])]),
        "proprio": seen["proprioception"],
        "success": np.array(inserted),
    }


def _settings(seed: int, shapes: Sequence[str], size: int, disturbance: str | None, steps: int) -> dict[str, Any]:
    check_at_least("seed", seed, 0)
    if not shapes:
        raise UserError("shapes", got="none", expected=f"some of {', '.join(SHAPES)}", fix="name one")
    for shape in shapes:
        check_one_of("shape", shape, SHAPES)
    check_at_least("size", size, 8)
    if disturbance is not None:
        check_one_of("disturbance", disturbance, DISTURBANCES)
    check_at_least("steps", steps, 2)
    values = {"seed": seed, "shapes": list(shapes), "size": size, "disturbance": disturbance, "steps": steps}
    return {"simulator": "peg_insertion", "revision": REVISION, **values}


def _fill(out: Path, episodes: int, workers: int, settings: dict[str, Any]) -> dict[str, float]:
    _check_settings(out, settings)
    for partial in out.glob(".partial-*"):  # left by a killed process
        partial.unlink()
    there = [number for number in range(episodes) if episode_path(out, number).exists()]
    facts = {number: check_episode(episode_path(out, number)) for number in there}
    for number, fact in facts.items():
        if (fact["moments"], fact["size"]) != (settings["steps"], settings["size"]):
            got = f"{fact['moments']} moments of {fact['size']} pixels"
            raise UserError(
                str(episode_path(out, number)), got=got, expected=f"{settings['steps']} of {settings['size']}", fix="delete it"
            )
    missing = [number for number in range(episodes) if number not in facts]
    began = time.perf_counter()
    with tqdm(total=episodes, initial=len(there), desc="peg_insertion", unit="episode", delay=1) as bar:
        for number, fact in _made(out, missing, workers, settings):
            facts[number] = fact
            bar.update()
    made = len(missing) * settings["steps"]
    return {
        "episodes": episodes,
        "observations": episodes * settings["steps"],
        "in_contact": float(np.mean([fact["in_contact"] for fact in facts.values()])),
        "successes": int(sum(fact["success"] for fact in facts.values())),
        "made": made,
        "observations_per_s": made / (time.perf_counter() - began),
    }


def _check_settings(out: Path, settings: dict[str, Any]) -> None:
    file = out / SETTINGS_FILE
    if not file.exists():
        others = [path.name for path in out.glob("*.h5")]
        if others:
            fix = "choose an empty folder"
            raise UserError(str(out), got=f"{others[0]} but no {SETTINGS_FILE}", expected="a folder of its own", fix=fix)
        partial = file.with_name(".partial-settings")
        partial.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
        partial.replace(file)
        return
    try:
        had = json.loads(file.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise UserError(str(file), got=str(error), expected="a JSON object", fix="choose another folder") from error
    for name, value in settings.items():
        if not isinstance(had, dict) or had.get(name) != value:
            got, fix = f"{name} {value}", "choose another folder, or the settings of this one"
            was = had.get(name) if isinstance(had, dict) else had
            raise UserError(str(file), got=got, expected=f"{name} {was}, as in the existing episodes", fix=fix)


def _made(out: Path, numbers: list[int], workers: int, settings: dict[str, Any]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the number and attributes of each episode once it is written."""
    if workers == 1 or len(numbers) < 2:
        for number in numbers:
            yield number, _make(out, number, settings)
        return
    context = multiprocessing.get_context("spawn")  # a fork would share the renderer
    pool = ProcessPoolExecutor(min(workers, len(numbers)), context)
    try:
        tasks = [pool.submit(_try, out, number, settings) for number in numbers]
        for task in as_completed(tasks):
            number, fact = task.result()
            if isinstance(fact, str):
                raise UserError.from_line(fact)
            yield number, fact
    except BrokenExecutor as error:
        fix = "run the same command again, with fewer workers; a script needs `if __name__ == '__main__':`"
        raise UserError("workers", got="a process that died", expected=f"{workers} running ones", fix=fix) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _try(out: Path, number: int, settings: dict[str, Any]) -> tuple[int, dict[str, Any] | str]:
    """Call `_make` in a worker process and return a `UserError` as its message."""
    try:
        return number, _make(out, number, settings)
    except UserError as error:
        return number, str(error)


def _make(out: Path, number: int, settings: dict[str, Any]) -> dict[str, Any]:
    shapes, steps, size = settings["shapes"], settings["steps"], settings["size"]
    shape, policy = shapes[number % len(shapes)], POLICIES[number // len(shapes) % len(POLICIES)]
    key = shape, size, settings["disturbance"], steps
    if key not in _environments:
        _environments[key] = PegInsertion(shape, size, disturbance=settings["disturbance"], steps=steps)
    rng = np.random.default_rng([settings["seed"], number])
    fields = roll_out(_environments[key], policy, rng, steps)
    facts = {
        "shape": shape,
        "policy": policy,
        "disturbance": settings["disturbance"] or "none",
        "seed": settings["seed"],
        "number": number,
        "rate": 1 / (READINGS * TIMESTEP),  # Hz, of moments
        "success": bool(fields.pop("success").any()),
        "in_contact": float(fields["contact"][1:].any(1).mean()),
    }
    write_episode(episode_path(out, number), fields, **facts)
    return facts
