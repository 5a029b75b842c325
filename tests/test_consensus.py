"""Consensus: the text that a set of texts agrees on."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmgen.conditioning.consensus import consensus, cuts, ngrams, similarity

texts = st.lists(st.text("ab :,", max_size=12), min_size=1, max_size=6)


def test_similarity_by_hand():
    """Of "a b c" and "a b d": 2 of 3 words, 1 of 2 pairs, none of 1 triple, and neither has four words."""
    assert similarity(ngrams("a b c"), ngrams("A b, d")) == pytest.approx((2 / 3 + 1 / 2) / 4)
    # counts are clipped: one of the two is matched
    assert similarity(ngrams("a a"), ngrams("a")) == pytest.approx(1 / math.sqrt(2) / 4)
    assert similarity(ngrams("a"), ngrams("")) == 0


def test_the_majority_wins():
    assert consensus(["a dog", "a cat", "a dog", "the moon"]) == ["a dog"]


def test_what_they_do_not_agree_on_is_left_out():
    countries = ["Chad", "Cuba", "Fiji", "Iran", "Iraq", "Laos", "Mali", "Oman", "Peru"]
    assert consensus([f"flag: {country}" for country in countries]) == ["flag"]
    assert consensus([f"flag: {country}" for country in countries], cut=0)[0].startswith("flag: ")


@given(texts, st.integers(1, 4), st.integers(0, 3))
def test_each_is_a_candidate_or_one_with_a_run_of_words_less(candidates, n, cut):
    best = consensus(candidates, n, cut)
    allowed = set(candidates) | {shorter for text in candidates for shorter in cuts(text, cut)}
    assert 1 <= len(best) <= n and set(best) <= allowed and len(set(best)) == len(best)


@given(texts)
def test_the_order_of_the_candidates_does_not_matter(candidates):
    def agreement(text):
        return sum(similarity(ngrams(text), ngrams(other)) for other in candidates)

    assert agreement(consensus(candidates)[0]) == pytest.approx(agreement(consensus(candidates[::-1])[0]))


@given(st.text("ab :,", max_size=12), st.integers(1, 3))
def test_cuts_keep_the_order_of_the_words(text, longest):
    words = [w for w in text.replace(":", " ").replace(",", " ").split()]
    for shorter in cuts(text, longest):
        left = shorter.replace(":", " ").replace(",", " ").split()
        assert 0 < len(left) < len(words) and len(words) - len(left) <= longest
