"""Scores of rewritten sentences by a separate classifier of the style, a language model, and human rewrites."""

import copy
import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from mmgen.data.batch import Batch, collate
from mmgen.data.cards import check_column, check_columns, class_names, read_card
from mmgen.data.rows import open_rows
from mmgen.errors import Mistakes, UserError, counted
from mmgen.judging.perplexity import Reader
from mmgen.metrics.style import style_lexicon, style_scores, tokenize, transfer_accuracy
from mmgen.models.base import Model
from mmgen.models.classifier import Classifier
from mmgen.models.mag import AdaptedTransformer
from mmgen.models.sentence_vae import SentenceVAE

AT_ONCE = 64  # sentences judged together
SAMPLES = 1  # draws of the bound on log p of a `SentenceVAE`
shared_reader = functools.cache(Reader)  # shared by the seeds of a study, with mostly equal texts


@dataclass
class Sentences:
    """Sentences with their styles as class indices, the names of both styles, and human rewrites, if any."""

    texts: list[str]
    labels: list[int]
    names: list[str]
    references: list[list[str]] = field(default_factory=list)

    def part(self, limit: int) -> "Sentences":
        """``limit`` of the sentences, spread over all."""
        kept = strided(len(self.texts), limit)
        whole: dict[str, Any] = {"texts": self.texts, "labels": self.labels, "references": self.references}
        return replace(self, **{name: [values[i] for i in kept] for name, values in whole.items() if values})


@dataclass
class StyleData:
    """Sentences of two styles.

    Args:
        card: data card or table; rows without a text or a style are ignored.
        text: column of sentences.
        label: column of exactly two styles.
        references: column of human rewrites; empty: none.
    """

    card: str = "rated_reviews"
    text: str = "text"
    label: str = "label"
    references: str = ""

    def check(self, path: str, errors: Mistakes) -> None:
        """Check the columns, and that there are two styles."""
        check_columns(self, path, errors, {"text": ["text"]}, one_text=True)
        if self.references:
            check_columns(self, path, errors, {"references": ["text"]})
        card = read_card(self.card)
        self.label = check_column(card, f"{path}.label", self.label, "label")
        if len(names := class_names(card, self.label)) != 2:
            got, fix = f"{len(names)} styles ({', '.join(names[:5])})", "keep two, or choose another column"
            raise UserError(f"{path}.label={self.label}", got=got, expected="exactly two", fix=fix)

    def sentences(self, split: str, limit: int = 0) -> Sentences:
        """The sentences of a split, or ``limit`` of them spread over it.

        Raises:
            UserError: one of the styles is missing.
        """
        names = class_names(read_card(self.card), self.label)
        rows = open_rows(self.card, split, [], [self.text, self.label]).having(self.text, self.label)
        rows = rows.select(strided(len(rows), limit))
        human = rows[self.references].texts() if self.references else []
        found = Sentences(rows[self.text][:], rows[self.label][:], names, human if any(human) else [])
        if missing := [name for i, name in enumerate(names) if i not in found.labels]:
            got, fix = f"{counted(len(found.texts), 'text')}, none {missing[0]}", "give more texts, or choose another split"
            raise UserError(f"{self.card}: {split}", got=got, expected="texts of both styles", fix=fix)
        return found


def strided(n: int, limit: int) -> list[int]:
    """``limit`` of n indices, spread over all of them; 0: all.

    >>> strided(5, 3)
    [0, 1, 3]
    """
    return [i * n // limit for i in range(limit)] if 0 < limit < n else list(range(n))


@torch.no_grad()
def style_probs(judge: Classifier | AdaptedTransformer, texts: Sequence[str]) -> np.ndarray:
    """p(style | text) by a classifier, (n, 2); 0.5 for an empty text."""
    found = np.full((len(texts), 2), 0.5)
    for some, batch in _batches(judge, texts):
        found[some] = judge.predict(batch).probs.cpu().numpy()
    return found


def _batches(judge: Model, texts: Sequence[str]) -> Iterator[tuple[list[int], Batch]]:
    """The tokenised texts that are not empty, of similar lengths together, with their indices."""
    ids = {i: judge.processors["text"](" ".join(words)) for i, text in enumerate(texts) if (words := tokenize(text))}
    order = sorted(ids, key=lambda i: len(ids[i]))
    for start in range(0, len(order), AT_ONCE):
        some = order[start : start + AT_ONCE]
        yield some, collate([{"text": ids[i]} for i in some], ["text"]).to(judge.step.device)


def sentence_log_probs(judge: Reader | SentenceVAE, texts: Sequence[str]) -> list[float]:
    """log p of each text and its end, in nats, 0 for an empty one, as `mmgen.metrics.style.perplexity` reads it.

    Args:
        judge: a language model, or a `SentenceVAE`, whose importance-weighted bound is drawn with the same seed every time.
        texts: any; they are tokenised first.
    """
    if isinstance(judge, Reader):
        written = [" ".join(tokenize(text)) for text in texts]
        return [min(mean * count, 0.0) for mean, count in judge.log_probs(written, end=True)]
    found = [0.0] * len(texts)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for some, batch in _batches(judge, texts):
            for i, log_p in zip(some, judge.log_likelihood(batch, SAMPLES).tolist()):
                found[i] = min(log_p, 0.0)
    return found


class StyleScorer:
    """Scores of rewrites of the same sentences by the same judges for all systems.

    Args:
        judges: figure -> classifier of the style that gives it, such as ``accuracy``; the other figures of a system are by
            the judge that finds it less accurate.
        held: training sentences of the judges, which determine the words of each style.
        data: original sentences.
        fluency: language model for ``perplexity`` and ``broken_share``, see `sentence_log_probs`.
    """

    def __init__(
        self,
        judges: dict[str, Classifier | AdaptedTransformer],
        held: Sentences,
        data: Sentences,
        fluency: Reader | SentenceVAE,
    ) -> None:
        self.judges, self.data, self.fluency = judges, data, fluency
        self.style_words = style_lexicon(held.texts, held.labels)
        self._of_data = sentence_log_probs(fluency, data.texts)

    @property
    def targets(self) -> np.ndarray:
        """The target style of each sentence, (n,)."""
        return 1 - np.array(self.data.labels)

    def of(self, data: Sentences) -> "StyleScorer":
        """The same judges for other sentences."""
        other = copy.copy(self)
        other.data, other._of_data = data, sentence_log_probs(self.fluency, data.texts)
        return other

    def __call__(self, outputs: Sequence[str]) -> dict[str, float]:
        """The figures of `style_scores`, the accuracy by each judge, and ``accuracy_strict``, the lowest of them.

        The figures that need missing human rewrites are left out.
        """
        data, references = self.data, self.data.references or [[text] for text in self.data.texts]
        probs = {name: style_probs(judge, outputs) for name, judge in self.judges.items()}
        each = {name: transfer_accuracy(found, self.targets) for name, found in probs.items()}
        strict = probs[min(each, key=each.__getitem__)]
        log_p = sentence_log_probs(self.fluency, outputs)
        scores = style_scores(outputs, data.texts, references, strict, self.targets, log_p, self.style_words, self._of_data)
        found = {"accuracy_strict": scores.pop("accuracy"), **each}
        dropped = [] if data.references else ["ref_bleu", "style_content", "geometric_mean"]
        return found | {name: value for name, value in scores.items() if name not in dropped}
