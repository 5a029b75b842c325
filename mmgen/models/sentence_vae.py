"""Sentence VAE: one latent per sentence, an autoregressive decoder, and measures against posterior collapse."""

from typing import Annotated, Any

import torch
from torch import Tensor
from torch.distributions import Independent, Normal, kl_divergence

from mmgen.data.batch import Batch, placed
from mmgen.distributions import AutoregressiveCategorical, until_stop
from mmgen.errors import UserError, check_at_least, check_one_of
from mmgen.latents.divergences import kl
from mmgen.latents.importance import importance_bound
from mmgen.latents.spaces import GaussianHead, StandardPrior, rsample
from mmgen.modalities.kinds import check_values
from mmgen.modalities.layers.autoregressive import check_sampling
from mmgen.modalities.text import TextDecoder, TextEncoder
from mmgen.models.base import REST, Losses, Model, check_generate
from mmgen.ranges import AtLeast, Between, checked


class SentenceVAE(Model):
    """p(text) = E_N(z; 0, 1)[prod_i p(x_i | x_1, ..., x_{i-1}, z)] with the posterior q(z | text) = N(mu, sigma^2).

    ``loss = E_q[-log p(text | z)] + w(step) sum_j max(free_bits, KL_j)``, KL_j the mean over the batch of dimension j's KL and
    w rising linearly from 0 to 1 over ``anneal_steps``.

    An autoregressive decoder can model text without z and then ignores it (posterior collapse). Three measures prevent this:
    each dimension has ``free_bits`` at no cost; the weight of the KL starts at 0; and word dropout hides input words from the
    decoder in training, but not its targets, so that it needs z. Missing sentences are ignored.

    Args:
        vocabulary: number of tokens.
        length: longest sentence in tokens, ``stop`` included.
        latent_dim: size k of z.
        stop: EOS of the tokenizer, 2 for `mmgen.data.text.train_tokenizer`.
        dropped: token that replaces a dropped word and occurs in no sentence, such as the padding token 0: the mask, not this
            token, marks padding.
        word_dropout: probability of dropping an input word of the decoder in training, 0 to 1.
        free_bits: nats per dimension, 0 or above.
        anneal_steps: steps over which the weight of the KL rises to 1; 0: it is constant.
        encoder: settings of `mmgen.modalities.text.TextEncoder`.
        decoder: settings of `mmgen.modalities.text.TextDecoder`.

    Raises:
        UserError: a value out of range, or an unknown setting; in use, no item with text.

    Source: Bowman et al. 2016, Generating sentences from a continuous space, arXiv 1511.06349 (word dropout, annealing by a
        sigmoid); Kingma et al. 2016, arXiv 1606.04934, appendix C.8 (free bits). Transformers replace recurrent networks.

    >>> small = {"dim": 16, "depth": 1, "heads": 2}
    >>> model = SentenceVAE(vocabulary=10, length=5, latent_dim=2, encoder=small, decoder=small)
    >>> sorted(model.losses(Batch({"text": torch.tensor([[5, 6, 2], [7, 2, 0]])})))
    ['kl', 'reconstruction']
    """

    name = "sentence_vae"
    from_prior = True
    sequences = ("text",)

    @checked
    def __init__(
        self,
        vocabulary: int = 1024,
        length: Annotated[int, AtLeast(1)] = 32,
        latent_dim: Annotated[int, AtLeast(1)] = 32,
        stop: int = 2,
        dropped: int = 0,
        word_dropout: Annotated[float, Between(0, 1)] = 0.0,
        free_bits: Annotated[float, AtLeast(0)] = 0.0,
        anneal_steps: Annotated[int, AtLeast(0)] = 0,
        encoder: dict[str, Any] | None = None,
        decoder: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        for what, value in (("stop", stop), ("dropped", dropped)):
            if not 0 <= value < vocabulary:
                raise UserError(what, got=value, expected=f"a token, 0 to {vocabulary - 1}", fix="see the tokenizer")
        if dropped == stop:
            raise UserError("dropped", got=dropped, expected="another token than stop", fix="take the padding token")
        for what, settings, known in (("encoder", encoder, _ENCODER), ("decoder", decoder, _DECODER)):
            for key in settings or {}:
                check_one_of(f"{what}.{key}", key, known)
        self.vocabulary, self.stop, self.dropped, self.word_dropout = vocabulary, stop, dropped, word_dropout
        self.free_bits, self.anneal_steps = free_bits, anneal_steps
        self.encoder = TextEncoder(vocabulary, **(encoder or {}))
        self.head = GaussianHead(self.encoder.dim, latent_dim)
        self.decoder = TextDecoder(latent_dim, vocabulary, length, stop, **(decoder or {}))
        self.prior = StandardPrior(latent_dim)

    @property
    def inputs(self) -> tuple[str, ...]:
        """The modality that it encodes and decodes."""
        return ("text",)

    @property
    def kl_weight(self) -> float | Tensor:
        """w(step)."""
        return (self.step / self.anneal_steps).clamp(max=1) if self.anneal_steps else 1.0

    def usable(self, batch: Batch, phase: str = "train") -> dict[str, Tensor]:
        """The items with text; free bits are those of a batch."""
        return {REST: batch.having("text")}

    def losses(self, batch: Batch, phase: str = "train") -> Losses:
        """The reconstruction, and the weighted KL with free bits, over the items with text."""
        if not self.usable(batch)[REST].any():
            return self.zero_losses("reconstruction", "kl")
        ids, mask, _ = self._observed(batch)  # (b', t) each
        q = self.posterior(ids, mask)
        p = self.decoder(rsample(q))
        if self.training and self.word_dropout:
            p = self.reading(p, self.drop_words(ids))
        each = kl_divergence(q.base_dist, Normal(0.0, 1.0)).mean(0)  # (k,)
        floored = each.clamp(min=self.free_bits) if self.free_bits else each
        return Losses(reconstruction=-p.log_prob(ids, mask).mean(), kl=self.kl_weight * floored.sum())

    def drop_words(self, ids: Tensor) -> Tensor:
        """Replace ``ids`` (b, t) by the token ``dropped`` with probability ``word_dropout``."""
        return ids.masked_fill(torch.rand(ids.shape, device=ids.device) < self.word_dropout, self.dropped)

    @staticmethod
    def reading(p: AutoregressiveCategorical, read: Tensor) -> AutoregressiveCategorical:
        """``p`` conditioned on the preceding words ``read`` (b, t), in place of those that its log_prob scores."""
        length = p.event_shape[0]
        return AutoregressiveCategorical(
            p.context, lambda z, _, mask: p.logits_of(z, read, mask), p.sampler, length=length, stop=p.stop
        )

    def posterior(self, ids: Tensor, mask: Tensor) -> Independent:
        """q(z | text): ids and mask (b, t) -> batch shape (b,), event (k,)."""
        return self.head(self.encoder(ids, mask))

    def encode(self, batch: Batch) -> Independent:
        """q(z | text), batch shape (b,); undefined where the text is missing."""
        ids, mask, observed = self._observed(batch)
        return self.posterior(placed(ids, observed), placed(mask, observed))  # padding for missing texts

    def decode(self, z: Tensor, to: str = "text") -> AutoregressiveCategorical:
        """p(text | z), z (b, k)."""
        check_one_of("to", to, ["text"])
        return self.decoder(z)

    def generate(
        self,
        given: Batch,
        to: str = "text",
        n: int = 1,
        generator: torch.Generator | None = None,
        temperature: float = 1.0,
        top_p: float = 1.0,
    ) -> Tensor:
        """``n`` sentences per item, from z of q(z | text) where text is given, else of p(z).

        Args:
            given: items with or without text.
            to: "text".
            n: sentences per item.
            generator: makes them reproducible.
            temperature: sampling temperature of words; 0 takes the likeliest.
            top_p: draw from the likeliest words of this total probability.

        Returns:
            Token ids (b * n, length), grouped by item, with padding after ``stop``.

        Raises:
            UserError: another ``to``, or a number out of range.
        """
        check_generate(to, n, ["text"])
        check_sampling(temperature, None, top_p)
        with torch.no_grad():
            z = rsample(self.prior(), (given.size * n,), generator)  # (b n, k)
            if (there := given.having("text")).any():
                own = rsample(self.encode(given), (n,), generator).transpose(0, 1).flatten(0, 1)  # (b n, k)
                z = torch.where(there.repeat_interleave(n)[:, None], own, z)
            return self.decoder(z).sample(generator=generator, temperature=temperature, top_p=top_p)

    @torch.no_grad()
    def interpolate(self, a: Batch, b: Batch, n: int = 5) -> Tensor:
        """Interpolate between sentences ``a`` and ``b``: greedy sentences at ``n`` points.

        Linear between the posterior means, ``z = (1 - t) mu_a + t mu_b`` with t = 0, ..., 1: means lie nearer to the origin
        than draws from the prior, so a straight line between them stays in the region where the decoder was trained.

        Args:
            a, b: batches of equal size, all items with text.
            n: points, both ends included, 2 or more.

        Returns:
            Token ids (items, n, length).

        Raises:
            UserError: different numbers of items, a missing text, or ``n`` below 2.

        Source: Bowman et al. 2016, section 4.3 (homotopies).
        """
        check_at_least("n", n, 2)
        if a.size != b.size:
            raise UserError("interpolate", got=f"{a.size} and {b.size} items", expected="equally many", fix="pair them")
        for batch in (a, b):
            if not batch.having("text").all():
                raise UserError("interpolate", got="an item without text", expected="text everywhere", fix="leave it out")
        ends = [self.encode(batch).mean[:, None] for batch in (a, b)]  # (items, 1, k) each
        t = torch.linspace(0, 1, n, device=ends[0].device)[:, None]  # (n, 1)
        z = (1 - t) * ends[0] + t * ends[1]  # (items, n, k)
        return self.decoder(z.flatten(0, 1)).sample(temperature=0.0).unflatten(0, (a.size, n))

    @torch.no_grad()
    def elbo(self, batch: Batch, samples: int = 1) -> Tensor:
        """E_q[log p(text | z)] - KL(q || p), a lower bound on log p(text), estimated by ``samples`` draws.

        Returns:
            (b,) in nats; 0 for items that lack text.
        """
        check_at_least("samples", samples, 1)
        ids, mask, observed = self._observed(batch)
        q = self.posterior(ids, mask)
        total = sum(self.decoder(rsample(q)).log_prob(ids, mask) for _ in range(samples)) / samples  # (b',)
        return placed(total - kl(q, self.prior()), observed)

    def log_likelihood(self, batch: Batch, samples: int = 1) -> Tensor:
        """The importance-weighted lower bound on log p(text) with ``samples`` draws, see `importance_bound`.

        Returns:
            (b,) in nats; 0 for items that lack text.
        """
        ids, mask, observed = self._observed(batch)
        prior = self.prior()

        def log_joint(z: Tensor) -> Tensor:  # (n, b, k) -> (n, b)
            many = [value.expand(len(z), *value.shape).flatten(0, 1) for value in (ids, mask)]  # (n b, t) each
            text = self.decoder(z.flatten(0, 1)).log_prob(*many)  # (n b,)
            return text.unflatten(0, z.shape[:2]) + prior.log_prob(z)

        return placed(importance_bound(self.posterior(ids, mask), log_joint, samples, chunk=256), observed)

    def _observed(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Ids and mask (b', t) of the items with text, and their presence mask (b,); without a mask, texts end at ``stop``.

        Raises:
            UserError: no item has text, or an id is out of range.
        """
        observed = batch.observed("text")
        ids = batch["text"][observed]
        mask = batch.masks["text"][observed] if "text" in batch.masks else until_stop(ids, self.stop)
        check_values("text", ids, "text", [self.vocabulary])
        return ids, mask, observed


_ENCODER = _DECODER = ("dim", "depth", "heads", "dropout")
