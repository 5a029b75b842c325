"""The bags of words: what a word may be, and that words held out of steering are new to it."""

from collections import Counter

import pytest

from mmgen.data.cards import card_names, check_card, open_card, read_card

TOPICS = [name.removeprefix("bag_") for name in card_names() if name.startswith("bag_")]


def words(topic: str) -> dict[str, list[str]]:
    """What the card holds; that opening it gives just these words is tested below."""
    (source,) = read_card(f"bag_{topic}").sources
    return source["inline"]


def test_the_topics():
    assert TOPICS == [
        "food", "health", "legal", "military", "politics", "religion", "science", "space", "sports", "technology",
    ]  # fmt: skip


@pytest.mark.parametrize("topic", TOPICS)
def test_a_bag_opens_as_its_card_says(topic, monkeypatch, tmp_path):
    monkeypatch.setenv("MMGEN_CACHE", str(tmp_path))
    monkeypatch.delenv("MMGEN_DATA", raising=False)
    assert check_card(f"bag_{topic}") == []
    opened = {split: open_card(f"bag_{topic}", split)["word"][:] for split in ("train", "held_out")}
    assert opened == words(topic)


@pytest.mark.parametrize("topic", TOPICS)
def test_sizes_and_spelling(topic):
    bag = words(topic)
    assert [len(of) for of in bag.values()] == [72, 36]
    for of in bag.values():
        assert of == sorted(of)
        assert all(word.isascii() and word.isalpha() and word == word.lower() and len(word) > 2 for word in of)


def test_no_word_is_in_two_bags_or_twice_in_one():
    counts = Counter(word for topic in TOPICS for of in words(topic).values() for word in of)
    assert {word: n for word, n in counts.items() if n > 1} == {}


@pytest.mark.parametrize("topic", TOPICS)
def test_held_out_words_are_no_forms_of_those_that_steer(topic):
    """A text pushed to `planet` may well say `planets`: that would not show that it keeps to the topic."""
    train, held_out = words(topic).values()
    related = [
        (a, b) for a in train for b in held_out if a.startswith(b) or b.startswith(a) or (a[:5] == b[:5] and len(a) > 4)
    ]
    assert related == []
