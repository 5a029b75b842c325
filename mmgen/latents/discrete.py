"""Discrete latents: Gumbel-softmax, straight-through and REINFORCE gradients, the KL to uniform, and vector quantisation."""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch import distributed as dist

from mmgen.errors import UserError, check_at_least, check_one_of, check_share


def gumbel_softmax(logits: Tensor, temperature: float, hard: bool = False, generator: torch.Generator | None = None) -> Tensor:
    """Relaxed draw from a categorical distribution: softmax((logits + g) / temperature), g Gumbel noise.

    Like torch's ``gumbel_softmax``, but with a generator; without one, the draw equals torch's for the same seed.

    Args:
        logits: (..., v).
        temperature: above 0; a lower temperature gives draws nearer to one-hot.
        hard: use the straight-through estimator: the value is the one-hot of the largest entry, the gradient that of the
            relaxed draw.
        generator: makes the draw reproducible.

    Returns:
        (..., v), rows summing to 1, in float32 or wider.

    Raises:
        UserError: the temperature is not above 0.

    Source: Jang et al. 2017, arXiv 1611.01144; Maddison et al. 2017, arXiv 1611.00712.

    >>> gumbel_softmax(torch.zeros(2, 3), temperature=0.5, hard=True).sum(-1).tolist()
    [1.0, 1.0]
    """
    if not temperature > 0:
        raise UserError("temperature", got=temperature, expected="a number > 0", fix="anneal towards 1/16 rather than 0")
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    device = logits.device if generator is None else generator.device
    waiting = torch.empty(logits.shape, device=device, dtype=logits.dtype).exponential_(generator=generator)
    noise = -waiting.clamp(min=torch.finfo(logits.dtype).tiny).log().to(logits.device)  # (..., v)
    soft = ((logits + noise) / temperature).softmax(-1)
    if not hard:
        return soft
    return _one_hot_of(soft, soft.argmax(-1))


def straight_through(logits: Tensor, ids: Tensor) -> Tensor:
    """Straight-through one-hot of drawn ids, ``one_hot(ids) + p - sg(p)``: its gradient is that of the probabilities p.

    Args:
        logits: (..., v).
        ids: (...) drawn from them, by any sampler.

    Returns:
        (..., v), exactly 0 and 1.

    Source: Bengio et al. 2013, arXiv 1308.3432, the straight-through estimator, which is biased.

    >>> straight_through(torch.zeros(3), torch.tensor(1)).tolist()
    [0.0, 1.0, 0.0]
    """
    return _one_hot_of(logits.softmax(-1), ids)


def _one_hot_of(p: Tensor, ids: Tensor) -> Tensor:
    """The one-hots of ids (...), with the gradient of p (..., v)."""
    return torch.zeros_like(p).scatter_(-1, ids[..., None], 1.0) + (p - p.detach())  # the difference is exactly 0


def reinforce(log_prob: Tensor, reward: Tensor, baseline: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """REINFORCE loss of draws z from q, whose gradient estimates that of the expected reward.

    The estimate ``-E_q[(R(z) - b) grad log q(z)]`` is unbiased for any reward, differentiable or not, and any baseline b that
    does not depend on z; its variance is lower the closer b is to ``E_q[R]``.

    Args:
        log_prob: log q(z) of draws, (b,), with gradients.
        reward: R(z), (b,).
        baseline: b, (b,), a function of the condition of q; None is 0.

    Returns:
        Two scalars: ``-mean (R - b) log q``, of which only the gradient is meaningful, and ``mean (R - b)^2``, the loss of the
        baseline, which gives q no gradient as long as ``baseline`` does not depend on q's parameters.

    Raises:
        UserError: the shapes differ.

    Source: Williams 1992, REINFORCE; the baseline learned as in Mnih and Gregor 2014, arXiv 1402.0030.

    >>> logits = torch.zeros(2, requires_grad=True)
    >>> z = torch.tensor([0, 1])
    >>> policy, error = reinforce(logits.log_softmax(0)[z], reward=torch.tensor([1.0, 0.0]))
    >>> torch.autograd.grad(policy, logits)[0].tolist()  # descent makes the rewarded first value likelier
    [-0.25, 0.25]
    """
    baseline = torch.zeros_like(reward) if baseline is None else baseline
    if not log_prob.shape == reward.shape == baseline.shape:
        got = ", ".join(str(tuple(x.shape)) for x in (log_prob, reward, baseline))
        fix = "give one of each for every draw"
        raise UserError("log_prob, reward and baseline", got=f"shapes {got}", expected="one shape", fix=fix)
    advantage = reward.detach() - baseline
    return -(advantage.detach() * log_prob).mean(), advantage.square().mean()


def annealed(step: int, steps: int, start: float = 1.0, end: float = 1 / 16, shape: str = "cosine") -> float:
    """Temperature schedule from ``start`` to ``end`` over ``steps`` optimiser steps, constant afterwards.

    The temperature depends on ``step`` only, so it is the same after a resume.

    - "cosine": ``end + (start - end) (1 + cos(pi step / steps)) / 2``
    - "exponential": ``start (end / start)^(step / steps)``

    Args:
        step: optimiser steps done, 0 or more.
        steps: number of steps after which ``end`` is reached, 1 or more.
        start: above 0.
        end: above 0.
        shape: "cosine" or "exponential".

    Raises:
        UserError: a value out of range, or an unknown shape.

    Source: Ramesh et al. 2021, DALL-E, for the defaults; they anneal over 150,000 steps.

    >>> [round(annealed(step, steps=100), 3) for step in (0, 50, 100, 200)]
    [1.0, 0.531, 0.062, 0.062]
    """
    check_at_least("step", step, 0)
    check_at_least("steps", steps, 1)
    for name, value in (("start", start), ("end", end)):
        if not value > 0:
            raise UserError(name, got=value, expected="a temperature > 0", fix=f"set {name}=1.0")
    done = min(step / steps, 1.0)
    if check_one_of("shape", shape, ["cosine", "exponential"]) == "exponential":
        return start * (end / start) ** done
    return end + (start - end) * (1 + math.cos(math.pi * done)) / 2


def kl_to_uniform(logits: Tensor) -> Tensor:
    """KL divergence to the uniform distribution over v values, ``log v + sum_i q_i log q_i``.

    It is summed over positions and averaged over the batch.

    Args:
        logits: (b, ..., v), a categorical q for each position.

    Returns:
        A scalar in nats, from 0 to positions x log v.

    >>> round(kl_to_uniform(torch.tensor([[[0.0, 0.0], [100.0, 0.0]]])).item(), 4)  # log 2 = 0.6931
    0.6931
    """
    log_q = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)  # (b, ..., v)
    terms = math.log(logits.shape[-1]) + (log_q.exp() * log_q).sum(-1)  # (b, ...)
    return terms.sum() / len(logits)


class Quantized(NamedTuple):
    """Output of `VectorQuantizer`."""

    z: Tensor
    """(b, ..., d) the nearest codes; its gradient passes to the encoder unchanged."""
    ids: Tensor
    """(b, ...) indices of the nearest codes."""
    commitment: Tensor
    """Commitment loss, which keeps the encoder near the codes; summed over positions and dimensions, mean over the batch."""
    perplexity: Tensor
    """exp of the entropy of code usage, from 1 (a single code) to the number of codes (all used equally)."""
    usage: Tensor
    """The share of codes used at least once, from 0 to 1."""


class VectorQuantizer(nn.Module):
    """Vector quantiser: maps z to the nearest of K codes, which are exponential moving averages of the encoder's outputs.

    ``N_i <- g N_i + (1 - g) n_i``, ``m_i <- g m_i + (1 - g) sum_{z in i} z``, ``e_i = m_i / N_i``, with ``N_i`` smoothed as
    ``(N_i + eps) / (N + K eps) N``; the loss is ``commitment |z - sg(e)|^2``. In training mode, the codes are initialised from
    the first batch, and a dead code is replaced by a random vector of the batch; in eval mode the codes are fixed. Several
    processes share their counts and keep identical codes, so every process must call the module in training.

    Args:
        codes: number of codes K.
        dim: size d of a code.
        commitment: weight of the commitment loss.
        decay: g, from 0 (the codes are the means of the last batch) to below 1.
        smoothing: eps, in vectors, above 0.
        revive: a code is dead when its average use is below this share of the mean; 0 replaces no code.

    Raises:
        UserError: a value is out of range or, in use, the vectors have another size.

    Source: van den Oord et al. 2017, VQ-VAE, arXiv 1711.00937, appendix A.1; dead codes are replaced as in Dhariwal et al.
        2020, Jukebox, with a threshold relative to the mean instead of an absolute count.

    >>> quantizer = VectorQuantizer(codes=4, dim=2)
    >>> quantizer(torch.randn(3, 5, 2)).ids.shape
    torch.Size([3, 5])
    """

    codebook: Tensor
    counts: Tensor
    sums: Tensor

    def __init__(
        self,
        codes: int,
        dim: int,
        commitment: float = 0.25,
        decay: float = 0.99,
        smoothing: float = 1e-5,
        revive: float = 0.01,
    ) -> None:
        super().__init__()
        check_at_least("codes", codes, 1)
        check_at_least("dim", dim, 1)
        check_at_least("commitment", commitment, 0)
        if not smoothing > 0:
            raise UserError("smoothing", got=smoothing, expected="a number > 0", fix="leave out smoothing")
        for name, value in (("decay", decay), ("revive", revive)):
            check_share(name, value)
        self.commitment, self.decay, self.smoothing, self.revive = commitment, decay, smoothing, revive
        self.register_buffer("codebook", torch.randn(codes, dim))  # (K, d)
        self.register_buffer("counts", torch.zeros(codes))  # (K,) moving average of vectors per batch; all 0 before the first
        self.register_buffer("sums", torch.zeros(codes, dim))  # (K, d)

    def forward(self, z: Tensor) -> Quantized:
        """z (b, ..., d) -> the nearest codes."""
        if z.shape[-1] != self.codebook.shape[1]:
            raise UserError(
                "z", got=tuple(z.shape), expected=f"(b, ..., {self.codebook.shape[1]})", fix="set dim to its last size"
            )
        z = z.to(self.codebook.dtype)
        flat = z.detach().reshape(-1, z.shape[-1])  # (n, d)
        if self.training:
            self._revive(flat)
        ids = self._nearest(flat)  # (n,)
        counts = torch.bincount(ids, minlength=len(self.codebook)).to(flat.dtype)  # (K,)
        codes = self.codebook[ids].reshape(z.shape)  # before the update: the codes used for the comparison
        if self.training:
            counts = self._update(flat, ids, counts)
        entropy = torch.special.entr(counts / counts.sum()).sum()
        return Quantized(
            z=codes + (z - z.detach()),
            ids=ids.reshape(z.shape[:-1]),
            commitment=self.commitment * (z - codes).square().sum() / len(z),
            perplexity=entropy.exp(),
            usage=(counts > 0).to(counts.dtype).mean(),
        )

    def skip(self) -> None:
        """Take part in a training step of several processes without vectors of this one."""
        if self.training and _distributed():
            nothing = self.codebook[:0]
            self._revive(nothing)
            self._update(nothing, torch.zeros(0, dtype=torch.long, device=nothing.device), torch.zeros_like(self.counts))

    def embed(self, ids: Tensor) -> Tensor:
        """The codes of ids (...): (..., d)."""
        return self.codebook[ids]

    def nearest(self, z: Tensor) -> Tensor:
        """Indices of the codes nearest to vectors: z (..., d) -> (...)."""
        return self._nearest(z.to(self.codebook.dtype).reshape(-1, z.shape[-1])).reshape(z.shape[:-1])

    def _nearest(self, flat: Tensor) -> Tensor:
        with torch.autocast(flat.device.type, enabled=False):  # half precision cannot separate close codes
            scores = flat @ self.codebook.T - self.codebook.square().sum(1) / 2  # (n, K): highest where |z - e|^2 is lowest
        return scores.argmax(1)

    @torch.no_grad()
    def _update(self, flat: Tensor, ids: Tensor, counts: Tensor) -> Tensor:
        """Update the codes and return the counts over all processes."""
        sums = torch.zeros_like(self.sums).index_add_(0, ids, flat)  # (K, d)
        if _distributed():
            both = torch.cat([sums, counts[:, None]], 1)  # (K, d + 1): a single message for both
            dist.all_reduce(both)
            sums, counts = both[:, :-1], both[:, -1]
            if not counts.any():  # no process has vectors
                return counts
        self.counts.lerp_(counts, 1 - self.decay)
        self.sums.lerp_(sums, 1 - self.decay)
        total = self.counts.sum()
        smoothed = (self.counts + self.smoothing) / (total + len(self.counts) * self.smoothing) * total
        self.codebook.copy_(self.sums / smoothed[:, None])
        return counts

    @torch.no_grad()
    def _revive(self, flat: Tensor) -> None:
        first = self.counts.sum() == 0
        dead = (self.counts < self.revive * self.counts.mean()) | first  # (K,), identical on all processes
        if not dead.any():
            return
        vectors = torch.empty_like(self.codebook)  # (K, d)
        if len(flat):
            repeats = -(-len(vectors) // len(flat))
            vectors = flat[
                torch.randperm(len(flat), device=flat.device).repeat(repeats)[: len(vectors)]
            ]  # distinct if possible
        if _distributed():
            source = torch.tensor(dist.get_rank() if len(flat) else dist.get_world_size(), device=flat.device)
            dist.all_reduce(source, dist.ReduceOp.MIN)  # the first process that has vectors
            if source == dist.get_world_size():
                return
            dist.broadcast(vectors, src=int(source))
        counts = torch.where(first, 1.0, self.counts.mean())  # the average count, so that a revived code has time to be used
        self.codebook.copy_(torch.where(dead[:, None], vectors, self.codebook))
        self.counts.copy_(torch.where(dead, counts, self.counts))
        self.sums.copy_(torch.where(dead[:, None], vectors * counts, self.sums))


def _distributed() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
