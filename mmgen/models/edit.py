"""Style transfer by editing: a search for the fewest changes of words that change the style of a sentence.

A change deletes one or two words, replaces them by one, or inserts one. The new word is of the target style, and similar to
the replaced one or seen between the same neighbours. Changes are chosen one after another to maximise

``score(y) = - max(0, margin - s(y)) - fluency max(0, log p_source(x) - log p_target(y)) - cost(changes)``

s(y) is the log-odds of the target style by a linear classifier of n-grams, the only part trained by gradients; log p are
trigram language models of the styles, plus a fixed credit per word, so that short sentences are not favoured. Sentences that
no change improves, and unchanged parts of others, are returned letter by letter.

Trigrams see no grammar. With a frozen language model q, a beam search keeps the best ``candidates`` whole sentences y of x
for each sentence x; the best of x and of those that fulfil both conditions is returned, by

``score'(y) = - max(0, margin - s(y)) - reading words(y) rise(y) - cost(changes)``, ``s(y) > 0``, ``rise(y) <= tolerance``

rise(y) is how many nats per word y is less likely than x; words that y lacks count as likely as those of x on average:
``words(y) rise(y) = log q(x) - log q(y) + max(0, 1 - words(y) / words(x)) (-log q(x))``.
"""

import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmgen.data.batch import Batch, placed
from mmgen.data.label import LabelProcessor
from mmgen.data.text import tokens_of, train_word_tokenizer
from mmgen.errors import UserError, check_one_of, check_texts
from mmgen.models.base import REST, Losses, Model
from mmgen.models.style.ngrams import (
    BEGIN,
    END,
    UNKNOWN,
    NgramTable,
    framed,
    joined_vectors,
    style_counts,
    word_vectors,
    words_between,
)
from mmgen.models.style.sentence_reader import SentenceReader
from mmgen.models.style.spelling import Item, pieces_of, spell_changed, spell_piece
from mmgen.ranges import AtLeast, checked

CREDIT = 4.0  # nats per word, about its mean -log p in either language model
AT_ONCE = 256  # sentences edited together
DIM = 100  # size of the word vectors
RARE = 2e-5  # added to word frequencies before their ratio between styles
COMMON = 5  # least occurrences of a word that replaces similar ones
AGAINST = 0.1  # least log-odds for the source style of a word to replace
INSERTIONS = 4  # words tried per insertion
BEAM = 3  # edits of a sentence that each round changes further, if a language model chooses among whole sentences

PLAIN = re.compile(r"[^\W\d_][^\d_]*|[.!]")  # words that may be inserted: no numbers or special tokens


class Edit(Model):
    """p(style | text) by a linear classifier of n-grams, and a search for the fewest changes that change the style.

    `Edit.learn` builds it by counting; then the classifier is trained like any model. Two styles.

    Args:
        class_names: the two styles.
        words, pairs, triples, gaps: sizes of the tables, see `Edit.learn`.
        choices: candidates per position, by similarity and by neighbours each.
        margin: sufficient log-odds of the target style; a higher margin changes the style more surely and keeps less.
        fluency: weight of the loss of log-probability, per nat.
        change: cost of replacing a word, 1 or more; up to 1 less for a similar word.
        deletion: cost of deleting a word.
        insertion: cost of inserting a word.
        rounds: most changes per sentence.
        rivals: changes per round, best by the other terms, whose fluency is computed.
        l2: weight decay of the classifier, as a term l2 / 2 |w|^2 of the loss.
        language_model: frozen language model q that weighs whole sentences, see
            `mmgen.conditioning.language_model.load_language_model`; it is not saved with the model; empty: none, faster.
        candidates: whole sentences that it weighs for each sentence.
        reading: weight of a rise of -log q, per nat.
        tolerance: largest rise of -log q per word.
        dtype: arithmetic of the language model.

    Raises:
        UserError: not two names, or a number out of its range; in use, no item with text and label, or an unknown style.

    Source: style as a few words to be edited in place, Li et al. 2018, Delete, Retrieve, Generate, arXiv 1804.06437; there
        they are found by frequency and rewritten by a network. The search is new here.

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
        language_model: str = "",
        candidates: Annotated[int, AtLeast(1)] = 6,
        reading: Annotated[float, AtLeast(0)] = 0.3,
        tolerance: Annotated[float, AtLeast(0)] = 0.6,
        dtype: Literal["auto", "bf16", "fp16", "fp32"] = "auto",
    ) -> None:
        super().__init__()
        if len(class_names) != 2:
            raise UserError("class_names", got=class_names, expected="two styles", fix="give texts of exactly two styles")
        self.class_names, self.choices, self.margin, self.fluency = list(class_names), choices, margin, fluency
        self.change, self.deletion, self.insertion, self.rounds = change, deletion, insertion, rounds
        self.rivals, self.l2, self.reading, self.tolerance = rivals, l2, reading, tolerance
        self.language_model = SentenceReader(language_model, dtype) if language_model else None
        self.candidates, self.beam = (candidates, BEAM) if language_model else (1, 1)
        self.ngrams = NgramTable(words, pairs, triples)
        self.bias = nn.Parameter(torch.zeros(()))
        self.word_weights = nn.Parameter(torch.zeros(words))
        self.pair_weights = nn.Parameter(torch.zeros(pairs))
        self.triple_weights = nn.Parameter(torch.zeros(triples))
        self.register_buffer("frequency", torch.zeros(2, words))  # of each word by style
        self.register_buffer("vectors", torch.zeros(words, DIM))  # word vectors, of length 1 or 0
        # similar words in each style, filled with -1
        self.register_buffer("near", torch.full((2, words, choices), -1, dtype=torch.int32))
        self.register_buffer("gaps", torch.arange(gaps))  # (style * words + left) * words + right, sorted
        self.register_buffer("between", torch.full((gaps, choices), -1, dtype=torch.int32))  # words seen in each gap

    @classmethod
    def learn(cls, texts: Sequence[str], labels: Sequence[int], class_names: Sequence[str], **settings: Any) -> "Edit":
        """Build a model from the counts of these texts, with a classifier of zero weights.

        Args:
            texts: single sentences of both styles; blank ones are left out.
            labels: 0 or 1 for each, an index of ``class_names``.
            class_names: the two styles.
            settings: arguments of the constructor.

        Raises:
            UserError: not two styles, a label that is neither, a style without a text, or too few texts.
        """
        known = [(text, label) for text, label in zip(texts, labels) if text.strip()]
        texts, labels = [text for text, _ in known], [label for _, label in known]
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
        vectors = torch.from_numpy(word_vectors(sentences, counts.sum(0), DIM))
        if model.language_model is not None:
            vectors = joined_vectors(vectors, model.language_model.word_vectors(written), torch.from_numpy(counts.sum(0)))
        model.vectors.copy_(vectors)
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
        """Log-ratio of the frequency of each word in style 1 to that in style 0, (words,)."""
        return ((self.frequency[1] + RARE) / (self.frequency[0] + RARE)).log()

    @property
    def inputs(self) -> tuple[str, ...]:
        """The modality that it reads."""
        return ("text",)

    def usable(self, batch: Batch, phase: str = "train") -> dict[str, Tensor]:
        """The items with both."""
        return {REST: batch.having("text", "label")}

    def losses(self, batch: Batch, phase: str = "train") -> Losses:
        """The cross-entropy -log p(style | text), averaged over the items with both, and the weight penalty."""
        rows = self.usable(batch)[REST]
        if not rows.any():
            return self.zero_losses("cross_entropy", "penalty")
        weights = (self.word_weights, self.pair_weights, self.triple_weights)
        return Losses(
            cross_entropy=-self._log_likelihood(batch.items(rows)).mean(),
            penalty=self.l2 / 2 * torch.stack([w.square().sum() for w in weights]).sum(),
        )

    def log_likelihood(self, batch: Batch, samples: int = 1) -> Tensor:
        """Exact log p(style | text), (b,); 0 for items without both."""
        rows = batch.observed("text", "label")
        return placed(self._log_likelihood(batch.items(rows)), rows)

    def log_odds(self, ids: Tensor) -> Tensor:
        """The log-odds of style 1 of `framed` sentences, (b, t) -> (b,)."""
        words, pairs, triples = self._weights(ids)
        return self.bias + words.sum(1) + pairs.sum(1) + triples.sum(1)

    @torch.no_grad()
    def restyle(self, texts: Sequence[str], target: str) -> list[str]:
        """Rewrite texts in the style ``target``; blank texts and unknown languages are returned unchanged.

        Args:
            texts: any; each sentence is edited separately, and one of more than `LONGEST` words in pieces.
            target: one of ``class_names``.

        Raises:
            UserError: an unknown style.
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
                found = self._search([p for _, p in part], [kept[i] for i, _ in part], style)
                if self.language_model is not None:
                    found = self._weighed(self.language_model, found, [(some[i], read["offset_mapping"][i]) for i, _ in part])
                for (i, piece), edits in zip(part, found):
                    items[i] += max(edits, key=lambda edit: edit.score).items if edits else piece
            changed = zip(some, read["offset_mapping"], items)
            restyled += [spell_changed(text, offsets, words, tokenizer) for text, offsets, words in changed]
        return restyled

    def _search(self, pieces: list[list[Item]], kept: list[set[int]], style: int) -> list[list["Candidate"]]:
        """The best ``candidates`` edits of each piece and the piece itself; positions in ``kept`` are not changed.

        Each round changes the ``beam`` best edits of the round before it; none for a piece that is left alone.
        """
        ids = self.framed(pieces)
        source = self.fluency_of(ids, 1 - style)  # (n,)
        odds = self.log_odds(ids)
        lost = self.fluency_of(ids, style) - source
        zero = torch.zeros_like(source)
        scores, plain = self._score(odds, lost, zero, style), self._score(odds, zero, zero, style)
        known = torch.tensor([sum(word != UNKNOWN for word, _, _ in piece) * 2 >= len(piece) for piece in pieces])
        owner = torch.nonzero(((2 * style - 1) * odds < self.margin) & known.to(odds.device)).squeeze(1)  # piece of each state
        states, paid = [pieces[i] for i in owner.tolist()], zero[owner]
        found: list[list[Candidate]] = [[] for _ in pieces]
        seen = [{words_of(piece)} for piece in pieces]
        for i in owner.tolist():
            found[i] = [Candidate(pieces[i], scores[i].item(), plain[i].item())]
        floor = scores.clone()  # score of an edit that is worth keeping
        for _ in range(self.rounds):
            if not states:
                break
            ids = self.framed(states)
            locked = torch.zeros_like(ids, dtype=torch.bool)
            for row, (i, state) in enumerate(zip(owner.tolist(), states)):
                locked[row, [2 + n for n, (_, at, new) in enumerate(state) if new or at in kept[i]]] = True
            odds, lost = self.log_odds(ids), self.fluency_of(ids, style) - source[owner]
            moves = self.moves(ids, locked, style)
            fluent = torch.zeros_like(moves.cost)  # upper bound without loss of fluency: skips changes that cannot gain
            bound = self._score(odds[moves.row] + moves.gain, fluent, paid[moves.row] + moves.cost, style)
            gain = torch.nonzero(bound > floor[owner][moves.row]).squeeze(1)
            moves, bound = moves.take(gain), bound[gain]
            first = _highest(moves.row, bound, self.rivals)
            moves, bound = moves.take(first), bound[first]
            spent, turned = paid[moves.row] + moves.cost, (2 * style - 1) * (odds[moves.row] + moves.gain) > 0
            fluency = lost[moves.row] + self.fluency_of(moves.after, style) - self.fluency_of(moves.before, style)
            reached = self._score(odds[moves.row] + moves.gain, fluency, spent, style)
            first = _highest(owner[moves.row], reached, self.candidates)
            moves, reached, spent = moves.take(first), reached[first], spent[first]
            unspoilt, turns = bound[first].tolist(), turned[first].tolist()
            owners: list[int] = owner[moves.row].tolist()
            places: list[int] = []
            edits: list[list[Item]] = []
            for n, (i, row) in enumerate(zip(owners, moves.row.tolist())):
                state = edited(states[row], int(moves.start[n]) - 2, int(moves.length[n]), int(moves.word[n]))
                if words_of(state) not in seen[i]:
                    seen[i].add(words_of(state))
                    if turns[n] or self.language_model is None:
                        found[i].append(Candidate(state, reached[n].item(), unspoilt[n]))
                    if sum(o == i for o in [owners[p] for p in places[-self.beam :]]) < self.beam:
                        places.append(n)
                        edits.append(state)
            for i in set(owners):
                found[i] = [found[i][0], *sorted(found[i][1:], key=lambda edit: -edit.score)[: self.candidates]]
                if len(found[i]) > self.candidates:
                    floor[i] = max(floor[i].item(), found[i][-1].score)
            states, owner, paid = (
                edits,
                torch.tensor([owners[n] for n in places], dtype=torch.long, device=ids.device),
                spent[places],
            )
        return found

    def _weighed(
        self, reader: SentenceReader, found: list[list["Candidate"]], texts: Sequence[tuple[str, list[tuple[int, int]]]]
    ) -> list[list["Candidate"]]:
        """The edits of each piece, the piece itself first, scored by the language model instead of the trigrams."""
        tokenizer = self.processors["text"].tokenizer
        spelt = [
            [spell_piece(text, offsets, edit.items, edits[0].items, tokenizer) for edit in edits] if len(edits) > 1 else []
            for edits, (text, offsets) in zip(found, texts)
        ]
        weighed = []
        for edits, log_q in zip(found, reader.log_probs(spelt)):
            scored = edits
            if len(edits) > 1:
                words = torch.tensor([len(edit.items) for edit in edits])
                rise = log_q[0] - log_q - (1 - words / words[0]).clamp(min=0) * log_q[0]
                scored = [
                    edit._replace(score=edit.plain - self.reading * more)
                    for edit, more, n in zip(edits, rise.tolist(), words.tolist())
                    if more <= self.tolerance * n
                ]
            weighed.append(scored)
        return weighed

    def moves(self, ids: Tensor, locked: Tensor, style: int) -> "Moves":
        """All changes of sentences (b, t) that insert a word, or replace or delete one or two."""
        word = (ids > END) & ~locked  # (b, t)
        against = (1 - 2 * style) * self._shares(ids)  # log-odds of each word for the source style
        two = against.masked_fill(~word, -torch.inf).topk(min(2, ids.shape[1]), dim=1).indices
        wanted = word & (against > AGAINST)
        wanted |= word & ~wanted.any(1, keepdim=True) & torch.zeros_like(word).scatter(1, two, True)
        lengths = (ids > END).sum(1)
        # before each word but the first, and at the end
        gap = (ids != BEGIN) & (ids.roll(1, 1) > END) & ~(locked & locked.roll(1, 1))
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
            options = options.masked_fill((options[:, :, None] == ids[row][:, None, :]).any(2), -1)  # no word twice
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
        """log p in a style plus `CREDIT` per word, (b,), of framed sentences or parts of them (b, t)."""
        a, b, word = ids[:, :-2], ids[:, 1:-1], ids[:, 2:]
        found = self.ngrams.log_prob(a, b, word, torch.tensor(style, device=ids.device))
        return found.masked_fill((b == END) | (word == BEGIN), 0).sum(1) + CREDIT * (ids > END).sum(1)

    def _weights(self, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Weights of the words, pairs and triples of sentences (b, t): (b, t), (b, t - 1), (b, t - 2)."""
        pair, triple = self.ngrams.find(ids[:, :-1], ids[:, 1:]), self.ngrams.find(ids[:, :-2], ids[:, 1:-1], ids[:, 2:])
        return (
            self.word_weights[ids].masked_fill(ids <= END, 0),
            self.pair_weights[pair].masked_fill((pair < 0) | (ids[:, :-1] == END) | (ids[:, 1:] == BEGIN), 0),
            self.triple_weights[triple].masked_fill((triple < 0) | (ids[:, 1:-1] == END) | (ids[:, 1:-1] == BEGIN), 0),
        )

    def _shares(self, ids: Tensor) -> Tensor:
        """Log-odds of style 1 per word (b, t), the weight of each n-gram divided equally among its words."""
        words, pairs, triples = self._weights(ids)
        shared = words.clone()
        for n, weights in ((2, pairs), (3, triples)):
            for i in range(n):
                shared[:, i : i + weights.shape[1]] += weights / n
        return shared

    def _between(self, left: Tensor, right: Tensor, style: int) -> Tensor:
        """Words of a style seen between two others, likeliest first, filled with -1: (n,) -> (n, choices)."""
        key = (style * self.ngrams.words + left) * self.ngrams.words + right
        place = torch.searchsorted(self.gaps, key).clamp(max=len(self.gaps) - 1)
        return self.between[place].long().where((self.gaps[place] == key)[:, None], -1)

    def framed(self, items: Sequence[list[Item]]) -> Tensor:
        """Token ids of items between start and end tokens, (b, t)."""
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


class Candidate(NamedTuple):
    """An edit of a sentence: its score, and its score without any loss of fluency."""

    items: list[Item]
    score: float
    plain: float


class Moves(NamedTuple):
    """Changes of sentences, (m,) each: ``length`` words of ``row`` from ``start`` become ``word`` (-1: none)."""

    row: Tensor
    start: Tensor
    length: Tensor
    word: Tensor
    cost: Tensor
    gain: Tensor  # change in log-odds of style 1
    before: Tensor  # (m, 7) the changed words with two to the left and two to the right
    after: Tensor  # (m, 7)

    def take(self, index: Tensor) -> "Moves":
        """The changes at ``index``."""
        return Moves(*(part[index] for part in self))


def _moves(row: Tensor, start: Tensor, length: int, word: Tensor, cost: Tensor, gain: Tensor, *windows: Tensor) -> Moves:
    # one more <eos> at the end adds the same log-probability before and after
    padded = [F.pad(window, (0, 7 - window.shape[1]), value=END) for window in windows]
    return Moves(row, start, torch.full_like(row, length), word, cost, gain, *padded)


def _highest(rows: Tensor, values: Tensor, n: int) -> Tensor:
    """Indices of the ``n`` highest values of each row, row by row, highest first.

    >>> _highest(torch.tensor([1, 0, 1, 1]), torch.tensor([5.0, 1.0, 7.0, 6.0]), 2).tolist()
    [1, 2, 3]
    """
    order = values.argsort(descending=True, stable=True)
    order = order[rows[order].argsort(stable=True)]
    ordered = rows[order].contiguous()
    rank = torch.arange(len(order), device=rows.device) - torch.searchsorted(ordered, ordered)
    return order[rank < n]


def words_of(items: list[Item]) -> tuple[int, ...]:
    """The words of items."""
    return tuple(word for word, _, _ in items)


def edited(items: list[Item], start: int, length: int, word: int) -> list[Item]:
    """Replace items from ``start`` on; a replacement takes the position of its original in the text."""
    new = [(word, items[start][1] if length else -1, True)] if word >= 0 else []
    return [*items[:start], *new, *items[start + length :]]
