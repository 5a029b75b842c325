"""GAN: a generator and a discriminator of pictures play a game: minimax, non-saturating, or relativistic (R3GAN)."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Annotated, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from mmgen.data.batch import Batch
from mmgen.errors import UserError, check_one_of, check_sizes
from mmgen.latents.spaces import StandardPrior, rsample
from mmgen.modalities.image import check_pixels
from mmgen.modalities.layers.convolution import channels, halvings
from mmgen.models.base import REST, Losses, Model, check_generate, dropped, labels_of
from mmgen.models.mirror_gan import squared_gradient
from mmgen.ranges import AtLeast, Share, checked

SLOPE = 0.2  # of the leaky ReLUs below zero


class Game(NamedTuple):
    """Two losses of pairs of logits, elementwise: d = D(x) of a real item and d' = D(x') of a generated one.

    Args:
        discriminator: (d, d') -> the loss that the discriminator minimises.
        generator: (d, d') -> the loss that the generator minimises.
    """

    discriminator: Callable[[Tensor, Tensor], Tensor]
    generator: Callable[[Tensor, Tensor], Tensor]


def cross_entropy(real: Tensor, fake: Tensor) -> Tensor:
    """-log s(d) - log(1 - s(d')), s the logistic function: the discriminator's loss in Goodfellow et al. 2014.

    Its least mean over x ~ p and x' ~ q is ``log 4 - 2 JSD(p, q)``, at ``s(D(x)) = p(x) / (p(x) + q(x))``.

    >>> round(cross_entropy(torch.tensor(0.0), torch.tensor(0.0)).item(), 4)  # log 4
    1.3863
    """
    return F.softplus(-real) + F.softplus(fake)


def minimax(real: Tensor, fake: Tensor) -> Tensor:
    """log(1 - s(d')): the generator's loss in the game of value V; flat where the discriminator is sure, s(d') = 0."""
    return -F.softplus(fake)


def non_saturating(real: Tensor, fake: Tensor) -> Tensor:
    """-log s(d'): the same fixed point as `minimax`, steep where the discriminator is sure."""
    return F.softplus(-fake)


def relative(better: Tensor, worse: Tensor) -> Tensor:
    """-log s(better - worse): a pair in the wrong order costs, however high both logits are."""
    return F.softplus(worse - better)


GAMES = {
    "minimax": Game(cross_entropy, minimax),
    "non_saturating": Game(cross_entropy, non_saturating),
    "relativistic": Game(relative, lambda real, fake: relative(fake, real)),
}


class GAN(Model):
    """x = G(z, y), z ~ N(0, 1), trained against a discriminator D(x, y), y a label if there are ``classes``.

    A step minimises in turn, for pairs of a picture x and a generated x' of the same label, with d = D(x, y), d' = D(x', y)
    and the losses of `GAMES`,

        discriminator: mean of  loss_D(d, d') + r1 / 2 |dD(x, y) / dx|^2 + r2 / 2 |dD(x', y) / dx'|^2
        generator:     mean of  loss_G(d, d')

    - "minimax": ``-log s(d) - log(1 - s(d'))`` and ``log(1 - s(d'))``: one value V, which G lowers and D raises.
    - "non_saturating": the same, and ``-log s(d')``.
    - "relativistic": ``-log s(d - d')`` and ``-log s(d' - d)``.

    Both networks are residual ones without normalisation. An item without a label, and a share of the others in training, is
    of the class "none". Items without a picture are ignored. A generator is best used as its moving average, ``fit.ema``.
    The model has no likelihood and no posterior.

    Args:
        shape: (c, h, w) of a picture, any h and w, values in [0, 1].
        objective: key of `GAMES`.
        classes: number of classes of ``label``; 0: no labels are read.
        condition_dropout: share of the labels hidden in training, so that pictures can be drawn without one too.
        noise: size of z.
        width: channels of the largest maps; doubled at each halving, up to 8 times as many.
        depth: residual blocks at each size.
        r1: weight of the gradient penalty at real pictures; 0 for none.
        r2: weight of the gradient penalty at generated ones; 0 for none.

    Raises:
        UserError: an unknown objective, or a number out of its range; in use, a picture of another shape or with values that
            are not from 0 to 1, a label out of range, or another ``to``.

    Source: Goodfellow et al. 2014, arXiv 1406.2661, section 3 (minimax, non-saturating); Jolicoeur-Martineau 2018,
        arXiv 1807.00734 (relativistic); Mescheder et al. 2018, arXiv 1801.04406 (R1 and R2); Huang et al. 2024, R3GAN,
        arXiv 2501.05441, for the relativistic game with both penalties and the networks. Differs in that its convolutions are
        not grouped, and maps are resized without a filter; a label is embedded at the generator's input and read by the
        discriminator as a projection (Miyato and Koyama 2018, arXiv 1802.05637).

    >>> model = GAN((1, 8, 8), noise=4, width=4, depth=1)
    >>> sorted(model.losses(Batch({"image": torch.rand(3, 1, 8, 8)}), "discriminator"))
    ['adversarial', 'r1', 'r2']
    >>> model.generate(Batch.nothing(2), "image", n=3).shape
    torch.Size([6, 1, 8, 8])
    """

    name = "gan"
    phases = ("discriminator", "generator")
    adversary = "discriminator"
    from_prior = True

    @checked
    def __init__(
        self,
        shape: Sequence[int] = (3, 32, 32),
        objective: Literal["minimax", "non_saturating", "relativistic"] = "relativistic",
        classes: Annotated[int, AtLeast(0)] = 0,
        condition_dropout: Annotated[float, Share()] = 0.1,
        noise: Annotated[int, AtLeast(1)] = 64,
        width: Annotated[int, AtLeast(1)] = 32,
        depth: Annotated[int, AtLeast(1)] = 2,
        r1: Annotated[float, AtLeast(0)] = 1.0,
        r2: Annotated[float, AtLeast(0)] = 1.0,
    ) -> None:
        super().__init__()
        sides = check_sizes("shape", list(shape))
        if len(sides) != 3:
            raise UserError("shape", got=sides, expected="3 numbers", fix="give channels, height, width")
        self.shape, self.classes, self.condition_dropout = (sides[0], sides[1], sides[2]), classes, condition_dropout
        self.game, self.r1, self.r2 = GAMES[check_one_of("objective", objective, GAMES)], r1, r2
        self.prior = StandardPrior(noise)
        self.generator = Generator(self.shape, noise, classes, width, depth)
        self.discriminator = Discriminator(self.shape, classes, width, depth)

    @property
    def inputs(self) -> tuple[str, ...]:
        """The label, if it reads one."""
        return ("label",) if self.classes else ()

    def usable(self, batch: Batch, phase: str = "train") -> dict[str, Tensor]:
        """The items that have a picture."""
        return {REST: batch.having("image")}

    def losses(self, batch: Batch, phase: str = "train") -> Losses:
        """The terms of one phase over the items that have a picture; in "train", of both phases, named by them.

        The terms of a phase give no gradient to the other phase's parameters.
        """
        check_one_of("phase", phase, ("train", *self.phases))
        if not self.usable(batch)[REST].any():
            return self.zero_losses("adversarial")
        x, labels = self._observed(batch)
        terms = {"discriminator": self.discriminator_terms, "generator": self.generator_terms}
        if phase != "train":
            return terms[phase](x, labels)
        return Losses({f"{name}_{key}": value for name, of in terms.items() for key, value in of(x, labels).items()})

    def discriminator_terms(self, x: Tensor, labels: Tensor) -> Losses:
        """Loss of the discriminator and its penalties: pictures (b, c, h, w) and labels (b,)."""
        with torch.no_grad():
            fake = self.draw(labels)  # (b, c, h, w)
        both = torch.cat([x, fake])  # (2b, c, h, w)
        if not both.requires_grad:
            both.requires_grad_()  # the penalties differentiate by it
        logits = self.discriminator(both, labels.repeat(2))  # (2b,)
        d, d_fake = logits.chunk(2)
        terms = Losses(adversarial=self.game.discriminator(d, d_fake).mean())
        if self.r1 or self.r2:
            at_real, at_fake = squared_gradient(logits, both).chunk(2)  # (b,) each, with a gradient
            terms |= {name: w / 2 * at.mean() for name, w, at in (("r1", self.r1, at_real), ("r2", self.r2, at_fake)) if w}
        self.monitored = {"real_above_fake": (d > d_fake).float().mean().detach()}
        return terms

    def generator_terms(self, x: Tensor, labels: Tensor) -> Losses:
        """Loss of the generator against a constant discriminator: pictures (b, c, h, w) and labels (b,)."""
        constant = {name: p.detach() for name, p in self.discriminator.named_parameters()}
        pictures, of = torch.cat([x.detach(), self.draw(labels)]), labels.repeat(2)
        d, d_fake = functional_call(self.discriminator, constant, (pictures, of)).chunk(2)  # (b,) each
        self.monitored = {}
        return Losses(adversarial=self.game.generator(d, d_fake).mean())

    def draw(self, labels: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """A picture of each label (b,), `classes` for none: (b, c, h, w), about 0 to 1 and not clamped."""
        z = rsample(self.prior(), (len(labels),), generator)  # (b, k)
        return self.generator(z.to(self.step.device), labels)

    @torch.no_grad()
    def generate(self, given: Batch, to: str = "image", n: int = 1, generator: torch.Generator | None = None) -> Tensor:
        """``n`` pictures for each item, of its label where it has one, (b * n, c, h, w) in [0, 1], grouped by item.

        Raises:
            UserError: another ``to``, ``n`` below 1, or a label out of range.
        """
        check_generate(to, n, ["image"])
        return self.draw(labels_of(given, self.classes).repeat_interleave(n), generator).clamp(0, 1)

    def _observed(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The pictures (b', c, h, w) and labels (b',) of the items that have a picture; in training, some labels are hidden.

        Raises:
            UserError: a picture has another shape, is not finite, or has a value that is not from 0 to 1.
        """
        batch = batch.items(batch.observed("image"))
        x, labels = check_pixels("image", batch["image"], self.shape), labels_of(batch, self.classes)
        if self.training and self.classes:
            labels = dropped(labels, self.classes, self.condition_dropout)
        return x, labels


class Block(nn.Module):
    """Residual block x + f(x) on (b, c, h, w), f three convolutions without normalisation, of which the last begins at 0.

    Args:
        width: channels c.
        blocks: number of blocks of the network: the deeper it is, the smaller the first weights (Zhang et al. 2019, Fixup,
            arXiv 1901.09321).
    """

    def __init__(self, width: int, blocks: int) -> None:
        super().__init__()
        first, second, last = (nn.Conv2d(width, width, k, padding=k // 2) for k in (1, 3, 1))
        for layer in (first, second):
            started(layer, blocks**-0.25)
        nn.init.zeros_(last.weight)
        self.layers = nn.Sequential(first, nn.LeakyReLU(SLOPE), second, nn.LeakyReLU(SLOPE), last)

    def forward(self, x: Tensor) -> Tensor:
        """Map x (b, width, h, w) to the same shape."""
        return x + self.layers(x)


class Generator(nn.Module):
    """Network (z, label) -> a picture: from a map of at most 4 x 4, enlarged step by step.

    Args:
        shape, noise, classes, width, depth: see `GAN`.
    """

    def __init__(self, shape: tuple[int, int, int], noise: int, classes: int, width: int, depth: int) -> None:
        super().__init__()
        sizes = halvings(shape[1:])[::-1]  # smallest first
        widths = channels(width, len(sizes))[::-1]
        self.label = nn.Embedding(classes + 1, noise) if classes else None
        self.first = (widths[0], *sizes[0])
        self.expand = started(nn.Linear(noise * (2 if classes else 1), widths[0] * sizes[0][0] * sizes[0][1]))
        blocks = depth * len(sizes)
        layers: list[nn.Module] = [Block(widths[0], blocks) for _ in range(depth)]
        for (before, after), size in zip(pairwise(widths), sizes[1:]):
            layers += [nn.Upsample(size, mode="bilinear"), started(nn.Conv2d(before, after, 1), 1.0, 1.0)]
            layers += [Block(after, blocks) for _ in range(depth)]
        self.layers = nn.Sequential(*layers, nn.LeakyReLU(SLOPE), nn.Conv2d(widths[-1], shape[0], 1))

    def forward(self, z: Tensor, labels: Tensor) -> Tensor:
        """z (b, noise), labels (b,) -> (b, c, h, w)."""
        if self.label is not None:
            z = torch.cat([z, self.label(labels)], 1)  # (b, 2 noise)
        return (self.layers(self.expand(z).unflatten(1, self.first)) + 1) / 2


class Discriminator(nn.Module):
    """Network (picture, label) -> a logit: residual blocks down to a map of at most 4 x 4, and a linear layer.

    Args:
        shape, classes, width, depth: see `GAN`.
    """

    def __init__(self, shape: tuple[int, int, int], classes: int, width: int, depth: int) -> None:
        super().__init__()
        sizes = halvings(shape[1:])
        widths = channels(width, len(sizes))
        blocks = depth * len(sizes)
        layers: list[nn.Module] = [started(nn.Conv2d(shape[0], width, 3, padding=1), 1.0, 1.0)]
        layers += [Block(width, blocks) for _ in range(depth)]
        for (before, after), size in zip(pairwise(widths), sizes[1:]):
            layers += [nn.AdaptiveAvgPool2d(size), started(nn.Conv2d(before, after, 1), 1.0, 1.0)]
            layers += [Block(after, blocks) for _ in range(depth)]
        dim = widths[-1]
        last = started(nn.Linear(dim * sizes[-1][0] * sizes[-1][1], dim))
        self.features = nn.Sequential(*layers, nn.LeakyReLU(SLOPE), nn.Flatten(), last, nn.LeakyReLU(SLOPE))
        self.head = nn.Linear(dim, 1)
        self.label = nn.Embedding(classes + 1, dim) if classes else None

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        """The logit (b,) of images (b, c, h, w) in [0, 1] with labels (b,)."""
        features = self.features(2 * images - 1)  # (b, d)
        logits = self.head(features)[:, 0]
        if self.label is not None:
            logits = logits + (features * self.label(labels)).sum(1) / features.shape[1] ** 0.5
        return logits


def started(layer: nn.Conv2d | nn.Linear, scale: float = 1.0, slope: float = SLOPE) -> nn.Conv2d | nn.Linear:
    """The layer with initial weights that keep the size of activations through a leaky ReLU, times ``scale``.

    Args:
        layer: a convolution or a linear layer.
        scale: of the weights.
        slope: of the ReLU below zero; 1: no ReLU follows.
    """
    nn.init.kaiming_normal_(layer.weight, slope)
    with torch.no_grad():
        layer.weight.mul_(scale)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer
