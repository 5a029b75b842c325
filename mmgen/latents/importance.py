"""Importance-weighted bound on log p(x), computed in bounded memory."""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.distributions import Distribution

from mmgen.errors import check_at_least
from mmgen.latents.spaces import rsample


@torch.no_grad()
def importance_bound(
    q: Distribution,
    log_joint: Callable[[Tensor], Tensor],
    samples: int = 1,
    chunk: int = 1024,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Importance-weighted bound on log p(x), whose expectation increases with K towards log p(x).

    ``log 1/K sum_k p(x, z_k) / q(z_k | x)``, z_k ~ q(z | x); K = 1 is a one-sample ELBO, and q = p(z | x) gives log p(x)
    itself at any K.

    Args:
        q: q(z | x), any distribution that `rsample` accepts, batch shape (b,), event (k,).
        log_joint: z (n, b, k) -> log p(x, z), (n, b).
        samples: K, 1 or more.
        chunk: largest number of draws (n b) passed to ``log_joint`` at once; b where that is more.
        generator: makes the draws reproducible.

    Returns:
        (b,) in nats, without gradient.

    Raises:
        UserError: ``samples`` is below 1.

    Source: Burda et al. 2016, Importance Weighted Autoencoders, arXiv 1509.00519, equation 8.

    >>> from mmgen.latents.spaces import diagonal_normal
    >>> q = diagonal_normal(torch.zeros(3, 2), torch.ones(3, 2))
    >>> importance_bound(q, q.log_prob, samples=5).tolist()
    [0.0, 0.0, 0.0]
    """
    check_at_least("samples", samples, 1)
    b = q.batch_shape[0]
    size = max(1, chunk // b)
    total = torch.full_like(q.mean[:, 0], -math.inf)  # (b,)
    for start in range(0, samples, size):
        z = rsample(q, (min(size, samples - start),), generator)  # (n, b, k)
        ratios = log_joint(z) - q.log_prob(z)  # (n, b)
        total = torch.logaddexp(total, ratios.logsumexp(0))
    return total - math.log(samples)
