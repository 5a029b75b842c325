"""PPO policies (stable-baselines3) on codes of observations: training, evaluation in episodes, saving without pickle."""

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm.auto import tqdm

from mmgen.data.batch import Batch
from mmgen.errors import UserError, first_line
from mmgen.models.vision_touch import VisionTouch

try:
    import gymnasium
    from stable_baselines3 import PPO
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
    from stable_baselines3.common.vec_env import DummyVecEnv, VecEnvWrapper
except ImportError as missing:
    fix = "pip install 'mmgen[robotics]'"
    raise UserError("policy", got=str(missing), expected="stable-baselines3 and gymnasium", fix=fix) from missing

SEEDS = 10_000_000  # distance of the first episodes of consecutive seeds, so that they share none
CURVE = ("step", "episodes", "success", "reward")
CURVE_FILE = "curve.csv"


class CodedEnvironments(VecEnvWrapper):
    """Vectorised environments whose observations are encoded together before a policy sees them.

    Args:
        environments: functions that make one environment each; one or more.
        code: observations, name -> (n, ...), -> input of the policy, (n, k) or name -> (n, ...).
        scale: multiplies the rewards.
        made_by: identifies the code; a policy is used with no other.
    """

    def __init__(
        self,
        environments: Sequence[Callable[[], Any]],
        code: Callable[[Mapping[str, np.ndarray]], np.ndarray | dict[str, np.ndarray]],
        scale: float = 1.0,
        made_by: str = "",
    ) -> None:
        inner = DummyVecEnv(list(environments))
        self.code, self.scale, self.made_by = code, scale, made_by
        first = inner.observation_space.sample()
        seen = code(_alone(first))
        space = gymnasium.spaces.Dict({n: _box(v) for n, v in seen.items()}) if isinstance(seen, dict) else _box(seen)
        super().__init__(inner, observation_space=space)

    def reset(self) -> Any:
        """Begin an episode in each, and return their encoded observations."""
        return self.code(self.venv.reset())  # type: ignore[arg-type]

    def code_one(self, observation: Mapping[str, np.ndarray]) -> Any:
        """The code of one observation, name -> (...), as a batch of one."""
        return self.code(_alone(observation))

    def step_wait(self) -> tuple[Any, np.ndarray, np.ndarray, list[dict[str, Any]]]:
        """Encoded observations, scaled rewards, ends of episodes and infos; ended episodes restart."""
        observations, rewards, ended, infos = self.venv.step_wait()
        for info in infos:
            if (last := info.get("terminal_observation")) is not None:  # PPO bootstraps truncated episodes
                seen = self.code_one(last)
                info["terminal_observation"] = {n: v[0] for n, v in seen.items()} if isinstance(seen, dict) else seen[0]
        return self.code(observations), rewards * self.scale, ended, infos  # type: ignore[arg-type]


class Standardised(BaseFeaturesExtractor):
    """A layer that standardises a frozen code, each entry by its mean and standard deviation.

    Args:
        observation_space: space of codes (k,).
        mean: mean (k,) over training data; saved with the policy, so not needed for loading.
        std: standard deviation (k,), likewise.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, observation_space: Any, mean: Tensor | None = None, std: Tensor | None = None) -> None:
        (k,) = observation_space.shape
        super().__init__(observation_space, k)
        self.register_buffer("mean", torch.zeros(k) if mean is None else mean.float())
        self.register_buffer("std", torch.ones(k) if std is None else std.float())

    def forward(self, code: Tensor) -> Tensor:
        """(b, k) -> (b, k)."""
        return (code - self.mean) / self.std


class Encoders(BaseFeaturesExtractor):
    """The encoders of a model of vision and touch below a policy, trained with it: the mean of q(z | senses)."""

    def __init__(self, observation_space: Any, model: VisionTouch, dim: int) -> None:
        super().__init__(observation_space, dim)
        self.model = model

    def forward(self, observations: dict[str, Tensor]) -> Tensor:
        """Senses, name -> (b, ...), -> (b, k)."""
        return self.model.encode(Batch(observations)).mean


class Curve(BaseCallback):
    """A callback that after each update appends to ``curve.csv`` and saves the weights to ``checkpoint.safetensors``.

    A row describes one rollout: the steps so far, the number of episodes that ended, the share of them that succeeded, and
    the mean scaled reward of a step.
    """

    def __init__(self, folder: Path, steps: int) -> None:
        super().__init__()
        self.folder, self.steps, self.started = folder, steps, False
        self.successes: list[bool] = []
        self.rewards: list[float] = []

    def _on_training_start(self) -> None:
        file = self.folder / CURVE_FILE
        if file.is_file():  # drop rollouts after the checkpoint
            head, *rows = file.read_text(encoding="utf-8").splitlines()
            kept = [row for row in rows if int(row.partition(",")[0]) <= self.num_timesteps]
            file.write_text("\n".join([head, *kept]) + "\n", encoding="utf-8")
        self.bar = tqdm(total=self.steps, initial=self.num_timesteps, desc=self.folder.name, unit="step", dynamic_ncols=True)

    def _on_step(self) -> bool:
        ended = [info for info, done in zip(self.locals["infos"], self.locals["dones"]) if done]
        self.successes += [bool(info["success"]) for info in ended]
        self.rewards.append(float(np.mean(self.locals["rewards"])))
        self.bar.update(len(self.locals["infos"]))
        return True

    def _on_rollout_start(self) -> None:
        if self.started:  # the update on the previous rollout is done
            save_training(self.model, self.folder / "checkpoint.safetensors")  # type: ignore[arg-type]
        self.started = True

    def _on_rollout_end(self) -> None:
        file, new = self.folder / CURVE_FILE, not (self.folder / CURVE_FILE).is_file()
        success = f"{np.mean(self.successes):.4f}" if self.successes else ""
        with file.open("a", encoding="utf-8", newline="") as stream:
            writer = csv.writer(stream)
            if new:
                writer.writerow(CURVE)
            writer.writerow([self.num_timesteps, len(self.successes), success, f"{np.mean(self.rewards):.5f}"])
        self.bar.set_postfix(success=success)
        self.successes, self.rewards = [], []

    def _on_training_end(self) -> None:
        self.bar.close()


def fit_policy(ppo: PPO, steps: int, folder: Path, seed: int = 0) -> None:
    """Train for ``steps`` environment steps in all, from the checkpoint in ``folder`` if there is one.

    A resumed run continues from its last update with new episodes: unlike `mmgen.training.loop.fit`, it differs from an
    uninterrupted run.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "checkpoint.safetensors"
    if file.is_file():
        load_training(ppo, file)
    if ppo.num_timesteps < steps:
        ppo.set_random_seed(SEEDS * seed + ppo.num_timesteps)
        ppo.learn(steps - ppo.num_timesteps, callback=Curve(folder, steps), reset_num_timesteps=False)
        save_training(ppo, file)


def save_training(ppo: PPO, file: Path) -> None:
    """Save weights, the optimiser's moments and the number of steps, whole or not at all."""
    state = {f"policy.{name}": value.contiguous() for name, value in _own(ppo).items()}
    for i, moments in ppo.policy.optimizer.state_dict()["state"].items():
        state |= {
            f"optimizer.{i}.{name}": torch.as_tensor(value).clone(memory_format=torch.contiguous_format)
            for name, value in moments.items()
        }
    partial, env = file.with_suffix(".partial"), _environments(ppo)
    save_file(state, partial, metadata={"training": f"{ppo.num_timesteps} {env.made_by}"})  # one key: order varies
    partial.replace(file)


def _environments(ppo: PPO) -> Any:
    """The `CodedEnvironments` of a policy, which stable-baselines3 types as optional."""
    return ppo.env


def load_training(ppo: PPO, file: Path) -> None:
    """Load what `save_training` wrote.

    Raises:
        UserError: the file is missing or damaged, or of another network or code.
    """
    if not file.is_file():
        raise UserError(str(file), got="no such file", expected="a trained policy", fix="train it to the end with --resume")
    try:
        with safe_open(str(file), "pt") as stream:
            steps, _, made_by = (stream.metadata() or {}).get("training", "").partition(" ")
        if not steps:
            raise RuntimeError("no number of steps")
        if made_by != _environments(ppo).made_by:
            raise RuntimeError("a policy of another code")
        state = load_file(file)
        weights = {name.removeprefix("policy."): v for name, v in state.items() if name.startswith("policy.")}
        if weights.keys() != _own(ppo).keys():
            raise RuntimeError(f"other tensors ({min(weights.keys() ^ _own(ppo).keys())}, ...)")
        ppo.policy.load_state_dict(weights, strict=False)
    except (SafetensorError, RuntimeError, OSError) as error:
        raise UserError(str(file), got=first_line(error), expected="this policy's weights", fix="delete it") from error
    moments: dict[int, dict[str, Tensor]] = {}
    for name, value in state.items():
        if name.startswith("optimizer."):
            _, i, what = name.split(".")
            moments.setdefault(int(i), {})[what] = value
    optimizer = ppo.policy.optimizer
    optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})
    ppo.num_timesteps = int(steps)


def successes(
    ppo: PPO, environments: CodedEnvironments, episodes: int, seed: int, what: str, noise: bool = False
) -> list[bool]:
    """Success of the policy, deterministic or sampled, in each of ``episodes`` episodes seeded by ``seed``."""
    torch.manual_seed(seed)
    environments.seed(seed)
    seen, found = environments.reset(), []
    with tqdm(total=episodes, desc=what, unit="episode", dynamic_ncols=True) as bar:
        # equally many per environment: the first episodes to end are the successful ones
        left = [len(range(i, episodes, environments.num_envs)) for i in range(environments.num_envs)]
        while any(left):
            actions, _ = ppo.predict(seen, deterministic=not noise)
            seen, _, ended, infos = environments.step(actions)
            for i in np.flatnonzero(ended):
                if left[i]:
                    left[i] -= 1
                    found.append(bool(infos[i]["success"]))
                    bar.update()
    return found


def film(ppo: PPO, environments: CodedEnvironments, seed: int) -> bytes:
    """One episode from the camera, a GIF of 256 pixels."""
    env = environments.venv.envs[0]  # type: ignore[attr-defined]
    observation, _ = env.reset(seed=seed)
    frames, ended = [env.render()], False
    while not ended:
        action, _ = ppo.predict(environments.code_one(observation), deterministic=True)
        observation, _, terminated, truncated, _ = env.step(action[0])
        frames.append(env.render())
        ended = terminated or truncated
    first, *others = (Image.fromarray(frame).resize((256, 256), Image.Resampling.NEAREST) for frame in frames)
    content = io.BytesIO()
    first.save(content, "GIF", save_all=True, append_images=others, duration=64, loop=0)
    return content.getvalue()


def curve(folder: Path) -> list[dict[str, str]]:
    """The rows of ``curve.csv`` in ``folder``; none if it is missing."""
    file = folder / CURVE_FILE
    return list(csv.DictReader(file.read_text(encoding="utf-8").splitlines())) if file.is_file() else []


def _own(ppo: PPO) -> dict[str, Tensor]:
    """The state of the policy, with encoders shared by actor and critic once."""
    names = {name for name, _ in (*ppo.policy.named_parameters(), *ppo.policy.named_buffers())}
    return {name: value for name, value in ppo.policy.state_dict().items() if name in names}


def _alone(observation: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: np.asarray(value)[None] for name, value in observation.items()}


def _box(value: np.ndarray) -> Any:
    return gymnasium.spaces.Box(-np.inf, np.inf, value.shape[1:], np.float32)
