"""The processor that each column of a data card needs."""

import inspect
from collections.abc import Sequence
from typing import Any

import torch

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
