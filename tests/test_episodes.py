"""Few-shot episodes: words are bound one to one, nothing leaks into the query, every draw is even and reproducible."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmgen.data.episodes import NONSENSE, episodes
from mmgen.errors import UserError


@st.composite
def settings_of_episodes(draw):
    """Labels in any order, of which at least `ways` classes have rows enough; and the settings."""
    ways, inner_shots = draw(st.integers(2, 5)), draw(st.integers(1, 4))
    sizes = draw(st.lists(st.integers(inner_shots + 1, 9), min_size=ways, max_size=8))
    small = draw(st.lists(st.integers(1, inner_shots), max_size=3))
    labels = [f"class {i}" for i, size in enumerate([*sizes, *small]) for _ in range(size)]
    labels += [""] * draw(st.integers(0, 5)) + [None] * draw(st.integers(0, 5))
    return draw(st.permutations(labels)), ways, inner_shots, draw(st.integers(0, 2**32))


@given(settings_of_episodes())
def test_what_every_episode_keeps(settings):
    labels, ways, inner_shots, seed = settings
    drawn = episodes(labels, ways, inner_shots, n=5, seed=seed)
    assert len(drawn) == 5 and drawn == episodes(iter(labels), ways, inner_shots, n=5, seed=seed)
    for episode in drawn:
        assert len(set(episode.words)) == ways and set(episode.words) <= set(NONSENSE)
        assert episode.query not in episode.support and len(set(episode.support)) == len(episode.support)
        classes = [labels[row] for row in episode.support]
        pairs = set(zip(classes, episode.support_words, strict=True))
        assert len(pairs) == len(set(classes)) == ways and set(episode.support_words) == set(episode.words)  # a bijection
        assert dict(pairs)[labels[episode.query]] == episode.word
        assert "" not in classes and None not in classes
        for shot in range(inner_shots):  # balanced in every round, hence in all
            assert sorted(episode.support_words[shot * ways : (shot + 1) * ways]) == sorted(episode.words)


@given(settings_of_episodes(), st.integers(0, 3))
def test_a_longer_support_begins_with_the_shorter(settings, fewer):
    labels, ways, inner_shots, seed = settings
    shots = max(inner_shots - fewer, 1)
    few = episodes(labels, ways, shots, 3, seed, at_least=inner_shots + 1)
    many = episodes(labels, ways, inner_shots, 3, seed)
    for short, long in zip(few, many, strict=True):
        assert (short.query, short.word, short.words) == (long.query, long.word, long.words)
        assert short.support == long.support[: ways * shots]
        assert short.support_words == long.support_words[: ways * shots]


def test_fewer_episodes_are_the_first_of_more():
    labels = [i % 7 for i in range(70)]
    assert episodes(labels, 5, 3, 4, seed=1) == episodes(labels, 5, 3, 9, seed=1)[:4]
    assert episodes(labels, 5, 3, 4, seed=1) != episodes(labels, 5, 3, 4, seed=2)


def test_every_choice_is_even():
    n, labels = 3000, [i % 6 for i in range(60)]
    drawn = episodes(labels, 2, 2, n, seed=0)
    figures = {
        "class of the query": (Counter(labels[e.query] for e in drawn), 6),
        "row of the query": (Counter(e.query for e in drawn), 60),
        "word": (Counter(e.word for e in drawn), 12),
        "place in the closed set": (Counter(e.words.index(e.word) for e in drawn), 2),
        "last word shown is the query's": (Counter(e.support_words[-1] == e.word for e in drawn), 2),
        "first row shown": (Counter(e.support[0] for e in drawn), 60),
        "word of class 0": (Counter(w for e in drawn for row, w in zip(e.support, e.support_words) if labels[row] == 0), 12),
    }
    for what, (counts, outcomes) in figures.items():
        total = sum(counts.values())
        chi2 = sum((count - total / outcomes) ** 2 / (total / outcomes) for count in counts.values())
        assert len(counts) == outcomes, what
        # twice the degrees of freedom and 12 more: beyond the 99.9 % point of each; the shots of an episode share a word
        assert chi2 < 2 * (outcomes - 1) + 12, (what, counts)


def test_classes_of_too_few_rows_are_left_out():
    labels = ["a"] * 6 + ["b"] * 6 + ["c"] * 3
    assert {labels[e.query] for e in episodes(labels, 2, 1, 200, seed=0)} == {"a", "b", "c"}
    drawn = episodes(labels, 2, 1, 200, seed=0, at_least=6)
    assert {labels[row] for e in drawn for row in (*e.support, e.query)} == {"a", "b"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ways": 1}, "ways: got 1, expected a number >= 2"),
        ({"ways": 4}, "labels: got 3 classes of 3 or more rows, expected at least 4, the number of ways"),
        ({"inner_shots": 4}, "labels: got 0 classes of 5 or more rows, expected at least 2"),
        ({"inner_shots": 3}, "labels: got 1 class of 4 or more rows, expected at least 2"),
        ({"inner_shots": 0}, "inner_shots: got 0"),
        ({"n": 0}, "n: got 0"),
        ({"seed": -1}, "seed: got -1"),
        ({"at_least": 2}, "at_least: got 2, expected a number >= 3"),
        ({"ways": 3, "words": ["dax", "wug"]}, "ways: got 3, expected at most 2, the number of words"),
        ({"words": ["dax", "wug", "dax"]}, "words: got dax, expected distinct words"),
        ({"labels": []}, "labels: got 0 classes"),
    ],
)
def test_what_cannot_be_drawn_says_so(changes, message):
    settings = {"labels": [0, 0, 0, 1, 1, 1, 2, 2, 2, 2], "ways": 2, "inner_shots": 2, "n": 1, "seed": 0}
    with pytest.raises(UserError) as error:
        episodes(**(settings | changes))
    assert message in str(error.value)


def test_the_words_are_invented_and_distinct():
    assert len(set(NONSENSE)) == len(NONSENSE) == 12 and all(word.isalpha() and word.islower() for word in NONSENSE)
