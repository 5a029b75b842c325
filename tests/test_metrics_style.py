"""The figures of restyled texts: by hand, by their invariances, and on the published outputs where the data are at hand."""

import math
import os

import numpy as np
import pytest
import sacrebleu
from hypothesis import given
from hypothesis import strategies as st

from mmgen.data.cards import open_card
from mmgen.metrics.style import (
    broken_share,
    content_recall,
    content_words,
    geometric_mean,
    perplexity,
    reference_bleu,
    self_bleu,
    style_lexicon,
    style_scores,
    tokenize,
    transfer_accuracy,
)

WORDS = ["the", "soup", "is", "n't", "good", ",", "it", "'s", "cold"]
needs_data = pytest.mark.skipif(not os.environ.get("MMGEN_DATA"), reason="MMGEN_DATA is not set")


@given(st.text() | st.text("can'tos. 1,-\"`&\u2019 "))
def test_tokenize_is_idempotent_and_loses_no_mark(text):
    tokens = tokenize(text)
    assert tokenize(" ".join(tokens)) == tokens
    assert all(token and not any(c.isspace() for c in token) for token in tokens)
    if text.isascii() and not any(pair in text for pair in ("``", "''")):
        assert "".join(tokens) == "".join(text.lower().split())


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("I can't, won't; cannot!", "i ca n't , wo n't ; can not !"),
        ("She's sure they'd've said it isn\u2019t", "she 's sure they 'd 've said it is n't"),
        ("The falafel's 20-30% off at 7:30pm for $1,000.50.", "the falafel 's 20-30 % off at 7:30pm for $ 1,000.50 ."),
        ("good,bad food...really?!", "good , bad food ... really ? !"),
        ("``no '' “yes”…", '" no " " yes " ...'),
        ("\u201cCafe\u0301\u201d 🙂 _num_ at&t", '" café " 🙂 _num_ at&t'),
        (" \n", ""),
    ],
)
def test_tokenize(text, tokens):
    assert tokenize(text) == tokens.split()


@pytest.mark.parametrize(
    "text", ["ever since joes has changed hands it 's just gotten worse .", "i ca n't believe it , do n't go !", "$ _num_ ."]
)
def test_what_is_tokenised_stays(text):
    assert " ".join(tokenize(text)) == text


def test_accuracy_by_labels_or_probabilities():
    assert transfer_accuracy([0, 1, 1, 1], [1, 1, 1, 1]) == 0.75 == transfer_accuracy(np.array([0, 1, 1, 1]), 1)
    assert transfer_accuracy([[0.6, 0.4], [0.1, 0.9]], [0, 0]) == 0.5
    assert transfer_accuracy([[0.5, 0.5]] * 2, [0, 1]) == 0  # no prediction, as of an empty text


@pytest.mark.parametrize(
    ("predictions", "targets"), [([], []), ([1, 0], [1]), ([[0.5, 0.5]], [1, 0]), ([], 1), (np.zeros((2, 0)), [0, 1])]
)
def test_accuracy_of_what_does_not_fit(predictions, targets):
    with pytest.raises(ValueError, match="got shapes"):
        transfer_accuracy(predictions, targets)


def test_bleu_by_hand():
    # 4 of 5 words, 2 of 4 pairs, 1 of 3 triples, sacrebleu's first smoothing 1/(2 * 2) of the fours; nothing is shorter
    expected = 100 * (4 / 5 * 2 / 4 * 1 / 3 * 1 / 4) ** (1 / 4)
    assert reference_bleu(["a b c x d"], [["A b c d y"]]) == pytest.approx(expected)
    short = 100 * math.exp(1 - 6 / 4)  # the brevity penalty alone
    assert reference_bleu(["a b c d"], [["a b c d e f"]]) == pytest.approx(short)


texts = st.lists(st.lists(st.sampled_from(WORDS), max_size=9).map(" ".join), min_size=1)


@given(texts)
def test_bleu_is_that_of_sacrebleu(outputs):
    references = [text[::2] + " soup" for text in outputs]
    plain = [" ".join(tokenize(text)) for text in references]
    expected = sacrebleu.corpus_bleu([" ".join(tokenize(t)) for t in outputs], [plain], tokenize="none", force=True).score
    assert reference_bleu(outputs, [[text] for text in references]) == pytest.approx(expected)
    assert self_bleu(outputs, references) == pytest.approx(expected)


def test_bleu_sees_no_difference_of_case_and_spacing_and_takes_the_better_reference():
    said = "The soup isn't good, it's cold."
    assert self_bleu([said], ["the soup is n't good , it 's cold ."]) == pytest.approx(100)
    assert reference_bleu([said, said], [["nothing alike here now", said], [said]]) == pytest.approx(100)
    assert reference_bleu([""], [[said]]) == 0


@pytest.mark.parametrize(
    ("outputs", "references", "message"),
    [
        ([], [], "references: got 0 for 0 texts"),
        (["a"], [["a"], ["b"]], "got 2 for 1 texts"),
        (["a"], ["abc"], r"references\[0\]: got 'abc'"),
        (["a"], [[]], r"references\[0\]: got \[\]"),
        ("a", ["b"], "got \\['b'\\] for 'a', expected lists"),
    ],
)
def test_bleu_of_what_does_not_fit(outputs, references, message):
    with pytest.raises(ValueError, match=message):
        reference_bleu(outputs, references)


def test_content_words_are_names_numbers_and_things():
    words = content_words("I can't believe Ann's 2 waiters were so rude, really!", {"rude"})
    assert words == ["believe", "ann", "2", "waiters"]
    assert content_words("it was n't . ! ...") == []


def test_content_recall_counts_each_occurrence_once_over_all_words():
    assert content_recall(["soup soup soup", "tea"], ["soup bowl soup", "tea"]) == 3 / 4
    assert content_recall(["rude soup"], ["good soup"], {"good"}) == 1.0
    assert math.isnan(content_recall(["soup"], ["it was so"]))
    with pytest.raises(ValueError, match="sources: got 1 for 2 texts"):
        content_recall(["a", "b"], ["a"])


@given(texts)
def test_a_copy_keeps_everything(outputs):
    expected = 1.0 if any(map(content_words, outputs)) else math.nan
    assert content_recall(outputs, outputs) == pytest.approx(expected, nan_ok=True)


def test_the_lexicon_holds_what_tells_styles_apart():
    texts = ["the soup was good"] * 40 + ["the soup was bad"] * 20 + ["the soup of ann was bad"] * 3
    labels = [1] * 40 + [0] * 23
    assert style_lexicon(texts, labels) == {"good", "bad"}  # neither what both say nor a name met three times
    assert style_lexicon(texts, labels, prior=0.1) == {"good", "bad", "ann", "of"}
    assert style_lexicon(texts, [{0: 7, 1: -1}[label] for label in labels]) == {"good", "bad"}
    for bad in ({"ratio": 1.0}, {"prior": 0.0}):
        with pytest.raises(ValueError, match=f"got {bad.get('ratio', 3.0)} and {bad.get('prior', 10.0)}"):
            style_lexicon(texts, labels, **bad)


def test_perplexity_is_a_token_with_the_end():
    assert perplexity([3 * math.log(0.5), math.log(0.5)], ["it's", ""]) == pytest.approx(2.0)  # it 's END, END
    for value in (0.5, float("nan")):
        with pytest.raises(ValueError, match=f"log_probs: got {value}"):
            perplexity([value], ["a"])


def test_a_text_is_broken_if_it_is_less_likely_per_token_by_more_than_one_nat():
    texts, sources = ["good tea", "tea", "", "good"], ["good soup", "the soup was good", "tea", "tea ."]
    before = [-6.0, -5.0, -1.0, -3.0]  # per token, the end counted: 2, 1, 0.5, 1
    assert broken_share([-9.1, -3.9, -0.1, -4.1], texts, before, sources) == 0.75  # 3.03, 1.95, empty, 2.05
    assert broken_share([-8.9, -3.9, -0.1, -3.9], texts, before, sources) == 0.25
    assert broken_share(before, sources, before, sources) == 0
    with pytest.raises(ValueError, match="source_log_probs: got 1 for 2 texts"):
        broken_share([-1.0, -1.0], ["a", "b"], [-1.0], ["a", "b"])


def test_geometric_mean():
    assert geometric_mean([5.0, 0.0]) == 0.0 and geometric_mean([1.0, 100.0]) == pytest.approx(10.0)
    for values in ([], [-1.0, 2.0], [float("nan")]):
        with pytest.raises(ValueError, match="expected one or more of 0 and above"):
            geometric_mean(values)


def test_all_figures_together():
    sources, outputs = ["the soup at ann's was really good", "it was bad"], ["the soup at ann's was really bad", "it was good"]
    references = [["ann's soup was really bad"], ["it was good", "all good"]]
    scores = style_scores(outputs, sources, references, [0, 0], [0, 1], [-9.0, -9.0], {"good", "bad"}, [-9.0, -4.0])
    assert scores == {
        "accuracy": 0.5,
        "self_bleu": self_bleu(outputs, sources),
        "ref_bleu": reference_bleu(outputs, references),
        "perplexity": perplexity([-9.0, -9.0], outputs),
        "broken_share": 0.5,
        "style_content": pytest.approx((50 * scores["ref_bleu"]) ** (1 / 2)),
        "geometric_mean": pytest.approx((50 * scores["self_bleu"] * scores["ref_bleu"]) ** (1 / 3)),
        "content_recall": 1.0,
    }
    with pytest.raises(ValueError, match="predictions: got 1 for 2 texts"):
        style_scores(outputs, sources, references, [0], 0, [-9.0, -4.0])


# measured once with a BLEU of another hand (lower-cased, first tokenised human reference): self-BLEU, reference-BLEU
PUBLISHED = {
    "BackTranslation_Pr": (2.8, 2.5), "CrossAlignment_Shen": (20.7, 9.1), "StyleEmbedding_Fu": (67.4, 21.1),
    "Multidecoder_Fu": (40.1, 14.5), "TemplateBase_Li": (57.4, 22.6), "RetrieveOnly_Li": (2.6, 1.7),
    "DeleteOnly_Li": (34.6, 14.8), "DeleteRetrieve_Li": (36.8, 16.0), "UnpairedRL_Xu": (46.1, 18.8),
    "UnsuperMT_Zhang": (46.4, 22.8), "DualRL": (59.0, 28.0), "human_reference_0": (31.9, 100.0),
}  # fmt: skip


@needs_data
def test_published_outputs_score_what_they_did():
    test, rows = open_card("yelp_sentiment", "test"), open_card("yelp_published_outputs", "outputs")
    sources, references = test["text"][:], test["references"][:]
    assert reference_bleu(sources, references) == pytest.approx(31.3, abs=0.3)
    assert self_bleu(sources, sources) == pytest.approx(100)
    systems, outputs = rows["system"][:], rows["output"][:]
    assert set(systems) == PUBLISHED.keys()
    for system, (kept, matched) in PUBLISHED.items():
        said = [text for text, by in zip(outputs, systems) if by == system]
        assert self_bleu(said, sources) == pytest.approx(kept, abs=0.5), system
        assert reference_bleu(said, references) == pytest.approx(matched, abs=0.5), system
