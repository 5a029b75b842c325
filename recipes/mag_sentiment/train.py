"""The Multimodal Adaptation Gate: sound and picture shift the hidden states of a transformer that reads the words.

mmgen train mag_sentiment                               # sentiment of utterances, read under $MMGEN_DATA/cmu_mosi_utterances
accelerate launch recipes/mag_sentiment/train.py --config recipes/mag_sentiment/gpu.yaml
"""

import inspect
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path

import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, f1_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from mmgen import processes
from mmgen.cli import main
from mmgen.data.cards import check_column, class_names, read_card
from mmgen.data.label import LabelProcessor
from mmgen.data.rows import DataSet, check_several_classes, open_rows
from mmgen.errors import UserError, check_at_least, check_one_of
from mmgen.modalities.kinds import fit_processor
from mmgen.models.base import load
from mmgen.models.mag import AdaptedTransformer
from mmgen.storage import read_json
from mmgen.training.config import FitConfig, section_of
from mmgen.training.loop import fit
from mmgen.training.recipe import Recipe, run_details, stage_folder
from mmgen.training.report import write_report

AT_ONCE = 64  # items read together in evaluation
GIVEN = ("features", "classes", "class_names")  # what the data decide


@dataclass
class Data:
    """A data card; its columns of texts and of labels, modality -> column of its features; how many training rows (0: all).

    ``text_features`` names a column of vectors that tell of the text too: a logistic regression on it is one more baseline.
    """

    card: str = "cmu_mosi"
    text: str = "transcript"
    features: dict[str, str] = field(default_factory=lambda: {"audio": "audio_features", "video": "video_features"})
    label: str = "label"
    text_features: str = ""
    limit: int = 0


@dataclass
class Config:
    """The config of the recipe ``mag_sentiment``; the transformer alone is tuned by the same values."""

    data: Data = field(default_factory=Data)
    model: section_of(AdaptedTransformer) = field(default_factory=section_of(AdaptedTransformer))
    fit: FitConfig = field(default_factory=FitConfig)
    seed: int = 0
    seeds: int = 1


def items(model: AdaptedTransformer, data: Data, split: str, limit: int = 0) -> DataSet:
    """The items of a card's split that have a label, as a model's processors read them; modalities may be missing."""
    columns = {name: {"text": data.text, **data.features}[name] for name in model.inputs}
    rows = open_rows(data.card, split, [], [data.text, *data.features.values(), data.label], limit)
    rows = rows.with_any(*columns.values()).having(data.label)
    return DataSet(rows, {**columns, "label": data.label}, {name: model.processors[name] for name in columns})


def check(config: Config) -> None:
    """The columns are there and of kinds the model reads; the data decide what they have to."""
    card, data = read_card(config.data.card), config.data
    data.text = check_column(card, "data.text", data.text, "text", one_text=True)
    data.label = check_column(card, "data.label", data.label, "label")
    check_several_classes(card.name, data.label, class_names(card, data.label))
    check_at_least("data.limit", data.limit, 0)
    if not data.features:
        fix = "name a column of vectors, as in {audio: audio_features}"
        raise UserError("data.features", got="none", expected="a modality beside the text", fix=fix)
    for name, column in data.features.items():
        check_column(card, f"data.features.{name}", column, "vector")
    if data.text_features:
        data.text_features = check_column(card, "data.text_features", data.text_features, "vector")
    for name in config.model.noise or {}:
        check_one_of("model.noise", name, data.features)
    for name in GIVEN:
        value, default = getattr(config.model, name), inspect.signature(AdaptedTransformer).parameters[name].default
        if value != default:
            raise UserError(f"model.{name}", got=value, expected="what the data card decides", fix="leave it out")


def build(config: Config, gate: bool) -> AdaptedTransformer:
    """The model for the config's data, or the transformer alone."""
    data, names = config.data, class_names(read_card(config.data.card), config.data.label)
    rows = open_rows(data.card, "train", [], list(data.features.values()), data.limit)
    processors = {name: fit_processor("vector", rows[column]) for name, column in data.features.items()} if gate else {}
    given = {"features": {name: p.shape[0] for name, p in processors.items()}, "classes": len(names), "class_names": names}
    model = AdaptedTransformer(**{**asdict(config.model), **given, "noise": config.model.noise if gate else None})
    model.processors |= {**processors, "label": LabelProcessor(names)}
    return model


def train(config: Config, run: Path, resume: bool, gate: bool = True) -> None:
    """Tune the transformer with the gate inside, or alone, on the card's training split."""
    torch.manual_seed(config.seed)
    model = build(config, gate)
    data = items(model, config.data, "train", config.data.limit)
    folder = stage_folder(RECIPE, run, "mag" if gate else "text")
    fit(model, data, replace(config.fit, seed=config.seed), folder, resume=resume)


def scores(model: AdaptedTransformer, data: DataSet, without: Sequence[str] = ()) -> tuple[float, float]:
    """Accuracy, and the F1 of each label weighted by how frequent it is, with some modalities missing."""
    texts = [data.read("text", i) for i in range(len(data))]
    order = sorted(range(len(data)), key=lambda i: 0 if texts[i] is None else len(texts[i]))  # little padding is read
    batches = data.batches("", AT_ONCE, order, processes.device())
    read = [(model.predict(batch.without("label", *without)).mode, batch["label"]) for batch in batches]
    predicted, labels = (torch.cat(part).tolist() for part in zip(*read))
    return float(accuracy_score(labels, predicted)), float(f1_score(labels, predicted, average="weighted"))


def regression(data: Data, split: str) -> float:
    """Accuracy of a logistic regression on the standardised features of the text."""
    columns = [data.text_features], [data.label]
    train, held = (open_rows(data.card, name, *columns).having(data.label) for name in ("train", split))
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=1000))
    model.fit(train[data.text_features][:], train[data.label][:])
    return float(model.score(held[data.text_features][:], held[data.label][:]))


@torch.no_grad()
def evaluate(run: Path, config: Config, split: str) -> dict[str, float]:
    """Accuracy and F1 of the model and of the transformer alone; that of the model without each modality, and of baselines."""
    device = processes.device()
    model, text = (load(stage_folder(RECIPE, run, stage)).to(device) for stage in ("mag", "text"))
    data, words = items(model, config.data, split), items(text, config.data, split)
    figures = {}
    figures["accuracy"], figures["f1"] = scores(model, data)
    figures["accuracy_text"], figures["f1_text"] = scores(text, words)
    labels = data.raw(config.data.label)
    figures["accuracy_majority"] = max(Counter(labels).values()) / len(labels)  # the best that one answer can do
    if config.data.text_features:
        figures["accuracy_text_features"] = regression(config.data, split)
    for name in model.inputs:
        figures[f"accuracy_no_{name}"], _ = scores(model, data, [name])
    if len(model.inputs) > 2:
        figures["accuracy_only_text"], _ = scores(model, data, model.inputs[1:])
    return figures


def report(run: Path, config: Config) -> None:
    """Write ``report.html`` and ``README.md`` from the metrics that evaluations left in ``run``."""
    card, details, table = read_card(config.data.card), run_details(run), {}
    lines = [
        f"# {config.data.label} of {card.name}, from words, sound and picture",
        "",
        "```sh",
        details["command"],
        "```",
        "",
    ]
    for split, figures in read_json(run / "metrics.json").items():
        mag = {"accuracy": figures["accuracy"], "f1": figures["f1"]}
        table[split] = {"mag": mag, "text": {"accuracy": figures["accuracy_text"], "f1": figures["f1_text"]}}
        table[split] |= {
            key.removeprefix("accuracy_").replace("_", " "): {"accuracy": value}
            for key, value in figures.items()
            if key.startswith("accuracy_") and key != "accuracy_text"
        }
        lines += [f"## {split}", "", "| figure | |", "| --- | ---: |", *(f"| {k} | {v:.3f} |" for k, v in figures.items()), ""]
    (run / "README.md").write_text("\n".join(lines), encoding="utf-8")
    summary = (
        "mag: a transformer reads the words, its hidden states shifted by the other modalities. text: the same transformer, "
        "tuned alone. text features: a logistic regression. no NAME: the first one with that modality missing."
    )
    write_report(run / "report.html", f"Adaptation gate on {card.name}", table, [], details, summary)


RECIPE = Recipe(
    name="mag_sentiment",
    config=Config,
    stages={"mag": train, "text": partial(train, gate=False)},
    main="mag",
    evaluate=evaluate,
    splits=("test", "validation"),
    report=report,
    check=check,
    above={"accuracy": ("accuracy_text", "accuracy_majority")},
)

if __name__ == "__main__":
    sys.exit(main(["train", "mag_sentiment", *sys.argv[1:]]))
