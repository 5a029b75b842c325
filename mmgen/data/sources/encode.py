"""Encoding of pixels and samples to the bytes that a data set stores."""

import io
from typing import Any

import numpy as np


def png(pixels: np.ndarray) -> dict[str, Any]:
    """Encode a picture as lossless PNG.

    Args:
        pixels: (h, w) grey or (h, w, 3) RGB, uint8.

    Returns:
        ``{"bytes": ..., "path": None}``, as `datasets` stores an image.

    >>> png(np.zeros((8, 8), np.uint8))["bytes"][:4]
    b'\\x89PNG'
    """
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return {"bytes": file.getvalue(), "path": None}


def wav(samples: np.ndarray, rate: int) -> dict[str, Any]:
    """Encode a sound as 16-bit WAV.

    Args:
        samples: (t,) or (t, channels) floats, clipped to [-1, 1].
        rate: sample rate, Hz.

    Returns:
        ``{"bytes": ..., "path": None}``.

    >>> wav(np.zeros(100, np.float32), 8000)["bytes"][:4]
    b'RIFF'
    """
    import soundfile

    file = io.BytesIO()
    soundfile.write(file, np.clip(samples, -1, 1), rate, format="WAV", subtype="PCM_16")
    return {"bytes": file.getvalue(), "path": None}
