"""Config sections ``data`` shared by several recipes, which check columns and open rows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

from torch import Tensor

from mmgen.conditioning.language_model import load_language_model
from mmgen.conditioning.representations import representation
from mmgen.data.cards import check_column, check_columns, read_card
from mmgen.data.image import ImageProcessor
from mmgen.data.processors import Processor
from mmgen.data.rows import DataSet, Rows, open_rows, texts_of
from mmgen.data.text import TextProcessor, train_tokenizer
from mmgen.errors import Mistakes, UserError, check_one_of
from mmgen.modalities.features import cached_features
from mmgen.modalities.kinds import COLUMNS, KINDS, fit_processor, processor_settings
from mmgen.ranges import AtLeast
from mmgen.storage import fingerprint

READER = ("language_model", "layers")  # settings of a text encoded as a vector


@dataclass
class PicturesWithTexts:
    """A data card of pictures and texts, one or several each.

    Args:
        card: the data card, by name or path.
        image: column of pictures.
        text: column of texts.
        label: column of classes for the judge of pictures; empty: none.
        tokenizer: folder or Hub name of a transformers tokenizer with an end of text; empty: one trained on the card's texts.
        vocab_size: most tokens of the trained tokenizer, 259 or more.
        text_length: most tokens of a text, end included.
        limit: items of each split; 0 takes all.
    """

    card: str = "openmoji"
    image: str = "image"
    text: str = "caption"
    label: str = ""
    tokenizer: str = ""
    vocab_size: Annotated[int, AtLeast(259)] = 1024
    text_length: Annotated[int, AtLeast(2)] = 32
    limit: Annotated[int, AtLeast(0)] = 0

    def check(self, path: str, errors: Mistakes) -> None:
        """Check the columns of pictures and texts."""
        check_columns(self, path, errors, {"image": ["image"], "text": ["text"]})

    def pairs(self, split: str, image: ImageProcessor, text: Processor | None = None, limit: int = 0) -> DataSet:
        """Pictures of a split and, with a text processor, their texts, for at most ``limit`` rows."""
        limits, columns = [n for n in (limit, self.limit) if n], {"image": self.image} | ({"text": self.text} if text else {})
        rows = open_rows(self.card, split, list(columns.values()), limit=min(limits, default=0))
        if text is None:
            return DataSet(rows, columns, {"image": image})
        return DataSet(rows, columns, {"image": image, "text": text}, "text", self.text_length)

    def words(self) -> TextProcessor:
        """The processor of texts, with the named tokenizer or one trained on the training split."""
        if self.tokenizer:
            return TextProcessor.from_pretrained(self.tokenizer)
        return train_tokenizer(texts_of(self.card, self.text, limit=self.limit), self.vocab_size)


@dataclass
class Modalities:
    """A data card whose items have several modalities, any of which may be missing.

    Args:
        card: the data card, by name or path.
        modalities: modality -> its ``column``, its ``kind`` (by default that of the column) and settings of its processor. A
            text with a ``language_model`` becomes a vector, its representation after the ``layers`` of that frozen model.
        label: column of classes.
        limit: training rows; 0 takes all.
    """

    card: str = "digits"
    modalities: dict[str, dict[str, Any]] = field(
        default_factory=lambda: {"image": {"column": "image", "size": 8, "channels": 1}, "text": {"column": "word"}}
    )
    label: str = "label"
    limit: Annotated[int, AtLeast(0)] = 0

    def check(self, path: str, errors: Mistakes) -> None:
        """Check that there are two or more modalities, of supported kinds."""
        for name, settings in self.modalities.items():
            with errors:
                self.check_modality(path, name, settings, errors)
        if len(self.modalities) < 2:
            fix = f"add one to {path}.modalities"
            raise UserError(f"{path}.modalities", got=", ".join(self.modalities) or "none", expected="two or more", fix=fix)

    def types(self, settings: Mapping[str, Any]) -> Sequence[str]:
        """The column types allowed for a modality of these settings."""
        return COLUMNS

    def check_modality(self, path: str, name: str, settings: dict[str, Any], errors: Mistakes) -> None:
        """Check the column and the settings of one modality."""
        card, types, key = read_card(self.card), self.types(settings), f"{path}.modalities.{name}"
        if "kind" in settings:
            types = [KINDS[check_one_of(f"{key}.kind", str(settings["kind"]), KINDS)].column]
        elif name in types and settings.get("column") not in card.columns:  # any column of this kind will do
            types = [name]
        settings["column"] = check_column(card, f"{key}.column", str(settings.get("column")), *types, one_text=True)
        kind = card.columns[settings["column"]]["kind"]
        known = ["column", "kind", *processor_settings(settings.get("kind") or kind), *(READER if kind == "text" else ())]
        for setting in settings:
            with errors:
                check_one_of(f"{key}.{setting}", setting, known)

    def kind_of(self, name: str) -> str:
        """The kind of a modality: its own, or that of its column; a text with a language model is a vector."""
        settings = self.modalities[name]
        if "language_model" in settings:
            return "vector"
        return settings.get("kind") or read_card(self.card).columns[settings["column"]]["kind"]

    def columns_of(self) -> list[str]:
        """The columns of the modalities."""
        return [settings["column"] for settings in self.modalities.values()]

    def rows(self, split: str, limit: int = 0) -> Rows:
        """The rows of a split.

        Raises:
            UserError: a row has no modality, or no text for a language model.
        """
        needs = [own["column"] for own in self.modalities.values() if "language_model" in own]
        others = [column for column in self.columns_of() if column not in needs]
        return open_rows(self.card, split, needs, others, limit).with_any(*self.columns_of())

    def column(self, name: str, rows: Rows) -> Sequence[Any] | Tensor:
        """The values of a modality; for a text with a language model, its cached representations."""
        settings = self.modalities[name]
        values, reader = rows[settings["column"]], settings.get("language_model")
        if not reader:
            return values
        model, tokenizer = load_language_model(reader)
        layers = settings.get("layers", [model.config.num_hidden_layers // 2])
        key = {"weights": fingerprint(model), "layers": layers, "data": [rows.fingerprint, settings["column"]]}

        def read(text: str) -> Tensor:  # lower case, as language models know few capitalised words
            return representation(model, tokenizer, text.lower() if text.isupper() else text, layers)

        return cached_features(lambda x: {"features": x}, values, read, key)["features"]

    def items(self, processors: Mapping[str, Processor], split: str, limit: int = 0) -> DataSet:
        """The modalities of a split as tensors."""
        rows = self.rows(split, limit)
        return DataSet(rows, {name: self.column(name, rows) for name in self.modalities}, processors)

    def processors(self) -> dict[str, Processor]:
        """The processor of each modality, fitted to the training split if necessary."""
        rows, processors = self.rows("train", self.limit), {}
        for name, settings in self.modalities.items():
            own = {key: value for key, value in settings.items() if key not in ("column", "kind", *READER)}
            processors[name] = fit_processor(self.kind_of(name), self.column(name, rows), **own)
        return processors
