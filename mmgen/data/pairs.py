"""Pictures of a data card with their texts."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from tqdm.auto import tqdm

from mmgen.data.batch import Batch, collate
from mmgen.data.image import ImageProcessor
from mmgen.data.processors import Processor
from mmgen.data.rows import open_rows
from mmgen.errors import UserError


def texts_of(card: str, column: str, split: str = "train", limit: int = 0) -> list[str]:
    """The texts of a column of one or several a row, of the first ``limit`` rows, 0 for all.

    Raises:
        UserError: one is missing.

    >>> texts_of("digits", "caption", limit=2)
    ['a handwritten zero', 'a handwritten one']
    """
    return [text for texts in open_rows(card, split, [column], limit=limit)[column].texts() for text in texts]


class Pairs(Sequence):
    """Items of a picture and one of its texts, in the order of the card; or of pictures alone. A model reads them as it is.

    A picture is decoded once and then kept, a byte a value.

    Args:
        card: name or path of a data card.
        split: of it.
        columns: that of the pictures, and that of their texts, one or several each.
        image: reads a picture.
        text: reads a text; None: pictures alone, each once.
        length: most tokens of a text, its end included.
        limit: rows of the split; 0 takes all.

    Raises:
        UserError: a picture or text that is missing or cannot be read, a text longer than ``length``; the message names the
            card, the split, the row and the column.

    >>> pairs = Pairs("digits", "test", ("image", "caption"), ImageProcessor(8, 1), limit=3)
    >>> len(pairs), pairs[0]["image"].shape
    (3, torch.Size([1, 8, 8]))
    """

    def __init__(
        self,
        card: str,
        split: str,
        columns: tuple[str, str],
        image: ImageProcessor,
        text: Processor | None = None,
        length: int | None = None,
        limit: int = 0,
    ) -> None:
        self.rows = open_rows(card, split, columns[: 1 if text is None else 2], limit=limit)
        self.image, self.eye = image, replace(image, mean=0.0, std=1.0)
        self.pictures = self.rows[columns[0]]
        self.kept: dict[int, Tensor] = {}
        self.items = list(range(len(self.rows)))  # the row of each
        self.texts: list[str] = []
        self.ids: list[Tensor] = []
        if text is None:
            return
        told = self.rows[columns[1]].texts()
        self.items = [row for row, texts in enumerate(told) for _ in texts]
        self.texts = [text for texts in told for text in texts]
        read: dict[str, Tensor] = {}
        for row, value in zip(self.items, self.texts):
            if value not in read:
                with self.rows.at(row, columns[1]):
                    read[value] = text(value)
            self.ids.append(read[value])
        longest = max(range(len(self)), key=lambda i: len(self.ids[i]), default=None)
        if longest is not None and length is not None and (most := len(self.ids[longest])) > length:
            what, got = self.rows.place(self.items[longest], columns[1]), f"{most} tokens: {self.texts[longest]!r}"
            raise UserError(what, got=got, expected=f"at most {length}", fix=f"set data.text_length={most}")

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"image": self.picture(index)} | ({"text": self.ids[index]} if self.ids else {})

    def picture(self, index: int) -> Tensor:
        """That of an item, (c, h, w)."""
        row = self.items[index]
        if row not in self.kept:
            self.kept[row] = (self.pictures.read(row, self.eye) * 255).round().to(torch.uint8)
        return self.image.standardise(self.kept[row])

    def all(self, count: int | None = None) -> Tensor:
        """The pictures of the first ``count`` items, or of all, (n, c, h, w)."""
        return torch.stack([self.picture(i) for i in range(len(self))[:count]])

    def batch(self, items: Sequence[int]) -> Batch:
        """Those at ``items`` together."""
        return collate([self[i] for i in items], ["text"])

    def batches(self, what: str, size: int = 100) -> Iterator[Batch]:
        """All, ``size`` at a time, below a progress bar that says ``what``."""
        for start in tqdm(range(0, len(self), size), desc=what, dynamic_ncols=True):
            yield self.batch(range(start, min(start + size, len(self))))
