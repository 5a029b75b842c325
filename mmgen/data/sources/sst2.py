"""SST-2: sentences of the Stanford Sentiment Treebank with two classes."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmgen.data.sources.files import inside
from mmgen.data.sources.tables import parquet_rows


def read(split: str, folder: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of ``folder/sst2_SPLIT.parquet``.

    Raises:
        UserError: there is no such file, or it is damaged.
    """
    file = inside(folder, f"sst2_{split}.parquet")
    yield from parquet_rows(file, str(file))
