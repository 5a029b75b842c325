"""Peg insertion by reinforcement learning on frozen codes of vision and touch, of either alone, and on the raw pose.

mmgen train peg_policy full.from=runs/vision_touch vision.from=runs/vision_touch touch.from=runs/vision_touch
mmgen train peg_policy --config all_arms seeds=3       # the raw pose, and encoders trained by the reward alone, too
mmgen train peg_policy arms=[told,told_touch] ...      # policies that are told, with an error, where the hole is
accelerate launch recipes/peg_policy/train.py --config recipes/peg_policy/gpu.yaml
"""

import csv
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm.auto import tqdm

from mmgen import processes
from mmgen.cli import main
from mmgen.data.batch import Batch, collate
from mmgen.data.simulate.peg_insertion import DISTURBANCES, PegInsertion
from mmgen.data.simulate.scene import SHAPES
from mmgen.data.touch import Transitions, sensed
from mmgen.errors import UserError, check_one_of
from mmgen.modalities.features import mean_and_std
from mmgen.models.base import load
from mmgen.models.vision_touch import TOUCH, VISION, VisionTouch
from mmgen.ranges import Above, AtLeast, Between, Each
from mmgen.storage import fingerprint, read_json
from mmgen.training.config import FitConfig, section, section_of
from mmgen.training.recipe import Recipe, load_recipe, run_details, stage_folder
from mmgen.training.report import Sample, write_report

VISION_TOUCH = sys.modules[load_recipe("vision_touch").config.__module__]
MOMENTS = 2000  # of the training data, by which codes are standardised
TRIED = 5_000_000  # the first episode that is evaluated, the same for all seeds: training does not get there
LAST_SEED = 400  # episodes are numbered from ten million times the seed on, and generators take 32 bits
NEWEST = 8  # readings of the force, whose mean a policy without a code sees
# arm -> the senses that it reads: by a frozen code, "state" the raw proprioception, "scratch" by encoders that PPO trains, and
# "told" and "told_touch" no code but, with an error, where the hole is: what a code that holds its place would give
ARMS = {
    "full": (*VISION, *TOUCH),
    "vision": VISION,
    "touch": TOUCH,
    "state": ("proprioception",),
    "scratch": (*VISION, *TOUCH),
    "told": ("told",),
    "told_touch": ("told", *TOUCH),
}


@dataclass
class Policy:
    """Proximal policy optimisation.

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
        told_error: standard error of the hole's position in m for the oracle arms, see `OracleHole`.
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


@dataclass
class Evaluation:
    """Trials of the trained arms.

    Args:
        episodes: episodes of each arm and disturbance.
        shape: shape of peg and hole.
        disturbances: disturbances that are tried beside none.
    """

    episodes: Annotated[int, AtLeast(1)] = 100
    shape: str = "triangle"
    disturbances: list[str] = field(default_factory=lambda: list(DISTURBANCES))


@dataclass
class Config:
    """The config of the recipe ``peg_policy``: that of the codes is as in ``vision_touch``.

    Args:
        fit: training of the codes.
        arms: which policies are trained, by what they observe.
    """

    data: VISION_TOUCH.Data = section()
    model: section_of(VisionTouch) = section()
    fit: FitConfig = section()
    policy: Policy = section()
    arms: list[str] = field(default_factory=lambda: ["full", "vision", "touch"])
    evaluation: Evaluation = section()
    seed: int = 0
    seeds: int = 1


def check(config: Config) -> None:
    """Arms, shapes and disturbances are known."""
    VISION_TOUCH.check(config)
    policy = config.policy
    for arm in config.arms:
        check_one_of("arms", arm, ARMS)
    for shape in (*policy.shapes, config.evaluation.shape):
        check_one_of("shape", shape, SHAPES)
    for disturbance in config.evaluation.disturbances:
        check_one_of("evaluation.disturbances", disturbance, DISTURBANCES)
    if not config.arms or not policy.shapes:
        raise UserError("arms and policy.shapes", got="an empty list", expected="one or more", fix="leave it out")
    if policy.environments % len(policy.shapes):
        got, fix = f"{policy.environments} for {len(policy.shapes)} shapes", "as many of each shape"
        raise UserError("policy.environments", got=got, expected=f"a multiple of {len(policy.shapes)}", fix=fix)
    if config.seed + config.seeds - 1 > LAST_SEED:
        got = config.seed + config.seeds - 1
        raise UserError("seed", got=got, expected=f"at most {LAST_SEED} for the last one", fix="use 0 for example")


def train_code(config: Config, run: Path, resume: bool, stage: str) -> None:
    """A code of the stage's senses, as in the recipe ``vision_touch``."""
    VISION_TOUCH.train(config, run, resume, stage)


def environment(config: Config, arm: str, shape: str, disturbance: str | None = None) -> Any:
    """Make an environment that renders only for vision arms, and exposes the hole's position only to oracle arms."""
    seen = any(sense in VISION for sense in ARMS[arm])
    size, clearance = config.data.size, config.policy.clearance
    env = PegInsertion(shape, size, clearance, disturbance=disturbance, flow=False, vision=seen)
    if "told" not in ARMS[arm]:
        return env
    from mmgen.judging.policy import OracleHole

    return OracleHole(env, config.policy.told_error)


def coded_by(
    model: VisionTouch, arm: str, without: Sequence[str] = ()
) -> Callable[[Mapping[str, np.ndarray]], np.ndarray | dict[str, np.ndarray]]:
    """What is made of observations (n, ...) for a policy: the mean of q(z | senses), or the senses, standardised."""
    names = [sense for sense in ARMS[arm] if sense not in (*without, "told")]

    @torch.no_grad()
    def code(observations: Mapping[str, np.ndarray]) -> Any:
        n = len(next(iter(observations.values())))
        rows = [sensed({sense: observations[sense][i] for sense in names}, model.processors) for i in range(n)]
        senses = {sense: torch.stack([row[sense] for row in rows]) for sense in names}  # (n, ...)
        if "told" in ARMS[arm]:
            if "force" in senses:
                senses["force"] = senses["force"][..., -NEWEST:].mean(2)  # (n, 6)
            told = 100 * torch.from_numpy(np.asarray(observations["told"]))  # (n, 3) cm
            return torch.cat([told, *senses.values()], 1).numpy()
        if arm == "state":
            return senses["proprioception"].numpy()
        if arm == "scratch":
            return {sense: value.numpy() for sense, value in senses.items()}
        return model.encode(Batch(senses).to(model.step.device)).mean.float().cpu().numpy()  # (n, k)

    return code


def environments(
    config: Config, run: Path, arm: str, shapes: Sequence[str], disturbance: str | None = None, without: Sequence[str] = ()
) -> Any:
    """As many as the config says, of the shapes in turn, their observations coded as the arm has it, some senses missing."""
    from mmgen.judging.policy import CodedEnvironments

    model = load(stage_folder(RECIPE, run, arm if arm in STAGES else "full")).to(processes.device())
    code = coded_by(model, arm, without)
    made = [partial(environment, config, arm, shapes[i % len(shapes)], disturbance) for i in range(config.policy.environments)]
    made_by = fingerprint(model) if arm in STAGES else ""
    return CodedEnvironments(made, code, config.policy.reward_scale, made_by)


@torch.no_grad()
def spread(config: Config, run: Path, arm: str) -> tuple[Tensor, Tensor]:
    """The mean and the standard deviation of the arm's code over moments of the training episodes, (k,) each."""
    model = load(stage_folder(RECIPE, run, arm)).to(processes.device())
    data, codes = Transitions(VISION_TOUCH.files(config.data, "train"), model.processors), []
    chosen = torch.linspace(0, len(data) - 1, min(len(data), MOMENTS)).long()
    for some in tqdm(chosen.split(100), f"codes of {arm}", dynamic_ncols=True):
        batch = collate([data[i] for i in some.tolist()]).keep(list(model.senses))
        codes.append(model.encode(batch.to(model.step.device)).mean.float().cpu())
    return mean_and_std(torch.cat(codes))


def make_ppo(config: Config, arm: str, seen: Any, moments: tuple[Tensor, Tensor] | tuple[()] = ()) -> Any:
    """PPO with a small perceptron on the code, standardised by ``moments``; of "scratch" with the encoders below it."""
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
    elif arm in STAGES:
        kwargs |= {"features_extractor_class": Standardised, "features_extractor_kwargs": dict(zip(("mean", "std"), moments))}
    return PPO(
        network, seen, learning_rate=policy.learning_rate, n_steps=policy.rollout, batch_size=policy.batch_size,
        n_epochs=policy.epochs, gamma=policy.gamma, ent_coef=policy.entropy, policy_kwargs=kwargs, seed=config.seed,
        device=processes.device(),
    )  # fmt: skip


def policies(run: Path) -> Path:
    """The folder of the arms' policies: in the run, or in the one that they were taken from."""
    return (stage_folder(RECIPE, run, "policy") / "model").resolve().parent


def train_policies(config: Config, run: Path, resume: bool) -> None:
    """Train each arm's policy; those that are done are left, and the one that was stopped goes on."""
    from mmgen.judging.policy import fit_policy, save_training

    folder, running = policies(run), processes.join().num_processes
    done = stage_folder(RECIPE, run, "policy") / "model"
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
        file = folder / arm / "policy.safetensors"
        seen = environments(config, run, arm, config.policy.shapes)
        ppo = make_ppo(config, arm, seen, spread(config, run, arm) if arm in STAGES else ())
        fit_policy(ppo, config.policy.steps, folder / arm, config.seed)
        save_training(ppo, file)
        seen.close()
    done.mkdir(exist_ok=True)


def evaluate(run: Path, config: Config, split: str) -> dict[str, float]:
    """``success_ARM`` on the evaluation's shape, ``success_ARM_DISTURBANCE``, ``success_ARM_seen`` on those it was trained on.

    The policy acts without its noise, and with it in ``success_ARM_sampled`` and ``success_ARM_seen_sampled``. Of all senses
    also ``success_full_no_vision`` and ``success_full_no_touch``, with those masked.
    """
    from mmgen.judging.policy import load_training, successes

    figures, settings, policy = {}, config.evaluation, config.policy
    for arm in config.arms:
        seeing = any(sense in VISION for sense in ARMS[arm])
        unseen = [settings.shape]
        tried = {"": (unseen, None, ()), "sampled": (unseen, None, ())}
        tried |= {name: (policy.shapes, None, ()) for name in ("seen", "seen_sampled")}
        tried |= {name: (unseen, name, ()) for name in settings.disturbances if seeing or name != "occlusion"}
        tried |= {"no_vision": (unseen, None, VISION), "no_touch": (unseen, None, TOUCH)} if arm == "full" else {}
        for name, (shapes, disturbance, without) in tried.items():
            seen = environments(config, run, arm, shapes, disturbance, without)
            ppo = make_ppo(config, arm, seen)
            load_training(ppo, policies(run) / arm / "policy.safetensors")
            what = f"{arm} {name or settings.shape}"
            found = successes(ppo, seen, settings.episodes, TRIED, what, name.endswith("sampled"))
            figures[f"success_{arm}" + (f"_{name}" if name else "")] = sum(found) / len(found)
            if not name and seeing:
                write_film(run / "samples" / f"{split}_{arm}.gif", ppo, seen)
            seen.close()
    return figures


def write_film(file: Path, ppo: Any, seen: Any) -> None:
    """One episode, as the camera sees it."""
    file.parent.mkdir(exist_ok=True)
    env = seen.venv.envs[0]
    observation, _ = env.reset(seed=TRIED)
    frames, ended = [env.render()], False
    while not ended:
        action, _ = ppo.predict(seen.code_one(observation), deterministic=True)
        observation, _, terminated, truncated, _ = env.step(action[0])
        frames.append(env.render())
        ended = terminated or truncated
    frames = [Image.fromarray(frame).resize((256, 256), Image.Resampling.NEAREST) for frame in frames]
    frames[0].save(file, save_all=True, append_images=frames[1:], duration=64, loop=0)


def curves(folder: Path, arms: Sequence[str]) -> dict[str, list[dict[str, str]]]:
    """Each arm's ``curve.csv``, where it is still there."""
    files = {arm: folder / arm / "curve.csv" for arm in arms}
    return {
        arm: list(csv.DictReader(file.read_text(encoding="utf-8").splitlines()))
        for arm, file in files.items()
        if file.is_file()
    }


def report(run: Path, config: Config) -> None:
    """Write ``report.html`` and ``README.md`` from the metrics and curves in ``run``."""
    details, table, lines = run_details(run), {}, ["# Peg insertion by what a policy sees", ""]
    for split, figures in read_json(run / "metrics.json").items():
        table[split] = {arm: {} for arm in config.arms}
        for key, value in figures.items():
            name = key.removeprefix("success_")
            arm = max((arm for arm in config.arms if f"{name}_".startswith(f"{arm}_")), key=len)
            table[split][arm][f"success {name[len(arm) + 1 :]}".strip()] = value
        lines += ["| figure | |", "| --- | ---: |", *(f"| {key} | {value:.3f} |" for key, value in figures.items()), ""]
    grown = [
        f"{arm} after {row['step']} steps: success {row['success'] or '-'} of {row['episodes']} episodes"
        for arm, rows in curves(policies(run), config.arms).items()
        for row in rows
    ]
    samples = [
        Sample(file.read_bytes(), {"seen by": file.stem.partition("_")[2]}, group="one episode")
        for file in sorted((run / "samples").glob("*.gif"))
    ]
    (run / "README.md").write_text("\n".join([*lines, "```sh", details["command"], "```", ""]), encoding="utf-8")
    summary = f"Share of {config.evaluation.episodes} episodes with a {config.evaluation.shape} peg in which it is inserted."
    write_report(run / "report.html", "Peg insertion", table, samples, details | {"curves": "\n".join(grown)}, summary)


STAGES = {stage: partial(train_code, stage=stage) for stage in VISION_TOUCH.STAGES}
RECIPE = Recipe(
    name="peg_policy",
    config=Config,
    stages={**STAGES, "policy": train_policies},
    main="full",
    evaluate=evaluate,
    splits=("test",),
    report=report,
    check=check,
    grows={"arms": "policy"},
    above={"success_full": ("success_vision", "success_touch")},
)

if __name__ == "__main__":
    sys.exit(main(["train", "peg_policy", *sys.argv[1:]]))
