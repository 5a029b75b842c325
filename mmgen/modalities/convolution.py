"""The plain convolution networks that pictures and spectrograms share, each way."""

from itertools import pairwise

from torch import Tensor, nn


class ConvEncoder(nn.Module):
    """A plain convolution network for pictures of any size, small ones too (8x8, 28x28).

    Args:
        shape: (c, h, w) of a picture.
        dim: size d of the features.
        width: channels after the first convolution; doubled at each halving of the picture, up to 8 times.

    >>> import torch
    >>> ConvEncoder((1, 28, 28), dim=64)(torch.zeros(2, 1, 28, 28)).shape
    torch.Size([2, 64])
    """

    def __init__(self, shape: tuple[int, int, int], dim: int = 128, width: int = 32) -> None:
        super().__init__()
        self.dim = dim
        sizes, widths = halvings(shape[1:]), channels(width, len(halvings(shape[1:])))
        layers: list[nn.Module] = [nn.Conv2d(shape[0], width, 3, padding=1)]
        for before, after in pairwise(widths):
            layers += [nn.GroupNorm(1, before), nn.SiLU(), nn.Conv2d(before, after, 3, stride=2, padding=1)]
        self.convolutions = nn.Sequential(*layers, nn.GroupNorm(1, widths[-1]), nn.SiLU(), nn.Flatten())
        self.project = nn.Linear(widths[-1] * sizes[-1][0] * sizes[-1][1], dim)

    def forward(self, images: Tensor) -> Tensor:
        """images (b, c, h, w) -> (b, d)."""
        return self.project(self.convolutions(images))


class Deconvolution(nn.Module):
    """z (..., latent_dim) -> (..., c, h, w): the mirror image of `ConvEncoder`, for any h and w."""

    def __init__(self, latent_dim: int, shape: tuple[int, int, int], width: int = 32) -> None:
        super().__init__()
        sizes = halvings(shape[1:])[::-1]  # smallest first
        widths = channels(width, len(sizes))[::-1]
        self.first = (widths[0], *sizes[0])
        self.expand = nn.Linear(latent_dim, widths[0] * sizes[0][0] * sizes[0][1])
        layers: list[nn.Module] = []
        for before, after, size in zip(widths, widths[1:], sizes[1:]):
            odd = tuple(1 - side % 2 for side in size)  # what the halving rounded up
            layers += [nn.GroupNorm(1, before), nn.SiLU(), nn.ConvTranspose2d(before, after, 3, 2, 1, output_padding=odd)]
        layers += [nn.GroupNorm(1, width), nn.SiLU(), nn.Conv2d(width, shape[0], 3, padding=1)]
        self.convolutions = nn.Sequential(*layers)

    def forward(self, z: Tensor) -> Tensor:
        """z (..., latent_dim) -> (..., c, h, w)."""
        x = self.expand(z.reshape(-1, z.shape[-1])).reshape(-1, *self.first)  # (b, c0, h0, w0)
        x = self.convolutions(x)  # (b, c, h, w)
        return x.reshape(*z.shape[:-1], *x.shape[1:])


def halvings(size: tuple[int, int]) -> list[tuple[int, int]]:
    """``size`` halved, rounding up, until the longer side is at most 4.

    >>> halvings((28, 28))
    [(28, 28), (14, 14), (7, 7), (4, 4)]
    """
    sizes = [tuple(size)]
    while max(sizes[-1]) > 4:
        sizes.append((-(-sizes[-1][0] // 2), -(-sizes[-1][1] // 2)))
    return sizes


def channels(width: int, count: int) -> list[int]:
    """``width``, doubled ``count - 1`` times but at most thrice."""
    return [width * min(2**i, 8) for i in range(count)]
