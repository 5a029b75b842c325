"""What missing modalities cost: the area under a curve of scores, and what a model wins back."""

from collections.abc import Sequence

import numpy as np


def robustness_area(missing: Sequence[float], scores: Sequence[float]) -> float:
    """The mean height of a score over the share of a modality that is missing: the area under the curve over its width.

    ``1 / (p_m - p_1) sum_i (p_{i+1} - p_i) (s_i + s_{i+1}) / 2``

    Args:
        missing: m >= 2 rising shares within 0 to 1.
        scores: the score at each of them, such as the accuracy.

    Returns:
        The mean, in the unit of the scores: a score that never falls keeps its value.

    Raises:
        ValueError: the lengths differ, there are fewer than two shares, or they do not rise within 0 to 1.

    >>> robustness_area([0.0, 0.5, 1.0], [0.8, 0.6, 0.5])
    0.625
    """
    if len(missing) != len(scores) or len(missing) < 2:
        got = f"{len(missing)} and {len(scores)}"
        raise ValueError(f"missing and scores: got {got} values, expected as many, two or more; give a score a share")
    widths, heights = np.diff(missing), np.asarray(scores, dtype=float)  # (m - 1,), (m,)
    if not ((widths > 0).all() and missing[0] >= 0 and missing[-1] <= 1):
        raise ValueError(f"missing: got {list(missing)}, expected shares that rise within 0 to 1; sort the curve")
    return float(widths @ (heights[1:] + heights[:-1]) / 2 / widths.sum())


def missing_loss_ratio(complete: float, zero_filled: Sequence[float], inferred: Sequence[float], least: float = 0.05) -> float:
    """How much of what a missing modality costs remains when it is inferred, of what it costs when zeros stand in for it.

    ``sum_m (complete - inferred_m) / sum_m (complete - zero_filled_m)``

    Args:
        complete: the score with nothing missing.
        zero_filled: for each modality the score with it missing and zeros in its place.
        inferred: for each modality, in the same order, the score with it missing and inferred from the others.
        least: the smallest loss by zeros, summed, that a ratio can be taken of.

    Returns:
        0 where inference loses nothing, 1 where it is no better than zeros; nan where zeros lose less than ``least``.

    Raises:
        ValueError: the lengths differ, or there is no modality.

    >>> round(missing_loss_ratio(0.9, zero_filled=[0.5, 0.8], inferred=[0.8, 0.85]), 6)
    0.3
    """
    if len(zero_filled) != len(inferred) or not len(zero_filled):
        got = f"{len(zero_filled)} and {len(inferred)}"
        raise ValueError(f"zero_filled and inferred: got {got} scores, expected as many, one or more; score both ways")
    by_zeros = float(np.sum(np.subtract(complete, zero_filled)))
    by_inference = float(np.sum(np.subtract(complete, inferred)))
    return by_inference / by_zeros if by_zeros >= least else float("nan")
