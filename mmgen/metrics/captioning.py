"""How close predicted captions are to reference captions: CIDEr, BLEU-4, ROUGE-L, exact match.

All four see the same words, those of `tokenize`. CIDEr is usually computed after the Penn Treebank tokenizer, which needs
Java; figures here differ slightly from figures made with it and are comparable with one another.
"""

import unicodedata
from collections.abc import Sequence
from types import SimpleNamespace

import numpy as np
from pycocoevalcap.cider.cider import Cider
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu import BLEU


def tokenize(text: str) -> list[str]:
    """The words of a caption: lower case, punctuation removed, split at white space.

    Punctuation is every character of a Unicode category P. Hyphens and apostrophes inside a word stay, so ``medium-dark`` and
    ``don't`` are one word each. Symbols (category S, such as ``+``) stay.

    Args:
        text: a caption in a language that writes spaces between words.

    Returns:
        The words; joined by spaces and tokenised again they stay the same.

    >>> tokenize("Woman’s hat: medium-dark, (very) tall!")
    ["woman's", 'hat', 'medium-dark', 'very', 'tall']
    """
    text = unicodedata.normalize("NFC", text.lower()).replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")
    spaced = "".join(c if c in "'-" or unicodedata.category(c)[0] != "P" else " " for c in text)
    return [word for part in spaced.split() if (word := part.strip("'-"))]


def cider(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> tuple[float, np.ndarray]:
    """CIDEr-D: the tf-idf cosine of n-grams between a caption and its references, their mean over n = 1..4.

    ``CIDEr-D = 10/4 sum_n mean_s exp(-(words(c) - words(s))^2 / (2 * 6^2)) min(c_n, s_n) . s_n / (|c_n| |s_n|)``
    where ``c_n`` and ``s_n`` count each n-gram of caption and reference times ``log(items / items whose references hold it)``.

    The document frequencies come from ``references``, so a figure belongs to its split. An n-gram that every item's
    references hold counts nothing: one item alone scores 0. A caption of n < 4 words has no longer n-grams and reaches
    at most ``10 n / 4``.

    Args:
        predictions: n captions.
        references: for each of them its reference captions.

    Returns:
        The mean over items and the items' own scores (n,), each from 0 to 10.

    Raises:
        ValueError: as `caption_scores`.

    Source: Vedantam et al. 2015, CIDEr, arXiv 1411.5726; computed by pycocoevalcap, whose ``Cider`` is CIDEr-D.

    >>> mean, items = cider(["a red cat on a mat", "a dog"], [["a red cat on a mat"], ["two blue birds in a tree"]])
    >>> round(mean, 3), items.round(3).tolist()
    (5.0, [10.0, 0.0])
    """
    predictions, references = _words(predictions, references)
    truth = dict(enumerate(references))
    mean, items = Cider(n=4, sigma=6.0).compute_score(truth, {i: [p] for i, p in enumerate(predictions)})
    return float(mean), items


def bleu4(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Corpus BLEU-4: the geometric mean of the clipped n-gram precisions, n = 1..4, times the brevity penalty.

    ``BLEU = 100 min(1, exp(1 - r/c)) exp(1/4 sum_n log p_n)``

    The sacrebleu signature is ``nrefs:N|case:mixed|eff:no|tok:none|smooth:exp``, over the words of `tokenize`. It is 0 when no
    prediction has four words.

    Args:
        predictions: n captions.
        references: for each of them its reference captions.

    Returns:
        One figure for the corpus, from 0 to 100.

    Raises:
        ValueError: as `caption_scores`.

    Source: Papineni et al. 2002, BLEU; Post 2018, arXiv 1804.08771.

    >>> round(bleu4(["a red cat on a mat"], [["a red cat on a mat", "a cat"]]), 3)
    100.0
    """
    predictions, references = _words(predictions, references)
    most = max(map(len, references))
    streams = [[item[i] if i < len(item) else None for item in references] for i in range(most)]
    return BLEU(tokenize="none").corpus_score(predictions, streams).score  # type: ignore[arg-type]  # None: no reference


def rouge_l(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """ROUGE-L: the F1 of the longest common subsequence of words, of each item's best reference, mean over items.

    Args:
        predictions: n captions.
        references: for each of them its reference captions; the one with the highest F1 counts.

    Returns:
        The mean over items, from 0 to 1.

    Raises:
        ValueError: as `caption_scores`.

    Source: Lin 2004, ROUGE; computed by rouge-score. (The COCO evaluation weighs recall more; this is the plain F1.)

    >>> rouge_l(["a red cat"], [["a cat", "two dogs"]])
    0.8
    """
    predictions, references = _words(predictions, references)
    scorer = RougeScorer(["rougeL"], tokenizer=SimpleNamespace(tokenize=str.split))
    items = [scorer.score_multi(truth, said)["rougeL"].fmeasure for said, truth in zip(predictions, references)]
    return float(np.mean(items))


def exact_match(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """The share of predictions whose words are those of one of their references.

    Args:
        predictions: n captions.
        references: for each of them its reference captions.

    Returns:
        The mean over items, from 0 to 1.

    Raises:
        ValueError: as `caption_scores`.

    >>> exact_match(["A cat.", "a dog"], [["a cat", "one cat"], ["a cat"]])
    0.5
    """
    predictions, references = _words(predictions, references)
    return float(np.mean([said in truth for said, truth in zip(predictions, references)]))


def caption_scores(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """The four figures of a set of captions.

    Args:
        predictions: n captions; an empty one scores 0.
        references: for each of them one or more reference captions, each with at least one word.

    Returns:
        ``cider`` (0 to 10), ``bleu4`` (0 to 100), ``rouge_l`` (0 to 1) and ``exact_match`` (0 to 1).

    Raises:
        ValueError: there is no prediction, the lengths differ, an item has no reference, or a reference has no word.

    >>> caption_scores(["a red cat sits"], [["a red cat sits"]])["exact_match"]
    1.0
    """
    return {
        "cider": cider(predictions, references)[0],
        "bleu4": bleu4(predictions, references),
        "rouge_l": rouge_l(predictions, references),
        "exact_match": exact_match(predictions, references),
    }


def _words(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> tuple[list[str], list[list[str]]]:
    """Both, checked, each caption as its words joined by single spaces."""
    if not predictions:
        raise ValueError("predictions: got none, expected at least one caption; give the captions to score")
    if len(predictions) != len(references):
        expected = f"one list of captions for each of the {len(predictions)} predictions"
        raise ValueError(f"references: got {len(references)}, expected {expected}; give them in the same order")
    for i, truth in enumerate(references):
        if isinstance(truth, str):
            raise ValueError(f"references[{i}]: got {truth!r}, expected a list of captions; write [{truth!r}]")
        if not truth:
            raise ValueError(f"references[{i}]: got {truth!r}, expected at least one caption; leave the item out")
        for text in truth:
            if not tokenize(text):
                raise ValueError(f"references[{i}]: got {text!r}, expected a caption with a word; leave it out")
    joined = [" ".join(tokenize(text)) for text in predictions]
    return joined, [[" ".join(tokenize(text)) for text in truth] for truth in references]
