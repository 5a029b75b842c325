"""A batch of named modalities, any of which may be missing for any item."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mmgen.errors import UserError, nearest


@dataclass(frozen=True)
class Batch:
    """Named tensors with, for each, which items have it and (for sequences) how long it is.

    A modality is missing for an item where its ``present`` is False, and for all items where its key is absent: the two
    mean the same to every model. An empty batch has a size too, see `nothing`.

    Args:
        values: name -> (b, ...); entries of missing items are zero and must not be read without ``present``.
        masks: name -> (b, t) bool, True at real positions; exactly the sequences have one.
        present: name -> (b,) bool; a name left out is present for all.
        rows: (b,) bool, True for each item; needed only where ``values`` is empty.

    Raises:
        UserError: the batch sizes differ, there is no size, or a mask or presence names no modality.

    >>> batch = Batch({"image": torch.zeros(2, 3, 8, 8)}, present={"image": torch.tensor([True, False])})
    >>> batch.size, batch.present["image"].tolist(), "text" in batch
    (2, [True, False], False)
    """

    values: dict[str, Tensor]
    masks: dict[str, Tensor] = field(default_factory=dict)
    present: dict[str, Tensor] = field(default_factory=dict)
    rows: Tensor = None  # type: ignore[assignment]  # set below

    def __post_init__(self) -> None:
        sizes = {name: len(value) for name, value in self.values.items()}
        sizes |= {} if self.rows is None else {"rows": len(self.rows)}
        if not sizes:
            raise UserError("batch", got="no modality", expected="one", fix="for n items without any use Batch.nothing(n)")
        if len(set(sizes.values())) > 1:
            raise UserError("batch", got=sizes, expected="one batch size for all modalities", fix="stack the same items")
        if self.rows is None:
            first = next(iter(self.values.values()))
            object.__setattr__(self, "rows", torch.ones(len(first), dtype=torch.bool, device=first.device))
        for name in [*self.masks, *self.present]:
            if name not in self.values:
                raise UserError("batch mask", got=name, expected="the name of a modality", fix=nearest(name, self.values))
        object.__setattr__(self, "present", {name: self.present.get(name, self.rows) for name in self.values})

    @classmethod
    def nothing(cls, n: int, device: torch.device | str | None = None) -> "Batch":
        """``n`` items that lack every modality.

        >>> Batch.nothing(3).size, Batch.nothing(3).having("image").tolist()
        (3, [False, False, False])
        """
        return cls({}, rows=torch.ones(n, dtype=torch.bool, device=device))

    @property
    def size(self) -> int:
        """Number of items."""
        return len(self.rows)

    def having(self, *names: str) -> Tensor:
        """Mask (b,) of the items that have all of these modalities.

        >>> batch = Batch({"x": torch.zeros(2, 3), "label": torch.zeros(2)}, present={"label": torch.tensor([True, False])})
        >>> batch.having("x", "label").tolist(), batch.having("x", "text").tolist()
        ([True, False], [False, False])
        """
        nobody = torch.zeros_like(self.rows)
        return torch.stack([self.rows, *(self.present.get(name, nobody) for name in names)]).all(0)

    def having_any(self, *names: str) -> Tensor:
        """Mask (b,) of the items that have at least one of these modalities."""
        nobody = torch.zeros_like(self.rows)
        return torch.stack([nobody, *(self.present.get(name, nobody) for name in names)]).any(0)

    def observed(self, *names: str) -> Tensor:
        """Mask (b,) as `having` gives it, of at least one item.

        Raises:
            UserError: no item has all of ``names``.
        """
        rows = self.having(*names)
        if not rows.any():
            raise self.lacks(" and ".join(names), "both" if len(names) == 2 else "it")
        return rows

    def lacks(self, what: str, it: str = "it") -> UserError:
        """The error to raise where no item has ``what``; it lists what the batch holds."""
        found = ", ".join(name for name in self.values if self.present[name].any()) or "nothing"
        got = f"no item that has {it} (the batch holds {found})"
        return UserError(what, got=got, expected="at least one item", fix="check the names of the columns")

    def __contains__(self, name: str) -> bool:
        return name in self.values

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.values:
            raise UserError("modality", got=name, expected="one the batch holds", fix=nearest(name, self.values))
        return self.values[name]

    def keep(self, names: Collection[str]) -> "Batch":
        """Only the modalities in ``names``."""
        return self._map(lambda value: value, names)

    def without(self, *names: str) -> "Batch":
        """All modalities but ``names``."""
        return self.keep([name for name in self.values if name not in names])

    def items(self, index: Tensor | slice) -> "Batch":
        """The items at ``index``: a slice, or a tensor of positions or of booleans."""
        return self._map(lambda value: value[index], self.values)

    def repeat(self, n: int) -> "Batch":
        """Every item ``n`` times in a row: (b, ...) -> (b * n, ...)."""
        return self._map(lambda value: value.repeat_interleave(n, 0), self.values)

    def to(self, device: torch.device | str) -> "Batch":
        """The same batch on ``device``."""
        return self._map(lambda value: value.to(device, non_blocking=True), self.values)

    def _map(self, function: Callable[[Tensor], Tensor], names: Collection[str]) -> "Batch":
        def kept(part: dict[str, Tensor]) -> dict[str, Tensor]:
            return {name: function(value) for name, value in part.items() if name in names}

        return Batch(kept(self.values), kept(self.masks), kept(self.present), function(self.rows))


def placed(values: Tensor, rows: Tensor) -> Tensor:
    """Put values of some items back among all items, 0 elsewhere: values (b', ...), rows (b,) bool -> (b, ...).

    >>> placed(torch.tensor([5.0, 6.0]), torch.tensor([True, False, True])).tolist()
    [5.0, 0.0, 6.0]
    """
    mask = rows.reshape(-1, *[1] * (values.ndim - 1))
    return values.new_zeros(len(rows), *values.shape[1:]).masked_scatter(mask, values)


def masked_mean(values: Tensor, rows: Tensor, of: Tensor | None = None) -> Tensor:
    """The sum of ``values`` over ``rows``, divided by the number of rows, or of those in ``of``; 0 where there is none.

    >>> masked_mean(torch.tensor([1.0, 3.0, 8.0]), torch.tensor([True, True, False])).item()
    2.0
    """
    return torch.where(rows, values, 0.0).sum() / (rows if of is None else of).sum().clamp(min=1)


def collate(rows: Sequence[Mapping[str, Tensor | None]], sequences: Collection[str] = ()) -> Batch:
    """Stack rows into a batch; an absent or None entry is a missing modality.

    Args:
        rows: one mapping an item, name -> tensor of its item shape, or None.
        sequences: names whose first dimension varies: padded with zeros at the end and given a mask.

    Returns:
        The batch; its names are those that at least one row holds.

    Raises:
        UserError: no rows, or shapes that cannot be stacked.

    >>> batch = collate([{"text": torch.tensor([5, 6])}, {"text": torch.tensor([7])}], sequences=["text"])
    >>> batch["text"].tolist(), batch.masks["text"].tolist()
    ([[5, 6], [7, 0]], [[True, True], [True, False]])
    """
    if not rows:
        raise UserError("batch", got="no rows", expected="at least one", fix="check that the split is not empty")
    values, masks, present = {}, {}, {}
    for name in dict.fromkeys(name for row in rows for name, value in row.items() if value is not None):
        items = [row.get(name) for row in rows]
        present[name] = torch.tensor([item is not None for item in items])
        blank = torch.zeros_like(next(item for item in items if item is not None))
        blank = blank[:0] if name in sequences else blank
        filled = [blank if item is None else item for item in items]
        if name in sequences:
            values[name] = torch.nn.utils.rnn.pad_sequence(filled, batch_first=True)  # (b, t, ...)
            lengths = torch.tensor([len(item) for item in filled])
            masks[name] = torch.arange(values[name].shape[1]) < lengths[:, None]  # (b, t)
        else:
            shapes = {tuple(item.shape) for item in filled}
            if len(shapes) > 1:
                fix = f"resize them, or name {name!r} as a sequence"
                raise UserError(name, got=sorted(shapes), expected="one shape for all items", fix=fix)
            values[name] = torch.stack(filled)  # (b, ...)
    return Batch(values, masks, present)
