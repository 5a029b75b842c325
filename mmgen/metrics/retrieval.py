"""Retrieval by cosine similarity: nearest neighbours, recall at k, R-precision and their chance levels."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from mmgen.errors import UserError

# largest number of similarities in memory at a time: 64 MiB in float32
SIMILARITIES = 2**24


def nearest(queries: Tensor, keys: Tensor) -> Tensor:
    """The key most similar to each query, ``argmax_j q_i . k_j / (|q_i| |k_j|)``.

    Args:
        queries: (n, d), finite.
        keys: (m, d), finite, m at least 1; on the same device.

    Returns:
        Indices into ``keys`` (n,). A vector of zeros has similarity 0 with every key.

    Raises:
        UserError: the shapes do not fit, there is no key, or a value is not finite.

    >>> nearest(torch.tensor([[0.0, 2.0], [3.0, 0.1]]), torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]])).tolist()
    [2, 0]
    """
    if queries.ndim != 2 or keys.ndim != 2 or queries.shape[1] != keys.shape[1] or not len(keys):
        got = f"{tuple(queries.shape)} and {tuple(keys.shape)}"
        raise UserError("queries and keys", got=f"shapes {got}", expected="(n, d) and (m >= 1, d)", fix="flatten the features")
    for name, features in {"queries": queries, "keys": keys}.items():
        if not features.isfinite().all():
            bad = int((~features.isfinite()).any(dim=1).nonzero()[0])
            got = "a value that is not finite"
            raise UserError(f"{name}[{bad}]", got=got, expected="real numbers", fix="check the encoder")
    precision = torch.promote_types(torch.promote_types(queries.dtype, keys.dtype), torch.float32)
    queries, keys = normalize(queries.to(precision), dim=1), normalize(keys.to(precision), dim=1)
    chunks = queries.split(max(1, SIMILARITIES // len(keys)))
    return torch.cat([(chunk @ keys.T).argmax(dim=1) for chunk in chunks])


def recall_at(scores: Tensor, right: Tensor, at: Sequence[int] = (1, 5, 10), among: int | None = None) -> dict[int, float]:
    """Recall at k: the share of queries with a right key among the k keys of highest score.

    With ``among``, each query is compared with its best right key and ``among - 1`` wrong ones drawn without replacement. The
    result is the expectation over all draws, ``P(H < k)``, where the hypergeometric H counts the drawn wrong keys that score
    higher than the right one.

    Args:
        scores: (n, m) of n queries and m keys, none NaN; a wrong key of equal score ranks above the right one.
        right: (n, m) bool; each query has at least one right key.
        at: the values of k, each 1 or more.
        among: number of candidate keys of a query; None, or more than there are: all.

    Returns:
        k -> share, 0 to 1.

    Raises:
        UserError: the shapes do not fit, a score is NaN, or a query has no right key.

    >>> recall_at(torch.tensor([[0.9, 0.1, 0.3], [0.5, 0.2, 0.4]]), torch.eye(3)[:2].bool(), at=(1, 3))
    {1: 0.5, 3: 1.0}
    """
    if scores.ndim != 2 or scores.shape != right.shape or not scores.numel():
        got = f"{tuple(scores.shape)} and {tuple(right.shape)}"
        expected = "(n, m) both, n and m at least 1"
        raise UserError("scores and right", got=f"shapes {got}", expected=expected, fix="give a row for each query")
    for got, wrong in (("a NaN", scores.isnan().any(1)), ("no right key", ~right.any(1))):
        if wrong.any():
            what, expected = f"query {wrong.nonzero()[0].item()}", "scores of keys of which one is right"
            raise UserError(what, got=got, expected=expected, fix="check the encoder, or leave the query out")
    best = scores.masked_fill(~right, -torch.inf).amax(1, keepdim=True)
    above, wrong = ((scores >= best) & ~right).sum(1), (~right).sum(1)  # (n,) each
    return {k: _fewer(above, wrong, k, among).mean().item() for k in at}


def r_precision(scores: Tensor, right: Tensor, texts: Sequence[str] | None = None, among: int = 100, seed: int = 0) -> float:
    """R-precision, the share of pictures whose own text outscores ``among - 1`` others: ``mean_i [s_ir > s_ij for drawn j]``.

    The others are drawn once for each text, without replacement, from all different texts. The draw depends only on the seed
    and the text, so that all pictures of one prompt, generated or real, compete with the same texts. A tie counts as wrong.

    Args:
        scores: (n, m) of n pictures and m texts, none NaN.
        right: (n,) whole numbers, the index of each picture's text.
        texts: the m texts; of identical texts only the first is a candidate. None: all differ.
        among: number of candidate texts of a picture, its own included, 2 or more; all where there are fewer.
        seed: seed of the draw.

    Returns:
        The share, 0 to 1; random scores reach ``1 / min(among, number of different texts)``.

    Raises:
        UserError: the shapes do not fit, a score is NaN, an index is out of range, or there are fewer than two different
            texts.

    Source: Xu et al. 2018, AttnGAN, arXiv 1711.10485, section 4.1, with R = 1 and 99 others.

    >>> r_precision(torch.tensor([[0.9, 0.1, 0.3], [0.5, 0.2, 0.5]]), torch.tensor([0, 2]))
    0.5
    """
    n, m = scores.shape if scores.ndim == 2 else (0, 0)
    if not n or right.shape != (n,) or (texts is not None and len(texts) != m):
        got = f"{tuple(scores.shape)}, {tuple(right.shape)} and {m if texts is None else len(texts)}"
        what, expected, fix = "scores, right and texts", "(n >= 1, m), (n,) and m texts", "give a row for each picture"
        raise UserError(what, got=f"shapes {got}", expected=expected, fix=fix)
    if right.is_floating_point() or right.min() < 0 or right.max() >= m:
        expected = f"whole numbers from 0 to {m - 1}"
        raise UserError("right", got=right.tolist()[:5], expected=expected, fix="give the index of each picture's text")
    if scores.isnan().any():
        picture = scores.isnan().any(1).nonzero()[0].item()
        raise UserError(f"picture {picture}", got="a NaN", expected="scores", fix="check the encoder")
    names: Sequence[Any] = range(m) if texts is None else texts
    first = {name: j for j, name in reversed(list(enumerate(names)))}
    different = torch.tensor(sorted(first.values()))  # (k,) the candidates
    if len(different) < 2 or among < 2:
        got = f"{len(different)} different ones among {among}"
        raise UserError("texts", got=got, expected="two or more of both", fix="give more texts")
    generator, drawn = torch.Generator().manual_seed(seed), min(among, len(different)) - 1
    order = torch.rand(len(different), len(different), generator=generator)
    order.fill_diagonal_(2.0)  # a text is never drawn against itself
    others = different[order.argsort(1)[:, :drawn]].to(scores.device)  # (k, among - 1)
    row_of = {int(j): row for row, j in enumerate(different)}
    own = torch.tensor([row_of[first[names[j]]] for j in right.tolist()], device=scores.device)  # (n,)
    best = scores.gather(1, different.to(scores.device)[own][:, None])  # (n, 1)
    return (best > scores.gather(1, others[own])).all(1).double().mean().item()


def chance_at(right: Tensor, at: Sequence[int] = (1, 5, 10)) -> dict[int, float]:
    """Expected `recall_at` of random scores.

    Args:
        right: (n, m) bool, as for `recall_at`.
        at: the values of k, each 1 or more.

    Returns:
        k -> share, 0 to 1.

    >>> chance_at(torch.eye(20).bool(), at=(1, 5))
    {1: 0.05, 5: 0.25}
    """
    m, wrong = right.shape[1], (~right).sum(1).double()  # (n,)
    steps = torch.arange(max(at), dtype=torch.float64).clamp(max=m - 1)
    missed = ((wrong[:, None] - steps).clamp(min=0) / (m - steps)).cumprod(1)  # (n, k): no right key among the first
    return {k: round(1 - missed[:, min(k, m) - 1].mean().item(), 12) for k in at}


def _fewer(above: Tensor, wrong: Tensor, k: int, among: int | None) -> Tensor:
    """Probability (n,) float64 that fewer than k of a query's drawn wrong keys score above its best right one."""
    if among is None:
        return (above < k).double()
    drawn = wrong.clamp(max=among - 1)
    inside = torch.arange(k, device=above.device)[:, None]  # (k, 1), number drawn from those above
    log_p = _log_choose(above, inside) + _log_choose(wrong - above, drawn - inside) - _log_choose(wrong, drawn)  # (k, n)
    return log_p.exp().sum(0).clamp(max=1)


def _log_choose(n: Tensor, k: Tensor) -> Tensor:
    """Logarithm of the binomial coefficient of whole numbers, broadcast together; -inf outside 0 <= k <= n."""
    n, k = torch.broadcast_tensors(n.double(), k.double())
    valid = (k >= 0) & (k <= n)
    k = torch.where(valid, k, 0.0)
    log_choose = torch.lgamma(n + 1) - torch.lgamma(k + 1) - torch.lgamma(n - k + 1)
    return torch.where(valid, log_choose, -torch.inf)
