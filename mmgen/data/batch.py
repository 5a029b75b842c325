"""A batch of named modalities, any of which may be missing for any item."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mmgen.errors import UserError, nearest


@dataclass(frozen=True)
class Batch:
    """Named tensors with, for each, who has it and (for sequences) how long it is.

    A modality is missing for an item where its ``present`` is False, and for all items where its key is absent: the two
    mean the same to every model.

    Args:
        values: name -> (b, ...); entries of missing items are zero and must not be read without ``present``.
        masks: name -> (b, t) bool, True at real positions; exactly the sequences have one.
        present: name -> (b,) bool; a name left out is present for all.

    Raises:
        UserError: the batch sizes differ, or a mask or presence names no modality.

    >>> batch = Batch({"image": torch.zeros(2, 3, 8, 8)}, present={"image": torch.tensor([True, False])})
    >>> batch.size, batch.present["image"].tolist(), "text" in batch
    (2, [True, False], False)
    """

    values: dict[str, Tensor]
    masks: dict[str, Tensor] = field(default_factory=dict)
    present: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        sizes = {name: len(value) for name, value in self.values.items()}
        if len(set(sizes.values())) != 1:
            raise UserError("batch", got=sizes, expected="one batch size for all modalities", fix="stack the same items")
        for name in [*self.masks, *self.present]:
            if name not in self.values:
                raise UserError("batch mask", got=name, expected="the name of a modality", fix=nearest(name, self.values))
        everyone = {
            name: self.present.get(name, torch.ones(len(value), dtype=torch.bool, device=value.device))
            for name, value in self.values.items()
        }
        object.__setattr__(self, "present", everyone)

    @property
    def size(self) -> int:
        """Number of items."""
        return len(next(iter(self.values.values())))

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

    def _map(self, function, names: Collection[str]) -> "Batch":
        parts = (self.values, self.masks, self.present)
        return Batch(*({name: function(value) for name, value in part.items() if name in names} for part in parts))


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
        if name in sequences:
            items = [blank[:0] if item is None else item for item in items]
            values[name] = torch.nn.utils.rnn.pad_sequence(items, batch_first=True)  # (b, t, ...)
            lengths = torch.tensor([len(item) for item in items])
            masks[name] = torch.arange(values[name].shape[1]) < lengths[:, None]  # (b, t)
        else:
            items = [blank if item is None else item for item in items]
            shapes = {tuple(item.shape) for item in items}
            if len(shapes) > 1:
                fix = f"resize them, or name {name!r} as a sequence"
                raise UserError(name, got=sorted(shapes), expected="one shape for all items", fix=fix)
            values[name] = torch.stack(items)  # (b, ...)
    return Batch(values, masks, present)
