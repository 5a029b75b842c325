"""Vectors of measurements: multilayer perceptrons as encoder and decoder."""

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn
from torch.distributions import Independent

from mmgen.distributions import Likelihood


def multilayer_perceptron(sizes: Sequence[int]) -> nn.Sequential:
    """Make linear layers from each size to the next, with SiLU in between.

    >>> len(multilayer_perceptron([4, 8, 2]))
    3
    """
    layers: list[nn.Module] = []
    for before, after in pairwise(sizes):
        layers += [nn.Linear(before, after), nn.SiLU()]
    return nn.Sequential(*layers[:-1])


class VectorEncoder(nn.Module):
    """Multilayer perceptron from a vector to features.

    Args:
        size: length of the vector.
        dim: size of the features.
        hidden: sizes of the hidden layers.

    >>> import torch
    >>> VectorEncoder(6, dim=16)(torch.zeros(2, 6)).shape
    torch.Size([2, 16])
    """

    def __init__(self, size: int, dim: int = 64, hidden: Sequence[int] = (128,)) -> None:
        super().__init__()
        self.dim = dim
        self.layers = multilayer_perceptron([size, *hidden, dim])

    def forward(self, x: Tensor) -> Tensor:
        """Compute features (b, dim) of x (b, size)."""
        return self.layers(x)


class VectorDecoder(nn.Module):
    """Perceptron decoder p(x | z), event (size,).

    Args:
        latent_dim: size of z.
        size: length of the vector.
        likelihood: name of a family, see `mmgen.distributions.Likelihood`.
        scale: scale of the likelihood; None: learned.
        hidden: sizes of the hidden layers.

    >>> import torch
    >>> VectorDecoder(2, size=6)(torch.zeros(3, 2)).log_prob(torch.zeros(3, 6)).shape
    torch.Size([3])
    """

    def __init__(
        self,
        latent_dim: int,
        size: int,
        likelihood: str = "normal",
        scale: float | None = None,
        hidden: Sequence[int] = (128,),
    ) -> None:
        super().__init__()
        self.layers = multilayer_perceptron([latent_dim, *hidden, size])
        self.likelihood = Likelihood(likelihood, event_dims=1, scale=scale)

    def forward(self, z: Tensor) -> Independent:
        """Compute p(x | z) of z (..., latent_dim)."""
        return self.likelihood(self.layers(z))
