"""Probes of codes: linear and nearest-neighbour classifiers of labels, and ridge regressions of factors."""

import math
import warnings
from typing import NamedTuple

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler
from torch import Tensor
from torch.distributions import Categorical, Distribution

from mmgen.distributions import Joint
from mmgen.errors import UserError

STRENGTHS = tuple(10.0**i for i in range(-5, 2))  # weights l of the penalty l / 2 |w|^2, beside a mean over items


class Items(NamedTuple):
    """Codes of items and what is to be read from them.

    Args:
        codes: (n, d) finite numbers.
        target: (n,) classes, or (n, f) factors.
    """

    codes: np.ndarray
    target: np.ndarray


def code_of(posterior: Distribution) -> Tensor:
    """The mean of what `encode` returns, flattened: (b, d); the probabilities of discrete codes; of several codes, all.

    >>> from mmgen.distributions import Delta
    >>> code_of(Joint({"label": Delta(torch.zeros(2, 3)), "image": Delta(torch.zeros(2, 4, 5), 2)})).shape
    torch.Size([2, 23])
    """
    if isinstance(posterior, Joint):
        return torch.cat([code_of(part) for part in posterior.parts.values()], 1)
    inner = getattr(posterior, "base_dist", posterior)
    return (inner.probs if isinstance(inner, Categorical) else posterior.mean).flatten(1)


def linear_accuracy(learn: Items, choose: Items, judge: Items) -> float:
    """Accuracy of logistic regression on standardised codes, with the L2 penalty that is best on ``choose``.

    ``minimise  mean_i -log p(y_i | z_i) + l / 2 |W|^2``,  l in `STRENGTHS`

    Args:
        learn: items that the classifier is trained on, of two classes or more.
        choose: items that choose the penalty; the greatest of equally good ones.
        judge: items that it is tested on.

    Returns:
        The share of ``judge`` whose class is predicted.

    Raises:
        UserError: a code is not finite, the sizes of codes differ, or ``learn`` has a single class.

    Source: Alain and Bengio 2017, Understanding intermediate layers using linear classifier probes, arXiv 1610.01644.
    """
    check_items(learn=learn, choose=choose, judge=judge)
    if len(np.unique(learn.target)) < 2:
        got, fix = f"the class {learn.target[0]} only", "choose another column, or more rows"
        raise UserError("labels to learn from", got=got, expected="two or more", fix=fix)
    scale = StandardScaler().fit(learn.codes)
    best, accuracy = -math.inf, 0.0
    for strength in STRENGTHS[::-1]:
        classifier = LogisticRegression(C=1 / (strength * len(learn.codes)), max_iter=300)
        with warnings.catch_warnings():  # where the penalty is weak, the choice does not wait for the last digits
            warnings.simplefilter("ignore", ConvergenceWarning)
            classifier.fit(scale.transform(learn.codes), learn.target)
        if (found := float(classifier.score(scale.transform(choose.codes), choose.target))) > best:
            best, accuracy = found, float(classifier.score(scale.transform(judge.codes), judge.target))
    return accuracy


def nearest_accuracy(learn: Items, judge: Items) -> float:
    """Accuracy of the class of the nearest of ``learn``, by the Euclidean distance of the codes as they are.

    Args:
        learn: items with known classes.
        judge: items to classify.

    Returns:
        The share of ``judge`` whose class is that of the nearest.

    Raises:
        UserError: a code is not finite, or the sizes of codes differ.

    >>> line = Items(np.array([[0.0], [1.0]]), np.array([0, 1]))
    >>> nearest_accuracy(line, Items(np.array([[0.1], [0.2], [0.3]]), np.array([0, 0, 1])))
    0.6666666666666666
    """
    check_items(learn=learn, judge=judge)
    return float(KNeighborsClassifier(1).fit(learn.codes, learn.target).score(judge.codes, judge.target))


def r_squared(learn: Items, choose: Items, judge: Items) -> float:
    """R^2 of factors by ridge regression on standardised codes, with the penalty that is best on ``choose``.

    ``R^2 = 1 - sum |v - v'|^2 / sum |v - mean v|^2`` over items and factors, v' the prediction of v

    Args:
        learn: items that the regression is fitted to.
        choose: items that choose the penalty, among `STRENGTHS`.
        judge: items that it is tested on.

    Returns:
        At most 1; 0 where the mean of ``judge`` would do as well, and below where it would do better.

    Raises:
        UserError: a code is not finite, the sizes of codes differ, or ``choose`` or ``judge`` has a single value.
    """
    check_items(learn=learn, choose=choose, judge=judge)
    scale = StandardScaler().fit(learn.codes)
    best, found = -math.inf, 0.0
    for strength in STRENGTHS[::-1]:
        ridge = Ridge(strength * len(learn.codes)).fit(scale.transform(learn.codes), learn.target)
        chosen, tested = (
            explained(ridge.predict(scale.transform(items.codes)).reshape(items.target.shape), items.target)
            for items in (choose, judge)
        )
        if chosen > best:
            best, found = chosen, tested
    return found


def explained(predicted: np.ndarray, true: np.ndarray) -> float:
    """R^2 of predictions, both (n, f), see `r_squared`.

    Raises:
        UserError: all true values are equal.

    >>> explained(np.array([[1.0], [3.0]]), np.array([[1.0], [4.0]])) == 1 - 1 / 4.5
    True
    """
    total = np.square(true - true.mean(0)).sum()
    if total == 0:
        got, fix = f"the value {true[0].tolist()} only", "choose another column, or more rows"
        raise UserError("factor", got=got, expected="two or more", fix=fix)
    return float(1 - np.square(true - predicted).sum() / total)


def check_items(**parts: Items) -> None:
    """Check that codes are finite and of one size, and that each item has a target.

    Raises:
        UserError: they are not.
    """
    sizes = {name: items.codes.shape for name, items in parts.items()}
    if len({shape[1:] for shape in sizes.values()}) > 1 or not all(len(shape) == 2 and shape[0] for shape in sizes.values()):
        raise UserError("codes", got=str(sizes), expected="(n >= 1, d) each", fix="encode all items by one model")
    for name, items in parts.items():
        if len(items.codes) != len(items.target):
            got = f"{len(items.codes)} codes and {len(items.target)} targets"
            raise UserError(name, got=got, expected="one target for each code", fix="take both from the same rows")
        if (wrong := ~np.isfinite(items.codes)).any():
            row, column = np.argwhere(wrong)[0].tolist()
            got = str(items.codes[row, column])
            raise UserError(f"{name}: codes[{row}, {column}]", got=got, expected="a finite number", fix="check the encoder")
