"""Vision and touch in one code by self-supervision, and what is left of it when the camera is covered or the hand is pushed.

mmgen train vision_touch                               # peg insertion, simulated the first time; pip install 'mmgen[robotics]'
accelerate launch recipes/vision_touch/train.py --config recipes/vision_touch/gpu.yaml
"""

import inspect
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated

import torch
from PIL import Image
from torchvision.utils import flow_to_image
from tqdm.auto import tqdm

from mmgen import processes
from mmgen.cli import main
from mmgen.data.batch import Batch, collate
from mmgen.data.cards import check_column, open_card, read_card
from mmgen.data.touch import CAMERA, Transitions, fit_processors
from mmgen.errors import UserError
from mmgen.models.base import load
from mmgen.models.vision_touch import NEGATIVES, TOUCH, VISION, VisionTouch, end_point_error
from mmgen.ranges import AtLeast
from mmgen.storage import read_json
from mmgen.training.config import FitConfig, section, section_of
from mmgen.training.loop import fit
from mmgen.training.model_card import ModelCard, contact_sheet, write_model_card
from mmgen.training.recipe import Recipe, run_details, stage_folder
from mmgen.training.report import Sample, write_report

AT_ONCE = 128  # moments that are read together in evaluation
SHOWN = 12  # moments in the report
GIVEN = ("senses", "size")  # what stages and data decide
STAGES = {"full": (*VISION, *TOUCH), "vision": VISION, "touch": TOUCH}
BASELINES = ("contact_accuracy_chance", "contact_accuracy_persistence")
PUSHED = ("push", "moving_hole")  # disturbances of the world, each a split of the card, ``test_NAME``


@dataclass
class Data:
    """A data card of episodes.

    Args:
        card: name or path; its column ``episode`` holds paths of HDF5 files.
        size: side of the pictures in pixels.
        episodes: episodes of each split; 0 takes all.
        in_memory: keep the training pictures in memory: half a gigabyte for 15,000 at 64 pixels.
    """

    card: str = "peg_insertion"
    size: Annotated[int, AtLeast(1)] = 64
    episodes: Annotated[int, AtLeast(0)] = 0
    in_memory: bool = True


@dataclass
class Config:
    """The config of the recipe ``vision_touch``: a model of all senses, and one of vision and one of touch alone."""

    data: Data = section()
    model: section_of(VisionTouch) = section()
    fit: FitConfig = section()
    seed: int = 0
    seeds: int = 1


def check(config: Config) -> None:
    """The card has episodes; stages and data decide what they have to."""
    check_column(read_card(config.data.card), "episode", "episode", "id")
    for name in GIVEN:
        value, default = getattr(config.model, name), inspect.signature(VisionTouch).parameters[name].default
        if value != (list(default) if isinstance(default, tuple) else default):
            fix = "set data.size" if name == "size" else "leave it out"
            raise UserError(f"model.{name}", got=value, expected="what the stages and the data decide", fix=fix)
    VisionTouch(**{**asdict(config.model), "size": config.data.size})  # before anything is simulated


def files(data: Data, split: str) -> list[str]:
    """The episodes of a split."""
    simulated = any("simulator" in source for source in read_card(data.card).sources)
    options = {"size": data.size, "episodes": data.episodes} if simulated else {}
    found = open_card(data.card, split, limit=data.episodes or None, **options)["episode"][:]
    if not found:
        fix = "choose another split, or give the card more files"
        raise UserError(f"{data.card}: {split}", got="no episode", expected="at least one", fix=fix)
    return found


def train(config: Config, run: Path, resume: bool, stage: str = "full") -> None:
    """Train a model of the stage's senses on the moments of the card's training episodes; its validation split is not read."""
    torch.manual_seed(config.seed)
    episodes = files(config.data, "train")
    model = VisionTouch(**{**asdict(config.model), "senses": STAGES[stage], "size": config.data.size})
    model.processors |= fit_processors(episodes, config.data.size, config.model.readings)
    data = Transitions(episodes, model.processors, in_memory=config.data.in_memory)
    fit(model, data, replace(config.fit, seed=config.seed), stage_folder(RECIPE, run, stage), resume=resume)


def batches(data: Transitions, what: str) -> Iterator[Batch]:
    """All moments."""
    for start in tqdm(range(0, len(data), AT_ONCE), desc=what, dynamic_ncols=True):
        rows = [data[i] for i in range(start, min(start + AT_ONCE, len(data)))]
        yield collate(rows).to(processes.device())


@torch.no_grad()
def scores(model: VisionTouch, data: Transitions, what: str, without: Sequence[str] = ()) -> dict[str, float]:
    """The figures of one model on all moments, with some senses missing.

    ``contact_accuracy``; ``pairing_accuracy`` and ``pairing_accuracy_hard``, the mean of the shares of pairs and of far, or
    near, touch that are told right, ``pairing_accuracy_force`` where the force alone is swapped; ``flow_epe_ratio``, the mean
    end-point error at the picture's own resolution over that of no flow; ``pose_error_ratio``, the mean error of the
    displacement, standardised, over that of no motion.
    """
    sums: dict[str, float] = {}

    def add(name: str, values: torch.Tensor) -> None:
        sums[name] = sums.get(name, 0.0) + values.double().sum().item()

    still = -torch.tensor(model.processors["displacement"].mean) / torch.tensor(model.processors["displacement"].std)
    groups = [[s for s in group if s in model.senses] for group in (VISION, TOUCH)]
    for batch in batches(data, what):
        senses = batch.without(*without)
        found = model.predict(senses)
        add("moments", torch.ones(batch.size))
        add("contact", (found.contact.probs > 0.5) == (batch["contact"] > 0.5))
        add("touching", batch["contact"])
        add("stays", batch["contact"] == batch["touching"])
        for name, guess in (("pose", found.displacement.mean), ("still", still.to(model.step.device))):
            add(name, (guess - batch["displacement"]).square().sum(1).sqrt())
        if found.flow is not None and "image" in senses:
            flow = torch.nn.functional.interpolate(found.flow.finest, batch["flow"].shape[2:], mode="bilinear")
            add("flow", end_point_error(flow, batch["flow"]))
            add("no_flow", end_point_error(torch.zeros_like(flow), batch["flow"]))
        if found.pairing is None or not all(any(s in senses for s in group) for group in groups if group):
            continue
        add("paired", found.pairing.probs > 0.5)
        for other in NEGATIVES:
            swapped = {s: batch[f"{other}_{s}"] for s in TOUCH if s in senses}
            q = model.encode(Batch({**senses.values, **swapped}, present=senses.present))
            add(other, told := model.decode(q.mean, "pairing").probs <= 0.5)
            if other == "near":  # where the force alone is of another moment
                force = batch["force_alone"] > 0.5
                add("force", force)
                add("by_force", told[force])
                add("paired_force", (found.pairing.probs > 0.5)[force])
    n = sums["moments"]
    figures = {"contact_accuracy": sums["contact"] / n, "pose_error_ratio": sums["pose"] / sums["still"]}
    if sums.get("no_flow"):
        figures["flow_epe_ratio"] = sums["flow"] / sums["no_flow"]
    if "paired" in sums:
        figures["pairing_accuracy"] = (sums["paired"] + sums["far"]) / (2 * n)
        figures["pairing_accuracy_hard"] = (sums["paired"] + sums["near"]) / (2 * n)
    if sums.get("force"):
        figures["pairing_accuracy_force"] = (sums["paired_force"] + sums["by_force"]) / (2 * sums["force"])
    figures["contact_accuracy_persistence"] = sums["stays"] / n  # what touches goes on to
    figures["contact_accuracy_chance"] = max(sums["touching"], n - sums["touching"]) / n
    return figures


def evaluate(run: Path, config: Config, split: str) -> dict[str, float]:
    """`scores` of the model of all senses, ``_vision`` and ``_touch`` of the others, and ``_NAME`` under each disturbance.

    ``_occlusion`` and ``_noise`` change the split's senses; ``_no_NAME`` takes a sense, or all of vision or touch, away
    without training anew; ``_push`` and ``_moving_hole`` are the card's splits of these, with ``test`` only.
    ``occlusion_kept`` is what is left under occlusion of the contact accuracy above chance, ``_persistence`` of that above
    foretelling that contact stays.
    """
    device = processes.device()
    models = {stage: load(stage_folder(RECIPE, run, stage)).to(device) for stage in STAGES}
    episodes, full = files(config.data, split), models["full"]
    data = Transitions(episodes, full.processors)
    figures = scores(full, data, split)
    found = {stage: scores(models[stage], data, f"{stage} alone") for stage in ("vision", "touch")}
    found |= {name: scores(full, Transitions(episodes, full.processors, name), name) for name in CAMERA}
    gone = {**{sense: (sense,) for sense in full.senses}, "vision": VISION, "touch": TOUCH}
    found |= {f"no_{name}": scores(full, data, f"without {name}", senses) for name, senses in gone.items()}
    if split == "test":  # recordings have no such episodes
        names = [name for name in PUSHED if f"test_{name}" in read_card(config.data.card).splits]
        pushed = {name: Transitions(files(config.data, f"test_{name}"), full.processors) for name in names}
        found |= {name: scores(full, one, name) for name, one in pushed.items()}
    for name, of in found.items():
        same = of["contact_accuracy_chance"] == figures["contact_accuracy_chance"]
        figures |= {f"{key}_{name}": value for key, value in of.items() if not (same and key in BASELINES)}
    chance = figures["contact_accuracy_chance"]
    for end, low in (("", chance), ("_persistence", figures["contact_accuracy_persistence"])):
        figures[f"occlusion_kept{end}"] = kept(figures["contact_accuracy"], figures["contact_accuracy_occlusion"], low)
    write_samples(run, split, full, data)
    return figures


def kept(accuracy: float, covered: float, low: float) -> float:
    """What is left of an accuracy above ``low``; 0 where it is not above."""
    return (covered - low) / (accuracy - low) if accuracy > low else 0.0


@torch.no_grad()
def write_samples(run: Path, split: str, model: VisionTouch, data: Transitions) -> None:
    """Moments with what was foretold of them: the picture, the true flow and the predicted one."""
    folder = run / "samples"
    folder.mkdir(exist_ok=True)
    places = torch.linspace(0, len(data) - 1, min(SHOWN, len(data))).long().tolist()
    batch = collate([data[i] for i in places]).to(model.step.device)
    found = model.predict(batch)
    flow = torch.nn.functional.interpolate(found.flow.finest, batch["flow"].shape[2:], mode="bilinear")
    flows = [flow_to_image(torch.cat([true, ours], 2).cpu()) for true, ours in zip(batch["flow"], flow)]
    lines = []
    for i, place in enumerate(places):
        picture = model.processors["image"].decode(batch["image"][i])
        sheet = Image.new("RGB", (3 * 96 + 8, 96), "#5c6773")
        parts = [picture, *(Image.fromarray(half.permute(1, 2, 0).numpy()) for half in flows[i].chunk(2, 2))]
        for column, part in enumerate(parts):
            sheet.paste(part.resize((96, 96), Image.Resampling.NEAREST), (column * 100, 0))
        sheet.save(folder / f"{split}_{i:02d}.png")
        number, t = data.place(place)
        said = "touches" if batch["contact"][i] else "does not touch"
        lines.append(
            f"episode {number}, moment {t}: p(contact next) {found.contact.probs[i]:.2f}, it {said}; "
            f"p(of one moment) {found.pairing.probs[i]:.2f}"
        )
    (folder / f"{split}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def report(run: Path, config: Config) -> None:
    """Write ``report.html`` and ``README.md`` from the metrics and samples that evaluations left in ``run``."""
    card, details, table, samples = read_card(config.data.card), run_details(run), {}, []
    pairing = ("pairing_accuracy", "pairing_accuracy_hard", "pairing_accuracy_force")
    keys = ("contact_accuracy", *pairing, "flow_epe_ratio", "pose_error_ratio")
    for split, figures in read_json(run / "metrics.json").items():
        ends = dict.fromkeys(key.removeprefix("contact_accuracy") for key in figures if key.startswith("contact_accuracy"))
        table[split] = {
            end.removeprefix("_").replace("_", " ") or "all senses": {k: figures[k + end] for k in keys if k + end in figures}
            for end in ends
        }
        for i, line in enumerate((run / "samples" / f"{split}.txt").read_text(encoding="utf-8").splitlines()):
            content = (run / "samples" / f"{split}_{i:02d}.png").read_bytes()
            samples.append(Sample(content, {"foretold": line}, group=f"{split}: picture, true flow, predicted flow"))
    summary = (
        "What a move will bring about, foretold from what is seen and felt: whether the hand touches something, where each "
        "pixel goes, how the pose changes; and whether vision and touch are of one moment. Ratios are of errors over those "
        "of predicting no flow, or no motion."
    )
    write_report(run / "report.html", f"Vision and touch on {card.name}", table, samples, details, summary)
    contact_sheet(samples[:SHOWN]).save(run / "samples" / "samples.png")
    write_model_card(run / "README.md", ModelCard(
        name=f"vision-touch-{card.name}",
        description="A code of camera, depth, wrist forces and proprioception, learned by self-supervision.",
        license="apache-2.0",
        task="robotics",
        data=card.name,
        data_license=card.license,
        table=table,
        command=details["command"],
        picture="samples/samples.png",
        picture_text="Pictures, the true flow to the next one, and the predicted flow",
        intended_use="Representations for policies of contact-rich manipulation, and their study.",
        limitations=[
            "Trained on one simulated scene: a real robot's sensors differ.",
            "Flow is that of a fixed camera.",
        ],
        tags=["vision-touch", "robotics"],
    ))  # fmt: skip


RECIPE = Recipe(
    name="vision_touch",
    config=Config,
    stages={stage: partial(train, stage=stage) for stage in STAGES},
    main="full",
    evaluate=evaluate,
    splits=("test", "validation"),
    report=report,
    check=check,
    above={"contact_accuracy": ("contact_accuracy_vision", "contact_accuracy_touch")},
)

if __name__ == "__main__":
    sys.exit(main(["train", "vision_touch", *sys.argv[1:]]))
