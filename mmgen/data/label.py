"""Labels: conversion between class names and numbers."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from mmgen.errors import check_one_of


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
