"""Rewrites a sentence in another style by the fewest changes of words that will do.

A change deletes one or two words, puts one in their place, or puts one between two. What is put there is a word of the target
style: near what it replaces in meaning, or seen between these neighbours. Changes are chosen one after another, for

``score(y) = - max(0, margin - s(y)) - fluency max(0, log p_source(x) - log p_target(y)) - cost(changes)``

s(y) is the log-odds of the target style by a linear classifier of n-grams, the only thing that is trained by gradients;
log p are trigram language models of the styles, with a fixed credit for each word, so that a short sentence is no more fluent.
A sentence that no change improves comes back as it was, letter by letter; so does whatever is not changed in one that is.
"""

import re
from collections.abc import Sequence
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmgen.data.batch import Batch, placed
from mmgen.data.label import LabelProcessor
from mmgen.data.text import tokens_of, train_word_tokenizer
from mmgen.errors import UserError, check_one_of, check_texts
from mmgen.models.base import Losses, Model
from mmgen.models.style.ngrams import BEGIN, END, UNKNOWN, NgramTable, framed, style_counts, word_vectors, words_between
from mmgen.models.style.spelling import Item, pieces_of, spell_changed
from mmgen.ranges import AtLeast, checked

CREDIT = 4.0  # nats a word: about what one costs in either language model
AT_ONCE = 256  # sentences changed together
DIM = 100  # of the word vectors
RARE = 2e-5  # added to the frequencies whose ratio makes a word one of a style
COMMON = 5  # occurrences of a word that is put in the place of words like it
AGAINST = 0.1  # log-odds for the other style that make a word worth replacing
INSERTIONS = 4  # words that are tried between two

PLAIN = re.compile(r"[^\W\d_][^\d_]*|[.!]")  # what is put into texts: no numbers, no names of special tokens


class Edit(Model):
    """p(style | text) by a linear classifier of n-grams, and a search for the fewest changes that turn a text's style.

    Built by `Edit.learn`, which counts; then the classifier is trained like any model. Two styles.

    Args:
        class_names: the two styles.
        words, pairs, triples, gaps: sizes of the tables, see `Edit.learn`.
        choices: words to choose from at each place, of either kind.
        margin: log-odds of the target style that are enough; the higher, the surer and the less like the input.
        fluency: weight of each nat lost.
        change: cost of a word replaced by one unlike it, 1 or more; what is alike costs up to 1 less.
        deletion: cost of a word deleted.
        insertion: cost of a word put between two.
        rounds: most changes of a sentence.
        rivals: changes a round whose fluency is looked at, the best by the other terms.
        l2: weight of half the sum of the classifier's squared weights.

    Raises:
        UserError: not two names, or a number out of its range; in use, no item with text and label, or an unknown style.

    Source: that a style sits in few words, which can be changed in place: Li et al. 2018, Delete, Retrieve, Generate, arXiv
        1804.06437, there found by frequency and written anew by a network. The search is ours.

    >>> texts, labels = ["the soup was good", "the tea was good", "the soup was bad", "the tea was bad"] * 9, [1, 1, 0, 0] * 9
    >>> model = Edit.learn(texts, labels, ["bad", "good"])
    >>> with torch.no_grad():
    ...     _ = model.word_weights.copy_(model.word_salience())
    >>> model.restyle(["The soup was BAD!", ""], "good")
    ['The soup was GOOD!', '']
    """

    name = "edit"
    sequences = ("text",)

    @checked
    def __init__(
        self,
        class_names: list[str],
        words: int,
        pairs: int,
        triples: int,
        gaps: int,
        choices: Annotated[int, AtLeast(1)] = 12,
        margin: float = 2.5,
        fluency: Annotated[float, AtLeast(0)] = 0.3,
        change: Annotated[float, AtLeast(1)] = 1.6,
        deletion: Annotated[float, AtLeast(0)] = 1.6,
        insertion: Annotated[float, AtLeast(0)] = 1.2,
        rounds: Annotated[int, AtLeast(1)] = 4,
        rivals: Annotated[int, AtLeast(1)] = 16,
        l2: Annotated[float, AtLeast(0)] = 2e-5,
    ) -> None:
        super().__init__()
        if len(class_names) != 2:
            raise UserError("class_names", got=class_names, expected="two styles", fix="give texts of exactly two styles")
        self.class_names, self.choices, self.margin, self.fluency = list(class_names), choices, margin, fluency
        self.change, self.deletion, self.insertion, self.rounds = change, deletion, insertion, rounds
        self.rivals, self.l2 = rivals, l2
        self.ngrams = NgramTable(words, pairs, triples)
        self.bias = nn.Parameter(torch.zeros(()))
        self.word_weights = nn.Parameter(torch.zeros(words))
        self.pair_weights = nn.Parameter(torch.zeros(pairs))
        self.triple_weights = nn.Parameter(torch.zeros(triples))
        self.register_buffer("frequency", torch.zeros(2, words))  # of a word in each style
        self.register_buffer("vectors", torch.zeros(words, DIM))  # what a word's neighbours are, of length 1 or 0
        # words of each style that are like a word, -1 where there are no more
        self.register_buffer("near", torch.full((2, words, choices), -1, dtype=torch.int32))
        self.register_buffer("gaps", torch.arange(gaps))  # (style * words + left) * words + right, sorted
        self.register_buffer("between", torch.full((gaps, choices), -1, dtype=torch.int32))  # words seen in that gap

    @classmethod
    def learn(cls, texts: Sequence[str], labels: Sequence[int], class_names: Sequence[str], **settings: Any) -> "Edit":
        """A model whose tables hold what these texts hold; the classifier's weights are still zero.

        Args:
            texts: single sentences of both styles; blank ones are left out.
            labels: 0 or 1 for each, a position in ``class_names``.
            class_names: the two styles.
            settings: as of the constructor.

        Raises:
            UserError: not two styles, a label that is neither, a style without a text, or too few texts.
        """
        told = [(text, label) for text, label in zip(texts, labels) if text.strip()]
        texts, labels = [text for text, _ in told], [label for _, label in told]
        processor = train_word_tokenizer(texts)
        sentences = tokens_of(processor.tokenizer, texts, add_special_tokens=False)["input_ids"]
        counts = style_counts(sentences, labels, processor.vocabulary)
        table = NgramTable.count(sentences, labels, processor.vocabulary)
        written = processor.tokenizer.convert_ids_to_tokens(list(range(processor.vocabulary)))
        usable = np.array([bool(PLAIN.fullmatch(word)) for word in written])
        choices = int(settings.get("choices", 12))
        gaps, between = words_between(sentences, labels, counts, usable, choices)
        model = cls(list(class_names), processor.vocabulary, len(table.pairs), len(table.triples), len(gaps), **settings)
        model.ngrams.load_state_dict(table.state_dict())
        model.frequency.copy_(torch.from_numpy(counts / counts.sum(1, keepdims=True)))
        model.gaps.copy_(torch.from_numpy(gaps))
        model.between.copy_(torch.from_numpy(between))
        model.vectors.copy_(torch.from_numpy(word_vectors(sentences, counts.sum(0), DIM)))
        salient = model.word_salience().exp()
        for style, ratio in enumerate((1 / salient, salient)):
            marks = torch.nonzero((ratio >= 2) & torch.from_numpy((counts[style] >= COMMON) & usable)).squeeze(1)
            if len(marks):
                like = model.vectors @ model.vectors[marks].T  # (words, marks)
                best = like.topk(min(choices, len(marks)), dim=1).indices
                model.near[style, :, : best.shape[1]] = marks[best].where(model.vectors.any(1, keepdim=True), -1).int()
        model.processors |= {"text": processor, "label": LabelProcessor(list(class_names))}
        return model

    def word_salience(self) -> Tensor:
        """How much more frequent each word is in style 1 than in style 0, as a logarithm, (words,)."""
        return ((self.frequency[1] + RARE) / (self.frequency[0] + RARE)).log()

    @property
    def inputs(self) -> tuple[str, ...]:
        """What it reads."""
        return ("text",)

    def losses(self, batch: Batch, phase: str = "train") -> Losses:
        """The cross-entropy -log p(style | text), mean over the items that have both, and the penalty of large weights."""
        rows = batch.having("text", "label")
        if not rows.any():
            return self.zero_losses("cross_entropy", "penalty")
        weights = (self.word_weights, self.pair_weights, self.triple_weights)
        return Losses(
            cross_entropy=-self._log_likelihood(batch.items(rows)).mean(),
            penalty=self.l2 / 2 * torch.stack([w.square().sum() for w in weights]).sum(),
        )

    def log_likelihood(self, batch: Batch, samples: int = 1) -> Tensor:
        """log p(style | text), exact, (b,); 0 for items that lack either."""
        rows = batch.observed("text", "label")
        return placed(self._log_likelihood(batch.items(rows)), rows)

    def log_odds(self, ids: Tensor) -> Tensor:
        """The log-odds of style 1 of `framed` sentences, (b, t) -> (b,)."""
        words, pairs, triples = self._weights(ids)
        return self.bias + words.sum(1) + pairs.sum(1) + triples.sum(1)

    @torch.no_grad()
    def restyle(self, texts: Sequence[str], target: str) -> list[str]:
        """The texts in the style ``target``, in their order; what is blank, or not of this language, comes back as it was.

        Args:
            texts: any; of several sentences each is changed, and one of more than `LONGEST` words piece by piece.
            target: one of ``class_names``.

        Raises:
            UserError: there is no such style.
        """
        style = self.class_names.index(check_one_of("target", target, self.class_names))
        texts = check_texts(texts)
        tokenizer = self.processors["text"].tokenizer
        restyled: list[str] = []
        for start in range(0, len(texts), AT_ONCE):
            some = texts[start : start + AT_ONCE]
            read, kept, pieces = pieces_of(some, tokenizer)
            items: list[list[Item]] = [[] for _ in some]
            for at in range(0, len(pieces), AT_ONCE):
                part = pieces[at : at + AT_ONCE]
                for (i, _), found in zip(part, self._search([p for _, p in part], [kept[i] for i, _ in part], style)):
                    items[i] += found
            changed = zip(some, read["offset_mapping"], items)
            restyled += [spell_changed(text, offsets, words, tokenizer) for text, offsets, words in changed]
        return restyled

    def _search(self, pieces: list[list[Item]], kept: list[set[int]], style: int) -> list[list[Item]]:
        """Each piece with the changes that score best: one more in each of the rounds, for all pieces at once.

        What stands at the places in ``kept`` stays.
        """
        best, states = list(pieces), list(pieces)
        ids = self.framed(states)
        source = self.fluency_of(ids, 1 - style)  # (n,)
        paid = torch.zeros_like(source)
        odds = self.log_odds(ids)
        scores = self._score(odds, self.fluency_of(ids, style) - source, paid, style)
        known = torch.tensor([sum(word != UNKNOWN for word, _, _ in piece) * 2 >= len(piece) for piece in pieces])
        active = torch.nonzero(((2 * style - 1) * odds < self.margin) & known.to(odds.device)).squeeze(1)
        for _ in range(self.rounds):
            if not len(active):
                break
            ids = self.framed([states[i] for i in active.tolist()])
            locked = torch.zeros_like(ids, dtype=torch.bool)
            for row, i in enumerate(active.tolist()):
                locked[row, [2 + n for n, (_, at, new) in enumerate(states[i]) if new or at in kept[i]]] = True
            odds, lost = self.log_odds(ids), self.fluency_of(ids, style) - source[active]
            moves = self.moves(ids, locked, style)
            fluent = torch.zeros_like(moves.cost)  # at best nothing is lost: what is no gain even then is left out
            bound = self._score(odds[moves.row] + moves.gain, fluent, paid[active][moves.row] + moves.cost, style)
            gain = torch.nonzero(bound > scores[active][moves.row]).squeeze(1)
            moves = moves.take(gain[_highest(moves.row[gain], bound[gain], self.rivals)])
            spent = paid[active][moves.row] + moves.cost
            fluency = lost[moves.row] + self.fluency_of(moves.after, style) - self.fluency_of(moves.before, style)
            found = self._score(odds[moves.row] + moves.gain, fluency, spent, style)
            first = _highest(moves.row, found, 1)
            moves, found, spent = moves.take(first), found[first], spent[first]
            active = active[moves.row]
            for n, i in enumerate(active.tolist()):
                states[i] = edited(states[i], int(moves.start[n]) - 2, int(moves.length[n]), int(moves.word[n]))
                paid[i] = spent[n]
                if found[n] > scores[i]:
                    best[i], scores[i] = states[i], found[n]
        return best

    def moves(self, ids: Tensor, locked: Tensor, style: int) -> "Moves":
        """Every change of the sentences (b, t) that puts a word in, or a word or nothing in the place of one or two."""
        word = (ids > END) & ~locked  # (b, t)
        against = (1 - 2 * style) * self._shares(ids)  # what each word says for the other style
        two = against.masked_fill(~word, -torch.inf).topk(min(2, ids.shape[1]), dim=1).indices
        wanted = word & (against > AGAINST)
        wanted |= word & ~wanted.any(1, keepdim=True) & torch.zeros_like(word).scatter(1, two, True)
        lengths = (ids > END).sum(1)
        gap = (ids != BEGIN) & (ids.roll(1, 1) != END) & ~(locked & locked.roll(1, 1))  # before each word and at the end
        both = F.pad((wanted[:, :-1] | wanted[:, 1:]) & word[:, :-1] & word[:, 1:], (0, 1))
        found = []
        for length, place in enumerate((gap, wanted, both)):
            row, start = torch.nonzero(place, as_tuple=True)  # (s,)
            window = ids[row[:, None], start[:, None] + torch.arange(-2, length + 2, device=ids.device)]  # (s, length + 4)
            left, old, right = window[:, :2], window[:, 2 : 2 + length], window[:, 2 + length :]
            options = self._between(left[:, 1], right[:, 0], style)  # (s, choices)
            if length:
                options = torch.cat([self.near[style][old].flatten(1).long(), options], 1)
                vectors = self.vectors[options.clamp(min=0)], self.vectors[old]
                like = torch.einsum("skd,sld->skl", *vectors).amax(2).clamp(min=0)
                cost = self.change * length - like
            else:
                options = options[:, :INSERTIONS]
                cost = torch.full(options.shape, self.insertion, device=ids.device)
            for other in (*old.unbind(1), left[:, 1], right[:, 0]):
                options = options.masked_fill(options == other[:, None], -1)
            at, choice = torch.nonzero(options >= 0, as_tuple=True)  # (m,)
            put, cost = options[at, choice], cost[at, choice]
            after = torch.cat([left[at], put[:, None], right[at]], 1)
            before = self.log_odds(window)  # (s,)
            found.append(_moves(row[at], start[at], length, put, cost, self.log_odds(after) - before[at], window[at], after))
            if length:
                at = torch.nonzero(lengths[row] > length).squeeze(1)
                after = torch.cat([left[at], right[at]], 1)
                put, cost = torch.full_like(at, -1), torch.full(at.shape, self.deletion * length, device=ids.device)
                found.append(
                    _moves(row[at], start[at], length, put, cost, self.log_odds(after) - before[at], window[at], after)
                )
        return Moves(*(torch.cat(part) for part in zip(*found)))

    def _score(self, odds: Tensor, fluency: Tensor, paid: Tensor, style: int) -> Tensor:
        return -(self.margin - (2 * style - 1) * odds).clamp(min=0) + self.fluency * fluency.clamp(max=0) - paid

    def fluency_of(self, ids: Tensor, style: int) -> Tensor:
        """log p in a style and `CREDIT` for each word, (b,), of framed sentences or of pieces of them (b, t)."""
        a, b, word = ids[:, :-2], ids[:, 1:-1], ids[:, 2:]
        found = self.ngrams.log_prob(a, b, word, torch.tensor(style, device=ids.device))
        return found.masked_fill((b == END) | (word == BEGIN), 0).sum(1) + CREDIT * (ids > END).sum(1)

    def _weights(self, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The classifier's weights of the words, pairs and triples of sentences (b, t): (b, t), (b, t - 1), (b, t - 2)."""
        pair, triple = self.ngrams.find(ids[:, :-1], ids[:, 1:]), self.ngrams.find(ids[:, :-2], ids[:, 1:-1], ids[:, 2:])
        return (
            self.word_weights[ids].masked_fill(ids <= END, 0),
            self.pair_weights[pair].masked_fill((pair < 0) | (ids[:, :-1] == END) | (ids[:, 1:] == BEGIN), 0),
            self.triple_weights[triple].masked_fill((triple < 0) | (ids[:, 1:-1] == END) | (ids[:, 1:-1] == BEGIN), 0),
        )

    def _shares(self, ids: Tensor) -> Tensor:
        """The log-odds of style 1 shared out among the words (b, t): each n-gram's weight in equal parts."""
        words, pairs, triples = self._weights(ids)
        shared = words.clone()
        for n, weights in ((2, pairs), (3, triples)):
            for i in range(n):
                shared[:, i : i + weights.shape[1]] += weights / n
        return shared

    def _between(self, left: Tensor, right: Tensor, style: int) -> Tensor:
        """Words that a style has between these two, the likeliest first, (n,) -> (n, choices); -1 where there are no more."""
        key = (style * self.ngrams.words + left) * self.ngrams.words + right
        place = torch.searchsorted(self.gaps, key).clamp(max=len(self.gaps) - 1)
        return self.between[place].long().where((self.gaps[place] == key)[:, None], -1)

    def framed(self, items: Sequence[list[Item]]) -> Tensor:
        """Token ids of the items' words, each between its start and end, (b, t)."""
        return framed([[word for word, _, _ in piece] for piece in items]).to(self.bias.device)

    def _log_likelihood(self, batch: Batch) -> Tensor:
        labels = batch["label"]
        if len(wrong := labels[(labels < 0) | (labels > 1)]):
            raise UserError("label", got=wrong[0].item(), expected="0 or 1", fix="give texts of exactly two styles")
        ids = batch["text"]
        mask = batch.masks.get("text", torch.ones_like(ids, dtype=torch.bool))
        ids = F.pad(ids.where(mask, END), (0, 2), value=END)
        odds = self.log_odds(F.pad(ids, (2, 0), value=BEGIN))
        return F.logsigmoid(torch.where(labels == 1, odds, -odds))


class Moves(NamedTuple):
    """Changes of sentences, (m,) each: in ``row``, from ``start`` on, ``length`` words become ``word`` (-1: nothing)."""

    row: Tensor
    start: Tensor
    length: Tensor
    word: Tensor
    cost: Tensor
    gain: Tensor  # in log-odds of style 1
    before: Tensor  # (m, 7) the words in question, two to the left and two to the right
    after: Tensor  # (m, 7)

    def take(self, index: Tensor) -> "Moves":
        """Those at ``index``."""
        return Moves(*(part[index] for part in self))


def _moves(row: Tensor, start: Tensor, length: int, word: Tensor, cost: Tensor, gain: Tensor, *windows: Tensor) -> Moves:
    # one more <eos> behind them all: what it adds to the log-probabilities is the same before and after
    padded = [F.pad(window, (0, 7 - window.shape[1]), value=END) for window in windows]
    return Moves(row, start, torch.full_like(row, length), word, cost, gain, *padded)


def _highest(rows: Tensor, values: Tensor, n: int) -> Tensor:
    """The positions of each row's ``n`` highest values, row after row, the highest first.

    >>> _highest(torch.tensor([1, 0, 1, 1]), torch.tensor([5.0, 1.0, 7.0, 6.0]), 2).tolist()
    [1, 2, 3]
    """
    order = values.argsort(descending=True, stable=True)
    order = order[rows[order].argsort(stable=True)]
    ordered = rows[order].contiguous()
    rank = torch.arange(len(order), device=rows.device) - torch.searchsorted(ordered, ordered)
    return order[rank < n]


def edited(items: list[Item], start: int, length: int, word: int) -> list[Item]:
    """The items with those from ``start`` on replaced; what replaces one takes its place in the text."""
    new = [(word, items[start][1] if length else -1, True)] if word >= 0 else []
    return [*items[:start], *new, *items[start + length :]]
