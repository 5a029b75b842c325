"""A grid of drawn shapes, one picture for every combination of five factors."""

import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from mmgen.data.sources.encode import png
from mmgen.data.sources.splits import uniform
from mmgen.errors import UserError

FACTORS = ("shape", "scale", "orientation", "x", "y")
SIDE = 64


def read(split: str, file: Path) -> Iterator[dict[str, Any]]:
    """Yield the pictures of one split of an ``.npz`` with ``images_packed`` and ``latents``.

    Args:
        split: ``grid``, all pictures in the factors' order; or ``train``, ``validation`` and ``test``, the grid split by a
            hash of the pixels: 10 % ``test``, 5 % ``validation``; identical pictures are in the same split.
        file: pictures (n, 512), the bits of 64 x 64 pixels, and the indices of their factors' values (n, 5).

    Raises:
        UserError: the file is damaged or lacks an array.
    """
    try:
        with np.load(file, allow_pickle=False) as arrays:
            packed, factors = arrays["images_packed"], arrays["latents"]
            pixels = np.unpackbits(packed, axis=1).reshape(len(factors), SIDE, SIDE)  # (n, 64, 64) of 0 and 1
    except (OSError, ValueError, TypeError, KeyError, EOFError, zipfile.BadZipFile) as error:
        fix, expected = f"copy {file.name} again", "arrays images_packed (n, 512) and latents (n, 5)"
        raise UserError(str(file), got=str(error), expected=expected, fix=fix) from error
    for i, values in enumerate(factors.tolist()):
        u = uniform(f"factor_shapes {packed[i].tobytes().hex()}")
        if split not in ("grid", "test" if u < 0.1 else "validation" if u < 0.15 else "train"):
            continue
        yield {"image": png(pixels[i] * 255), **dict(zip(FACTORS, values, strict=True)), "image_id": f"factor_shapes-{i}"}
