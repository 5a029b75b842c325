"""Minimum Bayes risk decoding: the candidate text that agrees best with all candidates."""

import math
import re
from collections import Counter
from collections.abc import Sequence

WORD = re.compile(r"\w[\w'-]*")


def consensus(candidates: Sequence[str], n: int = 1, cut: int = 3) -> list[str]:
    """Minimum Bayes risk texts, which agree best with all candidates: ``argmax_h sum_i similarity(h, candidate_i)``.

    The candidates are samples of a model. While the single likeliest text may be wrong everywhere, the consensus keeps what
    most candidates agree on; candidates with a few words removed are considered too, so that it can drop what they disagree
    on.

    Args:
        candidates: texts, at least one; duplicates count as often as they occur.
        n: number of texts to return, best first; all where there are fewer.
        cut: longest run of words that may be removed from a candidate; 0 removes none.

    Source: Kumar and Byrne 2004, Minimum Bayes-risk decoding; Tromble et al. 2008 for hypotheses beyond the candidates.

    >>> consensus([f"flag: {country}" for country in "Chad Cuba Fiji Iran Iraq Laos Mali Oman Peru".split()])
    ['flag']
    """
    times = Counter(candidates)
    counts = {text: ngrams(text) for text in times}
    hypotheses = dict.fromkeys(shorter for text in times for shorter in [text, *cuts(text, cut)])
    agreement = {}
    for text in hypotheses:
        own = ngrams(text)
        agreement[text] = sum(n * similarity(own, counts[other]) for other, n in times.items())
    return sorted(agreement, key=agreement.__getitem__, reverse=True)[:n]


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


def ngrams(text: str) -> list[Counter]:
    """Counts of the 1-, 2-, 3- and 4-grams of words in ``text``, ignoring case and punctuation."""
    words = WORD.findall(text.lower())
    return [Counter(zip(*(words[i:] for i in range(k)))) for k in range(1, 5)]


def cuts(text: str, longest: int) -> list[str]:
    """Versions of ``text`` with one run of up to ``longest`` words removed, but never all words.

    >>> cuts("woman rowing boat: dark", 2)[3:5]
    ['woman rowing boat', 'boat: dark']
    """
    spans = [match.span() for match in WORD.finditer(text)]
    shorter = []
    for length in range(1, min(longest, len(spans) - 1) + 1):
        for first in range(len(spans) - length + 1):
            start, end = spans[first][0], spans[first + length - 1][1]
            shorter.append((text[:start].rstrip() + text[end:]).strip(" ,:;"))
    return shorter
