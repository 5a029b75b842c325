"""Two-sample tests with p-values (classifier, maximum mean discrepancy), and the Jensen-Shannon divergence of densities."""

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mmgen.errors import UserError, check_at_least, check_one_of

CLASSIFIERS = ("logistic", "neighbours")


class TwoSample(NamedTuple):
    """The outcome of a two-sample test of "both samples have one distribution".

    Args:
        statistic: the larger, the more the samples differ.
        p: probability of a statistic at least as large if they have one distribution; uniform on [0, 1] in that case.
    """

    statistic: float
    p: float


def classifier_test(x: Tensor, y: Tensor, classifier: str = "logistic", seed: int = 0) -> TwoSample:
    """Classifier two-sample test: a classifier learns x from y on one half of each, and is tested on the other halves.

    ``AUC = P(s(y) > s(x)) + P(s(y) = s(x)) / 2`` over held-out x and y, s the classifier's score

    Held-out scores are exchangeable if the samples have one distribution, whatever the classifier has learned, so the p-value
    is that of Mann and Whitney's U, one-sided, by its normal approximation with ties.

    Args:
        x: (n, d) finite features, n at least 8.
        y: (m, d), m at least 8.
        classifier: "logistic" (linear, on standardised features) or "neighbours" (share of y among the nearest
            sqrt(training items)).
        seed: seed of the division into halves.

    Returns:
        AUC, 0.5 by chance and 1 if the samples are told apart, and p.

    Raises:
        UserError: the shapes do not fit, there are too few items, a value is not finite, or an unknown classifier.

    Source: Lopez-Paz and Oquab 2017, Revisiting classifier two-sample tests, arXiv 1610.06545. There the statistic is the
        accuracy, its p-value that of a binomial, which needs equally many items; the area under the curve needs neither that
        nor a threshold, and its p-value has no steps.

    >>> x = torch.linspace(0, 1, 40)[:, None]
    >>> result = classifier_test(x, x + 2)
    >>> result.statistic, result.p < 1e-6
    (1.0, True)
    """
    check_one_of("classifier", classifier, CLASSIFIERS)
    a, b = _checked(x, y, least=8)
    from scipy.stats import mannwhitneyu  # these are slow to import
    from sklearn.linear_model import LogisticRegression
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    random = np.random.default_rng(seed)
    a, b = random.permutation(a), random.permutation(b)
    n, m = len(a) // 2, len(b) // 2
    learn, labels = np.concatenate([a[:n], b[:m]]), np.repeat([0, 1], [n, m])
    if classifier == "logistic":
        fitted = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)).fit(learn, labels)
        scores = fitted.decision_function(np.concatenate([a[n:], b[m:]]))
    else:
        fitted = KNeighborsClassifier(math.isqrt(n + m)).fit(learn, labels)
        scores = fitted.predict_proba(np.concatenate([a[n:], b[m:]]))[:, 1]
    of_a, of_b = scores[: len(a) - n], scores[len(a) - n :]
    if np.ptp(scores) == 0:  # nothing was learned: no rank is above another
        return TwoSample(0.5, 1.0)
    outcome = mannwhitneyu(of_b, of_a, alternative="greater", method="asymptotic")
    return TwoSample(float(outcome.statistic) / (len(of_a) * len(of_b)), float(outcome.pvalue))


def mmd_test(x: Tensor, y: Tensor, bandwidth: float | None = None, permutations: int = 500, seed: int = 0) -> TwoSample:
    """Test by the unbiased squared maximum mean discrepancy, with the null distribution of permuted samples.

    ``MMD^2 = mean_{i != j} k(x_i, x_j) + mean_{i != j} k(y_i, y_j) - 2 mean_{i,j} k(x_i, y_j)`` with
    ``k(x, y) = exp(-|x - y|^2 / (2 h^2))``, and ``p = (1 + permutations with at least this value) / (1 + permutations)``

    Args:
        x: (n, d) finite features, n at least 2; memory grows as (n + m)^2.
        y: (m, d), m at least 2.
        bandwidth: h, in the unit of x; None: the median distance of two of all n + m items.
        permutations: number of random divisions of all items; the least p is 1 / (1 + permutations).
        seed: seed of the permutations.

    Returns:
        MMD^2, which can be negative, and p.

    Raises:
        UserError: the shapes do not fit, there are too few items, a value is not finite, or a setting is out of range.

    Source: Gretton et al. 2012, A kernel two-sample test, lemma 6 and sections 5 and 8; the count includes the given division,
        so that the test keeps its level (Phipson and Smyth 2010).

    >>> x = torch.linspace(0, 1, 20)[:, None]
    >>> result = mmd_test(x, x + 2, permutations=99)
    >>> result.statistic > 0.5, result.p
    (True, 0.01)
    """
    check_at_least("permutations", permutations, 1)
    if bandwidth is not None and not (bandwidth > 0 and math.isfinite(bandwidth)):
        raise UserError("bandwidth", got=bandwidth, expected="a finite number above 0", fix="leave it out for the median")
    a, b = _checked(x, y, least=2)
    pooled, n = torch.from_numpy(np.concatenate([a, b])), len(a)  # (N, d)
    distance = torch.cdist(pooled, pooled, compute_mode="donot_use_mm_for_euclid_dist")  # (N, N)
    if bandwidth is None:
        bandwidth = distance[tuple(torch.triu_indices(len(pooled), len(pooled), offset=1))].median().item() or 1.0
    kernel = (-(distance / bandwidth).square() / 2).exp().fill_diagonal_(0)
    first = torch.arange(len(pooled)) < n  # True for the items of x
    generator = torch.Generator().manual_seed(seed)
    shuffled = (first[torch.randperm(len(pooled), generator=generator)] for _ in range(permutations))
    member = torch.stack([first, *shuffled]).to(kernel)  # (1 + permutations, N)
    sums = member @ kernel  # (1 + permutations, N)
    within_x, of_x = (sums * member).sum(1), sums.sum(1)  # of_x: all kernels with an item of x
    across, within_y = of_x - within_x, kernel.sum() - 2 * of_x + within_x
    m = len(b)
    values = within_x / (n * (n - 1)) + within_y / (m * (m - 1)) - 2 * across / (n * m)  # (1 + permutations,)
    as_large = values[1:] >= values[0] - 1e-12  # sums in another order differ by rounding
    return TwoSample(values[0].item(), (1 + int(as_large.sum())) / (1 + permutations))


def jensen_shannon(p_of_x: Tensor, q_of_x: Tensor, p_of_y: Tensor, q_of_y: Tensor) -> float:
    """Monte Carlo estimate of the Jensen-Shannon divergence of two known densities, from samples x ~ p and y ~ q.

    ``JSD(p, q) = KL(p || m) / 2 + KL(q || m) / 2`` with ``m = (p + q) / 2``, from 0 to log 2

    Args:
        p_of_x: log p at samples of p, (n,).
        q_of_x: log q at the same, (n,); -inf outside its support.
        p_of_y: log p at samples of q, (m,); -inf outside its support.
        q_of_y: log q at the same, (m,).

    Returns:
        The estimate in nats; it can be slightly negative where p and q hardly differ.

    Raises:
        UserError: the shapes do not fit, there is no sample, a value is NaN or infinite, or a sample has no density under its
            own distribution.

    Source: Lin 1991, Divergence measures based on the Shannon entropy.

    >>> apart = torch.full((3,), -torch.inf)  # disjoint supports
    >>> round(jensen_shannon(torch.zeros(3), apart, apart, torch.zeros(3)), 4)  # log 2
    0.6931
    """
    parts = []
    for own, other, names in ((p_of_x, q_of_x, ("p_of_x", "q_of_x")), (q_of_y, p_of_y, ("q_of_y", "p_of_y"))):
        own, other = _checked_densities(dict(zip(names, (own, other))))
        if own.isneginf().any():
            fix = "evaluate a density at its own samples"
            raise UserError(names[0], got="-inf at a sample of this density", expected="a finite log-density", fix=fix)
        parts.append((own - _log_mean(own, other)).mean())
    return ((parts[0] + parts[1]) / 2).item()


def jensen_shannon_on_grid(log_p: Tensor, log_q: Tensor, cell: float) -> float:
    """Jensen-Shannon divergence of two known densities, summed over the points of a grid, see `jensen_shannon`.

    Args:
        log_p: log p at each point of the grid, any shape; -inf where p is 0.
        log_q: log q at the same points.
        cell: volume of the cell around a point, in the unit of x to the power of its dimensions; 1 for probabilities.

    Returns:
        The divergence in nats.

    Raises:
        UserError: the shapes differ, there is no point, a value is NaN or +inf, or the cell is not above 0.

    >>> p = torch.tensor([0.5, 0.5, 0.0])
    >>> round(jensen_shannon_on_grid(p.log(), p.flip(0).log(), cell=1.0), 4)  # log 2 / 2
    0.3466
    """
    if not (cell > 0 and math.isfinite(cell)):
        raise UserError("cell", got=cell, expected="a finite number above 0", fix="give the distance of two points in 1-D")
    log_p, log_q = _checked_densities({"log_p": log_p, "log_q": log_q})
    middle = _log_mean(log_p, log_q)
    parts = [torch.where(log.isneginf(), 0.0, log.exp() * (log - middle)).sum() for log in (log_p, log_q)]
    return (cell * (parts[0] + parts[1]) / 2).item()


def _log_mean(a: Tensor, b: Tensor) -> Tensor:
    return torch.logaddexp(a, b) - math.log(2)


def _checked(x: Tensor, y: Tensor, least: int) -> tuple[np.ndarray, np.ndarray]:
    """Check two sets of features; return them in float64."""
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1] or not x.shape[1] or min(len(x), len(y)) < least:
        got, expected = f"shapes {tuple(x.shape)} and {tuple(y.shape)}", f"(n >= {least}, d) and (m >= {least}, d)"
        raise UserError("x and y", got=got, expected=expected, fix="flatten the features, or give more items")
    for name, features in {"x": x, "y": y}.items():
        if (wrong := ~features.isfinite()).any():
            row, column = wrong.nonzero()[0].tolist()
            got = str(features[row, column].item())
            raise UserError(f"{name}[{row}, {column}]", got=got, expected="a finite number", fix="check the encoder")
    return x.detach().cpu().double().numpy(), y.detach().cpu().double().numpy()


def _checked_densities(densities: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Check the log-densities of two distributions at the same points; return them flat in float64."""
    (first, one), (second, two) = densities.items()
    if one.shape != two.shape or not one.numel():
        got = f"shapes {tuple(one.shape)} and {tuple(two.shape)}"
        raise UserError(f"{first} and {second}", got=got, expected="one shape", fix="evaluate both at the same points")
    for name, value in densities.items():
        if (wrong := value.isnan() | value.isposinf()).any():
            got, fix = str(value[wrong][0].item()), "give log-densities"
            raise UserError(name, got=got, expected="numbers below infinity", fix=fix)
    return one.detach().cpu().double().flatten(), two.detach().cpu().double().flatten()
