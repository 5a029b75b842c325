"""Flickr8k from the Hub, where the five captions of a picture are five columns."""

from collections.abc import Callable, Iterator
from typing import Any


def read_hub(split: str, rows: Callable[[str], Iterator[dict[str, Any]]]) -> Iterator[dict[str, Any]]:
    """Yield one row a picture with its captions as one list.

    Args:
        split: ``train``, ``validation`` or ``test``, as on the Hub.
        rows: the Hub's rows of a split: ``image`` and ``caption_0`` to ``caption_4``.
    """
    for i, row in enumerate(rows(split)):
        captions = [row[name] for name in sorted(row) if name.startswith("caption_")]
        yield {"image": row["image"], "captions": captions, "image_id": f"{split}-{i}"}
