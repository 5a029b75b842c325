"""Distributions that torch lacks: points, joint ones by name, token sequences, levels; and likelihoods chosen by name."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Bernoulli, ContinuousBernoulli, Distribution, Independent, Laplace, Normal, constraints

from mmgen.errors import UserError, check_at_least, check_one_of


class Delta(Distribution):
    """All probability on one point, such as the code of a deterministic encoder.

    Args:
        value: (*batch, *event) the point.
        event_dims: how many last dimensions are one event.

    >>> Delta(torch.zeros(2, 3)).log_prob(torch.tensor([[0.0, 0, 0], [0, 0, 1]])).tolist()
    [0.0, -inf]
    """

    arg_constraints: dict[str, constraints.Constraint] = {}  # noqa: RUF012 (the name and type that torch prescribes)
    has_rsample = True

    def __init__(self, value: Tensor, event_dims: int = 1) -> None:
        self.value, self.event_dims = value, event_dims
        cut = value.ndim - event_dims
        super().__init__(value.shape[:cut], value.shape[cut:], validate_args=False)

    @property
    def mean(self) -> Tensor:
        """The point."""
        return self.value

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """The point, repeated: (*sample_shape, *batch, *event)."""
        return self.value.expand(*sample_shape, *self.value.shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """0 at the point and minus infinity elsewhere: (..., *event) -> (...)."""
        same = (value == self.value).flatten(-self.event_dims).all(-1)
        return torch.where(same, 0.0, -torch.inf)


class Joint(Distribution):
    """Independent distributions by name, such as those of several codes of the same items; its values are dicts.

    Args:
        parts: name -> a distribution; one batch shape for all.

    >>> q = Joint({"label": Delta(torch.zeros(2, 3)), "image": Delta(torch.ones(2, 5))})
    >>> q["image"].mean.shape, q.log_prob(q.mean).tolist()
    (torch.Size([2, 5]), [0.0, 0.0])
    """

    arg_constraints: dict[str, constraints.Constraint] = {}  # noqa: RUF012 (the name and type that torch prescribes)

    def __init__(self, parts: Mapping[str, Distribution]) -> None:
        self.parts = dict(parts)
        super().__init__(next(iter(self.parts.values())).batch_shape, validate_args=False)

    def __getitem__(self, name: str) -> Distribution:
        return self.parts[name]

    @property
    def mean(self) -> dict[str, Tensor]:  # type: ignore[override]
        """Name -> the mean of that part."""
        return {name: part.mean for name, part in self.parts.items()}

    def sample(self, sample_shape: tuple[int, ...] = ()) -> dict[str, Tensor]:  # type: ignore[override]
        """Name -> a draw from that part."""
        return {name: part.sample(sample_shape) for name, part in self.parts.items()}

    def log_prob(self, value: Mapping[str, Tensor]) -> Tensor:  # type: ignore[override]
        """The sum over the parts of log p of their values, batch shape."""
        return torch.stack([part.log_prob(value[name]) for name, part in self.parts.items()]).sum(0)


class AutoregressiveCategorical(Distribution):
    """A distribution over token sequences, one token given those before it and a context.

    log p(x | c) = sum_i log p(x_i | x_1, ..., x_{i-1}, c), over the real tokens of x.

    Args:
        context: (b, ...) what each sequence is conditioned on; b is the batch shape.
        logits: (context, ids (b, t), mask (b, t)) -> (b, t, v), entry i for token i given those before it.
        sampler: (context, generator, **options) -> ids (b, length).
        length: longest sequence in tokens, the event shape.
        stop: token that ends a sequence, itself part of it; None where every sequence has ``length`` tokens.

    >>> coin = AutoregressiveCategorical(torch.zeros(2, 1), lambda c, ids, mask: torch.zeros(*ids.shape, 2), None, length=3)
    >>> coin.log_prob(torch.zeros(2, 3, dtype=torch.long)).exp().tolist()
    [0.125, 0.125]
    """

    arg_constraints: dict[str, constraints.Constraint] = {}  # noqa: RUF012 (the name and type that torch prescribes)
    has_rsample = False

    def __init__(
        self,
        context: Tensor,
        logits: Callable[[Tensor, Tensor, Tensor], Tensor],
        sampler: Callable[..., Tensor],
        *,
        length: int,
        stop: int | None = None,
    ) -> None:
        self.context, self.logits_of, self.sampler, self.stop = context, logits, sampler, stop
        super().__init__(context.shape[:1], torch.Size([length]), validate_args=False)

    def log_prob(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        """Sum of the log probabilities of the real tokens.

        Args:
            ids: (..., b, t) token ids, t at most ``length``.
            mask: like ``ids``, bool, True at real tokens; without one, all tokens up to and including the first ``stop``.

        Returns:
            (..., b) in nats.

        Raises:
            UserError: t is more than ``length``.
        """
        if ids.shape[-1] > self.event_shape[0]:
            fix = "cut the sequences, or build the decoder with a greater length"
            raise UserError("sequence", got=f"{ids.shape[-1]} tokens", expected=f"at most {self.event_shape[0]}", fix=fix)
        mask = until_stop(ids, self.stop) if mask is None else mask
        draws = ids.shape[:-2]  # several sequences a context, as `sample((n,))` gives
        flat_ids, flat_mask = ids.reshape(-1, ids.shape[-1]), mask.reshape(-1, ids.shape[-1])  # (n b, t)
        logits = self.logits_of(self._repeated_context(draws), flat_ids, flat_mask)  # (n b, t, v)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))  # half precision is too coarse for long sums
        losses = nn.functional.cross_entropy(logits.transpose(1, 2), flat_ids, reduction="none")  # (n b, t)
        return -(losses * flat_mask).sum(-1).reshape(*draws, *self.batch_shape)

    def sample(self, sample_shape: Sequence[int] = (), generator: torch.Generator | None = None, **options: Any) -> Tensor:
        """Draw sequences with the sampler given.

        Args:
            sample_shape: how many for each context.
            generator: makes the draw reproducible.
            options: the sampler's own, such as ``temperature``, ``top_k``, ``top_p``.

        Returns:
            (*sample_shape, b, length) token ids.
        """
        with torch.no_grad():
            ids = self.sampler(self._repeated_context(torch.Size(sample_shape)), generator, **options)
        return ids.reshape(*sample_shape, *self.batch_shape, -1)

    def _repeated_context(self, draws: torch.Size) -> Tensor:
        return self.context.expand(*draws, *self.context.shape).reshape(-1, *self.context.shape[1:])


class DiscretizedLogisticMixture(Distribution):
    """A distribution over vectors of levels 0 to L - 1, such as the channels of a pixel, each given those before it.

    With y = 2 x / (L - 1) - 1 in [-1, 1] and h = 1 / (L - 1), half the width of a level,

    ``P(x) = sum_k pi_k prod_j [sigmoid((y_j + h - mu_kj) / s_kj) - sigmoid((y_j - h - mu_kj) / s_kj)]``,
    ``mu_kj = m_kj + sum_{i<j} tanh(a_kji) y_i``,

    where the lowest level takes all probability below it and the highest all above.

    Args:
        logits: (..., K) of the weights pi.
        means: (..., K, c) m.
        log_scales: (..., K, c) log s, limited to -7 to 7.
        coefficients: (..., K, c (c - 1) / 2) a, row by row below the diagonal.
        levels: number L of levels, 2 or more.

    Source: Salimans et al. 2017, PixelCNN++, arXiv 1701.05517, section 2.

    >>> zeros = torch.zeros(1, 2, 1)
    >>> p = DiscretizedLogisticMixture(torch.zeros(1, 2), zeros, zeros, torch.zeros(1, 2, 0), levels=2)
    >>> p.log_prob(torch.tensor([[0]])).exp().tolist(), p.conditional(torch.zeros(1, 0, dtype=torch.long)).exp().tolist()
    ([0.5], [[0.5, 0.5]])
    """

    arg_constraints: dict[str, constraints.Constraint] = {}  # noqa: RUF012 (the name and type that torch prescribes)
    has_rsample = False

    def __init__(self, logits: Tensor, means: Tensor, log_scales: Tensor, coefficients: Tensor, levels: int) -> None:
        self.log_weights, self.means, self.levels = logits.log_softmax(-1), means, levels
        self.inverse_scales = (-log_scales.clamp(-7, 7)).exp()
        self.coefficients = coefficients.tanh()
        super().__init__(logits.shape[:-1], means.shape[-1:], validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        """log P of levels: (..., c) int64 -> (...) in nats."""
        return self._joint(value).logsumexp(-1)

    def conditional(self, earlier: Tensor) -> Tensor:
        """log P(x_j | x_1, ..., x_{j-1}) for all levels of x_j: (..., j - 1) int64 -> (..., L)."""
        joint = self._joint(earlier)  # (..., K)
        every = torch.arange(self.levels, device=earlier.device)
        found = self._log_bins(earlier.shape[-1], every, earlier[..., None, :])  # (..., K, L)
        return (joint.log_softmax(-1)[..., None] + found).logsumexp(-2)

    def _joint(self, value: Tensor) -> Tensor:
        """log [pi_k P_k(x_1, ..., x_j)]: (..., j) -> (..., K)."""
        joint = self.log_weights
        for j in range(value.shape[-1]):
            joint = joint + self._log_bins(j, value[..., j, None], value[..., None, :j])[..., 0]
        return joint

    def _log_bins(self, j: int, level: Tensor, earlier: Tensor) -> Tensor:
        """log P_k(x_j = level | earlier): level (..., n) and earlier (..., 1, j) levels -> (..., K, n)."""
        first = j * (j - 1) // 2
        shift = (self.coefficients[..., first : first + j] * self._scaled(earlier)).sum(-1)  # (..., K)
        distance = self._scaled(level)[..., None, :] - (self.means[..., j] + shift)[..., None]  # (..., K, n)
        return log_logistic_bins(distance, level[..., None, :], self.inverse_scales[..., j, None], self.levels, 2.0)

    def _scaled(self, level: Tensor) -> Tensor:
        """y in [-1, 1]."""
        return 2 * level.to(self.means.dtype) / (self.levels - 1) - 1


class DiscretizedLogistic(Distribution):
    """A distribution over numbers i / (L - 1), i = 0 to L - 1, such as the values of a picture.

    ``P(x) = sigmoid((x + h - m) / s) - sigmoid((x - h - m) / s)``, ``h = 1 / (2 L - 2)``,

    where the lowest number takes all probability below it and the highest all above. Other numbers are rounded.

    Args:
        mean: (...) m, of the logistic distribution.
        scale: s > 0, that broadcasts with it.
        levels: number L.

    Source: Salimans et al. 2017, PixelCNN++, arXiv 1701.05517, section 2.1, with one component.

    >>> p = DiscretizedLogistic(torch.tensor([0.3]), torch.tensor(0.1), levels=5)
    >>> round(p.log_prob(torch.linspace(0, 1, 5)).exp().sum().item(), 5)
    1.0
    """

    arg_constraints: dict[str, constraints.Constraint] = {}  # noqa: RUF012 (the name and type that torch prescribes)

    def __init__(self, mean: Tensor, scale: Tensor | float, levels: int = 256) -> None:
        self.location, self.scale, self.levels = mean, torch.as_tensor(scale, device=mean.device), levels
        super().__init__(torch.broadcast_shapes(mean.shape, self.scale.shape), validate_args=False)

    @property
    def mean(self) -> Tensor:
        """The mean of the logistic distribution, limited to [0, 1]: that of the numbers, but for their steps."""
        return self.location.clamp(0, 1)

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draw numbers: (*sample_shape, ...)."""
        u = torch.rand(*sample_shape, *self.batch_shape, dtype=self.location.dtype, device=self.location.device)
        drawn = self.location + self.scale * torch.logit(u, eps=1e-7)
        return (drawn * (self.levels - 1)).round().clamp(0, self.levels - 1) / (self.levels - 1)

    def log_prob(self, value: Tensor) -> Tensor:
        """log P of numbers (...), in nats."""
        level = (value * (self.levels - 1)).round()
        distance = level / (self.levels - 1) - self.location
        return log_logistic_bins(distance, level, 1 / self.scale, self.levels, 1.0)


def log_logistic_bins(distance: Tensor, level: Tensor, inverse_scale: Tensor, levels: int, width: float) -> Tensor:
    """log P of levels of equal width, from a logistic distribution; no case needs an approximation, and none is above 0.

    Args:
        distance: of the middle of each level from the mean.
        level: its number, 0 to L - 1; the first and the last are open.
        inverse_scale: 1 / s.
        levels: number L.
        width: distance of the last level from the first.

    Source: a level's probability is ``sigmoid(b) sigmoid(-a) (1 - exp(a - b))`` of its borders a < b.
    """
    half = width / (2 * (levels - 1))
    below_upper = nn.functional.logsigmoid((distance + half) * inverse_scale)  # log P(y < upper border)
    above_lower = nn.functional.logsigmoid((half - distance) * inverse_scale)  # log P(y > lower border)
    log_width = (-torch.expm1(-2 * half * inverse_scale)).log()
    inner = below_upper + above_lower + log_width
    return torch.where(level == 0, below_upper, torch.where(level == levels - 1, above_lower, inner))


@dataclass(frozen=True)
class Family:
    """A family of distributions over single numbers, each given by one parameter.

    Args:
        name: as configs write it.
        distribution: the parameter (...), and the scale of a family that has one -> the distribution, batch shape (...).
        support: the values that have probability.
        values: the support in words, for messages.
        fix: what to do about other values, for messages.
        scaled: whether the distribution takes a scale.
        stepped: whether it takes a number of levels.

    >>> Family("normal", Normal, constraints.real, "any number", scaled=True).support.check(torch.tensor([0.5, -1.0])).tolist()
    [True, True]
    """

    name: str
    distribution: Callable[..., Distribution]
    support: constraints.Constraint
    values: str
    fix: str = 'scale it, or set the likelihood "normal"'
    scaled: bool = False
    stepped: bool = False


def _bernoulli(logits: Tensor) -> Bernoulli:
    return Bernoulli(logits=logits, validate_args=False)  # grey values are allowed


def _continuous_bernoulli(logits: Tensor) -> ContinuousBernoulli:
    return ContinuousBernoulli(logits=logits)


#: families that configs choose by name
FAMILIES = {
    family.name: family
    for family in (
        Family("bernoulli", _bernoulli, constraints.unit_interval, "0 to 1"),
        Family("continuous_bernoulli", _continuous_bernoulli, constraints.unit_interval, "0 to 1"),
        Family("normal", Normal, constraints.real, "any number", scaled=True),
        Family("laplace", Laplace, constraints.real, "any number", scaled=True),
        Family("discretized_logistic", DiscretizedLogistic, constraints.unit_interval, "0 to 1", scaled=True, stepped=True),
    )
}


class Likelihood(nn.Module):
    """The last step of a decoder: a parameter a value becomes p(x | z), independent over the event dimensions.

    Args:
        family: a `Family`, or the name of one in `FAMILIES`: "bernoulli" (x in {0, 1}; for x between, log_prob is minus the
            cross-entropy and no density), "continuous_bernoulli" (a density on [0, 1]), "discretized_logistic" (a probability
            of the nearest of ``levels`` numbers from 0 to 1), "normal" or "laplace" (any real x).
        event_dims: number of last dimensions that form one event.
        scale: of normal, laplace and discretized_logistic; None learns one for all dimensions, from 1.
        levels: of discretized_logistic.

    Raises:
        UserError: an unknown family, or a scale that is not above 0.

    >>> Likelihood("normal", event_dims=3, scale=1.0)(torch.zeros(2, 1, 4, 4)).event_shape
    torch.Size([1, 4, 4])
    """

    def __init__(self, family: str | Family, event_dims: int, scale: float | None = None, levels: int = 256) -> None:
        super().__init__()
        known = family if isinstance(family, Family) else FAMILIES[check_one_of("likelihood", family, FAMILIES)]
        if scale is not None and not scale > 0:
            raise UserError("scale", got=scale, expected="a number > 0", fix="set scale=1.0, or None to learn it")
        check_at_least("levels", levels, 2)
        self.family, self.event_dims, self.scale = known, event_dims, scale
        self.distribution = partial(known.distribution, levels=levels) if known.stepped else known.distribution
        if scale is None and known.scaled:
            self.log_scale = nn.Parameter(torch.zeros(()))

    def forward(self, parameter: Tensor) -> Independent:
        """parameter (..., *event): the logit of the Bernoullis, the mean of normal and laplace -> p(x | z)."""
        parameter = parameter.to(torch.promote_types(parameter.dtype, torch.float32))
        if not self.family.scaled:
            return Independent(self.distribution(parameter), self.event_dims)
        scale = self.log_scale.exp().to(parameter) if self.scale is None else self.scale
        return Independent(self.distribution(parameter, scale), self.event_dims)

    def check(self, name: str, x: Tensor) -> None:
        """Fail unless every value of x (b, ...) has probability.

        Raises:
            UserError: one has none; the message names the item.
        """
        wrong = ~self.family.support.check(x)
        if wrong.any():
            item, value = wrong.nonzero()[0, 0].item(), x[wrong][0].item()
            expected = f"{self.family.values} for the likelihood {self.family.name}"
            raise UserError(f"{name} of item {item}", got=value, expected=expected, fix=self.family.fix)


def until_stop(ids: Tensor, stop: int | None) -> Tensor:
    """True up to and including the first ``stop`` of each sequence: ids (..., t) -> bool (..., t).

    >>> until_stop(torch.tensor([[5, 2, 0], [5, 6, 7]]), stop=2).tolist()
    [[True, True, False], [True, True, True]]
    """
    ended = torch.zeros_like(ids) if stop is None else (ids == stop).long()
    return ended.cumsum(-1) - ended == 0


def draw(probabilities: Tensor, n: int = 1, generator: torch.Generator | None = None) -> Tensor:
    """Indices drawn with replacement, on the generator's device so that one seed gives one result everywhere.

    Args:
        probabilities: (b, k), rows summing to 1.
        n: draws a row.

    Returns:
        (b, n) on the device of ``probabilities``.
    """
    device = probabilities.device if generator is None else generator.device
    drawn = torch.multinomial(probabilities.to(device), n, replacement=True, generator=generator)
    return drawn.to(probabilities.device)
