"""Masked convolutions, whose output at a pixel depends on earlier pixels in raster order, and the networks made of them.

A network's features at a pixel are computed from all earlier pixels at once in training, and in sampling from stored maps: the
part that looks at rows above once a row, the rest once a pixel. Both are one code path, see `Place`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Window = Literal["raster", "above", "left", "corner"]


@dataclass(frozen=True)
class Place:
    """A row, or one pixel of it, to compute, and the inputs of all convolutions at earlier places.

    Args:
        size: (h, w) of the picture.
        row: its number, from 0.
        column: of the pixel, from 0; None: the whole row.
        maps: convolution -> its inputs so far, padded; empty for the first place.
    """

    size: tuple[int, int]
    row: int
    column: int | None
    maps: dict[nn.Module, Tensor]

    def stored(self, convolution: "MaskedConv2d", x: Tensor) -> Tensor:
        """Store the inputs x (b, d, 1, w or 1) of a convolution at this place; returns all of them, padded."""
        left, right, top, _ = convolution.margin
        if convolution not in self.maps:
            height, width = self.size
            self.maps[convolution] = x.new_zeros(*x.shape[:2], top + height, left + width + right)
        padded, first = self.maps[convolution], left + (self.column or 0)
        padded[:, :, top + self.row, first : first + x.shape[3]] = x[:, :, 0]
        return padded


class MaskedConv2d(nn.Conv2d):
    """A convolution whose output at a pixel depends on a window of earlier pixels.

    Windows, where x is the pixel, and k = ``size`` // 2 the number of rows above, and of columns to each side, that are seen:

    - "raster": k rows above, and the part of its own row to the left, ``o o o / o x .``;
    - "above": the same rows above, and for maps of features its own row, ``o o o / o x o``, see `GatedPixelCNN`;
    - "left": its own row alone, ``o x``;
    - "corner": rows and columns up to its own, ``o o / o x``.

    Args:
        inputs, outputs: number of channels.
        size: odd side of the window that an unmasked convolution would have.
        kind: "A" for the picture: excludes the pixel itself (with "above" its whole row); "B" for maps of features, which
            depend on earlier pixels only: includes them.
        window: see above.

    Source: van den Oord et al. 2016, Pixel recurrent neural networks, arXiv 1601.06759 (masks A and B).

    >>> convolution = MaskedConv2d(1, 1, 3, "A", "raster")
    >>> convolution.mask.tolist()
    [[1.0, 1.0, 1.0], [1.0, 0.0, 0.0]]
    >>> convolution(torch.zeros(1, 1, 4, 5)).shape
    torch.Size([1, 1, 4, 5])
    """

    mask: Tensor

    def __init__(self, inputs: int, outputs: int, size: int, kind: Literal["A", "B"], window: Window) -> None:
        k = size // 2
        top, right = 0 if window == "left" else k, k if window in ("raster", "above") else 0
        super().__init__(inputs, outputs, (top + 1, k + 1 + right))
        self.kind, self.margin = kind, (k, right, top, 0)  # padding: left, right, top, bottom
        mask = torch.ones(top + 1, k + 1 + right)
        if window == "raster":
            mask[-1, k + 1 :] = 0
        if kind == "A":
            mask[-1, 0 if window == "above" else k :] = 0
        self.register_buffer("mask", mask, persistent=False)
        self.masked = not bool(mask.all())

    def forward(self, x: Tensor, place: Place | None = None) -> Tensor:
        """Convolve x (b, d, h, w); with a place, only there.

        Args:
            x: all inputs; with a place, the picture so far (kind A), or the inputs at the place (kind B).
            place: None: everywhere.

        Returns:
            (b, d', h, w), at a place (b, d', 1, w) or (b, d', 1, 1).
        """
        weight = self.weight * self.mask if self.masked else self.weight
        if place is None:
            return F.conv2d(F.pad(x, self.margin), weight, self.bias)
        padded = F.pad(x, self.margin) if self.kind == "A" else place.stored(self, x)
        seen = padded[:, :, place.row : place.row + weight.shape[2]]  # (b, d, rows, left + w + right)
        if place.column is None:
            return F.conv2d(seen, weight, self.bias)
        seen = seen[..., place.column : place.column + weight.shape[3]]  # (b, d, rows, columns)
        return F.linear(seen.flatten(1), weight.flatten(1), self.bias)[:, :, None, None]


class Pointwise(nn.Conv2d):
    """A convolution of 1 x 1; at a single pixel a matrix product, which is several times faster there."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map x (b, d, h, w) to (b, d', h, w)."""
        if x.shape[2:] != (1, 1):
            return super().forward(x)
        return F.linear(x.flatten(1), self.weight.flatten(1), self.bias)[:, :, None, None]


class PixelNetwork(nn.Module):
    """Features (b, width, h, w) of a picture (b, c, h, w), those of a pixel from earlier pixels and a condition (b, e) alone.

    Args:
        channels: number c of channels of the picture.
        width: number of channels of the features.
        depth: number of blocks.
        kernel: odd side of the blocks' windows, 3 or more.
        condition: size e of the condition; 0 for none.
    """

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """Compute the features of all pixels: (b, c, h, w) -> (b, width, h, w)."""
        return self.pixels(x, self.rows(x, condition), condition)

    def rows(self, x: Tensor, condition: Tensor | None, place: Place | None = None) -> list[Tensor]:
        """Compute what depends on the rows above alone, for `pixels`: maps (b, d, h, w), or (b, d, 1, w) of a row."""
        return []

    def pixels(self, x: Tensor, above: list[Tensor], condition: Tensor | None, place: Place | None = None) -> Tensor:
        """Compute the features from the picture so far and `rows` there: (b, width, h, w), or those of a place."""
        raise NotImplementedError


class MaskedPixelCNN(PixelNetwork):
    """Masked convolutions in residual blocks; stacked raster windows never see some earlier pixels above and to the right.

    ``x <- x + W relu(M * relu(x) + V h)``, M masked.

    Source: van den Oord et al. 2016, Pixel recurrent neural networks, arXiv 1601.06759.
    """

    def __init__(self, channels: int, width: int, depth: int, kernel: int, condition: int) -> None:
        super().__init__()
        self.first = MaskedConv2d(channels, width, 7, "A", "raster")
        self.masked = nn.ModuleList(MaskedConv2d(width, width, kernel, "B", "raster") for _ in range(depth))
        self.shift = conditioned(condition, width, depth)
        self.mix = nn.ModuleList(Pointwise(width, width) for _ in range(depth))

    def pixels(self, x: Tensor, above: list[Tensor], condition: Tensor | None, place: Place | None = None) -> Tensor:
        """Compute the features; see `PixelNetwork.pixels`."""
        x = self.first(x, place)
        for masked, shift, mix in zip(self.masked, self.shift, self.mix):
            x = x + mix(F.relu(masked(F.relu(x), place) + shift(condition)))
        return x


class GatedPixelCNN(PixelNetwork):
    """A vertical stack that sees all rows above, and a horizontal stack that sees the row to the left and the vertical one.

    Vertical: ``u = W * v + V h``, ``v <- gate(u)``. Horizontal: ``x <- x + W' gate(W'' * x + L u + V'' h)``.

    Source: van den Oord et al. 2016, Conditional image generation with PixelCNN decoders, arXiv 1606.05328.
    """

    def __init__(self, channels: int, width: int, depth: int, kernel: int, condition: int) -> None:
        super().__init__()

        def stack(window: Window) -> nn.ModuleList:
            first = MaskedConv2d(channels, 2 * width, 7, "A", window)
            return nn.ModuleList([first, *(MaskedConv2d(width, 2 * width, kernel, "B", window) for _ in range(depth - 1))])

        self.vertical, self.horizontal = stack("above"), stack("left")
        self.shift, self.horizontal_shift = (conditioned(condition, 2 * width, depth) for _ in range(2))
        self.link = nn.ModuleList(nn.Conv2d(2 * width, 2 * width, 1) for _ in range(depth))
        self.mix = nn.ModuleList(Pointwise(width, width) for _ in range(depth))

    def rows(self, x: Tensor, condition: Tensor | None, place: Place | None = None) -> list[Tensor]:
        """The vertical stack's contribution L u + V'' h to each layer of the horizontal one, (b, 2 width, h, w) each."""
        links = []
        for vertical, shift, link, other in zip(self.vertical, self.shift, self.link, self.horizontal_shift):
            u = vertical(x, place) + shift(condition)  # (b, 2 width, h, w)
            links.append(link(u) + other(condition))
            x = gate(u)
        return links

    def pixels(self, x: Tensor, above: list[Tensor], condition: Tensor | None, place: Place | None = None) -> Tensor:
        """The horizontal stack; see `PixelNetwork.pixels`."""
        for layer, (horizontal, mix) in enumerate(zip(self.horizontal, self.mix)):
            new = mix(gate(horizontal(x, place) + above[layer]))
            x = x + new if layer else new
        return x


class PixelCNNPlusPlus(PixelNetwork):
    """Two streams of gated residual blocks: one sees the rows above, the other the corner above left and the first stream.

    ``x <- x + a sigmoid(b)``, ``(a, b) = W * f(W' * f(x) + N f(u)) + V h``, ``f(x) = elu(x, -x)``, u the first stream.

    Source: Salimans et al. 2017, PixelCNN++, arXiv 1701.05517, without down- and up-sampling and the shortcuts between
        these, without dropout and weight normalisation.
    """

    def __init__(self, channels: int, width: int, depth: int, kernel: int, condition: int) -> None:
        super().__init__()
        self.first_above = MaskedConv2d(channels, width, kernel, "A", "above")
        self.first_corner = MaskedConv2d(channels, width, kernel, "A", "corner")
        self.above = nn.ModuleList(GatedResidual(width, kernel, "above", condition) for _ in range(depth))
        self.corner = nn.ModuleList(GatedResidual(width, kernel, "corner", condition) for _ in range(depth))
        self.link = nn.ModuleList(nn.Conv2d(2 * width, width, 1) for _ in range(depth))

    def rows(self, x: Tensor, condition: Tensor | None, place: Place | None = None) -> list[Tensor]:
        """The first stream, as each block of the second sees it, (b, width, h, w) each."""
        x, links = self.first_above(x, place), []
        for block, link in zip(self.above, self.link):
            x = block(x, None, condition, place)
            links.append(link(both_signs(x)))
        return links

    def pixels(self, x: Tensor, above: list[Tensor], condition: Tensor | None, place: Place | None = None) -> Tensor:
        """The second stream; see `PixelNetwork.pixels`."""
        x = self.first_corner(x, place)
        for block, link in zip(self.corner, above):
            x = block(x, link, condition, place)
        return x


class GatedResidual(nn.Module):
    """A residual block of `PixelCNNPlusPlus`."""

    def __init__(self, width: int, kernel: int, window: Window, condition: int) -> None:
        super().__init__()
        self.first = MaskedConv2d(2 * width, width, kernel, "B", window)
        self.second = MaskedConv2d(2 * width, 2 * width, kernel, "B", window)
        self.shift = Shift(condition, 2 * width)

    def forward(self, x: Tensor, link: Tensor | None, condition: Tensor | None, place: Place | None) -> Tensor:
        """Map x (b, width, h, w), or that at a place, to the same shape."""
        hidden = self.first(both_signs(x), place)
        hidden = self.second(both_signs(hidden if link is None else hidden + link), place) + self.shift(condition)
        a, b = hidden.chunk(2, 1)
        return x + a * b.sigmoid()


class Shift(nn.Module):
    """V h of a condition h (b, e), the same at all pixels; 0 without one."""

    def __init__(self, condition: int, width: int) -> None:
        super().__init__()
        self.project = nn.Linear(condition, width, bias=False) if condition else None

    def forward(self, condition: Tensor | None) -> Tensor | float:
        """(b, e) -> (b, width, 1, 1)."""
        return 0.0 if self.project is None else self.project(condition)[:, :, None, None]


def conditioned(condition: int, width: int, depth: int) -> nn.ModuleList:
    """A `Shift` for each of ``depth`` layers."""
    return nn.ModuleList(Shift(condition, width) for _ in range(depth))


def gate(x: Tensor) -> Tensor:
    """tanh(a) sigmoid(b): (b, 2 d, h, w) -> (b, d, h, w)."""
    a, b = x.chunk(2, 1)
    return a.tanh() * b.sigmoid()


def both_signs(x: Tensor) -> Tensor:
    """elu of x and -x: (b, d, h, w) -> (b, 2 d, h, w)."""
    return F.elu(torch.cat([x, -x], 1))


NETWORKS: dict[str, Callable[..., PixelNetwork]] = {
    "pixelcnn": MaskedPixelCNN,
    "gated": GatedPixelCNN,
    "plus_plus": PixelCNNPlusPlus,
}
