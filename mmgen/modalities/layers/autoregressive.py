"""Causal transformer and sampler, shared by all models that generate tokens autoregressively."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmgen.distributions import draw
from mmgen.errors import UserError, check_at_least, check_one_of, check_share
from mmgen.modalities.layers.transformer import Block, Cache, causal_mask, check_heads, initialise, rotary_angles

LARGEST = 1e4  # largest factor of logits, which would otherwise overflow


class CausalTransformer(nn.Module):
    """Decoder-only transformer p(x_{i+1} | x_1, ..., x_i) with tied input and output embeddings.

    Padding may be on either side: it is never attended to, and positions count real tokens only.

    Args:
        vocabulary: number of tokens v.
        dim: width d.
        depth: number of layers.
        heads: number of attention heads; d is a multiple of it, an even one for rotary positions.
        length: longest sequence, prefix included; needed for learned positions only.
        positions: "rotary" (relative, any length) or "learned" (absolute, one vector each).
        dropout: dropout rate.

    Raises:
        UserError: the sizes are incompatible, or a number is out of its range.

    >>> model = CausalTransformer(vocabulary=10, dim=16, depth=2, heads=2)
    >>> model(torch.tensor([[1, 2, 3]])).shape
    torch.Size([1, 3, 10])
    """

    def __init__(
        self,
        vocabulary: int,
        dim: int,
        depth: int,
        heads: int,
        length: int | None = None,
        positions: str = "rotary",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        check_one_of("positions", positions, ("rotary", "learned"))
        check_heads(dim, heads, rotary=positions == "rotary")
        check_at_least("depth", depth, 1)
        check_share("dropout", dropout)
        if positions == "learned" and length is None:
            raise UserError("length", got=length, expected="a whole number for learned positions", fix="set length=256")
        self.length, self.head_dim = length, dim // heads
        self.embed = nn.Embedding(vocabulary, dim)
        self.positions = nn.Embedding(length, dim) if positions == "learned" and length is not None else None
        self.blocks = nn.ModuleList(Block(dim, heads, dropout) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)
        initialise(self, depth)

    def forward(
        self, inputs: Tensor, prefix: Tensor | None = None, mask: Tensor | None = None, cache: Cache | None = None
    ) -> Tensor:
        """Compute the logits of the token after each position.

        Args:
            inputs: token ids (b, t), or embeddings (b, t, d).
            prefix: embeddings (b, p, d) of a condition, placed before the inputs.
            mask: (b, t) bool, True at real inputs; None: all are real. The prefix is always real.
            cache: cache of earlier positions to attend to, extended by these.

        Returns:
            (b, p + t, v); entry p - 1 predicts the first input from the prefix alone.

        Raises:
            UserError: there are more than ``length`` positions, with learned positions.
        """
        return self.logits(self.features(inputs, prefix, mask, cache))

    def logits(self, features: Tensor, tokens: slice = slice(None)) -> Tensor:
        """Compute the logits (..., v) of all tokens, or of a slice of them, from features (..., d)."""
        return F.linear(features, self.embed.weight[tokens])

    def features(
        self, inputs: Tensor, prefix: Tensor | None = None, mask: Tensor | None = None, cache: Cache | None = None
    ) -> Tensor:
        """Compute the features (b, p + t, d) behind the logits of `forward`, with the same arguments."""
        x = inputs if inputs.is_floating_point() else self.embed(inputs)  # (b, t, d)
        if prefix is not None:
            x = torch.cat([prefix.to(x.dtype), x], 1)  # (b, p + t, d)
            mask = None if mask is None else F.pad(mask, (prefix.shape[1], 0), value=True)  # (b, p + t)
        past = 0 if cache is None else cache.length
        mask = self._mask_of_past_and_present(mask, cache, x)  # (b, s), s = past + p + t; or None
        if mask is None:
            positions = torch.arange(past, past + x.shape[1], device=x.device)[None]  # (1, p + t)
        else:
            positions = (mask.cumsum(1) - 1).clamp(min=0)[:, past:]  # (b, p + t)
        attend, angles = causal_mask(mask, past, x.shape[1], x.device), None
        if self.positions is None:
            angles = rotary_angles(positions, self.head_dim, x.dtype)  # (b or 1, 1, p + t, d/2h) each
        else:
            if past + x.shape[1] > self.positions.num_embeddings:
                fix = "cut the input, or train with a greater length"
                raise UserError("sequence", got=f"{past + x.shape[1]} positions", expected=f"<= {self.length}", fix=fix)
            x = x + self.positions(positions)  # (b, p + t, d)
        x = self.dropout(x)
        for layer, block in enumerate(self.blocks):
            x = block(x, attend, True, angles, cache, layer)  # (b, p + t, d)
        if cache is not None:
            cache.length, cache.mask = past + x.shape[1], mask
        return self.norm(x)

    @staticmethod
    def _mask_of_past_and_present(mask: Tensor | None, cache: Cache | None, x: Tensor) -> Tensor | None:
        if cache is None or cache.length == 0 or (mask is None and cache.mask is None):
            return mask
        past = x.new_ones(len(x), cache.length, dtype=torch.bool) if cache.mask is None else cache.mask
        present = x.new_ones(x.shape[:2], dtype=torch.bool) if mask is None else mask
        return torch.cat([past, present], 1)


@torch.no_grad()
def sample(
    model: CausalTransformer,
    prompt: Tensor,
    length: int,
    *,
    mask: Tensor | None = None,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    guidance: float = 1.0,
    unconditional: Tensor | None = None,
    tokens: slice = slice(None),
    stop: int | None = None,
    pad: int = 0,
    generator: torch.Generator | None = None,
    cached: bool = True,
) -> Tensor:
    """Continue each prompt by up to ``length`` sampled tokens.

    With classifier-free guidance g the logits are u + g (c - u), c those given the prompt and u those given
    ``unconditional``; g = 1 disables guidance.

    Args:
        model: the transformer.
        prompt: token ids (b, p), or embeddings (b, p, d); p >= 1.
        length: largest number of new tokens.
        mask: (b, p) bool, True at real positions of the prompt.
        temperature: divisor of the logits; 0 for greedy decoding.
        top_k: sample from the k likeliest tokens.
        top_p: sample from the smallest set of likeliest tokens with at least this probability, in (0, 1].
        guidance: classifier-free guidance scale g; 1 disables it.
        unconditional: the prompt without its condition, of the same shape and mask.
        tokens: slice, without a step, of the tokens that may be drawn, such as those of one modality.
        stop: token that ends a sequence.
        pad: token written after ``stop``.
        generator: makes the draws reproducible.
        cached: cache keys and values; without it, every step recomputes the whole sequence, for the same result.

    Returns:
        (b, n) new token ids, n <= ``length``; fewer once all sequences have ended.

    Raises:
        UserError: a setting is out of range, or guidance is used without ``unconditional``.

    Source: Ho and Salimans 2022 (guidance); Holtzman et al. 2020 (top-p).
    """
    check_sampling(temperature, top_k, top_p)
    check_at_least("length", length, 1)
    if prompt.shape[1] == 0:
        raise UserError("prompt", got="no tokens", expected="at least one", fix="begin with the BOS token or a prefix")
    check_guidance(guidance)
    if guidance != 1.0:
        if unconditional is None or unconditional.shape != prompt.shape:
            got = "none" if unconditional is None else f"shape {tuple(unconditional.shape)}"
            expected = f"an unconditional prompt of shape {tuple(prompt.shape)}"
            raise UserError(f"guidance={guidance}", got=got, expected=expected, fix="give one, or set guidance=1")
        prompt = torch.cat([prompt, unconditional])  # (2 b, p, ...), both in one pass
        mask = None if mask is None else torch.cat([mask, mask])
    sequence = prompt if prompt.is_floating_point() else model.embed(prompt)  # (b', p, d), grows when uncached
    rows, inputs, cache = torch.arange(len(prompt), device=prompt.device), sequence, None
    last = torch.full_like(rows, prompt.shape[1] - 1)  # index of each row's last real position
    if mask is not None:
        last = (mask * torch.arange(1, prompt.shape[1] + 1, device=prompt.device)).argmax(1)
    if cached:
        cache = Cache(prompt.shape[1] + length)
    new, ended = [], rows.new_zeros(len(prompt) // (1 if guidance == 1.0 else 2), dtype=torch.bool)
    for _ in range(length):
        features = model.features(inputs, mask=mask, cache=cache)  # (b', t, d)
        logits = model.logits(features[rows, last], tokens).float()  # (b', v)
        if guidance != 1.0:
            conditional, free = logits.chunk(2)
            logits = free + guidance * (conditional - free)  # (b, v)
        token = choose(logits, temperature, top_k, top_p, generator) + (tokens.start or 0)  # (b,)
        token = token.masked_fill(ended, pad)
        new.append(token)
        if stop is not None:
            ended = ended | (token == stop)
            if ended.all():
                break
        step = model.embed(token if guidance == 1.0 else token.repeat(2))[:, None].to(sequence.dtype)  # (b', 1, d)
        if cached:
            inputs, mask, last = step, None, torch.zeros_like(last)
        else:
            inputs = torch.cat([inputs, step], 1)  # (b', t + 1, d)
            mask = None if mask is None else F.pad(mask, (0, 1), value=True)
            last = torch.full_like(last, inputs.shape[1] - 1)
    return torch.stack(new, 1)  # (b, n)


def choose(
    logits: Tensor, temperature: float, top_k: int | None, top_p: float | None, generator: torch.Generator | None
) -> Tensor:
    """Draw one token (b,) from each row of logits (b, v)."""
    if temperature == 0:
        return logits.argmax(-1)
    return draw(keep_likeliest(logits / temperature, top_k, top_p).softmax(-1), generator=generator).squeeze(1)


def keep_likeliest(logits: Tensor, top_k: int | None = None, top_p: float | None = None) -> Tensor:
    """Set all logits (b, v) but those of the likeliest tokens to minus infinity.

    >>> keep_likeliest(torch.tensor([[0.5, 0.3, 0.2]]).log(), top_p=0.7).isfinite().tolist()
    [[True, True, False]]
    """
    if top_k is not None and top_k < logits.shape[-1]:
        kept = logits.topk(top_k, -1)
        logits = torch.full_like(logits, -math.inf).scatter(-1, kept.indices, kept.values)
    if top_p is not None and top_p < 1:
        ordered, order = logits.sort(-1, descending=True)  # (b, v)
        before = ordered.softmax(-1).cumsum(-1) - ordered.softmax(-1)  # probability of all likelier tokens
        dropped = before >= top_p
        dropped[..., 0] = False
        logits = logits.masked_fill(torch.zeros_like(dropped).scatter(-1, order, dropped), -math.inf)
    return logits


def check_sampling(temperature: float, top_k: int | None, top_p: float | None) -> None:
    """Check that the sampling settings are in range."""
    check_at_least("temperature", temperature, 0)
    if 0 < temperature < 1 / LARGEST:
        fix = "use 0 for the likeliest token"
        raise UserError("temperature", got=temperature, expected=f"0, or {1 / LARGEST:g} or more", fix=fix)
    if top_k is not None:
        check_at_least("top_k", top_k, 1)
    if top_p is not None and not 0 < top_p <= 1:
        raise UserError("top_p", got=top_p, expected="a number above 0 and at most 1", fix="set top_p=0.9")


def check_guidance(guidance: float) -> None:
    """Check that a classifier-free guidance scale is in range."""
    if not abs(guidance) <= LARGEST:
        raise UserError("guidance", got=guidance, expected=f"at most {LARGEST:g}", fix="use 3 for example")
