"""The VQA normalisation, rule by rule, and exact match after it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmgen.metrics.vqa import CONTRACTIONS, SPELLING, exact_match, normalise


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (" Red\n", "red"),
        ("the red\tcar", "red car"),
        ("An apple, a pear", "apple pear"),
        ("Anna", "anna"),
        ("none", "0"),
        ("Ten o'clock", "10 o'clock"),
        ("eleven", "eleven"),
        ("twofold", "twofold"),
        ("yes.", "yes"),
        ("2.5", "2.5"),
        ("v. 2.", "v 2"),
        ("1,000", "1000"),
        ("1,000 red-blue", "1000 redblue"),  # as the evaluation does: a comma between digits drops every mark
        ("red/blue", "red blue"),
        ("red / blue", "red blue"),
        ("red- blue-green", "red bluegreen"),  # beside a space once, dropped everywhere
        ("(left)", "left"),
        ("what?!", "what"),
        ("dont", "don't"),
        ("couldn'tve", "couldn't've"),
        ("couldnt've", "couldn't've"),
        ("Don\N{RIGHT SINGLE QUOTATION MARK}t", "don't"),
        ("its", "its"),
        ("the", "the"),
        ("", ""),
        ("?", ""),
    ],
)
def test_rules(answer, expected):
    assert normalise(answer) == expected


@given(st.text() | st.lists(st.sampled_from([*"aA1.,-' ?", "the ", "two ", "dont "])).map("".join))
def test_what_is_normal_stays_and_case_and_spaces_do_not_count(answer):
    once = normalise(answer)
    assert normalise(once) == once
    assert normalise(f"  {answer}\n") == once == normalise(answer.lower())


def test_contractions_of_different_words_stay_apart():
    assert len(SPELLING) == len(CONTRACTIONS.split())
    assert all(normalise(contraction) == contraction for contraction in CONTRACTIONS.split())


def test_exact_match():
    assert exact_match(["Yes.", "a dog", "", "3"], ["yes", "dog", "no", "three"]) == 0.75
    assert exact_match(["dogs"], ["dog"]) == 0.0
    assert exact_match(["a"], ["A"]) == 1.0


def test_wrong_inputs():
    with pytest.raises(ValueError, match="made: got none, expected at least one answer"):
        exact_match([], [])
    with pytest.raises(ValueError, match="true: got 1, expected 2"):
        exact_match(["yes", "no"], ["yes"])
    with pytest.raises(ValueError, match=r"true\[1\]: got '\?!', expected an answer with a word"):
        exact_match(["yes", "no"], ["yes", "?!"])
