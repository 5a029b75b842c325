"""Attributes to steer texts toward: each returns the log-probability that a partial text has the attribute."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mmgen.conditioning.language_model import check_text
from mmgen.data.text import tokens_of
from mmgen.errors import UserError, check_at_least

WORDS = 32  # words in a forward pass
LONGEST = 32  # largest number of tokens of a word


class State(NamedTuple):
    """State of a batch of partial texts.

    Args:
        ids: (b, t) tokens so far, padded on the left.
        log_p: (b, v) log-probabilities of the next token; None to score the text so far only.
        hidden: (b, d) mean of the language model's last hidden states over the text so far and, for an attribute that looks
            ahead, over the expected next tokens; None where no attribute reads it.
    """

    ids: Tensor
    log_p: Any  # Tensor or None: an attribute reads only what it asks for
    hidden: Any = None


class Attribute(Protocol):
    """Attribute to steer toward.

    An attribute that needs the tokens only, with `State.log_p` None, also has ``from_text = True``: `Fudge` then scores each
    candidate token without a pass through the language model. An attribute that is defined for whole texts only also has
    ``whole = True``: a ranking scores each text once, as a whole.
    """

    @property
    def horizon(self) -> int | None:
        """Number of expected tokens that it looks ahead; None: it does not read hidden states."""
        ...

    def log_prob(self, state: State) -> Tensor:
        """log p(attribute | texts), (b,), up to a constant."""
        ...


class BagOfWords:
    """Attribute: the next word is one of a bag, ``log p(a | x) = log sum_v p(v | x) max_w weight_w p(the rest of w | v)``.

    The sum is over the next tokens v of the bag's words w: the first token of a word, or, where the text ends with the
    beginning of a word, the token after it. The probability of the rest of the word is the language model's, given only the
    word's own tokens, so a first token shared by many words, such as " re", counts little. Words are tokenised as after a
    space.

    Args:
        model, tokenizer: see `mmgen.conditioning.language_model.load_language_model`.
        words: one or more words, or a map word -> weight above 0.

    Raises:
        UserError: there are no words, a weight is not above 0, or the tokenizer cannot represent a word.

    Source: Dathathri et al. 2020, section 4.2, who drop words of more than one token.

    >>> from mmgen.conditioning.language_model import load_language_model
    >>> bag = BagOfWords(*load_language_model("tiny", "fp32"), ["a", "be"])  # its tokens are bytes
    >>> bag.tokens, bag.log_prob(State(torch.zeros(1, 1, dtype=torch.long), torch.zeros(1, 259).log_softmax(-1))).shape
    ({'a': 2, 'be': 3}, torch.Size([1]))
    """

    horizon = None

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, words: Sequence[str] | Mapping[str, float]
    ) -> None:
        if isinstance(words, str):
            raise UserError("bag", got=repr(words), expected="a list of words", fix="put it in brackets")
        for word in words:
            if not isinstance(word, str):
                raise UserError("bag", got=repr(word), expected="words", fix="write it as a text")
            check_text(word)
        weights = {word.strip(): w for word, w in (words.items() if isinstance(words, Mapping) else ((w, 1.0) for w in words))}
        weights.pop("", None)
        if not weights:
            raise UserError("bag", got="no words", expected="at least one", fix="name a topic, or a file with a word a line")
        pieces = {}
        for word, weight in weights.items():
            if not isinstance(weight, (int, float)) or not 0 < weight < float("inf"):
                raise UserError(f"weight of {word!r}", got=repr(weight), expected="a number above 0", fix="leave the word out")
            before, ids = (tokens_of(tokenizer, text, add_special_tokens=False).input_ids for text in ("a", f"a {word}"))
            pieces[word] = ids = ids[len(before) :] if ids[: len(before)] == before else []
            if not ids or tokenizer.unk_token_id in ids or len(ids) > LONGEST:
                fix = "leave it out, or take a language model with another vocabulary"
                raise UserError("bag", got=repr(word), expected="words that the tokenizer can hold", fix=fix)
        #: word -> number of its tokens
        self.tokens = {word: len(ids) for word, ids in pieces.items()}
        after: dict[tuple[int, ...], dict[int, float]] = {}  # end of a text -> next token -> log weight
        begin = tokens_of(tokenizer, "").input_ids  # such as a beginning-of-text token
        for (word, ids), rest in zip(pieces.items(), _rests(model, [*pieces.values()], begin)):
            for n, token in enumerate(ids):
                known = after.setdefault(tuple(ids[:n]), {})
                known[token] = max(known.get(token, -math.inf), math.log(weights[word]) + rest[n])
        rows = [(begin, token, weight) for begin, known in after.items() for token, weight in known.items()]
        self._index: dict[int, int] = {}  # next token -> its index among all of them
        # for each length n: beginnings (m, n), indices of next tokens (m,), log weights (m,)
        self._after: list[tuple[Tensor, ...]] = []
        for n in sorted({len(begin) for begin, *_ in rows}):
            begins, tokens, weighed = zip(*(row for row in rows if len(row[0]) == n))
            indices = [self._index.setdefault(token, len(self._index)) for token in tokens]
            kept = torch.tensor(begins, dtype=torch.long).reshape(len(begins), n), torch.tensor(indices), torch.tensor(weighed)
            self._after.append(tuple(x.to(model.device) for x in kept))
        self._tokens = torch.tensor([*self._index], device=model.device)  # (k,)

    def log_prob(self, state: State) -> Tensor:
        """Return log p(a | texts), (b,), at most the log of the largest weight."""
        ids, log_p = state.ids, state.log_p[:, self._tokens]  # (b, t), (b, k)
        best = torch.full_like(log_p, -torch.inf)
        for begins, indices, weights in self._after:
            n = begins.shape[1]
            if n <= ids.shape[1]:
                begun = (ids[:, None, ids.shape[1] - n :] == begins).all(-1)  # (b, m)
                some = torch.where(begun, weights, -torch.inf)  # (b, m)
                best = best.scatter_reduce(1, indices.expand(len(ids), -1), some, "amax")
        return (log_p + best).logsumexp(1)


@torch.no_grad()
def _rests(model: PreTrainedModel, words: Sequence[Sequence[int]], begin: Sequence[int]) -> list[list[float]]:
    """Log-probability of the rest of each word after each of its tokens, with the word at the start of a text."""
    longest = max(map(len, words))
    ids = torch.tensor([[*begin, *word, *[0] * (longest - len(word))] for word in words], device=model.device)  # (w, t)
    log_p = torch.cat([model(input_ids=some).logits.float().log_softmax(-1)[:, :-1].gather(2, some[:, 1:, None])[..., 0]
                       for some in ids.split(WORDS)]).tolist()  # (w, t - 1)  # fmt: skip
    rows = [row[len(begin) :] for row in log_p]
    return [[sum(row[n : len(word) - 1]) for n in range(len(word))] for word, row in zip(words, rows)]


class Discriminator:
    """Attribute: a classifier of the hidden states predicts a class, ``log p(a | x) = log softmax(head(hidden))_class``.

    Args:
        head: (b, d) -> (b, classes), logits.
        target: the class to steer toward.
        horizon: number of expected next tokens to read besides the text.

    Raises:
        UserError: the horizon or class is negative; in use, the head does not have the class, or is a `torch.nn.Linear` of
            another width.

    Source: Dathathri et al. 2020, section 4.3.

    >>> head = torch.nn.Linear(4, 2)
    >>> Discriminator(head, target=1).log_prob(State(None, None, torch.zeros(3, 4))).shape
    torch.Size([3])
    """

    def __init__(self, head: Callable[[Tensor], Tensor], target: int, horizon: int = 1) -> None:
        self.head, self.target = head, check_at_least("class", target, 0)
        self.horizon: int | None = check_at_least("horizon", horizon, 0)

    def log_prob(self, state: State) -> Tensor:
        """Return log p(a | texts), (b,), at most 0."""
        width, given = getattr(self.head, "in_features", None), state.hidden.shape[1]
        if width not in (None, given):
            got, expected = f"one for {width} numbers", f"{given}, as this language model has"
            raise UserError("attribute head", got=got, expected=expected, fix="train one for this language model")
        scores = self.head(state.hidden.float())  # (b, classes)
        if self.target >= scores.shape[1]:
            raise UserError("class", got=self.target, expected=f"0 to {scores.shape[1] - 1}", fix="count from 0")
        return F.log_softmax(scores, -1)[:, self.target]


class Toward:
    """Attribute: the next word names a picture or a sound, ``p(a | x) = sum_w p(w | x) p(a | x, w)``.

    ``p(a | x, w) = softmax_j(scale v(x, w) . u_j)`` at the target, j = 0: v is a text encoder's embedding of the newest tokens
    followed by w, and u_j are points of the same space, the target and others that the text should not name. The likeliest w
    are encoded one by one, all others together as their expected embedding, ``sum_w p(w | x) E_w / sum_w p(w | x)``. Any
    encoder of token embeddings can be passed in, such as that of `mmgen.models.aligned.Aligned`.

    Args:
        embed: embeddings (b, t, d) and mask (b, t), True at real positions -> unit vectors (b, s).
        table: (v, d), E: the language model's token embeddings, or the text encoder's for the same tokens.
        target: (s,), unit vector.
        others: (m, s), unit vectors, m at least 1.
        scale: inverse temperature.
        window: number of newest tokens to encode.
        likeliest: number of next tokens to encode one by one; with 0, all are represented by the expected embedding.
        unread: tokens to ignore, such as padding.
        start: number of tokens to ignore on the left, such as the length of the prompt, padding included; with 0, prompt
            tokens within the window are encoded too.

    Raises:
        UserError: the shapes do not fit, there is nothing to compare with, or a number is out of its range.

    Source: Radford et al. 2021, CLIP, section 2.3, for the softmax over pictures.

    >>> mean = lambda embeddings, mask: F.normalize((embeddings * mask[..., None]).sum(1), dim=-1)
    >>> toward = Toward(mean, torch.eye(3), target=torch.eye(3)[0], others=torch.eye(3)[1:], scale=5.0)
    >>> ids, sure = torch.tensor([[0, 0], [2, 2]]), torch.tensor([[1.0, 0.0, 0.0]] * 2).log()
    >>> toward.log_prob(State(ids, sure)).tolist()[0] > toward.log_prob(State(ids, sure)).tolist()[1]
    True
    """

    horizon = None
    from_text = True

    def __init__(
        self,
        embed: Callable[[Tensor, Tensor], Tensor],
        table: Tensor,
        target: Tensor,
        others: Tensor,
        scale: float,
        window: int = 2,
        likeliest: int = 50,
        unread: Sequence[int] = (),
        start: int = 0,
    ) -> None:
        self.embed, self.table = embed, table.detach()
        self.points, self.scale = _points(target, others, scale), scale
        self.window, self.start = check_at_least("window", window, 0), check_at_least("start", start, 0)
        self.likeliest = check_at_least("likeliest", likeliest, 0)
        self._unread = torch.tensor([*unread], dtype=torch.long, device=table.device)

    def log_prob(self, state: State) -> Tensor:
        """Return log p(a | texts), (b,), at most 0; without `State.log_p`, of the text itself, its newest token being w."""
        ids = state.ids[:, self.start :]
        ids = ids[:, max(0, ids.shape[1] - self.window - (state.log_p is None)) :]  # (b, t)
        read = ~torch.isin(ids, self._unread)  # (b, t)
        if state.log_p is None:
            return self._named(self.table[ids], read)
        k = min(self.likeliest, state.log_p.shape[1] - 1)
        p = state.log_p.exp()  # (b, v)
        chosen = state.log_p.detach().topk(k).indices  # (b, k)
        rest = p.scatter(1, chosen, 0.0)  # (b, v)
        left = rest.sum(1, keepdim=True)  # (b, 1)
        expected = (rest / left.clamp(min=1e-10)).to(self.table.dtype) @ self.table  # (b, d)
        words = torch.cat([self.table[chosen], expected[:, None]], 1)  # (b, k + 1, d)
        before = self.table[ids][:, None].expand(-1, k + 1, -1, -1)  # (b, k + 1, t, d)
        read = F.pad(read, (0, 1), value=True).repeat_interleave(k + 1, 0)  # (b (k + 1), t + 1)
        embeddings = torch.cat([before, words[:, :, None]], 2).flatten(0, 1)  # (b (k + 1), t + 1, d)
        named = self._named(embeddings, read).unflatten(0, (-1, k + 1))  # (b, k + 1)
        weights = torch.cat([p.gather(1, chosen), left], 1)  # (b, k + 1)
        return (weights.clamp(min=1e-30).log() + named).logsumexp(1)

    def _named(self, embeddings: Tensor, read: Tensor) -> Tensor:
        """Return log p(a | embeddings (b, t, d)), (b,)."""
        return F.log_softmax(self.scale * self.embed(embeddings, read) @ self.points.T, -1)[:, 0]


class TowardByText:
    """Attribute: a whole text names a picture or a sound, ``p(a | x) = softmax_j(scale v(x) . u_j)`` at the target, j = 0.

    v embeds the text itself, like a sentence embedder with its own tokenizer. It passes no gradient, so it can be used with
    `mmgen.conditioning.reweighting.Fudge` and for ranking texts, but not with PPLM.

    Args:
        embed: n texts -> unit vectors (n, s).
        decode: token ids (b, t) -> b texts without padding, as ``batch_decode`` of a tokenizer with
            ``skip_special_tokens=True``.
        target, others, scale: as in `Toward`.

    Raises:
        UserError: as `Toward`; in use, the method scores next tokens instead of whole texts.

    >>> embed = lambda texts: torch.eye(2)[[len(text) % 2 for text in texts]]
    >>> toward = TowardByText(embed, lambda ids: ["a"] * len(ids), torch.eye(2)[1], torch.eye(2)[:1], scale=5.0)
    >>> toward.log_prob(State(torch.zeros(1, 3, dtype=torch.long), None)).exp().item() > 0.99
    True
    """

    horizon = None
    from_text = True
    whole = True

    def __init__(
        self,
        embed: Callable[[Sequence[str]], Tensor],
        decode: Callable[[Tensor], list[str]],
        target: Tensor,
        others: Tensor,
        scale: float,
    ) -> None:
        self.embed, self.decode = embed, decode
        self.points, self.scale = _points(target, others, scale), scale

    def log_prob(self, state: State) -> Tensor:
        """Return log p(a | texts), (b,), at most 0."""
        if state.log_p is not None:
            fix = "steer by Fudge without other attributes, or rank texts by it"
            raise UserError("attribute", got="one of whole texts", expected="one of the next token", fix=fix)
        points = self.embed(self.decode(state.ids)).to(self.points)  # (b, s)
        return F.log_softmax(self.scale * points @ self.points.T, -1)[:, 0]


def _points(target: Tensor, others: Tensor, scale: float) -> Tensor:
    """Check and stack the points, (1 + m, s), the target (s,) first."""
    if target.ndim != 1 or others.ndim != 2 or others.shape[1:] != target.shape or not len(others):
        got, fix = f"{tuple(target.shape)} and {tuple(others.shape)}", "embed one picture, and some to compare it with"
        raise UserError("target and others", got=got, expected="(s,) and (m, s), m at least 1", fix=fix)
    if not 0 < scale < float("inf"):
        raise UserError("scale", got=scale, expected="a finite number above 0", fix="use the encoder's scale")
    return torch.cat([target[None], others]).detach()


@dataclass(frozen=True)
class Together:
    """Weighted combination of attributes: ``log p(a | x) = sum_i weight_i log p(a_i | x)``.

    Args:
        parts: one or more attributes, each with its weight.

    Raises:
        UserError: there is no attribute, a part is not an attribute, or a weight is not finite.

    >>> head = torch.nn.Linear(4, 2)
    >>> both = Together([(Discriminator(head, 0, horizon=2), 1.0), (Discriminator(head, 1), 0.5)])
    >>> both.horizon, both.log_prob(State(None, None, torch.zeros(3, 4))).shape
    (2, torch.Size([3]))
    """

    parts: Sequence[tuple[Attribute, float]]

    def __post_init__(self) -> None:
        check_at_least("attributes", len(self.parts), 1)
        for part, weight in self.parts:
            check_attribute(part)
            if not abs(weight) < float("inf"):
                raise UserError("weight of an attribute", got=weight, expected="a finite number", fix="use 1.0")

    @property
    def horizon(self) -> int | None:
        """The largest horizon of the parts."""
        return max((part.horizon for part, _ in self.parts if part.horizon is not None), default=None)

    def log_prob(self, state: State) -> Tensor:
        """Return log p(a | texts), (b,)."""
        return reduce(torch.add, (weight * part.log_prob(state) for part, weight in self.parts))


def check_attribute(attribute: Any) -> None:
    """Check that an object has the methods of an `Attribute`.

    Raises:
        UserError: it does not.
    """
    if isinstance(attribute, type) or not all(hasattr(attribute, name) for name in ("log_prob", "horizon")):
        fix = "give a BagOfWords or a Discriminator"
        raise UserError("attribute", got=repr(attribute), expected="one with log_prob and horizon", fix=fix)


def parts_of(attribute: Attribute) -> list[tuple[Attribute, float]]:
    """The single attributes of a possibly nested `Together` with their weights; of any other attribute, itself.

    >>> head = Discriminator(torch.nn.Linear(4, 2), 0)
    >>> [weight for _, weight in parts_of(Together([(head, 2.0), (Together([(head, 1.0), (head, 0.5)]), 3.0)]))]
    [2.0, 3.0, 1.5]
    """
    if not isinstance(attribute, Together):
        return [(attribute, 1.0)]
    return [(one, weight * inner) for part, weight in attribute.parts for one, inner in parts_of(part)]
