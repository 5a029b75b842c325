"""A language model that reads embeddings in place of words: any interleaving of prefixes and text."""

import copy
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Cache

from mmgen.conditioning.language_model import check_room, check_text, load_language_model
from mmgen.data.text import tokens_of
from mmgen.errors import UserError, check_at_least
from mmgen.modalities.features import mean_and_std

SHORT = 8  # tokens within which most captions and answers end


class Prompt(NamedTuple):
    """What a language model reads before it speaks, padded on the left.

    Args:
        embeddings: (b, t, d), in the units of the model's token embeddings.
        mask: (b, t) bool, True at real positions.
    """

    embeddings: Tensor
    mask: Tensor


class SoftWords(nn.Module):
    """Turns features into ``n`` soft words: mixtures of word embeddings that a language model reads as if they were words.

    ``p_i(w) = softmax_w(20 cos(h_i, E_w))`` and ``prefix_i = sum_w p_i(w) E_w``, with h = f(features) a network of one hidden
    layer and E_w the language model's own embedding of token w. A language model cannot read an arbitrary vector until it is
    trained to, and this one never is; its own words it reads from the first step.

    Args:
        features: c, the width of an item's features.
        n: soft words.
        embedding: d, width of the language model's embeddings.
        width: of the hidden layer.
        dropout: on the features and on the hidden layer.
        hard: let the language model read the likeliest word, while the gradient is that of the mixture (straight-through).
        members: networks f that are trained apart: in training each reads its share of a batch, in order; in eval mode h_i is
            the mean of theirs, each of length 1.

    Source: Tsimpoukelli et al. 2021, section 3, has f linear and ``prefix_i = h_i``. Of members, Lakshminarayanan et al.
        2017, arXiv 1612.01474.

    >>> words = SoftWords(features=5, n=2, embedding=16)
    >>> words(torch.zeros(3, 5), table=torch.randn(9, 16)).shape
    torch.Size([3, 2, 16])
    """

    temperature = 20.0
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        features: int,
        n: int,
        embedding: int,
        width: int = 768,
        dropout: float = 0.2,
        hard: bool = False,
        members: int = 1,
    ) -> None:
        super().__init__()
        check_at_least("members", members, 1)
        self.n, self.hard = n, hard
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("std", torch.ones(features))
        self.members = nn.ModuleList(
            nn.Sequential(
                nn.Dropout(dropout),
                nn.Linear(features, width),
                nn.LayerNorm(width),
                nn.GELU(),
                nn.Dropout(dropout),
                nn.Linear(width, n * embedding),
            )
            for _ in range(members)
        )

    @torch.no_grad()
    def standardise(self, features: Tensor) -> None:
        """Take the mean and standard deviation of every feature from training features (m, c)."""
        for kept, value in zip((self.mean, self.std), mean_and_std(features)):
            kept.copy_(value)

    def logits(self, features: Tensor, table: Tensor) -> Tensor:
        """Features (b, c) and word embeddings (v, d) -> the logits of p_i(w), (b, n, v)."""
        # a feature that is constant in training, such as a colour no picture has, must not drown the others when it is not
        standard = ((features - self.mean) / self.std).clamp(-10, 10)  # (b, c)
        if self.training:
            shares = standard.tensor_split(len(self.members))
            h = self._h(torch.cat([member(share) for member, share in zip(self.members, shares)]))  # (b, n, d)
        else:
            h = torch.stack([self._h(member(standard)) for member in self.members]).mean(0)  # (b, n, d)
        return self.temperature * h @ F.normalize(table, dim=-1).T

    def _h(self, outputs: Tensor) -> Tensor:
        """(b, n * d) -> (b, n, d), each of length 1."""
        return F.normalize(outputs.unflatten(1, (self.n, -1)), dim=-1)

    def mix(self, logits: Tensor, table: Tensor) -> Tensor:
        """The logits of p_i(w), (b, n, v), and word embeddings (v, d) -> soft words (b, n, d)."""
        words = logits.softmax(-1) @ table  # (b, n, d)
        return table[logits.argmax(-1)] + (words - words.detach()) if self.hard else words

    def forward(self, features: Tensor, table: Tensor) -> Tensor:
        """Features (b, c) and word embeddings (v, d) -> soft words (b, n, d)."""
        return self.mix(self.logits(features, table), table)


class PrefixLanguageModel(nn.Module):
    """A causal language model driven by embeddings, frozen unless it is to be trained.

    Args:
        language_model, dtype, weights: see `mmgen.conditioning.language_model.load_language_model`.

    >>> reader = PrefixLanguageModel("tiny", "fp32")
    >>> prompt = reader.prompt([[torch.zeros(2, reader.width), "a picture of"], ["hello"]])
    >>> prompt.embeddings.shape, prompt.mask.sum(1).tolist()
    (torch.Size([2, 14, 32]), [14, 5])
    """

    def __init__(self, language_model: str, dtype: str = "auto", weights: str = "frozen") -> None:
        super().__init__()
        self.model, self.tokenizer = load_language_model(language_model, dtype, weights)

    @property
    def embedding_table(self) -> Tensor:
        """(v, d), the embedding of every token."""
        return self.model.get_input_embeddings().get_parameter("weight")

    @property
    def width(self) -> int:
        """d, the width of an embedding."""
        return self.embedding_table.shape[1]

    def embed(self, ids: Tensor) -> Tensor:
        """Token ids (...) -> their embeddings (..., d)."""
        return self.model.get_input_embeddings()(ids)

    def tokens(self, text: str) -> Tensor:
        """Text -> token ids (t,), with nothing before or after; names of special tokens in it are plain text."""
        return self._ids(text, split_special_tokens=True)

    def template(self, text: str) -> Tensor:
        """The embeddings (t, d) of a text in which names such as ``<|im_start|>`` are the special tokens that they name."""
        return self.embed(self._ids(text, split_special_tokens=False))

    def prompt(self, items: Sequence[Sequence[Tensor | str]]) -> Prompt:
        """Lay the parts of each item one after another and pad the items on the left.

        Args:
            items: for each item its parts in order: prefix embeddings (n, d), or text.
        """
        rows = [torch.cat([self._part(part) for part in parts]) for parts in items]  # each (t_i, d)
        longest = max(len(row) for row in rows)
        lengths = torch.tensor([len(row) for row in rows], device=rows[0].device)
        embeddings = torch.stack([F.pad(row, (0, 0, longest - len(row), 0)) for row in rows])  # (b, t, d)
        mask = torch.arange(longest, device=lengths.device) >= longest - lengths[:, None]  # (b, t)
        return Prompt(embeddings, mask)

    def log_prob(self, prompt: Prompt, ids: Tensor, mask: Tensor) -> Tensor:
        """log p(ids | prompt) of each token: log softmax(LM([prompt; embed(ids)]))[id].

        Args:
            prompt: what comes before, b items.
            ids: (b, t) tokens, padded on the right.
            mask: (b, t) True at real tokens.

        Returns:
            (b, t) float32; 0 where ``mask`` is False.
        """
        seen = torch.cat([prompt.embeddings.to(self.model.dtype), self.embed(ids[:, :-1])], 1)  # (b, p + t - 1, d)
        # padding on the right is after everything that counts: only padding on the left needs a mask
        padded = {} if prompt.mask.all() else positions(torch.cat([prompt.mask, torch.ones_like(mask[:, :-1])], 1))
        logits = self.model(inputs_embeds=seen, use_cache=False, logits_to_keep=ids.shape[1], **padded).logits  # (b, t, v)
        return token_log_prob(logits, ids, mask)

    def generate(self, prompt: Prompt, **options: Any) -> list[str]:
        """Continue each prompt by transformers' own ``generate``, whose options all apply.

        Returns:
            The new text of each item, b x ``num_return_sequences`` of them.

        Raises:
            UserError: prompt and ``max_new_tokens`` are more than the language model reads.
        """
        if "max_new_tokens" in options:
            tokens, fix = prompt.embeddings.shape[1] + options["max_new_tokens"], "set a smaller max_tokens"
            check_room(self.model, tokens, "prompt and max_tokens", fix)
        longest = options.get("max_new_tokens", 0)
        # said, not merely left out: a model's own generation config may sample
        greedy = options.get("do_sample") is False and options.get("num_beams") in (None, 1)
        if not greedy or options.get("num_return_sequences", 1) > 1 or longest < 2 * SHORT:
            return self._texts(self._continued(prompt, **options))
        # transformers reads every item until the last has ended: the few long texts are written apart from the many short ones
        ids = self._continued(prompt, **{**options, "max_new_tokens": SHORT})
        texts, ended = self._texts(ids), (ids == self.tokenizer.eos_token_id).any(1)
        if not ended.all():
            rest = self._texts(self._continued(Prompt(prompt.embeddings[~ended], prompt.mask[~ended]), **options))
            for i, text in zip((~ended).nonzero()[:, 0].tolist(), rest):
                texts[i] = text
        return texts

    def _continued(self, prompt: Prompt, **options: Any) -> Tensor:
        """The new tokens (b, t) of each item."""
        # transformers makes the position of every token from the mask
        return self.model.generate(  # type: ignore[operator]  # transformers leaves it out of this type
            inputs_embeds=prompt.embeddings.to(self.model.dtype), attention_mask=prompt.mask.long(),
            pad_token_id=self.tokenizer.pad_token_id, eos_token_id=self.tokenizer.eos_token_id, **options,
        )  # fmt: skip

    def _texts(self, ids: Tensor) -> list[str]:
        """Token ids (b, t) as text, without what ends or pads it."""
        return [text.strip() for text in self.tokenizer.batch_decode(ids, skip_special_tokens=True)]

    def _ids(self, text: str, split_special_tokens: bool) -> Tensor:
        ids = tokens_of(self.tokenizer, check_text(text), split_special_tokens, add_special_tokens=False).input_ids
        return torch.tensor(ids, dtype=torch.long, device=self.embedding_table.device)

    def _part(self, part: Tensor | str) -> Tensor:
        table = self.embedding_table
        if isinstance(part, str):
            return self.embed(self.tokens(part))
        if part.ndim != 2 or part.shape[1] != self.width:
            fix = "turn features into words with SoftWords first"
            raise UserError("prefix", got=f"shape {tuple(part.shape)}", expected=f"(n, {self.width})", fix=fix)
        return part.to(table.device, table.dtype)


def positions(mask: Tensor, past: int = 0) -> dict[str, Tensor]:
    """What a language model must be told of padding: which tokens are real, and the place of each after the first ``past``.

    >>> positions(torch.tensor([[True, True, False, True]]), past=2)["position_ids"]
    tensor([[1, 2]])
    """
    return {"attention_mask": mask.long(), "position_ids": (mask.long().cumsum(1) - 1).clamp(min=0)[:, past:]}


def token_log_prob(logits: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
    """log softmax(logits)[id] of each token, and 0 where there is none.

    Args:
        logits: (b, t, v), of each position's own token.
        ids: (b, t) tokens.
        mask: (b, t) True at real tokens.

    Returns:
        (b, t) float32.

    >>> token_log_prob(torch.zeros(1, 2, 4), torch.tensor([[1, 3]]), torch.tensor([[True, False]])).exp()
    tensor([[0.2500, 1.0000]])
    """
    chosen = -F.cross_entropy(logits[mask].float(), ids[mask], reduction="none")
    return torch.zeros(mask.shape, device=ids.device).masked_scatter(mask, chosen)


def repeated(cache: Cache, rows: int) -> Cache:
    """Each row of a cache ``rows`` times in a row; the cache itself stays as it is.

    A forward pass lets a layer of the cache hold longer tensors rather than writes to those it holds, so copies of the layers
    can share them.
    """
    other = copy.copy(cache)
    other.layers = [copy.copy(layer) for layer in cache.layers]
    other.batch_repeat_interleave(rows)
    return other
