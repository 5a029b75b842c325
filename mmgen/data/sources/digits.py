"""scikit-learn's 8x8 handwritten digits as picture, vector, word and caption."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from mmgen.data.sources.encode import png
from mmgen.data.sources.splits import uniform

CAPTION = "a handwritten {}"
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def read(split: str) -> Iterator[dict[str, Any]]:
    """Yield one row a digit; 15 % are ``test`` and 10 % ``validation``, by a hash of the row's number."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    for i, (pixels, label) in enumerate(zip(digits.images, digits.target)):  # (8, 8) whole numbers 0..16
        u = uniform(f"digits {i}")
        if split != ("test" if u < 0.15 else "validation" if u < 0.25 else "train"):
            continue
        yield {
            "image": png(np.round(pixels * (255 / 16)).astype(np.uint8)),
            "vector": (pixels.reshape(-1) / 16).astype(np.float32),  # (64,)
            "label": int(label),
            "word": WORDS[label],
            "caption": CAPTION.format(WORDS[label]),
            "image_id": f"digits-{i}",
        }
