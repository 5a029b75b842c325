"""Data cards: reading, checking, and opening a split as a memory-mapped `datasets.Dataset`."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from filelock import FileLock
from tqdm import tqdm

import mmgen
from mmgen.data.card_files import card_names as card_names
from mmgen.data.card_files import cards_folder as cards_folder
from mmgen.data.card_files import find_card, log_once
from mmgen.data.sources import places
from mmgen.data.sources.columns import (
    check_value,
    expected_classes,
    feature,
    missing_values,
    outside_classes,
    shown_value,
    stored,
)
from mmgen.data.sources.front_matter import check_front_matter
from mmgen.data.sources.places import Unavailable, label_of
from mmgen.data.sources.readers import Line, options_of, reader_of
from mmgen.errors import Mistakes, UserError, UserErrors, check_at_least, check_one_of, counted, nearest
from mmgen.storage import cache_folder, cache_written

if TYPE_CHECKING:
    import datasets  # slow to import, like the others; `mmgen list` reads cards without them
    import numpy as np
    import pyarrow as pa
    from datasets.arrow_writer import ArrowWriter


CHECKED_ROWS = 64  # evenly spaced rows of each split whose values `check_card` decodes
WRITTEN_ROWS = 100  # rows written together
REFUSED = (TypeError, ValueError, AttributeError, KeyError, OverflowError, NotImplementedError)  # bases of Arrow's errors


@dataclass(frozen=True)
class Card:
    """Contents of a data card.

    Args:
        name: the file's name without its ending.
        front: the Hugging Face fields of the front matter (``pretty_name``, ``license``, ``language``, ...).
        sources: sources of the data in order of preference, each with its location and reader.
        columns: column -> kind, shape, unit, range and rate, as they apply.
        splits: split -> number of rows.
        prose: the text below the front matter.
        folder: first root of its sources' paths, before ``$MMGEN_DATA``; None for the cards that come with mmgen.
    """

    name: str
    front: dict[str, Any]
    sources: list[dict[str, Any]]
    columns: dict[str, dict[str, Any]]
    splits: dict[str, int]
    prose: str
    folder: Path | None = None

    @property
    def pretty_name(self) -> str:
        """Name of the data set for display."""
        return self.front["pretty_name"]

    @property
    def license(self) -> str:
        """Licences, separated by commas."""
        licences = self.front["license"]
        return licences if isinstance(licences, str) else ", ".join(licences)


class NoSource(UserError):
    """None of a card's sources is available."""


def read_card(name_or_path: str | Path) -> Card:
    """Read a data card, or infer one for data without a card.

    Args:
        name_or_path: one of `card_names`; the path of a ``.md`` file, of a folder or of a table (CSV, TSV, JSON lines or
            Parquet); or the name ``user/data`` of a data set on the Hub.

    Returns:
        The card.

    Raises:
        UserError: there is no such card, folder, table or data set, or its front matter is not a YAML mapping.
        UserErrors: the card has mistakes; all of them are listed.

    >>> read_card("digits").columns["label"]
    {'kind': 'label', 'classes': 10}
    """
    name, text, folder = find_card(name_or_path)
    match = re.match(r"---\r?\n(.*?)^---\s*$(.*)", text, re.DOTALL | re.MULTILINE)
    fix = "begin the file with --- YAML ---; `mmgen data show openmoji --yaml` prints one"
    if match is None:
        raise UserError(f"data card {name}.md", got=repr(text[:40]), expected="front matter between two lines ---", fix=fix)
    try:
        front = yaml.safe_load(match[1])
    except yaml.YAMLError as error:
        raise UserError(f"data card {name}.md", got=str(error), expected="front matter in YAML", fix=fix) from error
    if not isinstance(front, dict):
        raise UserError(f"data card {name}.md", got=front, expected="a mapping in the front matter", fix=fix)
    problems = check_front_matter(f"data card {name}", front, match[2])
    if problems:
        raise UserErrors(problems)
    ours = front.pop("mmgen")
    return Card(name, front, ours["sources"], ours["columns"], ours["splits"], match[2].strip(), folder)


def open_card(
    name_or_path: str | Path,
    split: str,
    *,
    limit: int | None = None,
    data_folder: str | Path | None = None,
    **options: Any,
) -> datasets.Dataset:
    """Open one split of a data card from its first available source; it is read once and cached as Arrow.

    Args:
        name_or_path: as in `read_card`.
        split: one of the card's splits.
        limit: largest number of rows; 0 or None: all.
        data_folder: root of the card's relative paths; None: ``$MMGEN_DATA``.
        options: options of the card's reader, such as ``size`` or ``seed``.

    Returns:
        The rows, memory-mapped; pictures and sounds as ``{"bytes", "path"}``. ``.info.description`` names the source.

    Raises:
        UserError: the card, split or an option is unknown, or the data lack a column or are damaged.
        NoSource: no source is available; the message gives the reason for each.

    >>> open_card("digits", "train", limit=2)["word"][:]  # doctest: +SKIP
    ['zero', 'one']
    """
    return _open(read_card(name_or_path), split, limit, data_folder, options)[0]


def data_version(name_or_path: str | Path, split: str) -> list[str]:
    """Version of a user's own data, which changes with its rows, as a cache key; empty for mmgen's cards."""
    if str(name_or_path) in card_names():
        return []
    return [Path(file["filename"]).stem for file in open_card(name_or_path, split).cache_files]


def check_card(name_or_path: str | Path, *, data: bool = True, data_folder: str | Path | None = None) -> list[UserError]:
    """List all problems of a card, in its structure and by comparison with its data.

    Args:
        name_or_path: as in `read_card`.
        data: also open every split; check columns, row counts, missing values and labels of all rows, and decode the values
            of `CHECKED_ROWS` evenly spaced rows.
        data_folder: as in `open_card`.

    Returns:
        The problems; empty when there are none. Unavailable data are a problem of type `NoSource`.

    >>> check_card("digits", data=False)
    []
    """
    try:
        card = read_card(name_or_path)
    except UserErrors as error:
        return error.errors
    except UserError as error:
        return [error]
    problems: dict[str, UserError] = {}  # by message, as one mistake can show in every split
    for split in card.splits if data else ():
        try:
            dataset, source = _open(card, split, None, data_folder, {})
        except NoSource as error:
            return [*problems.values(), error]
        except UserError as error:
            problems |= {str(e): e for e in getattr(error, "errors", [error])}
            continue
        problems |= {str(e): e for e in [*_unknown_splits(card, source, data_folder), *_compare(card, split, dataset, source)]}
    return list(problems.values())


USUAL = ("image", "audio", "caption", "text", "word", "label")  # default column names of configs


def check_column(card: Card, key: str, column: str, *kinds: str, one_text: bool = False) -> str:
    """Check that a card has a column of one of ``kinds``; a default name is replaced by the only column of these kinds.

    Args:
        card: the card.
        key: the config key that names the column, for the message.
        column: name of the column.
        kinds: accepted kinds; none: any.
        one_text: reject a column of several texts a row.

    Returns:
        ``column``, or its replacement, which is logged.

    Raises:
        UserError: there is no such column, it is of another kind, or it holds several texts a row.
    """
    wanted = ("label",) if column == "label" and not kinds else kinds
    fitting = [name for name, entry in card.columns.items() if entry["kind"] in wanted]
    choice = " or ".join(f"{key}={name}" for name in fitting)
    if column not in card.columns:
        if column in USUAL and len(fitting) == 1:
            (taken,) = fitting
            kind = " or ".join(wanted)
            log_once(f"{key}={taken}: {card.name} has no column {column}, and {taken} is its only one of {kind}")
            return check_column(card, key, taken, *kinds, one_text=one_text)
        fix = f"write {choice}" if fitting else f"its columns are {', '.join(card.columns)}"
        if column not in USUAL:
            close = nearest(column, fitting or card.columns)
            fix = close if close.startswith("did") else fix
        expected = f"a column of {' or '.join(wanted)}" if wanted else "a known name"
        raise UserError(f"{key} (a column of {card.name})", got=column, expected=expected, fix=fix)
    kind = card.columns[column]["kind"]
    if kinds and kind not in kinds:
        fix = f"write {choice}" if choice else f"choose other data: it has no column of {' or '.join(kinds)}"
        raise UserError(f"{key}={column}", got=f"a column of {kind}", expected=" or ".join(kinds), fix=fix)
    if kind == "id" and not kinds and column == "label":  # a default name, not the user's choice
        fix = f"write {choice}" if choice else "write a card that says its kind (mmgen data init), or name another column"
        raise UserError(f"{key}={column}", got="a column of id", expected="label", fix=fix)
    if one_text and kind == "text" and "shape" in card.columns[column]:
        fix = "choose another column, or keep one text in each row"
        raise UserError(f"{key}={column}", got="several texts a row", expected="one", fix=fix)
    return column


def check_columns(
    section: Any, path: str, errors: Mistakes, kinds: Mapping[str, Sequence[str]], one_text: bool = False
) -> None:
    """Check the columns of ``section.card`` that a config section names, and replace default names, see `check_column`.

    Args:
        section: config section.
        path: its key, for the messages.
        errors: keeps the mistakes.
        kinds: key in the section -> accepted kinds of its column; none: any.
        one_text: reject a column of several texts a row.
    """
    card = read_card(section.card)
    for key, accepted in kinds.items():
        with errors:
            column = check_column(card, f"{path}.{key}", getattr(section, key), *accepted, one_text=one_text)
            setattr(section, key, column)


def held_out(card: Card) -> str:
    """Split for samples during training: ``validation``, or ``train`` if the card has no such split."""
    return "validation" if "validation" in card.splits else "train"


def class_names(card: Card, column: str) -> list[str]:
    """Class names of a label column, in order; numbers where the card has no names.

    >>> class_names(read_card("sst2"), "label"), class_names(read_card("mnist"), "label")[:2]
    (['negative', 'positive'], ['0', '1'])
    """
    classes = card.columns[column]["classes"]
    return [str(name) for name in (range(classes) if isinstance(classes, int) else classes)]


def describe(card: Card) -> str:
    """Describe a card for `mmgen data show`: its fields, sources, columns and splits, then its prose.

    >>> describe(read_card("digits")).splitlines()[0]
    "scikit-learn's handwritten digits"
    """
    lines = [card.pretty_name, *(f"{k}: {_words(v)}" for k, v in card.front.items() if k != "pretty_name")]
    for source in card.sources:
        splits = source.get("splits", card.splits)
        lines.append(f"source {label_of(source)}: {', '.join(f'{split} {n:,}' for split, n in splits.items())} rows")
    lines += [f"column {name}: {', '.join(f'{k} {_words(v)}' for k, v in c.items())}" for name, c in card.columns.items()]
    return "\n".join([*lines, "", card.prose])


def _words(value: Any) -> str:
    values = value if isinstance(value, list) else [value]
    return " ".join("any" if v is None else str(v) for v in values)


def _unknown_splits(card: Card, source: dict[str, Any], data_folder: str | Path | None) -> Iterator[UserError]:
    """Yield the splits of a user's data that the card does not have, such as a misspelt one."""
    if source.get("reader") != "inferred":
        return
    splits = source.get("splits", card.splits)
    folder = Path(data_folder) if data_folder else None
    found, _ = places.locate(source, next(iter(splits)), folder, open_card, card.folder)
    for split in found.splits.keys() - splits.keys():
        got = f"a split {split} of {counted(len(found.splits[split]), 'row')} in the data"
        fix = f"rename it to one of {', '.join(splits)}, or add {split}: {len(found.splits[split])} to the card"
        yield UserError(f"data card {card.name}: splits", got=got, expected="a split of the card", fix=fix)


def _compare(card: Card, split: str, dataset: datasets.Dataset, source: dict[str, Any]) -> Iterator[UserError]:
    """Yield the differences between the data of one split and the card."""
    want = source.get("splits", card.splits)[split]
    if len(dataset) != want:
        fix = f"write {split}: {len(dataset)}, or use the version of the data that the card describes"
        yield UserError(
            f"data card {card.name}: splits.{split}", got=counted(len(dataset), "row"), expected=f"{want}", fix=fix
        )
    for name, spec in card.columns.items():
        for bad, expected, fix in _mistakes(spec, dataset.data.column(name)):
            row, count = int(bad.argmax()), int(bad.sum())
            got = shown_value(dataset[row], name)
            got += f", and in {count - 1} more of {counted(len(dataset), 'row')}" if count > 1 else ""
            yield UserError(f"{card.name}: {split}: row {row}: column {name}", got=got, expected=expected, fix=fix)
    step = max(1, (len(dataset) - 1) / max(1, CHECKED_ROWS - 1))
    chosen = dict.fromkeys(round(i * step) for i in range(min(len(dataset), CHECKED_ROWS)))  # includes the first and the last
    for name, spec in card.columns.items():
        values, lacks = dataset.select_columns([name]), missing_values(dataset.data.column(name))
        for row in (row for row in chosen if not lacks[row]):
            what = f"{card.name}: {split}: row {row}: column {name}"
            try:
                wrong = check_value(spec, values[row][name])
            except UserError as error:
                yield UserError.from_line(f"{what}: {error}")
                break
            if wrong:
                yield UserError(what, got=wrong[0], expected=wrong[1], fix="correct the card, or the data")
                break


def _mistakes(spec: dict[str, Any], column: pa.ChunkedArray) -> Iterator[tuple[np.ndarray, str, str]]:
    """Yield mistakes found without decoding: which values (n,) bool, what is expected, how to fix it."""
    if spec["kind"] not in ("group", "id") and (bad := missing_values(column)).any():
        fix = "fill it in, drop the row, or train a model that accepts missing modalities, such as multimodal_vae"
        yield bad, "a text" if spec["kind"] == "text" else "a value", fix
    if spec["kind"] == "label" and (bad := outside_classes(spec, column)).any():
        yield bad, expected_classes(spec), "correct the card's classes, or the data"


def _open(
    card: Card, split: str, limit: int | None, data_folder: str | Path | None, options: dict[str, Any]
) -> tuple[datasets.Dataset, dict[str, Any]]:
    check_one_of(f"{card.name}: split", split, {s for source in card.sources for s in source.get("splits", card.splits)})
    limit = check_at_least("limit", limit or 0, 0) or None
    readers = [reader_of(source) for source in card.sources]
    for name in options:
        check_one_of(f"{card.name}: option", name, {key for reader in readers for key in options_of(reader)})
    data_folder = Path(data_folder) if data_folder else None
    failures = []
    for source, reader in zip(card.sources, readers):
        try:
            counts = source.get("splits", card.splits)
            if split not in counts:
                raise Unavailable(f"has no split {split}", f"choose one of {', '.join(counts)}")
            if options.keys() - options_of(reader):
                raise Unavailable(f"takes no option {min(options.keys() - options_of(reader))}", "leave the option out")
            return _open_source(card, source, reader, split, limit, data_folder, options), source
        except Unavailable as error:
            failures.append((f"{label_of(source)} ({error})", error.fix))
    reasons, fixes = zip(*failures)
    fix = " or ".join(dict.fromkeys(fixes))
    raise NoSource(f"data card {card.name}", got="no source", expected=f"one of {', '.join(reasons)}", fix=fix)


def _open_source(card, source, reader, split, limit, data_folder, options) -> datasets.Dataset:
    import datasets
    import pyarrow as pa

    def part(name: str, of: str) -> datasets.Dataset:
        return open_card(name, of, data_folder=data_folder)

    place, identity = places.locate(source, split, data_folder, part, card.folder)
    count = source.get("splits", card.splits)[split]
    total = count if limit is None else min(limit, count)
    key = [mmgen.__version__, _code(), source, identity, card.columns, limit, options]
    digest = hashlib.sha256(json.dumps(key, sort_keys=True, default=str).encode()).hexdigest()[:16]
    file = cache_folder() / "cards" / card.name / f"{split}-{digest}.arrow"
    with cache_written(file):
        cached = file.exists()
    if not cached:
        rows = reader(split, **options) if place is None else reader(split, place, **options)
        rows = tqdm(itertools.islice(rows, limit), f"{card.name} {split}", total, unit="row", delay=1)
        _write(card, split, rows, file, source.get("rename", {}))
    description = f"{card.name} from {label_of(source)}"
    info = datasets.DatasetInfo(description=description, license=str(card.front["license"]), features=_features(card))
    try:
        with cache_written(file):
            return datasets.Dataset.from_file(str(file), info=info, split=datasets.NamedSplit(split))
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(str(file), got=str(error), expected="a whole Arrow file", fix="delete it") from error


def _write(card: Card, split: str, rows: Iterable[dict[str, Any]], file: Path, rename: dict[str, str]) -> None:
    """Write the rows to a partial file and rename it, under a lock: readers never see an incomplete file."""
    from datasets.arrow_writer import ArrowWriter

    partial = file.with_suffix(".partial")
    with cache_written(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(file.with_suffix(".lock")):
            if file.exists():  # written by another process in the meantime
                return
            waiting: list[tuple[str, dict[str, Any]]] = []  # rows with their places, to be written together
            with contextlib.closing(
                ArrowWriter(path=str(partial), features=_features(card), writer_batch_size=None)
            ) as writer:
                for number, row in enumerate(rows):
                    place = f"{card.name}: {row.place if isinstance(row, Line) else f'{split}: row {number}'}"
                    waiting.append((place, _columns(card, place, row, rename, number == 0)))
                    if len(waiting) == WRITTEN_ROWS:
                        _write_rows(card, writer, waiting)
                _write_rows(card, writer, waiting)
                writer.finalize()
            partial.replace(file)


def _write_rows(card: Card, writer: ArrowWriter, waiting: list[tuple[str, dict[str, Any]]]) -> None:
    """Write rows and clear the list.

    Raises:
        UserError: a value does not fit its column; the message names the first.
    """
    try:
        for _, row in waiting:
            writer.write(row)
        writer.write_examples_on_file()
    except REFUSED as error:
        found = next(_unfitting(card, waiting), None)
        what, got, expected = f"data card {card.name}", str(error), "values that fit the card's columns"
        if found:
            what, got, expected = f"{found[0]}: column {found[1]}", repr(found[2]), f"a {card.columns[found[1]]['kind']}"
        fix = "correct the value, or the kind or shape of its column"
        raise UserError(what, got=got, expected=expected, fix=fix) from error
    waiting.clear()


def _unfitting(card: Card, rows: list[tuple[str, dict[str, Any]]]) -> Iterator[tuple[str, str, Any]]:
    """Yield place, column and value of all values that cannot be stored."""
    import pyarrow as pa
    from datasets.arrow_writer import TypedSequence

    features = _features(card)
    for place, row in rows:
        for name, value in row.items():
            try:
                pa.array(TypedSequence([value], type=features[name]))
            except REFUSED:
                yield place, name, value


def _columns(card: Card, place: str, row: dict[str, Any], rename: dict[str, str], first: bool) -> dict[str, Any]:
    """Convert one row to the card's columns in their stored form."""
    names = {name: rename.get(name, name) for name in card.columns}
    missing = [name for name, of in names.items() if of not in row]
    if missing and first:  # later rows of a table may omit columns
        had = f"columns {', '.join(map(str, row))} in {place}"
        fix = "remove it from the card, or name it under rename"
        raise UserErrors(UserError(f"data card {card.name}: column {m}", got=had, expected=m, fix=fix) for m in missing)
    values = {}
    for name, of in names.items():
        values[name] = stored(card.columns[name], row.get(of), f"{place}: column {name}")
    return values


def _features(card: Card) -> datasets.Features:
    import datasets

    return datasets.Features({name: feature(spec) for name, spec in card.columns.items()})


def _code() -> str:
    """Hash the readers' code and tables, so that a changed reader does not use an old cache."""
    files = sorted(file for file in Path(places.__file__).parent.iterdir() if file.suffix in (".py", ".yaml"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
