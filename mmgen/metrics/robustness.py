"""Robustness to missing modalities: the area under a curve of scores, and the share of the loss that inference leaves."""

from collections.abc import Sequence

import numpy as np

from mmgen.errors import UserError


def robustness_area(missing: Sequence[float], scores: Sequence[float]) -> float:
    """Mean score over the share of a modality that is missing: the area under the curve divided by its width.

    ``1 / (p_m - p_1) sum_i (p_{i+1} - p_i) (s_i + s_{i+1}) / 2``

    Args:
        missing: m >= 2 rising shares within 0 to 1.
        scores: the score at each share, such as the accuracy.

    Returns:
        The mean, in the unit of the scores.

    Raises:
        UserError: the lengths differ, there are fewer than two shares, or they do not rise within 0 to 1.

    >>> robustness_area([0.0, 0.5, 1.0], [0.8, 0.6, 0.5])
    0.625
    """
    if len(missing) != len(scores) or len(missing) < 2:
        got = f"{len(missing)} and {len(scores)}"
        expected, fix = "equally many, two or more", "give one score for each share"
        raise UserError("missing and scores", got=f"{got} values", expected=expected, fix=fix)
    widths, heights = np.diff(missing), np.asarray(scores, dtype=float)  # (m - 1,), (m,)
    if not ((widths > 0).all() and missing[0] >= 0 and missing[-1] <= 1):
        raise UserError("missing", got=list(missing), expected="shares that rise within 0 to 1", fix="sort the curve")
    return float(widths @ (heights[1:] + heights[:-1]) / 2 / widths.sum())


def missing_loss_ratio(complete: float, zero_filled: Sequence[float], inferred: Sequence[float], least: float = 0.05) -> float:
    """Ratio of the loss in score when a missing modality is inferred to the loss when it is filled with zeros.

    ``sum_m (complete - inferred_m) / sum_m (complete - zero_filled_m)``

    Args:
        complete: the score with nothing missing.
        zero_filled: the score with each modality in turn filled with zeros.
        inferred: the score with each modality, in the same order, inferred from the others.
        least: smallest summed loss with zeros for which the ratio is defined.

    Returns:
        0 where inference loses nothing, 1 where it is no better than zeros; nan where zeros lose less than ``least``.

    Raises:
        UserError: the lengths differ, or there is no modality.

    >>> round(missing_loss_ratio(0.9, zero_filled=[0.5, 0.8], inferred=[0.8, 0.85]), 6)
    0.3
    """
    if len(zero_filled) != len(inferred) or not len(zero_filled):
        got = f"{len(zero_filled)} and {len(inferred)}"
        expected = "equally many, one or more"
        raise UserError("zero_filled and inferred", got=f"{got} scores", expected=expected, fix="score both ways")
    by_zeros = float(np.sum(np.subtract(complete, zero_filled)))
    by_inference = float(np.sum(np.subtract(complete, inferred)))
    return by_inference / by_zeros if by_zeros >= least else float("nan")
