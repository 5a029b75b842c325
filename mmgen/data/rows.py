"""Rows of a split of a data card: all are checked for missing values when opened, and errors name their row."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import pyarrow as pa

from mmgen.data.cards import open_card, read_card
from mmgen.data.sources.columns import expected_classes, missing_values, outside_classes, shown_value
from mmgen.errors import UserError, counted

if TYPE_CHECKING:
    import datasets

T = TypeVar("T")
PIECE = 100  # rows that are read together when a column is iterated: pictures are large


def open_rows(
    card: str, split: str, needs: Sequence[str], may_lack: Sequence[str] = (), limit: int = 0, **options: Any
) -> Rows:
    """Open a split and check every row of the columns that are used, without decoding any.

    Args:
        card: name or path of a data card.
        split: its name.
        needs: columns in which no value may be missing.
        may_lack: columns in which values may be missing.
        limit: rows of the split, the first; 0 takes all.
        options: of the card's reader.

    Returns:
        The rows.

    Raises:
        UserError: a value of ``needs`` is missing (null, or an empty text), or a label is none of the card's classes; the
            message names the card, the split, the row from 0, and the column.

    >>> rows = open_rows("digits", "train", ["word"], limit=2)
    >>> rows["word"][:], rows.place(1, "word")
    (['zero', 'one'], 'digits: train: row 1: column word')
    """
    table = open_card(card, split, limit=limit or None, **options)
    rows = Rows(card, split, table, range(len(table)))
    for name in needs:
        if (bad := missing_values(table.data.column(name))).any():
            row = int(bad.argmax())
            got, count = shown_value(table[row], name), int(bad.sum())
            fix = (
                "fill it in, or drop the row"
                if count == 1
                else f"fill it in, or drop the row (as in {counted(count - 1, 'more row')})"
            )
            raise UserError(rows.place(row, name), got=got, expected="a value", fix=fix)
    for name in (*needs, *may_lack):
        column = table.data.column(name)
        spec = read_card(card).columns[name] if pa.types.is_integer(column.type) else {}
        if "classes" in spec and (bad := outside_classes(spec, column)).any():
            classes = spec["classes"]
            row = int(bad.argmax())
            expected = f"a class of the card, {expected_classes(spec) if isinstance(classes, int) else classes}"
            fix = "correct the label or the card's classes, or leave the label empty"
            raise UserError(rows.place(row, name), got=table[row][name], expected=expected, fix=fix)
    return rows


def check_several_classes(place: str, column: str, names: Sequence[str]) -> None:
    """Fail unless a classifier has two classes or more to tell apart.

    Args:
        place: the card, or a split of it, for the message.
        column: the labels.
        names: their classes.

    Raises:
        UserError: there is one, or none.
    """
    if len(names) < 2:
        got, fix = f"one class, {names[0]}" if names else "no class", "choose a split or a column that has more"
        raise UserError(f"{place}: column {column}", got=got, expected="two classes or more", fix=fix)


@dataclass(frozen=True)
class Rows:
    """Rows of a split, or some of them.

    Args:
        card: name or path of the data card.
        split: its name.
        table: the whole split, as `open_card` gives it.
        numbers: the selected rows of ``table``, in this order.
    """

    card: str
    split: str
    table: datasets.Dataset
    numbers: Sequence[int]
    _columns: dict[str, Column] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, name: str) -> Column:
        if name not in self._columns:
            self._columns[name] = Column(self, name)
        return self._columns[name]

    @property
    def fingerprint(self) -> str:
        """A digest of these rows: the key of what is computed from them and cached."""
        own = self.table._fingerprint
        if self.numbers == range(len(self.table)):
            return own
        return hashlib.sha256(repr((own, list(self.numbers))).encode()).hexdigest()[:16]

    def select(self, items: Sequence[int]) -> Rows:
        """The rows at ``items``, in this order."""
        return Rows(self.card, self.split, self.table, [self.numbers[i] for i in items])

    def having(self, *names: str) -> Rows:
        """The rows in which none of these columns lacks its value.

        Raises:
            UserError: there is no such row.
        """
        lacking = np.any([self[name].missing for name in names], axis=0)
        if lacking.all():
            what, fix = f"{self.card}: {self.split}: {' and '.join(names)}", "fill them in, or name other columns"
            raise UserError(what, got="no value in any row", expected="rows that have it", fix=fix)
        return self.select(np.flatnonzero(~lacking).tolist()) if lacking.any() else self

    def with_any(self, *names: str) -> Rows:
        """The same rows, which all have a value in one of these columns.

        Raises:
            UserError: a row has none.
        """
        lacking = np.all([self[name].missing for name in names], axis=0)
        if lacking.any():
            what, expected = self.place(int(lacking.argmax()), names[0]), f"a value in one of {', '.join(names)}"
            raise UserError(what, got="nothing in any modality", expected=expected, fix="drop the row, or fill one in")
        return self

    def place(self, index: int, column: str) -> str:
        """The name of one value in errors."""
        return f"{self.card}: {self.split}: row {self.numbers[index]}: column {column}"

    @contextmanager
    def at(self, index: int, column: str) -> Iterator[None]:
        """A context whose errors name this value.

        Raises:
            UserError: one was raised inside.
        """
        try:
            yield
        except UserError as error:
            raise UserError.from_line(f"{self.place(index, column)}: {error}") from error


class Column(Sequence[Any]):
    """The raw values of one column, pictures and sounds not decoded; a sequence, read when asked.

    Args:
        rows: the rows it belongs to.
        name: its name.
    """

    def __init__(self, rows: Rows, name: str) -> None:
        self.rows, self.name = rows, name
        self._table = rows.table.select_columns([name])  # a row of one column is read ten times as fast as a value of many

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int | slice) -> Any:
        return self._table[self.rows.numbers[index]][self.name]

    def __iter__(self) -> Iterator[Any]:
        for start in range(0, len(self), PIECE):
            yield from self[start : start + PIECE]

    @property
    def missing(self) -> np.ndarray:
        """(n,) bool, True where the value is null, or an empty text."""
        return missing_values(self._table.data.column(self.name))[np.asarray(self.rows.numbers, dtype=int)]

    def read(self, index: int, process: Callable[[Any], T]) -> T:
        """One value through ``process``.

        Raises:
            UserError: of ``process``, with the place of the value.
        """
        with self.rows.at(index, self.name):
            return process(self[index])

    def texts(self) -> list[list[str]]:
        """The texts of every row, of a column of one text or of several; none where they are missing."""
        return [[] if value is None else [value] if isinstance(value, str) else value for value in self[:]]
