"""A judge: a classifier trained apart, that tells later what a generated picture, sound or text shows.

mmgen train judge                                                          # scikit-learn's digits, seconds
mmgen train judge --config mnist                                           # any card, column and label: data.card=...
accelerate launch recipes/judge/train.py --config recipes/judge/gpu.yaml
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from torch import Tensor
from tqdm.auto import tqdm

from mmgen import processes
from mmgen.cli import main
from mmgen.data.batch import collate
from mmgen.data.cards import check_column, read_card
from mmgen.data.columns import fit_processor
from mmgen.data.label import LabelProcessor
from mmgen.data.processors import Processor
from mmgen.data.rows import Rows, check_several_classes, open_rows
from mmgen.errors import UserError, check_one_of, counted
from mmgen.modalities.kinds import KINDS
from mmgen.models.base import load
from mmgen.models.classifier import Classifier
from mmgen.ranges import AtLeast, Share
from mmgen.storage import read_json
from mmgen.training.config import FitConfig, section
from mmgen.training.loop import fit
from mmgen.training.recipe import Recipe, cached_run
from mmgen.training.recipe import evaluate as evaluate_run

UNKNOWN, UNLABELLED = -2, -3  # in place of a class; -1 is what judges say of an empty text


@dataclass
class Data:
    """A data card and its columns.

    Args:
        card: name or path.
        input: the column that is judged.
        label: the column to tell from it.
        split: what the judge trains on; models train on ``train``, so that any other split keeps judge and model apart.
        size: side of a picture in pixels.
        channels: of a picture: 1 or 3.
        frames: of a sound, in 10 ms.
    """

    card: str = "digits"
    input: str = "image"
    label: str = "label"
    split: str = "validation"
    size: Annotated[int, AtLeast(1)] = 8
    channels: Literal[1, 3] = 1
    frames: Annotated[int, AtLeast(1)] = 100


@dataclass
class Config:
    """The config of the recipe ``judge``.

    Args:
        encoder: settings of the input's encoder.
        distort: strength of the random distortion of training pictures, see `Classifier`; 0: none.
        fit: training of the classifier.
    """

    data: Data = section()
    encoder: dict[str, Any] = field(default_factory=dict)
    distort: Annotated[float, Share()] = 0.0
    fit: FitConfig = section()
    seed: int = 0
    seeds: int = 1


class Labelled(Sequence):
    """Rows of an input and its label as one of ``names``, `UNKNOWN` for any other; rows without a label are left out."""

    def __init__(self, data: Data, split: str, processor: Processor, names: list[str]) -> None:
        rows = labelled_rows(data, split)
        numbers = {name: i for i, name in enumerate(names)}
        self.labels = [numbers.get(str(label), UNKNOWN) for label in rows[data.label]]
        self.inputs, self.name, self.processor = rows[data.input], data.input, processor

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {self.name: self.inputs.read(index, self.processor), "label": torch.tensor(self.labels[index])}


def labelled_rows(data: Data, split: str) -> Rows:
    """The rows of a split that have a label.

    Raises:
        UserError: an input is missing, a label is none of the card's classes, or no row has a label.
    """
    return open_rows(data.card, split, [data.input], [data.label]).having(data.label)


def input_kind(data: Data) -> str:
    """The kind of the judged column: image, text, audio or vector."""
    return read_card(data.card).columns[data.input]["kind"]


def check(config: Config) -> None:
    """The columns are there, and the judged one is of a kind that classifiers read."""
    card = read_card(config.data.card)
    config.data.input = check_column(card, "data.input", config.data.input, *KINDS, one_text=True)
    config.data.label = check_column(card, "data.label", config.data.label)
    check_one_of("data.split", config.data.split, card.splits)


def make_processor(data: Data) -> Processor:
    """The processor of the judged column, fitted to the judge's own split where it has something to fit."""
    settings = {
        "image": {"size": data.size, "channels": data.channels, "mean": 0.5, "std": 0.5},
        "audio": {"frames": data.frames},
        "text": {"vocab_size": 4096, "max_length": None},
        "vector": {},
    }
    kind = input_kind(data)
    return fit_processor(kind, labelled_rows(data, data.split)[data.input], **settings[kind])


def train_judge(config: Config, run: Path, resume: bool) -> None:
    """Train the classifier on ``config.data.split``."""
    torch.manual_seed(config.seed)
    names = sorted({str(label) for label in labelled_rows(config.data, config.data.split)[config.data.label]})
    check_several_classes(f"{config.data.card}: {config.data.split}", config.data.label, names)
    processor = make_processor(config.data)
    kind = input_kind(config.data)
    shape = [processor.vocabulary] if kind == "text" else list(processor.shape)
    model = Classifier(config.data.input, kind, shape, len(names), config.encoder, names, config.distort)
    model.processors |= {config.data.input: processor, "label": LabelProcessor(names)}
    data = Labelled(config.data, config.data.split, processor, names)
    fit(model, data, replace(config.fit, seed=config.seed), run, resume=resume)


@torch.no_grad()
def evaluate(run: Path, config: Config, split: str) -> dict[str, float]:
    """Accuracy on a split the judge never saw; what is of a class that it was not trained on counts as wrong."""
    if split == config.data.split:
        others = [name for name in read_card(config.data.card).splits if name != split]
        fix = f"choose one of {', '.join(others)}" if others else "train with data.split=train and give the data another split"
        raise UserError("--split", got=split, expected="one the judge was not trained on", fix=fix)
    device = processes.device()
    model = load(run).to(device)
    data = Labelled(config.data, split, model.processors[config.data.input], model.class_names)
    right = 0
    for start in tqdm(range(0, len(data), 256), desc=f"judging {split}", dynamic_ncols=True):
        batch = collate([data[i] for i in range(start, min(start + 256, len(data)))], model.sequences).to(device)
        right += (model.predict(batch).mode == batch["label"]).sum().item()
    return {"accuracy": right / len(data), "judge_disjoint": config.data.split != "train"}


def report(run: Path, config: Config) -> None:
    """Write the run's ``README.md``: the accuracy that stands beside every figure this judge makes."""
    metrics = read_json(run / "metrics.json")
    lines = [f"- {split}: accuracy {100 * figures['accuracy']:.1f} %" for split, figures in metrics.items()]
    data = config.data
    title = f"# Judge of {data.label} from {data.input} ({read_card(data.card).name}, trained on its {data.split} split)"
    (run / "README.md").write_text("\n".join([title, "", *lines, ""]), encoding="utf-8")


def places(judge: Classifier, labels: Sequence[Any]) -> Tensor:
    """Which of the judge's classes each label is, (n,): `UNKNOWN` of one that it was not trained on, `UNLABELLED` of none.

    Raises:
        UserError: no item has a label.
    """
    place = {name: i for i, name in enumerate(judge.class_names)}
    found = torch.tensor([UNLABELLED if label in (None, "") else place.get(str(label), UNKNOWN) for label in labels])
    if not (found != UNLABELLED).any():
        fix = "label some rows, or leave the judge out"
        raise UserError("labels", got=f"none of {counted(len(found), 'item')}", expected="one or more", fix=fix)
    return found


def agreement(seen: Tensor, truth: Tensor) -> float:
    """The share of labelled items in which a judge sees what they show, all that are of unknown classes being wrong.

    Args:
        seen: the judge's classes, (n,).
        truth: as `places` gives it, (n,).

    >>> agreement(torch.tensor([0, 1, 1, 0]), torch.tensor([0, 0, UNKNOWN, UNLABELLED]))
    0.3333333333333333
    """
    return (seen == truth)[truth != UNLABELLED].double().mean().item()


def judge(config: Config) -> tuple[Classifier, float]:
    """The judge of this config with its held-out accuracy, trained at first use and then taken from the cache."""
    run = cached_run(RECIPE, config, "judges")
    file = run / "metrics.json"
    if not file.is_file():
        evaluate_run(RECIPE, config, run, "test", wait=True)
    return load(run), read_json(file)["test"]["accuracy"]


RECIPE = Recipe(
    name="judge",
    config=Config,
    stages={"judge": train_judge},
    main="judge",
    evaluate=evaluate,
    splits=("test", "validation", "train"),
    report=report,
    check=check,
)

if __name__ == "__main__":
    sys.exit(main(["train", "judge", *sys.argv[1:]]))
