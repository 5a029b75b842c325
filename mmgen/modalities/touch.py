"""Touch: forces at the wrist by causal convolutions over time; where the hand is, and how it is to move, by perceptrons."""

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from mmgen.errors import UserError

SLOPE = 0.1  # of every LeakyReLU here


class ForceEncoder(nn.Module):
    """The newest readings of a force-torque sensor: causal convolutions of two readings, two apart, down to one.

    A feature of time t depends on readings up to t alone, so a sensor's stream can be read as it comes.

    Args:
        dim: size d of the features.
        readings: how many are read, a power of two.
        channels: of one reading: force and torque along three axes each.

    Raises:
        UserError: ``readings`` is no power of two from 2 on.

    Source: Lee et al. 2019, Making Sense of Vision and Touch, arXiv 1810.10191, section III-A.

    >>> import torch
    >>> ForceEncoder(256)(torch.zeros(5, 6, 32)).shape
    torch.Size([5, 256])
    """

    def __init__(self, dim: int, readings: int = 32, channels: int = 6) -> None:
        super().__init__()
        depth = readings.bit_length() - 1
        if readings < 2 or readings != 2**depth:
            raise UserError("readings", got=readings, expected="a power of two, 2 or more", fix="use 32")
        self.dim = dim
        widths = [channels, *(16 * 2 ** min(i, 3) for i in range(depth - 1)), dim]
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [nn.Conv1d(before, after, 2, stride=2), nn.LeakyReLU(SLOPE)]
        self.convolutions = nn.Sequential(*layers)

    def forward(self, force: Tensor) -> Tensor:
        """force (b, c, readings), standardised, the newest last -> (b, d)."""
        return self.convolutions(force.tanh()).squeeze(-1)  # a blow counts as a strong push


class StateEncoder(nn.Module):
    """A few numbers by a perceptron: the pose and velocity of the hand, or the move that it is to make.

    Args:
        sizes: of the numbers, the hidden layers and the features.

    Source: Lee et al. 2019, section III-A.

    >>> import torch
    >>> StateEncoder([8, 32, 64])(torch.zeros(5, 8)).shape
    torch.Size([5, 64])
    """

    def __init__(self, sizes: Sequence[int]) -> None:
        super().__init__()
        self.dim = sizes[-1]
        layers: list[nn.Module] = []
        for before, after in pairwise(sizes):
            layers += [nn.Linear(before, after), nn.LeakyReLU(SLOPE)]
        self.layers = nn.Sequential(*layers)

    def forward(self, state: Tensor) -> Tensor:
        """state (b, n) -> (b, d)."""
        return self.layers(state)
