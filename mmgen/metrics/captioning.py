"""Caption metrics against reference captions: CIDEr, BLEU-4, ROUGE-L, exact match.

All four use the words of `tokenize`. CIDEr is usually computed after the Penn Treebank tokenizer, which needs Java; the scores
here differ slightly from scores computed with it, but are comparable with one another.
"""

import unicodedata
from collections.abc import Sequence
from types import SimpleNamespace

import numpy as np
from pycocoevalcap.cider.cider import Cider
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu import BLEU

from mmgen.errors import UserError

# words that need another after them; "up", "down", "on" and "off" also end whole phrases, such as "thumbs up"
BEFORE_OTHERS = {
    "a", "an", "the", "and", "or", "but", "nor", "of", "in", "at", "to", "from", "for", "with", "without", "by", "as", "into",
    "onto", "than", "between", "among",
}  # fmt: skip


def tokenize(text: str) -> list[str]:
    """The words of a caption: lower case, punctuation removed, split at white space.

    Punctuation is every character of a Unicode category P. Hyphens and apostrophes inside a word are kept, so ``medium-dark``
    and ``don't`` are one word each, and so are symbols (category S, such as ``+``).

    Args:
        text: a caption in a language that writes spaces between words.

    Returns:
        The words; tokenising them again, joined by spaces, gives the same words.

    >>> tokenize("Woman’s hat: medium-dark, (very) tall!")
    ["woman's", 'hat', 'medium-dark', 'very', 'tall']
    """
    text = unicodedata.normalize("NFC", text.lower()).replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")
    spaced = "".join(c if c in "'-" or unicodedata.category(c)[0] != "P" else " " for c in text)
    return [word for part in spaced.split() if (word := part.strip("'-"))]


def cider(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> tuple[float, np.ndarray]:
    """CIDEr-D: the tf-idf cosine of n-grams between a caption and its references, their mean over n = 1..4.

    ``CIDEr-D = 10/4 sum_n mean_s exp(-(words(c) - words(s))^2 / (2 * 6^2)) min(c_n, s_n) . s_n / (|c_n| |s_n|)``
    where ``c_n`` and ``s_n`` are the n-gram counts of caption and reference, each times ``log(items / items whose references
    contain the n-gram)``.

    The document frequencies come from ``references``, so scores are comparable within one split only. An n-gram that occurs in
    the references of every item has weight 0; a single item therefore scores 0. A caption of n < 4 words has no longer n-grams
    and scores at most ``10 n / 4``.

    Args:
        predictions: n captions.
        references: the reference captions of each prediction.

    Returns:
        The mean over items and the scores of the items (n,), each from 0 to 10.

    Raises:
        UserError: as `caption_scores`.

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

    The sacrebleu signature is ``nrefs:N|case:mixed|eff:no|tok:none|smooth:exp``, over the words of `tokenize`. The score is 0
    when no prediction has four words.

    Args:
        predictions: n captions.
        references: the reference captions of each prediction.

    Returns:
        The score of the corpus, from 0 to 100.

    Raises:
        UserError: as `caption_scores`.

    Source: Papineni et al. 2002, BLEU; Post 2018, arXiv 1804.08771.

    >>> round(bleu4(["a red cat on a mat"], [["a red cat on a mat", "a cat"]]), 3)
    100.0
    """
    predictions, references = _words(predictions, references)
    most = max(map(len, references))
    streams = [[item[i] if i < len(item) else None for item in references] for i in range(most)]
    return BLEU(tokenize="none").corpus_score(predictions, streams).score  # type: ignore[arg-type]  # None: no reference


def rouge_l(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """ROUGE-L: the F1 of the longest common subsequence of words with each item's best reference, averaged over items.

    Args:
        predictions: n captions.
        references: the reference captions of each prediction; the one with the highest F1 counts.

    Returns:
        The mean over items, from 0 to 1.

    Raises:
        UserError: as `caption_scores`.

    Source: Lin 2004, ROUGE; computed by rouge-score. (The COCO evaluation weighs recall more; this is the plain F1.)

    >>> rouge_l(["a red cat"], [["a cat", "two dogs"]])
    0.8
    """
    predictions, references = _words(predictions, references)
    scorer = RougeScorer(["rougeL"], tokenizer=SimpleNamespace(tokenize=str.split))
    items = [scorer.score_multi(truth, text)["rougeL"].fmeasure for text, truth in zip(predictions, references)]
    return float(np.mean(items))


def exact_match(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """The share of predictions that equal one of their references word for word.

    Args:
        predictions: n captions.
        references: the reference captions of each prediction.

    Returns:
        The mean over items, from 0 to 1.

    Raises:
        UserError: as `caption_scores`.

    >>> exact_match(["A cat.", "a dog"], [["a cat", "one cat"], ["a cat"]])
    0.5
    """
    predictions, references = _words(predictions, references)
    return float(np.mean([prediction in truth for prediction, truth in zip(predictions, references)]))


def repetitions(text: str) -> set[tuple[str, str]]:
    """The words that stand twice in a row, each with the word before it, "" at the beginning.

    >>> repetitions("kiss man man: dark skin tone")
    {('kiss', 'man')}
    """
    words = ["", *tokenize(text)]
    return {(before, word) for before, word, following in zip(words, words[1:], words[2:]) if word == following}


def incomplete_share(predictions: Sequence[str], people: Sequence[str] = ()) -> float:
    """The share of captions that are no whole phrase.

    These have no word, end in an article, a conjunction, a preposition, a colon or a comma, or have a word twice in a row.

    Args:
        predictions: captions in English.
        people: captions by people; a word that these have twice in a row after another, as in "family man man boy", may be
            repeated there.

    Returns:
        The share, from 0 to 1.

    >>> incomplete_share(["face with:", "man in", "UP button button", "woman cook: dark skin tone"])
    0.75
    """
    allowed = {repetition for text in people for repetition in repetitions(text)}

    def incomplete(text: str) -> bool:
        words = tokenize(text)
        return not words or words[-1] in BEFORE_OTHERS or text.rstrip()[-1] in ":,;" or bool(repetitions(text) - allowed)

    return float(np.mean([incomplete(text) for text in predictions]))


def caption_scores(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """All four scores of a set of captions.

    Args:
        predictions: n captions; an empty one scores 0.
        references: one or more reference captions of each prediction, each with at least one word.

    Returns:
        ``cider`` (0 to 10), ``bleu4`` (0 to 100), ``rouge_l`` (0 to 1) and ``exact_match`` (0 to 1).

    Raises:
        UserError: there is no prediction, the lengths differ, an item has no reference, or a reference has no word.

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
    """Check predictions and references, and join the words of each caption by single spaces."""
    if not predictions:
        raise UserError("predictions", got="none", expected="at least one caption", fix="give the captions to score")
    if len(predictions) != len(references):
        expected = f"one list of captions for each of the {len(predictions)} predictions"
        raise UserError("references", got=len(references), expected=expected, fix="give them in the same order")
    for i, truth in enumerate(references):
        what = f"references[{i}]"
        if isinstance(truth, str):
            raise UserError(what, got=repr(truth), expected="a list of captions", fix=f"write [{truth!r}]")
        if not truth:
            raise UserError(what, got=truth, expected="at least one caption", fix="leave the item out")
        for text in truth:
            if not tokenize(text):
                raise UserError(what, got=repr(text), expected="a caption with a word", fix="leave it out")
    joined = [" ".join(tokenize(text)) for text in predictions]
    return joined, [[" ".join(tokenize(text)) for text in truth] for truth in references]
