"""Style-transfer metrics: accuracy of the new style, preservation of content, similarity to human rewrites, perplexity.

No score is meaningful alone: copying the input maximises self-BLEU and beats most systems in reference-BLEU, and any sentence
of the other style maximises accuracy. `style_scores` therefore returns all of them. All use the tokens of `tokenize`.
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

from mmgen.errors import UserError

#: tokenisation to report beside every BLEU and perplexity of this module
TOKENISATION = (
    "mmgen style 1: lower-cased, punctuation and English clitics split (sacrebleu corpus BLEU-4, tok:none, smooth:exp)"
)

# function words missing from scikit-learn's English stop words are added
_EMPTY = ENGLISH_STOP_WORDS | {"ca", "wo", "n't", "did", "does", "got", "just", "really"}
_QUOTES = {"\N{RIGHT SINGLE QUOTATION MARK}": "'", "``": '"', "''": '"', "\N{LEFT DOUBLE QUOTATION MARK}": '"',
           "\N{RIGHT DOUBLE QUOTATION MARK}": '"', "\N{HORIZONTAL ELLIPSIS}": "..."}  # fmt: skip
_TOKEN = re.compile(
    r"[^\W\d_]+(?=n't\b)|n't\b|can(?=not\b)|'(?:s|m|d|re|ve|ll)\b"  # is|n't  ca|n't  can|not  it|'s
    r"|\w+(?:[-&]\w+|(?<=\d)[.,:/](?=\d)\w+)*|\.{2,}|\S"  # well-made  at&t  7:30  1,000  ...  and any other mark alone
)


def tokenize(text: str) -> list[str]:
    """Lower-case words and punctuation marks of a text, with the clitics n't, 's, 'm, 'd, 're, 've, 'll split off.

    A text already tokenised like the Penn Treebank is left unchanged, except that its quotation marks become ``"``. Hyphenated
    words, numbers with marks inside and runs of full stops are one token each.

    Args:
        text: a text in a language that writes spaces between words.

    Returns:
        The tokens; tokenising them again, joined by spaces, gives the same tokens.

    >>> tokenize("I can't say it's “well-made”: $1,000!")
    ['i', 'ca', "n't", 'say', 'it', "'s", '"', 'well-made', '"', ':', '$', '1,000', '!']
    """
    text = unicodedata.normalize("NFC", text.lower())
    for mark, plain in _QUOTES.items():
        text = text.replace(mark, plain)
    return _TOKEN.findall(text)


def transfer_accuracy(predictions: Sequence[int] | np.ndarray, targets: Sequence[int] | np.ndarray | int) -> float:
    """The share of rewritten texts that a classifier assigns to the target style.

    Args:
        predictions: the classifier's label of each text (n,), or its probabilities of the labels (n, classes); equal
            highest probabilities, as for an empty text, are no prediction and count as wrong.
        targets: the target label of each text (n,), or one for all.

    Returns:
        0 to 1. Compare it with the classifier's own accuracy and with the score of human rewrites, which can be far below 1.

    Raises:
        UserError: there is no text, or the shapes do not fit.

    >>> transfer_accuracy([[0.9, 0.1], [0.2, 0.8]], 1)
    0.5
    """
    labels = np.asarray(predictions)
    if labels.ndim == 2 and labels.shape[1]:
        labels = np.where((labels == labels.max(1, keepdims=True)).sum(1) == 1, labels.argmax(1), -1)
    wanted = np.broadcast_to(targets, labels.shape) if np.ndim(targets) == 0 else np.asarray(targets)
    if not labels.size or labels.ndim != 1 or wanted.shape != labels.shape:
        got, fix = f"shapes {np.shape(predictions)} and {np.shape(targets)}", "give one of each a text"
        raise UserError("predictions and targets", got=got, expected="equally many, one or more", fix=fix)
    return float((labels == wanted).mean())


def self_bleu(outputs: Sequence[str], sources: Sequence[str]) -> float:
    """Corpus BLEU-4 of the outputs against their own inputs, 0 to 100; measures how much of the input was kept.

    Raises:
        UserError: as `reference_bleu`.

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
        references: one or more human rewrites of each text.

    Returns:
        The score of the corpus, which differs from the mean of sentence BLEU scores by some 8 points.

    Raises:
        UserError: there is no text, the lengths differ, or a text has no reference.

    Source: Papineni et al. 2002, BLEU; computed by sacrebleu, Post 2018, arXiv 1804.08771.

    >>> round(reference_bleu(["the soup was good"], [["the soup is bad", "The food was fine!"]]), 1)
    35.4
    """
    _check(references=(references, outputs))
    for i, rewrites in enumerate(references):
        if isinstance(rewrites, str) or not rewrites:
            expected = "a list of one or more texts"
            raise UserError(f"references[{i}]", got=repr(rewrites), expected=expected, fix="write ['...']")
    tokenized = [_joined(text) for text in outputs]
    truth = [[_joined(text) for text in rewrites] for rewrites in references]
    streams = [[item[i] if i < len(item) else None for item in truth] for i in range(max(map(len, truth)))]
    # force: no warning that the texts are already tokenised
    return BLEU(tokenize="none", force=True).corpus_score(tokenized, streams).score  # type: ignore[arg-type]


def style_lexicon(texts: Sequence[str], labels: Sequence[int], ratio: float = 3.0, prior: float = 10.0) -> frozenset[str]:
    """Words characteristic of a style: at least ``ratio`` times as frequent in it as in all other styles together.

    ``(n + prior) >= ratio (n' N / N' + prior)``, n and n' the counts of a word in the style and in the others, N and N' the
    counts of all words.

    Args:
        texts: texts of every style, not those used to build a system that is to be scored.
        labels: the style of each text.
        ratio: smallest ratio of frequencies, above 1.
        prior: pseudo-count, above 0; it keeps rare words, such as a name that occurs five times, out of the lexicon.

    Returns:
        The words of all styles together.

    Raises:
        UserError: the lengths differ, the ratio is 1 or below, or the prior 0 or below.

    >>> sorted(style_lexicon(["good soup"] * 20 + ["bad soup"] * 20, [1] * 20 + [0] * 20))
    ['bad', 'good']
    """
    _check(labels=(labels, texts))
    if not (ratio > 1 and prior > 0):
        raise UserError("ratio and prior", got=f"{ratio} and {prior}", expected="above 1 and above 0", fix="use 3 and 10")
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
    """Content words, which a change of style should preserve: names, numbers and topic words.

    They are the tokens with a letter or digit, except clitics, scikit-learn's English stop words, did, does, got, just,
    really, and ``style_words``.

    >>> content_words("The 2 waiters of Ann's were rude.", {"rude"})
    ['2', 'waiters', 'ann']
    """
    return [
        token
        for token in tokenize(text)
        if token[0] != "'" and any(map(str.isalnum, token)) and token not in _EMPTY and token not in style_words
    ]  # fmt: skip


def content_recall(outputs: Sequence[str], sources: Sequence[str], style_words: Collection[str] = ()) -> float:
    """The share of the inputs' `content_words` that the outputs keep, each occurrence counted once.

    Args:
        outputs: n texts.
        sources: their inputs.
        style_words: words of style, from `style_lexicon`; without them, words such as "delicious" count as content.

    Returns:
        0 to 1, over all words of the corpus; nan where the inputs have no content word.

    Raises:
        UserError: there is no text, or the lengths differ.

    >>> content_recall(["ann served the soup"], ["Ann burnt the pea soup"], {"burnt"})
    0.6666666666666666
    """
    _check(sources=(sources, outputs))
    kept = wanted = 0
    for output, source in zip(outputs, sources):
        words = Counter(content_words(source, style_words))
        wanted += words.total()
        kept += (words & Counter(tokenize(output))).total()
    return kept / wanted if wanted else float("nan")


def perplexity(log_probs: Sequence[float], texts: Sequence[str]) -> float:
    """Perplexity of a language model per token of `tokenize`, the end of each text counted as one more token.

    ``exp(- sum log p(text) / sum (tokens(text) + 1))``, which does not depend on the language model's own tokenizer.

    Args:
        log_probs: natural logarithm of the probability of each whole text, its end included, under a model trained on other
            data; feed it ``" ".join(tokenize(text))``, so that capitalisation does not affect the comparison of systems.
        texts: the texts.

    Raises:
        UserError: there is no text, the lengths differ, or a log-probability is above 0 or not a number.

    >>> round(perplexity([2 * math.log(0.5)], ["good"]), 6)
    2.0
    """
    _check(texts=(texts, log_probs))
    for value in log_probs:
        if not value <= 0:
            expected = "natural logarithms of probabilities"
            raise UserError("log_probs", got=value, expected=expected, fix="check the language model")
    return math.exp(-math.fsum(log_probs) / sum(len(tokenize(text)) + 1 for text in texts))


def broken_share(
    log_probs: Sequence[float],
    texts: Sequence[str],
    source_log_probs: Sequence[float],
    sources: Sequence[str],
    rise: float = 1.0,
) -> float:
    """The share of outputs that a language model finds less likely than their inputs by more than ``rise`` nats per token.

    ``-log p(output) / (tokens(output) + 1) > -log p(input) / (tokens(input) + 1) + rise`` over the tokens of `tokenize`, the
    end counted as one more. An empty output is broken.

    Args:
        log_probs, texts: the outputs, as in `perplexity`.
        source_log_probs, sources: their inputs.
        rise: nats per token.

    Returns:
        0 to 1.

    Raises:
        UserError: there is no text, or the lengths differ.

    >>> broken_share([-9.0, -4.0], ["tea good was", "good tea"], [-4.0, -4.0], ["the tea was good"] * 2)
    0.5
    """
    _check(log_probs=(log_probs, texts), source_log_probs=(source_log_probs, sources), sources=(sources, texts))
    broken = 0
    for log_p, text, source_log_p, source in zip(log_probs, texts, source_log_probs, sources):
        words, before = tokenize(text), source_log_p / (len(tokenize(source)) + 1)
        broken += not words or before - log_p / (len(words) + 1) > rise
    return broken / len(texts)


def geometric_mean(values: Sequence[float]) -> float:
    """Geometric mean ``(x_1 ... x_n)^(1/n)``; 0 if any value is 0.

    Raises:
        UserError: there is no value, or one is negative.

    >>> round(geometric_mean([2.0, 4.0, 8.0]), 6)
    4.0
    """
    if not len(values) or not all(value >= 0 for value in values):
        raise UserError("values", got=list(values), expected="one or more of 0 and above", fix="check the scores")
    return math.exp(math.fsum(map(math.log, values)) / len(values)) if all(values) else 0.0


def style_scores(
    outputs: Sequence[str],
    sources: Sequence[str],
    references: Sequence[Sequence[str]],
    predictions: Sequence[int] | np.ndarray,
    targets: Sequence[int] | np.ndarray | int,
    log_probs: Sequence[float],
    style_words: Collection[str] = (),
    source_log_probs: Sequence[float] | None = None,
) -> dict[str, float]:
    """All scores of a set of rewritten texts.

    Args:
        outputs: n texts.
        sources: their inputs.
        references: one or more human rewrites of each input.
        predictions: labels or probabilities of the outputs from a classifier trained on other data, as in `transfer_accuracy`.
        targets: the target style of each text, or one for all.
        log_probs: log-probability of each output under a language model trained on other data, as in `perplexity`.
        style_words: words that `content_recall` ignores, from `style_lexicon`.
        source_log_probs: that of each input, as in `broken_share`; None: no ``broken_share``.

    Returns:
        ``accuracy`` (0 to 1), ``self_bleu`` and ``ref_bleu`` (0 to 100), ``perplexity``, ``broken_share`` and
        ``content_recall`` (0 to 1), ``style_content``, the geometric mean of 100 accuracy and ref_bleu, and the
        ``geometric_mean`` of 100 accuracy, self_bleu and ref_bleu, which counts content twice (0 to 100). The means exclude
        perplexity, which has no best value and is lowest for the blandest sentences: use it as an upper bound instead.

    Raises:
        UserError: as the functions of the single scores.

    >>> sources, references = ["the soup was really good"], [["the soup was really bad"]]
    >>> scores = style_scores(["the soup was really cold"], sources, references, [0], 0, [-12.0], {"good"}, [-11.0])
    >>> {name: round(value, 2) for name, value in scores.items()}  # doctest: +NORMALIZE_WHITESPACE
    {'accuracy': 1.0, 'self_bleu': 66.87, 'ref_bleu': 66.87, 'perplexity': 7.39, 'broken_share': 0.0,
     'style_content': 81.78, 'geometric_mean': 76.47, 'content_recall': 1.0}
    """
    kept, matched = self_bleu(outputs, sources), reference_bleu(outputs, references)
    _check(predictions=(predictions, outputs))
    accuracy, broken = transfer_accuracy(predictions, targets), {}
    if source_log_probs is not None:
        broken["broken_share"] = broken_share(log_probs, outputs, source_log_probs, sources)
    return {
        "accuracy": accuracy,
        "self_bleu": kept,
        "ref_bleu": matched,
        "perplexity": perplexity(log_probs, outputs),
        **broken,
        "style_content": geometric_mean([100 * accuracy, matched]),
        "geometric_mean": geometric_mean([100 * accuracy, kept, matched]),
        "content_recall": content_recall(outputs, sources, style_words),
    }


def _joined(text: str) -> str:
    return " ".join(tokenize(text))


def _check(**pairs: tuple[Any, Any]) -> None:
    """Check that each name's values and texts are lists, not strings, of the same length of at least one."""
    for name, (values, texts) in pairs.items():
        if isinstance(values, str) or isinstance(texts, str):
            raise UserError(name, got=f"{values!r} for {texts!r}", expected="lists", fix="write ['...']")
        if len(values) != len(texts) or not len(texts):
            got, expected = f"{len(values)} for {len(texts)} texts", "one for each text, at least one"
            raise UserError(name, got=got, expected=expected, fix="give them in the same order")
