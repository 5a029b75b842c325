"""Attributes that texts are steered toward: each gives the log-probability of the attribute in a text being written."""

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

WORDS = 32  # whose tokens are read at once
LONGEST = 32  # tokens of a word


class State(NamedTuple):
    """Texts that are being written.

    Args:
        ids: (b, t) their tokens so far; what is padded is on the left.
        log_p: (b, v) log-probabilities of the next token; None where only the text so far is asked about.
        hidden: (b, d) mean of the language model's last hidden states, over the text so far and, where an attribute looks
            ahead, the tokens that are expected next; None where nothing asked for it.
    """

    ids: Tensor
    log_p: Any  # Tensor or None: an attribute reads only what it asks for
    hidden: Any = None


class Attribute(Protocol):
    """Something to steer toward.

    One that can tell from the tokens alone, `State.log_p` being None, has besides ``from_text = True``: `Fudge` then asks it
    about each next token without a pass through the language model. One that tells of whole texts alone has ``whole = True``
    too: where texts are ranked it is asked once, about all of each.
    """

    @property
    def horizon(self) -> int | None:
        """Number of expected tokens that it looks ahead; None: it does not read hidden states at all."""
        ...

    def log_prob(self, state: State) -> Tensor:
        """log p(attribute | texts), (b,), up to a constant."""
        ...


class BagOfWords:
    """Attribute: the next word is one of a bag, ``log p(a | x) = log sum_v p(v | x) max_w weight_w p(the rest of w | v)``.

    The sum is over next tokens v of the bag's words w. The next token of a word is its first, or the one after as many of its
    tokens as the text ends with. What comes after that is as likely as the language model has it after the word's own tokens
    alone: a first token that begins many words, such as " re", counts little. A word is looked for as it stands after a space.

    Args:
        model, tokenizer: see `mmgen.conditioning.language_model.load_language_model`.
        words: one or more, or word -> weight above 0.

    Raises:
        UserError: no words, a weight that is not above 0, or a word that the tokenizer cannot hold.

    Source: Dathathri et al. 2020, section 4.2. There a word of more than one token is dropped.

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
        #: how many tokens each word has
        self.tokens = {word: len(ids) for word, ids in pieces.items()}
        after: dict[tuple[int, ...], dict[int, float]] = {}  # what a text ends with -> next token -> log weight
        begin = tokens_of(tokenizer, "").input_ids  # such as a beginning-of-text token
        for (word, ids), rest in zip(pieces.items(), _rests(model, [*pieces.values()], begin)):
            for n, token in enumerate(ids):
                known = after.setdefault(tuple(ids[:n]), {})
                known[token] = max(known.get(token, -math.inf), math.log(weights[word]) + rest[n])
        rows = [(begin, token, weight) for begin, known in after.items() for token, weight in known.items()]
        self._index: dict[int, int] = {}  # next token -> its place among all of them
        self._after: list[
            tuple[Tensor, ...]
        ] = []  # for each length n: beginnings (m, n), places of next tokens (m,), log weights (m,)
        for n in sorted({len(begin) for begin, *_ in rows}):
            begins, tokens, weighed = zip(*(row for row in rows if len(row[0]) == n))
            places = [self._index.setdefault(token, len(self._index)) for token in tokens]
            kept = torch.tensor(begins, dtype=torch.long).reshape(len(begins), n), torch.tensor(places), torch.tensor(weighed)
            self._after.append(tuple(x.to(model.device) for x in kept))
        self._tokens = torch.tensor([*self._index], device=model.device)  # (k,)

    def log_prob(self, state: State) -> Tensor:
        """(b,), at most the log of the largest weight."""
        ids, log_p = state.ids, state.log_p[:, self._tokens]  # (b, t), (b, k)
        best = torch.full_like(log_p, -torch.inf)
        for begins, places, weights in self._after:
            n = begins.shape[1]
            if n <= ids.shape[1]:
                begun = (ids[:, None, ids.shape[1] - n :] == begins).all(-1)  # (b, m)
                some = torch.where(begun, weights, -torch.inf)  # (b, m)
                best = best.scatter_reduce(1, places.expand(len(ids), -1), some, "amax")
        return (log_p + best).logsumexp(1)


@torch.no_grad()
def _rests(model: PreTrainedModel, words: Sequence[Sequence[int]], begin: Sequence[int]) -> list[list[float]]:
    """Log-probability of the rest of each word after each of its tokens, the word at the start of a text."""
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
        target: the class.
        horizon: expected tokens that are read too.

    Raises:
        UserError: a negative horizon or class; in use, a class that the head has not, or a `torch.nn.Linear` of another width.

    Source: Dathathri et al. 2020, section 4.3.

    >>> head = torch.nn.Linear(4, 2)
    >>> Discriminator(head, target=1).log_prob(State(None, None, torch.zeros(3, 4))).shape
    torch.Size([3])
    """

    def __init__(self, head: Callable[[Tensor], Tensor], target: int, horizon: int = 1) -> None:
        self.head, self.target = head, check_at_least("class", target, 0)
        self.horizon: int | None = check_at_least("horizon", horizon, 0)

    def log_prob(self, state: State) -> Tensor:
        """(b,), at most 0."""
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

    ``p(a | x, w) = softmax_j(scale v(x, w) . u_j)`` at the target, j = 0: v is what a text encoder makes of the newest tokens
    and of w, and u_j are points of the same space, the target and others that the text should not name. The likeliest w are
    read one by one, all others at once as the embedding that is expected of them, ``sum_w p(w | x) E_w / sum_w p(w | x)``. All
    is passed in, so any encoder of token embeddings serves, such as that of `mmgen.models.aligned.Aligned`.

    Args:
        embed: embeddings (b, t, d) and mask (b, t), True at real positions -> points (b, s) of length 1.
        table: (v, d), E: the language model's own, or what the text encoder makes of each of its rows alone.
        target: (s,), of length 1.
        others: (m, s), of length 1, m at least 1.
        scale: the inverse of the temperature.
        window: how many of the newest tokens are read.
        likeliest: next tokens that are read one by one; 0: none, the expected embedding stands for all.
        unread: tokens that are left out, such as padding.
        start: tokens from the left that are left out. A prompt counts, as long as it is among the newest, unless its length,
            padding included, is given here.

    Raises:
        UserError: shapes that do not fit, nothing to compare with, or a number out of its range.

    Source: the softmax over pictures is that of Radford et al. 2021, CLIP, section 2.3.

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
        """(b,), at most 0; of the text as it is, its newest token in place of w, where no next one is expected."""
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
        """log p(a | embeddings (b, t, d)), (b,)."""
        return F.log_softmax(self.scale * self.embed(embeddings, read) @ self.points.T, -1)[:, 0]


class TowardByText:
    """Attribute: a whole text names a picture or a sound, ``p(a | x) = softmax_j(scale v(x) . u_j)`` at the target, j = 0.

    v reads the text itself, as a sentence embedder with a tokenizer of its own does. No gradient goes through it: it serves
    `mmgen.conditioning.reweighting.Fudge`, and the ranking of texts.

    Args:
        embed: n texts -> points (n, s) of length 1.
        decode: token ids (b, t) -> b texts without padding, as ``batch_decode`` of a tokenizer with
            ``skip_special_tokens=True``.
        target, others, scale: as `Toward` has them.

    Raises:
        UserError: as `Toward`; in use, a method that asks about what is not written yet.

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
        """(b,), at most 0."""
        if state.log_p is not None:
            fix = "steer by Fudge without other attributes, or rank texts by it"
            raise UserError("attribute", got="one of whole texts", expected="one of the next token", fix=fix)
        points = self.embed(self.decode(state.ids)).to(self.points)  # (b, s)
        return F.log_softmax(self.scale * points @ self.points.T, -1)[:, 0]


def _points(target: Tensor, others: Tensor, scale: float) -> Tensor:
    """(1 + m, s), the target (s,) first."""
    if target.ndim != 1 or others.ndim != 2 or others.shape[1:] != target.shape or not len(others):
        got, fix = f"{tuple(target.shape)} and {tuple(others.shape)}", "embed one picture, and some to compare it with"
        raise UserError("target and others", got=got, expected="(s,) and (m, s), m at least 1", fix=fix)
    if not 0 < scale < float("inf"):
        raise UserError("scale", got=scale, expected="a finite number above 0", fix="take that of the encoder")
    return torch.cat([target[None], others]).detach()


@dataclass(frozen=True)
class Together:
    """Several attributes at once: ``log p(a | x) = sum_i weight_i log p(a_i | x)``.

    Args:
        parts: one or more attributes, each with its weight.

    Raises:
        UserError: no attribute, one that is none, or a weight that is not finite.

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
        """The farthest that any of them looks ahead."""
        return max((part.horizon for part, _ in self.parts if part.horizon is not None), default=None)

    def log_prob(self, state: State) -> Tensor:
        """(b,)."""
        return reduce(torch.add, (weight * part.log_prob(state) for part, weight in self.parts))


def check_attribute(attribute: Any) -> None:
    """Fail unless it can be asked as an `Attribute` is.

    Raises:
        UserError: it cannot.
    """
    if isinstance(attribute, type) or not all(hasattr(attribute, name) for name in ("log_prob", "horizon")):
        fix = "give a BagOfWords or a Discriminator"
        raise UserError("attribute", got=repr(attribute), expected="one with log_prob and horizon", fix=fix)


def parts_of(attribute: Attribute) -> list[tuple[Attribute, float]]:
    """The attributes that are in one, each with its weight: those of a `Together`, and of a `Together` inside; else itself.

    >>> head = Discriminator(torch.nn.Linear(4, 2), 0)
    >>> [weight for _, weight in parts_of(Together([(head, 2.0), (Together([(head, 1.0), (head, 0.5)]), 3.0)]))]
    [2.0, 3.0, 1.5]
    """
    if not isinstance(attribute, Together):
        return [(attribute, 1.0)]
    return [(one, weight * inner) for part, weight in attribute.parts for one, inner in parts_of(part)]
