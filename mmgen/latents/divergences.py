"""Divergences and dependence measures: KL and its decomposition, MMD, HSIC, total correlation, DIP-VAE penalties."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, MixtureSameFamily, kl_divergence

from mmgen.errors import UserError, check_at_least, check_one_of
from mmgen.latents.spaces import rsample


def kl(q: Distribution, p: Distribution, samples: int = 1, generator: torch.Generator | None = None) -> Tensor:
    """KL(q || p) = E_q[log q(z) - log p(z)], in closed form where torch has one, else estimated by reparameterised samples.

    For a mixture q, ``samples`` are drawn from each component and weighted by its probability, so that all components and the
    weights get a gradient. The upper bound ``sum_c w_c KL(q_c || p)`` is the weighted ``kl`` of ``q.component_distribution``.
    For the KL of each dimension of a diagonal Gaussian, pass ``q.base_dist`` and a Normal.

    Args:
        q: batch shape (b,), or any other.
        p: batch shape that broadcasts with that of q.
        samples: number of samples where there is no closed form, 1 or more.
        generator: makes the samples reproducible.

    Returns:
        (b,) in nats; estimates can be negative.

    Raises:
        UserError: ``samples`` is below 1.

    >>> from mmgen.latents.spaces import diagonal_normal
    >>> q = diagonal_normal(torch.ones(3, 2), torch.ones(3, 2))
    >>> kl(q, diagonal_normal(torch.zeros(2), torch.ones(2))).tolist()
    [1.0, 1.0, 1.0]
    """
    check_at_least("samples", samples, 1)
    try:
        return kl_divergence(q, p)
    except NotImplementedError:  # torch has no closed form for this pair
        pass
    if isinstance(q, MixtureSameFamily):
        z = rsample(q.component_distribution, (samples,), generator).movedim(-2, 1)  # (n, c, b, k)
        ratio = (q.log_prob(z) - p.log_prob(z)).mean(0)  # (c, b)
        return (q.mixture_distribution.probs.movedim(-1, 0) * ratio).sum(0)  # (b,)
    z = rsample(q, (samples,), generator)  # (n, b, k)
    return (q.log_prob(z) - p.log_prob(z)).mean(0)


def mmd(x: Tensor, y: Tensor, bandwidth: float | Sequence[float] | None = None, unbiased: bool = True) -> Tensor:
    """Squared maximum mean discrepancy of two samples under the kernel k of `gaussian_kernel`.

    ``MMD^2 = mean_{i,j} k(x_i, x_j) + mean_{i,j} k(y_i, y_j) - 2 mean_{i,j} k(x_i, y_j)``

    The unbiased estimate excludes i = j from the first two means and can be negative. |x - y|^2 is a sum over dimensions, so h
    should grow with their number; the median rule does so, a fixed bandwidth does not.

    Args:
        x: (n, k).
        y: (m, k), such as draws from the prior.
        bandwidth: h, in the unit of x, as in `gaussian_kernel` of the pooled points.
        unbiased: compute the unbiased estimate.

    Returns:
        A scalar.

    Raises:
        UserError: the shapes do not match, there are too few points, or a bandwidth is not above 0.

    Source: Gretton et al. 2012, A kernel two-sample test: lemma 6, and the median rule of its experiments.

    >>> x = torch.tensor([[0.0], [1.0]])
    >>> mmd(x, x, bandwidth=1.0, unbiased=False).item()
    0.0
    """
    n, m, least = len(x), len(y), 2 if unbiased else 1
    if x.ndim != 2 or x.shape[1:] != y.shape[1:] or min(n, m) < least:
        got, expected = f"{tuple(x.shape)} and {tuple(y.shape)}", f"(n, k) and (m, k), n and m at least {least}"
        raise UserError("samples", got=got, expected=expected, fix="use a larger batch, or unbiased=False for single points")
    kernel = gaussian_kernel(torch.cat([x, y]), bandwidth)  # (n + m, n + m)
    within = [(kernel[:n, :n], n), (kernel[n:, n:], m)]
    if unbiased:
        means = [(part.sum() - part.diagonal().sum()) / (size * (size - 1)) for part, size in within]
    else:
        means = [part.mean() for part, _ in within]
    return means[0] + means[1] - 2 * kernel[:n, n:].mean()


def dependence(x: Tensor, y: Tensor, bandwidth: float | Sequence[float] | None = None) -> Tensor:
    """Statistical dependence of x and y: the normalised Hilbert-Schmidt independence criterion (HSIC).

    ``HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L))`` with ``HSIC(K, L) = sum_ij (H K H)_ij (H L H)_ij``, K and L the
    `gaussian_kernel` matrices of x and y, H = 1 - 1/n. In the limit of many points it is 0 if and only if x and y are
    independent; with few points it is biased upwards.

    Args:
        x: (n, k).
        y: (n, d), of the same items; one-hot vectors for labels.
        bandwidth: bandwidth of both kernels, as in `gaussian_kernel`.

    Returns:
        A scalar from 0 to 1; 0 where all x or all y are the same.

    Raises:
        UserError: the shapes do not match, there are fewer than two items, or a bandwidth is not above 0.

    Source: Gretton et al. 2005, Measuring statistical dependence with Hilbert-Schmidt norms, the biased estimate; normalised
        as in Cortes et al. 2012. As a constraint on latents, Lopez et al. 2018, arXiv 1805.08672.

    >>> x = torch.tensor([[0.0], [1.0], [2.0]])
    >>> round(dependence(x, 3 * x).item(), 4)
    1.0
    """
    if x.ndim != 2 or y.ndim != 2 or len(x) != len(y) or len(x) < 2:
        got, expected = f"{tuple(x.shape)} and {tuple(y.shape)}", "(n, k) and (n, d), n at least 2"
        raise UserError("samples", got=got, expected=expected, fix="use a larger batch")
    kernels = (gaussian_kernel(points, bandwidth) for points in (x, y))
    k, m = (kernel - kernel.mean(0) - kernel.mean(1, keepdim=True) + kernel.mean() for kernel in kernels)  # (n, n) each
    scale = k.square().sum() * m.square().sum()
    return (k * m).sum() / torch.where(scale > 0, scale, 1.0).sqrt()


def gaussian_kernel(points: Tensor, bandwidth: float | Sequence[float] | None = None) -> Tensor:
    """Gaussian kernel matrix, k(x, y) = exp(-|x - y|^2 / (2 h^2)) for every pair of points.

    Args:
        points: (n, k).
        bandwidth: h, in the unit of the points; the kernels of several bandwidths are averaged. None: the median rule, h the
            median distance between different points (the lower one of the middle two; 1 where it is 0), without gradient.

    Returns:
        (n, n), in float32 or wider.

    Raises:
        UserError: a bandwidth is not above 0.

    >>> gaussian_kernel(torch.tensor([[0.0], [1.0]]), bandwidth=1.0)[0, 1].log().item()
    -0.5
    """
    points = points.to(torch.promote_types(points.dtype, torch.float32))
    points = points - points.detach().mean(0)  # keeps the distances, but makes the numbers smaller
    with torch.autocast(points.device.type, enabled=False):
        norms = points.square().sum(1)  # (n,)
        distances = (norms[:, None] + norms - 2 * points @ points.T).clamp(min=0)  # (n, n) squared
    if bandwidth is None:
        distinct = torch.triu_indices(len(points), len(points), 1, device=points.device)
        median = distances.detach()[distinct[0], distinct[1]].median()  # the median of squares is the square of the median
        squares = torch.where(median > 0, median, 1.0)[None]
    else:
        widths = [bandwidth] if isinstance(bandwidth, int | float) else list(bandwidth)
        if not widths or not all(0 < width < math.inf for width in widths):
            raise UserError("bandwidth", got=bandwidth, expected="numbers > 0", fix="set 1.0, or None for the median rule")
        squares = torch.tensor(widths, dtype=points.dtype, device=points.device).square()
    return (-distances / (2 * squares[:, None, None])).exp().mean(0)


class KLTerms(NamedTuple):
    """The three terms of E_x KL(q(z | x) || p(z)), each a scalar in nats."""

    mutual_information: Tensor
    """I(x; z) = E[log q(z | x) - log q(z)]"""
    total_correlation: Tensor
    """E[log q(z) - sum_j log q(z_j)]"""
    dimension_wise_kl: Tensor
    """E[sum_j log q(z_j) - log p(z)]"""


def decompose_kl(z: Tensor, q: Independent, prior: Distribution, dataset_size: int, sampling: str = "stratified") -> KLTerms:
    """Decompose the KL of a batch into mutual information, total correlation and dimension-wise KL.

    The aggregate posterior q(z) over all N items is estimated from the b items of the batch,
    ``q(z_i) ≈ sum_j w_ij q(z_i | x_j)`` with the weights of `batch_weights`, and so are its marginals q(z_j).

    Args:
        z: (b, k), one draw from each q(z | x).
        q: q(z | x) of the batch, batch shape (b,), event (k,).
        prior: p(z), event (k,).
        dataset_size: number of items N of the data set.
        sampling: "stratified" or "weighted".

    Returns:
        The three terms; they sum to the mean of log q(z | x) - log p(z).

    Raises:
        UserError: as `batch_weights`, or z has another shape.

    Source: Chen et al. 2018, beta-TCVAE, arXiv 1802.04942.

    >>> from mmgen.latents.spaces import diagonal_normal
    >>> q = diagonal_normal(torch.randn(4, 2), torch.ones(4, 2))
    >>> prior = diagonal_normal(torch.zeros(2), torch.ones(2))
    >>> len(decompose_kl(q.sample(), q, prior, dataset_size=100))
    3
    """
    log_weights = batch_weights(len(check_batch(z)), dataset_size, sampling).log().to(z)  # (b, b)
    densities = q.base_dist.log_prob(z[:, None])  # (b, b, k): log q(z_i | x_j) in each dimension
    joint = torch.logsumexp(log_weights + densities.sum(-1), 1)  # (b,) log q(z)
    marginals = torch.logsumexp(log_weights[..., None] + densities, 1).sum(-1)  # (b,) sum_j log q(z_j)
    return KLTerms(
        (q.log_prob(z) - joint).mean(),
        (joint - marginals).mean(),
        (marginals - prior.log_prob(z)).mean(),
    )


def batch_weights(b: int, dataset_size: int, sampling: str = "stratified") -> Tensor:
    """Weights w_ij, (b, b) in float64, that estimate the average of q(z_i | x_j) over a data set from a batch.

    - "stratified": ``w_ii = 1 / N`` and ``w_ij = (N - 1) / (N (b - 1))``, so that the estimate, averaged over all batches that
      contain i, drawn without replacement, is q(z_i).
    - "weighted": ``w_ij = 1 / (N b)``. The estimate is too small by a factor of about N, which does not affect the gradient;
      the mutual information is too large by about log N, the total correlation by about (k - 1) log N.

    Args:
        b: number of items in the batch, 2 or more.
        dataset_size: number of items N of the data set, at least b.
        sampling: "stratified" or "weighted".

    Raises:
        UserError: a value is out of range, or the name is unknown.

    Source: Chen et al. 2018, beta-TCVAE, arXiv 1802.04942. Their stratified weights give one neighbour of each item a smaller
        weight than the others; here all neighbours have the same weight, the average of theirs over the choice of neighbour.

    >>> batch_weights(2, dataset_size=4).tolist()
    [[0.25, 0.75], [0.75, 0.25]]
    """
    check_at_least("batch", b, 2)
    check_at_least("dataset_size", dataset_size, b)
    if check_one_of("sampling", sampling, ["stratified", "weighted"]) == "weighted":
        return torch.full((b, b), 1 / (dataset_size * b), dtype=torch.float64)
    other = (dataset_size - 1) / (dataset_size * (b - 1))
    return torch.full((b, b), other, dtype=torch.float64).fill_diagonal_(1 / dataset_size)


def density_ratio_tc(logits: Tensor) -> Tensor:
    """Total correlation estimated by a discriminator of q(z) (class 0) and prod_j q(z_j) (class 1): mean(logit_0 - logit_1).

    Args:
        logits: (b, 2) of draws from q(z). With balanced classes, the difference of the optimal discriminator's logits is
            log q(z) - sum_j log q(z_j).

    Returns:
        A scalar in nats.

    Source: Kim and Mnih 2018, FactorVAE, arXiv 1802.05983.

    >>> density_ratio_tc(torch.tensor([[2.0, 1.0], [3.0, 0.0]])).item()
    2.0
    """
    return (logits[:, 0] - logits[:, 1]).mean()


def permute_dims(z: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Draws from prod_j q(z_j): permutes each column of z (b, k) independently, without gradient.

    Args:
        z: draws from q(z), different from those that the discriminator gets as class 0.
        generator: makes the permutations reproducible.

    Source: Kim and Mnih 2018, FactorVAE, arXiv 1802.05983, algorithm 1.

    >>> permute_dims(torch.tensor([[1.0, 5.0], [2.0, 6.0]])).sort(0).values.tolist()
    [[1.0, 5.0], [2.0, 6.0]]
    """
    device = z.device if generator is None else generator.device
    order = torch.rand(z.shape, generator=generator, device=device).argsort(0)  # (b, k)
    return z.detach().gather(0, order.to(z.device))


def covariance_penalty(q: Independent, version: str, off_diagonal: float, diagonal: float) -> Tensor:
    """DIP-VAE's penalty: the squared distance of the covariance of q(z) from the identity.

    ``off_diagonal sum_{i != j} C_ij^2 + diagonal sum_i (C_ii - 1)^2`` with C = Cov_x[mu(x)] ("i") or
    C = Cov_x[mu(x)] + E_x[diag sigma^2(x)] ("ii"), the covariance of z itself; Cov divides by b, not b - 1.

    Args:
        q: q(z | x) of a batch, batch shape (b,), event (k,).
        version: "i" or "ii".
        off_diagonal: weight of the off-diagonal terms, 0 or above.
        diagonal: weight of the diagonal terms, 0 or above; Locatello et al. 2019 use 10 x ``off_diagonal`` for "i" and
            ``off_diagonal`` for "ii".

    Returns:
        A scalar.

    Raises:
        UserError: the version is unknown, or the batch has a single item.

    Source: Kumar et al. 2018, DIP-VAE, arXiv 1711.00848.

    >>> from mmgen.latents.spaces import diagonal_normal
    >>> q = diagonal_normal(torch.tensor([[1.0, 1.0], [-1.0, -1.0]]), torch.ones(2, 2))
    >>> covariance_penalty(q, "i", off_diagonal=3.0, diagonal=1.0).item()
    6.0
    """
    check_one_of("version", version, ["i", "ii"])
    centred = check_batch(q.mean) - q.mean.mean(0)  # (b, k)
    with torch.autocast(centred.device.type, enabled=False):
        covariance = centred.T @ centred / len(centred)  # (k, k)
    if version == "ii":
        covariance = covariance + q.variance.mean(0).diag()
    variances = covariance.diagonal()  # (k,)
    covariances = covariance.square().sum() - variances.square().sum()
    return off_diagonal * covariances + diagonal * (variances - 1).square().sum()


def check_batch(z: Tensor) -> Tensor:
    """Return ``z`` if it is (b, k) with b of 2 or more.

    Raises:
        UserError: it is not.
    """
    if z.ndim != 2 or len(z) < 2:
        raise UserError(
            "batch", got=tuple(z.shape), expected="(b, k) with b >= 2", fix="raise batch_size, or drop the last batch"
        )
    return z
