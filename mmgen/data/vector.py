"""Vectors of measurements, standardised entry by entry with the training data's mean and standard deviation."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy
import torch
from torch import Tensor

from mmgen.errors import UserError, counted


@dataclass(frozen=True)
class VectorProcessor:
    """Standardised vector, (x - mean) / std, (d,), and back.

    Args:
        mean: d numbers, in the data's own units.
        std: d numbers above 0, in the data's own units.

    Raises:
        UserError: the lists differ in length, a std is not above 0, or a value has another length or is not finite.

    >>> VectorProcessor(mean=[1.0, 0.0], std=[2.0, 1.0])([3.0, 5.0]).tolist()
    [1.0, 5.0]
    """

    mean: list[float]
    std: list[float]
    kind: ClassVar[str] = "vector"

    def __post_init__(self) -> None:
        if len(self.mean) != len(self.std) or not self.mean:
            got = f"{counted(len(self.mean), 'mean')} and {counted(len(self.std), 'std')}"
            raise UserError("vector", got=got, expected="as many of each", fix="fit them with VectorProcessor.fit")
        if not min(self.std) > 0:
            raise UserError("std", got=min(self.std), expected="numbers > 0", fix="set 1 for constant entries")

    @staticmethod
    def read(value: Any) -> Tensor:
        """One training value, checked: see `as_vector`."""
        return as_vector(value)

    @classmethod
    def fit(cls, rows: Iterable[Sequence[float] | Tensor]) -> "VectorProcessor":
        """Make a processor with the mean and standard deviation of ``rows``, each (d,); constant entries get a std of 1.

        Raises:
            UserError: there are no rows, their lengths differ, or numbers are not finite.
        """
        values = stacked(as_vector(row) for row in rows)  # (n, d)
        mean, std = values.mean(0), values.std(0, correction=0)
        std = torch.where(std > 1e-9 * mean.abs(), std, torch.ones_like(std))
        return cls(mean.tolist(), std.tolist())

    @property
    def shape(self) -> tuple[int]:
        """Shape (d,) of the tensors."""
        return (len(self.mean),)

    def __call__(self, value: Sequence[float] | Tensor | str | Path) -> Tensor:
        """Convert d numbers, or a source for `read_numbers`, to (d,) float32."""
        vector = as_vector(value)
        if len(vector) != len(self.mean):
            fix = f"give {counted(len(self.mean), 'number')}, as the training data have"
            raise UserError(_name(value), got=counted(len(vector), "number"), expected=f"{len(self.mean)}", fix=fix)
        mean, std = torch.tensor(self.mean, dtype=vector.dtype), torch.tensor(self.std, dtype=vector.dtype)
        return ((vector - mean) / std).float()

    def decode(self, tensor: Tensor) -> list[float]:
        """Convert (d,) to d numbers in the data's own units."""
        return (tensor.detach().double().cpu() * torch.tensor(self.std).double() + torch.tensor(self.mean).double()).tolist()


def stacked(rows: Iterable[Tensor]) -> Tensor:
    """Vectors (d,) -> (n, d).

    Raises:
        UserError: there is none, or their lengths differ.
    """
    rows = list(rows)
    if not rows:
        raise UserError("rows", got="none", expected="at least one", fix="check that the split is not empty")
    lengths = sorted({len(row) for row in rows})
    if len(lengths) > 1:
        raise UserError("rows", got=f"lengths {lengths}", expected="one length", fix="check the column")
    return torch.stack(rows)


def read_numbers(source: str | Path) -> Any:
    """Read numbers from a text or a file.

    Args:
        source: numbers joined by commas, as in ``0.5,-1,2e3``, with or without brackets; or the path of a .npy, .csv or .json
            file with one vector. A .csv file has one row or one column and no header; where semicolons separate numbers, a
            comma is a decimal point.

    Raises:
        UserError: it is neither, or the file cannot be read.

    >>> read_numbers("0.5, -1,2e3"), read_numbers("[1, 2]")
    ([0.5, -1.0, 2000.0], [1.0, 2.0])
    """
    text, file = str(source).strip(), Path(source)
    try:
        return _row(text[1:-1] if text.startswith("[") and text.endswith("]") else text)
    except ValueError:
        pass  # then it is a path
    expected, fix = "numbers joined by commas, or a .npy, .csv or .json file", "write it as in 0.5,-1,2"
    if file.suffix.lower() not in (".npy", ".csv", ".json"):
        raise UserError("vector", got=repr(text), expected=expected, fix=fix)
    try:
        if file.suffix.lower() == ".npy":
            with file.open("rb") as content:
                return numpy.atleast_1d(numpy.lib.format.read_array(content, allow_pickle=False).squeeze())
        written = file.read_text(encoding="utf-8-sig")
        if file.suffix.lower() == ".json":
            return json.loads(written)
        rows = [_row(line) for line in written.splitlines() if line.strip()]
        return [row[0] for row in rows] if all(len(row) == 1 for row in rows) else rows[0] if len(rows) == 1 else rows
    except FileNotFoundError as error:
        raise UserError(f"vector {file}", got="no such file", expected=expected, fix="check the path") from error
    except (OSError, ValueError) as error:  # a damaged file is a ValueError of each reader
        raise UserError(f"vector {file}", got=str(error), expected="one vector of numbers", fix="write it again") from error


def _row(line: str) -> list[float]:
    numbers = line.replace(",", ".").split(";") if ";" in line else line.split(",")
    return [float(number) for number in numbers]


def _name(value: Any) -> str:
    """Name of a vector in errors, with the file that it comes from."""
    named = isinstance(value, Path) or (isinstance(value, str) and Path(value).suffix.lower() in (".npy", ".csv", ".json"))
    return f"vector {value}" if named else "vector"


def as_vector(value: Sequence[float] | numpy.ndarray | Tensor | str | Path) -> Tensor:
    """Convert a value to a flat float64 vector of finite real numbers.

    Raises:
        UserError: it is anything else.
    """
    name = _name(value)
    fix = "check the column's name" if name == "vector" else "write it again"
    if isinstance(value, str | Path):
        value = read_numbers(value)
    try:
        if isinstance(value, Tensor) and value.is_complex():
            raise TypeError("complex numbers")
        if isinstance(value, numpy.ndarray):
            value = value.astype(numpy.float64, casting="same_kind" if value.dtype.kind in "biuf" else "no")  # native bytes
        vector = torch.as_tensor(value, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError) as error:
        shown = f"{value.dtype} numbers" if hasattr(value, "dtype") else value
        raise UserError(name, got=shown, expected="a list of numbers", fix=fix) from error
    if vector.dim() != 1:
        raise UserError(name, got=f"shape {tuple(vector.shape)}", expected="a list of numbers", fix="flatten it")
    if not vector.isfinite().all():
        at = int((~vector.isfinite()).nonzero()[0])
        raise UserError(name, got=f"{vector[at].item()} at entry {at}", expected="finite numbers", fix="drop or fill the row")
    return vector
