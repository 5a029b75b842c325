"""Mean, standard deviation and the paired interval against scipy.stats; intervals clustered by what is independent."""

import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from mmgen.metrics.significance import clustered, mean_sd, paired_low, wilson

figures = st.floats(-100, 100, allow_nan=False)


@given(st.lists(figures, min_size=2, max_size=8))
def test_mean_sd_are_the_sample_mean_and_deviation(values):
    mean, sd = mean_sd(values)
    assert mean == pytest.approx(np.mean(values))
    assert sd == pytest.approx(np.sqrt(np.var(values) * len(values) / (len(values) - 1)), abs=1e-9)


def test_the_deviation_of_one_value_is_not_defined():
    mean, sd = mean_sd([3.0])
    assert mean == 3
    assert math.isnan(sd)


@given(st.lists(st.tuples(figures, figures), min_size=2, max_size=8), st.sampled_from([0.5, 0.9, 0.95, 0.99]))
@settings(deadline=None)
def test_paired_low_is_scipys_paired_interval(pairs, level):
    a, b = map(np.array, zip(*pairs))
    low = paired_low(a, b, level)
    if np.ptp(a - b) < 1e-6:  # scipy calls identical differences undefined; the interval is the point
        assert low == pytest.approx(np.mean(a - b), abs=1e-5)
    else:
        assert low == pytest.approx(scipy.stats.ttest_rel(a, b).confidence_interval(level).low, abs=1e-6)


def test_paired_low_by_hand():
    # Differences 1, 2, 3: mean 2, sd 1, and the 0.975 quantile of t with 2 degrees of freedom is 4.30265.
    assert paired_low([5, 7, 9], [4, 5, 6]) == pytest.approx(2 - 4.30265 / math.sqrt(3), abs=1e-5)


def test_pairing_matters():
    a, b = [1.0, 5.0, 9.0], [0.8, 4.8, 8.7]
    assert paired_low(a, b) > 0 > paired_low(a, sorted(b, reverse=True))


@given(st.lists(st.floats(0, 1), min_size=2, max_size=9))
def test_clusters_of_one_value_give_the_usual_standard_error(values):
    half = clustered(values, [(i,) for i in range(len(values))])
    assert half == pytest.approx(min(1, 1.96 * float(scipy.stats.sem(values))), abs=1e-9)


def test_repeated_trials_of_a_cluster_are_no_new_evidence():
    values, clusters = [1.0, 0.0, 1.0, 1.0, 0.0], [("a",), ("b",), ("c",), ("d",), ("e",)]
    assert clustered(values * 20, clusters * 20) == pytest.approx(clustered(values, clusters))


@pytest.mark.parametrize("ways", [2, 5])
def test_episodes_of_few_classes_spread_as_their_clustered_interval_says(ways):
    """Classes differ in difficulty: over redrawn classes, the sd of accuracies is that of the interval, not of wilson's."""
    random, classes, n = np.random.default_rng(0), 15, 400
    accuracies, halves = [], []
    for _ in range(150):
        hard = random.normal(0, 1, classes)
        drawn = np.array([random.permutation(classes)[:ways] for _ in range(n)])
        right = random.random(n) < 1 / (1 + np.exp(-1.3 - hard[drawn].mean(1) * ways))
        accuracies.append(right.mean())
        halves.append(clustered(right, drawn.tolist()))
    true = 1.96 * np.std(accuracies)
    assert 0.9 * true < np.mean(halves) < 1.3 * true
    assert wilson(float(np.mean(accuracies)), n) < 0.5 * true


def test_a_cluster_of_all_values_leaves_nothing_known():
    assert clustered([1.0, 1.0, 0.0], [("a", "b"), ("a", "c"), ("a", "d")]) == 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mean_sd([]), "values: got none"),
        (lambda: clustered([], []), "clusters: got 0 values and 0 sets of clusters"),
        (lambda: clustered([1.0], []), "clusters: got 1 values and 0 sets of clusters"),
        (lambda: paired_low([1.0], [0.0]), "got 1 and 1 values"),
        (lambda: paired_low([1.0, 2.0], [0.0]), "got 2 and 1 values"),
        (lambda: paired_low([1.0, 2.0], [0.0, 1.0], level=95), "level: got 95"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
