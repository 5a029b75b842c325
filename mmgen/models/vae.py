"""The variational autoencoder of one modality, its objective by name: VAE, beta, annealed, TC, FactorVAE, DIP and WAE."""

import inspect
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor
from torch.distributions import Distribution, Independent
from torch.func import functional_call
from torch.nn import functional as F

from mmgen.data.batch import Batch, placed
from mmgen.errors import UserError, check_at_least, check_one_of, check_sizes, counted
from mmgen.latents.divergences import covariance_penalty, decompose_kl, density_ratio_tc, kl, mmd, permute_dims
from mmgen.latents.importance import importance_bound
from mmgen.latents.spaces import GaussianHead, fit_prior, make_prior, rsample
from mmgen.modalities.kinds import KINDS, build_decoder, build_encoder, check_values
from mmgen.modalities.vector import multilayer_perceptron
from mmgen.models.base import REST, Losses, Model, check_generate
from mmgen.ranges import AtLeast, checked


@dataclass(frozen=True)
class Outcome:
    """Inputs of an objective for one batch.

    Args:
        reconstruction: -log p(x | z), mean over the batch, a scalar.
        q: q(z | x), batch shape (b,), event (k,).
        z: one draw from each, (b, k).
        prior: p(z).
        step: optimiser steps done.
        logits: discriminator of FactorVAE with constant weights, z (b, k) -> (b, 2).
    """

    reconstruction: Tensor
    q: Independent
    z: Tensor
    prior: Distribution
    step: Tensor
    logits: Callable[[Tensor], Tensor]

    @property
    def kl(self) -> Tensor:
        """KL(q(z | x) || p(z)), mean over the batch: in closed form where known, else by one draw."""
        return kl(self.q, self.prior).mean()


def vae(o: Outcome) -> Losses:
    """-ELBO = E[-log p(x | z)] + KL. Source: Kingma and Welling 2014, arXiv 1312.6114."""
    return Losses(reconstruction=o.reconstruction, kl=o.kl)


def beta(o: Outcome, *, beta: float = 4.0) -> Losses:
    """E[-log p(x | z)] + beta KL. Source: Higgins et al. 2017, beta-VAE."""
    return Losses(reconstruction=o.reconstruction, kl=beta * o.kl)


def annealed(o: Outcome, *, gamma: float = 1000.0, capacity: float = 25.0, capacity_steps: int = 100_000) -> Losses:
    """E[-log p(x | z)] + gamma |KL - C|, C rising linearly from 0 to ``capacity`` nats over ``capacity_steps``.

    Source: Burgess et al. 2018, Understanding disentangling in beta-VAE, arXiv 1804.03599.
    """
    now = capacity * (o.step / capacity_steps).clamp(max=1)
    return Losses(reconstruction=o.reconstruction, kl=gamma * (o.kl - now).abs())


def beta_tc(o: Outcome, *, dataset_size: int, beta: float = 6.0, sampling: str = "stratified") -> Losses:
    """E[-log p(x | z)] + KL + (beta - 1) TC, TC estimated over the batch by `decompose_kl`.

    Source: Chen et al. 2018, arXiv 1802.04942. As in disentanglement_lib, the two terms of weight 1 stay in the KL, which has
    a closed form.
    """
    tc = decompose_kl(o.z, o.q, o.prior, dataset_size, sampling).total_correlation
    return Losses(reconstruction=o.reconstruction, kl=o.kl, total_correlation=(beta - 1) * tc)


def factor(o: Outcome, *, gamma: float = 40.0) -> Losses:
    """E[-log p(x | z)] + KL + gamma TC, TC by a discriminator of q(z) from prod_j q(z_j), see `VAE.discriminator_loss`.

    Source: Kim and Mnih 2018, FactorVAE, arXiv 1802.05983.
    """
    return Losses(reconstruction=o.reconstruction, kl=o.kl, total_correlation=gamma * density_ratio_tc(o.logits(o.z)))


def dip_i(o: Outcome, *, off_diagonal: float = 10.0, diagonal: float = 100.0) -> Losses:
    """E[-log p(x | z)] + KL + the penalty of Cov[mu(x)]. Source: Kumar et al. 2018, DIP-VAE-I, arXiv 1711.00848."""
    penalty = covariance_penalty(o.q, "i", off_diagonal, diagonal)
    return Losses(reconstruction=o.reconstruction, kl=o.kl, covariance=penalty)


def dip_ii(o: Outcome, *, off_diagonal: float = 10.0, diagonal: float = 10.0) -> Losses:
    """E[-log p(x | z)] + KL + the penalty of Cov[z]. Source: Kumar et al. 2018, DIP-VAE-II, arXiv 1711.00848."""
    penalty = covariance_penalty(o.q, "ii", off_diagonal, diagonal)
    return Losses(reconstruction=o.reconstruction, kl=o.kl, covariance=penalty)


def wae_mmd(
    o: Outcome, *, weight: float = 1000.0, bandwidth: float | list[float] | None = None, unbiased: bool = True
) -> Losses:
    """E[-log p(x | z)] + weight MMD^2(q(z), p(z)), between the draws of the batch and as many draws from the prior.

    Source: Tolstikhin et al. 2018, Wasserstein auto-encoders, arXiv 1711.01558; a Gaussian replaces their
    deterministic encoder, and the kernel of `mmgen.latents.divergences.mmd` the inverse multiquadratic.
    """
    distance = mmd(o.z, rsample(o.prior, (len(o.z),)), bandwidth, unbiased)
    return Losses(reconstruction=o.reconstruction, mmd=weight * distance)


OBJECTIVES: dict[str, Callable[..., Losses]] = {
    "vae": vae,
    "beta": beta,
    "annealed": annealed,
    "beta_tc": beta_tc,
    "factor": factor,
    "dip_i": dip_i,
    "dip_ii": dip_ii,
    "wae_mmd": wae_mmd,
}
LEAST = {"beta_tc": 2, "dip_i": 2, "dip_ii": 2, "wae_mmd": 2}  # items that a term of a batch as a whole is defined for


class VAE(Model):
    """p(x) = E_p(z)[p(x | z)] of one modality x, with the posterior q(z | x) = N(mu(x), sigma(x)^2).

    A function of `OBJECTIVES` gives the loss. FactorVAE trains in two phases, "train" and "discriminator", with separate
    parameters. Items without x are ignored: a loss is the mean over the others.

    Args:
        modality: name of x in a batch.
        kind: key of `KINDS`, except "text".
        shape: shape of one x, such as image (c, h, w), audio (mels, frames), vector (d,).
        latent_dim: size k of z.
        objective: key of `OBJECTIVES`.
        settings: keyword arguments of the objective's function, such as ``{"beta": 4.0}``.
        prior: "standard", "mixture", "flow", or "aggregate" or "flow_matching", which `fit_prior` fits after training, see
            `mmgen.latents.spaces.PRIORS`.
        prior_settings: options of the prior.
        encoder: settings of the kind's encoder, such as ``{"dim": 256}``.
        decoder: settings of the kind's decoder, such as ``{"likelihood": "bernoulli"}``.
        discriminator: widths of the hidden layers of FactorVAE's discriminator; by default six of 1000 as published, with SiLU
            instead of leaky ReLU.

    Raises:
        UserError: an unknown name, a setting missing or out of range, a shape that does not fit the kind; in use, no item
            with x, values that cannot be x, too few items for the objective, or another ``to``.

    >>> model = VAE("image", "image", [1, 8, 8], latent_dim=2, objective="beta", settings={"beta": 2.0}, encoder={"width": 4})
    >>> batch = Batch({"image": torch.zeros(3, 1, 8, 8)})
    >>> sorted(model.losses(batch)), model.log_likelihood(batch, samples=4).shape
    (['kl', 'reconstruction'], torch.Size([3]))
    """

    name = "vae"
    from_prior = True
    adversary = "discriminator"

    @checked
    def __init__(
        self,
        modality: str = "image",
        kind: str = "image",
        shape: Sequence[int] = (1, 28, 28),
        latent_dim: Annotated[int, AtLeast(1)] = 10,
        objective: str = "vae",
        settings: dict[str, Any] | None = None,
        prior: str = "standard",
        prior_settings: dict[str, Any] | None = None,
        encoder: dict[str, Any] | None = None,
        decoder: dict[str, Any] | None = None,
        discriminator: Sequence[int] = (1000,) * 6,
    ) -> None:
        super().__init__()
        check_one_of("kind", kind, [name for name in KINDS if not KINDS[name].tokens])
        self.modality, self.kind, self.shape = modality, kind, tuple(shape)
        self.objective, self.settings = objective, check_settings(objective, settings or {})
        self.encoder = build_encoder(kind, list(shape), encoder or {})
        self.head = GaussianHead(self.encoder.dim, latent_dim)
        self.decoder = build_decoder(kind, latent_dim, shape, decoder or {})
        self.prior = make_prior(prior, latent_dim, **(prior_settings or {}))
        if objective == "factor":
            self.phases = ("train", "discriminator")
            self.discriminator = multilayer_perceptron([latent_dim, *check_sizes("discriminator", discriminator), 2])

    @property
    def inputs(self) -> tuple[str, ...]:
        """The modality that it encodes and decodes."""
        return (self.modality,)

    def usable(self, batch: Batch, phase: str = "train") -> dict[str, Tensor]:
        """The items that have x; none where others lack it and these are too few for the terms of the batch as a whole."""
        rows = batch.having(self.modality)
        least = 4 if phase == "discriminator" else LEAST.get(self.objective, 1)
        return {REST: rows & (rows.sum() >= min(least, batch.size))}

    def losses(self, batch: Batch, phase: str = "train") -> Losses:
        """The objective's terms over the items that have x; in the phase "discriminator", its cross-entropy."""
        check_one_of("phase", phase, self.phases)
        if not self.usable(batch, phase)[REST].any():
            return self.zero_losses("cross_entropy" if phase == "discriminator" else "reconstruction")
        x, _ = self._observed(batch)  # (b', *shape)
        if phase == "discriminator":
            return Losses(cross_entropy=self.discriminator_loss(x))
        q = self.posterior(x)
        z = rsample(q)  # (b, k)
        reconstruction = -self.decoder(z).log_prob(x).mean()
        with torch.autocast(x.device.type, enabled=False):  # half precision is too coarse for densities
            outcome = Outcome(reconstruction, q, z, self.prior(), self.step, self._constant_discriminator)
            return OBJECTIVES[self.objective](outcome, **self.settings)

    def discriminator_loss(self, x: Tensor) -> Tensor:
        """-1/2 log D(z) - 1/2 log(1 - D(z')), z from one half of the batch, z' permuted from the other half.

        The paper draws a second batch for z'; here the batch is split in two, so that no item is in both either.

        Args:
            x: (b, *shape), b at least 4; with an odd b, the last item is left out.

        Raises:
            UserError: fewer items, so that a half has nothing to permute.

        Source: Kim and Mnih 2018, arXiv 1802.05983, algorithm 1. disentanglement_lib permutes the first batch itself.
        """
        half = len(x) // 2
        if half < 2:
            raise UserError(
                "batch", got=counted(len(x), "item"), expected="4 or more, two in each half", fix="raise batch_size"
            )
        with torch.no_grad():
            z = rsample(self.posterior(x[: 2 * half]))  # (2 half, k)
        logits = self.discriminator(torch.cat([z[:half], permute_dims(z[half:])]))  # (2 half, 2)
        classes = (torch.arange(2 * half, device=x.device) >= half).long()  # 0: q(z), 1: prod_j q(z_j)
        return F.cross_entropy(logits.float(), classes)

    def posterior(self, x: Tensor) -> Independent:
        """q(z | x): x (b, *shape) -> batch shape (b,), event (k,)."""
        return self.head(self.encoder(x))

    def encode(self, batch: Batch) -> Independent:
        """q(z | x), batch shape (b,); undefined where x is missing."""
        return self.posterior(placed(*self._observed(batch)))

    def decode(self, z: Tensor, to: str) -> Distribution:
        """p(x | z), z (..., k)."""
        check_one_of("to", to, [self.modality])
        return self.decoder(z)

    @torch.no_grad()
    def generate(self, given: Batch, to: str, n: int = 1, generator: torch.Generator | None = None) -> Tensor:
        """The mean of p(x | z) at ``n`` draws of z per item: from q(z | x) where x is given (a reconstruction), else p(z).

        Returns:
            (b * n, *shape), grouped by item.

        Raises:
            UserError: ``to`` is not the model's modality, or ``n`` below 1.
        """
        check_generate(to, n, [self.modality])
        z = rsample(self.prior(), (given.size * n,), generator)  # (b n, k)
        if (there := given.having(self.modality)).any():
            own = rsample(self.encode(given), (n,), generator).transpose(0, 1).flatten(0, 1)  # (b n, k)
            z = torch.where(there.repeat_interleave(n)[:, None], own, z)
        return self.decoder(z).mean

    @torch.no_grad()
    def traverse(self, batch: Batch, steps: int = 7, span: float = 2.0) -> Tensor:
        """Latent traversals: the mean of p(x | z) at the posterior mean with one latent moved from -span to span.

        Args:
            batch: items that have x.
            steps: values of each latent, 2 or more.
            span: in standard deviations of a standard prior, 0 or above.

        Returns:
            (b, k, steps, *shape).
        """
        check_at_least("steps", steps, 2)
        check_at_least("span", span, 0)
        mean = self.encode(batch).mean  # (b, k)
        k = mean.shape[1]
        values = torch.linspace(-span, span, steps, device=mean.device, dtype=mean.dtype)
        moved = torch.eye(k, dtype=torch.bool, device=mean.device)[:, None]  # (k, 1, k)
        return self.decoder(torch.where(moved, values[:, None], mean[:, None, None])).mean  # z: (b, k, steps, k)

    @torch.no_grad()
    def elbo(self, batch: Batch, samples: int = 1) -> Tensor:
        """E_q[log p(x | z)] - KL(q || p), a lower bound on log p(x), estimated by ``samples`` draws in chunks.

        The KL is exact for the standard prior and estimated by the same number of draws for the others.

        Returns:
            (b,) in nats; 0 for items that lack x.
        """
        check_at_least("samples", samples, 1)
        x, observed = self._observed(batch)  # (b', *shape)
        q, prior, size = self.posterior(x), self.prior(), max(1, 1024 // len(x))
        total = x.new_zeros(len(x))
        for start in range(0, samples, size):
            n = min(size, samples - start)
            total += self.decoder(rsample(q, (n,))).log_prob(x).sum(0) - n * kl(q, prior, n)  # (b',)
        return placed(total / samples, observed)

    def log_likelihood(self, batch: Batch, samples: int = 1) -> Tensor:
        """The importance-weighted lower bound on log p(x) with ``samples`` draws, see `importance_bound`.

        Returns:
            (b,) in nats; 0 for items that lack x.
        """
        (x, observed), prior = self._observed(batch), self.prior()  # (b', *shape)
        bound = importance_bound(self.posterior(x), lambda z: self.decoder(z).log_prob(x) + prior.log_prob(z), samples)
        return placed(bound, observed)

    @torch.no_grad()
    def fit_prior(self, batches: Iterable[Batch], generator: torch.Generator | None = None) -> None:
        """Fit the prior "aggregate" or "flow_matching" to a draw from q(z | x) of each item of ``batches``.

        Raises:
            UserError: the model has another prior, or the items are fewer than its components.
        """
        fit_prior(self.prior, (rsample(self.posterior(self._observed(batch)[0]), (), generator) for batch in batches))

    def _constant_discriminator(self, z: Tensor) -> Tensor:
        constant = {name: p.detach() for name, p in self.discriminator.named_parameters()}
        return functional_call(self.discriminator, constant, z)

    def _observed(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """x of the items that have it, (b', *shape), and their mask (b,).

        Raises:
            UserError: no item has x, or an x has another shape, is not finite, or is outside the support of the likelihood.
        """
        observed = batch.observed(self.modality)
        x = batch[self.modality][observed]
        check_values(self.modality, x, self.kind, self.shape, self.decoder.likelihood)
        return x, observed


def check_settings(objective: str, settings: dict[str, Any], key: str = "settings") -> dict[str, Any]:
    """Return ``settings`` if they are those of ``objective``.

    Args:
        objective, settings: see `VAE`.
        key: key of the settings, for the messages.

    Raises:
        UserError: an unknown or missing setting, an unknown objective, or a number of the wrong type or out of range.
    """
    function = OBJECTIVES[check_one_of("objective", objective, OBJECTIVES)]
    known = {name: p for name, p in inspect.signature(function).parameters.items() if p.kind is p.KEYWORD_ONLY}
    for name, parameter in known.items():
        if parameter.default is parameter.empty and name not in settings:
            raise UserError(f"settings of {objective}", got=settings, expected=f"a {name}", fix=f"add {name}=VALUE")
    for name, value in settings.items():
        what, kind = f"{key}.{name}", known[check_one_of(f"setting of {objective}", name, known)].annotation
        if kind in (int, float):
            if not isinstance(value, int if kind is int else int | float) or isinstance(value, bool):
                raise UserError(what, got=repr(value), expected=f"a number ({kind.__name__})", fix=f"write {what}=2")
            if isinstance(value, float) and not math.isfinite(value):
                raise UserError(what, got=value, expected="a finite number", fix=f"write {what}=2")
            check_at_least(what, value, 1 if kind is int else 0)  # integers count steps or items
        elif kind is bool and not isinstance(value, bool):
            raise UserError(what, got=repr(value), expected="true or false", fix=f"write {what}=true")
    if "sampling" in settings:
        check_one_of(f"{key}.sampling", settings["sampling"], ["stratified", "weighted"])
    return settings
