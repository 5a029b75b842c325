"""Latent spaces: the Gaussian posterior head of encoders, named priors, and reparameterised draws with a generator."""

import inspect
import math
from collections.abc import Callable, Iterable
from typing import Any, cast

import torch
import zuko
from sklearn.mixture import GaussianMixture
from torch import Tensor, nn
from torch.distributions import Categorical, Distribution, Independent, MixtureSameFamily, Normal
from zuko.distributions import NormalizingFlow
from zuko.transforms import FreeFormJacobianTransform

from mmgen.distributions import draw
from mmgen.errors import UserError, check_at_least, check_one_of
from mmgen.modalities.layers.modulated import FREQUENCIES, time_features
from mmgen.modalities.vector import multilayer_perceptron

#: bound of |log sigma|: sigma from 0.0025 to 403, and precisions up to 1.6e5, which float32 can add accurately enough
LOG_SCALE_BOUND = 6.0


class GaussianHead(nn.Module):
    """Last layer of an encoder: q(z | x) = N(mu, sigma^2), independent over dimensions.

    ``mu, s = W features + b`` and ``log sigma = B tanh(s / B)`` with B = `LOG_SCALE_BOUND`: close to ``s`` for small s and
    bounded, so that even very large features give no variance of 0 or infinity.

    Args:
        dim: size d of the features.
        latent_dim: size k of z.

    >>> GaussianHead(8, latent_dim=2)(torch.zeros(3, 8)).batch_shape
    torch.Size([3])
    """

    def __init__(self, dim: int, latent_dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(dim, 2 * check_at_least("latent_dim", latent_dim, 1))

    def forward(self, features: Tensor) -> Independent:
        """Map features (..., d) to q(z | x), batch shape (...), event (k,), in float32 or wider."""
        parameters = self.linear(features)  # (..., 2k)
        parameters = parameters.to(torch.promote_types(parameters.dtype, torch.float32))  # bf16 is too coarse for KL
        mean, log_scale = parameters.chunk(2, -1)  # (..., k) each
        return diagonal_normal(mean, bounded_scale(log_scale))


class StandardPrior(nn.Module):
    """Standard Gaussian prior, p(z) = N(0, 1) in every dimension, without parameters.

    Args:
        latent_dim: size k of z.

    >>> StandardPrior(2)().log_prob(torch.zeros(3, 2)).shape
    torch.Size([3])
    """

    mean: Tensor

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(check_at_least("latent_dim", latent_dim, 1)), persistent=False)

    def forward(self) -> Independent:
        """p(z), batch shape (), event (k,)."""
        return diagonal_normal(self.mean, torch.ones_like(self.mean))


class MixturePrior(nn.Module):
    """Learned mixture of diagonal Gaussians, p(z) = sum_c w_c N(mu_c, sigma_c^2).

    Args:
        latent_dim: size k of z.
        components: number of Gaussians.
        spread: standard deviation of the initial means; the initial variances are 1 and the weights equal.

    Raises:
        UserError: there is less than one component, or the spread is negative.

    >>> MixturePrior(2, components=5)().component_distribution.batch_shape
    torch.Size([5])
    """

    def __init__(self, latent_dim: int, components: int = 10, spread: float = 1.0) -> None:
        super().__init__()
        check_at_least("components", components, 1)
        shape = (components, check_at_least("latent_dim", latent_dim, 1))
        self.mean = nn.Parameter(check_at_least("spread", spread, 0) * torch.randn(shape))
        self.log_scale = nn.Parameter(torch.zeros(shape))
        self.logits = nn.Parameter(torch.zeros(components))

    def forward(self) -> MixtureSameFamily:
        """p(z), batch shape (), event (k,)."""
        return gaussian_mixture(self.logits, self.mean, bounded_scale(self.log_scale))


class AggregatePrior(nn.Module):
    """Aggregate prior: N(0, 1) in training, then a mixture sum_c w_c N(mu_c, sigma_c^2) fitted to the posteriors.

    The best prior for given posteriors is their average over the training data, the aggregate posterior 1/N sum_n q(z | x_n);
    N(0, 1) also has mass between its clusters, where the decoder has not been trained. After `fit`, which takes draws of the
    aggregate posterior, p(z) is the mixture in eval mode, losses included, and still N(0, 1) in training mode.

    Args:
        latent_dim: size k of z.
        components: number of Gaussians.

    Source: Ghosh et al. 2020, From Variational to Deterministic Autoencoders, arXiv 1903.12436, section 4 (ex-post density
        estimation); they use 10 Gaussians of full covariance.

    >>> prior = AggregatePrior(2, components=3)
    >>> prior.fit(torch.randn(50, 2))
    >>> prior.eval()().component_distribution.batch_shape
    torch.Size([3])
    """

    weight: Tensor
    mean: Tensor
    scale: Tensor

    def __init__(self, latent_dim: int, components: int = 200) -> None:
        super().__init__()
        shape = (check_at_least("components", components, 1), check_at_least("latent_dim", latent_dim, 1))
        self.register_buffer("weight", torch.full(shape[:1], 1 / components))
        self.register_buffer("mean", torch.zeros(shape))
        self.register_buffer("scale", torch.ones(shape))

    def forward(self) -> Independent | MixtureSameFamily:
        """p(z), batch shape (), event (k,)."""
        if self.training or not self.mean.any():  # not fitted yet
            return diagonal_normal(torch.zeros_like(self.mean[0]), torch.ones_like(self.mean[0]))
        return gaussian_mixture(self.weight.log(), self.mean, self.scale)

    def fit(self, z: Tensor) -> None:
        """Fit the mixture by expectation maximisation.

        Args:
            z: (n, k) draws of the aggregate posterior, n at least the number of components, and at least 2.

        Raises:
            UserError: there are fewer draws, or they have another shape.
        """
        components, k = self.mean.shape
        if z.ndim != 2 or z.shape[1] != k or len(z) < max(components, 2):
            expected, fix = f"(n, {k}) with n at least {max(components, 2)}", "give more draws, or fewer components"
            raise UserError("draws", got=f"shape {tuple(z.shape)}", expected=expected, fix=fix)
        mixture = GaussianMixture(components, covariance_type="diag", reg_covar=1e-4, random_state=0)
        mixture.fit(z.detach().double().cpu().numpy())
        fitted = {"weight": mixture.weights_, "mean": mixture.means_, "scale": mixture.covariances_**0.5}
        for name, value in fitted.items():
            getattr(self, name).copy_(torch.from_numpy(value))


class FlowPrior(nn.Module):
    """Normalising flow prior, p(z) = N(f(z); 0, 1) |det df/dz|, with f a neural spline flow of coupling layers.

    The splines transform z inside [-5, 5] and are the identity outside, so the posteriors should stay near the unit Gaussian.

    Args:
        latent_dim: size k of z.
        transforms: number of coupling layers; with 3 or more, every dimension depends on all others.
        hidden: width of the two hidden layers of each coupling network.
        bins: number of bins of each spline.

    Source: Durkan et al. 2019, Neural Spline Flows, arXiv 1906.04032; computed by zuko.

    >>> FlowPrior(4, transforms=2)().sample((3,)).shape
    torch.Size([3, 4])
    """

    def __init__(self, latent_dim: int, transforms: int = 4, hidden: int = 64, bins: int = 8) -> None:
        super().__init__()
        for name, value in (("latent_dim", latent_dim), ("transforms", transforms), ("hidden", hidden), ("bins", bins)):
            check_at_least(name, value, 1)
        self.flow = zuko.flows.NSF(latent_dim, transforms=transforms, hidden_features=(hidden, hidden), bins=bins, passes=2)

    def forward(self) -> NormalizingFlow:
        """p(z), batch shape (), event (k,)."""
        return self.flow()


class FlowMatchingPrior(nn.Module):
    """Flow-matching prior: N(0, 1) in training, then Gaussian noise carried along a velocity fitted to the posteriors.

    Like `AggregatePrior` it is fitted after training, by minimising ``E|v(z_t, t) - (z - z_0)|^2`` with
    ``z_t = t z + (1 - t) z_0``, z_0 a Gaussian with the means and scales of the posteriors' draws z, and v a perceptron. Then
    ``dz/dt = v`` carries z_0 to p(z) in eval mode, and log p(z) follows from the exact divergence of v.

    Args:
        latent_dim: size k of z.
        hidden: width of the two hidden layers of v.
        steps: steps of `fit`, each of 256 draws.

    Source: Lipman et al. 2022, Flow Matching, arXiv 2210.02747; integrated by zuko.

    >>> prior = FlowMatchingPrior(2, steps=5)
    >>> prior.fit(torch.randn(50, 2))
    >>> prior.eval()().log_prob(torch.zeros(3, 2)).shape
    torch.Size([3])
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, latent_dim: int, hidden: int = 128, steps: int = 2000) -> None:
        super().__init__()
        k, self.steps = check_at_least("latent_dim", latent_dim, 1), check_at_least("steps", steps, 1)
        check_at_least("hidden", hidden, 1)
        # without gradient: it is no part of the losses
        self.network = multilayer_perceptron([k + 2 * FREQUENCIES, hidden, hidden, k]).requires_grad_(False)
        self.register_buffer("mean", torch.zeros(k))
        self.register_buffer("scale", torch.ones(k))

    def forward(self) -> Independent | NormalizingFlow:
        """p(z), batch shape (), event (k,)."""
        if self.training or not self.mean.any():  # not fitted yet
            return diagonal_normal(torch.zeros_like(self.mean), torch.ones_like(self.mean))
        to_noise = FreeFormJacobianTransform(self.velocity, 1.0, 0.0, atol=1e-5, rtol=1e-5)
        return NormalizingFlow(to_noise, diagonal_normal(self.mean, self.scale))

    def velocity(self, t: Tensor, z: Tensor) -> Tensor:
        """dz/dt at times t () or (n,) and z (n, k)."""
        return self.network(torch.cat([z, time_features(t.expand(z.shape[:-1]))], -1))

    @torch.enable_grad()
    def fit(self, z: Tensor) -> None:
        """Fit the velocity to draws z (n, k) of the aggregate posterior, n at least 2.

        Raises:
            UserError: there are fewer draws, or they have another shape.
        """
        if z.ndim != 2 or z.shape[1] != len(self.mean) or len(z) < 2:
            expected = f"(n, {len(self.mean)}) with n at least 2"
            raise UserError("draws", got=f"shape {tuple(z.shape)}", expected=expected, fix="give more draws")
        z, generator = z.detach().to(self.mean), torch.Generator().manual_seed(0)
        self.mean.copy_(z.mean(0))
        self.scale.copy_(z.std(0).clamp(min=1e-3))
        self.network.requires_grad_(True)
        optimizer = torch.optim.Adam(self.network.parameters(), 2e-3)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.steps)
        for _ in range(self.steps):
            data = z[torch.randint(len(z), (256,), generator=generator).to(z.device)]  # (n, k)
            noise = rsample(diagonal_normal(self.mean, self.scale), (256,), generator)
            t = torch.rand(256, generator=generator).to(z)
            moved = torch.lerp(noise, data, t[:, None])
            optimizer.zero_grad()
            (self.velocity(t, moved) - (data - noise)).square().sum(1).mean().backward()
            optimizer.step()
            schedule.step()
        self.network.requires_grad_(False)


def fit_prior(prior: nn.Module, draws: Iterable[Tensor]) -> None:
    """Fit the prior "aggregate" or "flow_matching" to draws of the posteriors, (n_i, k) each.

    Raises:
        UserError: it is another prior, or there are fewer draws than components.

    >>> fit_prior(AggregatePrior(2, components=3), [torch.randn(25, 2), torch.randn(25, 2)])
    """
    if not isinstance(prior, AggregatePrior | FlowMatchingPrior):
        expected, fix = "AggregatePrior or FlowMatchingPrior", 'build the model with prior="aggregate"'
        raise UserError("prior to fit", got=type(prior).__name__, expected=expected, fix=fix)
    prior.fit(torch.cat(list(draws)))


PRIORS: dict[str, Callable[..., nn.Module]] = {
    "standard": StandardPrior,
    "mixture": MixturePrior,
    "aggregate": AggregatePrior,
    "flow": FlowPrior,
    "flow_matching": FlowMatchingPrior,
}


def make_prior(name: str, latent_dim: int, **options: Any) -> nn.Module:
    """Make the prior of a name: a module whose call returns p(z).

    Args:
        name: a key of `PRIORS`.
        latent_dim: size k of z.
        options: the other arguments of its class.

    Raises:
        UserError: the name or an option is unknown.

    >>> make_prior("mixture", 2, components=3)().event_shape
    torch.Size([2])
    """
    prior = PRIORS[check_one_of("prior", name, PRIORS)]
    known = [option for option in inspect.signature(prior).parameters if option != "latent_dim"]
    for option in options:
        check_one_of(f"prior.{option}", option, known)
    return prior(latent_dim, **options)


def rsample(distribution: Distribution, shape: tuple[int, ...] = (), generator: torch.Generator | None = None) -> Tensor:
    """Reparameterised draws from a diagonal Gaussian, a mixture of them, or a flow.

    Unlike torch's ``rsample``, it accepts a generator and mixtures. For a mixture, a component is drawn and its Gaussian
    reparameterised, so the gradient reaches the means and scales but not the mixture's weights.

    Args:
        distribution: batch shape (...), event (k,).
        shape: sample shape.
        generator: makes the draws reproducible.

    Returns:
        (*shape, ..., k).

    Raises:
        UserError: the distribution is of another kind.

    >>> rsample(StandardPrior(2)(), (5,), torch.Generator().manual_seed(0)).shape
    torch.Size([5, 2])
    """
    if isinstance(distribution, NormalizingFlow):
        return distribution.transform.inv(rsample(distribution.base, shape, generator))
    if isinstance(distribution, MixtureSameFamily):
        weights, component = distribution.mixture_distribution.probs, cast(Independent, distribution.component_distribution)
        chosen = draw(weights.reshape(-1, weights.shape[-1]), math.prod(shape), generator)  # (batch, n)
        chosen = chosen.T.reshape(*shape, *distribution.batch_shape, 1, 1)  # (*shape, ..., 1, 1)
        chosen = chosen.expand(*chosen.shape[:-1], *distribution.event_shape)  # (*shape, ..., 1, k)
        mean, scale = (
            value.expand(*shape, *value.shape).gather(-2, chosen).squeeze(-2)  # (*shape, ..., k)
            for value in (component.base_dist.loc, component.base_dist.scale)
        )
    elif isinstance(distribution, Independent) and isinstance(distribution.base_dist, Normal):
        normal = distribution.base_dist
        mean, scale = (value.expand(*shape, *value.shape) for value in (normal.loc, normal.scale))
    else:
        expected = "a diagonal Gaussian, a mixture of them, or a flow"
        raise UserError("rsample", got=type(distribution).__name__, expected=expected, fix="use its own rsample")
    device = mean.device if generator is None else generator.device
    noise = torch.randn(mean.shape, generator=generator, device=device, dtype=mean.dtype).to(mean.device)
    return mean + scale * noise


def bounded_scale(log_scale: Tensor) -> Tensor:
    """Map any number to a positive, finite standard deviation, exp(B tanh(s / B)) with B = `LOG_SCALE_BOUND`."""
    return (LOG_SCALE_BOUND * torch.tanh(log_scale / LOG_SCALE_BOUND)).exp()


def diagonal_normal(mean: Tensor, scale: Tensor) -> Independent:
    """N(mean, scale^2), independent over the last dimension: (..., k) each -> batch shape (...), event (k,)."""
    # not validated: rows of missing modalities may hold anything, and each check would synchronise with the device
    return Independent(Normal(mean, scale, validate_args=False), 1, validate_args=False)


def gaussian_mixture(logits: Tensor, mean: Tensor, scale: Tensor) -> MixtureSameFamily:
    """sum_c softmax(logits)_c N(mean_c, scale_c^2): logits (..., c), the others (..., c, k) -> batch shape (...)."""
    weights = Categorical(logits=logits, validate_args=False)
    return MixtureSameFamily(weights, diagonal_normal(mean, scale), validate_args=False)
