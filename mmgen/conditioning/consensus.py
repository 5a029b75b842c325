"""Minimum Bayes risk decoding: the candidate text that agrees best with all candidates."""

import math
import re
from collections import Counter
from collections.abc import Sequence

WORD = re.compile(r"\w[\w'-]*")


def consensus(candidates: Sequence[str], n: int = 1, cut: int = 3) -> list[str]:
    """The ``n`` texts that agree best with all candidates: ``argmax_h sum_i similarity(h, candidate_i)``.

    Candidates are draws from what the model believes. The likeliest text may be right nowhere; this one keeps what most of
    them say and, as texts with a few words left out are considered too, leaves out what they do not agree on.

    Args:
        candidates: texts, at least one; what is said twice counts twice.
        n: texts to return, best first; fewer where there are not so many.
        cut: the longest run of words that may be left out of a candidate; 0 leaves all in.

    Source: Kumar and Byrne 2004, Minimum Bayes-risk decoding; Tromble et al. 2008 for more hypotheses than candidates.

    >>> consensus([f"flag: {country}" for country in "Chad Cuba Fiji Iran Iraq Laos Mali Oman Peru".split()])
    ['flag']
    """
    said = Counter(candidates)
    counts = {text: ngrams(text) for text in said}
    hypotheses = dict.fromkeys(shorter for text in said for shorter in [text, *cuts(text, cut)])
    agreement = {}
    for text in hypotheses:
        own = ngrams(text)
        agreement[text] = sum(times * similarity(own, counts[other]) for other, times in said.items())
    return sorted(agreement, key=agreement.__getitem__, reverse=True)[:n]


def similarity(a: list[Counter], b: list[Counter]) -> float:
    """The overlap of two texts' `ngrams`, ``1/4 sum_k |a_k and b_k| / sqrt(|a_k| |b_k|)``, from 0 to 1.

    A text of fewer than four words has no longer n-grams and reaches less.

    >>> similarity(ngrams("a red cat sits"), ngrams("a red cat sits"))
    1.0
    """
    total = 0.0
    for first, second in zip(a, b):
        if first and second:
            total += (first & second).total() / math.sqrt(first.total() * second.total())
    return total / len(a)


def ngrams(text: str) -> list[Counter]:
    """How often each run of 1, 2, 3 and 4 words stands in ``text``, case and punctuation aside."""
    words = WORD.findall(text.lower())
    return [Counter(zip(*(words[i:] for i in range(k)))) for k in range(1, 5)]


def cuts(text: str, longest: int) -> list[str]:
    """``text`` without each run of up to ``longest`` of its words, never without all.

    >>> cuts("woman rowing boat: dark", 2)[3:5]
    ['woman rowing boat', 'boat: dark']
    """
    places = [match.span() for match in WORD.finditer(text)]
    shorter = []
    for length in range(1, min(longest, len(places) - 1) + 1):
        for first in range(len(places) - length + 1):
            start, end = places[first][0], places[first + length - 1][1]
            shorter.append((text[:start].rstrip() + text[end:]).strip(" ,:;"))
    return shorter
