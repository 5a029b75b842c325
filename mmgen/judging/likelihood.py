"""Likelihood of pictures under trained models."""

import math

import torch

from mmgen.data.rows import DataSet
from mmgen.models.base import Model


@torch.no_grad()
def bits_per_dim(model: Model, data: DataSet, items: int, samples: int) -> float:
    """-log2 p(picture) / (c h w), the mean over the first ``items``: exact, or an upper bound."""
    total, dims = 0.0, math.prod(model.processors["image"].shape)
    for batch in data.batches(f"likelihood: {model.name}", 50, range(items), model.step.device):
        total -= model.log_likelihood(batch, samples).double().sum().item()
    return total / (items * dims * math.log(2))
