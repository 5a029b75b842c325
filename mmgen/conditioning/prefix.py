"""Language model driven by embeddings: prompts that interleave prefix embeddings and text in any order."""

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

SHORT = 8  # length in tokens that most captions and answers do not exceed


class Prompt(NamedTuple):
    """Prompt of a language model, padded on the left.

    Args:
        embeddings: (b, t, d), on the scale of the model's token embeddings.
        mask: (b, t) bool, True at real positions.
    """

    embeddings: Tensor
    mask: Tensor


class SoftWords(nn.Module):
    """Map from features to ``n`` soft words: mixtures of word embeddings that a language model reads like words.

    ``p_i(w) = softmax_w(20 cos(h_i, E_w))`` and ``prefix_i = sum_w p_i(w) E_w``, with h = f(features) a network of one hidden
    layer and E_w the language model's embedding of token w. The frozen language model is not trained to read arbitrary
    vectors, but it reads mixtures of its own words from the first step.

    Args:
        features: width c of an item's features.
        n: number of soft words.
        embedding: width d of the language model's embeddings.
        width: width of the hidden layer.
        dropout: dropout rate of the features and of the hidden layer.
        hard: use the embedding of the likeliest word, with the gradient of the mixture (straight-through).
        members: number of networks f in an ensemble. In training, each gets its own share of a batch; in eval mode, h_i is the
            mean of the members' unit vectors; see also `drawn`.

    Source: Tsimpoukelli et al. 2021, section 3, with f linear and ``prefix_i = h_i``; Lakshminarayanan et al. 2017, arXiv
        1612.01474, for the ensemble.

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
        """Set the mean and standard deviation of every feature from training features (m, c)."""
        for buffer, value in zip((self.mean, self.std), mean_and_std(features)):
            buffer.copy_(value)

    def logits(self, features: Tensor, table: Tensor) -> Tensor:
        """Compute the logits of p_i(w), (b, n, v), from features (b, c) and word embeddings (v, d)."""
        standard = self._standard(features)  # (b, c)
        if self.training:
            shares = standard.tensor_split(len(self.members))
            h = self._h(torch.cat([member(share) for member, share in zip(self.members, shares)]))  # (b, n, d)
        else:
            h = torch.stack([self._h(member(standard)) for member in self.members]).mean(0)  # (b, n, d)
        return self.temperature * h @ F.normalize(table, dim=-1).T

    def drawn(self, features: Tensor, table: Tensor, m: int) -> Tensor:
        """Soft words by ``m`` networks, the members in equal shares with units dropped at random.

        A network drops the same units for all items, so what it says of an item does not depend on the others.

        Args:
            features: (b, c).
            table: word embeddings (v, d).
            m: number of networks.

        Returns:
            (m, b, n, d).

        Source: dropout as a draw from a posterior over networks, Gal and Ghahramani 2016, arXiv 1506.02142.
        """
        shares = self._standard(features).expand(m, -1, -1).tensor_split(len(self.members))  # each (k, b, c)
        h = torch.cat([self._h(_thinned(member, share)) for member, share in zip(self.members, shares)])  # (m, b, n, d)
        return self.mix(self.temperature * h @ F.normalize(table, dim=-1).T, table)

    def _standard(self, features: Tensor) -> Tensor:
        # clamped: a feature that was constant in training, such as an unused colour, must not outweigh all others later
        return ((features - self.mean) / self.std).clamp(-10, 10)  # (b, c)

    def _h(self, outputs: Tensor) -> Tensor:
        """Reshape (..., n * d) to unit vectors (..., n, d)."""
        return F.normalize(outputs.unflatten(-1, (self.n, -1)), dim=-1)

    def mix(self, logits: Tensor, table: Tensor) -> Tensor:
        """Compute soft words (b, n, d) from the logits of p_i(w), (b, n, v), and word embeddings (v, d)."""
        words = logits.softmax(-1) @ table  # (b, n, d)
        return table[logits.argmax(-1)] + (words - words.detach()) if self.hard else words

    def forward(self, features: Tensor, table: Tensor) -> Tensor:
        """Compute soft words (b, n, d) from features (b, c) and word embeddings (v, d)."""
        return self.mix(self.logits(features, table), table)


def _thinned(member: nn.Module, x: Tensor) -> Tensor:
    """Outputs of ``k`` networks for b items, (k, b, c) -> (k, b, d): each drops its own units, the same for all items."""
    for layer in member.children():
        x = x * F.dropout(torch.ones_like(x[:, :1]), layer.p) if isinstance(layer, nn.Dropout) else layer(x)
    return x


class PrefixLanguageModel(nn.Module):
    """Causal language model that reads prompts of embeddings, frozen or to be trained.

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
        """Embeddings of all tokens, (v, d)."""
        return self.model.get_input_embeddings().get_parameter("weight")

    @property
    def width(self) -> int:
        """Width d of an embedding."""
        return self.embedding_table.shape[1]

    def embed(self, ids: Tensor) -> Tensor:
        """Embeddings (..., d) of token ids (...)."""
        return self.model.get_input_embeddings()(ids)

    def tokens(self, text: str) -> Tensor:
        """Tokenise a text to ids (t,), without adding special tokens and with their names in the text read as plain text."""
        return self._ids(text, split_special_tokens=True)

    def template(self, text: str) -> Tensor:
        """Embeddings (t, d) of a text in which names such as ``<|im_start|>`` denote special tokens."""
        return self.embed(self._ids(text, split_special_tokens=False))

    def prompt(self, items: Sequence[Sequence[Tensor | str]]) -> Prompt:
        """Concatenate the parts of each item and pad the items on the left.

        Args:
            items: the parts of each item in order: prefix embeddings (n, d), or text.
        """
        rows = [torch.cat([self._part(part) for part in parts]) for parts in items]  # each (t_i, d)
        longest = max(len(row) for row in rows)
        lengths = torch.tensor([len(row) for row in rows], device=rows[0].device)
        embeddings = torch.stack([F.pad(row, (0, 0, longest - len(row), 0)) for row in rows])  # (b, t, d)
        mask = torch.arange(longest, device=lengths.device) >= longest - lengths[:, None]  # (b, t)
        return Prompt(embeddings, mask)

    def log_prob(self, prompt: Prompt, ids: Tensor, mask: Tensor) -> Tensor:
        """Log-probability of each token given a prompt, ``log softmax(LM([prompt; embed(ids)]))[id]``.

        Args:
            prompt: b prompts.
            ids: (b, t) tokens, padded on the right.
            mask: (b, t) True at real tokens.

        Returns:
            (b, t) float32; 0 where ``mask`` is False.
        """
        seen = torch.cat([prompt.embeddings.to(self.model.dtype), self.embed(ids[:, :-1])], 1)  # (b, p + t - 1, d)
        # padding on the right follows all tokens that count, so only padding on the left needs a mask
        padded = {} if prompt.mask.all() else positions(torch.cat([prompt.mask, torch.ones_like(mask[:, :-1])], 1))
        logits = self.model(inputs_embeds=seen, use_cache=False, logits_to_keep=ids.shape[1], **padded).logits  # (b, t, v)
        return token_log_prob(logits, ids, mask)

    def generate(self, prompt: Prompt, **options: Any) -> list[str]:
        """Continue each prompt with transformers' ``generate``, all of whose options apply.

        Returns:
            The new text of each item, b x ``num_return_sequences`` of them.

        Raises:
            UserError: prompt and ``max_new_tokens`` exceed the model's context.
        """
        if "max_new_tokens" in options:
            tokens, fix = prompt.embeddings.shape[1] + options["max_new_tokens"], "set a smaller max_tokens"
            check_room(self.model, tokens, "prompt and max_tokens", fix)
        longest = options.get("max_new_tokens", 0)
        # an explicit do_sample=False is required, as the model's generation config may sample by default
        greedy = options.get("do_sample") is False and options.get("num_beams") in (None, 1)
        if not greedy or options.get("num_return_sequences", 1) > 1 or longest < 2 * SHORT:
            return self.texts(self.continued(prompt, **options))
        # transformers continues all items until the last one ends: long texts are generated apart from the many short ones
        ids = self.continued(prompt, **{**options, "max_new_tokens": SHORT})
        texts, ended = self.texts(ids), (ids == self.tokenizer.eos_token_id).any(1)
        if not ended.all():
            rest = self.texts(self.continued(Prompt(prompt.embeddings[~ended], prompt.mask[~ended]), **options))
            for i, text in zip((~ended).nonzero()[:, 0].tolist(), rest):
                texts[i] = text
        return texts

    def continued(self, prompt: Prompt, **options: Any) -> Tensor:
        """Generate tokens (b, t) that follow each prompt, without the prompt itself."""
        # transformers computes the position of every token from the mask
        return self.model.generate(  # type: ignore[operator]  # transformers leaves it out of this type
            inputs_embeds=prompt.embeddings.to(self.model.dtype), attention_mask=prompt.mask.long(),
            pad_token_id=self.tokenizer.pad_token_id, eos_token_id=self.tokenizer.eos_token_id, **options,
        )  # fmt: skip

    def texts(self, ids: Tensor) -> list[str]:
        """Decode token ids (b, t) to text without end and padding tokens."""
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
    """Attention mask of all tokens, and position ids of those after the first ``past``, from a padding mask (b, t).

    >>> positions(torch.tensor([[True, True, False, True]]), past=2)["position_ids"]
    tensor([[1, 2]])
    """
    return {"attention_mask": mask.long(), "position_ids": (mask.long().cumsum(1) - 1).clamp(min=0)[:, past:]}


def token_log_prob(logits: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
    """Log-probability of each token, ``log softmax(logits)[id]``, and 0 at padding.

    Args:
        logits: (b, t, v), logits of the token at each position.
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
    """Copy a cache with each row repeated ``rows`` times; the cache itself is not changed.

    A forward pass replaces the tensors of a cache layer by longer ones instead of writing to them, so shallow copies of the
    layers can share them.
    """
    other = copy.copy(cache)
    other.layers = [copy.copy(layer) for layer in cache.layers]
    other.batch_repeat_interleave(rows)
    return other
