"""Convolutional encoders and decoders of pictures and spectrograms, to and from one vector or a grid of vectors."""

from itertools import pairwise

from torch import Tensor, nn

from mmgen.errors import UserError, check_at_least


class ConvEncoder(nn.Module):
    """Plain convolutional encoder for pictures of any size, including small ones (8x8, 28x28).

    Args:
        shape: (c, h, w) of a picture.
        dim: size d of the features.
        width: channels after the first convolution; doubled at each halving of the picture, up to 8 x ``width``.

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
        """Compute features (b, d) of images (b, c, h, w)."""
        return self.project(self.convolutions(images))


class Deconvolution(nn.Module):
    """Decoder from z (..., latent_dim) to (..., c, h, w) for any h and w, the mirror image of `ConvEncoder`."""

    def __init__(self, latent_dim: int, shape: tuple[int, int, int], width: int = 32) -> None:
        super().__init__()
        sizes = halvings(shape[1:])[::-1]  # smallest first
        widths = channels(width, len(sizes))[::-1]
        self.first = (widths[0], *sizes[0])
        self.expand = nn.Linear(latent_dim, widths[0] * sizes[0][0] * sizes[0][1])
        layers: list[nn.Module] = []
        for before, after, size in zip(widths, widths[1:], sizes[1:]):
            odd = 1 - size[0] % 2, 1 - size[1] % 2  # undoes the rounding up of the halving
            layers += [nn.GroupNorm(1, before), nn.SiLU(), nn.ConvTranspose2d(before, after, 3, 2, 1, output_padding=odd)]
        layers += [nn.GroupNorm(1, width), nn.SiLU(), nn.Conv2d(width, shape[0], 3, padding=1)]
        self.convolutions = nn.Sequential(*layers)

    def forward(self, z: Tensor) -> Tensor:
        """Decode z (..., latent_dim) to (..., c, h, w)."""
        x = self.expand(z.reshape(-1, z.shape[-1])).reshape(-1, *self.first)  # (b, c0, h0, w0)
        x = self.convolutions(x)  # (b, c, h, w)
        return x.reshape(*z.shape[:-1], *x.shape[1:])


class Residual(nn.Module):
    """Residual layer x + f(x) on (b, c, h, w), with f two convolutions."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.GroupNorm(1, width), nn.SiLU(), nn.Conv2d(width, width, 3, padding=1), nn.SiLU(), nn.Conv2d(width, width, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map x (b, width, h, w) to the same shape."""
        return x + self.layers(x)


class GridEncoder(nn.Module):
    """Encoder of a picture to a grid of vectors: strided convolutions, then residual layers.

    Args:
        shape: (c, h, w) of a picture, h and w multiples of 2^halvings.
        dim: size d of a cell's vector.
        width: channels of the last map; each finer map has half as many, but at least 16.
        halvings: number of halvings of each side, 1 or more.
        depth: number of residual layers.

    Raises:
        UserError: a side is not divisible, or a count is out of range.

    >>> import torch
    >>> GridEncoder((3, 32, 32), dim=8, width=32)(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 8, 8, 8])
    """

    def __init__(self, shape: tuple[int, int, int], dim: int, width: int = 128, halvings: int = 2, depth: int = 2) -> None:
        super().__init__()
        for what, value, low in (("dim", dim, 1), ("width", width, 1), ("depth", depth, 0)):
            check_at_least(what, value, low)
        self.grid, widths = cells(shape, halvings), _narrowed(width, halvings)
        layers: list[nn.Module] = []
        for before, after in pairwise([shape[0], *widths]):
            layers += [nn.Conv2d(before, after, 4, stride=2, padding=1), nn.SiLU()]
        layers += [nn.Conv2d(width, width, 3, padding=1), *(Residual(width) for _ in range(depth))]
        self.layers = nn.Sequential(*layers, nn.GroupNorm(1, width), nn.SiLU(), nn.Conv2d(width, dim, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Encode images (b, c, h, w) as (b, d, h / 2^halvings, w / 2^halvings)."""
        return self.layers(images)


class GridDecoder(nn.Module):
    """Decoder from a grid of vectors (b, d, h / 2^halvings, w / 2^halvings) to (b, c, h, w), mirroring `GridEncoder`."""

    def __init__(self, shape: tuple[int, int, int], dim: int, width: int = 128, halvings: int = 2, depth: int = 2) -> None:
        super().__init__()
        cells(shape, halvings)
        layers = [nn.Conv2d(dim, width, 3, padding=1), *(Residual(width) for _ in range(depth)), nn.GroupNorm(1, width)]
        widths = _narrowed(width, halvings)[::-1]
        for before, after in pairwise([*widths, widths[-1]]):
            layers += [nn.SiLU(), nn.ConvTranspose2d(before, after, 4, stride=2, padding=1)]
        self.layers = nn.Sequential(*layers, nn.SiLU(), nn.Conv2d(widths[-1], shape[0], 3, padding=1))

    def forward(self, grid: Tensor) -> Tensor:
        """Decode a grid (b, d, h', w') to (b, c, h, w)."""
        return self.layers(grid)


def cells(shape: tuple[int, int, int], halvings: int) -> tuple[int, int]:
    """Grid size (h', w') of a picture (c, h, w) after halvings.

    Raises:
        UserError: a side is not a multiple of 2^halvings.

    >>> cells((1, 28, 28), 2)
    (7, 7)
    """
    factor = 2 ** check_at_least("halvings", halvings, 1)
    if shape[1] % factor or shape[2] % factor:
        fix = "choose another size, or fewer halvings"
        raise UserError("size", got=f"{shape[1]} x {shape[2]}", expected=f"multiples of {factor}", fix=fix)
    return shape[1] // factor, shape[2] // factor


def _narrowed(width: int, halvings: int) -> list[int]:
    return [max(16, width >> (halvings - 1 - i)) for i in range(halvings - 1)] + [width]


def halvings(size: tuple[int, int]) -> list[tuple[int, int]]:
    """Sizes after repeated halving of ``size``, rounded up, until the longer side is at most 4.

    >>> halvings((28, 28))
    [(28, 28), (14, 14), (7, 7), (4, 4)]
    """
    sizes = [(size[0], size[1])]
    while max(sizes[-1]) > 4:
        sizes.append((-(-sizes[-1][0] // 2), -(-sizes[-1][1] // 2)))
    return sizes


def channels(width: int, count: int) -> list[int]:
    """Numbers of channels: ``width``, doubled at each of ``count - 1`` steps but at most three times."""
    return [width * min(2**i, 8) for i in range(count)]
