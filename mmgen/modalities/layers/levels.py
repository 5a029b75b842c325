"""Distributions of a pixel's levels given features of earlier pixels: each channel is given those before it."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmgen.distributions import DiscretizedLogisticMixture


class CategoricalHead(nn.Module):
    """p(pixel | earlier pixels) with a softmax over the levels of each channel, given the channels before it.

    ``p(x_j | f, x_1, ..., x_{j-1}) = softmax(W_j silu(V silu(f) + sum_{i<j} E_i[x_i]))``, f the network's features.

    Args:
        width: size d of the features.
        channels: number c of channels.
        levels: number L of levels.
    """

    def __init__(self, width: int, channels: int, levels: int) -> None:
        super().__init__()
        self.mix = nn.Linear(width, width)
        self.earlier = nn.ModuleList(nn.Embedding(levels, width) for _ in range(channels - 1))
        self.out = nn.ModuleList(nn.Linear(width, levels) for _ in range(channels))

    def logits(self, features: Tensor, earlier: Tensor) -> Tensor:
        """Logits of the next channel: features (n, d), levels (n, j) of the channels before it -> (n, L)."""
        hidden = self.mix(F.silu(features))
        for embed, level in zip(self.earlier, earlier.unbind(1)):
            hidden = hidden + embed(level)
        logits = self.out[earlier.shape[1]](F.silu(hidden))
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    def log_prob(self, features: Tensor, x: Tensor) -> Tensor:
        """log p of pixels: features (n, d), levels (n, c) -> (n,)."""
        each = [F.cross_entropy(self.logits(features, x[:, :j]), x[:, j], reduction="none") for j in range(x.shape[1])]
        return -torch.stack(each).sum(0)


class MixtureHead(nn.Module):
    """p(pixel | earlier pixels) as a `DiscretizedLogisticMixture`, whose components all channels share.

    Args:
        width: size d of the features.
        channels: number c of channels.
        levels: number L of levels.
        components: number K of logistic distributions.
    """

    def __init__(self, width: int, channels: int, levels: int, components: int) -> None:
        super().__init__()
        self.levels, self.components = levels, components
        self.sizes = [1, channels, channels, channels * (channels - 1) // 2]  # of a component's parameters
        self.project = nn.Linear(width, components * sum(self.sizes))

    def distribution(self, features: Tensor) -> DiscretizedLogisticMixture:
        """p(pixel | earlier pixels): features (n, d) -> batch shape (n,), event (c,)."""
        parameters = self.project(F.silu(features)).unflatten(-1, (self.components, -1))  # (n, K, 1 + 2 c + c (c - 1) / 2)
        parameters = parameters.to(torch.promote_types(parameters.dtype, torch.float32))
        weights, means, log_scales, coefficients = parameters.split(self.sizes, -1)
        return DiscretizedLogisticMixture(weights.squeeze(-1), means, log_scales, coefficients, self.levels)

    def logits(self, features: Tensor, earlier: Tensor) -> Tensor:
        """Log probabilities of the next channel: features (n, d), levels (n, j) of the channels before it -> (n, L)."""
        return self.distribution(features).conditional(earlier)

    def log_prob(self, features: Tensor, x: Tensor) -> Tensor:
        """log p of pixels: features (n, d), levels (n, c) -> (n,)."""
        return self.distribution(features).log_prob(x)
