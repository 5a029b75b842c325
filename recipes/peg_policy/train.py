"""Peg insertion by reinforcement learning on frozen codes of vision and touch, of either alone, and on the raw pose.

mmgen train peg_policy full.from=runs/vision_touch vision.from=runs/vision_touch touch.from=runs/vision_touch
mmgen train peg_policy --config all_arms seeds=3       # the raw pose, and encoders trained by the reward alone, too
mmgen train peg_policy arms=[told,told_touch] ...      # oracle policies: they see, with an error, where the hole is
accelerate launch recipes/peg_policy/train.py --config recipes/peg_policy/gpu.yaml
"""

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
from torch import Tensor

from mmgen import processes
from mmgen.cli import main
from mmgen.data.simulate.peg_insertion import DISTURBANCES
from mmgen.data.simulate.scene import SHAPES
from mmgen.data.touch import Transitions
from mmgen.errors import Mistakes, UserError
from mmgen.judging.arms import ARMS, code_moments, environment, sees, view
from mmgen.models.vision_touch import TOUCH, VISION, VisionTouch
from mmgen.ranges import Above, AtLeast, Between, Each
from mmgen.storage import fingerprint
from mmgen.training.config import section
from mmgen.training.recipe import Recipe, stage
from mmgen.training.result import Result
from mmgen.training.run import Run
from mmgen.training.stages.vision_touch import CODES, STAGES, VisionTouchConfig

TRIED = 5_000_000  # the first episode that is evaluated, the same for all seeds; beyond all training episodes
LAST_SEED = 400  # episodes are numbered from ten million times the seed on, and generators take 32 bits


@dataclass
class Policy:
    """Proximal policy optimisation, and the environments it learns in.

    Args:
        steps: steps of the environments in all.
        environments: environments side by side, as many of each shape.
        rollout: steps of each environment that make an update.
        batch_size: steps of a batch.
        epochs: passes over the steps of an update.
        learning_rate: learning rate of the policy.
        gamma: discount of a step.
        entropy: weight of the entropy bonus.
        log_std: log standard deviation of the actions at first.
        hidden: widths of the policy's layers.
        reward_scale: factor on the rewards that PPO sees.
        shapes: shapes of peg and hole in training.
        clearance: gap between peg and hole in m.
        told_error: standard error of the hole's position in m for the oracle arms, see `mmgen.data.simulate.oracle.Oracle`.
    """

    steps: Annotated[int, AtLeast(1)] = 120000
    environments: Annotated[int, AtLeast(1)] = 8
    rollout: Annotated[int, AtLeast(2)] = 128
    batch_size: Annotated[int, AtLeast(2)] = 256
    epochs: Annotated[int, AtLeast(1)] = 8
    learning_rate: Annotated[float, Above(0), Between(0, 1)] = 0.0003
    gamma: Annotated[float, Above(0), Between(0, 1)] = 0.97
    entropy: Annotated[float, AtLeast(0)] = 0.0
    log_std: Annotated[float, Between(-10, 2)] = -0.7
    hidden: Annotated[list[int], Each(AtLeast(1))] = field(default_factory=lambda: [128, 64])
    reward_scale: Annotated[float, Above(0), Between(0, 1000)] = 0.1
    shapes: list[str] = field(default_factory=lambda: ["round", "square"])
    clearance: Annotated[float, Between(0, 0.01)] = 0.003
    told_error: Annotated[float, Between(0, 0.1)] = 0.003

    def check(self, path: str, errors: Mistakes) -> None:
        """Check that the shapes are known, and that each gets as many environments."""
        if not self.shapes:
            raise UserError(f"{path}.shapes", got="an empty list", expected="one or more", fix="leave it out")
        errors.check_each(f"{path}.shapes", self.shapes, SHAPES)
        if self.environments % len(self.shapes):
            got, fix = f"{self.environments} for {len(self.shapes)} shapes", "as many of each shape"
            raise UserError(f"{path}.environments", got=got, expected=f"a multiple of {len(self.shapes)}", fix=fix)


@dataclass
class Evaluation:
    """Trials of the trained arms.

    Args:
        episodes: episodes of each arm and disturbance.
        shape: shape of peg and hole.
        disturbances: disturbances tried in addition to none.
    """

    episodes: Annotated[int, AtLeast(1)] = 100
    shape: str = "triangle"
    disturbances: list[str] = field(default_factory=lambda: list(DISTURBANCES))

    def check(self, path: str, errors: Mistakes) -> None:
        """Check that shape and disturbances are known."""
        errors.check_each(f"{path}.shape", [self.shape], SHAPES)
        errors.check_each(f"{path}.disturbances", self.disturbances, DISTURBANCES)


@dataclass
class Config(VisionTouchConfig):
    """The config of the recipe ``peg_policy``: that of the codes, as in ``vision_touch``, and the policy's.

    Args:
        arms: what the policies see, keys of `mmgen.judging.arms.ARMS`.
    """

    policy: Policy = section()
    arms: list[str] = field(default_factory=lambda: ["full", "vision", "touch"])
    evaluation: Evaluation = section()

    def check(self, errors: Mistakes) -> None:
        """Check that the arms are known, and that no seed needs episodes beyond the last."""
        if not self.arms:
            errors.append(UserError("arms", got="an empty list", expected="one or more", fix="leave it out"))
        errors.check_each("arms", self.arms, ARMS)
        if (last := self.seed + self.seeds - 1) > LAST_SEED:
            expected = f"at most {LAST_SEED} for the last one"
            errors.append(UserError("seed", got=last, expected=expected, fix="use 0 for example"))
        super().check(errors)


def environments(
    run: Run, config: Config, arm: str, shapes: Sequence[str], disturbance: str | None = None, without: Sequence[str] = ()
) -> Any:
    """Vectorised environments, cycling through ``shapes``, with observations coded for the arm.

    Args:
        without: senses that are missing.
    """
    from mmgen.judging.policy import CodedEnvironments

    model = run.load(arm if arm in CODES else "full").to(processes.device())
    size, policy = config.data.size, config.policy
    kinds = [shapes[i % len(shapes)] for i in range(policy.environments)]
    made = [partial(environment, arm, kind, size, policy.clearance, policy.told_error, disturbance) for kind in kinds]
    made_by = fingerprint(model) if arm in CODES else ""
    return CodedEnvironments(made, view(model, arm, without), policy.reward_scale, made_by)


def make_ppo(config: Config, arm: str, seen: Any, moments: tuple[Tensor, Tensor] | tuple[()] = ()) -> Any:
    """PPO with a small perceptron on the code, standardised by ``moments``; for "scratch" with the encoders below it."""
    from stable_baselines3 import PPO

    from mmgen.judging.policy import Encoders, Standardised

    policy, network = config.policy, "MlpPolicy"
    kwargs: dict[str, Any] = {"net_arch": policy.hidden, "log_std_init": policy.log_std}
    if arm == "scratch":
        torch.manual_seed(config.seed)
        model = VisionTouch(**{**asdict(config.model), "senses": ARMS[arm], "size": config.data.size, "drop": 0.0})
        kwargs |= {"features_extractor_class": Encoders, "ortho_init": False}  # the encoders have an init of their own
        kwargs |= {"features_extractor_kwargs": {"model": model, "dim": config.model.latent_dim}}
        network = "MultiInputPolicy"
    elif arm in CODES:
        kwargs |= {"features_extractor_class": Standardised, "features_extractor_kwargs": dict(zip(("mean", "std"), moments))}
    return PPO(
        network, seen, learning_rate=policy.learning_rate, n_steps=policy.rollout, batch_size=policy.batch_size,
        n_epochs=policy.epochs, gamma=policy.gamma, ent_coef=policy.entropy, policy_kwargs=kwargs, seed=config.seed,
        device=processes.device(),
    )  # fmt: skip


def policies(run: Run) -> Path:
    """The folder of the arms' policies: in the run, or in the one that they were taken from."""
    return (run.stage_folder("policy") / "model").resolve().parent


@stage()
def policy(run: Run, config: Config) -> None:
    """Train each arm's policy; finished ones are kept, interrupted ones resume."""
    from mmgen.judging.policy import fit_policy, save_training

    folder, running = policies(run), processes.join().num_processes
    done = run.stage_folder("policy") / "model"
    missing = [arm for arm in config.arms if not (folder / arm / "policy.safetensors").is_file()]
    if missing and done.is_symlink():
        got, fix = f"none of {', '.join(missing)} in {folder}", "train policies here, in a new run without policy.from"
        raise UserError("policies of another run", got=got, expected="all arms", fix=fix)
    if missing and running > 1:
        fix = "train the codes on many, then the policies with --resume on one"
        raise UserError("policies", got=f"{running} processes", expected="one", fix=fix)
    if missing and done.is_dir():  # there were fewer arms
        done.rmdir()
    for arm in missing:
        seen, moments = environments(run, config, arm, config.policy.shapes), ()
        if arm in CODES:
            model = run.load(arm).to(processes.device())
            moments = code_moments(model, Transitions(config.data.files("train"), model.processors))
        ppo = make_ppo(config, arm, seen, moments)
        fit_policy(ppo, config.policy.steps, folder / arm, config.seed)
        save_training(ppo, folder / arm / "policy.safetensors")
        seen.close()
    done.mkdir(exist_ok=True)


def evaluate(run: Run, config: Config, split: str) -> Result:
    """Success of each arm on the evaluation's shape, and under other conditions.

    These are the policy's noise (``sampled``), the shapes of training (``seen``), each disturbance, and for ``full`` vision
    and touch masked.
    """
    from mmgen.judging.policy import curve, film, load_training, successes

    unseen, result = [config.evaluation.shape], Result("policy")
    for arm in config.arms:
        tried: dict[str, tuple[Any, ...]] = {"": (unseen,), "sampled": (unseen,)}
        tried |= dict.fromkeys(("seen", "seen_sampled"), (config.policy.shapes,))
        tried |= {name: (unseen, name) for name in config.evaluation.disturbances if sees(arm) or name != "occlusion"}
        tried |= {"no_vision": (unseen, None, VISION), "no_touch": (unseen, None, TOUCH)} if arm == "full" else {}
        for name, settings in tried.items():
            seen = environments(run, config, arm, *settings)
            ppo = make_ppo(config, arm, seen)
            load_training(ppo, policies(run) / arm / "policy.safetensors")
            what = f"{arm} {name or config.evaluation.shape}"
            found = successes(ppo, seen, config.evaluation.episodes, TRIED, what, name.endswith("sampled"))
            result[f"{arm}_{name}" if name else arm] = {"success": sum(found) / len(found)}
            if not name and sees(arm):
                result.show(film(ppo, seen, TRIED), {"camera view of": arm}, group="one episode", name=arm)
            seen.close()
    result.labels = {system: system.replace("_", " ") for system in result}
    grown = [
        f"{arm} after {row['step']} steps: success {row['success'] or '-'} of {row['episodes']} episodes"
        for arm in config.arms
        for row in curve(policies(run) / arm)
    ]
    result.texts["curves"] = "\n".join(grown)
    return result


RECIPE = Recipe(
    "peg_policy", Config, [*STAGES, policy], evaluate, main="full", splits=("test",), extendable={"arms": "policy"},
    above={"success_full": ("success_vision", "success_touch")},
)  # fmt: skip

if __name__ == "__main__":
    sys.exit(main(["train", "peg_policy", *sys.argv[1:]]))
