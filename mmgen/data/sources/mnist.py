"""MNIST from its arrays or from the Hub; the last 5,000 training digits are the validation split."""

import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from mmgen.data.sources.digits import CAPTION, WORDS
from mmgen.data.sources.encode import png
from mmgen.errors import UserError

VALIDATION = 5000  # number of digits at the end of the training file
TRAINING = 60000


def read_npz(split: str, file: Path) -> Iterator[dict[str, Any]]:
    """Yield the digits of one split of an ``.npz`` with ``x_train y_train x_test y_test``.

    Args:
        split: ``train``, ``validation`` or ``test``.
        file: images (n, 28, 28) uint8, labels (n,) 0..9.

    Raises:
        UserError: the file is damaged or lacks an array.
    """
    part = "test" if split == "test" else "train"
    try:
        with np.load(file, allow_pickle=False) as arrays:
            images, labels = arrays[f"x_{part}"], arrays[f"y_{part}"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        fix = "copy mnist.npz again"
        raise UserError(str(file), got=str(error), expected=f"arrays x_{part} and y_{part}", fix=fix) from error
    first = max(len(images) - VALIDATION, 0)
    rows = range(first, len(images)) if split == "validation" else range(first) if split == "train" else range(len(images))
    for i in rows:
        yield _row(png(images[i]), int(labels[i]), f"{part}-{i}")


def read_hub(split: str, rows: Callable[[str], Iterator[dict[str, Any]]]) -> Iterator[dict[str, Any]]:
    """Yield the digits of one split of the Hub's data set, whose columns are ``image`` and ``label``."""
    part = "test" if split == "test" else "train"
    for i, row in enumerate(rows(part)):
        if part == "train" and (i >= TRAINING - VALIDATION) != (split == "validation"):
            continue
        yield _row(row["image"], row["label"], f"{part}-{i}")


def _row(image: dict[str, Any], label: int, image_id: str) -> dict[str, Any]:
    word = WORDS[label]
    return {"image": image, "label": label, "word": word, "caption": CAPTION.format(word), "image_id": image_id}
