"""Intervals of a figure: mean and standard deviation over seeds, paired differences, shares, and clustered values."""

from collections.abc import Hashable, Sequence
from math import sqrt

import numpy as np

from mmgen.errors import UserError


def mean_sd(values: Sequence[float]) -> tuple[float, float]:
    """The mean and the sample standard deviation, ``sd^2 = sum (x - mean)^2 / (n - 1)``.

    Args:
        values: one score a seed.

    Returns:
        Mean and standard deviation; the latter is nan for a single value.

    Raises:
        UserError: there is no value.

    >>> mean_sd([4.0, 5.0, 6.0])
    (5.0, 1.0)
    """
    if not len(values):
        raise UserError("values", got="none", expected="at least one", fix="give one score a seed")
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else float("nan")


def wilson(p: float, n: int, z: float = 1.96) -> float:
    """Half the width of Wilson's interval of a share, ``z / (1 + z^2 / n) sqrt(p (1 - p) / n + z^2 / (4 n^2))``.

    Args:
        p: the share observed, from 0 to 1.
        n: the number of independent trials, at least 1.
        z: quantile of the normal distribution; 1.96 gives 95 %.

    Returns:
        Half the width, from 0 to 1.

    Source: Wilson 1927, Probable inference, the law of succession, and statistical inference.

    >>> round(wilson(0.5, 100), 3), round(wilson(1.0, 100), 3)
    (0.096, 0.018)
    """
    return z / (1 + z**2 / n) * sqrt(p * (1 - p) / n + z**2 / (4 * n**2))


def clustered(values: Sequence[float], clusters: Sequence[Sequence[Hashable]], z: float = 1.96) -> float:
    """Half the width of the interval of a mean, by the jackknife that leaves out one cluster at a time.

    ``z sqrt((m - 1) / m sum_c (mean_c - mean of mean_c)^2)`` with m clusters and mean_c the mean of the values that are not in
    cluster c. A value may be in several clusters, such as an episode in all of its classes: values that share a cluster are
    not independent, and a bootstrap that draws only one cluster of each would miss the variance of the others.

    Args:
        values: n values from 0 to 1.
        clusters: the clusters of each value.
        z: quantile of the normal distribution; 1.96 gives 95 %.

    Returns:
        Half the width, at most 1; 1 if a cluster holds all values, so that nothing is known about others.

    Raises:
        UserError: there is no value, or another number of clusters.

    Source: Efron and Stein 1981, The jackknife estimate of variance.

    >>> round(clustered([1.0, 0.0, 1.0, 1.0], [("cat",), ("dog",), ("cow",), ("pig",)]), 3)  # one each: the usual interval
    0.49
    >>> clustered([1.0, 0.0], [("cat", "dog"), ("cat", "cow")])
    1.0
    """
    if not len(values) or len(values) != len(clusters):
        got, expected = f"{len(values)} values and {len(clusters)} sets of clusters", "one set for each of one or more values"
        raise UserError("clusters", got=got, expected=expected, fix="name the clusters of each value")
    known, x = {c: i for i, c in enumerate(dict.fromkeys(c for of in clusters for c in of))}, np.asarray(values, float)
    member = np.zeros((len(known), len(x)), bool)  # (m, n)
    for i, of in enumerate(clusters):
        member[[known[c] for c in of], i] = True
    left = (~member).sum(1)  # (m,)
    if not left.all():
        return 1.0
    means = (~member) @ x / left  # (m,)
    return min(1.0, z * float(np.sqrt((len(known) - 1) / len(known) * np.square(means - means.mean()).sum())))


def paired_low(a: Sequence[float], b: Sequence[float], level: float = 0.95) -> float:
    """The lower end of the t-interval of the mean of ``a - b``, paired by seed; above 0, a is significantly above b.

    ``low = mean(d) - t_{n-1}((1 + level) / 2) sd(d) / sqrt(n)`` with ``d = a - b``.

    Args:
        a: one score a seed, at least two.
        b: the scores of the other system for the same seeds, in the same order.
        level: the probability of the two-sided interval, between 0 and 1.

    Returns:
        The lower end, in the unit of the scores.

    Raises:
        UserError: the lengths differ, there are fewer than two pairs, or the level is out of range.

    Source: Student 1908, The probable error of a mean.

    >>> round(paired_low([5.0, 6.0, 7.0], [4.0, 4.0, 4.0]), 3)
    -0.484
    """
    if len(a) != len(b) or len(a) < 2:
        got, expected = f"{len(a)} and {len(b)} values", "equally many, two or more"
        raise UserError("a and b", got=got, expected=expected, fix="train more seeds")
    if not 0 < level < 1:
        raise UserError("level", got=level, expected="a number between 0 and 1", fix="use 0.95")
    from scipy.special import stdtrit  # imported late: scipy is slow to import, and `mmgen list` does not need it

    mean, sd = mean_sd([x - y for x, y in zip(a, b)])
    return mean - float(stdtrit(len(a) - 1, (1 + level) / 2)) * sd / len(a) ** 0.5
