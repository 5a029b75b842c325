"""Two-sample tests: uniform p-values under the null, power, by-hand values; the divergence against quadrature and torch."""

import math

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributions import Normal

from mmgen.latents.divergences import mmd
from mmgen.metrics.two_sample import CLASSIFIERS, classifier_test, jensen_shannon, jensen_shannon_on_grid, mmd_test

TESTS = {
    "logistic": lambda x, y, seed: classifier_test(x, y, "logistic", seed),
    "neighbours": lambda x, y, seed: classifier_test(x, y, "neighbours", seed),
    "mmd": lambda x, y, seed: mmd_test(x, y, permutations=199, seed=seed),
}


def normal(n: int, d: int, seed: int) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", TESTS)
def test_p_values_are_uniform_if_the_samples_have_one_distribution(name):
    """200 repeats of samples of unequal size; a uniform p is below 0.05 in 5 % of them."""
    p = np.array([TESTS[name](normal(40, 3, 2 * i), normal(60, 3, 2 * i + 1), i).p for i in range(200)])
    assert scipy.stats.kstest(p, "uniform").pvalue > 0.01
    assert 0.01 <= (p <= 0.05).mean() <= 0.1


@pytest.mark.parametrize("name", TESTS)
def test_one_standard_deviation_is_always_found_among_500(name):
    p = [TESTS[name](normal(500, 2, i), normal(500, 2, 100 + i) + torch.tensor([1.0, 0.0]), i).p for i in range(5)]
    assert max(p) <= 0.005, p


def test_a_ring_is_told_from_a_gaussian_of_equal_moments():
    """Beyond what a linear classifier sees: the same mean and covariance."""
    turn = 2 * math.pi * torch.rand(300, generator=torch.Generator().manual_seed(0))
    ring = 2**0.5 * torch.stack([turn.cos(), turn.sin()], 1)  # covariance 1
    other = normal(300, 2, 1)
    assert classifier_test(ring, other, "neighbours").p < 0.005 and mmd_test(ring, other, bandwidth=0.5).p < 0.005
    assert classifier_test(ring, other, "logistic").p > 0.01


def test_the_area_under_the_curve_is_the_share_of_pairs_in_order():
    """Of a one-dimensional shift by a standard deviation it is P(y > x) = Phi(1 / sqrt 2)."""
    auc, p = classifier_test(normal(20_000, 1, 0), normal(20_000, 1, 1) + 1)
    assert auc == pytest.approx(scipy.stats.norm.cdf(0.5**0.5), abs=0.01) and p < 1e-10


@given(st.integers(2, 9), st.integers(2, 9), st.integers(1, 3), st.floats(0.3, 3), st.integers(0, 99))
def test_mmd_is_that_of_the_losses(n, m, d, bandwidth, seed):
    x, y = normal(n, d, seed).double(), 1 + normal(m, d, seed + 1).double()
    expected = mmd(x, y, bandwidth)  # exp(-|x - y|^2 / (2 h^2)) as here
    assert mmd_test(x, y, bandwidth, permutations=1).statistic == pytest.approx(expected.item(), abs=1e-9)


def test_the_median_distance_is_the_bandwidth():
    x, y = torch.tensor([[0.0], [1.0]]), torch.tensor([[2.0], [5.0]])  # distances 1 1 2 3 4 5, of which torch's median is 2
    assert mmd_test(x, y) == mmd_test(x, y, bandwidth=2.0) != mmd_test(x, y, bandwidth=3.0)


def test_permutations_are_those_of_all_divisions():
    """Of 3 + 3 items there are 20 divisions, of which two are as far apart as the ordered one."""
    x, y = torch.tensor([[0.0], [0.1], [0.2]]), torch.tensor([[1.0], [1.1], [1.2]])
    assert mmd_test(x, y, permutations=4000).p == pytest.approx(0.1, abs=0.02)


def test_equal_items_differ_in_nothing():
    same = torch.ones(10, 2)
    assert mmd_test(same, same) == (0.0, 1.0) and classifier_test(same, same) == (0.5, 1.0)


def test_a_seed_gives_one_result():
    x, y = normal(40, 2, 0), normal(40, 2, 1)
    assert classifier_test(x, y, seed=3) == classifier_test(x, y, seed=3) != classifier_test(x, y, seed=4)
    assert mmd_test(x, y, seed=3) == mmd_test(x, y, seed=3)


@given(st.floats(0, 6), st.floats(0.3, 2))
def test_the_divergence_of_two_gaussians_by_samples_is_that_by_quadrature(shift, scale):
    p, q = Normal(torch.zeros((), dtype=torch.double), 1.0), Normal(torch.tensor(shift, dtype=torch.double), scale)
    grid = torch.linspace(-15, 21, 20_001, dtype=torch.double)
    exact = jensen_shannon_on_grid(p.log_prob(grid), q.log_prob(grid), 36 / 20_000)
    noise = normal(4000, 2, 0).double()
    x, y = noise[:, 0], shift + scale * noise[:, 1]
    drawn = jensen_shannon(p.log_prob(x), q.log_prob(x), p.log_prob(y), q.log_prob(y))
    assert -1e-9 <= exact <= math.log(2) + 1e-9 and drawn == pytest.approx(exact, abs=0.03)


def test_the_divergence_by_hand():
    p, q = torch.tensor([0.5, 0.5, 0.0]), torch.tensor([0.25, 0.5, 0.25])
    middle = (p + q) / 2
    by_hand = (0.5 * math.log(0.5 / middle[0]) + 0.25 * math.log(0.25 / middle[0]) + 0.25 * math.log(0.25 / middle[2])) / 2
    assert jensen_shannon_on_grid(p.log(), q.log(), 1.0) == pytest.approx(by_hand, abs=1e-7)
    assert jensen_shannon_on_grid(p.log(), p.log(), 1.0) == pytest.approx(0, abs=1e-12)


X = torch.zeros(10, 2)
BAD = X.clone()
BAD[3, 1] = math.inf


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: classifier_test(X, X[:7]), r"x and y: got shapes \(10, 2\) and \(7, 2\), expected \(n >= 8, d\)"),
        (lambda: classifier_test(X, X[:, :1]), r"got shapes \(10, 2\) and \(10, 1\)"),
        (lambda: classifier_test(X, BAD), r"y\[3, 1\]: got inf"),
        (lambda: classifier_test(X, X, "forest"), "classifier: got forest"),
        (lambda: mmd_test(X, X[:1]), r"got shapes \(10, 2\) and \(1, 2\), expected \(n >= 2, d\)"),
        (lambda: mmd_test(BAD * math.nan, X), r"x\[0, 0\]: got nan"),
        (lambda: mmd_test(X, X, bandwidth=0.0), "bandwidth: got 0.0"),
        (lambda: mmd_test(X, X, permutations=0), "permutations: got 0"),
        (lambda: jensen_shannon(X[0], X[1], X[2], X[:, 0]), r"q_of_y and p_of_y: got shapes \(10,\) and \(2,\)"),
        (lambda: jensen_shannon(X[0] - math.inf, X[0], X[0], X[0]), "p_of_x: got -inf at a sample"),
        (lambda: jensen_shannon(X[0], X[0] * math.nan, X[0], X[0]), "q_of_x: got nan"),
        (lambda: jensen_shannon_on_grid(X[0], X[0] + math.inf, 1.0), "log_q: got inf"),
        (lambda: jensen_shannon_on_grid(X[0], X[0], 0.0), "cell: got 0.0"),
        (lambda: jensen_shannon_on_grid(X[:0], X[:0], 1.0), r"log_p and log_q: got shapes \(0, 2\)"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_every_classifier_is_tested():
    assert {*CLASSIFIERS} < {*TESTS}
