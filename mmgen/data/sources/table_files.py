"""Table files: CSV in any dialect, TSV, JSON lines and Parquet, read row by row with the place of each row."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from mmgen.errors import UserError, counted

if TYPE_CHECKING:  # slow to import: `mmgen list` reads cards without it
    import pyarrow as pa
    import pyarrow.parquet as pq

ENDINGS = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")
DELIMITERS = ",;\t|"


def numbered_rows(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the rows of a table with the place of each, such as ``"line 3"``.

    Parquet columns with embedded files are left out, see `embedded_columns`. Empty cells of CSV and TSV are None.

    Args:
        file: the table; its ending, one of `ENDINGS`, gives the format.

    Raises:
        UserError: the file cannot be read or is not a valid table; the message names the line.
    """
    if file.suffix.lower() == ".parquet":
        with _parquet(file) as table:
            light = [name for name in table.schema_arrow.names if not _holds_bytes(table.schema_arrow.field(name).type)]
            batches = table.iter_batches(batch_size=1024, columns=light)
            rows = (row for batch in _whole(file, batches) for row in batch.to_pylist())
            if not light:
                rows = ({} for _ in range(table.metadata.num_rows))
            yield from ((f"row {i}", row) for i, row in enumerate(rows))
        return
    try:
        with file.open("rb") as content:
            yield from text_rows(file, content)
    except OSError as error:
        raise UserError(str(file), got=str(error), expected="a readable table", fix="check the path") from error


def text_rows(file: Path, content: BinaryIO) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the rows of CSV, TSV or JSON lines with the place of each, as `numbered_rows`.

    Args:
        file: name of the file in errors; its ending gives the format.
        content: its bytes, seekable.

    Raises:
        UserError: it is not a valid table; the message names the line.
    """
    start = content.read(2)
    content.seek(0)
    utf16 = start in (b"\xff\xfe", b"\xfe\xff")
    text = io.TextIOWrapper(content, encoding="utf-16" if utf16 else "utf-8-sig", newline="")
    try:
        yield from _json_rows(file, text) if file.suffix.lower() in (".jsonl", ".ndjson") else _csv_rows(file, text)
    except UnicodeDecodeError as error:
        place = f"{file}: line {line}" if not utf16 and (line := _undecodable(content)) else str(file)
        raise UserError(place, got=str(error), expected="a table in UTF-8", fix="save it as UTF-8") from error


def embedded_columns(file: Path) -> list[str]:
    """Columns of a Parquet file whose cells are files: bytes, or ``{"bytes", "path"}``; empty for other tables."""
    if file.suffix.lower() != ".parquet":
        return []
    with _parquet(file) as table:
        return [field.name for field in table.schema_arrow if _holds_bytes(field.type)]


def embedded_rows(file: Path) -> Iterator[dict[str, Any]]:
    """Yield the cells of `embedded_columns` of every row, as ``{"bytes", "path"}`` or None, a few rows at a time."""
    with _parquet(file) as table:
        for batch in _whole(file, table.iter_batches(batch_size=16, columns=embedded_columns(file))):
            for row in batch.to_pylist():
                yield {name: {"bytes": cell, "path": None} if isinstance(cell, bytes) else cell for name, cell in row.items()}


def class_names(file: Path) -> dict[str, list[str]]:
    """Class names of label columns that `datasets` stored in a Parquet file."""
    if file.suffix.lower() != ".parquet":
        return {}
    with _parquet(file) as table:
        info = (table.schema_arrow.metadata or {}).get(b"huggingface")
    features = json.loads(info).get("info", {}).get("features", {}) if info else {}
    return {name: feature["names"] for name, feature in features.items() if isinstance(feature, dict) and feature.get("names")}


def _undecodable(content: BinaryIO) -> int | None:
    """Number of the first line that is not UTF-8, counted from 1."""
    content.seek(0)
    for number, line in enumerate(content, 1):
        try:
            line.decode()
        except UnicodeDecodeError:
            return number
    return None


def _csv_rows(file: Path, text: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    first = ""
    while not first.strip():
        if not (first := text.readline()):
            fix = "write the names of its columns in the first line, such as file_name,caption"
            raise UserError(str(file), got="an empty file", expected="a table with a header", fix=fix)
    text.seek(0)
    # guessed from the header, as captions often contain commas
    tab = file.suffix.lower() == ".tsv"
    delimiter = "\t" if tab else max(DELIMITERS, key=lambda d: len(next(csv.reader([first], delimiter=d))))
    reader = csv.reader(text, delimiter=delimiter, skipinitialspace=delimiter != "\t", strict=True)
    header: list[str] = []
    end = 0
    try:
        for cells in reader:
            begin, end = end + 1, reader.line_num  # a cell may contain line breaks
            if not any(cell.strip() for cell in cells):
                continue
            if not header:
                header = _header(file, cells)
                continue
            cells = cells[: len(header)] if not any(cells[len(header) :]) else cells
            if len(cells) != len(header):
                shown = {"\t": "tab", ",": "comma", ";": "semicolon"}.get(delimiter, delimiter)
                expected = f"{len(header)}, as its header ({', '.join(header)})"
                fix = f"put texts that hold a {shown} between double quotes"
                raise UserError(f"{file}: line {begin}", got=counted(len(cells), "cell"), expected=expected, fix=fix)
            yield f"line {begin}", {name: cell.strip() or None for name, cell in zip(header, cells) if name}
    except csv.Error as error:
        raise UserError(
            f"{file}: line {end + 1}",
            got=str(error),
            expected="a whole table",
            fix="close each quote, and double those inside a quoted cell",
        ) from error


def _header(file: Path, cells: list[str]) -> list[str]:
    names = [cell.strip() for cell in cells]
    while names and not names[-1]:
        names.pop()
    example = "write the names of its columns in the first line, such as file_name,caption"
    if twice := sorted({name for name in names if name and names.count(name) > 1}):
        raise UserError(f"{file}: header", got=f"{twice[0]} twice", expected="different names", fix="rename one of them")
    if any("." in name and len(name) - name.rindex(".") in (4, 5) and " " not in name for name in names):
        raise UserError(f"{file}: line 1", got=", ".join(names), expected="the names of its columns", fix=example)
    return names


def _json_rows(file: Path, text: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in enumerate(text, 1):
        if not line.strip():
            continue
        place, fix = f"{file}: line {number}", "correct that line"
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(place, got=str(error), expected="one JSON object a line", fix=fix) from error
        if not isinstance(row, dict):
            raise UserError(place, got=row, expected="one JSON object a line", fix=fix)
        yield f"line {number}", row


def _parquet(file: Path) -> pq.ParquetFile:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(file)
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(str(file), got=str(error), expected="a whole parquet file", fix="copy it again") from error


def _whole(file: Path, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    import pyarrow as pa

    try:
        yield from batches
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(str(file), got=str(error), expected="a whole parquet file", fix="copy it again") from error


def _holds_bytes(kind: pa.DataType) -> bool:
    import pyarrow as pa

    if pa.types.is_struct(kind):
        return any(_holds_bytes(kind.field(i).type) for i in range(kind.num_fields))
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)
