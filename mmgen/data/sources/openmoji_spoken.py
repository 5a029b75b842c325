"""OpenMoji pictures with their names, written and spoken by the synthesiser ``hibari-tts``."""

import zlib
from collections.abc import Iterator
from typing import Any

from mmgen.data.sources import openmoji
from mmgen.data.sources.encode import wav


def read(split: str, *, size: int = 128) -> Iterator[dict[str, Any]]:
    """Yield the rows of `openmoji.read` with ``audio``: the caption read aloud, 24 kHz, one synthetic voice.

    Args:
        split: see `openmoji.split_of`.
        size: side of the square picture in pixels.
    """
    from hibari import SAMPLE_RATE, Hibari

    voice = Hibari()
    for row in openmoji.read(split, size=size):
        seed = zlib.crc32(row["code_points"].encode())  # a fixed seed: the same file every time
        yield {**row, "audio": wav(voice(row["caption"], seed=seed), SAMPLE_RATE)}
