"""Invertible layers of flows on pictures: actnorm folded into a 1x1 convolution, affine coupling, and a step of both."""

from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn import functional as F

LOG_SCALE_BOUND = 2.0  # of a coupling: it scales by 0.14 to 7.4, so that neither direction overflows


class ActNormConvolution(nn.Module):
    """Actnorm and an invertible 1x1 convolution, computed as one convolution: y = W s (x - m) + b at each position.

    ``W = P L (U + diag(sign e^d))``, a random rotation at first: P is a fixed permutation, L unit lower and U strictly upper
    triangular. ``s = e^l / std``; `start` sets m and std to those of the first batch. ``log|det dy/dx| = h w sum(d + log s)``.

    Args:
        channels: number c of channels.

    Source: Kingma and Dhariwal 2018, Glow, arXiv 1807.03039, sections 3.1 and 3.2. Differences: the statistics of the first
        batch are buffers beside parameters that start from 0, and the shift follows W.

    >>> layer = ActNormConvolution(4)
    >>> x = torch.randn(2, 4, 3, 3)
    >>> y, log_det = layer(x)
    >>> torch.allclose(layer.inverse(y), x, atol=1e-5), round(log_det.item(), 4) == 0  # a rotation keeps volumes
    (True, True)
    """

    mean: Tensor
    std: Tensor
    permutation: Tensor
    sign: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        rotation = torch.linalg.qr(torch.randn(channels, channels)).Q
        p, lower, upper = torch.linalg.lu(rotation)
        diagonal = upper.diagonal()
        self.lu = nn.Parameter(lower.tril(-1) + upper.triu(1))  # L below the diagonal, U above; the diagonal is not read
        self.log_diagonal = nn.Parameter(diagonal.abs().log())  # d
        self.log_scale = nn.Parameter(torch.zeros(channels))  # l
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("permutation", p.argmax(1))  # (P M)[i] = M[permutation[i]]
        self.register_buffer("sign", diagonal.sign())
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("std", torch.ones(channels))
        self._kept: tuple[Tensor, Tensor] | None = None  # the inverse

    @torch.no_grad()
    def start(self, x: Tensor) -> None:
        """Set m and std from x (b, c, h, w), the items of all processes together; b may be 0 in some of them."""
        x = x.transpose(0, 1).flatten(1)  # (c, b h w)
        totals = over_processes(torch.cat([x.sum(1), x.new_tensor([x.shape[1]])]))
        mean, count = totals[:-1] / totals[-1], totals[-1]
        variance = over_processes((x - mean[:, None]).square().sum(1)) / count
        self.mean.copy_(mean)
        self.std.copy_(variance.sqrt().clamp(min=1e-6))

    def weight(self) -> Tensor:
        """Compute W, (c, c)."""
        lower = self.lu.tril(-1) + torch.ones_like(self.sign).diag()
        upper = self.lu.triu(1) + (self.sign * self.log_diagonal.exp()).diag()
        return (lower @ upper)[self.permutation]

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x (b, c, h, w) -> y of the same shape, and log|det dy/dx|, a scalar."""
        with torch.autocast(x.device.type, enabled=False):  # half precision is too coarse to be inverted
            y = F.conv2d(x, *self._kernel())
            log_det = (self.log_diagonal + self.log_scale - self.std.log()).sum()
        return y, x.shape[2] * x.shape[3] * log_det

    def inverse(self, y: Tensor) -> Tensor:
        """y (b, c, h, w) -> x; in eval mode without gradient, the inverse of W is kept, see `train`."""
        with torch.autocast(y.device.type, enabled=False):
            if self.training or torch.is_grad_enabled():
                return F.conv2d(y, *self._inverse_kernel())
            if self._kept is None:
                self._kept = self._inverse_kernel()
            return F.conv2d(y, *self._kept)

    def train(self, mode: bool = True) -> "ActNormConvolution":
        """Set the mode and forget the inverse of W, as loading weights and moving the module do."""
        self._kept = None
        return super().train(mode)

    def _apply(self, *args: Any, **options: Any) -> "ActNormConvolution":
        self._kept = None
        return super()._apply(*args, **options)

    def _load_from_state_dict(self, *args: Any) -> None:
        self._kept = None
        super()._load_from_state_dict(*args)

    def _kernel(self) -> tuple[Tensor, Tensor]:
        """A (c, c, 1, 1) and a (c,) of y = A x + a."""
        kernel = self.weight() * (self.log_scale.exp() / self.std)
        return kernel[:, :, None, None], self.bias - kernel @ self.mean

    def _inverse_kernel(self) -> tuple[Tensor, Tensor]:
        """A (c, c, 1, 1) and a (c,) of x = A y + a."""
        kernel, bias = self._kernel()
        inverse = torch.linalg.inv(kernel[:, :, 0, 0]).contiguous()
        return inverse[:, :, None, None], -inverse @ bias


class AffineCoupling(nn.Module):
    """Affine coupling: y_1 = x_1 and y_2 = e^s x_2 + t, with s, t = network(x_1), |s| bounded and 0 at first.

    ``log|det dy/dx| = sum s``.

    Args:
        channels: number c of channels, even; x_1 is the first half.
        width: channels of the network's two hidden layers.

    Source: Dinh et al. 2017, Real NVP, arXiv 1605.08803, section 3.2; the network as in Glow, without its actnorms. Glow's
        scale is sigmoid(s + 2), which may vanish.

    >>> layer = AffineCoupling(4, width=8)
    >>> x = torch.randn(2, 4, 3, 3)
    >>> y, log_det = layer(x)
    >>> torch.equal(y, x), log_det.tolist()  # the identity, until it is trained
    (True, [0.0, 0.0])
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels // 2, width, 3, padding=1)
        self.middle = nn.Conv2d(width, width, 1)
        self.last = zeroed(nn.Conv2d(width, channels, 3, padding=1))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x (b, c, h, w) -> y of the same shape, and log|det dy/dx|, (b,)."""
        x1, x2 = x.chunk(2, 1)  # (b, c / 2, h, w) each
        log_scale, shift = self._log_scale_and_shift(x1)
        return torch.cat([x1, x2 * log_scale.exp() + shift], 1), log_scale.flatten(1).sum(1)

    def inverse(self, y: Tensor) -> Tensor:
        """y (b, c, h, w) -> x."""
        y1, y2 = y.chunk(2, 1)
        log_scale, shift = self._log_scale_and_shift(y1)
        return torch.cat([y1, (y2 - shift) / log_scale.exp()], 1)

    def _log_scale_and_shift(self, half: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.middle(self.first(half).relu_()).relu_()  # (b, width, h, w)
        log_scale, shift = self.last(hidden).to(half.dtype).chunk(2, 1)
        return LOG_SCALE_BOUND * torch.tanh(log_scale), shift


class Step(nn.Module):
    """One step of Glow: actnorm, 1x1 convolution, affine coupling.

    Args:
        channels: number c of channels, even.
        width: channels of the coupling's network.

    >>> step = Step(4, width=8)
    >>> round(step.start(torch.randn(5, 4, 3, 3) * 9 + 1).std().item(), 1)
    1.0
    >>> step(torch.randn(2, 4, 3, 3))[1].shape
    torch.Size([2])
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.mix, self.couple = ActNormConvolution(channels), AffineCoupling(channels, width)

    @torch.no_grad()
    def start(self, x: Tensor) -> Tensor:
        """Start the actnorm from x (b, c, h, w), see `ActNormConvolution.start`, and return y."""
        self.mix.start(x)
        return self(x)[0]

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x (b, c, h, w) -> y of the same shape, and log|det dy/dx|, (b,)."""
        mixed, log_det = self.mix(x)
        y, coupled = self.couple(mixed)
        return y, log_det + coupled

    def inverse(self, y: Tensor) -> Tensor:
        """y (b, c, h, w) -> x."""
        return self.mix.inverse(self.couple.inverse(y))


def zeroed(layer: nn.Conv2d) -> nn.Conv2d:
    """``layer`` with all weights and biases 0."""
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    return layer


def over_processes(values: Tensor) -> Tensor:
    """The sum of ``values`` over all processes."""
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(values)
    return values


def arranged(x: Tensor) -> Tensor:
    """x (b, c, h, w) with channels last in memory, which convolutions are faster with, except on a single picture."""
    return x.contiguous(memory_format=torch.channels_last if len(x) > 1 else torch.contiguous_format)
