"""Inference of columns, splits and rows of data without a card: a folder, a table, or a data set of the Hub.

The same files always give the same rows, so a card with the reader ``inferred`` opens the data it was written for.
"""

import functools
import hashlib
import io
import json
import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmgen.data.sources import user_files
from mmgen.data.sources.columns import MISSING_WORDS, not_a_number
from mmgen.data.sources.readers import Line
from mmgen.data.sources.splits import uniform
from mmgen.data.sources.user_files import FILE_NAME, Part, media_kind, split_of
from mmgen.errors import UserError

# headers that mean no more than "name of a file"
NAMES_OF_FILES = {"file_name", "filename", "file", "path", "filepath", "file_path", "image_path", "img_path", "image_file",
                  "image_name", "img", "audio_path", "audio_file"}  # fmt: skip
TEXTS = re.compile(
    r"(^|_)(captions?|texts?|descriptions?|sentences?|titles?|transcripts?|transcriptions?|prompts?|comments?|reviews?"
    r"|utterances?|questions?|answers?|words?|raw)(_|$|\d)"
)
SEVERAL_TEXTS = re.compile(r"(.*(?:caption|text|description|sentence|comment))_?(\d+)")  # caption_0 ... caption_4
LABELS = {"label", "class", "category", "target", "sentiment", "emotion", "style", "genre", "species", "breed"}
SPLIT = "split"  # the column that names the split of a row
MOST_CLASSES = 1000
PICTURE = {"kind": "image", "shape": [None, None, None], "unit": "8-bit sRGB", "range": [0, 255]}
SOUND = {"kind": "audio", "rate": None, "channels": None, "unit": "amplitude", "range": [-1, 1]}
TEXT = {"kind": "text", "language": "und"}


@dataclass(frozen=True)
class Inferred:
    """Contents of data without a card.

    Args:
        name: name of the data.
        columns: columns as in a card.
        splits: split -> its rows: (part, number of the row in it, values by column).
        how: description of how the splits were made.
        parts: the parts that contain the rows.
    """

    name: str
    columns: dict[str, dict[str, Any]]
    splits: dict[str, list[tuple[int, int, dict[str, Any]]]]
    how: str
    parts: list[Part]

    @property
    def counts(self) -> dict[str, int]:
        """Split -> number of rows."""
        return {split: len(rows) for split, rows in self.splits.items()}

    def identity(self, split: str) -> str:
        """Compute a digest that changes with the rows of the split and their files."""
        rows = self.splits.get(split, [])
        media = [row[name]["path"] for _, _, row in rows for name in self.columns if isinstance(row.get(name), dict)]
        tables = [part.name for part in self.parts if part.embedded and Path(part.name).is_file()]
        content = [[row for _, _, row in rows], user_files.stats(media + tables)]
        return hashlib.sha256(json.dumps(content, default=str).encode()).hexdigest()


def read(split: str, found: Inferred) -> Iterator[dict[str, Any]]:
    """Yield the rows of one split; pictures and sounds in files of their own are given by their paths."""
    at: tuple[int, Iterator[tuple[int, dict[str, Any]]]] | None = None
    for part, number, row in found.splits[split]:
        place = found.parts[part].rows[number][0]
        if not found.parts[part].embedded:
            yield Line(place, row.items())
            continue
        if at is None or at[0] != part:
            at = part, enumerate(found.parts[part].embedded_rows())
        cells = next(cells for i, cells in at[1] if i == number)
        yield Line(place, (row | {name: cell and _embedded(found.parts[part], cell) for name, cell in cells.items()}).items())


def find(place: Path) -> Inferred:
    """Infer the contents of a folder or a table; cached as long as its files do not change.

    Raises:
        UserError: nothing can be read from it.
        UserErrors: its tables name files that do not exist.
    """
    place = Path(place).absolute()
    return find_unchanged(place, user_files.signature(place))


@functools.lru_cache(maxsize=4)
def find_unchanged(place: Path, signature: Any) -> Inferred:
    """Infer the contents of a folder or a table whose `mmgen.data.sources.user_files.signature` is given; cached by both."""
    name = place.parent.name if place.stem.lower() == "metadata" else place.stem if place.is_file() else place.name
    return infer(name, user_files.parts_of(place))


@functools.lru_cache(maxsize=4)
def find_hub(name: str, config: str | None, revision: str | None) -> Inferred:
    """Infer the contents of a data set of the Hub, which is downloaded at first use.

    Raises:
        OSError, ValueError: as `datasets.load_dataset`: no network, no such repository.
    """
    import datasets

    # `datasets` runs no code of a repository since version 4, so there is no trust_remote_code to switch off
    data = datasets.load_dataset(name, config, revision=revision)
    return infer(name.rpartition("/")[2], [_hub_part(name, split, rows) for split, rows in data.items()])


def _hub_part(name: str, split: str, data: Any) -> Part:
    import datasets

    media = [n for n, f in data.features.items() if isinstance(f, (datasets.Image, datasets.Audio))]
    names = {n: f.names for n, f in data.features.items() if isinstance(f, datasets.ClassLabel)}
    for column in media:
        data = data.cast_column(column, type(data.features[column])(decode=False))
    rows = [(f"row {i}", row) for i, row in enumerate(data.remove_columns(media))] if len(data.features) > len(media) else []
    rows = rows or [(f"row {i}", {}) for i in range(len(data))]
    return Part(
        f"{name} {split}", split_of(split) or split, rows, None, media, lambda: iter(data.select_columns(media)), names
    )


def infer(name: str, parts: list[Part]) -> Inferred:
    """Infer columns and splits from rows.

    Args:
        name: name of the data.
        parts: one or more parts with rows.

    Raises:
        UserError: the name of a split is invalid, or a kind of file cannot be read.
        UserErrors: named files do not exist.
    """
    rows = [
        (p, i, {name: None if not_a_number(value) else value for name, value in row.items()})
        for p, part in enumerate(parts)
        for i, (_, row) in enumerate(part.rows)
    ]
    splits = _splits_by_column(name, parts, rows) or [parts[p].split for p, _, _ in rows]
    columns, media = _media_columns(parts, [row for *_, row in rows])
    lost = _resolve_files(parts, rows, splits, media)
    _join_numbered_texts(columns, [row for *_, row in rows])
    for column in dict.fromkeys(key for *_, row in rows for key in row):
        if column not in columns and (spec := _described(column, rows, parts)):
            columns[column] = spec
    for *_, row in rows:
        _as_described(row, columns)
    files = [column for column in media if columns[column]["kind"] in ("image", "audio")]
    rows, splits = _group_texts(columns, rows, splits, files)
    how = "by the names of files and folders"
    if SPLIT in {key.lower() for part in parts for _, row in part.rows for key in row} and None not in splits:
        how = f"by the column {SPLIT}"
    if set(splits) <= {None} or set(splits) == {"train"}:
        splits, how = (
            _make_splits(columns, rows, parts),
            "by a hash of each row's file or text, a tenth each for validation and test",
        )
    names = {split: i for i, split in enumerate(user_files.SPLITS)}
    order = sorted({split or "train" for split in splits}, key=lambda split: (names.get(split, len(names)), split))
    found = {s: [row for row, own in zip(rows, splits) if (own or "train") == s] for s in order}
    if lost:
        at = {(p, i): (s, n) for s, held in found.items() for n, (p, i, _) in enumerate(held)}
        raise user_files.missing(name, [(*at.get((p, i), ("train", i)), place, file, of) for p, i, place, file, of in lost])
    return Inferred(name, columns, found, how, parts)


def _splits_by_column(name: str, parts: list[Part], rows: list[tuple[int, int, dict[str, Any]]]) -> list[Any] | None:
    """Remove the column ``split`` from all rows and return its values; None where there is no such column."""
    column = next((key for *_, row in rows for key in row if key.lower() == SPLIT), None)
    if column is None or any(part.split for part in parts):
        return None
    found = []
    for part, number, row in rows:
        value = str(row.pop(column, None) or "")
        split = split_of(value, whole=True) or value
        if not re.fullmatch(r"\w+", split):
            fix = "write train, validation or test"
            what = f"data card {name}: {parts[part].rows[number][0]}: {column}"
            raise UserError(what, got=value or "nothing", expected="the name of a split", fix=fix)
        found.append(split)
    return found


def _media_columns(parts: list[Part], rows: list[dict[str, Any]]) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """Describe columns of pictures and sounds, and list those with file names; renames the columns in the rows."""
    columns: dict[str, dict[str, Any]] = {}
    for part in parts:
        for column in part.embedded:
            if column not in columns:
                columns[column] = _embedded_kind(part, column)
    media: list[str] = []
    for column in dict.fromkeys(key for row in rows for key in row):
        values = [row[column] for row in rows if row.get(column) is not None]
        kinds = {media_kind(value) for value in values}
        lower = column.lower()
        is_name = lower == FILE_NAME or lower.endswith(f"_{FILE_NAME}")
        if not values or (None in kinds and not (is_name and all(isinstance(v, str) for v in values))):
            continue
        if len(kinds) > 1 or None in kinds:
            kept = media_kind(values[0])
            place, wrong = next(
                (place, row[column])
                for part in parts
                for place, row in part.rows
                if row.get(column) is not None and (media_kind(row[column]) is None or media_kind(row[column]) != kept)
            )
            expected = f"names that end in {', '.join((*user_files.PICTURES[:4], *user_files.SOUNDS[:3]))}, of one kind"
            raise UserError(f"{place}: column {column}", got=wrong, expected=expected, fix="convert that file")
        (kind,) = filter(None, kinds)
        own = column[: -len(FILE_NAME) - 1] if is_name and lower != FILE_NAME else column
        own = kind if lower in NAMES_OF_FILES else own
        if own in columns or (own != column and any(own in row for row in rows)):
            own = column
        columns[own] = dict(PICTURE if kind == "image" else SOUND)
        media.append(own)
        for row in rows:
            if column in row:
                row[own] = row.pop(column)
    return columns, media


def _resolve_files(parts, rows, splits, media) -> list[tuple[int, int, str, str, Path]]:
    """Replace file names by absolute paths, and return the files that do not exist."""
    lost = []
    for part, number, row in rows:
        for column in media:
            if (value := row.get(column)) is None:
                continue
            path = user_files.resolve(parts[part].folder, value)
            if path is None:
                lost.append((part, number, parts[part].rows[number][0], value, parts[part].folder or Path.cwd()))
            row[column] = {"bytes": None, "path": path or value}
    return lost


def _join_numbered_texts(columns: dict[str, dict[str, Any]], rows: list[dict[str, Any]]) -> None:
    """Merge columns such as caption_0 to caption_4 into one of several texts, in data with pictures or sounds."""
    numbered: dict[str, list[tuple[int, str]]] = {}
    for column in dict.fromkeys(key for row in rows for key in row) if columns else ():
        if match := SEVERAL_TEXTS.fullmatch(column):
            numbered.setdefault(match[1], []).append((int(match[2]), column))
    for stem, found in numbered.items():
        if len(found) > 1 and not any(stem in row for row in rows):
            for row in rows:
                row[stem] = [text for _, column in sorted(found) if (text := row.pop(column, None)) is not None]


def _described(column: str, rows: list[tuple[int, int, dict[str, Any]]], parts: list[Part]) -> dict[str, Any] | None:
    """Describe a column; in CSV and TSV, `MISSING_WORDS` become None in the rows unless it is a column of texts.

    pandas reads these words as missing, quoted or not, but a caption may be one of them.
    """
    tables = [Path(part.name).suffix.lower() in (".csv", ".tsv") for part in parts]
    lacking = [row for part, _, row in rows if tables[part] and row.get(column) in MISSING_WORDS]
    words = [row[column] for row in lacking]
    for row in lacking:
        row[column] = None
    spec = _describe(column, [row.get(column) for *_, row in rows], parts)
    if spec and spec["kind"] == "text":
        for row, word in zip(lacking, words):
            row[column] = word
    return spec


def _describe(column: str, values: list[Any], parts: list[Part]) -> dict[str, Any] | None:
    """Infer the card's entry for a column from its name and values; None where no kind fits."""
    known = [value for value in values if value is not None]
    if not known:
        return None
    lower, kinds = column.lower(), {type(value) for value in known}
    for part in parts:
        if column in part.class_names:
            return {"kind": "label", "classes": list(part.class_names[column])}
    if kinds == {list}:
        items = [item for value in known for item in value]
        texts = [item for item in items if item is not None and not not_a_number(item)]
        # keep a column of captions with a number among them: reading reports the number with its row
        if texts and (any if TEXTS.search(lower) else all)(isinstance(item, str) for item in texts):
            return {**TEXT, "shape": [None]}
        if items and all(type(item) in (int, float) for item in items) and len({len(value) for value in known}) == 1:
            return {"kind": "vector", "shape": [len(known[0])], "unit": "unknown", "range": [None, None]}
        return None
    if kinds & {dict, list, bytes}:
        return None
    words = [_word(value) for value in known]
    classes = set(words)
    is_text = kinds == {str} and not all(re.fullmatch(r"-?\d+(\.\d+)?", word) for word in words)
    fractions = float in kinds and any(not float(value).is_integer() for value in known if isinstance(value, float))
    if lower in LABELS and len(classes) <= MOST_CLASSES and not fractions:
        return {"kind": "label", "classes": _in_order(classes)}
    if TEXTS.search(lower) and (is_text or (str in kinds and len(kinds) > 1)):  # a number among texts: as above
        return dict(TEXT)
    if lower == "id" or lower.endswith("_id") or fractions:
        return {"kind": "id"}
    repeated = len(classes) <= max(2, len(words) // 4) and len(classes) <= MOST_CLASSES // 10 and len(words) > len(classes)
    if repeated and all(len(word) <= 40 for word in classes):
        return {"kind": "label", "classes": _in_order(classes)}
    return dict(TEXT) if is_text else {"kind": "id"}


def _as_described(row: dict[str, Any], columns: dict[str, dict[str, Any]]) -> None:
    """Convert a row's values to the form of their columns: labels to names, ids to words."""
    for column in [key for key in row if key not in columns]:
        del row[column]
    for column, spec in columns.items():
        value = row.setdefault(column, None)
        if value is None or isinstance(value, dict):
            continue
        if spec["kind"] == "label":
            names = spec["classes"]
            row[column] = names[value] if type(value) is int and _word(value) not in names else _word(value)
        elif spec["kind"] == "id":
            row[column] = _word(value)
        elif spec["kind"] == "text" and isinstance(value, list):
            texts = [text.strip() if isinstance(text, str) else text for text in value]
            row[column] = [text for text in texts if text not in (None, "") and not not_a_number(text)] or None


def _group_texts(columns, rows, splits, files) -> tuple[list[Any], list[Any]]:
    """Merge rows of the same file that differ in one column of text only, which then holds all their texts."""
    if len(files) != 1:
        return rows, splits
    groups: dict[str, list[int]] = {}
    for i, (part, _, row) in enumerate(rows):
        place = row[files[0]]["path"] if row[files[0]] else f"{part} {i}"
        groups.setdefault(f"{splits[i]} {place}", []).append(i)
    if len(groups) == len(rows):
        return rows, splits
    differing = {
        column
        for members in groups.values()
        for column in columns
        for i in members[1:]
        if rows[i][2][column] != rows[members[0]][2][column]
    }
    texts = [column for column in differing if columns[column]["kind"] == "text" and "shape" not in columns[column]]
    if len(texts) != 1 or any(columns[column]["kind"] != "id" for column in differing - set(texts)):
        return rows, splits  # such as questions and answers, which stay separate rows
    columns[texts[0]]["shape"] = [None]
    kept = []
    for members in groups.values():
        part, number, row = rows[members[0]]
        merged = dict.fromkeys(text for i in members if (text := rows[i][2][texts[0]]) is not None)
        kept.append((part, number, {**row, texts[0]: list(merged) or None}))
    return kept, [splits[members[0]] for members in groups.values()]


def _make_splits(columns: dict[str, dict[str, Any]], rows: list[Any], parts: list[Part]) -> list[str]:
    """Hold out a tenth each for validation and test, stratified by class if every class has five items or more.

    Rows that share a file, or a text where there are no files, are in the same split.
    """
    files = [column for column, spec in columns.items() if spec["kind"] in ("image", "audio")]
    keyed = files or [column for column, spec in columns.items() if spec["kind"] == "text"]

    def key(part: int, number: int, row: dict[str, Any]) -> str:
        values = [row.get(column) for column in keyed]
        folder = parts[part].folder or Path()
        values = [
            os.path.relpath(v["path"], folder) if isinstance(v, dict) else v for v in values
        ]  # independent of the data's location
        return json.dumps(values, default=str) if any(values) else f"{part} {number}"

    label = next((column for column, spec in columns.items() if spec["kind"] == "label"), None)
    keys = [key(*row) for row in rows]
    class_of = {k: row[2].get(label) if label else None for k, row in zip(keys, rows)}
    smallest = min(Counter(c for c in class_of.values() if c is not None).values(), default=0)
    strata: dict[Any, list[str]] = {}
    for one in sorted(class_of, key=lambda k: uniform(f"inferred {k}")):
        strata.setdefault(class_of[one] if smallest >= 5 else None, []).append(one)
    split_of_key = {}
    for members in strata.values():
        n = len(members)
        tenth = max(1, round(n / 10)) if n > 2 else 0
        tests = max(tenth, int(n == 2))
        for i, one in enumerate(members):
            split_of_key[one] = "test" if i < tests else "validation" if i < tests + tenth else "train"
    return [split_of_key[k] for k in keys]


def _embedded_kind(part: Part, column: str) -> dict[str, Any]:
    """Describe a column of pictures or sounds by its first cell."""
    import soundfile

    for cells in part.embedded_rows():
        if cell := cells[column]:
            data = _embedded(part, cell)
            if kind := media_kind(data.get("path")):
                return dict(PICTURE if kind == "image" else SOUND)
            try:
                soundfile.info(io.BytesIO(data["bytes"] or b""))
                return dict(SOUND)
            except soundfile.LibsndfileError:
                break
    return dict(PICTURE)


def _embedded(part: Part, cell: dict[str, Any]) -> dict[str, Any]:
    """Resolve the path of a cell without bytes, relative to the table's folder."""
    if cell.get("bytes") is not None or not cell.get("path"):
        return cell
    return {"bytes": None, "path": user_files.resolve(part.folder, cell["path"]) or cell["path"]}


def _word(value: Any) -> str:
    """Name of a class from a value; whole floats, which empty cells of a table cause, lose their decimal point."""
    if isinstance(value, bool):
        return str(value).lower()
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value).strip()


def _in_order(classes: set[str]) -> list[str]:
    return sorted(classes, key=int) if all(re.fullmatch(r"-?\d+", word) for word in classes) else sorted(classes)
