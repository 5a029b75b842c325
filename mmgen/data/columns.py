"""Columns of a data card: their rows as tensors."""

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from mmgen.data.processors import Processor
from mmgen.data.rows import Column


class Columns(Sequence):
    """Rows of several columns as tensors by name; a text or a recording that several rows share is processed once.

    Args:
        values: name -> the column's values, as many of each; of a `Column`, errors name the row, and a missing value is None.
        processors: name -> what turns one value into a tensor.

    >>> from mmgen.data.vector import VectorProcessor
    >>> columns = Columns({"x": [[1.0], [3.0]]}, {"x": VectorProcessor.fit([[1.0], [3.0]])})
    >>> len(columns), columns[1]["x"].tolist()
    (2, [1.0])
    """

    def __init__(self, values: Mapping[str, Sequence[Any]], processors: Mapping[str, Processor]) -> None:
        # a column of `datasets` is slow to read value by value, so only what is large stays there
        large = {name for name in values if processors[name].kind in ("image", "audio")}
        self.values = {name: column if name in large else column[:] for name, column in values.items()}
        self.named = {name: column for name, column in values.items() if isinstance(column, Column)}
        self.missing = {name: column.missing for name, column in self.named.items()}
        self.processors = processors
        self.shared: dict[Any, Tensor] = {}

    def __len__(self) -> int:
        return len(next(iter(self.values.values())))

    def __getitem__(self, index: int) -> dict[str, Tensor | None]:
        return {name: self.read(name, index) for name in self.values}

    def has(self, name: str, index: int) -> bool:
        """Return whether a row has its value of a column."""
        return name not in self.missing or not self.missing[name][index]

    def read(self, name: str, index: int) -> Tensor | None:
        """One value of one column, None where it is missing.

        Raises:
            UserError: it cannot be read.
        """
        if not self.has(name, index):
            return None
        column = self.named.get(name)
        with contextlib.nullcontext() if column is None else column.rows.at(index, column.name):
            return self._processed(name, self.values[name][index])

    def _processed(self, name: str, value: Any) -> Tensor:
        process = self.processors[name]
        if process.kind not in ("audio", "text"):
            return process(value)
        key = (name, (value["bytes"] or value["path"]) if process.kind == "audio" else value)
        if key not in self.shared:
            self.shared[key] = process(value)
        return self.shared[key]
