"""Disentanglement scores on codes whose scores are known."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.ensemble import GradientBoostingClassifier, HistGradientBoostingClassifier
from threadpoolctl import threadpool_limits

from mmgen.metrics import disentanglement
from mmgen.metrics.disentanglement import (
    beta_vae_score,
    dci,
    disentanglement_scores,
    factor_vae_score,
    mig,
    modularity,
    sap,
)


def grid(*sizes):
    """Every combination of the factors' values, (prod sizes, f)."""
    return np.stack(np.meshgrid(*map(range, sizes), indexing="ij"), axis=-1).reshape(-1, len(sizes))


FACTORS = grid(3, 4, 5, 8)
FEW = np.repeat(grid(2, 3), 60, axis=0)  # for the trees, which take their time with many values
SOME = {"train": 1000, "test": 500}  # points of the interventional scores
H_QUARTER = 2 - 0.75 * np.log2(3)  # entropy of (1/4, 3/4) in bits


def noisy(spread, factors=FACTORS):
    """The factors with noise, standardised, and two dimensions of noise alone: (n, f + 2)."""
    rng = np.random.default_rng(0)
    units = (factors - factors.mean(0)) / factors.std(0)
    return np.hstack([units + spread * rng.normal(size=units.shape), rng.normal(size=(len(units), 2))])


# codes that are the factors


@pytest.mark.parametrize("constants", [0, 3])
def test_codes_that_are_the_factors(constants):
    codes = np.hstack([FACTORS[:, [2, 0, 3, 1]] * [3.0, -0.5, 10.0, 1.0] + 7, np.full((len(FACTORS), constants), 0.1)])
    assert mig(codes, FACTORS) == pytest.approx(1)
    assert modularity(codes, FACTORS) == pytest.approx(1)
    assert beta_vae_score(codes, FACTORS, **SOME) == 1
    assert factor_vae_score(codes, FACTORS, **SOME) == 1
    few = np.hstack([FEW[:, [1, 0]] * [-3.0, 0.5] + 7, np.full((len(FEW), constants), 0.1)])
    assert dci(few, FEW) == pytest.approx((1, 1, 1), abs=1e-5)


def test_the_most_that_sap_can_be():
    binary = np.repeat(grid(2, 2), 1000, axis=0)  # the other dimension guesses: right in a half
    assert sap(binary, binary) == pytest.approx(1 - 1 / 2, abs=0.03)
    ordered = np.repeat(grid(16, 2), 100, axis=0)  # no line parts a middle value from both sides
    assert sap(ordered[:, :1], ordered[:, :1]) < 0.5


def test_sap_balances_the_values_and_judges_on_other_items():
    rng = np.random.default_rng(0)
    factor, noise = (rng.random(3000) < 0.1).astype(int), rng.normal(size=3000)
    assert sap(np.stack([factor, noise], axis=1), factor[:, None]) > 0.3  # unweighted, noise would be right in 0.9
    judge = disentanglement.split_items(3000, 10_000, 5_000, seed=0)[1]
    learned = factor.astype(float)
    learned[judge] = rng.permutation(learned[judge])  # right on the training items only
    assert sap(np.stack([learned, np.zeros(3000)], axis=1), factor[:, None]) < 0.1


def test_all_scores_have_their_names():
    scores = disentanglement_scores(noisy(0.3, FEW), FEW, seed=3)
    assert all(0 <= score <= 1 for score in scores.values())
    assert (scores["dci"], scores["dci_completeness"], scores["dci_informativeness"]) == dci(noisy(0.3, FEW), FEW, seed=3)
    singles = {
        "betavae_score": beta_vae_score,
        "factorvae_score": factor_vae_score,
        "mig": mig,
        "modularity": modularity,
        "sap": sap,
    }
    assert {name: score(noisy(0.3, FEW), FEW, seed=3) for name, score in singles.items()}.items() <= scores.items()


# noise


def test_noise():
    codes = np.random.default_rng(0).normal(size=(len(FACTORS) * 20, 6))
    factors = np.repeat(FACTORS, 20, axis=0)
    assert mig(codes, factors) < 0.01
    assert beta_vae_score(codes, factors) == pytest.approx(1 / 4, abs=0.03)
    assert factor_vae_score(codes, factors) == pytest.approx(1 / 4, abs=0.03)
    assert sap(codes, factors, train=2000, test=1000) < 0.05
    disentanglement, completeness, informativeness = dci(codes, factors[:, :2], train=1000, test=1500)
    assert max(disentanglement, completeness) < 0.02
    assert informativeness == pytest.approx((1 / 3 + 1 / 4) / 2, abs=0.03)


# by hand


def test_mig_of_a_table():
    # counts of (code, factor): first dimension [[3, 1], [1, 3]], second [[2, 2], [2, 2]]
    factors = np.array([[0], [0], [0], [0], [1], [1], [1], [1]])
    codes = np.array([[0, 0], [0, 0], [0, 1], [9, 1], [0, 0], [9, 0], [9, 1], [9, 1]])
    assert mig(codes, factors) == pytest.approx(1 - H_QUARTER)


def test_mig_and_modularity_of_sums():
    v = grid(2, 2, 2)
    one_sum = np.stack([v[:, 0] + v[:, 1], v[:, 1]], axis=1)  # I(sum; v_1) = I(sum; v_2) = 1/2 bit
    assert mig(one_sum, v[:, :2]) == pytest.approx((1 / 2 + 1 / 2) / 2)
    assert modularity(one_sum, v[:, :2]) == pytest.approx((0 + 1) / 2)
    turned = np.stack([v[:, 0] + v[:, 1], v[:, 0] - v[:, 1], v[:, 2]], axis=1)  # two of three factors turned by 45 degrees
    assert mig(turned, v) == pytest.approx((0 + 0 + 1) / 3)
    assert modularity(turned, v) == pytest.approx((1 / 2 + 1 / 2 + 1) / 3)


def test_a_turn_of_uniform_factors_by_45_degrees_costs_their_gap():
    v = grid(16, 16)
    straight, turned = v, v @ np.array([[1, 1], [1, -1]])
    assert mig(straight, v) == pytest.approx(1) and mig(turned, v) == pytest.approx(0, abs=0.01)


def test_a_factor_with_more_values_than_bins():
    v = grid(40, 2)
    assert mig(v, v) == pytest.approx((np.log(20) / np.log(40) + 1) / 2)
    assert mig(v, v, bins=40) == pytest.approx(1)


def test_one_dimension_has_no_second():
    v = grid(2, 3)
    assert mig(v[:, :1], v) == pytest.approx((1 + 0) / 2)
    assert sap(np.repeat(v[:, :1], 100, axis=0), np.repeat(v[:, :1], 100, axis=0)) == 1


def test_dci_tells_disentangled_from_complete():
    v = np.repeat(grid(4, 2), 100, axis=0)
    split = np.stack([v[:, 0] // 2, v[:, 0] % 2, v[:, 1]], axis=1)  # the first factor in two dimensions, nothing mixed
    disentanglement, completeness, informativeness = dci(split, v)
    assert disentanglement == pytest.approx(1) and informativeness == 1
    assert completeness < 0.9  # the second factor alone is whole
    mixed = np.stack([2 * v[:, 0] + v[:, 1], np.zeros(len(v))], axis=1)  # both in one dimension
    disentanglement, completeness, informativeness = dci(mixed, v)
    assert disentanglement == pytest.approx(0, abs=1e-9) and completeness == pytest.approx(1) and informativeness == 1


def test_what_no_dimension_holds():
    seen = FACTORS[:, :3]  # the fourth factor is lost: where it is fixed, any dimension may vary least
    assert factor_vae_score(seen, FACTORS) == pytest.approx(3 / 4, abs=0.03)
    assert beta_vae_score(seen, FACTORS) > 0.99  # the flaw that FactorVAE names: no difference is 0, so it is the fourth


def test_two_dimensions_may_hold_one_factor():
    assert factor_vae_score(FACTORS[:, [0, 1, 1, 2, 3]], FACTORS, **SOME) == 1


# the parts


def test_gains_are_those_of_scikit_learns_slower_trees():
    codes, factor = noisy(0.8)[:, :3], FACTORS[:, 0]
    with threadpool_limits(1, "openmp"):
        fast = HistGradientBoostingClassifier(max_depth=3, early_stopping=False).fit(codes, factor)
    gains = disentanglement.gain_shares(fast, 3)
    slow = GradientBoostingClassifier(random_state=0).fit(codes, factor).feature_importances_
    assert gains.sum() == pytest.approx(1) and np.abs(gains - slow).max() < 0.1
    assert gains.argmax() == slow.argmax() == 0


def test_partners_share_the_value_and_are_uniform():
    factor = np.array([2, 0, 1, 2, 0, 2])
    rng = np.random.default_rng(0)
    drawn = disentanglement.draw_sharing(factor, np.array([[0], [1], [2]]), (3, 30_000), rng)
    for row, among in zip(drawn, ([0, 3, 5], [1, 4], [2])):
        assert np.bincount(row, minlength=6)[among] == pytest.approx(30_000 / len(among), rel=0.03)


@given(n=st.integers(2, 200), train=st.integers(1, 50), test=st.integers(1, 50))
@settings(max_examples=30, deadline=None)
def test_split(n, train, test):
    learn, judge = disentanglement.split_items(n, train, test, seed=0)
    both = np.concatenate([learn, judge])
    assert len(set(both)) == len(both) == min(n, train + test) and set(both) <= set(range(n))
    if n >= train + test:
        assert len(learn) == train


# what must not matter, and what must


@pytest.mark.parametrize("score", [mig, modularity, beta_vae_score, factor_vae_score])
def test_order_and_unit_of_the_dimensions_change_nothing(score):
    codes = noisy(0.3)
    other = (codes * [100.0, 0.1, 3.0, 1.0, 20.0, 1.0] - 5)[:, [5, 2, 0, 1, 4, 3]]
    assert score(other, FACTORS) == pytest.approx(score(codes, FACTORS), abs=2e-3)


def test_order_and_unit_change_nothing_for_the_classifiers():
    codes = noisy(0.5, FEW)
    other = (codes * [100.0, 0.1, 3.0, 1.0] - 5)[:, [3, 2, 0, 1]]
    assert sap(other, FEW) == pytest.approx(sap(codes, FEW), abs=0.01)
    assert dci(other, FEW) == pytest.approx(dci(codes, FEW), abs=0.02)


def test_a_linear_classifier_sees_any_unit():
    assert beta_vae_score(1e-4 * noisy(0.3), FACTORS) == pytest.approx(beta_vae_score(noisy(0.3), FACTORS), abs=1e-3)


def test_variances_are_relative():
    codes = noisy(0.3)[:, :4] * [1.0, 10.0, 100.0, 1000.0]  # unnormalised, the first always varies least: 1/4
    assert factor_vae_score(codes, FACTORS, **SOME) > 0.95


def test_collapsed_dimensions_are_left_out():
    codes = noisy(0.1)[:, :4]
    collapsed = np.hstack([codes, 0.04 * codes[:, ::-1]])
    assert factor_vae_score(collapsed, FACTORS, seed=1) == factor_vae_score(codes, FACTORS, seed=1)
    assert factor_vae_score(0.04 * codes, FACTORS) == 0
    assert factor_vae_score(0.04 * codes, FACTORS, prune=0.01, **SOME) > 0.95
    flat = np.ones((len(FACTORS), 2))
    assert mig(flat, FACTORS) == modularity(flat, FACTORS) == 0 and dci(flat[: len(FEW)], FEW)[:2] == (0, 0)
    assert beta_vae_score(flat, FACTORS) == pytest.approx(1 / 4, abs=0.03) and sap(flat, FACTORS) == 0


@pytest.mark.parametrize("score", [beta_vae_score, factor_vae_score, sap, mig, modularity])
def test_the_seed_fixes_the_score(score):
    codes = noisy(1.5)
    few = {"samples": 200} if score in (mig, modularity) else {"train": 200, "test": 100}
    first = score(codes, FACTORS, seed=1, **few)
    assert score(codes, FACTORS, seed=1, **few) == first
    assert any(score(codes, FACTORS, seed=seed, **few) != first for seed in (2, 3))


def test_dci_is_fixed_by_the_seed():
    first = dci(noisy(0.5, FEW), FEW, seed=1)
    assert dci(noisy(0.5, FEW), FEW, seed=1) == first != dci(noisy(0.5, FEW), FEW, seed=2)


def test_values_are_names():
    renamed = FACTORS * [5, -3, 1, 100] + 1000
    assert mig(noisy(0.3), renamed) == pytest.approx(mig(noisy(0.3), FACTORS))
    assert factor_vae_score(noisy(0.3), renamed, **SOME) == pytest.approx(
        factor_vae_score(noisy(0.3), FACTORS, **SOME), abs=0.05
    )


# bad input


@pytest.mark.parametrize("score", [beta_vae_score, factor_vae_score, mig, modularity, dci, sap])
@pytest.mark.parametrize(
    ("codes", "factors", "message"),
    [
        (np.ones((3, 2)), np.ones((4, 2), int), r"shapes \(3, 2\) and \(4, 2\)"),
        (np.ones(3), np.ones((3, 2), int), r"shapes \(3,\) and \(3, 2\)"),
        (np.ones((3, 0)), np.ones((3, 2), int), r"shapes \(3, 0\)"),
        (np.ones((1, 2)), np.ones((1, 2), int), r"shapes \(1, 2\)"),
        (np.array([[1.0, 2.0], [3.0, np.nan]]), np.array([[0], [1]]), r"codes\[1, 1\]: got nan"),
        (np.ones((2, 1)), np.array([[0.5], [1.0]]), r"got float64, expected whole numbers"),
        (np.ones((2, 1)), np.array([[0, 7], [1, 7]]), r"factors\[:, 1\]: got the value 7 only"),
    ],
)
def test_bad_input(score, codes, factors, message):
    with pytest.raises(ValueError, match=message):
        score(codes, factors)


def test_modularity_needs_two_factors():
    with pytest.raises(ValueError, match=r"factors: got 1, expected two"):
        modularity(FACTORS, FACTORS[:, :1])
