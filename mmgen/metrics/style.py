"""How well texts were rewritten in another style: whether the style changed, what stayed, how people would have written it.

No figure here says much alone. The input copied has the best self-BLEU there is and a better reference-BLEU than most systems,
any sentence of the other style the best accuracy: so `style_scores` gives all of them. They see the words of `tokenize`.
"""

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
from sacrebleu import BLEU
from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

#: what stands beside every BLEU and perplexity made here
TOKENISATION = (
    "mmgen style 1: lower-cased, punctuation and English clitics split (sacrebleu corpus BLEU-4, tok:none, smooth:exp)"
)

#: what has no content of its own beside scikit-learn's English stop words
_EMPTY = ENGLISH_STOP_WORDS | {"ca", "wo", "n't", "did", "does", "got", "just", "really"}
_QUOTES = {"\N{RIGHT SINGLE QUOTATION MARK}": "'", "``": '"', "''": '"', "\N{LEFT DOUBLE QUOTATION MARK}": '"',
           "\N{RIGHT DOUBLE QUOTATION MARK}": '"', "\N{HORIZONTAL ELLIPSIS}": "..."}  # fmt: skip
_TOKEN = re.compile(
    r"[^\W\d_]+(?=n't\b)|n't\b|can(?=not\b)|'(?:s|m|d|re|ve|ll)\b"  # is|n't  ca|n't  can|not  it|'s
    r"|\w+(?:[-&]\w+|(?<=\d)[.,:/](?=\d)\w+)*|\.{2,}|\S"  # well-made  at&t  7:30  1,000  ...  and any other mark alone
)


def tokenize(text: str) -> list[str]:
    """The words and marks of a text: lower case, punctuation split off, and the clitics n't, 's, 'm, 'd, 're, 've, 'll too.

    Made to leave a text alone that is tokenised as the Penn Treebank is, but for its quotation marks, which become ``"``.
    Hyphens inside a word, marks inside a number and runs of full stops stay in one piece.

    Args:
        text: in a language that writes spaces between words.

    Returns:
        The tokens; joined by spaces and tokenised again they stay the same.

    >>> tokenize("I can't say it's “well-made”: $1,000!")
    ['i', 'ca', "n't", 'say', 'it', "'s", '"', 'well-made', '"', ':', '$', '1,000', '!']
    """
    text = unicodedata.normalize("NFC", text.lower())
    for mark, plain in _QUOTES.items():
        text = text.replace(mark, plain)
    return _TOKEN.findall(text)


def transfer_accuracy(predictions: Sequence[int] | np.ndarray, targets: Sequence[int] | np.ndarray | int) -> float:
    """The share of texts that a judge takes to be in the style they were rewritten for.

    Args:
        predictions: the judge's label of each text (n,), or its probabilities of the labels (n, classes).
        targets: the label each text was rewritten for (n,), or one for all.

    Returns:
        0 to 1. Read it beside the judge's accuracy and beside that of human rewrites, which can be far below 1.

    Raises:
        ValueError: there is no text, or the shapes do not fit.

    >>> transfer_accuracy([[0.9, 0.1], [0.2, 0.8]], 1)
    0.5
    """
    labels = np.asarray(predictions)
    labels = labels.argmax(1) if labels.ndim == 2 and labels.shape[1] else labels
    wanted = np.broadcast_to(targets, labels.shape) if np.ndim(targets) == 0 else np.asarray(targets)
    if not labels.size or labels.ndim != 1 or wanted.shape != labels.shape:
        got = f"{np.shape(predictions)} and {np.shape(targets)}"
        raise ValueError(f"predictions and targets: got shapes {got}, expected as many, one or more; give one of each a text")
    return float((labels == wanted).mean())


def self_bleu(outputs: Sequence[str], sources: Sequence[str]) -> float:
    """Corpus BLEU-4 of the outputs against their own inputs: how much was kept, 0 to 100.

    Raises:
        ValueError: as `reference_bleu`.

    >>> round(self_bleu(["the soup was not good"], ["The soup was not good"]))
    100
    """
    _check(sources=(sources, outputs))
    return reference_bleu(outputs, [[text] for text in sources])


def reference_bleu(outputs: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Corpus BLEU-4 of the outputs against human rewrites, 0 to 100.

    ``BLEU = 100 min(1, exp(1 - r/c)) exp(1/4 sum_n log p_n)`` over the words of `tokenize`; see `TOKENISATION`.

    Args:
        outputs: n texts; an empty one matches nothing.
        references: for each of them one or more rewrites.

    Returns:
        One figure for the corpus. A mean of the sentences' own BLEU is another figure, some 8 points away.

    Raises:
        ValueError: there is no text, the lengths differ, or a text has no reference.

    Source: Papineni et al. 2002, BLEU; computed by sacrebleu, Post 2018, arXiv 1804.08771.

    >>> round(reference_bleu(["the soup was good"], [["the soup is bad", "The food was fine!"]]), 1)
    35.4
    """
    _check(references=(references, outputs))
    for i, rewrites in enumerate(references):
        if isinstance(rewrites, str) or not rewrites:
            raise ValueError(f"references[{i}]: got {rewrites!r}, expected a list of one or more texts; write ['...']")
    said = [_joined(text) for text in outputs]
    truth = [[_joined(text) for text in rewrites] for rewrites in references]
    streams = [[item[i] if i < len(item) else None for item in truth] for i in range(max(map(len, truth)))]
    # force: no warning that texts are tokenised
    return BLEU(tokenize="none", force=True).corpus_score(said, streams).score  # type: ignore[arg-type]  # None: no reference


def style_lexicon(texts: Sequence[str], labels: Sequence[int], ratio: float = 3.0, prior: float = 10.0) -> frozenset[str]:
    """The words that tell one style from the others: in it ``ratio`` times as frequent, or more, as in the others together.

    ``(n + prior) >= ratio (n' N / N' + prior)``, n and n' counting a word in the style and in the others, N and N' all words.

    Args:
        texts: of every style; not those that a system to be scored was made from.
        labels: the style of each.
        ratio: above 1.
        prior: above 0; the larger, the more often a word must be seen: a name met five times is not a word of style.

    Returns:
        The words, of all styles together.

    Raises:
        ValueError: the lengths differ, the ratio is 1 or below, or the prior 0 or below.

    >>> sorted(style_lexicon(["good soup"] * 20 + ["bad soup"] * 20, [1] * 20 + [0] * 20))
    ['bad', 'good']
    """
    _check(labels=(labels, texts))
    if not (ratio > 1 and prior > 0):
        raise ValueError(f"ratio and prior: got {ratio} and {prior}, expected above 1 and above 0; use 3 and 10")
    counts: dict[int, Counter[str]] = {}
    for text, label in zip(texts, labels):
        counts.setdefault(label, Counter()).update(tokenize(text))
    everywhere = sum(counts.values(), Counter())
    words = everywhere.total()
    found = set()
    for own in counts.values():
        scale = own.total() / max(1, words - own.total())
        found |= {w for w, n in own.items() if n + prior >= ratio * ((everywhere[w] - n) * scale + prior)}
    return frozenset(found)


def content_words(text: str, style_words: Collection[str] = ()) -> list[str]:
    """The words that a change of style should leave: names, numbers, and what the text is about.

    Tokens with a letter or a digit that are neither clitics, nor scikit-learn's English stop words, nor did, does, got, just,
    really, nor among ``style_words``.

    >>> content_words("The 2 waiters of Ann's were rude.", {"rude"})
    ['2', 'waiters', 'ann']
    """
    return [
        token
        for token in tokenize(text)
        if token[0] != "'" and any(map(str.isalnum, token)) and token not in _EMPTY and token not in style_words
    ]  # fmt: skip


def content_recall(outputs: Sequence[str], sources: Sequence[str], style_words: Collection[str] = ()) -> float:
    """The share of the inputs' `content_words` that their outputs still have, each occurrence counted once.

    Args:
        outputs: n texts.
        sources: their inputs.
        style_words: as `style_lexicon` gives them; without, words such as "delicious" count as content.

    Returns:
        0 to 1, over all words of the corpus; nan where the inputs have no content word.

    Raises:
        ValueError: there is no text, or the lengths differ.

    >>> content_recall(["ann served the soup"], ["Ann burnt the pea soup"], {"burnt"})
    0.6666666666666666
    """
    _check(sources=(sources, outputs))
    kept = wanted = 0
    for said, source in zip(outputs, sources):
        words = Counter(content_words(source, style_words))
        wanted += words.total()
        kept += (words & Counter(tokenize(said))).total()
    return kept / wanted if wanted else float("nan")


def perplexity(log_probs: Sequence[float], texts: Sequence[str]) -> float:
    """A language model's perplexity a token of `tokenize`, the end of each text counted as one more.

    ``exp(- sum log p(text) / sum (tokens(text) + 1))``: the same unit whatever pieces the language model itself reads.

    Args:
        log_probs: natural logarithm of the probability of each whole text, its end included, by a model trained apart; let it
            read ``" ".join(tokenize(text))``, so that capitals decide nothing between two systems.
        texts: the texts.

    Raises:
        ValueError: there is no text, the lengths differ, or a log-probability is above 0 or not a number.

    >>> round(perplexity([2 * math.log(0.5)], ["good"]), 6)
    2.0
    """
    _check(texts=(texts, log_probs))
    for value in log_probs:
        if not value <= 0:
            raise ValueError(f"log_probs: got {value}, expected natural logarithms of probabilities; check the language model")
    return math.exp(-math.fsum(log_probs) / sum(len(tokenize(text)) + 1 for text in texts))


def geometric_mean(values: Sequence[float]) -> float:
    """``(x_1 ... x_n)^(1/n)``: 0 as soon as one of them is.

    Raises:
        ValueError: there is no value, or one is negative.

    >>> round(geometric_mean([2.0, 4.0, 8.0]), 6)
    4.0
    """
    if not len(values) or not all(value >= 0 for value in values):
        raise ValueError(f"values: got {list(values)}, expected one or more of 0 and above; check the figures")
    return math.exp(math.fsum(map(math.log, values)) / len(values)) if all(values) else 0.0


def style_scores(
    outputs: Sequence[str],
    sources: Sequence[str],
    references: Sequence[Sequence[str]],
    predictions: Sequence[int] | np.ndarray,
    targets: Sequence[int] | np.ndarray | int,
    log_probs: Sequence[float],
    style_words: Collection[str] = (),
) -> dict[str, float]:
    """The figures of a set of rewritten texts, all together.

    Args:
        outputs: n texts.
        sources: their inputs.
        references: for each of them one or more human rewrites.
        predictions: what a judge trained apart says of each output, as in `transfer_accuracy`.
        targets: the style each was rewritten for.
        log_probs: of each output by a language model trained apart, as in `perplexity`.
        style_words: what `content_recall` does not ask for, as `style_lexicon` gives it.

    Returns:
        ``accuracy`` (0 to 1), ``self_bleu`` and ``ref_bleu`` (0 to 100), ``perplexity``, ``content_recall`` (0 to 1), and the
        ``geometric_mean`` of 100 accuracy, self_bleu and ref_bleu (0 to 100). Perplexity has no best value, is least for the
        emptiest sentences, and is not in the mean: set a bound to it.

    Raises:
        ValueError: as the functions of the figures.

    >>> sources, references = ["the soup was really good"], [["the soup was really bad"]]
    >>> scores = style_scores(["the soup was really cold"], sources, references, [0], 0, [-12.0], {"good"})
    >>> {name: round(value, 2) for name, value in scores.items()}  # doctest: +NORMALIZE_WHITESPACE
    {'accuracy': 1.0, 'self_bleu': 66.87, 'ref_bleu': 66.87, 'perplexity': 7.39, 'geometric_mean': 76.47,
     'content_recall': 1.0}
    """
    kept, matched = self_bleu(outputs, sources), reference_bleu(outputs, references)
    _check(predictions=(predictions, outputs))
    accuracy = transfer_accuracy(predictions, targets)
    return {
        "accuracy": accuracy,
        "self_bleu": kept,
        "ref_bleu": matched,
        "perplexity": perplexity(log_probs, outputs),
        "geometric_mean": geometric_mean([100 * accuracy, kept, matched]),
        "content_recall": content_recall(outputs, sources, style_words),
    }


def _joined(text: str) -> str:
    return " ".join(tokenize(text))


def _check(**pairs: tuple[Any, Any]) -> None:
    """One name with its values and what they belong to: as many, at least one, and no text in place of a list."""
    for name, (values, texts) in pairs.items():
        if isinstance(values, str) or isinstance(texts, str):
            raise ValueError(f"{name}: got {values!r} for {texts!r}, expected lists; write ['...']")
        if len(values) != len(texts) or not len(texts):
            got = f"{len(values)} for {len(texts)}"
            raise ValueError(f"{name}: got {got} texts, expected one of each text, at least one; give them in the same order")
