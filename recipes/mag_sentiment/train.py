"""The Multimodal Adaptation Gate: sound and picture shift the hidden states of a transformer that reads the words.

mmgen train mag_sentiment                               # sentiment of utterances, read under $MMGEN_DATA/cmu_mosi_utterances
accelerate launch recipes/mag_sentiment/train.py --config recipes/mag_sentiment/gpu.yaml
"""

import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Annotated

import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, f1_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from mmgen import processes
from mmgen.cli import main
from mmgen.data.cards import check_column, check_columns, class_names, read_card
from mmgen.data.label import LabelProcessor
from mmgen.data.rows import DataSet, check_several_classes, open_rows
from mmgen.errors import Mistakes, UserError
from mmgen.modalities.kinds import fit_processor
from mmgen.models.mag import AdaptedTransformer
from mmgen.ranges import AtLeast
from mmgen.training.config import FitConfig, check_decided, section, section_of
from mmgen.training.recipe import Recipe, RecipeConfig, stage
from mmgen.training.result import Figures, Result
from mmgen.training.run import Run

AT_ONCE = 64  # items read together in evaluation


@dataclass
class Data:
    """A data card and its columns.

    Args:
        card: the data card, by name or path.
        text: the column of texts.
        features: modality -> the column of its features.
        label: the column of labels.
        text_features: features of the text too; a logistic regression on them is one more baseline.
        limit: training rows; 0 takes all.
    """

    card: str = "cmu_mosi"
    text: str = "transcript"
    features: dict[str, str] = field(default_factory=lambda: {"audio": "audio_features", "video": "video_features"})
    label: str = "label"
    text_features: str = ""
    limit: Annotated[int, AtLeast(0)] = 0

    def check(self, path: str, errors: Mistakes) -> None:
        """Check that the columns are there and of kinds the model reads."""
        check_columns(self, path, errors, {"text": ["text"]}, one_text=True)
        if self.text_features:
            check_columns(self, path, errors, {"text_features": ["vector"]})
        if not self.features:
            fix = "name a column of vectors, as in {audio: audio_features}"
            errors.append(UserError(f"{path}.features", got="none", expected="a modality beside the text", fix=fix))
        card = read_card(self.card)
        for name, column in self.features.items():
            with errors:
                check_column(card, f"{path}.features.{name}", column, "vector")
        self.label = check_column(card, f"{path}.label", self.label, "label")
        check_several_classes(card.name, self.label, class_names(card, self.label))


@dataclass
class Config(RecipeConfig):
    """The config of the recipe ``mag_sentiment``; the transformer alone is tuned by the same values."""

    data: Data = section()
    model: section_of(AdaptedTransformer) = section()
    fit: FitConfig = section()

    def check(self, errors: Mistakes) -> None:
        """Check that model arguments set by the data keep their defaults, and that noise is of a modality."""
        errors.check_each("model.noise", self.model.noise or {}, self.data.features)
        check_decided("model", self.model, ["features", "classes", "class_names"], "the data card sets")


def items(model: AdaptedTransformer, data: Data, split: str, limit: int = 0) -> DataSet:
    """The items of a card's split that have a label, as a model's processors read them; modalities may be missing."""
    columns = {name: {"text": data.text, **data.features}[name] for name in model.inputs}
    rows = open_rows(data.card, split, [], [data.text, *data.features.values(), data.label], limit)
    rows = rows.with_any(*columns.values()).having(data.label)
    return DataSet(rows, {**columns, "label": data.label}, {name: model.processors[name] for name in columns})


def build(config: Config, gate: bool) -> AdaptedTransformer:
    """The model for the config's data, or the transformer alone."""
    data, names = config.data, class_names(read_card(config.data.card), config.data.label)
    rows = open_rows(data.card, "train", [], list(data.features.values()), data.limit)
    processors = {name: fit_processor("vector", rows[column]) for name, column in data.features.items()} if gate else {}
    given = {"features": {name: p.shape[0] for name, p in processors.items()}, "classes": len(names), "class_names": names}
    model = AdaptedTransformer(**{**asdict(config.model), **given, "noise": config.model.noise if gate else None})
    model.processors |= {**processors, "label": LabelProcessor(names)}
    return model


@stage()
def mag(run: Run, config: Config, gate: bool = True) -> None:
    """Tune the transformer, with the gate inside or alone, on the card's training split."""
    model = build(config, gate)
    run.fit(model, items(model, config.data, "train", config.data.limit), config.fit)


def scores(model: AdaptedTransformer, data: DataSet, without: Sequence[str] = ()) -> Figures:
    """Accuracy, and the F1 of each label weighted by how frequent it is, with some modalities missing."""
    texts = [data.read("text", i) for i in range(len(data))]
    order = sorted(range(len(data)), key=lambda i: 0 if texts[i] is None else len(texts[i]))  # little padding is read
    batches = data.batches("", AT_ONCE, order, processes.device())
    read = [(model.predict(batch.without("label", *without)).mode, batch["label"]) for batch in batches]
    predicted, labels = (torch.cat(part).tolist() for part in zip(*read))
    f1 = f1_score(labels, predicted, average="weighted")
    return {"accuracy": float(accuracy_score(labels, predicted)), "f1": float(f1)}


def regression(data: Data, split: str) -> float:
    """Accuracy of a logistic regression on the standardised features of the text."""
    columns = [data.text_features], [data.label]
    train, held = (open_rows(data.card, name, *columns).having(data.label) for name in ("train", split))
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=1000))
    model.fit(train[data.text_features][:], train[data.label][:])
    return float(model.score(held[data.text_features][:], held[data.label][:]))


@torch.no_grad()
def evaluate(run: Run, config: Config, split: str) -> Result:
    """Accuracy and F1 of the model and of the transformer alone; accuracy with each modality removed, and baselines."""
    model, text = run.load("mag"), run.load("text")
    data = items(model, config.data, split)
    labels = {"mag": "with the gate", "text": "transformer alone", "majority": "most frequent label", "only_text": "text only"}
    labels |= {"text_features": "logistic regression", **{f"no_{name}": f"{name} missing" for name in model.inputs}}
    result = Result("mag", labels=labels)
    result["mag"] = scores(model, data)
    result["text"] = scores(text, items(text, config.data, split))
    accuracy = {"majority": max(Counter(data.raw(config.data.label)).values()) / len(data)}  # the best that one answer can do
    if config.data.text_features:
        accuracy["text_features"] = regression(config.data, split)
    accuracy |= {f"no_{name}": scores(model, data, [name])["accuracy"] for name in model.inputs}
    if len(model.inputs) > 2:
        accuracy["only_text"] = scores(model, data, model.inputs[1:])["accuracy"]
    result.update({name: {"accuracy": value} for name, value in accuracy.items()})
    return result


RECIPE = Recipe(
    "mag_sentiment", Config, [mag, mag.named("text", gate=False)], evaluate, main="mag",
    above={"accuracy": ("accuracy_text", "accuracy_majority")},
)  # fmt: skip

if __name__ == "__main__":
    sys.exit(main(["train", "mag_sentiment", *sys.argv[1:]]))
