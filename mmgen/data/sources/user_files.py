"""Files of a user without a card: finds tables, media files and their rows by the conventions of ImageFolder."""

import os
import re
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any

from mmgen.data.sources import table_files
from mmgen.errors import UserError, UserErrors, counted

PICTURES = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".jp2", ".ppm", ".pgm"
)  # fmt: skip
SOUNDS = (".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aiff", ".aif", ".au", ".w64")
SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
FILE_NAME = "file_name"  # the column that names the file of a row, as in ImageFolder and AudioFolder
FOLDER_LABEL = "label"  # the column made from class folders
SHOWN = 8  # number of missing files named in an error


@dataclass
class Part:
    """Rows of one table, or media files in one folder.

    Args:
        name: the file or folder, for messages.
        split: the split in its name, or None.
        rows: (place of the row, its values), without cells that are embedded files.
        folder: root of the paths in it; None if it has none.
        embedded: the columns of embedded files.
        embedded_rows: function that yields their cells for every row, in order.
        class_names: label column -> class names, where the file has them.
    """

    name: str
    split: str | None
    rows: list[tuple[str, dict[str, Any]]]
    folder: Path | None = None
    embedded: list[str] = field(default_factory=list)
    embedded_rows: Callable[[], Iterator[dict[str, Any]]] = lambda: iter(())
    class_names: dict[str, list[str]] = field(default_factory=dict)


def media_kind(name: Any) -> str | None:
    """Kind of a media file, ``image`` or ``audio``, by its ending; None for any other value.

    >>> media_kind("dogs/1.JPG"), media_kind("a dog")
    ('image', None)
    """
    ending = PurePath(name).suffix.lower() if isinstance(name, str) else ""
    return "image" if ending in PICTURES else "audio" if ending in SOUNDS else None


def split_of(name: str, *, whole: bool = False) -> str | None:
    """Split named by a file or folder.

    Args:
        name: name without ending.
        whole: compare the whole name; otherwise any of its words.

    >>> split_of("captions-val"), split_of("captions-val", whole=True), split_of("dev", whole=True)
    ('validation', None, 'validation')
    """
    words = [name.lower()] if whole else re.split(r"[-_.\s\d]+", name.lower())
    return next((split for split, names in SPLITS.items() for word in words if word in names), None)


def signature(path: Path) -> tuple[Any, ...]:
    """Compute a value that changes with a table, or when a file is added to or removed from a folder."""
    if path.is_file():
        return _stat(path)
    return tuple((*_stat(Path(folder)), *(_stat(Path(folder, f)) for f in sorted(files) if _is_table(f)))
                 for folder, _, files in os.walk(path))  # fmt: skip


def stats(files: list[str]) -> list[tuple[Any, ...]]:
    """Path, size and modification time of each file."""
    return [_stat(Path(file)) for file in files]


def parts_of(path: Path) -> list[Part]:
    """Find the rows of a table or of a folder, by its ``metadata.csv``, its tables, or its class folders.

    Raises:
        UserError: there is nothing to read, several tables do not name their splits, or a table is damaged.
    """
    if path.is_file():
        if not _is_table(path.name):
            expected = f"a folder, or a table that ends in {', '.join(table_files.ENDINGS)}"
            raise UserError(str(path), got=f"a {path.suffix or 'nameless'} file", expected=expected, fix="name its folder")
        return [_table(path, None)]
    files = _files(path)
    tables = [f for f in files if _is_table(f.name)]
    described = [f for f in tables if f.stem.lower() == "metadata"]
    if described:
        return [_table(f, _folder_split(path, f)) for f in described]
    if tables:
        splits = [_folder_split(path, f) or split_of(f.stem) for f in tables]
        if len(tables) > 1 and None in splits:
            names = ", ".join(str(f.relative_to(path)) for f in tables[:5])
            fix = f"give the path of one, such as {tables[0]}, or name them train, validation and test"
            raise UserError(str(path), got=f"tables {names}", expected="one table, or one for each split", fix=fix)
        return [_table(f, split) for f, split in zip(tables, splits)]
    return _media_folders(path, files)


def _files(path: Path) -> list[Path]:
    """List the files in a folder, recursively and sorted, without hidden ones.

    Raises:
        UserError: a folder cannot be read, which `Path.rglob` would ignore.
    """

    def refuse(error: OSError) -> None:
        raise error

    try:
        for folder, names, _ in os.walk(path, onerror=refuse):
            names[:] = [name for name in names if not _hidden(Path(folder, name).relative_to(path))]
        return sorted(f for f in path.rglob("*") if f.is_file() and not _hidden(f.relative_to(path)))
    except OSError as error:
        fix = "change its permissions, or copy the data to a folder of yours"
        raise UserError(str(path), got=str(error), expected="folders that can be read", fix=fix) from error


def resolve(folder: Path | None, name: str) -> str | None:
    """Absolute path of a file named in a table, or None if it does not exist.

    Args:
        folder: root of relative names; None: the current folder.
        name: the name, with / or \\, and with composed or decomposed letters.
    """
    folder = folder or Path.cwd()
    for spelling in (name, name.replace("\\", "/")):
        for form in ("NFC", "NFD"):
            path = folder / unicodedata.normalize(form, spelling)
            if path.is_file():
                return str(path.absolute())
    return None


def missing(card: str, found: list[tuple[str, int, str, str, Path]]) -> UserErrors:
    """Make the errors for files that tables name but that do not exist.

    Args:
        card: name of the data.
        found: (split, row, place in the table, name of the file, folder) of each.
    """
    errors = []
    for split, row, place, name, folder in found[:SHOWN]:
        below = next((f for f in sorted(folder.iterdir()) if f.is_dir() and (f / name).is_file()), None)
        fix = f"write {below.name}/{name}" if below else "correct the name, or take the row out"
        what = f"data card {card}: {split}: row {row} ({place})"
        errors.append(UserError(what, got=f"{name}, which does not exist", expected=f"a file in {folder}", fix=fix))
    if len(found) > SHOWN:
        got, fix = f"{len(found) - SHOWN} more missing files", "correct the paths, which begin at the table's folder"
        errors.append(UserError(f"data card {card}", got=got, expected="none", fix=fix))
    return UserErrors(errors)


def _media_folders(path: Path, files: list[Path]) -> list[Part]:
    media = [(f, kind) for f in files if (kind := media_kind(f.name))]
    if not media:
        endings = ", ".join(sorted({f.suffix.lower() or "(none)" for f in files})[:8])
        got = f"{counted(len(files), 'file')} ending in {endings}" if files else "no files"
        expected = "pictures, sounds or a table with a column file_name"
        raise UserError(str(path), got=got, expected=expected, fix="convert them, to PNG, JPEG or WAV for example")
    if len({kind for _, kind in media}) > 1:
        fix = "describe them in metadata.csv, or move one kind elsewhere"
        raise UserError(str(path), got="pictures and sounds", expected="one kind of file in a folder", fix=fix)
    relative = [f.relative_to(path).parts for f, _ in media]
    in_splits = all(len(parts) > 1 and split_of(parts[0], whole=True) for parts in relative)
    depth = 1 if in_splits else 0
    labels = [parts[-2] if len(parts) > depth + 1 else None for parts in relative]
    labelled = None not in labels and len(set(labels)) > 1  # as in ImageFolder; otherwise the folders are not classes
    rows: dict[str | None, list[tuple[str, dict[str, Any]]]] = {}
    for parts, label in zip(relative, labels):
        file = "/".join(parts)
        row = {FILE_NAME: file, FOLDER_LABEL: label} if labelled else {FILE_NAME: file}
        rows.setdefault(split_of(parts[0], whole=True) if in_splits else None, []).append((file, row))
    return [Part(path.name, split, found, path) for split, found in rows.items()]


def _table(file: Path, split: str | None) -> Part:
    rows = [(f"{file.name} {place}", row) for place, row in table_files.numbered_rows(file)]
    if not rows:
        raise UserError(str(file), got="no rows", expected="at least one below the header", fix="add rows to the table")
    embedded = table_files.embedded_columns(file)
    return Part(str(file), split, rows, file.parent, embedded, lambda: table_files.embedded_rows(file),
                table_files.class_names(file))  # fmt: skip


def _folder_split(path: Path, file: Path) -> str | None:
    """Split named by a folder between ``path`` and ``file``."""
    return next((s for part in file.relative_to(path).parts[:-1] if (s := split_of(part, whole=True))), None)


def _is_table(name: str) -> bool:
    return name.lower().endswith(table_files.ENDINGS)


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in path.parts)


def _stat(path: Path) -> tuple[Any, ...]:
    found = path.stat()
    return str(path), found.st_size, found.st_mtime_ns
