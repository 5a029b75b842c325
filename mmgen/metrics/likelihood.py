"""Likelihood of pictures under the simplest models."""

import torch
from torch import Tensor


def independent_bits(seen: Tensor, x: Tensor, levels: int) -> float:
    """Bits per dimension of pixels that are independent, each with its frequencies in training plus one of every level.

    Args:
        seen: (n, c, h, w), the pictures of training.
        x: (m, c, h, w).
        levels: number L of levels.
    """
    seen, x = ((part.flatten(1) * (levels - 1)).round().long().T for part in (seen, x))  # (d, n), (d, m)
    counts = torch.ones(len(seen), levels).scatter_add_(1, seen, torch.ones(seen.shape))  # (d, L)
    log_p = (counts / counts.sum(1, keepdim=True)).log2().gather(1, x)  # (d, m)
    return -log_p.mean().item()
