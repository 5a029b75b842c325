"""Readers for plain tables: one parquet, CSV or JSON-lines file a split, a data set of the Hub, or words in the card."""

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mmgen.data.sources.files import Archive, inside
from mmgen.data.sources.readers import Line
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
    """Yield one row a word of a list that the card itself holds.

    >>> list(read_words("train", ["star", "moon"]))
    [{'word': 'star'}, {'word': 'moon'}]
    """
    for word in words:
        yield {"word": word}


def parquet_rows(file: Path | io.BytesIO, name: str) -> Iterator[dict[str, Any]]:
    """Yield the rows of a parquet file, a few at a time.

    Args:
        file: the file, or its bytes.
        name: what an error calls it.

    Raises:
        UserError: the file is damaged.
    """
    try:
        with pq.ParquetFile(file) as table:
            for batch in table.iter_batches(batch_size=64):
                yield from batch.to_pylist()
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(name, got=str(error), expected="a whole parquet file", fix="copy it again") from error


def csv_rows(name: str, lines: Iterator[str]) -> Iterator[Line]:
    """Yield the rows of a CSV file by its header; rows with nothing in them, such as a blank last line, are left out.

    Args:
        name: what an error calls the file.
        lines: its lines with their ends.

    Raises:
        UserError: a row has more or fewer fields than the header, or a quote is not closed; the message names the line.

    >>> list(csv_rows("a.csv", iter(["text,label\\n", "cat,\\n", "\\n"])))
    [{'text': 'cat', 'label': None}]
    """
    table = csv.reader(lines, strict=True)
    header: list[str] = []
    while True:
        place = f"{name}: line {table.line_num + 1}"  # where the row begins: a quoted field may hold several lines
        try:
            values = next(table, None)
        except csv.Error as error:
            fix = "close its quotes, double those inside a quoted field, and save it as CSV in UTF-8"
            raise UserError(place, got=str(error), expected="fields of a CSV table", fix=fix) from error
        if values is None:
            return
        if not any(value.strip() for value in values):
            continue
        if not header:
            header = values
            continue
        if len(values) != len(header):
            fix = "quote a field that holds a separator, and write an empty field for what is missing"
            raise UserError(place, got=f"{len(values)} fields", expected=f"{len(header)}, as in the header", fix=fix)
        yield Line(place, ((column, value or None) for column, value in zip(header, values)))


def jsonl_rows(name: str, lines: Iterator[str]) -> Iterator[Line]:
    """Yield the rows of a JSON-lines file; blank lines are left out.

    Args:
        name: what an error calls the file.
        lines: its lines.

    Raises:
        UserError: a line is no JSON object; the message names it.

    >>> list(jsonl_rows("a.jsonl", iter(['{"label": 1}\\n', "\\n"])))
    [{'label': 1}]
    """
    fix = 'write one row a line, as {"text": "...", "label": 0}'
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        place = f"{name}: line {number}"
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            got = f"{error.msg} at character {error.pos + 1} of {line.strip()[:60]!r}"
            raise UserError(place, got=got, expected="a JSON object", fix=fix) from error
        if not isinstance(row, dict):
            raise UserError(place, got=line.strip(), expected="a JSON object", fix=fix)
        yield Line(place, row.items())


def decoded_lines(name: str, binary: Iterable[bytes]) -> Iterator[str]:
    """Yield the lines of a file in UTF-8, with their ends, without the byte order mark that some programs begin with.

    Raises:
        UserError: a line is no UTF-8; the message names it.

    >>> list(decoded_lines("a.csv", [b"\\xef\\xbb\\xbftext\\r\\n", b"cat"]))
    ['text\\r\\n', 'cat']
    """
    for number, line in enumerate(binary, 1):
        try:
            yield line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            got = f"{error.reason} ({line[error.start : error.start + 4]!r})"
            fix = "save it as UTF-8, for example by `iconv -f latin1 -t utf-8`"
            raise UserError(f"{name}: line {number}", got=got, expected="text in UTF-8", fix=fix) from error


def _rows(name: str, file: Path | io.BytesIO) -> Iterator[dict[str, Any]]:
    if name.endswith(".parquet"):
        yield from parquet_rows(file, name)
        return
    with file.open("rb") if isinstance(file, Path) else file as binary:
        yield from (csv_rows if name.endswith(".csv") else jsonl_rows)(name, decoded_lines(name, binary))
