"""Modalities that are missing, or taken away: what is read without them, and means over what is there."""

import torch
from torch import Tensor


def known(features: list[Tensor], present: Tensor) -> Tensor:
    """What a surrogate reads: the features (..., d) of modalities that are there, present (m, s, ...), and which they are."""
    parts = [torch.where(there[..., None], x, 0.0) for x, there in zip(features, present)]  # (s, ..., d) each
    return torch.cat([*parts, present.movedim(0, -1).to(parts[0].dtype)], -1)  # (s, ..., sum d + m)


def lacking(present: Tensor, i: int) -> Tensor:
    """``present`` (m, ...) with modality ``i`` taken away from all."""
    return present & (torch.arange(len(present), device=present.device) != i).reshape(-1, *[1] * (present.ndim - 1))


def masked_mean(values: Tensor, rows: Tensor, of: Tensor | None = None) -> Tensor:
    """The sum of ``values`` over ``rows``, by the number of them, or of those in ``of``; 0 where there is none."""
    return torch.where(rows, values, 0.0).sum() / (rows if of is None else of).sum().clamp(min=1)
