"""Discrete VAE: a picture as a grid of codes, by a relaxed categorical posterior (Gumbel-softmax) or nearest codes (VQ)."""

import math
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import torch
from torch import Tensor, nn
from torch.distributions import Categorical, Distribution, Independent

from mmgen.data.batch import Batch, placed
from mmgen.distributions import Likelihood, draw
from mmgen.errors import UserError, check_at_least, check_one_of
from mmgen.latents.discrete import VectorQuantizer, annealed, gumbel_softmax, kl_to_uniform
from mmgen.modalities.kinds import check_values
from mmgen.modalities.layers.convolution import GridDecoder, GridEncoder
from mmgen.models.base import REST, Losses, Model, check_generate
from mmgen.ranges import AtLeast, Share, checked

AT_ONCE = 100  # pictures read together outside training


class DiscreteVAE(Model):
    """p(x) = sum_z p(z) p(x | z), z an h' x w' grid of codes 0 to K - 1, p(z) uniform.

    - "gumbel": q(z | x) is categorical at each cell and the loss ``E_q[-log p(x | z)] + w KL(q(z | x) || p(z))`` with relaxed
      draws; the temperature falls and w rises over optimiser steps.
    - "vq": z is the code nearest to the encoder's output; codes are updated by moving averages and dead ones revived:
      ``-log p(x | z) + commitment |e(x) - sg(z)|^2``.

    Items without a picture are ignored. `monitored` holds the use of codes by a batch: ``codes_used``, a share of K, and
    ``code_perplexity``, from 1 to K.

    Args:
        shape: (c, h, w) of a picture, h and w multiples of 2^halvings, values in [0, 1].
        codes: number K of code vectors.
        dim: size d of a code vector.
        quantizer: "gumbel" (relaxed draws) or "vq" (the nearest code vector).
        width: channels of encoder and decoder at the grid.
        halvings: number of times the sides of a picture are halved.
        depth: residual layers of encoder and decoder.
        likelihood: family of p(x | z), see `mmgen.distributions.Likelihood`.
        scale: scale of the likelihood; None learns one.
        temperature: temperature of relaxed draws, first and last.
        temperature_steps: optimiser steps over which it falls.
        kl: final weight w of the KL term.
        kl_steps: optimiser steps over which w rises from 0; 0: w is constant.
        commitment: weight of the commitment term.
        decay: decay of the moving averages.

    Raises:
        UserError: a setting out of range; in use, no item with a picture, or values that are no picture.

    Source: Ramesh et al. 2021, DALL-E, arXiv 2102.12092, and van den Oord et al. 2017, VQ-VAE, arXiv 1711.00937.
        Differences: KL and reconstruction are summed over cells and averaged over the batch before w applies; the likelihood
        is configurable, not logit-Laplace; dead codes are revived.

    >>> model = DiscreteVAE((1, 8, 8), codes=16, dim=4, width=16, halvings=1, likelihood="bernoulli")
    >>> batch = Batch({"image": torch.rand(2, 1, 8, 8)})
    >>> model.codes(batch["image"]).shape, sorted(model.losses(batch))
    (torch.Size([2, 4, 4]), ['commitment', 'reconstruction'])
    """

    name = "discrete_vae"
    from_prior = True

    @checked
    def __init__(
        self,
        shape: Sequence[int] = (3, 32, 32),
        codes: Annotated[int, AtLeast(2)] = 512,
        dim: Annotated[int, AtLeast(1)] = 32,
        quantizer: Literal["gumbel", "vq"] = "vq",
        width: Annotated[int, AtLeast(1)] = 128,
        halvings: Annotated[int, AtLeast(1)] = 2,
        depth: Annotated[int, AtLeast(0)] = 2,
        likelihood: str = "normal",
        scale: float | None = None,
        temperature: tuple[float, float] = (1.0, 1 / 16),
        temperature_steps: Annotated[int, AtLeast(1)] = 1000,
        kl: Annotated[float, AtLeast(0)] = 0.1,
        kl_steps: Annotated[int, AtLeast(0)] = 1000,
        commitment: Annotated[float, AtLeast(0)] = 0.25,
        decay: Annotated[float, Share(0.99)] = 0.99,
    ) -> None:
        super().__init__()
        check_one_of("quantizer", quantizer, ("gumbel", "vq"))
        annealed(0, temperature_steps, *temperature)  # raises for a value out of range
        self.shape, self.k, self.temperature = tuple(shape), codes, (temperature[0], temperature[1])
        self.temperature_steps, self.kl, self.kl_steps = temperature_steps, kl, kl_steps
        sizes: dict[str, Any] = {"shape": self.shape, "width": width, "halvings": halvings, "depth": depth}
        self.encoder = GridEncoder(dim=codes if quantizer == "gumbel" else dim, **sizes)
        self.grid = self.encoder.grid
        self.quantizer = VectorQuantizer(codes, dim, commitment, decay) if quantizer == "vq" else None
        if quantizer == "gumbel":
            self.codebook = nn.Embedding(codes, dim)
        self.decoder = GridDecoder(dim=dim, **sizes)
        self.likelihood = Likelihood(likelihood, event_dims=3, scale=scale)

    @property
    def inputs(self) -> tuple[str, ...]:
        """The modality that it encodes and decodes."""
        return ("image",)

    def usable(self, batch: Batch, phase: str = "train") -> dict[str, Tensor]:
        """The items that have a picture."""
        return {REST: batch.having("image")}

    def losses(self, batch: Batch, phase: str = "train") -> Losses:
        """The reconstruction, and the weighted KL or the commitment, over the items that have a picture."""
        if not self.usable(batch)[REST].any():
            if self.quantizer is not None:
                self.quantizer.skip()
            return self.zero_losses("reconstruction", "kl" if self.quantizer is None else "commitment")
        x, _ = self._observed(batch)  # (b', c, h, w)
        features = self.encoder(x).movedim(1, -1)  # (b', h', w', K) logits, or (b', h', w', d)
        if self.quantizer is not None:
            found = self.quantizer(features)
            z, prior_term = found.z, {"commitment": found.commitment}
            self.monitored = {"codes_used": found.usage, "code_perplexity": found.perplexity}  # over all processes
        else:
            step = int(self.step)
            temperature = annealed(step, self.temperature_steps, *self.temperature)
            z = gumbel_softmax(features, temperature) @ self.codebook.weight  # (b', h', w', d)
            weight = self.kl * (min(1.0, step / self.kl_steps) if self.kl_steps else 1.0)
            prior_term = {"kl": weight * kl_to_uniform(features)}
            self.monitored = code_use(features.argmax(-1), self.k)
        return Losses(reconstruction=-self._picture(z).log_prob(x).mean(), **prior_term)

    def encode(self, batch: Batch) -> Independent:
        """q(z | x), batch shape (b,), event (h', w'); a point on the nearest codes for "vq"; undefined where x is missing."""
        return self.posterior(placed(*self._observed(batch)))

    def posterior(self, x: Tensor) -> Independent:
        """q(z | x): x (b, c, h, w) -> batch shape (b,), event (h', w')."""
        features = self.encoder(x).movedim(1, -1)  # (b, h', w', K or d)
        if self.quantizer is None:
            return Independent(Categorical(logits=features.float()), 2)
        nearest = nn.functional.one_hot(self.quantizer.nearest(features), self.k)  # (b, h', w', K)
        return Independent(Categorical(probs=nearest.float()), 2)

    @torch.no_grad()
    def codes(self, x: Tensor) -> Tensor:
        """The likeliest codes of pictures: x (b, c, h, w) -> (b, h', w') int64."""
        features = self.encoder(x).movedim(1, -1)
        return features.argmax(-1) if self.quantizer is None else self.quantizer.nearest(features)

    @torch.no_grad()
    def reconstruct(self, x: Tensor) -> Tensor:
        """Compute the mean of p(x | z) at the likeliest codes of pictures x (n, c, h, w), in [0, 1]."""
        device = self.step.device
        parts = [self.decode(self.codes(part.to(device))).mean.clamp(0, 1).to(x.device) for part in x.split(AT_ONCE)]
        return torch.cat(parts)

    @torch.no_grad()
    def usage(self, x: Tensor) -> dict[str, float]:
        """Compute the figures of `code_use` for pictures x (n, c, h, w)."""
        counted = torch.cat([self.codes(part.to(self.step.device)).cpu() for part in x.split(AT_ONCE)])
        return {name: value.item() for name, value in code_use(counted, self.k).items()}

    def decode(self, z: Tensor, to: str = "image") -> Distribution:
        """p(x | z), z (..., h', w') codes.

        Raises:
            UserError: a code out of range, or another grid.
        """
        check_one_of("to", to, ["image"])
        if tuple(z.shape[-2:]) != self.grid:
            fix = "use codes of this model"
            raise UserError("z", got=f"a grid {tuple(z.shape[-2:])}", expected=f"{self.grid}", fix=fix)
        wrong = z[(z < 0) | (z >= self.k)]
        if len(wrong):
            raise UserError("z", got=f"code {wrong[0].item()}", expected=f"0 to {self.k - 1}", fix="use codes of this model")
        vectors = self.codebook(z) if self.quantizer is None else self.quantizer.embed(z)  # (..., h', w', d)
        return self._picture(vectors)

    @torch.no_grad()
    def generate(self, given: Batch, to: str, n: int = 1, generator: torch.Generator | None = None) -> Tensor:
        """The mean of p(x | z) at ``n`` draws of z per item: from q(z | x) where x is given (a reconstruction), else p(z).

        p(z) is uniform, so its pictures are noise; `mmgen.models.text_to_image.TextToImage` learns a prior.

        Returns:
            (b * n, c, h, w), grouped by item.
        """
        check_generate(to, n, ["image"])
        device = self.step.device
        uniform = torch.full((given.size * math.prod(self.grid), self.k), 1 / self.k, device=device)
        z = draw(uniform, n, generator).reshape(given.size, *self.grid, n).movedim(3, 1)  # (b, n, h', w')
        if (there := given.having("image")).any():
            own = self._draws(self.encode(given), n, generator)
            z = torch.where(there[:, None, None, None], own, z)
        return self.decode(z.flatten(0, 1)).mean

    @torch.no_grad()
    def log_likelihood(self, batch: Batch, samples: int = 1) -> Tensor:
        """A lower bound on log p(x): ``log 1/S sum_s p(x | z_s) p(z_s) / q(z_s | x)``, z_s ~ q(z | x).

        Returns:
            (b,) in nats; 0 for items that lack a picture.
        """
        check_at_least("samples", samples, 1)
        x, observed = self._observed(batch)
        q, uniform = self.posterior(x), -math.prod(self.grid) * math.log(self.k)
        total = x.new_full((len(x),), -math.inf)
        for _ in range(samples):
            z = self._draws(q)[:, 0]  # (b', h', w')
            total = torch.logaddexp(total, self.decode(z).log_prob(x) + uniform - q.log_prob(z))
        return placed(total - math.log(samples), observed)

    def _draws(self, q: Independent, n: int = 1, generator: torch.Generator | None = None) -> Tensor:
        """(b, n, h', w')."""
        probabilities = q.base_dist.probs  # (b, h', w', K)
        drawn = draw(probabilities.flatten(0, 2), n, generator)  # (b h' w', n)
        return drawn.reshape(*probabilities.shape[:3], n).movedim(3, 1)

    def _picture(self, z: Tensor) -> Distribution:
        """p(x | z): z (..., h', w', d) -> batch shape (...), event (c, h, w)."""
        location = self.decoder(z.flatten(0, -4).movedim(-1, 1))  # (b, c, h, w)
        return self.likelihood(location.unflatten(0, z.shape[:-3]))

    def _observed(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """x of the items that have it, (b', c, h, w), and their mask (b,)."""
        observed = batch.observed("image")
        x = batch["image"][observed]
        check_values("image", x, "image", self.shape, self.likelihood)
        return x, observed


def code_use(ids: Tensor, codes: int) -> dict[str, Tensor]:
    """Use of codes 0 to ``codes - 1`` by ids of any shape: ``codes_used``, a share, and ``code_perplexity``.

    The perplexity is the exponential of the entropy of the codes' frequencies, from 1 to the number of codes.

    >>> {name: value.item() for name, value in code_use(torch.tensor([0, 3, 3, 0]), codes=4).items()}
    {'codes_used': 0.5, 'code_perplexity': 2.0}
    """
    counts = torch.bincount(ids.flatten(), minlength=codes).float()  # (K,)
    perplexity = torch.special.entr(counts / counts.sum()).sum().exp()
    return {"codes_used": (counts > 0).float().mean(), "code_perplexity": perplexity}
