"""Vectors of counts: whole numbers of 0 or more, which a model reads as they are."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from mmgen.data.vector import as_vector, stacked
from mmgen.errors import UserError, check_at_least, counted

MOST = 2**24  # float32 holds every whole number up to it


@dataclass(frozen=True)
class CountProcessor:
    """d whole numbers of 0 or more -> (d,) float32, and back.

    Args:
        size: d, 1 or more.

    Raises:
        UserError: a size below 1; a value of another length, or one that holds a negative, fractional or too large number.

    >>> import torch
    >>> processor = CountProcessor(3)
    >>> processor("0,2,7"), processor.decode(torch.tensor([0.2, 1.8, 7.0]))
    (tensor([0., 2., 7.]), [0, 2, 7])
    """

    size: int
    kind: ClassVar[str] = "counts"

    def __post_init__(self) -> None:
        check_at_least("size", self.size, 1)

    @staticmethod
    def read(value: Sequence[float] | Tensor | str | Path) -> Tensor:
        """Counts, or text or a file that holds them, see `mmgen.data.vector.read_numbers` -> (d,) float64."""
        counts = as_vector(value)
        wrong = (counts < 0) | (counts != counts.round()) | (counts > MOST)
        if wrong.any():
            at = int(wrong.nonzero()[0])
            fix = "correct it, or read the column as a vector"
            raise UserError("counts", got=f"{counts[at]:g} at entry {at}", expected=f"whole numbers 0..{MOST}", fix=fix)
        return counts

    @classmethod
    def fit(cls, rows: Iterable[Any]) -> "CountProcessor":
        """Make a processor of the length that all ``rows`` have."""
        return cls(stacked(cls.read(row) for row in rows).shape[1])

    @property
    def shape(self) -> tuple[int]:
        """(d,) of the tensors."""
        return (self.size,)

    def __call__(self, value: Sequence[float] | Tensor | str | Path) -> Tensor:
        """d counts, see `read` -> (d,) float32."""
        counts = self.read(value)
        if len(counts) != self.size:
            expected, fix = counted(self.size, "count"), "give as many as the training data have"
            raise UserError("counts", got=counted(len(counts), "number"), expected=expected, fix=fix)
        return counts.float()

    def decode(self, tensor: Tensor) -> list[int]:
        """(d,), counts or expected counts -> the nearest whole numbers."""
        return [round(number) for number in tensor.detach().double().cpu().tolist()]
