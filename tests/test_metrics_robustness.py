"""What missing modalities cost."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmgen.metrics.robustness import missing_loss_ratio, robustness_area


def test_area_of_lines():
    assert robustness_area([0, 0.3, 1], [0.7, 0.7, 0.7]) == pytest.approx(0.7)
    shares = [0, 0.1, 0.15, 0.8, 1]
    assert robustness_area(shares, [0.9 - 0.4 * p for p in shares]) == pytest.approx(
        0.7
    )  # a line has the height of its middle
    assert robustness_area([0, 0.5], [1, 0]) == pytest.approx(0.5)  # over the shares that were measured


@given(st.lists(st.floats(0, 1), min_size=2, max_size=6), st.integers(0, 99))
def test_area_lies_among_the_scores(scores, seed):
    shares = np.sort(np.random.default_rng(seed).choice(101, len(scores), replace=False)) / 100
    assert min(scores) - 1e-9 <= robustness_area(shares, scores) <= max(scores) + 1e-9


@pytest.mark.parametrize(
    ("missing", "scores", "message"),
    [
        ([0, 1], [0.5], "got 2 and 1"),
        ([0], [0.5], "got 1 and 1"),
        ([0, 0.5, 0.5], [1, 1, 1], r"got \[0, 0.5, 0.5\]"),
        ([0, 50], [1, 1], r"got \[0, 50\]"),
        ([-0.1, 1], [1, 1], r"got \[-0.1, 1\]"),
        ([0, math.nan], [1, 1], r"got \[0, nan\]"),
    ],
)
def test_bad_curve(missing, scores, message):
    with pytest.raises(ValueError, match=message):
        robustness_area(missing, scores)


def test_ratio():
    assert missing_loss_ratio(0.9, [0.5, 0.8], [0.9, 0.9]) == 0
    assert missing_loss_ratio(0.9, [0.5, 0.8], [0.5, 0.8]) == 1
    assert missing_loss_ratio(0.9, [0.5, 0.8], [0.6, 0.7]) == pytest.approx(1)  # summed over the modalities
    assert missing_loss_ratio(0.9, [0.5, 0.8], [0.95, 0.9]) == pytest.approx(-0.1)  # better than with nothing missing


def test_ratio_of_a_loss_too_small_to_tell():
    assert math.isnan(missing_loss_ratio(0.9, [0.89, 0.88], [0.88, 0.88]))
    assert missing_loss_ratio(0.9, [0.89, 0.88], [0.88, 0.88], least=0.02) == pytest.approx(4 / 3)


@pytest.mark.parametrize(("zeros", "inferred", "message"), [([0.5], [0.5, 0.6], "got 1 and 2"), ([], [], "got 0 and 0")])
def test_bad_scores(zeros, inferred, message):
    with pytest.raises(ValueError, match=message):
        missing_loss_ratio(0.9, zeros, inferred)
