"""Sentences of Yelp reviews with their sentiment; those of the test split also with human rewrites in the other sentiment."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmgen.data.sources.files import inside
from mmgen.data.sources.tables import parquet_rows

FILES = {"dev": "dev_li2018.parquet", "test": "test_references.parquet"}


def read(split: str, folder: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of one split with ``references``, the human rewrites of the sentence, possibly none.

    Args:
        split: ``train``, ``validation``, ``dev`` or ``test``.
        folder: folder with one parquet file for each split, see `FILES`.

    Raises:
        UserError: there is no such file, or it is damaged.
    """
    file = inside(folder, FILES.get(split, f"{split}.parquet"))
    for row in parquet_rows(file, str(file)):
        yield row | {"references": [row["reference"]] if "reference" in row else []}
