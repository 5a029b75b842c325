"""Normalizing flow on vectors: p(x) or p(x | label) by the change of variables with a neural spline flow."""

from collections.abc import Sequence
from typing import Annotated

import torch
import zuko
from torch import Tensor
from torch.distributions import Distribution
from torch.nn import functional as F
from zuko.distributions import NormalizingFlow

from mmgen.data.batch import Batch, placed
from mmgen.distributions import Delta
from mmgen.errors import UserError, check_at_least, check_one_of
from mmgen.latents.spaces import rsample
from mmgen.modalities.kinds import check_values
from mmgen.models.base import REST, Losses, Model, check_generate, check_labels, dropped, labels_of
from mmgen.ranges import AtLeast, Share, checked


class Flow(Model):
    """p(x | label) = N(f(x); 0, 1) |det df/dx|, with f a neural spline flow of coupling layers that depend on the label.

    The splines transform x inside [-5, 5] and are the identity outside, so x should be standardised. Items without a vector
    are ignored; those without a label have one of their own.

    Args:
        modality: name of x in a batch.
        shape: (d,), the length of a vector.
        transforms: number of coupling layers; with 3 or more, every dimension depends on all others.
        hidden: width of the two hidden layers of each coupling network.
        bins: number of bins of each spline.
        classes: number of labels; 0: unconditional.
        condition_dropout: share of the labels dropped in training.

    Raises:
        UserError: a setting out of range; in use, no item with x, values of another shape or not finite, or a label out of
            range.

    Source: Durkan et al. 2019, Neural Spline Flows, arXiv 1906.04032; computed by zuko.

    >>> model = Flow(shape=[2], transforms=2, hidden=8)
    >>> batch = Batch({"vector": torch.randn(3, 2)})
    >>> sorted(model.losses(batch)), model.log_likelihood(batch).shape
    (['nll'], torch.Size([3]))
    >>> torch.allclose(model.decode(model.encode(batch).mean, "vector").mean, batch["vector"], atol=1e-5)
    True
    """

    name = "flow"
    from_prior = True

    @checked
    def __init__(
        self,
        modality: str = "vector",
        shape: Sequence[int] = (2,),
        transforms: Annotated[int, AtLeast(1)] = 4,
        hidden: Annotated[int, AtLeast(1)] = 64,
        bins: Annotated[int, AtLeast(2)] = 8,
        classes: Annotated[int, AtLeast(0)] = 0,
        condition_dropout: Annotated[float, Share()] = 0.1,
    ) -> None:
        super().__init__()
        if len(shape) != 1 or shape[0] < 1:
            raise UserError("shape", got=list(shape), expected="the length of a vector", fix="set shape=[2] for example")
        self.modality, self.shape, self.classes, self.condition_dropout = modality, tuple(shape), classes, condition_dropout
        widths = (hidden, hidden)
        self.flow = zuko.flows.NSF(shape[0], classes + 1, transforms=transforms, hidden_features=widths, bins=bins, passes=2)

    @property
    def inputs(self) -> tuple[str, ...]:
        """The modality that `generate` starts from."""
        return ("label",) if self.classes else ()

    def usable(self, batch: Batch, phase: str = "train") -> dict[str, Tensor]:
        """The items that have x."""
        return {REST: batch.having(self.modality)}

    def losses(self, batch: Batch, phase: str = "train") -> Losses:
        """``nll``, -log p(x | label), over the items that have x."""
        if not self.usable(batch)[REST].any():
            return self.zero_losses("nll")
        x, label, _ = self._observed(batch)
        if self.training and self.classes:
            label = dropped(label, self.classes, self.condition_dropout)
        with torch.autocast(x.device.type, enabled=False):  # half precision is too coarse for densities
            return Losses(nll=-self.density(label).log_prob(x).mean())

    def density(self, label: Tensor) -> NormalizingFlow:
        """p(x | label), label (b,) int64 with ``classes`` for none -> batch shape (b,), event (d,)."""
        return self.flow(F.one_hot(label, self.classes + 1).to(self.flow.base.loc))

    @torch.no_grad()
    def log_likelihood(self, batch: Batch, samples: int = 1) -> Tensor:
        """Exact log p(x | label), a density, in the units of x.

        Returns:
            (b,) in nats; 0 for items that lack x.
        """
        x, label, observed = self._observed(batch)
        return placed(self.density(label).log_prob(x), observed)

    def encode(self, batch: Batch) -> Delta:
        """z = f(x) as a `Delta`, batch shape (b,), event (d,); undefined where x is missing."""
        x, label, observed = self._observed(batch)
        return Delta(placed(self.density(label).transform(x), observed))

    def decode(self, z: Tensor, to: str, label: Tensor | None = None) -> Distribution:
        """x = f^-1(z) as a `Delta`: z (b, d), label (b,), by default that of items without one."""
        check_one_of("to", to, [self.modality])
        label = torch.full((len(z),), self.classes, device=z.device) if label is None else check_labels(label, self.classes)
        return Delta(self.density(label).transform.inv(z))

    @torch.no_grad()
    def generate(
        self, given: Batch, to: str, n: int = 1, generator: torch.Generator | None = None, temperature: float = 1.0
    ) -> Tensor:
        """``n`` new vectors per item, from its label where it has one; its vector is not read.

        Args:
            given: ``label`` (b,), if any.
            to: the model's modality.
            n: vectors per item.
            generator: makes the draws reproducible.
            temperature: standard deviation of z, 0 or above.

        Returns:
            (b * n, d), grouped by item.
        """
        check_generate(to, n, [self.modality])
        check_at_least("temperature", temperature, 0)
        density = self.density(labels_of(given, self.classes).repeat_interleave(n))
        return density.transform.inv(temperature * rsample(density.base, (), generator))

    def _observed(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """x of the items that have it, (b', d), their labels (b',), and their mask (b,)."""
        observed = batch.observed(self.modality)
        x = batch[self.modality][observed]
        check_values(self.modality, x, "vector", self.shape)
        return x, labels_of(batch, self.classes)[observed], observed
