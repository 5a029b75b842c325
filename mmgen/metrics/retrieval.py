"""The nearest neighbour by cosine: the baseline that copies what it has seen."""

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
