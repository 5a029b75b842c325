"""Pseudo self-attention: a condition is projected to additional keys and values in every layer of a language model."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import DynamicCache, PretrainedConfig

from mmgen.conditioning.language_model import CACHE, check_room, check_self_attention
from mmgen.conditioning.prefix import PrefixLanguageModel, Prompt, positions, token_log_prob
from mmgen.errors import UserError, check_at_least, counted


class PseudoSelfAttention(nn.Module):
    """Projection of a condition X (b, s, c) to keys and values that precede those of the text Y in every self-attention.

    ``softmax((Y W_q) [X U_k; Y W_k]^T / sqrt(d)) [X U_v; Y W_v]``, with new U_k and U_v in every layer and all else from the
    language model, which may be frozen or trained. The projections are passed as the past in its cache, so any causal model
    with self-attention in all layers will do. A text attends to every position of the condition; its own positions count from
    0, as without a condition. X U_k has no positional encoding: to a rotary model, the whole condition is at the text's first
    position, and any order must be encoded in X. (ALiBi counts positions in the cache: the condition precedes the text, in
    order.)

    U is initialised small: keys and values have a standard deviation of 0.02 where X has 1. The condition then takes little
    attention from the text and adds almost nothing; with U = 0, X would get no gradient. SmolLM2-135M's loss on four English
    sentences, 4.30 nats a token, became 4.42, 4.08, 4.58 and 6.27 with 1, 4, 16 and 64 random positions. With a standard
    deviation of 1, close to that of the text's own keys, it became 6.8, 9.3, 11.0 and 12.5. Pool a long condition.

    Args:
        language_model_config: configuration of the model that will read the condition.
        features: width c of the condition; its values should have a variance of about 1, as after a LayerNorm.

    Raises:
        UserError: a layer of the model is not self-attention, or the width is below 1.

    Source: Ziegler et al. 2019, Encoder-Agnostic Adaptation for Conditional Language Generation, arXiv 1908.06938, where X is
        the output of an encoder; here X may be any features.

    >>> reader = PrefixLanguageModel("tiny", "fp32")
    >>> attention = PseudoSelfAttention(reader.model.config, features=5)
    >>> [tuple(layer.keys.shape) for layer in attention.cache(torch.zeros(3, 7, 5)).layers]
    [(3, 2, 7, 16), (3, 2, 7, 16)]
    >>> prompt, ids = reader.prompt([["A picture of"]]), reader.tokens(" a dog")[None]
    >>> attention.log_prob(reader, torch.zeros(1, 7, 5), prompt, ids, torch.ones_like(ids, dtype=torch.bool)).shape
    torch.Size([1, 6])
    """

    def __init__(self, language_model_config: PretrainedConfig, features: int) -> None:
        super().__init__()
        check_at_least("features", features, 1)
        config = language_model_config.get_text_config(decoder=True)
        layers = check_self_attention(config)
        self.config, self.features = config, features
        self.window = min((layer.sliding_window for layer in layers if layer.is_sliding), default=math.inf)
        self.heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        width = self.heads * head_dim
        self.keys = nn.ModuleList(nn.Linear(features, width, bias=False) for _ in layers)
        self.values = nn.ModuleList(nn.Linear(features, width, bias=False) for _ in layers)
        for projection in [*self.keys, *self.values]:
            nn.init.normal_(projection.weight, std=0.02 / features**0.5)

    def cache(self, condition: Tensor, mask: Tensor | None = None, dtype: torch.dtype | None = None) -> DynamicCache:
        """Compute X U_k and X U_v of every layer as a cache for the language model.

        Args:
            condition: (b, s, c).
            mask: (b, s) bool, True at real positions; None: all are real. Values at masked positions have no effect.
            dtype: dtype of the language model; None: that of U.

        Raises:
            UserError: condition or mask have another shape, or an item has no real position.
        """
        self._check(condition, mask)
        if mask is not None:
            condition = condition.masked_fill(~mask[..., None], 0)
        condition = condition.to(next(self.parameters()).dtype)  # (b, s, c)
        cache = DynamicCache(config=self.config)
        for i, pair in enumerate(zip(self.keys, self.values)):
            keys, values = (u(condition).to(dtype).unflatten(2, (self.heads, -1)).transpose(1, 2) for u in pair)
            cache.update(keys, values, i)  # each (b, heads, s, d)
        return cache

    @torch.no_grad()
    def imitate(self, pairs: Iterable[tuple[Tensor, Sequence[tuple[Tensor, Tensor]]]], ridge: float = 0.01) -> None:
        """Initialise U by ridge regression to keys and values that the language model itself computes.

        ``U_k = (sum X^T X + ridge m I)^-1 sum X^T K`` over m positions in every layer, and likewise for values.

        Args:
            pairs: X (m, c) with the keys and values of each layer at the same positions, each (m, heads * d); one or more.
            ridge: regularisation, added to the mean square of every feature of X, which is about 1; above 0.

        Raises:
            UserError: there are no pairs, or the ridge is 0 or less.
        """
        if not ridge > 0:
            raise UserError("ridge", got=ridge, expected="a number above 0", fix="use 0.01 for example")
        m, squares, products = 0, torch.zeros(()), torch.zeros(())
        for condition, layers in pairs:
            x = condition.double()  # (m, c)
            made = torch.cat([part for pair in layers for part in pair], 1).double()  # (m, layers * 2 * heads * d)
            m, squares, products = m + len(x), squares + x.T @ x, products + x.T @ made
        if m == 0:
            raise UserError("keys and values to imitate", got="none", expected="one or more", fix="give a batch at least")
        squares.diagonal().add_(ridge * m)
        weights = torch.linalg.solve(squares, products).T.chunk(2 * len(self.keys))  # each (heads * d, c)
        for projection, weight in zip([p for pair in zip(self.keys, self.values) for p in pair], weights):
            projection.get_parameter("weight").copy_(weight)

    def past(
        self, condition: Tensor, mask: Tensor | None, text: Tensor, dtype: torch.dtype | None = None, more: int = 0
    ) -> dict[str, Any]:
        """Keyword arguments for reading a text under a condition, ``model(input_ids=ids, **past(...))``.

        ``model.generate(input_ids=ids, **past(...))`` continues the text. Make a new past for each call, as it extends the
        cache.

        Args:
            condition, mask, dtype: see `cache`.
            text: (b, t) bool, True at the real tokens of the text.
            more: number of tokens that will be read after the text.

        Raises:
            UserError: see `cache`; or the text has another batch size, or is so long that the condition leaves a sliding
                window.
        """
        cache = self.cache(condition, mask, dtype)
        b, s, _ = condition.shape
        if len(text) != b:
            expected = f"{len(text)}, one for each text"
            raise UserError("condition", got=counted(b, "item"), expected=expected, fix="repeat the condition")
        if (total := s + text.shape[1] + more) > self.window:
            expected, fix = f"at most {self.window}, the model's sliding window", "shorten the text or pool the condition"
            raise UserError("positions of condition and text", got=total, expected=expected, fix=fix)
        seen = torch.cat([text.new_ones(b, s) if mask is None else mask, text], 1)  # (b, s + t)
        return {CACHE: cache, "use_cache": True, **positions(text), "attention_mask": seen.long()}

    def log_prob(
        self,
        reader: PrefixLanguageModel,
        condition: Tensor,
        prompt: Prompt,
        ids: Tensor,
        mask: Tensor,
        condition_mask: Tensor | None = None,
    ) -> Tensor:
        """Log-probability of each token, log p(ids | condition, prompt).

        Args:
            reader: the language model.
            condition, condition_mask: see `cache`.
            prompt: b prompts of at least one token.
            ids: (b, t) tokens, padded on the right.
            mask: (b, t) True at real tokens.

        Returns:
            (b, t) float32; 0 where ``mask`` is False.

        Raises:
            UserError: see `past`; or a prompt is empty, or the model uses gradient checkpointing, which drops the past.
        """
        _check_prompt(prompt)
        if reader.model.training and any(getattr(part, "gradient_checkpointing", False) for part in reader.model.modules()):
            fix = "call gradient_checkpointing_disable()"
            raise UserError("language model", got="gradient checkpointing", expected="a model that reads a cache", fix=fix)
        seen = torch.cat([prompt.embeddings.to(reader.model.dtype), reader.embed(ids[:, :-1])], 1)  # (b, p + t - 1, d)
        text = F.pad(prompt.mask, (0, ids.shape[1] - 1), value=True)  # (b, p + t - 1); padding comes last
        past = self.past(condition, condition_mask, text, reader.model.dtype)
        logits = reader.model(inputs_embeds=seen, logits_to_keep=ids.shape[1], **past).logits  # (b, t, v)
        return token_log_prob(logits, ids, mask)

    def generate(
        self,
        reader: PrefixLanguageModel,
        condition: Tensor,
        prompt: Prompt,
        condition_mask: Tensor | None = None,
        max_new_tokens: int = 20,
        **options: Any,
    ) -> list[str]:
        """Continue each prompt under its condition with transformers' ``generate``, all of whose options apply.

        Args:
            reader, condition, prompt, condition_mask: see `log_prob`.
            max_new_tokens: largest number of new tokens.

        Returns:
            The new text of each item, b x ``num_return_sequences`` of them.

        Raises:
            UserError: see `log_prob`.
        """
        _check_prompt(prompt)
        fix = "set a smaller max_tokens"
        check_room(reader.model, prompt.mask.shape[1] + max_new_tokens, "prompt and max_tokens", fix)
        past = self.past(condition, condition_mask, prompt.mask, reader.model.dtype, more=max_new_tokens - 1)
        # transformers repeats all but the cache for beams and samples
        past[CACHE].batch_repeat_interleave(max(options.get(k, 1) for k in ("num_beams", "num_return_sequences")))
        # it expects the embeddings of the whole sequence, and reads those beyond the cache
        whole = F.pad(prompt.embeddings.to(reader.model.dtype), (0, 0, condition.shape[1], 0))  # (b, s + p, d)
        ids = reader.model.generate(  # type: ignore[operator]  # transformers leaves it out of this type
            inputs_embeds=whole, max_new_tokens=max_new_tokens, pad_token_id=reader.tokenizer.pad_token_id,
            eos_token_id=reader.tokenizer.eos_token_id, **past, **options,
        )  # fmt: skip
        return [text.strip() for text in reader.tokenizer.batch_decode(ids, skip_special_tokens=True)]

    def _check(self, condition: Tensor, mask: Tensor | None) -> None:
        shape = tuple(condition.shape)
        if len(shape) != 3 or shape[2] != self.features:
            fix = "give (b, s, c), or (b, 1, c) for one vector an item"
            raise UserError("condition", got=f"shape {shape}", expected=f"(b, s, {self.features})", fix=fix)
        if mask is not None and (mask.shape != shape[:2] or mask.dtype != torch.bool):
            got, expected = f"{mask.dtype} of shape {tuple(mask.shape)}", f"torch.bool of shape {shape[:2]}"
            raise UserError("mask of the condition", got=got, expected=expected, fix="give True at each real position")
        empty = [] if mask is None else (~mask.any(1)).nonzero()[:, 0].tolist()
        if shape[1] == 0 or empty:
            got, fix = f"none in item {empty[0]}" if empty else f"none in shape {shape}", "give it a learned vector for none"
            raise UserError("positions of the condition", got=got, expected="at least one an item", fix=fix)


def _check_prompt(prompt: Prompt) -> None:
    if prompt.mask.shape[1] == 0 or not prompt.mask[:, -1].all():
        got = f"none at the end of a mask of shape {tuple(prompt.mask.shape)}"
        raise UserError("tokens of the prompt", got=got, expected="at least one an item", fix="start with a token of its own")
