"""Readers of plain tables: one parquet, CSV or JSON-lines file for each split, a Hub data set, or words in the card."""

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mmgen.data.sources.files import Archive, inside
from mmgen.data.sources.readers import Line
from mmgen.data.sources.table_files import text_rows
from mmgen.errors import UserError

ENDINGS = (".parquet", ".csv", ".jsonl")


def read_folder(split: str, folder: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of ``folder/SPLIT.parquet`` (or .csv, .jsonl).

    Raises:
        UserError: there is no such file, or it is damaged.
    """
    files = [inside(folder, f"{split}{ending}") for ending in ENDINGS]
    file = next((file for file in files if file.is_file()), None)
    if file is None:
        fix = "name the files after the splits"
        raise UserError(str(folder), got=f"no file for the split {split!r}", expected=f"{split}.parquet|csv|jsonl", fix=fix)
    yield from _rows(file.name, file)


def read_archive(split: str, archive: Archive) -> Iterator[dict[str, Any]]:
    """Yield the rows of the member ``.../SPLIT.parquet`` (or .csv, .jsonl) of an archive.

    Raises:
        UserError: there is no such member, or it is damaged.
    """
    wanted = [f"{split}{ending}" for ending in ENDINGS]
    name = next((name for name in archive.names if name.rsplit("/", 1)[-1] in wanted), None)
    if name is None:
        what, fix = archive.path.name, "name the files after the splits"
        raise UserError(what, got=f"no member for the split {split!r}", expected=f"{split}.parquet|csv|jsonl", fix=fix)
    yield from _rows(name, io.BytesIO(archive.read(name)))


def read_hub(split: str, rows: Callable[[str], Iterator[dict[str, Any]]]) -> Iterator[dict[str, Any]]:
    """Yield the rows of the Hub's split of the same name."""
    yield from rows(split)


def read_words(split: str, words: list[str]) -> Iterator[dict[str, Any]]:
    """Yield one row for each word of a list in the card itself.

    >>> list(read_words("train", ["star", "moon"]))
    [{'word': 'star'}, {'word': 'moon'}]
    """
    for word in words:
        yield {"word": word}


def parquet_rows(file: Path | io.BytesIO, name: str) -> Iterator[dict[str, Any]]:
    """Yield the rows of a parquet file, a few at a time.

    Args:
        file: the file, or its bytes.
        name: name of the file in errors.

    Raises:
        UserError: the file is damaged.
    """
    try:
        with pq.ParquetFile(file) as table:
            for batch in table.iter_batches(batch_size=64):
                yield from batch.to_pylist()
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(name, got=str(error), expected="a whole parquet file", fix="copy it again") from error


def _rows(name: str, file: Path | io.BytesIO) -> Iterator[dict[str, Any]]:
    if name.endswith(".parquet"):
        yield from parquet_rows(file, name)
        return
    with file.open("rb") if isinstance(file, Path) else file as content:
        for place, row in text_rows(Path(name), content):
            yield Line(f"{name}: {place}", row.items())
