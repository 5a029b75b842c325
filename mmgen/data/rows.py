"""Rows of a split of a data card, raw (`Rows`) or as items of tensors (`DataSet`); errors name card, split, row and column."""

from __future__ import annotations

import copy
import hashlib
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor
from torch.utils.data import get_worker_info
from tqdm.auto import tqdm

from mmgen.data.batch import Batch, collate
from mmgen.data.cards import open_card, read_card
from mmgen.data.image import ImageProcessor
from mmgen.data.sources.columns import expected_classes, missing_values, outside_classes, shown_value
from mmgen.errors import UserError, counted

if TYPE_CHECKING:
    import datasets

T = TypeVar("T")
PIECE = 100  # rows that are read together when a column is iterated: pictures are large
CACHE = 512 * 2**20  # bytes of processed values that a data set keeps
ENTRY = 512  # bytes that a kept tensor takes beside its values


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


def texts_of(card: str, column: str, split: str = "train", limit: int = 0) -> list[str]:
    """The texts of a column of one or several a row, of the first ``limit`` rows, 0 for all.

    Raises:
        UserError: one is missing.

    >>> texts_of("digits", "caption", limit=2)
    ['a handwritten zero', 'a handwritten one']
    """
    return [text for texts in open_rows(card, split, [column], limit=limit)[column].texts() for text in texts]


def spread(n: int, k: int) -> list[int]:
    """At most ``k`` of ``n`` indices, evenly spread from first to last.

    >>> spread(10, 4), spread(2, 4)
    ([0, 3, 6, 9], [0, 1])
    """
    return torch.linspace(0, n - 1, min(n, k)).long().tolist()


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
    def holds_files(self) -> bool:
        """True of pictures and sounds, whose values are the contents or paths of files."""
        return pa.types.is_struct(self._table.data.column(self.name).type)

    @property
    def missing(self) -> np.ndarray:
        """(n,) bool, True where the value is null, or an empty text."""
        return missing_values(self._table.data.column(self.name))[np.asarray(self.rows.numbers, dtype=int)]

    def vectors(self) -> Tensor | None:
        """The values of a column of float32 vectors of one length as (n, d); None for others, or if a number is missing."""
        column = self._table.data.column(self.name)
        lists = pa.types.is_list(column.type) or pa.types.is_fixed_size_list(column.type)
        if not (lists and pa.types.is_float32(column.type.value_type)) or column.null_count:
            return None
        lengths, numbers = pc.list_value_length(column), pc.list_flatten(column)
        if len(pc.unique(lengths)) != 1 or numbers.null_count:
            return None
        return torch.tensor(numbers.to_numpy()).view(len(column), lengths[0].as_py())[list(self.rows.numbers)]

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


class DataSet(Sequence[dict[str, Tensor | None]]):
    """Items of tensors by name, as models and `mmgen.training.loop.fit` read them: item i is ``{name: tensor or None}``.

    Pictures and sounds are decoded on access. The values used last are kept, at most ``cache`` bytes of them; data workers
    share that room. A text or a recording that several rows share is processed once.

    Args:
        rows: opened by `open_rows`.
        columns: name -> a column of the card, or one value a row: numbers, (n, ...) features, None where it is missing.
        processors: name -> raw value to tensor; a name without one becomes a tensor as it is.
        each: the name of a text column of which every text makes an item: row 0 with each of its texts, row 1, and so on.
        text_length: most tokens of these texts, their end included; None for no limit.
        cache: bytes.

    Raises:
        UserError: a value that cannot be read, or a text longer than ``text_length``; the message names the card, the split,
            the row and the column. Texts of ``each`` are checked at once, all others on access.

    >>> rows = open_rows("digits", "test", ["image", "caption"], limit=3)
    >>> data = DataSet(rows, {"image": "image", "label": "label"}, {"image": ImageProcessor(8, 1)})
    >>> len(data), data[1]["image"].shape, data.batch([2, 0])["label"].tolist()
    (3, torch.Size([1, 8, 8]), [0, 5])
    """

    def __init__(
        self,
        rows: Rows,
        columns: Mapping[str, str | Sequence[Any] | Tensor],
        processors: Mapping[str, Callable[[Any], Tensor]] | None = None,
        each: str = "",
        text_length: int | None = None,
        cache: int = CACHE,
    ) -> None:
        self.rows, self.processors, self.names, self.each = rows, processors or {}, list(columns), each
        self.texts: list[str] = []  # that of each item
        self.row_of: Sequence[int] = range(len(rows))
        self.values: dict[str, Sequence[Any] | Tensor] = {
            name: rows[values] if isinstance(values, str) else values for name, values in columns.items()
        }
        self.cache = Cache(cache)
        self._places = {name: v.name if isinstance(v, Column) else name for name, v in self.values.items()}
        self._of_items = {each} if each else set()  # names that have a value an item; the others have one a row
        self._missing: dict[str, np.ndarray] = {}
        self._groups: list[list[int]] | None = None
        for name, column in self.values.items():
            if not isinstance(column, Column):
                continue
            if name == each:
                by_row = [[] if gone else texts for texts, gone in zip(column.texts(), column.missing)]
                self.row_of = [row for row, texts in enumerate(by_row) for _ in texts]
                self.texts = self.values[name] = [text for texts in by_row for text in texts]
            elif column.holds_files:
                self._missing[name] = column.missing
            elif (vectors := column.vectors()) is not None:  # lists of numbers take ten times the room
                self.values[name] = vectors
            else:  # values of `datasets` are slow to read one by one
                self.values[name] = [None if gone else value for value, gone in zip(column[:], column.missing)]
        if each:
            self._check_texts(text_length)

    def _check_texts(self, most: int | None) -> None:
        lengths = [len(self._read(self.each, row, i)) for i, row in enumerate(self.row_of)]
        longest = max(range(len(self)), key=lengths.__getitem__, default=-1)
        if longest >= 0 and most is not None and (length := lengths[longest]) > most:
            what = self.rows.place(self.row_of[longest], self._places[self.each])
            got, fix = f"{length} tokens: {self.texts[longest]!r}", f"set data.text_length={length}"
            raise UserError(what, got=got, expected=f"at most {most}", fix=fix)

    @property
    def sequences(self) -> list[str]:
        """Names whose values differ in length: the texts, and all of `grouped` data."""
        if self._groups is not None:
            return self.names
        return [n for n in self.names if n == self.each or getattr(self.processors.get(n), "kind", "") == "text"]

    def __len__(self) -> int:
        return len(self.row_of)

    def __getitem__(self, index: int) -> dict[str, Tensor | None]:  # type: ignore[override]  # no slices
        return {name: self.read(name, index) for name in self.names}

    def has(self, name: str, index: int) -> bool:
        """Return whether an item has its value of this name."""
        at = index if name in self._of_items else self.row_of[index]
        return not self._missing[name][at] if name in self._missing else self.values[name][at] is not None

    def read(self, name: str, index: int) -> Tensor | None:
        """One value of an item, None where it is missing.

        Raises:
            UserError: it cannot be read.
        """
        if not self.has(name, index):
            return None
        if self._groups is not None:
            return torch.stack([self._read(name, row, row) for row in self._groups[index]])
        row = self.row_of[index]
        return self._read(name, row, index if name in self._of_items else row)

    def _read(self, name: str, row: int, at: int) -> Tensor:
        with self.rows.at(row, self._places[name]):
            return self._processed(name, at)

    def _processed(self, name: str, at: int) -> Tensor:
        values, process = self.values[name], self.processors.get(name, torch.as_tensor)
        if not isinstance(values, Column):
            value = values[at]
            return self.cache.get((name, value), lambda: process(value)) if isinstance(value, str) else process(value)
        if isinstance(process, ImageProcessor):  # kept as a byte a value
            return process.standardise(self.cache.get((name, at), lambda: process.pixels(values[at])))
        if getattr(process, "kind", "") != "audio":
            return self.cache.get((name, at), lambda: process(values[at]))
        sound = values[at]
        key = hashlib.sha256(sound["bytes"]).digest() if sound["bytes"] else sound["path"]
        return self.cache.get((name, key), lambda: process(sound))

    def keep(self, *names: str) -> DataSet:
        """The same data with these names only; without the texts of ``each``, an item is a row again."""
        other = copy.copy(self)
        other.names = [name for name in self.names if name in names]
        if self.each and self.each not in names:
            other.names = [name for name in other.names if name not in self._of_items]
            other.each, other.texts, other.row_of = "", [], range(len(self.rows))
        return other

    def without(self, *names: str) -> DataSet:
        """The same data without these names, see `keep`."""
        return self.keep(*(name for name in self.names if name not in names))

    def grouped(self, column: str) -> DataSet:
        """The same data, the rows that share a value of a column being one item: a sequence (t, ...) of each name.

        No row may lack a value, and no text column may be split by ``each``.
        """
        groups: dict[Any, list[int]] = {}
        for row, value in enumerate(self.rows[column][:]):
            groups.setdefault(value, []).append(row)
        other = copy.copy(self)
        other._groups, other.row_of = [*groups.values()], [rows[0] for rows in groups.values()]
        return other

    def with_values(self, **values: Sequence[Any] | Tensor) -> DataSet:
        """The same data with further names, which have one value an item."""
        other = copy.copy(self)
        other.names, other.values = [*self.names, *values], {**self.values, **values}
        other._places, other._of_items = {**self._places, **{name: name for name in values}}, {*self._of_items, *values}
        return other

    def raw(self, column: str) -> list[Any]:
        """The raw values of a column of the card, one an item: labels, names."""
        values = self.rows[column][:]
        return [values[row] for row in self.row_of]

    def all(self, name: str, count: int | None = None) -> Tensor:
        """The values of one name of the first ``count`` items that have it, None for all: (n, ...)."""
        values = (value for i in range(len(self)) if (value := self.read(name, i)) is not None)
        return torch.stack([*islice(values, count)])

    def batch(self, items: Sequence[int]) -> Batch:
        """The items at these indices together."""
        return collate([self[i] for i in items], self.sequences)

    def batches(
        self, what: str = "", size: int = 100, items: Sequence[int] | None = None, device: torch.device | str = "cpu"
    ) -> Iterator[Batch]:
        """Items in order, several at a time.

        Args:
            what: the title of a progress bar; empty: no bar.
            size: items of a batch.
            items: their indices; None for all.
            device: of the batches.
        """
        items = range(len(self)) if items is None else items
        for start in tqdm(range(0, len(items), size), desc=what, disable=not what, dynamic_ncols=True):
            yield self.batch(items[start : start + size]).to(device)


class Cache:
    """Tensors by key, of which the least recently used are dropped beyond a number of bytes; empty in another process.

    Args:
        limit: bytes; data workers get an equal share each.

    >>> cache = Cache(limit=2 * (ENTRY + 8))
    >>> found = [cache.get(key, lambda: torch.zeros(1, dtype=torch.long)) for key in "abca"]
    >>> cache.size == cache.limit, list(cache.kept)
    (True, ['c', 'a'])
    """

    def __init__(self, limit: int) -> None:
        self.limit, self.size = limit, 0
        self.kept: OrderedDict[Hashable, Tensor] = OrderedDict()

    def get(self, key: Hashable, make: Callable[[], Tensor]) -> Tensor:
        """The tensor of a key, made where it is not kept."""
        if key in self.kept:
            self.kept.move_to_end(key)
            return self.kept[key]
        value = self.kept[key] = make()
        self.size += value.nbytes + ENTRY
        worker = get_worker_info()
        while self.size > self.limit // (worker.num_workers if worker else 1):
            _, old = self.kept.popitem(last=False)
            self.size -= old.nbytes + ENTRY
        return value

    def __reduce__(self) -> tuple[type[Cache], tuple[int]]:
        return Cache, (self.limit,)
