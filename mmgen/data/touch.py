"""Touch and vision: force-sensor readings, and transitions of manipulation episodes as training items."""

import bisect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from mmgen.data.episode_file import read_episode, read_moment
from mmgen.data.flow import FlowProcessor
from mmgen.data.image import DepthProcessor, ImageProcessor
from mmgen.data.processors import Processor
from mmgen.data.simulate.disturbances import add_noise, occlude
from mmgen.data.vector import VectorProcessor
from mmgen.errors import UserError, check_at_least, check_one_of

LIGHT = ("action", "contact", "ee_forces_continuous", "proprio")  # fields kept in memory
HEAVY = ("image", "depth_data", "optical_flow")  # fields read on access
FAR, NEAR = 0.06, 0.01  # m, smallest distances between the hand positions of mismatched vision and touch
TRIES = 32  # episodes searched for a far moment
CAMERA = ("occlusion", "noise")  # disturbances of the sensors only, which can be applied to stored episodes


@dataclass(frozen=True)
class ForceProcessor:
    """Newest readings (6, readings) of a force-torque sensor, with each channel standardised.

    Args:
        mean: 6 numbers, N and N m.
        std: 6 numbers above 0, N and N m.
        readings: number of newest readings to keep.

    Raises:
        UserError: there are fewer readings, they have another shape or are not finite, or a std is not above 0.

    >>> force = ForceProcessor([0.0] * 6, [2.0] * 6, readings=2)
    >>> force(np.arange(18.0).reshape(3, 6))[0].tolist()
    [3.0, 6.0]
    """

    mean: list[float]
    std: list[float]
    readings: int = 32
    kind: ClassVar[str] = "force"

    def __post_init__(self) -> None:
        check_at_least("readings", self.readings, 1)
        if len(self.mean) != 6 or len(self.std) != 6 or not min(self.std) > 0:
            got = f"{len(self.mean)} means and stds {self.std}"
            raise UserError("force", got=got, expected="6 means, and 6 stds > 0", fix="fit them with ForceProcessor.fit")

    @classmethod
    def fit(cls, readings: np.ndarray, newest: int = 32) -> "ForceProcessor":
        """Make a processor with the mean and standard deviation of readings (..., 6)."""
        flat = np.asarray(readings, np.float64).reshape(-1, 6)
        std = flat.std(0)
        return cls(flat.mean(0).tolist(), np.where(std > 1e-9, std, 1.0).tolist(), newest)

    @property
    def shape(self) -> tuple[int, int]:
        """Shape (6, readings) of the tensors."""
        return 6, self.readings

    def __call__(self, value: np.ndarray) -> Tensor:
        """Convert readings (t, 6), N and N m, to (6, readings)."""
        force = np.asarray(value, np.float64)
        if force.ndim != 2 or force.shape[1] != 6 or len(force) < self.readings:
            expected, fix = f"(t, 6) with t at least {self.readings}", "set readings to a smaller power of two"
            raise UserError("force", got=f"shape {force.shape}", expected=expected, fix=fix)
        force = force[-self.readings :]
        if not np.isfinite(force).all():
            got = force[~np.isfinite(force)][0].item()
            raise UserError("force", got=got, expected="finite numbers", fix="drop the episode, or mark force as missing")
        return torch.from_numpy(((force - self.mean) / self.std).T.astype(np.float32))  # (6, readings)

    def decode(self, tensor: Tensor) -> np.ndarray:
        """Convert (6, readings) to readings (readings, 6), N and N m."""
        return tensor.detach().double().cpu().numpy().T * self.std + self.mean


def fit_processors(files: Sequence[str | Path], size: int, readings: int = 32) -> dict[str, Processor]:
    """Fit the processors of the inputs and targets of a model of vision and touch to the episodes in ``files``.

    Raises:
        UserError: there is no file, or one that cannot be used.
    """
    if not files:
        raise UserError("episodes", got="none", expected="at least one file", fix="check the data card's split")
    episodes = [read_episode(file, LIGHT) for file in files]
    proprio = [episode["proprio"].astype(np.float64) for episode in episodes]
    moves = np.concatenate([displacement(p[:-1], p[1:]) for p in proprio])
    return {
        "image": ImageProcessor(size),
        "depth": DepthProcessor(size),
        "force": ForceProcessor.fit(np.concatenate([e["ee_forces_continuous"] for e in episodes]), readings),
        "proprioception": VectorProcessor.fit(torch.from_numpy(np.concatenate(proprio))),
        "action": VectorProcessor.fit(torch.from_numpy(np.concatenate([e["action"][1:] for e in episodes]))),
        "displacement": VectorProcessor.fit(torch.from_numpy(moves)),
        "flow": FlowProcessor(size),
    }


def displacement(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Displacement (..., 4) between two proprioceptions (..., 8): x, y and z in m, and yaw in rad, wrapped to [-pi, pi].

    >>> displacement(np.array([0, 0, 0, 3.0]), np.array([1, 0, 0, -3.0])).round(2).tolist()
    [1.0, 0.0, 0.0, 0.28]
    """
    moved = after[..., :4] - before[..., :4]
    moved[..., 3] -= 2 * np.pi * np.round(moved[..., 3] / (2 * np.pi))
    return moved


def sensed(observation: Mapping[str, np.ndarray], processors: Mapping[str, Processor]) -> dict[str, Tensor]:
    """Convert an environment's observation, or the same fields of an episode, to tensors.

    Args:
        observation: ``image`` (s, s, 3) uint8, ``depth`` (s, s) m, ``force`` (r, 6) N and N m, ``proprioception`` (8,).
        processors: processors by the same names; fields without one are dropped.
    """
    values = {**observation, "image": Image.fromarray(observation["image"])} if "image" in observation else observation
    return {name: processors[name](values[name]) for name in values if name in processors}


class Transitions(Sequence):
    """Data set of the transitions of episodes: an observation, the action taken, and its outcome.

    Item i has as tensors:

    - ``image``, ``depth``, ``force``, ``proprioception`` and ``action`` of the moment, and ``touching``, 1.0 in contact;
    - of the next moment ``flow``, ``displacement`` and ``contact``, 1.0 if any reading of the step is in contact;
    - mismatched touch: ``far_force`` and ``far_proprioception`` of a moment of another episode at least 6 cm away, and
      ``near_force`` and ``near_proprioception`` of a moment of this episode at least 1 cm away, or of the farthest one. In
      half of the items, those with ``force_alone`` 1.0, the near touch keeps the proprioception and replaces only the force
      by that of a moment with the other state of contact, so that the position does not give the mismatch away.

    All random choices depend on i only.

    Args:
        files: files of the episodes.
        processors: processors from `fit_processors`.
        disturbance: "occlusion" or "noise" of the sensors, different for each episode; None for none.
        in_memory: keep pictures in memory too, 9 bytes for each pixel and moment, instead of reading them on access.

    Raises:
        UserError: a file cannot be used, or the disturbance is unknown.
    """

    def __init__(
        self,
        files: Sequence[str | Path],
        processors: Mapping[str, Processor],
        disturbance: str | None = None,
        in_memory: bool = False,
    ) -> None:
        if disturbance is not None:
            check_one_of("disturbance", disturbance, CAMERA)
        self.files, self.processors, self.disturbance = list(files), processors, disturbance
        fields = (*LIGHT, *HEAVY) if in_memory else LIGHT
        self.episodes = [read_episode(file, fields) for file in tqdm(self.files, "episodes", unit="file", delay=1)]
        self.ends = list(accumulate(len(episode["proprio"]) - 1 for episode in self.episodes))

    def __len__(self) -> int:
        return self.ends[-1] if self.ends else 0

    def place(self, index: int) -> tuple[int, int]:
        """Return the number of the episode and the moment in it."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        episode = bisect.bisect_right(self.ends, index)
        return episode, index - (self.ends[episode - 1] if episode else 0)

    def __getitem__(self, index: int) -> dict[str, Tensor]:  # type: ignore[override]  # no slices
        number, t = self.place(index)
        episode, rng, noise = self.episodes[number], np.random.default_rng(index), np.random.default_rng((index, 1))
        seen = {n: episode[n][t] for n in HEAVY if n in episode} or read_moment(self.files[number], t, HEAVY)
        now = {"image": seen["image"], "depth": seen["depth_data"][..., 0].astype(np.float32), **self._touch(number, t)}
        if self.disturbance == "occlusion":  # one panel for each episode
            now["image"], now["depth"] = occlude(now["image"], now["depth"], np.random.default_rng(number))
        elif self.disturbance == "noise":
            now = dict(zip(now, add_noise(**now, rng=noise)))
        item = sensed(now, self.processors)
        item["touching"] = torch.tensor(float(episode["contact"][t].any()))
        item["action"] = self.processors["action"](torch.from_numpy(episode["action"][t + 1]))
        item["flow"] = self.processors["flow"](seen["optical_flow"])
        item["contact"] = torch.tensor(float(episode["contact"][t + 1].any()))
        proprio = episode["proprio"][t : t + 2].astype(np.float64)
        item["displacement"] = self.processors["displacement"](torch.from_numpy(displacement(*proprio)))
        others = [other for other in rng.permutation(len(self.episodes)) if other != number] or [number]
        for name, (numbers, off) in {"far": (others[:TRIES], FAR), "near": ([number], NEAR)}.items():
            touch = self._touch(*self._away(numbers, episode["proprio"][t, :3], off, rng))
            if name == "near":
                alone = self._felt_otherwise(number, t, rng) if rng.random() < 0.5 else None
                item["force_alone"], touch = torch.tensor(float(alone is not None)), alone or touch
            if self.disturbance == "noise":
                touch = dict(zip(touch, add_noise(now["image"], now["depth"], **touch, rng=noise)[2:]))
            item |= {f"{name}_{sense}": value for sense, value in sensed(touch, self.processors).items()}
        return item

    def _touch(self, number: int, t: int) -> dict[str, np.ndarray]:
        episode = self.episodes[number]
        return {"force": episode["ee_forces_continuous"][t], "proprioception": episode["proprio"][t]}

    def _felt_otherwise(self, number: int, t: int, rng: np.random.Generator) -> dict[str, np.ndarray] | None:
        """Touch of a moment with the force of another moment in the other state of contact; None if there is none."""
        touching = np.any(self.episodes[number]["contact"], axis=1)  # (t,)
        if not len(others := np.flatnonzero(touching != touching[t])):
            return None
        return self._touch(number, t) | {"force": self._touch(number, rng.choice(others))["force"]}

    def _away(self, numbers: Sequence[int], position: np.ndarray, off: float, rng: np.random.Generator) -> tuple[int, int]:
        """Draw an episode and a moment with the hand at least ``off`` metres from a position, or take the farthest."""
        farthest = (-1.0, (0, 0))
        for number in numbers:
            distance = np.linalg.norm(self.episodes[number]["proprio"][:, :3] - position, axis=1)
            if len(fitting := np.flatnonzero(distance >= off)):
                return int(number), int(rng.choice(fitting))
            farthest = max(farthest, (float(distance.max()), (int(number), int(distance.argmax()))))
        return farthest[1]
