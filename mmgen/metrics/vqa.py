"""Accuracy of visual question answering: exact match after the VQA normalisation."""

import re
from collections.abc import Sequence

from mmgen.errors import UserError

ARTICLES = {"a", "an", "the"}
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
DIGITS = {"none": "0", **{word: str(i) for i, word in enumerate(NUMBERS)}}
MARKS = ';/[]"{}()=+\\_-><@`,?!'
# one spelling of each; an answer may leave out any of the apostrophes
CONTRACTIONS = """
    ain't aren't can't couldn't could've didn't doesn't don't hadn't hasn't haven't he'd he's how'd how'll
    how's i'm i've isn't it'd it'll let's ma'am mightn't might've mustn't must've needn't not've oughtn't
    o'clock shan't she's shouldn't should've somebody'd someone'd something'd that's there'd there're there's
    they'd they'll they're they've wasn't we've weren't what'll what're what's what've when's where'd where's
    where've who'd who'll who's who've why'll why're why's won't wouldn't would've y'all you'd you'll you're
    you've couldn't've hadn't've he'd've i'd've it'd've mightn't've she'd've shouldn't've they'd've we'd've
    wouldn't've who'd've you'd've
"""
SPELLING = {c.replace("'", ""): c for c in CONTRACTIONS.split()}


def normalise(answer: str) -> str:
    """An answer as the VQA evaluation compares it: lower case, without articles, punctuation and line ends, numbers as digits.

    A punctuation mark next to a space is dropped, any other becomes a space; in an answer with a comma between digits all are
    dropped. A full stop is kept only before a digit. The words none and zero to ten become digits, and contractions get their
    apostrophes.

    Source: the evaluation of Antol et al. 2015, VQA, and Goyal et al. 2017, VQA v2, with three differences: an answer of
        articles alone is left unchanged, curly apostrophes count as straight ones, and a contraction may lack any of its
        apostrophes, not only those of the listed misspellings.

    >>> normalise("The Two red-ish dogs, dont they?"), normalise("1,000 (or 2.50)."), normalise("A")
    ("2 red ish dogs don't they", '1000 or 2.50', 'a')
    """
    given = text = " ".join(answer.lower().replace("\N{RIGHT SINGLE QUOTATION MARK}", "'").split())
    thousands = re.search(r"\d,\d", given)
    for mark in MARKS:
        dropped = thousands or f"{mark} " in given or f" {mark}" in given
        text = text.replace(mark, "" if dropped else " ")
    words = re.sub(r"\.(?!\d)", "", text).split()
    words = [DIGITS.get(word, word) for word in words if word not in ARTICLES] or words
    return " ".join(SPELLING.get(word.replace("'", ""), word) for word in words)


def exact_match(made: Sequence[str], true: Sequence[str]) -> float:
    """The share of answers that equal the true answer after `normalise`.

    Args:
        made: n answers of a model; an empty one is wrong.
        true: the n true answers.

    Returns:
        The mean over items, from 0 to 1.

    Raises:
        UserError: there are none, their numbers differ, or a true answer has no word.

    >>> exact_match(["Yes.", "two", "red"], ["yes", "2", "blue"])
    0.6666666666666666
    """
    if not made:
        raise UserError("made", got="none", expected="at least one answer", fix="give the answers to judge")
    if len(made) != len(true):
        expected = f"{len(made)}, one for each answer made"
        raise UserError("true", got=len(true), expected=expected, fix="give them in the same order")
    for i, answer in enumerate(true):
        if not normalise(answer):
            raise UserError(f"true[{i}]", got=repr(answer), expected="an answer with a word", fix="leave the item out")
    return sum(normalise(m) == normalise(t) for m, t in zip(made, true)) / len(made)
