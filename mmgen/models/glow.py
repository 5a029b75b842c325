"""Glow: a normalizing flow on pictures, of several scales with conditional priors."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, Normal
from torch.nn import functional as F

from mmgen.data.batch import Batch, placed
from mmgen.distributions import Delta, Joint
from mmgen.errors import UserError, check_at_least, check_one_of, counted
from mmgen.latents.spaces import bounded_scale, rsample
from mmgen.modalities.image import levels_of
from mmgen.modalities.layers.invertible import Step, arranged, over_processes, zeroed
from mmgen.models.base import REST, Losses, Model, check_generate, dropped, labels_of
from mmgen.ranges import AtLeast, Share, checked

SETTINGS = ("levels", "scales", "depth")  # saved with the weights


class ConditionalPrior(nn.Module):
    """p(z | h, label) = N(mu, sigma^2), with mu and log sigma the sum of an entry of the label and a convolution of h.

    Both are 0 at first: the prior starts as N(0, 1).

    Args:
        shape: (c, h, w) of z, or (c, 1, 1) where all positions share the entries of labels.
        labels: number of entries.
        context: channels of h, the coarser latents; 0 without h.

    >>> ConditionalPrior((2, 4, 4), labels=3)(torch.tensor([0, 2])).log_prob(torch.zeros(2, 2, 4, 4)).shape
    torch.Size([2])
    """

    def __init__(self, shape: tuple[int, int, int], labels: int, context: int = 0) -> None:
        super().__init__()
        self.shape = (2 * shape[0], *shape[1:])
        self.entries = nn.Embedding(labels, math.prod(self.shape))
        nn.init.zeros_(self.entries.weight)
        self.convolution = zeroed(nn.Conv2d(context, self.shape[0], 3, padding=1)) if context else None

    def forward(self, label: Tensor, h: Tensor | None = None, temperature: float = 1.0) -> Independent:
        """label (b,), h (b, c', h, w) -> p(z | h, label), batch shape (b,), its standard deviation times ``temperature``."""
        parameters = self.entries(label).unflatten(1, self.shape)  # (b, 2c, h, w)
        if self.convolution is not None and h is not None:
            parameters = parameters + self.convolution(h).to(h.dtype)
        mean, log_scale = parameters.chunk(2, 1)
        return Independent(Normal(mean, temperature * bounded_scale(log_scale), validate_args=False), 3, validate_args=False)


class Glow(Model):
    """p(y) = prod_l p(z_l | h_l) |det dz/dy|, z = f(y) by invertible layers, y a picture with the noise of its levels.

    A picture stands for the integers ``i = round(x (levels - 1))``, and ``y = (i + u) / levels`` with u uniform in [0, 1). As
    P(i) is the integral of p(y) over a cube of volume levels^-D, the loss is an upper bound on -log P(i), by one u:

    ``nll = -log p(y) + D log levels``, and ``nll / (D log 2)`` is bits per dimension.

    At each scale, 2 x 2 pixels become channels, ``depth`` steps follow, and half of the channels leave as z_l, whose prior
    N(mu(h_l), sigma(h_l)^2) depends on the half h_l that goes on; at the last scale, all leave. With ``classes``, every prior
    also depends on the label, and has an entry for items without one.

    In training, the first batch sets the statistics of the actnorms, once. Items without a picture are ignored.

    Args:
        shape: (c, h, w) of a picture, h and w multiples of 2^scales, values in [0, 1].
        levels: number of levels of a value.
        scales: number L of scales.
        depth: number K of steps at each scale.
        width: channels of the couplings' networks.
        classes: number of labels; 0: unconditional.
        condition_dropout: share of the labels dropped in training.

    Raises:
        UserError: a setting out of range, or a size not divisible; in use, no item with a picture, values that are no picture,
            a label out of range, or a first batch of a single picture.

    Source: Kingma and Dhariwal 2018, Glow, arXiv 1807.03039. Differences: see `mmgen.modalities.layers.invertible`; labels
        enter the priors of all scales (there of the last), and there is no loss of classification.

    >>> model = Glow((1, 8, 8), scales=2, depth=1, width=8)
    >>> batch = Batch({"image": torch.rand(3, 1, 8, 8)})
    >>> sorted(model.losses(batch)), model.log_likelihood(batch, samples=2).shape
    (['nll'], torch.Size([3]))
    >>> z = model.eval().encode(batch).mean
    >>> {name: tuple(value.shape) for name, value in z.items()}
    {'z1': (3, 2, 4, 4), 'z2': (3, 8, 2, 2)}
    >>> torch.allclose(model.decode(z).mean, (batch["image"] * 255).round() / 255)
    True
    """

    name = "glow"
    from_prior = True
    flow: Any  # a ModuleList of each scale's steps
    started: Tensor
    settings: Tensor

    @checked
    def __init__(
        self,
        shape: Sequence[int] = (3, 32, 32),
        levels: Annotated[int, AtLeast(2)] = 256,
        scales: Annotated[int, AtLeast(1)] = 3,
        depth: Annotated[int, AtLeast(1)] = 8,
        width: Annotated[int, AtLeast(1)] = 64,
        classes: Annotated[int, AtLeast(0)] = 0,
        condition_dropout: Annotated[float, Share()] = 0.1,
    ) -> None:
        super().__init__()
        channels, height, side = check_size(shape, scales)
        self.shape, self.levels, self.classes, self.condition_dropout = tuple(shape), levels, classes, condition_dropout
        self.flow, self.priors = nn.ModuleList(), nn.ModuleList()
        self.latent_shapes: dict[str, tuple[int, int, int]] = {}
        for number in range(1, scales + 1):
            channels, height, side = 4 * channels, height // 2, side // 2
            self.flow.append(nn.ModuleList(Step(channels, width) for _ in range(depth)))
            if number < scales:
                channels //= 2
                self.priors.append(ConditionalPrior((channels, 1, 1), classes + 1, context=channels))
            else:
                self.priors.append(ConditionalPrior((channels, height, side), classes + 1))
            self.latent_shapes[f"z{number}"] = (channels, height, side)
        self.register_buffer("started", torch.zeros((), dtype=torch.bool))  # whether the actnorms have their statistics
        self.register_buffer("settings", torch.tensor([levels, scales, depth]))
        self._waiting = True  # `started` as last read, as reading it from a GPU at each step would slow training down

    @property
    def inputs(self) -> tuple[str, ...]:
        """The modality that `generate` starts from."""
        return ("label",) if self.classes else ()

    @property
    def encoded(self) -> tuple[str, ...]:
        """The modality of x."""
        return ("image",)

    def usable(self, batch: Batch, phase: str = "train") -> dict[str, Tensor]:
        """The items that have a picture; before the actnorms' start, none where others lack it and there is only one."""
        rows = batch.having("image")
        return {REST: rows & (rows.sum() >= min(2, batch.size)) if self._waits() else rows}

    def losses(self, batch: Batch, phase: str = "train") -> Losses:
        """The bound ``nll`` on -log P(i), over the items that have a picture."""
        observed = self.usable(batch)[REST]
        waits = self._waits()
        if not observed.any() and not waits:
            return self.zero_losses("nll")
        i = self._integers(batch, observed)  # (b', c, h, w)
        y = (i + torch.rand_like(i)) / self.levels
        if waits:
            self._start(y)  # with the other processes, which may have pictures
        if not observed.any():
            return self.zero_losses("nll")
        label = labels_of(batch, self.classes)[observed]
        if self.training and self.classes:
            label = dropped(label, self.classes, self.condition_dropout)
        return Losses(nll=self._volume() - self.log_density(y, label).mean())

    def log_density(self, y: Tensor, label: Tensor | None = None) -> Tensor:
        """log p(y | label) of continuous pictures, exact.

        Args:
            y: (b, c, h, w), any numbers.
            label: (b,) int64, ``classes`` for none; None: none of them has one.

        Returns:
            (b,) in nats.
        """
        label = torch.full((len(y),), self.classes, device=y.device) if label is None else label
        latents, log_det = self.latents(y)
        parts = [prior(label, h).log_prob(z) for prior, (z, h) in zip(self.priors, latents)]
        return log_det + torch.stack(parts).sum(0)

    def latents(self, y: Tensor) -> tuple[list[tuple[Tensor, Tensor | None]], Tensor]:
        """Continuous pictures y (b, c, h, w) -> (z_l, h_l) of each scale, h_L None, and log|det dz/dy|, (b,)."""
        latents: list[tuple[Tensor, Tensor | None]] = []
        h, log_det = y, y.new_zeros(len(y))
        for steps, prior in zip(self.flow, self.priors):
            h = arranged(F.pixel_unshuffle(h, 2))  # (b, 4c, h / 2, w / 2)
            for step in steps:
                h, change = step(h)
                log_det = log_det + change
            if prior.convolution is None:
                latents.append((h, None))
            else:
                h, z = h.chunk(2, 1)
                latents.append((z, h))
        return latents, log_det

    def pixels(self, latent: Callable[[int, Tensor | None], Tensor]) -> Tensor:
        """y (b, c, h, w), the inverse of `latents`; ``latent`` gives z_l from l - 1 and h_l."""
        last = len(self.flow) - 1
        h = latent(last, None)
        for number in range(last, -1, -1):
            if number < last:
                h = torch.cat([h, latent(number, h)], 1)
            h = arranged(h)
            for step in reversed(self.flow[number]):
                h = step.inverse(h)
            h = F.pixel_shuffle(h, 2)
        return h

    @torch.no_grad()
    def log_likelihood(self, batch: Batch, samples: int = 1) -> Tensor:
        """A lower bound on log P(i | label): ``log 1/S sum_s p((i + u_s) / levels) - D log levels``; it rises with S.

        Returns:
            (b,) in nats; 0 for items that lack a picture.
        """
        check_at_least("samples", samples, 1)
        observed = batch.observed("image")
        i, label = self._integers(batch, observed), labels_of(batch, self.classes)[observed]
        total = i.new_full((len(i),), -math.inf)
        for _ in range(samples):
            total = torch.logaddexp(total, self.log_density((i + torch.rand_like(i)) / self.levels, label))
        return placed(total - math.log(samples) - self._volume(), observed)

    def encode(self, batch: Batch) -> Joint:
        """z1, ..., zL of y = (i + 1/2) / levels, each a `Delta` of event (c, h, w); undefined where x is missing."""
        observed = batch.observed("image")
        latents, _ = self.latents((placed(self._integers(batch, observed), observed) + 0.5) / self.levels)
        return Joint({name: Delta(z, event_dims=3) for name, (z, _) in zip(self.latent_shapes, latents)})

    def decode(self, z: Mapping[str, Tensor], to: str = "image") -> Distribution:
        """The picture of latents as a `Delta`, event (c, h, w): z as `encode` gives them, (b, c, h, w) each.

        Raises:
            UserError: one is missing, or of another shape.
        """
        check_one_of("to", to, ["image"])
        for name, shape in self.latent_shapes.items():
            got = tuple(z[name].shape[1:]) if name in z else "no such entry"
            if got != shape:
                raise UserError(
                    f"z[{name!r}]", got=got, expected=f"(b, {', '.join(map(str, shape))})", fix="use encode(batch)"
                )
        parts = [z[name] for name in self.latent_shapes]
        return Delta(self._picture(self.pixels(lambda number, h: parts[number])), event_dims=3)

    @torch.no_grad()
    def generate(
        self, given: Batch, to: str, n: int = 1, generator: torch.Generator | None = None, temperature: float = 1.0
    ) -> Tensor:
        """``n`` new pictures per item, from its label where it has one; its picture is not read.

        Args:
            given: ``label`` (b,), if any.
            to: "image".
            n: pictures per item.
            generator: makes the draws reproducible.
            temperature: factor of the standard deviation of every prior, 0 or above; 0 decodes the mode of the priors.

        Returns:
            (b * n, c, h, w) in [0, 1], grouped by item.
        """
        check_generate(to, n, ["image"])
        check_at_least("temperature", temperature, 0)
        label = labels_of(given, self.classes).repeat_interleave(n)  # (b n,)
        y = self.pixels(lambda number, h: rsample(self.priors[number](label, h, temperature), (), generator))
        return self._picture(y)

    def load_own_state(self, state: dict[str, Tensor], source: str = "weights") -> None:
        """Load weights.

        Raises:
            UserError: they are of a flow with other settings; the message names the first.
        """
        own, saved = self.settings.tolist(), state["settings"].tolist() if "settings" in state else None
        for name, mine, theirs in zip(SETTINGS, own, saved or own):
            if mine != theirs:
                raise UserError(f"{name} of {source}", got=mine, expected=f"{theirs}, as saved", fix=f"set {name}={theirs}")
        super().load_own_state(state, source)
        self._waiting = True  # reads it anew

    def _picture(self, y: Tensor) -> Tensor:
        """The pictures, on their levels, of y."""
        return (y * self.levels).floor().clamp(0, self.levels - 1) / (self.levels - 1)

    @torch.no_grad()
    def _start(self, y: Tensor) -> None:
        """Set the actnorms' statistics, layer by layer, from the pictures y (b, c, h, w) of all processes; b may be 0.

        Raises:
            UserError: there is only one picture.
        """
        count = int(over_processes(torch.tensor(len(y), device=y.device)))
        if count == 1:
            fix = "set fit.batch_size to 2 or more"
            raise UserError("first batch", got="1 picture", expected="2 or more, for the statistics of actnorm", fix=fix)
        if count == 0:
            return
        for steps in self.flow:
            b, c, h, w = y.shape
            y = F.pixel_unshuffle(y, 2) if b else y.new_zeros(0, 4 * c, h // 2, w // 2)  # torch leaves 0 items as they are
            for step in steps:
                y = step.start(y)
            y = y.chunk(2, 1)[0]  # of the last scale unused
        self.started.fill_(True)

    def _waits(self) -> bool:
        """Return whether the actnorms wait for the first batch of training."""
        if self.training and self._waiting:
            self._waiting = not self.started
        return self.training and self._waiting

    def _volume(self) -> float:
        """D log levels, minus the logarithm of the volume of the cube of a picture."""
        return math.prod(self.shape) * math.log(self.levels)

    def _integers(self, batch: Batch, rows: Tensor) -> Tensor:
        """The levels of the pictures at ``rows`` (b,), whole numbers (b', c, h, w)."""
        if not rows.any():
            return self.flow[0][0].mix.mean.new_zeros(0, *self.shape)
        return levels_of("image", batch["image"][rows], self.shape, self.levels)


def check_size(shape: Sequence[int], scales: int) -> tuple[int, int, int]:
    """Return ``shape`` (c, h, w) if its sides can be halved ``scales`` times.

    Raises:
        UserError: they cannot.

    >>> check_size((1, 28, 28), scales=3)
    Traceback (most recent call last):
    mmgen.errors.UserError: size for 3 scales: got 28 x 28, expected multiples of 8; set scales=2, or choose another size
    """
    if len(shape) != 3 or min(shape) < 1:
        raise UserError("shape", got=list(shape), expected="channels, height, width", fix="set shape=[1,28,28] for example")
    channels, height, width = shape
    if height % 2**scales or width % 2**scales:
        fits = next(n for n in range(scales, -1, -1) if height % 2**n == width % 2**n == 0)
        fix = f"set scales={fits}, or choose another size" if fits else "choose another size"
        what = f"size for {counted(scales, 'scale')}"
        raise UserError(what, got=f"{height} x {width}", expected=f"multiples of {2**scales}", fix=fix)
    return channels, height, width
