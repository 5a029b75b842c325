"""Sections ``data`` of configs that several recipes share: each checks its columns and opens its rows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

from mmgen.data.cards import check_column, read_card
from mmgen.data.image import ImageProcessor
from mmgen.data.processors import Processor
from mmgen.data.rows import DataSet, Rows, open_rows, texts_of
from mmgen.data.text import TextProcessor, train_tokenizer
from mmgen.errors import UserError, check_one_of
from mmgen.modalities.kinds import COLUMNS, KINDS, fit_processor, processor_settings
from mmgen.ranges import AtLeast


@dataclass
class PicturesWithTexts:
    """A data card of pictures and texts, one or several each.

    Args:
        card: name or path.
        image: the column of pictures.
        text: the column of texts.
        label: the column of classes that a judge reads in a picture; empty: none.
        tokenizer: of transformers, a folder or a Hub name, that has an end of text; empty: one trained on the training texts.
        vocab_size: most tokens of the trained one, 259 or more.
        text_length: most tokens of a text, its end included.
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

    def check(self, path: str) -> None:
        """Check that the columns of pictures and texts are there."""
        card = read_card(self.card)
        self.image = check_column(card, f"{path}.image", self.image, "image")
        self.text = check_column(card, f"{path}.text", self.text, "text")

    def pairs(self, split: str, image: ImageProcessor, text: Processor | None = None, limit: int = 0) -> DataSet:
        """The pictures of a split and, with a text processor, their texts, of at most ``limit`` rows."""
        limits, columns = [n for n in (limit, self.limit) if n], {"image": self.image} | ({"text": self.text} if text else {})
        rows = open_rows(self.card, split, list(columns.values()), limit=min(limits, default=0))
        if text is None:
            return DataSet(rows, columns, {"image": image})
        return DataSet(rows, columns, {"image": image, "text": text}, "text", self.text_length)

    def words(self) -> TextProcessor:
        """The tokenizer of that name, or one trained on the texts of the training split."""
        if self.tokenizer:
            return TextProcessor.from_pretrained(self.tokenizer)
        return train_tokenizer(texts_of(self.card, self.text, limit=self.limit), self.vocab_size)


@dataclass
class Modalities:
    """A data card whose items have several modalities, any of which may be missing.

    Args:
        card: name or path.
        modalities: modality -> its ``column``, its ``kind`` (by default that of the column) and the settings of its processor.
        label: the column of classes.
        limit: training rows; 0 takes all.
    """

    card: str = "digits"
    modalities: dict[str, dict[str, Any]] = field(
        default_factory=lambda: {"image": {"column": "image", "size": 8, "channels": 1}, "text": {"column": "word"}}
    )
    label: str = "label"
    limit: Annotated[int, AtLeast(0)] = 0

    def check(self, path: str) -> None:
        """Check that there are two modalities or more, of kinds that models read."""
        if len(self.modalities) < 2:
            fix = f"add one to {path}.modalities"
            raise UserError(f"{path}.modalities", got=", ".join(self.modalities) or "none", expected="two or more", fix=fix)
        for name, settings in self.modalities.items():
            self.check_modality(name, settings)

    def check_modality(
        self,
        name: str,
        settings: dict[str, Any],
        columns: Sequence[str] = COLUMNS,
        more: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        """Check the column and the settings of one modality.

        Args:
            name, settings: of the modality.
            columns: types of columns that can be read.
            more: kind of column -> settings beside those of its processor.
        """
        card, key = read_card(self.card), f"data.modalities.{name}"
        if "kind" in settings:
            columns = [KINDS[check_one_of(f"{key}.kind", str(settings["kind"]), KINDS)].column]
        elif name in columns and settings.get("column") not in card.columns:  # another column of the same kind will do
            columns = [name]
        settings["column"] = check_column(card, f"{key}.column", str(settings.get("column")), *columns, one_text=True)
        kind = self.kind_of(name)
        known = ["column", "kind", *processor_settings(kind), *(more or {}).get(kind, ())]
        for setting in settings:
            check_one_of(f"{key}.{setting}", setting, known)

    def kind_of(self, name: str) -> str:
        """The kind of a modality: its own, or that of its column."""
        settings = self.modalities[name]
        return settings.get("kind") or read_card(self.card).columns[settings["column"]]["kind"]

    def columns_of(self) -> list[str]:
        """The columns of the modalities."""
        return [settings["column"] for settings in self.modalities.values()]

    def rows(self, split: str, limit: int = 0) -> Rows:
        """The rows of a split.

        Raises:
            UserError: a row has none of the modalities.
        """
        return open_rows(self.card, split, [], self.columns_of(), limit).with_any(*self.columns_of())

    def items(self, processors: dict[str, Processor], split: str, limit: int = 0) -> DataSet:
        """The modalities of a split as tensors."""
        rows = self.rows(split, limit)
        return DataSet(rows, {name: settings["column"] for name, settings in self.modalities.items()}, processors)

    def processors(self) -> dict[str, Processor]:
        """The processor of each modality, fitted to the training split where it has something to fit."""
        rows, processors = self.rows("train", self.limit), {}
        for name, settings in self.modalities.items():
            own = {key: value for key, value in settings.items() if key not in ("column", "kind")}
            processors[name] = fit_processor(self.kind_of(name), rows[settings["column"]], **own)
        return processors
