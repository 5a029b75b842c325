"""Words of texts: the share of distinct n-grams, and the share of texts that hold given words."""

import re
from collections.abc import Sequence
from statistics import fmean

from mmgen.errors import UserError


def distinct(texts: Sequence[str], n: int) -> float:
    """The share of different n-grams of words among all of them: dist-n.

    Args:
        texts: one or more.
        n: length of the n-grams in words, 1 or more.

    Returns:
        0 to 1; 0 where no text has n words.

    Raises:
        UserError: no texts, or n below 1.

    Source: Li et al. 2016, A Diversity-Promoting Objective Function for Neural Conversation Models, arXiv 1510.03055.

    >>> distinct(["a b a b"], 1), distinct(["a b a b"], 2)
    (0.5, 0.6666666666666666)
    """
    if isinstance(texts, str) or not texts or n < 1:
        raise UserError("texts and n", got=f"{texts!r} and {n}", expected="a list of texts and 1 or more", fix="correct them")
    grams = [tuple(words[i : i + n]) for words in map(str.split, texts) for i in range(len(words) - n + 1)]
    return len(set(grams)) / len(grams) if grams else 0.0


def share_with(texts: Sequence[str], words: Sequence[str]) -> float:
    """The share of texts that hold one of ``words``, or its plural, in any case.

    >>> share_with(["The Planets shine", "a planetary idea"], ["planet"])
    0.5
    """
    pattern = re.compile(rf"\b(?:{'|'.join(map(re.escape, words))})(?:s|es)?\b", re.IGNORECASE)
    return fmean(bool(pattern.search(text)) for text in texts)
