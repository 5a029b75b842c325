"""The caption metrics against hand-computed values, their packages and their invariances."""

import os
import subprocess
import sys
from collections import Counter
from math import exp, log, sqrt

import numpy as np
import pytest
import sacrebleu
from hypothesis import given, settings
from hypothesis import strategies as st

from mmgen.metrics.captioning import bleu4, caption_scores, cider, exact_match, incomplete_share, rouge_l, tokenize

WORDS = ["red", "blue", "cat", "dog", "sits", "on", "a", "mat"]
captions = st.lists(st.sampled_from(WORDS), min_size=1, max_size=8).map(" ".join)
items = st.lists(st.tuples(captions, st.lists(captions, min_size=1, max_size=3)), min_size=2, max_size=6)


@given(st.text())
def test_tokenize_is_idempotent_lower_case_and_without_spaces(text):
    tokens = tokenize(text)
    assert tokenize(" ".join(tokens)) == tokens
    assert all(token and not any(c.isspace() for c in token) for token in tokens)


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("A man, a plan; (Panama)!", ["a", "man", "a", "plan", "panama"]),
        ("woman firefighter: medium-dark skin tone", ["woman", "firefighter", "medium-dark", "skin", "tone"]),
        ("Don\u2019t -- stop 'now'", ["don't", "stop", "now"]),
        ("\u201cCafe\u0301\u201d\u2026", ["caf\u00e9"]),
        ("a+b snake_case", ["a+b", "snake", "case"]),
        (" \n.!", []),
    ],
)
def test_tokenize(text, tokens):
    assert tokenize(text) == tokens


def cider_d(prediction, references, corpus):
    """CIDEr-D of one item from the paper's formula, with nothing of the package."""

    def grams(text, n):
        words = text.split()
        return Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))

    def weigh(text, n):
        def items_with(gram):
            return sum(any(gram in grams(reference, n) for reference in truth) for truth in corpus)

        return {g: count * log(len(corpus) / max(1, items_with(g))) for g, count in grams(text, n).items()}

    def norm(vector):
        return sqrt(sum(weight**2 for weight in vector.values()))

    total = 0.0
    for reference in references:
        penalty = exp(-((len(prediction.split()) - len(reference.split())) ** 2) / (2 * 6.0**2))
        for n in (1, 2, 3, 4):
            c, s = weigh(prediction, n), weigh(reference, n)
            if norm(c) and norm(s):
                overlap = sum(min(weight, s.get(gram, 0.0)) * s.get(gram, 0.0) for gram, weight in c.items())
                total += penalty * overlap / (norm(c) * norm(s))
    return 10 / 4 * total / len(references)


def test_cider_by_hand():
    # Two items, one word each: idf is log 2 for each word, only n = 1 exists, so a hit is 10 / 4 and a miss is 0.
    mean, scores = cider(["cat", "cat"], [["cat"], ["dog"]])
    assert scores.tolist() == pytest.approx([2.5, 0.0])
    assert mean == pytest.approx(1.25)
    # "cat cat" against "cat": clipped at the reference's count, 1 * 1 / (2 * 1), and one word longer.
    assert cider(["cat cat", "dog"], [["cat"], ["dog"]])[1][0] == pytest.approx(2.5 * 0.5 * exp(-1 / 72))


@given(items)
@settings(max_examples=50, deadline=None)
def test_cider_is_the_papers_cider_d_with_sigma_6(data):
    predictions, references = map(list, zip(*data))
    expected = [cider_d(p, r, references) for p, r in data]
    mean, scores = cider(predictions, references)
    assert scores.tolist() == pytest.approx(expected, abs=1e-9)
    assert mean == pytest.approx(np.mean(expected), abs=1e-9)


def test_cider_of_the_reference_itself_is_10_from_four_words_on():
    texts = ["one red cat sits here", "two blue dogs run away", "grinning face"]
    assert cider(texts, [[t] for t in texts])[1].tolist() == pytest.approx([10, 10, 5])


def test_cider_of_one_item_alone_is_0():
    assert cider(["a red cat sits"], [["a red cat sits"]])[0] == 0


@given(items, st.randoms())
@settings(max_examples=30, deadline=None)
def test_scores_do_not_depend_on_the_order_of_items(data, random):
    shuffled = random.sample(data, len(data))
    first, second = (caption_scores(*map(list, zip(*d))) for d in (data, shuffled))
    assert first == pytest.approx(second, abs=1e-9)


@given(items)
@settings(max_examples=30, deadline=None)
def test_scores_stay_in_their_ranges_and_ignore_case_and_punctuation(data):
    predictions, references = map(list, zip(*data))
    scores = caption_scores(predictions, references)
    tops = {"cider": 10, "bleu4": 100, "rouge_l": 1, "exact_match": 1}
    assert scores.keys() == tops.keys()
    assert all(0 <= scores[key] <= top + 1e-6 for key, top in tops.items())
    assert caption_scores([f"{p.upper()}." for p in predictions], references) == scores


def test_bleu_is_sacrebleus_with_any_number_of_references():
    predictions = ["A red cat sits on a mat.", "two dogs run over the green hill"]
    references = [["the red cat sits on a mat", "a cat is on a mat"], ["two dogs run on the green hill"]]
    metric = sacrebleu.BLEU(tokenize="none")
    streams = [[references[0][0], references[1][0]], [references[0][1], None]]
    expected = metric.corpus_score(["a red cat sits on a mat", predictions[1]], streams).score
    assert 0 < bleu4(predictions, references) == pytest.approx(expected)
    assert str(metric.get_signature()).startswith("nrefs:var|case:mixed|eff:no|tok:none|smooth:exp|")


def test_bleu_by_hand():
    # Precisions 5/6, 3/5, 2/4, 1/3; both six words, so no brevity penalty.
    expected = 100 * (5 / 6 * 3 / 5 * 2 / 4 * 1 / 3) ** 0.25
    assert bleu4(["a red cat on a mat"], [["a red cat on the mat"]]) == pytest.approx(expected)


def test_rouge_l_by_hand_takes_the_best_reference():
    # Subsequence "red cat mat": precision 3/4, recall 3/5.
    assert rouge_l(["red cat big mat"], [["a red cat a mat", "dog"]]) == pytest.approx(2 * 0.75 * 0.6 / 1.35)


def test_exact_match_compares_words():
    assert exact_match(["A CAT!", "a cat", ""], [["dog", "a cat"], ["a cats"], ["a cat"]]) == pytest.approx(1 / 3)


def test_an_empty_prediction_scores_0():
    scores = caption_scores(["", ""], [["a red cat sits"], ["two blue dogs run"]])
    assert scores == {"cider": 0, "bleu4": 0, "rouge_l": 0, "exact_match": 0}


@pytest.mark.parametrize("metric", [cider, bleu4, rouge_l, exact_match, caption_scores])
@pytest.mark.parametrize(
    ("predictions", "references", "message"),
    [
        ([], [], "predictions: got none"),
        (["a"], [["a"], ["b"]], "references: got 2, expected one list of captions for each of the 1 predictions"),
        (["a", "b"], [["a"], []], r"references\[1\]: got \[\], expected at least one caption"),
        (["a"], [["a", " . "]], r"references\[0\]: got ' \. ', expected a caption with a word"),
        (["a"], ["a cat"], r"references\[0\]: got 'a cat', expected a list of captions; write \['a cat'\]"),
    ],
)
def test_bad_input_names_the_offending_value(metric, predictions, references, message):
    with pytest.raises(ValueError, match=message) as error:
        metric(predictions, references)
    assert "\n" not in str(error.value)


def test_no_java_is_needed():
    code = "from mmgen.metrics.captioning import cider; print(cider(['a b c d', 'e f'], [['a b c d'], ['g h']])[0])"
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, "PATH": ""}, capture_output=True, text=True)
    assert done.stdout.strip() == "5.0", done.stderr


@pytest.mark.parametrize(
    ("caption", "share"),
    [("face with:", 1), ("man in", 1), ("UP button button", 1), ("", 1), ("a cat,", 1), ("thumbs up", 0), ("flag: Chad", 0)],
)
def test_a_caption_that_ends_in_the_air_or_repeats_a_word_is_incomplete(caption, share):
    assert incomplete_share([caption]) == share


def test_a_word_may_be_repeated_where_people_repeat_it():
    assert incomplete_share(["family man man girl", "kiss man man", "man man"], ["family man man boy"]) == pytest.approx(2 / 3)
