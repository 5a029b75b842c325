"""Columns of a data card as a model reads them: the processor that each needs, and their rows as tensors."""

import contextlib
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mmgen.data.audio import AudioProcessor
from mmgen.data.image import ImageProcessor
from mmgen.data.processors import Processor
from mmgen.data.rows import Column
from mmgen.data.text import train_tokenizer
from mmgen.data.vector import VectorProcessor, as_vector
from mmgen.errors import check_one_of

#: kind of a column -> the settings that its processor takes
SETTINGS = {
    "image": list(inspect.signature(ImageProcessor).parameters),
    "audio": list(inspect.signature(AudioProcessor).parameters),
    "text": ["vocab_size", "max_length"],
    "vector": [],
}


def fit_processor(kind: str, values: Sequence[Any], **settings: Any) -> Processor:
    """The processor of a column, fitted to its values where it has something to fit: a tokenizer, a mean.

    Args:
        kind: "image", "audio", "text" or "vector".
        values: those of the training split, missing ones left out; of pictures and sounds none is read.
        settings: of that kind, see `SETTINGS`; a text has bytes as tokens, 32 at most, unless they say otherwise.

    Raises:
        UserError: an unknown kind or setting.

    >>> fit_processor("vector", [[1.0], [3.0]])([3.0]).tolist()
    [1.0]
    """
    for name in settings:
        check_one_of(f"setting of {kind}", name, SETTINGS[check_one_of("kind", kind, SETTINGS)])
    if check_one_of("kind", kind, SETTINGS) == "image":
        return ImageProcessor(**settings)
    if kind == "audio":
        return AudioProcessor(**settings)
    if kind == "text":
        texts = (text for text in values[:] if text is not None and text.strip())
        return train_tokenizer(texts, **{"vocab_size": 259, "max_length": 32, **settings})
    if not isinstance(values, Column):
        return VectorProcessor.fit(torch.as_tensor(values[:]))
    return VectorProcessor.fit(values.read(i, as_vector) for i in (~values.missing).nonzero()[0].tolist())


class Columns(Sequence):
    """Rows of several columns as tensors by name; a text or a recording that several rows share is processed once.

    Args:
        values: name -> the column's values, as many of each; of a `Column`, errors name the row, and a missing value is None.
        processors: name -> what turns one value into a tensor.

    >>> columns = Columns({"x": [[1.0], [3.0]]}, {"x": fit_processor("vector", [[1.0], [3.0]])})
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
