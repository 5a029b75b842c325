"""Disentanglement metrics: BetaVAE, FactorVAE, MIG, Modularity, DCI and SAP.

Each metric takes the codes and true factors of all items and draws its samples from them. Where the factors form a grid, pass
all of it: BetaVAE and FactorVAE then hold one factor fixed while the others vary independently.
Sample counts and settings are those of Locatello et al. 2019, arXiv 1811.12359; each docstring names the differences.
"""

import numpy as np
from scipy.special import xlogy
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.svm import LinearSVC
from threadpoolctl import threadpool_limits

from mmgen.errors import UserError


def disentanglement_scores(codes: np.ndarray, factors: np.ndarray, seed: int = 0) -> dict[str, float]:
    """All scores of one set of codes, at the settings of the literature.

    Args:
        codes: (n, k) real numbers, one row an item.
        factors: (n, f) whole numbers, the values of the factors that made each item.
        seed: seed of the random draws.

    Returns:
        ``betavae_score``, ``factorvae_score``, ``mig``, ``modularity``, ``dci`` (its disentanglement), ``dci_completeness``,
        ``dci_informativeness`` and ``sap``, each from 0 to 1.

    Raises:
        UserError: the shapes do not fit, a code is not finite, factors are not whole numbers, or one has a single value.
    """
    disentanglement, completeness, informativeness = dci(codes, factors, seed)
    return {
        "betavae_score": beta_vae_score(codes, factors, seed),
        "factorvae_score": factor_vae_score(codes, factors, seed),
        "mig": mig(codes, factors, seed),
        "modularity": modularity(codes, factors, seed),
        "dci": disentanglement,
        "dci_completeness": completeness,
        "dci_informativeness": informativeness,
        "sap": sap(codes, factors, seed),
    }


def beta_vae_score(
    codes: np.ndarray, factors: np.ndarray, seed: int = 0, *, batch: int = 64, train: int = 10_000, test: int = 5_000
) -> float:
    """BetaVAE score: accuracy of a linear classifier of the factor shared by pairs of items, from their code differences.

    A point is ``mean_b |z_b - z'_b|`` over pairs (b, b') that share the value of one factor; that factor is its class.

    Args:
        codes: as `disentanglement_scores`; each dimension is divided by its standard deviation over the items.
        factors: as `disentanglement_scores`.
        seed: seed of the random draws.
        batch: number of pairs for a point.
        train: number of points to train the classifier on.
        test: number of points to test it on.

    Returns:
        The accuracy; chance is 1 / f.

    Raises:
        UserError: as `disentanglement_scores`.

    Source: Higgins et al. 2017, beta-VAE. Dividing by the standard deviation, which disentanglement_lib does not do, makes the
    score independent of the unit of the codes.
    """
    codes, factors = _checked(codes, factors)
    rng = np.random.default_rng(seed)
    codes = _standardised(codes)
    shared = rng.integers(factors.shape[1], size=train + test)  # (points,)
    points = np.empty((train + test, codes.shape[1]))  # (points, k)
    for j, factor in enumerate(factors.T):
        items = rng.integers(len(codes), size=(int((shared == j).sum()), batch))  # (points of j, batch)
        pairs = draw_sharing(factor, items, items.shape, rng)  # (points of j, batch)
        points[shared == j] = np.abs(codes[items] - codes[pairs]).mean(axis=1)
    classifier = LogisticRegression(max_iter=1000).fit(points[:train], shared[:train])
    return float(classifier.score(points[train:], shared[train:]))


def factor_vae_score(
    codes: np.ndarray,
    factors: np.ndarray,
    seed: int = 0,
    *,
    batch: int = 64,
    train: int = 10_000,
    test: int = 5_000,
    prune: float = 0.05,
) -> float:
    """FactorVAE score: accuracy of predicting the factor held fixed from the dimension that varies least.

    A point is ``argmin_i var_b(z_i) / var(z_i)``: the variance in a batch that shares the value of one factor, divided by the
    variance over all items. A majority vote of the training points assigns a factor to each dimension.

    Args:
        codes: as `disentanglement_scores`.
        factors: as `disentanglement_scores`.
        seed: seed of the random draws.
        batch: number of items for a point.
        train: number of points that vote.
        test: number of points to test on.
        prune: dimensions with a smaller standard deviation are taken to have collapsed and are dropped; a standard normal
            prior has 1.

    Returns:
        The accuracy; chance is 1 / f. 0 where every dimension has collapsed.

    Raises:
        UserError: as `disentanglement_scores`.

    Source: Kim and Mnih 2018, arXiv 1802.05983, who prune by KL; pruned here as in disentanglement_lib, with the variance
    taken over all items instead of 10,000 drawn ones.
    """
    codes, factors = _checked(codes, factors)
    rng = np.random.default_rng(seed)
    codes = codes[:, codes.std(axis=0, ddof=1) >= prune]
    if not codes.shape[1]:
        return 0.0
    codes = _standardised(codes)
    fixed = rng.integers(factors.shape[1], size=train + test)  # (points,)
    still = np.empty(train + test, dtype=np.intp)  # (points,)
    for j, factor in enumerate(factors.T):
        items = rng.integers(len(codes), size=(int((fixed == j).sum()), 1))  # (points of j, 1)
        items = draw_sharing(factor, items, (len(items), batch), rng)  # (points of j, batch)
        still[fixed == j] = codes[items].var(axis=1).argmin(axis=1)
    votes = np.zeros((codes.shape[1], factors.shape[1]))  # (k, f)
    np.add.at(votes, (still[:train], fixed[:train]), 1)
    return float((votes.argmax(axis=1)[still[train:]] == fixed[train:]).mean())


def mig(codes: np.ndarray, factors: np.ndarray, seed: int = 0, *, samples: int = 10_000, bins: int = 20) -> float:
    """Mutual information gap between the two dimensions most informative about a factor, averaged over factors.

    ``MIG = 1/f sum_j (I(z_(1); v_j) - I(z_(2); v_j)) / H(v_j)``

    Args:
        codes: as `disentanglement_scores`; each dimension is cut into ``bins`` of equal width.
        factors: as `disentanglement_scores`; a factor with more values than ``bins`` cannot reach 1.
        seed: seed of the random draws.
        samples: number of items drawn without replacement; all where there are fewer.
        bins: number of bins of the histogram.

    Returns:
        The gap.

    Raises:
        UserError: as `disentanglement_scores`.

    Source: Chen et al. 2018, arXiv 1802.04942, with the histogram of Locatello et al. instead of the posterior's density.

    >>> factors = np.stack(np.meshgrid(range(3), range(4)), -1).reshape(-1, 2)
    >>> round(mig(factors, factors), 6)  # a dimension for each factor
    1.0
    >>> round(mig(factors.sum(1, keepdims=True) * [1, 1], factors), 6)  # two identical dimensions
    0.0
    """
    information, entropy = _information(codes, factors, seed, samples, bins)
    ranked = np.sort(np.vstack([np.zeros_like(entropy), information]), axis=0)  # a single dimension has no second: 0
    return float(((ranked[-1] - ranked[-2]) / entropy).mean())


def modularity(codes: np.ndarray, factors: np.ndarray, seed: int = 0, *, samples: int = 10_000, bins: int = 20) -> float:
    """Modularity: the degree to which each dimension is informative about a single factor, averaged over dimensions.

    ``Modularity = mean_i (1 - sum_{j not j*} I(z_i; v_j)^2 / ((f - 1) I(z_i; v_j*)^2))`` with ``j* = argmax_j I(z_i; v_j)``

    It measures how information is distributed, not how much there is: on noise, where a histogram finds a little information
    about every factor, it is far above 0. Read it together with MIG.

    Args:
        codes: as `mig`.
        factors: as `disentanglement_scores`, two or more.
        seed: seed of the random draws.
        samples: as `mig`.
        bins: as `mig`.

    Returns:
        The mean over informative dimensions; 0 where there are none.

    Raises:
        UserError: as `disentanglement_scores`, or there is one factor.

    Source: Ridgeway and Mozer 2018, arXiv 1802.05312. disentanglement_lib counts a constant dimension as 0; here it is
    excluded.
    """
    information, _ = _information(codes, factors, seed, samples, bins)
    if information.shape[1] < 2:
        raise UserError("factors", got=1, expected="two or more for modularity", fix="give the other factors too")
    squares = information[information.max(axis=1) > 1e-12] ** 2  # (k informative, f)
    if not len(squares):
        return 0.0
    most = squares.max(axis=1)
    return float((1 - (squares.sum(axis=1) - most) / (most * (squares.shape[1] - 1))).mean())


def dci(
    codes: np.ndarray, factors: np.ndarray, seed: int = 0, *, train: int = 10_000, test: int = 5_000
) -> tuple[float, float, float]:
    """DCI: disentanglement, completeness and informativeness, from classifiers of each factor.

    With ``R_ij`` the importance of dimension i to factor j: disentanglement is the mean of ``1 - H_f(R_i. / sum_j R_ij)`` over
    dimensions, weighted by their importance, and completeness the mean of ``1 - H_k(R_.j / sum_i R_ij)`` over factors; ``H_b``
    is the entropy to base b.

    Informativeness is the accuracy on the test items, averaged over factors, as in disentanglement_lib; its chance level is
    the mean of 1 / values, not 0. (Eastwood and Williams report the normalised error of a regression.)

    Args:
        codes: as `disentanglement_scores`.
        factors: as `disentanglement_scores`.
        seed: seed of the random draws.
        train: number of items to train the classifiers on.
        test: number of other items to test them on; where there are too few items, both numbers shrink in proportion.

    Returns:
        Disentanglement, completeness, informativeness.

    Raises:
        UserError: as `disentanglement_scores`.

    Source: Eastwood and Williams 2018, with the gradient-boosted trees of Locatello et al. (100 steps of depth 3). The trees
    are scikit-learn's ``HistGradientBoostingClassifier``, with importance measured by gain: on 4,000 items with 10 dimensions
    and factors with 51 values in all it takes 3 s, ``GradientBoostingClassifier`` 57 s at the same accuracy.
    """
    codes, factors = _checked(codes, factors)
    learn, judge = split_items(len(codes), train, test, seed)
    importance = np.zeros((codes.shape[1], factors.shape[1]))  # (k, f)
    accuracy = []
    for j, factor in enumerate(factors.T):
        with threadpool_limits(1, "openmp"):  # on a busy machine, threads make these short loops 100 times slower
            trees = HistGradientBoostingClassifier(max_depth=3, early_stopping=False).fit(codes[learn], factor[learn])
            accuracy.append(trees.score(codes[judge], factor[judge]))
        importance[:, j] = gain_shares(trees, codes.shape[1])
    weight = importance.sum(axis=1) / max(importance.sum(), 1e-12)
    return float(weight @ _concentration(importance)), float(_concentration(importance.T).mean()), float(np.mean(accuracy))


def sap(codes: np.ndarray, factors: np.ndarray, seed: int = 0, *, train: int = 10_000, test: int = 5_000) -> float:
    """SAP: the gap in accuracy between the two dimensions that best predict a factor on their own, averaged over factors.

    The classifier is a linear one-against-rest SVM (C = 0.01, balanced class weights) on one dimension. Even codes equal to
    the factors score below 1: the second dimension still guesses, and no linear boundary separates a middle value from the
    values on both sides. On a grid of 3 x 6 x 10 x 16 x 16 values they reach 0.28. Compare only scores over the same factors.

    Args:
        codes: as `disentanglement_scores`; each dimension is divided by its standard deviation over the items.
        factors: as `disentanglement_scores`.
        seed: seed of the random draws.
        train: as `dci`.
        test: as `dci`.

    Returns:
        The gap.

    Raises:
        UserError: as `disentanglement_scores`.

    Source: Kumar et al. 2018, arXiv 1711.00848; for discrete factors as in disentanglement_lib, which does not divide by the
    standard deviation (see `beta_vae_score`).
    """
    codes, factors = _checked(codes, factors)
    learn, judge = split_items(len(codes), train, test, seed)
    codes = _standardised(codes)
    accuracy = np.zeros((max(codes.shape[1], 2), factors.shape[1]))  # (k, f); a single dimension has no second: 0
    for i, code in enumerate(codes.T):
        for j, factor in enumerate(factors.T):
            classifier = LinearSVC(C=0.01, class_weight="balanced", dual=False).fit(code[learn, None], factor[learn])
            accuracy[i, j] = classifier.score(code[judge, None], factor[judge])
    accuracy.sort(axis=0)
    return float((accuracy[-1] - accuracy[-2]).mean())


def _checked(codes: np.ndarray, factors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Check both; return codes as float64 (n, k) and factors as the ranks 0, 1, ... of their values (n, f)."""
    codes, factors = np.asarray(codes, dtype=np.float64), np.asarray(factors)
    if not (codes.ndim == factors.ndim == 2 and len(codes) == len(factors) >= 2 and codes.size and factors.size):
        got = f"shapes {codes.shape} and {factors.shape}"
        raise UserError("codes and factors", got=got, expected="(n >= 2, k) and (n, f)", fix="give a row for each item")
    if not np.isfinite(codes).all():
        row, column = np.argwhere(~np.isfinite(codes))[0]
        what, got = f"codes[{row}, {column}]", str(codes[row, column])
        raise UserError(what, got=got, expected="real numbers", fix="check the encoder")
    if not np.issubdtype(factors.dtype, np.integer):
        raise UserError("factors", got=str(factors.dtype), expected="whole numbers", fix="number the values of each factor")
    ranks = np.stack([np.unique(factor, return_inverse=True)[1] for factor in factors.T], axis=1)  # (n, f)
    if 0 in ranks.max(axis=0):
        j = int(ranks.max(axis=0).argmin())
        got = f"the value {factors[0, j]} only"
        raise UserError(f"factors[:, {j}]", got=got, expected="two or more", fix="leave the column out")
    return codes, ranks


def _standardised(codes: np.ndarray) -> np.ndarray:
    """Divide each centred dimension by its standard deviation; a dimension that is constant up to rounding becomes 0."""
    centred = codes - codes.mean(axis=0)
    deviation = centred.std(axis=0)
    constant = deviation <= 1e-12 * np.abs(codes).max(axis=0)
    return np.where(constant, 0.0, centred / np.where(constant, 1.0, deviation))


def draw_sharing(factor: np.ndarray, items: np.ndarray, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Draw for each of ``items``, broadcast to ``shape``, an item with the same value of ``factor`` (n,)."""
    order = np.argsort(factor, kind="stable")  # items with the same value become neighbours
    ranked, values = factor[order], factor[items]
    places = rng.integers(np.searchsorted(ranked, values, "left"), np.searchsorted(ranked, values, "right"), size=shape)
    return order[places]


def _information(codes: np.ndarray, factors: np.ndarray, seed: int, samples: int, bins: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the mutual information of each dimension and factor (k, f) and the entropy of each factor (f,), in nats."""
    codes, factors = _checked(codes, factors)
    if samples < len(codes):
        drawn = np.random.default_rng(seed).permutation(len(codes))[:samples]
        codes, factors = codes[drawn], factors[drawn]
    values = int(factors.max()) + 1
    entropy = np.array([_entropy(np.bincount(factor)) for factor in factors.T])  # (f,)
    information = np.empty((codes.shape[1], factors.shape[1]))  # (k, f)
    for i, code in enumerate(codes.T):
        binned = np.digitize(code, np.histogram_bin_edges(code, bins)[1:-1])  # (n,) 0..bins-1
        for j, factor in enumerate(factors.T):
            joint = np.bincount(binned * values + factor)  # counts of the pairs
            information[i, j] = _entropy(np.bincount(binned)) + entropy[j] - _entropy(joint)
    return information, entropy


def _entropy(counts: np.ndarray) -> float:
    share = counts / counts.sum()
    return float(-xlogy(share, share).sum())


def _concentration(importance: np.ndarray) -> np.ndarray:
    """One minus the entropy, to base n, of each normalised row of importance (m, n) -> (m,); 0 for a row of zeros."""
    total = importance.sum(axis=1, keepdims=True)
    share = importance / np.where(total > 0, total, 1)
    entropy = -xlogy(share, share).sum(axis=1) / np.log(max(importance.shape[1], 2))
    return np.where(total[:, 0] > 0, 1 - entropy, 0.0)


def gain_shares(trees: HistGradientBoostingClassifier, dimensions: int) -> np.ndarray:
    """Share (k,) of the loss reduction due to the splits on each dimension; zeros where there is no split."""
    gains = np.zeros(dimensions)
    # no public attribute gives the trees; the public permutation importance took three times as long and is itself noisy
    for step in trees._predictors:
        for tree in step:  # one a class
            splits = tree.nodes[tree.nodes["is_leaf"] == 0]
            np.add.at(gains, splits["feature_idx"], splits["gain"])
    return gains / max(gains.sum(), 1e-12)


def split_items(n: int, train: int, test: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw distinct items for training and testing, in proportion where there are fewer than ``train + test``."""
    drawn = np.random.default_rng(seed).permutation(n)[: train + test]
    cut = len(drawn) * train // (train + test)
    return drawn[:cut], drawn[cut:]
