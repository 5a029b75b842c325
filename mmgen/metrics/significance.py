"""Statistics over seeds: mean, standard deviation, and a test that one system is above another."""

from collections.abc import Sequence
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
