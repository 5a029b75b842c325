"""Episodes of peg insertion: simulated at first use, or read from a folder of the published files."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mmgen.data.episode_file import check_episode
from mmgen.data.simulate.episodes import REVISION
from mmgen.data.sources.splits import uniform
from mmgen.errors import UserError
from mmgen.storage import cache_folder, cache_written

CLASSES = ("round", "square", "triangle")
# split -> seed, number of episodes, shapes of the pegs, disturbance; the seeds give every split its own episodes and holes
SPLITS: dict[str, tuple[int, int, tuple[str, ...], str | None]] = {
    "train": (1, 300, ("round", "square"), None),
    "validation": (2, 40, ("round", "square"), None),
    "test": (3, 60, ("triangle",), None),
    "test_push": (4, 30, ("triangle",), "push"),
    "test_moving_hole": (5, 30, ("triangle",), "moving_hole"),
}
PUBLISHED = "triangle"  # the shape of all the published episodes


def read(split: str, simulate: Callable[..., Any], *, size: int = 64, episodes: int = 0) -> Iterator[dict[str, Any]]:
    """Yield the episodes of one split, simulating those that are not in the cache.

    Args:
        split: one of `SPLITS`.
        simulate: `mmgen.data.simulate.episodes.simulate`.
        size: side of the pictures, pixels.
        episodes: number of episodes to read, the first ones; 0: all. No more are simulated.

    Raises:
        UserError: a package or renderer is missing, or an episode in the cache is damaged.
    """
    seed, count, shapes, disturbance = SPLITS[split]
    count = min(episodes, count) or count
    folder = cache_folder() / "simulated" / "peg_insertion" / f"{split}-{size}-{REVISION}"
    workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with cache_written(folder):
        folder.mkdir(parents=True, exist_ok=True)
    simulate(folder, count, min(workers, count), seed, shapes, size, disturbance)
    for path in sorted(folder.glob("episode_*.h5"))[:count]:
        yield _row(path, str(check_episode(path)["shape"]))


def read_folder(split: str, folder: Path) -> Iterator[dict[str, Any]]:
    """Yield the published episodes of one split: by a hash of the file's name, 10 % ``test``, 10 % ``validation``.

    Args:
        split: ``train``, ``validation`` or ``test``.
        folder: folder with HDF5 files, searched recursively.

    Raises:
        UserError: there is no file, or one is damaged, lacks a field or has one of a wrong shape.
    """
    files = sorted(path for path in folder.rglob("*") if path.suffix in (".h5", ".hdf5"))
    if not files:
        raise UserError(str(folder), got="no .h5 file", expected="episodes", fix="unpack triangle_real_data.zip there")
    for path in files:
        u = uniform(f"peg_insertion {path.name}")
        if split == ("test" if u < 0.1 else "validation" if u < 0.2 else "train"):
            yield _row(path, str(check_episode(path).get("shape", PUBLISHED)))


def _row(path: Path, shape: str) -> dict[str, Any]:
    return {"episode": str(path.resolve()), "shape": CLASSES.index(shape)}
