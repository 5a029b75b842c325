"""The nearest neighbour by cosine, the baseline that copies what it has seen, and how often the right one is near."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

# At most this many similarities are in memory at a time: 64 MiB in float32.
_SIMILARITIES = 2**24


def nearest(queries: Tensor, keys: Tensor) -> Tensor:
    """The key most similar to each query, ``argmax_j q_i . k_j / (|q_i| |k_j|)``.

    Args:
        queries: (n, d), finite.
        keys: (m, d), finite, m at least 1; on the same device.

    Returns:
        Indices into ``keys`` (n,). A vector of zeros has similarity 0 with all.

    Raises:
        ValueError: the shapes do not fit, there is no key, or a value is not finite.

    >>> nearest(torch.tensor([[0.0, 2.0], [3.0, 0.1]]), torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]])).tolist()
    [2, 0]
    """
    if queries.ndim != 2 or keys.ndim != 2 or queries.shape[1] != keys.shape[1] or not len(keys):
        got = f"{tuple(queries.shape)} and {tuple(keys.shape)}"
        raise ValueError(f"queries and keys: got shapes {got}, expected (n, d) and (m >= 1, d); flatten the features")
    for name, features in {"queries": queries, "keys": keys}.items():
        if not features.isfinite().all():
            bad = int((~features.isfinite()).any(dim=1).nonzero()[0])
            raise ValueError(f"{name}[{bad}]: got a value that is not finite, expected real numbers; check the encoder")
    precision = torch.promote_types(torch.promote_types(queries.dtype, keys.dtype), torch.float32)
    queries, keys = normalize(queries.to(precision), dim=1), normalize(keys.to(precision), dim=1)
    chunks = queries.split(max(1, _SIMILARITIES // len(keys)))
    return torch.cat([(chunk @ keys.T).argmax(dim=1) for chunk in chunks])


def recall_at(scores: Tensor, right: Tensor, at: Sequence[int] = (1, 5, 10), among: int | None = None) -> dict[int, float]:
    """Share of the queries that have a right key among the k of highest score.

    With ``among``, each query sees its best right key and ``among - 1`` wrong ones drawn without replacement; what is given is
    the expected share over all draws, ``P(H < k)``, H hypergeometric: how many of the wrong ones drawn score higher.

    Args:
        scores: (n, m), of n queries and m keys, none NaN; of equal scores the right one counts as lower.
        right: (n, m) bool; each query has a right key.
        at: each k, 1 or more.
        among: keys a query sees; None: all. Where there are fewer, all.

    Returns:
        k -> share, 0 to 1.

    Raises:
        ValueError: shapes that do not fit, a NaN, or a query without a right key.

    >>> recall_at(torch.tensor([[0.9, 0.1, 0.3], [0.5, 0.2, 0.4]]), torch.eye(3)[:2].bool(), at=(1, 3))
    {1: 0.5, 3: 1.0}
    """
    if scores.ndim != 2 or scores.shape != right.shape or not scores.numel():
        got = f"{tuple(scores.shape)} and {tuple(right.shape)}"
        raise ValueError(f"scores and right: got shapes {got}, expected (n, m) both, n and m at least 1")
    for what, wrong in (("a NaN", scores.isnan().any(1)), ("no right key", ~right.any(1))):
        if wrong.any():
            raise ValueError(f"query {wrong.nonzero()[0].item()}: got {what}, expected scores of keys of which one is right")
    best = scores.masked_fill(~right, -torch.inf).amax(1, keepdim=True)
    above, wrong = ((scores >= best) & ~right).sum(1), (~right).sum(1)  # (n,) each
    return {k: _fewer(above, wrong, k, among).mean().item() for k in at}


def r_precision(scores: Tensor, right: Tensor, texts: Sequence[str] | None = None, among: int = 100, seed: int = 0) -> float:
    """Share of the pictures whose own text scores above ``among - 1`` others, ``mean_i [s_ir > s_ij for all drawn j]``.

    The others are drawn once for each text, without replacement, from all texts that read differently: by seed and text alone,
    so that several pictures of one prompt, and the real one, meet the same. A tie with any of them counts as wrong.

    Args:
        scores: (n, m), of n pictures and m texts, none NaN.
        right: (n,) whole numbers, the text of each picture.
        texts: the m texts; of those that read the same only the first is a candidate. None: all differ.
        among: texts a picture sees, its own included, 2 or more. Where there are fewer, all.
        seed: of the draw.

    Returns:
        The share, 0 to 1; of scores that know nothing ``1 / min(among, number of different texts)``.

    Raises:
        ValueError: shapes that do not fit, a NaN, no such text, or fewer than two different texts.

    Source: Xu et al. 2018, AttnGAN, arXiv 1711.10485, section 4.1, with R = 1 and 99 others as there.

    >>> r_precision(torch.tensor([[0.9, 0.1, 0.3], [0.5, 0.2, 0.5]]), torch.tensor([0, 2]))
    0.5
    """
    n, m = scores.shape if scores.ndim == 2 else (0, 0)
    if not n or right.shape != (n,) or (texts is not None and len(texts) != m):
        got = f"{tuple(scores.shape)}, {tuple(right.shape)} and {m if texts is None else len(texts)}"
        raise ValueError(f"scores, right and texts: got shapes {got}, expected (n >= 1, m), (n,) and m texts")
    if right.is_floating_point() or right.min() < 0 or right.max() >= m:
        raise ValueError(
            f"right: got {right.tolist()[:5]}, expected whole numbers from 0 to {m - 1}, the text of each picture"
        )
    if scores.isnan().any():
        raise ValueError(f"picture {scores.isnan().any(1).nonzero()[0].item()}: got a NaN, expected scores; check the encoder")
    names: Sequence[Any] = range(m) if texts is None else texts
    first = {name: j for j, name in reversed(list(enumerate(names)))}
    different = torch.tensor(sorted(first.values()))  # (k,) the candidates
    if len(different) < 2 or among < 2:
        raise ValueError(f"texts: got {len(different)} different ones among {among}, expected two or more of both")
    generator, drawn = torch.Generator().manual_seed(seed), min(among, len(different)) - 1
    order = torch.rand(len(different), len(different), generator=generator)
    order.fill_diagonal_(2.0)  # never itself
    others = different[order.argsort(1)[:, :drawn]].to(scores.device)  # (k, among - 1)
    place = {int(j): row for row, j in enumerate(different)}
    own = torch.tensor([place[first[names[j]]] for j in right.tolist()], device=scores.device)  # (n,)
    best = scores.gather(1, different.to(scores.device)[own][:, None])  # (n, 1)
    return (best > scores.gather(1, others[own])).all(1).double().mean().item()


def chance_at(right: Tensor, at: Sequence[int] = (1, 5, 10)) -> dict[int, float]:
    """What `recall_at` is expected to be of scores that know nothing: right (n, m) bool.

    >>> chance_at(torch.eye(20).bool(), at=(1, 5))
    {1: 0.05, 5: 0.25}
    """
    m, wrong = right.shape[1], (~right).sum(1).double()  # (n,)
    steps = torch.arange(max(at), dtype=torch.float64).clamp(max=m - 1)
    missed = ((wrong[:, None] - steps).clamp(min=0) / (m - steps)).cumprod(1)  # (n, k): no right key among the first
    return {k: round(1 - missed[:, min(k, m) - 1].mean().item(), 12) for k in at}


def _fewer(above: Tensor, wrong: Tensor, k: int, among: int | None) -> Tensor:
    """P(fewer than k of the wrong keys that a query sees are above its best right one), (n,) float64."""
    if among is None:
        return (above < k).double()
    drawn = wrong.clamp(max=among - 1)
    inside = torch.arange(k, device=above.device)[:, None]  # (k, 1), that are drawn from above
    log_p = _log_choose(above, inside) + _log_choose(wrong - above, drawn - inside) - _log_choose(wrong, drawn)  # (k, n)
    return log_p.exp().sum(0).clamp(max=1)


def _log_choose(n: Tensor, k: Tensor) -> Tensor:
    """log of n over k, -inf where there is no way: whole numbers, broadcast together."""
    n, k = torch.broadcast_tensors(n.double(), k.double())
    some = (k >= 0) & (k <= n)
    k = torch.where(some, k, 0.0)
    found = torch.lgamma(n + 1) - torch.lgamma(k + 1) - torch.lgamma(n - k + 1)
    return torch.where(some, found, -torch.inf)
