"""Multimodal VAEs, which encode any set of modalities to one latent z and decode each from it: MVAE, MMVAE, MoPoE, MVTCAE.

p(x_1, ..., x_M, z) = p(z) prod_i p(x_i | z). The objectives differ in how they fuse the posteriors q(z | x_i) of the
modalities present, and in the bounds they sum. Each modality is encoded once a step, whatever the number of subsets.
"""

import math
from collections.abc import Iterable, Iterator
from typing import Annotated, Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, MixtureSameFamily

from mmgen.data.batch import Batch
from mmgen.distributions import until_stop
from mmgen.errors import UserError, check_at_least, check_one_of, counted
from mmgen.latents.divergences import kl
from mmgen.latents.fusion import (
    mixture_of_experts,
    mixture_of_products,
    present_experts,
    product_of_experts,
    stack_experts,
    subsets,
)
from mmgen.latents.importance import importance_bound
from mmgen.latents.spaces import GaussianHead, fit_prior, make_prior, rsample
from mmgen.modalities.kinds import KINDS, build_decoder, build_encoder, check_name, check_values
from mmgen.models.base import REST, Losses, Model, check_generate
from mmgen.ranges import AtLeast, Between, checked

KEYS = ("kind", "shape", "encoder", "decoder", "weight")
OBJECTIVES = ("mvae", "mmvae", "mopoe", "mvtcae")


class MultimodalVAE(Model):
    """A VAE with one latent space for any set of modalities.

    Let q_S be the product of the posteriors q_i of the modalities in S, X the modalities of an item, M the number of
    modalities of the model, and ``R(q) = E_q[sum_{i in X} w_i log p(x_i | z)]``. The loss is the negative of

    - "mvae": ``E(X) + sum_i E({i})`` plus E(S) of ``random_subsets`` subsets S of two or more, redrawn each step, where
      ``E(S) = E_{q_S}[sum_{i in S} w_i log p(x_i | z)] - beta KL(q_S || p)`` and p is a factor of q_S.
    - "mmvae": with q the mean of the q_i, the mean over i of ``E_{z_1..z_K ~ q_i}[log 1/K sum_k r(z_k)]``, where
      ``r(z) = (p(z) / q(z))^beta prod_j p(x_j | z)^w_j`` and K = ``samples``; for K = 1 the ELBO, stratified over experts.
    - "mopoe": ``R(q) - beta 1/n sum_S KL(q_S || p)``, q the mean of q_S over the n subsets S of X; the z of an item is
      drawn from one random subset.
    - "mvtcae": ``(M - alpha)/M R(q) - beta ((1 - alpha) KL(q || p) + alpha/M sum_i KL(q || q_i))`` with q = q_X.

    A missing modality is neither encoded nor scored, and gets a gradient of exactly zero. Subsets of which an item has no
    modality add 0 to its loss; the loss is the mean over all items.

    Args:
        modalities: name in a batch -> ``kind`` (a key of `KINDS`), ``shape`` of one value (such as image (c, h, w), text
            (tokens in the vocabulary, tokens of the longest text)), settings of the kind's ``encoder`` and ``decoder`` (text
            needs ``stop`` there, most others take ``likelihood``), and ``weight``, its w_i.
        latent_dim: size k of z.
        objective: "mvae", "mmvae", "mopoe" or "mvtcae".
        beta: weight of the KL terms, 0 or above.
        random_subsets: for "mvae", at most the number of subsets of 2 to M - 1 modalities.
        samples: draws K of each expert, for "mmvae".
        alpha: weight of the conditional bounds in "mvtcae", from 0 to 1.
        rescale: default w_i is the largest dimension over that of modality i (for a text, its length) instead of 1.
        prior: "standard", "mixture", "flow", "aggregate" or "flow_matching", see `mmgen.latents.spaces.PRIORS`. "mvae" trains
            with the standard prior, so it allows only that and the last two, which `fit_prior` fits after training. A learned
            prior makes unconditional modalities agree: draws from N(0, 1) may fall between the clusters of the posteriors.
        prior_settings: options of the prior.

    Raises:
        UserError: an unknown name, or a value out of range; in use, an unknown modality, an item without any, or values that
            are not finite, of another shape, or outside the support of their likelihood.

    Source: Wu and Goodman 2018, MVAE, arXiv 1802.05335; Shi et al. 2019, MMVAE, arXiv 1911.03393, with Gaussians instead of
        Laplace distributions, a fixed prior, and without the DReG gradient; Sutter et al. 2021, MoPoE, arXiv 2105.02470,
        without the prior that its code adds to the product of all; Hwang et al. 2021, MVTCAE. w_i as in Javaloy et al. 2022.

    >>> image = {"kind": "image", "shape": [1, 8, 8], "encoder": {"width": 4}, "decoder": {"width": 4}}
    >>> model = MultimodalVAE({"image": image, "vector": {"kind": "vector", "shape": [6]}}, latent_dim=2)
    >>> batch = Batch({"image": torch.zeros(3, 1, 8, 8)})
    >>> {name: tuple(x.shape) for name, x in model.generate(batch, to="image,vector", n=2).items()}
    {'image': (6, 1, 8, 8), 'vector': (6, 6)}
    """

    name = "multimodal_vae"
    from_prior = True

    @checked
    def __init__(
        self,
        modalities: dict[str, dict[str, Any]] | None = None,
        latent_dim: Annotated[int, AtLeast(1)] = 16,
        objective: str = "mopoe",
        beta: Annotated[float, AtLeast(0)] = 1.0,
        random_subsets: Annotated[int, AtLeast(0)] = 0,
        samples: Annotated[int, AtLeast(1)] = 1,
        alpha: Annotated[float, Between(0, 1)] = 0.9,
        rescale: bool = False,
        prior: str = "standard",
        prior_settings: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.modalities = {name: check_modality(name, values) for name, values in (modalities or {}).items()}
        m = len(self.modalities)
        if m == 0:
            fix = 'give {"image": {"kind": "image", "shape": [1, 28, 28]}}'
            raise UserError("modalities", got="none", expected="at least one", fix=fix)
        self.objective = check_one_of("objective", objective, OBJECTIVES)
        self.beta, self.samples = beta, samples
        most = max(0, 2**m - m - 2)
        if random_subsets > most:
            fix = f"use {most} or fewer"
            raise UserError("random_subsets", got=random_subsets, expected=f"0 to {most} with {m} modalities", fix=fix)
        self.random_subsets, self.alpha = random_subsets, alpha
        self.sequences = tuple(name for name, values in self.modalities.items() if KINDS[values["kind"]].tokens)
        self.weights = likelihood_weights(self.modalities, rescale)
        self.encoders, self.heads, self.decoders = nn.ModuleDict(), nn.ModuleDict(), nn.ModuleDict()
        for name, values in self.modalities.items():
            kind, shape = values["kind"], values["shape"]
            self.encoders[name] = encoder = build_encoder(kind, shape, values.get("encoder") or {})
            self.heads[name] = GaussianHead(encoder.dim, latent_dim)
            self.decoders[name] = build_decoder(kind, latent_dim, shape, values.get("decoder") or {})
        if objective == "mvae" and prior not in ("standard", "aggregate", "flow_matching"):
            expected = "standard, one of the factors of mvae's product, aggregate or flow_matching"
            raise UserError("prior", got=prior, expected=expected, fix="choose another objective")
        self.prior = make_prior(prior, latent_dim, **(prior_settings or {}))

    @property
    def inputs(self) -> tuple[str, ...]:
        """The modalities that it encodes and decodes."""
        return tuple(self.modalities)

    def usable(self, batch: Batch, phase: str = "train") -> dict[str, Tensor]:
        """The items with any modality, whichever it is: a term is a mean over them, 0 for items that lack its modality."""
        return {REST: batch.having_any(*self.modalities)}

    def losses(self, batch: Batch, phase: str = "train") -> Losses:
        """The terms of the objective: a reconstruction for each modality, 0 where no item has it, and the KL.

        MMVAE has one term, its negative bound.
        """
        if not self.usable(batch)[REST].any():
            mmvae = self.objective == "mmvae"
            return self.zero_losses(*(["bound"] if mmvae else [*(f"reconstruction_{name}" for name in self.modalities), "kl"]))
        batch = self._checked(batch)
        objective = {"mvae": self._mvae, "mmvae": self._mmvae, "mopoe": self._mopoe, "mvtcae": self._mvtcae}[self.objective]
        return objective(batch, *self._experts(batch))

    def encode(self, batch: Batch) -> Distribution:
        """q(z | x) given the modalities of each item, batch shape (b,): a product for MVAE and MVTCAE, else a mixture."""
        experts, present = self._experts(self._checked(batch))
        if self.objective == "mmvae":
            return mixture_of_experts(experts, present)
        if self.objective == "mopoe":
            return mixture_of_products(experts, present)
        return product_of_experts(experts, present, prior=self.objective == "mvae")

    def decode(self, z: Tensor, to: str) -> Distribution:
        """p(to | z), z (..., k); (b, k) for a text."""
        return self.decoders[check_one_of("to", to, self.modalities)](z)

    @torch.no_grad()
    def generate(
        self, given: Batch, to: str, n: int = 1, generator: torch.Generator | None = None, temperature: float = 0.0
    ) -> Tensor | dict[str, Tensor]:
        """``n`` draws of z per item, from its posterior or, without any modality, from the prior, decoded to ``to``.

        Args:
            given: the modalities of each item.
            to: a modality, or several joined by commas, all from the same z.
            n: draws per item.
            generator: makes them reproducible.
            temperature: sampling temperature of text tokens; 0 takes the likeliest, 1 draws from p(text | z).

        Returns:
            The mean of p(to | z), or token ids for a text: (b * n, *shape), grouped by item; for several modalities a dict by
            name.

        Raises:
            UserError: an unknown modality, or ``n`` below 1.
        """
        names = [name.strip() for name in to.split(",")]
        for name in names:
            check_generate(name, n, self.modalities)
        z = rsample(self.prior(), (given.size, n), generator)  # (b, n, k)
        known = given.having_any(*given.values)  # (b,)
        if known.any():
            q = self.encode(given.items(known))
            z[known] = rsample(q, (n,), generator).transpose(0, 1).to(z.dtype)  # (b', n, k)
        made = {}
        for name in names:
            p = self.decoders[name](z.flatten(0, 1))  # batch shape (b n,)
            made[name] = p.sample((), generator, temperature=temperature) if name in self.sequences else p.mean
        return made if "," in to else made[names[0]]

    @torch.no_grad()
    def log_likelihood(self, batch: Batch, samples: int = 1) -> Tensor:
        """The importance-weighted lower bound on log p of all modalities of each item, by ``samples`` draws from `encode`.

        Returns:
            (b,) in nats, unweighted and without gradient.
        """
        batch, q, prior = self._checked(batch), self.encode(batch), self.prior()
        # in small chunks: decoder maps of many pictures overflow the cache, which costs more than it saves
        return importance_bound(q, lambda z: sum(self._log_probs(batch, z).values()) + prior.log_prob(z), samples, chunk=128)

    @torch.no_grad()
    def fit_prior(self, batches: Iterable[Batch], generator: torch.Generator | None = None) -> None:
        """Fit the prior "aggregate" or "flow_matching" to one draw per item from the product of its posteriors.

        Args:
            batches: batches of training items.
            generator: makes the draws reproducible.

        Raises:
            UserError: the model has another prior, or the items are fewer than its components.
        """

        def draws() -> Iterator[Tensor]:  # (b, k) each
            for batch in batches:
                experts, present = self._experts(self._checked(batch))
                yield rsample(product_of_experts(experts, present, self.objective == "mvae"), (), generator)

        fit_prior(self.prior, draws())

    def _mvae(self, batch: Batch, experts: Independent, present: Tensor) -> Losses:
        members = torch.tensor([[name in subset for name in batch.values] for subset in self.step_subsets()])  # (s, m)
        rows = {name: members[:, i].nonzero().squeeze(1).to(present.device) for i, name in enumerate(batch.values)}
        q = product_of_experts(experts, members[:, :, None].to(present.device) & present)  # batch shape (s, b)
        z = rsample(q)  # (s, b, k)
        # all subsets with a modality are decoded together
        terms = {name: self._log_prob(batch, name, z[rows[name]]).sum(0) for name in batch.values}  # (b,) each
        return self._terms(terms, kl(q, self.prior()).sum(0))

    def _mmvae(self, batch: Batch, experts: Independent, present: Tensor) -> Losses:
        q = mixture_of_experts(experts, present)
        z = rsample(q.component_distribution, (self.samples,)).movedim(-2, 1)  # (K, m, b, k)
        scored = sum(self.weights[name] * log_p for name, log_p in self._log_probs(batch, z).items())  # (K, m, b)
        ratios = scored + self.beta * (self.prior().log_prob(z) - q.log_prob(z))
        bounds = ratios.logsumexp(0) - math.log(self.samples)  # (m, b)
        # draws of a missing expert are finite, with weight 0
        return Losses(bound=-(q.mixture_distribution.probs.T * bounds).sum(0).mean())

    def _mopoe(self, batch: Batch, experts: Independent, present: Tensor) -> Losses:
        q: MixtureSameFamily = mixture_of_products(experts, present)
        divergences = kl(q.component_distribution, self.prior())  # (b, s)
        return self._terms(self._log_probs(batch, rsample(q)), (q.mixture_distribution.probs * divergences).sum(-1))

    def _mvtcae(self, batch: Batch, experts: Independent, present: Tensor) -> Losses:
        m, q = len(self.modalities), product_of_experts(experts, present, prior=False)
        terms = {name: (m - self.alpha) / m * log_p for name, log_p in self._log_probs(batch, rsample(q)).items()}  # (b,) each
        conditional = torch.where(present, kl(q, present_experts(experts, present)), 0.0).sum(0)  # (b,)
        return self._terms(terms, (1 - self.alpha) * kl(q, self.prior()) + self.alpha / m * conditional)

    def _terms(self, log_probs: dict[str, Tensor], divergence: Tensor) -> Losses:
        """The loss from log p(x_i | z) and a KL, (b,) each, with the same term names for any missing modalities."""
        zero = divergence.new_zeros(1)
        terms = {f"reconstruction_{n}": -w * log_probs.get(n, zero).mean() for n, w in self.weights.items()}
        return Losses(**terms, kl=self.beta * divergence.mean())

    def step_subsets(self) -> list[tuple[str, ...]]:
        """The subsets of one step of MVAE: all modalities, each alone, and random ones."""
        names = list(self.modalities)
        chosen = [tuple(names), *((name,) for name in names)] if len(names) > 1 else [tuple(names)]
        if self.random_subsets:
            members = subsets(len(names))  # (s, m)
            others = members[(members.sum(1) > 1) & (members.sum(1) < len(names))]
            for row in others[torch.randperm(len(others))[: self.random_subsets]].tolist():
                chosen.append(tuple(name for name, inside in zip(names, row) if inside))
        return chosen

    def _experts(self, batch: Batch) -> tuple[Independent, Tensor]:
        """Each modality encoded once: q(z | x_i) with batch shape (m, b), and the presence mask (m, b)."""
        posteriors = []
        for name, x in batch.values.items():
            mask = (batch.masks[name],) if name in batch.masks else ()
            posteriors.append(self.heads[name](self.encoders[name](x, *mask)))
        return stack_experts(posteriors), torch.stack(list(batch.present.values()))

    def _log_probs(self, batch: Batch, z: Tensor) -> dict[str, Tensor]:
        """log p(x_i | z) of every modality at z (..., b, k): (..., b) each, 0 where it is missing."""
        return {name: self._log_prob(batch, name, z) for name in batch.values}

    def _log_prob(self, batch: Batch, name: str, z: Tensor) -> Tensor:
        x = batch[name]
        if name in self.sequences:  # text decoders take one batch dimension
            draws = z.shape[:-2]
            ids, mask = (v.expand(*draws, *v.shape).flatten(0, -2) for v in (x, batch.masks[name]))  # (n b, t)
            log_p = self.decoders[name](z.flatten(0, -2)).log_prob(ids, mask).reshape(z.shape[:-1])
        else:
            log_p = self.decoders[name](z).log_prob(x)  # (..., b)
        return torch.where(batch.present[name], log_p, 0.0)

    def _checked(self, batch: Batch) -> Batch:
        """The modalities that some item has, in the model's order, with zeros where an item lacks one.

        Raises:
            UserError: see the class.
        """
        for name in batch.values:
            check_one_of("modality", name, self.modalities)
        names = [name for name in self.modalities if name in batch and batch.present[name].any()]
        present = {name: batch.present[name] for name in names}
        something = batch.having_any(*names)  # (b,)
        if not something.all():
            item = (~something).nonzero()[0].item()
            fix = "leave the item out; generate draws from the prior for it"
            raise UserError("modalities", got=f"none for item {item}", expected="at least one for every item", fix=fix)
        values, masks = {}, {}
        for name in names:
            here, x = present[name], batch[name]
            decoder: Any = self.decoders[name]
            if name in self.sequences:
                real = batch.masks[name] if name in batch.masks else until_stop(x, decoder.stop)
                masks[name] = real & here[:, None]  # (b, t)
                x = torch.where(masks[name], x, 0)
            values[name] = torch.where(here.reshape(-1, *[1] * (x.dim() - 1)), x, torch.zeros_like(x))
            own = self.modalities[name]
            check_values(name, values[name], own["kind"], own["shape"], decoder.likelihood)
        return Batch(values, masks, present)


def check_modality(name: str, values: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of one modality if they are valid.

    Raises:
        UserError: an unknown key or kind, an invalid shape or weight, or a text without ``stop``.
    """
    check_name(name)
    for key in values:
        check_one_of(f"modalities.{name}: key", key, KEYS)
    kind = KINDS[check_one_of(f"modalities.{name}.kind", str(values.get("kind")), KINDS)]
    shape = values.get("shape")
    if shape is None or len(shape) != len(kind.axes):
        expected, fix = f"{counted(len(kind.axes), 'number')} for {kind.name}", f"give {', '.join(kind.axes)}"
        raise UserError(f"modalities.{name}.shape", got=shape, expected=expected, fix=fix)
    if values.get("weight") is not None:
        check_at_least(f"modalities.{name}.weight", values["weight"], 0)
    settings = values.get("decoder") or {}
    if kind.tokens and "stop" not in settings:
        fix = "give the tokenizer's EOS"
        raise UserError(f"modalities.{name}.decoder", got=settings, expected="the token that ends a text as stop", fix=fix)
    return values


def likelihood_weights(modalities: dict[str, dict[str, Any]], rescale: bool) -> dict[str, float]:
    """w_i of each modality: its ``weight``; otherwise the largest dimension over its own with ``rescale``, else 1.

    >>> likelihood_weights({"a": {"kind": "vector", "shape": [8]}, "b": {"kind": "vector", "shape": [2]}}, rescale=True)
    {'a': 1.0, 'b': 4.0}
    """
    dims = {name: math.prod(v["shape"][KINDS[v["kind"]].tokens :]) for name, v in modalities.items()}
    weights = {}
    for name, values in modalities.items():
        own = values.get("weight")
        weights[name] = float(own) if own is not None else max(dims.values()) / dims[name] if rescale else 1.0
    return weights
