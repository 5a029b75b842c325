"""Minimum Bayes risk decoding: the candidate text that agrees best with all candidates."""

import math
import re
from collections import Counter
from collections.abc import Collection, Mapping
from itertools import pairwise

WORD = re.compile(r"\w[\w'-]*")
PIECE = re.compile(r"\w[\w'\u2019-]*|[^\w\s]")


def consensus(candidates: Mapping[str, float], n: int = 1, among: Collection[str] = ()) -> list[str]:
    """Minimum Bayes risk texts, which agree best with all candidates: ``argmax_h sum_c p(c) similarity(h, c)``.

    The candidates are samples of a model, or texts with their posterior. While the single likeliest text may be wrong
    everywhere, the consensus is what most candidates agree on. It is one of them, so it is as well formed as they are.

    Args:
        candidates: text -> weight, at least one text.
        n: number of texts to return, best first; all where there are fewer.
        among: the candidates that may be returned, where others only have a vote; none: all.

    Source: Kumar and Byrne 2004, Minimum Bayes-risk decoding.

    >>> consensus({"flag: Chad": 0.2, "flag: Cuba": 0.3, "a cat": 0.3})
    ['flag: Cuba']
    >>> consensus({"flag: Chad": 0.2, "flag: Cuba": 0.3, "a cat": 0.2}, among=["flag: Chad", "a cat"])
    ['flag: Chad']
    """
    counts = {text: ngrams(text) for text in candidates}
    agreed = {
        text: sum(weight * similarity(counts[text], counts[other]) for other, weight in candidates.items())
        for text in among or counts
    }
    return sorted(agreed, key=agreed.__getitem__, reverse=True)[:n]


def agreement(candidates: Mapping[str, float]) -> float:
    """The mean similarity of two candidates drawn by their weights, from 0 to 1 (at most m / 4 if all have m < 4 words).

    >>> agreement({"a red cat sits": 3}), agreement({"yes": 1, "no": 1})
    (1.0, 0.125)
    """
    counts = {text: ngrams(text) for text in candidates}
    both = sum(v * w * similarity(counts[a], counts[b]) for a, v in candidates.items() for b, w in candidates.items())
    return both / sum(candidates.values()) ** 2


def similarity(a: list[Counter], b: list[Counter]) -> float:
    """Overlap of two texts' `ngrams`, ``1/4 sum_k |a_k and b_k| / sqrt(|a_k| |b_k|)``, from 0 to 1.

    A text of m < 4 words has no longer n-grams and reaches at most m / 4.

    >>> similarity(ngrams("a red cat sits"), ngrams("a red cat sits"))
    1.0
    """
    total = 0.0
    for first, second in zip(a, b):
        if first and second:
            total += (first & second).total() / math.sqrt(first.total() * second.total())
    return total / len(a)


def word_pairs(text: str) -> set[tuple[str, str]]:
    """Neighbouring words and punctuation marks of ``text``, with "" before the first and after the last, ignoring case.

    >>> sorted(word_pairs("Flag: Chad"))
    [('', 'flag'), (':', 'chad'), ('chad', ''), ('flag', ':')]
    """
    words = ["", *PIECE.findall(text.lower()), ""]
    return set(pairwise(words))


def ngrams(text: str) -> list[Counter]:
    """Counts of the 1-, 2-, 3- and 4-grams of words in ``text``, ignoring case and punctuation."""
    words = WORD.findall(text.lower())
    return [Counter(zip(*(words[i:] for i in range(k)))) for k in range(1, 5)]
