"""Editing texts into another style: the tables that are counted, the search, and the baselines by markers."""

import itertools
import json
import os
import re
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression

from mmgen.data.batch import Batch, collate
from mmgen.data.cards import open_card
from mmgen.data.text import train_word_tokenizer
from mmgen.errors import UserError
from mmgen.metrics.style import reference_bleu, self_bleu, tokenize, transfer_accuracy
from mmgen.models.base import load
from mmgen.models.edit import Edit, edited
from mmgen.models.style.edit_baselines import MarkerEditor
from mmgen.models.style.ngrams import DISCOUNT, NgramTable, framed, word_vectors, words_between
from mmgen.models.style.sentence_reader import SentenceReader
from mmgen.models.style.spelling import LONGEST, cut, spell_changed

GOOD, BAD = ("good", "great", "lovely", "fresh"), ("bad", "awful", "stale", "cold")
THINGS = ("soup", "tea", "bread", "waiter", "room", "place")


def reviews():
    """Sentences of two styles that differ in one word, and their labels."""
    rows = [(f"the {a} was {b} .", 0) for a in THINGS for b in BAD] + [(f"the {a} was {b} .", 1) for a in THINGS for b in GOOD]
    rows += [(f"i {'love' if label else 'hate'} the {a} !", label) for a in THINGS for label in (0, 1)]
    return [text for text, _ in rows] * 3, [label for _, label in rows] * 3


def trained(model, texts, labels, steps=60):
    """The model with its classifier trained for a moment."""
    processor = model.processors["text"]
    batch = collate([{"text": processor(t), "label": torch.tensor(y)} for t, y in zip(texts, labels)], model.sequences)
    optimiser = torch.optim.Adam(model.parameters(), lr=0.1)
    for _ in range(steps):
        optimiser.zero_grad()
        model.losses(batch).total.backward()
        optimiser.step()
    return model.eval()


@pytest.fixture(scope="module")
def model():
    texts, labels = reviews()
    return trained(Edit.learn(texts, labels, ["bad", "good"]), texts, labels)


def odds(model, texts):
    """The log-odds of the style "good"."""
    read = model.processors["text"].tokenizer(texts, add_special_tokens=False)["input_ids"]
    return model.log_odds(framed(read)).detach()


# words


@given(st.text() | st.text("can'tos. 1,-\"`&\u2019 "))
def test_the_tokenizer_splits_as_the_metric_does(text):
    text = text.encode("utf-8", "replace").decode()
    backend = train_word_tokenizer(["a a"]).tokenizer.backend_tokenizer
    words = [word for word, _ in backend.pre_tokenizer.pre_tokenize_str(backend.normalizer.normalize_str(text))]
    wanted = tokenize(text)
    if not {"``", "''", '"'} & {*words, *wanted} and not set(text) & set("\u201c\u201d\u2026") and text.lower().isprintable():
        assert words == wanted


def test_words_that_are_rare_are_unknown():
    processor = train_word_tokenizer(["soup soup tea"])
    assert processor("Soup tea SOUP").tolist() == [4, 3, 4] and processor.vocabulary == 5
    with pytest.raises(UserError, match="words that occur 2 times"):
        train_word_tokenizer(["soup tea"])


# what is counted


def sequences(rng, n=40, words=9):
    return [rng.integers(3, words, size=rng.integers(1, 6)).tolist() for _ in range(n)], rng.integers(0, 2, n).tolist()


def kneser_ney(sentences, labels, style):
    """p(w | a, b) in one style by the formulas, with nothing of the table's code."""
    every, own = Counter(), Counter()
    for sentence, label in zip(sentences, labels):
        row = [1, 1, *sentence, 2, 2]
        for triple in zip(row, row[1:], row[2:]):
            every[triple] += 1
            own[triple] += label == style
    pairs = Counter(triple[1:] for triple, n in own.items() if n)
    single = Counter(w for (_, w), n in pairs.items() if n)
    triples = {t: n for t, n in own.items() if n and every[t] >= 2}

    def discounted(counts, key, context, shorter):
        follow = {k: n for k, n in counts.items() if k[:-1] == context}
        if not follow:
            return shorter
        total = sum(follow.values())
        return max(follow.get(key, 0) - DISCOUNT, 0) / total + DISCOUNT * len(follow) / total * shorter

    def p(a, b, w, words):
        one = discounted({(k,): n for k, n in single.items()}, (w,), (), 1 / words)
        return discounted(triples, (a, b, w), (a, b), discounted(pairs, (b, w), (b,), one))

    return p


@pytest.mark.parametrize("seed", range(3))
def test_the_language_models_are_kneser_ney_and_sum_to_one(seed):
    sentences, labels = sequences(np.random.default_rng(seed))
    table = NgramTable.count(sentences, labels, words=9)
    everything = torch.arange(9)
    for style in (0, 1):
        p = kneser_ney(sentences, labels, style)
        for a, b in itertools.product(range(9), repeat=2):
            found = table.log_prob(torch.tensor(a), torch.tensor(b), everything, torch.tensor(style)).exp()
            assert found.sum().item() == pytest.approx(1, abs=1e-5)
            assert found.tolist() == pytest.approx([p(a, b, w, 9) for w in range(9)], rel=1e-4)


def test_a_style_without_texts_says_nothing():
    table = NgramTable.count([[4, 5], [4, 5]], [0, 0], words=9)
    found = table.log_prob(torch.tensor(4), torch.tensor(5), torch.arange(9), torch.tensor(1)).exp()
    assert found.tolist() == pytest.approx([1 / 9] * 9)


def test_what_is_not_in_the_table():
    table = NgramTable.count([[4, 5, 6], [4, 5, 7]], [0, 1], words=9)
    assert table.find(torch.tensor([4, 5]), torch.tensor([5, 4])).ge(0).tolist() == [True, False]
    once, twice = (4, 5, 6), (1, 4, 5)
    assert [table.find(*map(torch.tensor, words)).item() >= 0 for words in (once, twice)] == [False, True]


@pytest.mark.parametrize(
    ("words", "sentences", "message"),
    [(2**20 + 1, [[4, 5]] * 2, "words: got 1048577"), (4, [[3]] * 2, "words: got 4"), (9, [[4, 5]], "texts: got 1 sentences")],
)
def test_tables_that_cannot_be(words, sentences, message):
    with pytest.raises(UserError, match=message):
        NgramTable.count(sentences, [0] * len(sentences), words)


def test_words_between_two_are_usable_and_of_their_style():
    sentences = [[4, 5, 6]] * 3 + [[4, 7, 6]] * 2 + [[4, 8, 6]] * 9 + [[4, 3, 6]] * 9 + [[4, 9, 6]]
    labels = [0] * 23 + [0]
    usable = np.array([False] * 4 + [True] * 6)
    counts = np.stack([np.bincount(np.concatenate(sentences), minlength=10), np.zeros(10, int)])
    gaps, between = words_between(sentences, labels, counts, usable, choices=2)
    at = gaps.tolist().index((0 * 10 + 4) * 10 + 6)
    assert between[at].tolist() == [8, 5]  # 7 is third, 3 not usable, 9 met once
    assert words_between(sentences, [1] * 24, counts[::-1], usable, 2)[0].tolist() == (gaps + 10 * 10).tolist()


def test_words_with_the_same_neighbours_are_alike():
    rng = np.random.default_rng(0)
    sentences = [[4, int(rng.choice([5, 6])), 7] for _ in range(99)] + [[8, 9, 10]] * 30 + [[11, 4, 4]]
    vectors = word_vectors(sentences, np.bincount(np.concatenate(sentences), minlength=12), dim=4)
    assert vectors[5] @ vectors[6] > 0.9 and abs(vectors[5] @ vectors[9]) < 0.1
    assert np.linalg.norm(vectors, axis=1)[[4, 5, 11]] == pytest.approx([1, 1, 0], abs=1e-5)  # 11 was met once


# the model


def test_the_log_odds_are_the_weights_of_what_occurs():
    model = Edit.learn(*reviews(), ["bad", "good"])
    ids = model.processors["text"]("the soup was bad")
    the, soup, was, _ = ids.tolist()
    with torch.no_grad():
        model.bias.fill_(0.5)
        model.word_weights[soup], model.word_weights[2], model.word_weights[1] = 1.0, 99.0, 99.0  # 2: <eos>, 1: <bos>
        model.pair_weights[model.ngrams.find(torch.tensor(the), torch.tensor(soup))] = -3.0
        model.triple_weights[model.ngrams.find(*torch.tensor([the, soup, was]))] = 0.25
    batch = Batch({"text": ids[None], "label": torch.tensor([1])}, {"text": torch.ones(1, 4, dtype=torch.bool)})
    expected = torch.tensor(0.5 + 1 - 3 + 0.25)
    assert model.log_likelihood(batch).item() == pytest.approx(torch.nn.functional.logsigmoid(expected).item())
    assert odds(model, ["the soup was bad"]).item() == pytest.approx(expected.item())
    longer = collate([{"text": ids, "label": torch.tensor(1)}, {"text": ids.repeat(3), "label": torch.tensor(1)}], ["text"])
    assert model.log_likelihood(longer)[0].item() == pytest.approx(model.log_likelihood(batch).item())  # whatever the padding


@pytest.mark.parametrize("style", [0, 1])
def test_a_moves_gain_is_that_of_the_whole_sentence(model, style):
    read = model.processors["text"].tokenizer
    items = [
        [(word, at, False) for at, word in enumerate(ids)]
        for ids in read(["the was bad .", "i love the tea !", "great"], add_special_tokens=False)["input_ids"]
    ]
    items[1] = edited(items[1], 1, 1, items[1][1][0])  # a word that was put there stays
    ids = model.framed(items)
    locked = torch.zeros_like(ids, dtype=torch.bool)
    locked[1, 3] = True
    moves = model.moves(ids, locked, style)
    assert {0, 1, 2} == set(moves.length.tolist()) and -1 in moves.word.tolist() and len(moves.row.unique()) == 3
    fluency = model.fluency_of(moves.after, style) - model.fluency_of(moves.before, style)
    for n in range(len(moves.row)):
        row, start, length, word = (int(part[n]) for part in moves[:4])
        changed = edited(items[row], start - 2, length, word)
        assert len(changed) == len(items[row]) - length + (word >= 0) > 0
        assert row != 1 or (items[1][1] in changed)
        whole = model.framed([changed])
        assert moves.gain[n].item() == pytest.approx((model.log_odds(whole) - model.log_odds(ids[[row]])).item(), abs=1e-4)
        lost = model.fluency_of(whole, style) - model.fluency_of(ids[[row]], style)
        assert fluency[n].item() == pytest.approx(lost.item(), abs=1e-3)


def test_texts_change_style_and_nothing_else(model):
    texts, labels = reviews()
    for target, wanted in (("good", GOOD), ("bad", BAD)):
        style = model.class_names.index(target)
        told = [text for text, label in zip(texts, labels) if label != style]
        restyled = model.restyle(told, target)
        assert ((odds(model, restyled) > 0) == bool(style)).all()
        for before, after in zip(told, restyled):
            same = [a == b for a, b in zip(before.split(), after.split())]
            assert len(before.split()) == len(after.split()) and same.count(False) == 1
            assert {*after.split()} & {*wanted, "love" if style else "hate"}
        assert model.restyle(restyled, target) == restyled  # already so: left alone


@pytest.mark.parametrize(
    "text",
    [
        "",
        "  \n",
        "\U0001f600\U0001f600 !!",
        "\u4f60\u597d\uff0c\u8fd9\u91cc\u5f88\u7cdf\u7cd5\u3002",
        "das Essen schmeckte gar nicht",
    ],
)
def test_what_is_blank_or_not_of_this_language_comes_back(model, text):
    assert model.restyle([text, "the soup was bad .", text], "good")[::2] == [text, text]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.text() | st.text("the soup was bad. THE'\u2019\n"), max_size=4))
def test_every_text_comes_back_in_its_place(model, texts):
    texts = [text.encode("utf-8", "replace").decode() for text in texts]
    marked = [x for text in texts for x in (text, "the tea was bad .")]
    restyled = model.restyle(marked, "good")
    assert len(restyled) == len(marked) and not any("bad" in text for text in restyled[1::2])
    assert all(bool(before.strip()) == bool(after.strip()) for before, after in zip(texts, restyled[::2]))
    margin, model.margin = model.margin, -1e9  # nothing is worth a change
    assert model.restyle(texts, "good") == texts
    model.margin = margin


def test_capitals_marks_and_spaces_stay(model):
    text = "  The  soup was BAD, Ann.\tBad soup! I hate the tea!  "
    restyled = model.restyle([text], "good")[0]
    assert restyled.startswith("  The  soup was ") and ", Ann.\t" in restyled and restyled.endswith("!  ")
    assert "bad" not in restyled.lower() and "hate" not in restyled
    assert any(word.upper() in restyled for word in GOOD)
    assert model.restyle(["Bad"], "good")[0] in [word.capitalize() for word in (*GOOD, "love")]


def spelt(model, text, *changes):
    """The text after changes of (first word, words, new word)."""
    tokenizer = model.processors["text"].tokenizer
    read = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    items = [(word, at, False) for at, word in enumerate(read["input_ids"])]
    for start, length, word in changes:
        items = edited(items, start, length, -1 if word is None else tokenizer.convert_tokens_to_ids(word))
    return spell_changed(text, read["offset_mapping"], items, tokenizer)


@pytest.mark.parametrize(
    ("text", "change", "expected"),
    [
        ("The soup was bad.", (3, 1, "great"), "The soup was great."),
        ("The soup was BAD.", (3, 1, "great"), "The soup was GREAT."),
        ("The soup was bad.", (0, 1, None), "Soup was bad."),
        ("The soup was bad.", (4, 1, None), "The soup was bad"),
        ("The soup was bad", (4, 0, "!"), "The soup was bad!"),
        ("the soup was bad .", (2, 2, "great"), "the soup great ."),
        ("(bad) soup", (1, 1, "great"), "(great) soup"),
        ("The soup", (0, 0, "great"), "Great the soup"),
        ("Yelpers hate the soup", (0, 0, "great"), "Great Yelpers hate the soup"),  # a name: not a word that is known
        ("the Tea is bad . ", (4, 1, "!"), "the Tea is bad ! "),
        ("Soup, bread", (2, 1, "i"), "Soup, I"),
    ],
)
def test_spelling(model, text, change, expected):
    assert spelt(model, text, change) == expected


def test_clitics_join_unless_the_text_is_in_tokens():
    texts = ["it is n't bad", "it is n't good"] * 3
    model = Edit.learn(texts, [0, 1] * 3, ["bad", "good"])
    assert spelt(model, "It is bad", (2, 0, "n't")) == "It isn't bad"
    assert spelt(model, "it is bad .", (2, 0, "n't")) == "it is n't bad ."
    assert spelt(model, "It isn't bad", (2, 1, None)) == "It is bad"


def test_pieces_are_sentences_and_never_long():
    assert [[word for word, _, _ in piece] for piece in cut([5, 6, 9, 9, 5, 9, 6], {9})] == [[5, 6, 9, 9], [5, 9], [6]]
    long = list(cut(list(range(10, 10 + 3 * LONGEST)), {9}))
    assert [len(piece) for piece in long] == [LONGEST] * 3 and long[1][0] == (10 + LONGEST, LONGEST, False)
    assert list(cut([], {9})) == []


def test_a_line_of_ten_thousand_words(model):
    line = "the soup was bad . i hate the waiter ! " + "the waiter " * 5000
    restyled = model.restyle(["the tea was bad .", line, "the bread was bad ."], "good")
    assert len(restyled[1].split()) == len(line.split()) and not {"bad", "hate"} & {*" ".join(restyled).split()}
    assert ["tea" in restyled[0], "waiter" in restyled[1], "bread" in restyled[2]] == [True] * 3


# whole sentences weighed by a language model


def test_alternatives_together_are_as_likely_as_alone():
    reader = SentenceReader("tiny", "fp32")
    groups = [["the tea was good", "the tea was bad", "", "the soup"], ["a"], ["the tea was good"] * 2]
    for group, together in zip(groups, reader.log_probs(groups)):
        for text, log_p in zip(group, together.tolist()):
            ids = reader.tokenizer(text, add_special_tokens=False).input_ids
            begin = reader.tokenizer.bos_token_id
            ids = torch.tensor([[reader.tokenizer.eos_token_id if begin is None else begin, *ids]], dtype=torch.long)
            alone = reader.model(ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None]).sum()
            assert log_p == pytest.approx(alone.item(), abs=1e-3)


class Prefers:
    """A language model that finds texts with a word of ``bad`` much less likely than others."""

    def __init__(self, *bad):
        self.bad = bad

    def log_probs(self, groups):
        return [torch.tensor([-4.0 * len(t.split()) - 9 * sum(w in t for w in self.bad) for t in g]) for g in groups]


@pytest.fixture
def weighing(model):
    model.candidates, model.beam = 12, 3
    yield model
    model.candidates, model.beam, model.language_model = 1, 1, None


def test_the_language_model_chooses_among_whole_sentences(weighing):
    weighing.language_model = Prefers()
    [first] = weighing.restyle(["The soup was bad."], "good")
    word = first.split()[-1].rstrip(".")
    weighing.language_model = Prefers(word)
    [second] = weighing.restyle(["The soup was bad."], "good")
    assert first != second and word not in second and odds(weighing, [second.lower()]) > 0


def test_what_becomes_broken_in_every_way_stays(weighing):
    weighing.language_model = Prefers(*GOOD, "love")
    assert weighing.restyle(["The soup was bad.", "The soup was bad. i hate tea"], "good") == [
        "The soup was bad.",
        "The soup was bad. i hate tea",
    ]


def test_a_model_is_loaded_with_or_without_a_language_model(model, tmp_path):
    model.save_pretrained(tmp_path)
    assert load(tmp_path, language_model="tiny", dtype="fp32").language_model is not None
    assert load(tmp_path).language_model is None
    weighed = load(tmp_path, language_model="tiny", dtype="fp32", tolerance=100.0).restyle(["the soup was bad ."], "good")
    assert odds(model, weighed) > 0


def test_a_saved_model_edits_alike(model, tmp_path):
    model.save_pretrained(tmp_path)
    texts = ["The soup was BAD, Ann.", "I hate the tea!"]
    again = load(tmp_path)
    assert again.restyle(texts, "good") == model.restyle(texts, "good") != texts
    assert again.margin == model.margin and load(tmp_path, margin=-1e9).restyle(texts, "good") == texts


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"class_names": ["good"]}, r"class_names: got \['good'\]"),
        ({"change": 0.5}, "change: got 0.5, expected a number >= 1"),
        ({"choices": 0}, "choices: got 0"),
        ({"fluency": -1.0}, r"fluency: got -1\.0"),
    ],
)
def test_settings_that_cannot_be(settings, message):
    with pytest.raises(UserError, match=message):
        Edit(**{"class_names": ["bad", "good"], "words": 9, "pairs": 1, "triples": 1, "gaps": 1} | settings)


@pytest.mark.parametrize(
    ("labels", "message"), [([0, 0], "no text of label 1"), ([0, 2], "got 2 among the labels"), ([1, 1], "no text of label 0")]
)
@pytest.mark.parametrize("learn", [Edit.learn, lambda *data: MarkerEditor.learn(*data, "delete")])
def test_texts_of_other_than_two_styles(learn, labels, message):
    with pytest.raises(UserError, match=message):
        learn(["the soup was bad"] * 2, labels, ["bad", "good"])


def test_a_style_that_does_not_exist(model):
    for editor in (model, MarkerEditor("delete", ["bad", "good"])):
        with pytest.raises(UserError, match=r"target: got goood.*did you mean 'good'"):
            editor.restyle(["the soup was bad ."], "goood")


def test_texts_without_style_or_label(model):
    ids = model.processors["text"]("the soup")[None]
    mask = {"text": torch.ones_like(ids, dtype=torch.bool)}
    with pytest.raises(UserError, match=r"text and label: got no item that has both \(the batch holds text\)"):
        model.log_likelihood(Batch({"text": ids}, mask))
    with pytest.raises(UserError, match="label: got 2, expected 0 or 1"):
        model.losses(Batch({"text": ids, "label": torch.tensor([2])}, mask))


# the baselines


@pytest.fixture
def editor():
    """By markers given by hand."""
    sentences = [["the tea was cold", "rude at best"], ["the soup was really good", "what a lovely room", "so good so fresh"]]
    markers = [["bad", "not good", "rude"], ["really good", "good", "so good", "so fresh", "lovely"]]
    return lambda method: MarkerEditor(method, ["bad", "good"], markers, sentences)


def test_copy_leaves_every_letter(editor):
    texts = [" The soup\twas BAD ", "", "\U0001f600"]
    assert editor("copy").restyle(texts, "good") == texts


def test_delete_takes_the_longest_markers_first(editor):
    assert editor("delete").restyle(["The soup was NOT good, Ann!", "bad", " "], "good") == ["the soup was , ann !", "", " "]
    assert editor("delete").split(["so", "good", "so"], 1) == [("so good", True), ("so", False)]
    assert editor("delete").split(["so", "good", "so"], 0) == [("so", False), ("good", False), ("so", False)]


@pytest.mark.parametrize(
    ("text", "template", "retrieve"),
    [
        ("the soup was bad", "the soup was really good", "the soup was really good"),
        ("rude soup was not good", "really good soup was", "the soup was really good"),  # two places, one marker
        ("my room , bad", "my room , lovely", "what a lovely room"),
        ("the soup was cold", "the soup was cold", "the soup was really good"),  # no marker, nothing to replace
    ],
)
def test_template_and_retrieve(editor, text, template, retrieve):
    assert editor("template").restyle([text], "good") == [template]
    assert editor("retrieve").restyle([text, "  "], "good") == [retrieve, "  "]


def test_the_last_place_takes_the_markers_that_are_left():
    editor = MarkerEditor("template", ["bad", "good"], [["bad"], ["good", "fresh"]], [[], ["good soup and fresh"]])
    assert editor.restyle(["soup and bad"], "good") == ["soup and good fresh"]


def test_markers_are_those_of_the_formula():
    texts, labels = ["a b c"] * 5 + ["a b"] * 9 + ["a c d"] * 2, [0] * 5 + [1] * 9 + [1] * 2
    editor = MarkerEditor.learn(texts, labels, ["x", "y"], "template", smoothing=1, threshold=2, longest=2)
    # a: 5 and 11; b: 5 and 9; c: 5 and 2; d: 0 and 2; a b: 5 and 9; b c: 5 and 0; a c, c d: 0 and 2
    assert editor.markers == [{"c", "b c"}, {"d", "a c", "c d"} | ({"a"} if 12 / 6 >= 2 else set())]
    assert set(editor.sentences[0]) == {"a b c"} and len(editor.sentences[1]) == 11


def test_a_saved_editor_edits_alike(editor, tmp_path):
    before = editor("template")
    before.save(tmp_path)
    texts = ["the soup was bad", "Rude room!"]
    assert MarkerEditor.load(tmp_path).restyle(texts, "good") == before.restyle(texts, "good")
    (tmp_path / "editor.json").write_text(json.dumps({"methods": "copy"}), encoding="utf-8")
    with pytest.raises(UserError, match=r"editor\.json.*methods"):
        MarkerEditor.load(tmp_path)
    with pytest.raises(UserError, match=r"nowhere.*save it again"):
        MarkerEditor.load(tmp_path / "nowhere")


def test_editors_that_cannot_be(editor):
    with pytest.raises(UserError, match=r"method: got deleet.*'delete'"):
        MarkerEditor("deleet", ["bad", "good"])
    with pytest.raises(UserError, match="class_names"):
        MarkerEditor("copy", ["good"])
    with pytest.raises(UserError, match="some with markers of good"):
        MarkerEditor("retrieve", ["bad", "good"]).restyle(["the soup"], "good")
    for wrong, message in (({"smoothing": 0.0}, "smoothing: got 0.0"), ({"threshold": 1.0}, "threshold: got 1.0"),
                              ({"longest": 0}, "longest: got 0")):  # fmt: skip
        with pytest.raises(UserError, match=message):
            MarkerEditor.learn(["a", "b"], [0, 1], ["x", "y"], "delete", **wrong)


@pytest.mark.slow
@pytest.mark.skipif(not os.environ.get("MMGEN_DATA"), reason="MMGEN_DATA is not set")
def test_yelp_sentences_are_above_the_published_systems():
    train, other, test = (open_card("yelp_sentiment", split) for split in ("train", "validation", "test"))
    told, styles = train["text"][:], torch.tensor(train["label"][:])
    model = Edit.learn(told, styles.tolist(), ["negative", "positive"])
    read = model.processors["text"].tokenizer(told, add_special_tokens=False)["input_ids"]
    optimiser = torch.optim.Adam(model.parameters(), lr=0.02)
    for step in range(442):
        rows = range(step * 256, min((step + 1) * 256, len(read)))
        items = [{"text": torch.tensor(read[i]), "label": styles[i]} for i in rows]
        optimiser.zero_grad()
        model.losses(collate(items, model.sequences)).total.backward()
        optimiser.step()
    texts, labels = test["text"][:], np.array(test["label"][:])
    restyled = np.empty(len(texts), dtype=object)
    for label in (0, 1):
        restyled[labels == label] = model.restyle(
            [t for t, of in zip(texts, labels) if of == label], model.class_names[1 - label]
        )
    words = CountVectorizer(tokenizer=tokenize, token_pattern=None, ngram_range=(1, 2), min_df=2, binary=True)
    judge = LogisticRegression(solver="liblinear").fit(words.fit_transform(other["text"][:]), other["label"][:])
    judge_accuracy = judge.score(words.transform(texts), labels)
    assert judge_accuracy > 0.95
    assert transfer_accuracy(judge.predict(words.transform(restyled)), 1 - labels) >= 0.88
    assert self_bleu(list(restyled), texts) >= 58 and reference_bleu(list(restyled), test["references"][:]) >= 25


@pytest.mark.parametrize(
    ("text", "stays"),
    [
        ("The bad Bad of Mr. Awful and the Cold was awful.", ["Bad", "Mr. Awful", "Cold"]),
        (
            "see http://www.bad.com or bad.awful@cold.org, a bad U.S.A. place",
            ["http://www.bad.com", "bad.awful@cold.org", "U.S.A."],
        ),
    ],
)
def test_names_addresses_and_abbreviations_stay(model, text, stays):
    model.margin, before = 100.0, model.margin  # never enough: as many changes as there are rounds
    made = model.restyle([text], "good")[0]
    model.margin = before
    assert all(part in made for part in stays), made


def test_a_single_string_is_refused(model):
    for texts in ("the tea was bad", [None], None, 3):
        with pytest.raises(UserError, match=rf"texts: got {re.escape(repr(texts))}, expected a list of strings; write"):
            model.restyle(texts, "good")


def test_texts_may_come_one_by_one(model):
    texts = ["the tea was bad", "the soup was bad"]
    assert model.restyle((text for text in texts), "good") == model.restyle(texts, "good")
