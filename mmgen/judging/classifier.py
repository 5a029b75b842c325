"""Judges: classifiers of generated pictures, sounds or texts, trained on other data than the models they judge."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from mmgen import processes
from mmgen.data.batch import collate
from mmgen.data.cards import check_columns, read_card
from mmgen.data.label import UNLABELLED, LabelProcessor, class_indices
from mmgen.data.processors import Processor
from mmgen.data.rows import DataSet, Rows, check_several_classes, open_rows
from mmgen.errors import Mistakes, UserError, check_one_of, counted
from mmgen.modalities.kinds import COLUMNS, KINDS, fit_processor, processor_settings
from mmgen.models.base import load
from mmgen.models.classifier import Classifier
from mmgen.ranges import AtLeast, Share
from mmgen.storage import read_json
from mmgen.training.config import FitConfig, section
from mmgen.training.nested import nested_config
from mmgen.training.recipe import Recipe, RecipeConfig, stage
from mmgen.training.result import Result
from mmgen.training.run import Run
from mmgen.training.study import cached_run
from mmgen.training.study import evaluate as evaluate_run

AT_ONCE = 250  # values classified together


@dataclass
class JudgeData:
    """A data card and its columns.

    Args:
        card: the data card, by name or path.
        input: column to judge.
        label: column of classes to predict.
        split: training split of the judge; as models train on ``train``, any other split is disjoint.
        size: side of a picture in pixels.
        channels: channels of a picture, 1 or 3.
        frames: length of a sound, in 10 ms.
    """

    card: str = "digits"
    input: str = "image"
    label: str = "label"
    split: str = "validation"
    size: Annotated[int, AtLeast(1)] = 8
    channels: Literal[1, 3] = 1
    frames: Annotated[int, AtLeast(1)] = 100

    @property
    def kind(self) -> str:
        """The kind of the judged column: image, text, audio or vector."""
        return read_card(self.card).columns[self.input]["kind"]


@dataclass
class JudgeConfig(RecipeConfig):
    """The config of the recipe ``judge``.

    Args:
        encoder: settings of the input's encoder.
        distort: strength of the random distortions of training pictures, see `mmgen.models.classifier.Classifier`.
    """

    data: JudgeData = section()
    encoder: dict[str, Any] = field(default_factory=dict)
    distort: Annotated[float, Share()] = 0.0
    fit: FitConfig = section()

    def check(self, errors: Mistakes) -> None:
        """Check that the columns exist, and that a classifier can read the input."""
        check_columns(self.data, "data", errors, {"input": COLUMNS}, one_text=True)
        check_columns(self.data, "data", errors, {"label": []})
        check_one_of("data.split", self.data.split, read_card(self.data.card).splits)


def judge_config(path: str, values: Mapping[str, Any]) -> JudgeConfig:
    """The checked config of a judge that the evaluation of another recipe trains, see `nested_config`.

    Raises:
        UserError: an error of the config, or the judge is trained on the split ``test``, on which it is evaluated.
    """
    config = nested_config(path, JudgeConfig, values)
    if config.data.split == "test":
        others = [name for name in read_card(config.data.card).splits if name != "test"]
        fix = f"choose one of {', '.join(others)}" if others else "choose a card with more splits"
        expected = "another split, as judges are evaluated on test"
        raise UserError(f"{path}.data.split", got="test", expected=expected, fix=fix)
    return config


def labelled_rows(data: JudgeData, split: str) -> Rows:
    """The rows of a split that have a label.

    Raises:
        UserError: an input is missing, a label is none of the card's classes, or no row has a label.
    """
    return open_rows(data.card, split, [data.input], [data.label]).having(data.label)


def labelled(data: JudgeData, split: str, processor: Processor, names: list[str]) -> DataSet:
    """The labelled rows of a split: the input, and its label as one of ``names``, see `class_indices`."""
    rows = labelled_rows(data, split)
    columns: dict[str, str | Tensor] = {data.input: data.input, "label": class_indices(rows[data.label][:], names)}
    return DataSet(rows, columns, {data.input: processor})


def make_processor(data: JudgeData) -> Processor:
    """The processor of the input column, fitted to the training split of the judge if necessary."""
    settings: dict[str, Any] = {"size": data.size, "channels": data.channels, "mean": 0.5, "std": 0.5, "frames": data.frames}
    settings |= {"vocab_size": 4096, "max_length": None}
    own = {name: settings[name] for name in processor_settings(data.kind) if name in settings}
    return fit_processor(data.kind, labelled_rows(data, data.split)[data.input], **own)


@stage()
def judge(run: Run, config: JudgeConfig) -> None:
    """Train the classifier on ``config.data.split``."""
    data = config.data
    names = sorted({str(label) for label in labelled_rows(data, data.split)[data.label]})
    check_several_classes(f"{data.card}: {data.split}", data.label, names)
    processor: Any = make_processor(data)
    shape = [processor.vocabulary] if KINDS[data.kind].tokens else list(processor.shape)
    model = Classifier(data.input, data.kind, shape, len(names), config.encoder, names, config.distort)
    model.processors |= {data.input: processor, "label": LabelProcessor(names)}
    run.fit(model, labelled(data, data.split, processor, names), config.fit)


@torch.no_grad()
def evaluate(run: Run, config: JudgeConfig, split: str) -> Result:
    """Accuracy on a split that the judge was not trained on; items of unknown classes count as wrong."""
    if split == config.data.split:
        others = [name for name in read_card(config.data.card).splits if name != split]
        fix = f"choose one of {', '.join(others)}" if others else "train with data.split=train and give the data another split"
        raise UserError("--split", got=split, expected="one the judge was not trained on", fix=fix)
    model, right = run.load(), 0
    data = labelled(config.data, split, model.processors[config.data.input], model.class_names)
    for batch in data.batches(f"judging {split}", AT_ONCE, device=processes.device()):
        right += (model.predict(batch).mode == batch["label"]).sum().item()
    result = Result("judge", about={"judge_disjoint": config.data.split != "train"})
    result["judge"] = {"accuracy": right / len(data)}
    return result


JUDGE = Recipe("judge", JudgeConfig, [judge], evaluate, splits=("test", "validation", "train"))


@dataclass(frozen=True)
class Judge:
    """A trained judge.

    Args:
        model: the classifier.
        accuracy: its accuracy on held-out data.
        split: the split of its card that it was trained on.
    """

    model: Classifier
    accuracy: float
    split: str

    @property
    def class_names(self) -> list[str]:
        """The names of its classes."""
        return self.model.class_names or []

    def about(self, end: str = "") -> dict[str, float]:
        """Figures to report beside its judgements: its accuracy, and True if models are trained on other data."""
        return {f"judge_accuracy{end}": self.accuracy, "judge_disjoint": self.split != "train"}

    def reads(self, processor: Processor, values: Iterable[Tensor]) -> Tensor:
        """The class in each generated value, (n,): indices of `class_names`, -1 in an empty text.

        Args:
            processor: processor of the generating model.
            values: n tensors generated by the model.
        """
        if processor.kind == "audio" and processor == self.model.processors[self.model.modality]:
            return self._classes([value.cpu() for value in values])  # same spectrograms: no conversion to a waveform
        return self.reads_raw([processor.decode(value) for value in values])

    def reads_raw(self, values: Sequence[Any]) -> Tensor:
        """The class in each picture, sound or text, (n,): indices of `class_names`, -1 in an empty text."""
        own = self.model.processors[self.model.modality]
        return self._classes([None if isinstance(value, str) and not value.strip() else own(value) for value in values])

    @torch.no_grad()
    def _classes(self, values: Sequence[Tensor | None]) -> Tensor:
        model, found = self.model, torch.full((len(values),), -1)
        there = torch.tensor([value is not None for value in values])
        for index in there.nonzero().squeeze(1).split(AT_ONCE):
            batch = collate([{model.modality: values[i]} for i in index.tolist()], model.sequences)
            found[index] = model.predict(batch.to(processes.device())).mode.cpu()
        return found

    def classes_of(self, labels: Sequence[Any]) -> Tensor:
        """The class index of each label, (n,), see `class_indices`.

        Raises:
            UserError: no item has a label.
        """
        found = class_indices(labels, self.class_names)
        if not (found != UNLABELLED).any():
            fix = "label some rows, or leave the judge out"
            raise UserError("labels", got=f"none of {counted(len(found), 'item')}", expected="one or more", fix=fix)
        return found


def trained_judge(config: JudgeConfig) -> Judge:
    """The judge of this config, trained and evaluated at first use, then cached."""
    run = cached_run(JUDGE, config, "judges")
    file = run / "metrics.json"
    if not file.is_file():
        evaluate_run(JUDGE, config, run, "test", wait=True)
    model: Any = load(run).to(processes.device())
    return Judge(model, read_json(file)["test"]["accuracy"], config.data.split)


def agreement(found: Tensor, truth: Tensor) -> float:
    """The share of labelled items whose label the judge predicts; items of unknown classes count as wrong.

    Args:
        found: predicted classes, (n,).
        truth: true classes from `Judge.classes_of`, (n,).

    >>> agreement(torch.tensor([0, 1, 1, 0]), class_indices(["a", "a", "c", None], ["a", "b"]))
    0.3333333333333333
    """
    return (found == truth)[truth != UNLABELLED].double().mean().item()
