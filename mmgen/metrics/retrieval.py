"""The nearest neighbour by cosine, the baseline that copies what it has seen, and how often the right one is near."""

from collections.abc import Sequence

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
