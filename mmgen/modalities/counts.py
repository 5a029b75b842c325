"""Counts of events: a perceptron of their logarithms, and independent Poisson distributions."""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.distributions import Independent, Poisson, constraints

from mmgen.distributions import Family, Likelihood
from mmgen.modalities.vector import VectorEncoder, multilayer_perceptron


def _poisson(log_rate: Tensor) -> Poisson:
    return Poisson(log_rate.exp())


POISSON = Family(
    "poisson",
    _poisson,
    constraints.nonnegative_integer,
    "whole numbers >= 0",
    fix="correct the counts, or read them as a vector",
)


class CountEncoder(VectorEncoder):
    """x (b, size) -> features (b, dim) of log(1 + x): counts range over orders of magnitude.

    >>> import torch
    >>> CountEncoder(6, dim=16)(torch.ones(2, 6)).shape
    torch.Size([2, 16])
    """

    def forward(self, x: Tensor) -> Tensor:
        """x (b, size), 0 or more -> (b, dim)."""
        return super().forward(x.log1p())


class CountDecoder(nn.Module):
    """z (..., latent_dim) -> p(x | z) = prod_i Poisson(x_i; exp f_i(z)), f a perceptron.

    Args:
        latent_dim: size of z.
        size: number of counts.
        hidden: sizes of the layers between.

    >>> import torch
    >>> CountDecoder(2, size=6)(torch.zeros(3, 2)).log_prob(torch.ones(3, 6)).shape
    torch.Size([3])
    """

    def __init__(self, latent_dim: int, size: int, hidden: Sequence[int] = (128,)) -> None:
        super().__init__()
        self.layers = multilayer_perceptron([latent_dim, *hidden, size])
        self.likelihood = Likelihood(POISSON, event_dims=1)

    def forward(self, z: Tensor) -> Independent:
        """z (..., latent_dim) -> p(x | z)."""
        return self.likelihood(self.layers(z))
