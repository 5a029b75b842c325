"""Labels: conversion between class names and numbers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from mmgen.errors import check_one_of

UNKNOWN, UNLABELLED = -2, -3  # instead of a class; -1 is a judge's prediction for an empty text


@dataclass(frozen=True)
class LabelProcessor:
    """Number of a class from its name, and back.

    Args:
        names: names of the classes, in order.

    Raises:
        UserError: a name is unknown.

    >>> LabelProcessor(["cat", "dog"]).decode(LabelProcessor(["cat", "dog"])("dog"))
    'dog'
    """

    names: list[str]
    kind: ClassVar[str] = "label"

    def __call__(self, value: str | int) -> Tensor:
        """Convert a class name, possibly given as a number, to an int64 scalar."""
        return torch.tensor(self.names.index(check_one_of("label", str(value), self.names)))

    def decode(self, tensor: Tensor) -> str:
        """Convert an int64 scalar to the class name."""
        return self.names[int(tensor)]


def class_indices(labels: Sequence[Any], names: Sequence[str]) -> Tensor:
    """Class index of each label, (n,) int64.

    Args:
        labels: values of a column; None or "" for a missing label.
        names: names of the classes, in order.

    Returns:
        Indices into ``names``; `UNKNOWN` for a label that is not among them, `UNLABELLED` for a missing one.

    >>> class_indices([7, "3", 5, None], ["3", "7"]).tolist()
    [1, 0, -2, -3]
    """
    number = {name: i for i, name in enumerate(names)}
    return torch.tensor([UNLABELLED if label in (None, "") else number.get(str(label), UNKNOWN) for label in labels])
