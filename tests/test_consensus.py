"""Consensus: the text that a set of texts agrees on."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmgen.conditioning.consensus import agreement, consensus, ngrams, similarity

texts = st.dictionaries(st.text("ab :,", max_size=12), st.floats(0.1, 5), min_size=1, max_size=6)


def test_similarity_by_hand():
    """Of "a b c" and "a b d": 2 of 3 words, 1 of 2 pairs, none of 1 triple, and neither has four words."""
    assert similarity(ngrams("a b c"), ngrams("A b, d")) == pytest.approx((2 / 3 + 1 / 2) / 4)
    # counts are clipped: one of the two is matched
    assert similarity(ngrams("a a"), ngrams("a")) == pytest.approx(1 / math.sqrt(2) / 4)
    assert similarity(ngrams("a"), ngrams("")) == 0


def test_the_majority_wins():
    assert consensus({"a dog": 2, "a cat": 1, "the moon": 1}) == ["a dog"]


def test_texts_that_agree_outweigh_a_likelier_one():
    """Two flags of weight 0.3 share one of two words: the best of them has 0.3 * 2/4 + 0.3 * 1/8, the cat 0.34 * 2/4."""
    assert consensus({"a cat": 0.34, "flag: Chad": 0.33, "flag: Cuba": 0.33}, 3) == ["flag: Chad", "flag: Cuba", "a cat"]


def test_agreement_is_the_mean_similarity_of_two_draws():
    """Of "a b" twice and "a c" once: 5 of 9 pairs are equal (2/4 each), 4 of 9 share one of two words (1/8)."""
    assert agreement({"a b": 2, "a c": 1}) == pytest.approx((5 * 2 / 4 + 4 / 8) / 9)


def test_a_candidate_may_vote_without_being_chosen():
    candidates = {"a red cat": 1, "a red": 4, "the moon": 1}
    assert consensus(candidates) == ["a red"] and consensus(candidates, among=["a red cat", "the moon"]) == ["a red cat"]


@given(texts, st.integers(1, 4))
def test_each_is_a_candidate(candidates, n):
    best = consensus(candidates, n)
    assert len(best) == min(n, len(candidates)) and set(best) <= set(candidates) and len(set(best)) == len(best)


@given(texts)
def test_neither_the_order_nor_the_scale_of_the_weights_matters(candidates):
    def agreement(text):
        return sum(weight * similarity(ngrams(text), ngrams(other)) for other, weight in candidates.items())

    backwards = {text: 3 * weight for text, weight in reversed(candidates.items())}
    assert agreement(consensus(candidates)[0]) == pytest.approx(agreement(consensus(backwards)[0]))
