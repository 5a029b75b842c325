"""Labels: a name <-> its number."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from mmgen.errors import check_one_of


@dataclass(frozen=True)
class LabelProcessor:
    """The name of a class -> its number, and back.

    Args:
        names: what the classes are called, in order.

    Raises:
        UserError: a name that is none of them.

    >>> LabelProcessor(["cat", "dog"]).decode(LabelProcessor(["cat", "dog"])("dog"))
    'dog'
    """

    names: list[str]
    kind: ClassVar[str] = "label"

    def __call__(self, value: str | int) -> Tensor:
        """A name, or a number that names itself -> int64 scalar."""
        return torch.tensor(self.names.index(check_one_of("label", str(value), self.names)))

    def decode(self, tensor: Tensor) -> str:
        """int64 scalar -> name."""
        return self.names[int(tensor)]
