"""Touch: causal convolutions over wrist forces, and perceptrons of the hand's state and action."""

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from mmgen.errors import UserError

SLOPE = 0.1  # negative slope of every LeakyReLU


class ForceEncoder(nn.Module):
    """Encoder of force-torque readings: causal convolutions of kernel and stride 2 down to one position.

    Features at time t depend only on readings up to t, so that a sensor can be read as a stream.

    Args:
        dim: size d of the features.
        readings: number of readings, a power of two.
        channels: channels of a reading: force and torque along three axes.

    Raises:
        UserError: ``readings`` is not a power of two, or below 2.

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
        """Compute features (b, d) of standardised readings (b, c, readings), the newest last."""
        return self.convolutions(force.tanh()).squeeze(-1)  # tanh limits the effect of impacts


class StateEncoder(nn.Module):
    """Perceptron of a few numbers: the pose and velocity of the hand, or its action.

    Args:
        sizes: sizes of the input, the hidden layers and the features.

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
        """Compute features (b, d) of a state (b, n)."""
        return self.layers(state)
