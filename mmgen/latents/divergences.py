"""How far distributions are apart: KL, MMD, total correlation, and the covariance penalties of DIP-VAE."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, MixtureSameFamily, kl_divergence

from mmgen.errors import UserError, check_at_least, check_one_of
from mmgen.latents.spaces import rsample


def kl(q: Distribution, p: Distribution, samples: int = 1, generator: torch.Generator | None = None) -> Tensor:
    """KL(q || p) = E_q[log q(z) - log p(z)], in closed form where torch has one, else the mean over reparameterised samples.

    Of a mixture q, each component gives ``samples`` and counts by its weight: all components get a gradient, the weights too.
    The bound ``KL(q || p) <= sum_c w_c KL(q_c || p)`` is ``kl`` of ``q.component_distribution``, weighted. For each dimension
    of a diagonal Gaussian, give ``q.base_dist`` and a Normal.

    Args:
        q: batch shape (b,) or any.
        p: a batch shape that broadcasts with it.
        samples: how many, where there is no closed form.
        generator: makes them reproducible.

    Returns:
        (b,) in nats; estimates can be below 0.

    Raises:
        UserError: less than one sample.

    >>> from mmgen.latents.spaces import diagonal_normal
    >>> q = diagonal_normal(torch.ones(3, 2), torch.ones(3, 2))
    >>> kl(q, diagonal_normal(torch.zeros(2), torch.ones(2))).tolist()
    [1.0, 1.0, 1.0]
    """
    check_at_least("samples", samples, 1)
    try:
        return kl_divergence(q, p)
    except NotImplementedError:  # what torch raises for a pair without closed form
        pass
    if isinstance(q, MixtureSameFamily):
        z = rsample(q.component_distribution, (samples,), generator).movedim(-2, 1)  # (n, c, b, k)
        ratio = (q.log_prob(z) - p.log_prob(z)).mean(0)  # (c, b)
        return (q.mixture_distribution.probs.movedim(-1, 0) * ratio).sum(0)  # (b,)
    z = rsample(q, (samples,), generator)  # (n, b, k)
    return (q.log_prob(z) - p.log_prob(z)).mean(0)


def mmd(x: Tensor, y: Tensor, bandwidth: float | Sequence[float] | None = None, unbiased: bool = True) -> Tensor:
    """The squared maximum mean discrepancy of two samples, by the kernel k of `gaussian_kernel`.

    ``MMD^2 = mean_{i,j} k(x_i, x_j) + mean_{i,j} k(y_i, y_j) - 2 mean_{i,j} k(x_i, y_j)``

    Unbiased, the first two means leave out i = j, and the estimate can be below 0. |x - y|^2 is a sum over dimensions: when
    their number grows, so must h, as it does by the median rule and not with a fixed one.

    Args:
        x: (n, k).
        y: (m, k), such as draws from the prior.
        bandwidth: h, in the unit of x, as in `gaussian_kernel` of x and y pooled.
        unbiased: which of the two estimates.

    Returns:
        A scalar.

    Raises:
        UserError: other shapes, too few points, or a bandwidth that is not above 0.

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
    """How much x and y have to do with each other, by the normalised Hilbert-Schmidt independence criterion.

    ``HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L))`` with ``HSIC(K, L) = sum_ij (H K H)_ij (H L H)_ij``, K and L the kernels of
    `gaussian_kernel` of x and y, H = 1 - 1/n. Of infinitely many points it is 0 where they are independent and only there; of
    n it is above 0, the more so the fewer they are.

    Args:
        x: (n, k).
        y: (n, d), of the same items; of labels their one-hot vectors.
        bandwidth: of both kernels, as in `gaussian_kernel`.

    Returns:
        A scalar from 0 to 1; 0 where all x or all y are the same.

    Raises:
        UserError: other shapes, less than two items, or a bandwidth that is not above 0.

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
    """k(x, y) = exp(-|x - y|^2 / (2 h^2)) of every two points.

    Args:
        points: (n, k).
        bandwidth: h, in the unit of the points; several give the mean of their kernels; None the median rule, where h is the
            median of the distances between distinct members (the lower of the middle two; 1 where it is 0), a constant to the
            gradient.

    Returns:
        (n, n), in float32 or wider.

    Raises:
        UserError: a bandwidth that is not above 0.

    >>> gaussian_kernel(torch.tensor([[0.0], [1.0]]), bandwidth=1.0)[0, 1].log().item()
    -0.5
    """
    points = points.to(torch.promote_types(points.dtype, torch.float32))
    points = points - points.detach().mean(0)  # the same distances, in smaller numbers
    with torch.autocast(points.device.type, enabled=False):
        norms = points.square().sum(1)  # (n,)
        distances = (norms[:, None] + norms - 2 * points @ points.T).clamp(min=0)  # (n, n) squared
    if bandwidth is None:
        distinct = torch.triu_indices(len(points), len(points), 1, device=points.device)
        median = distances.detach()[distinct[0], distinct[1]].median()  # of squares: the square of the median
        squares = torch.where(median > 0, median, 1.0)[None]
    else:
        widths = [bandwidth] if isinstance(bandwidth, int | float) else list(bandwidth)
        if not widths or not all(0 < width < math.inf for width in widths):
            raise UserError("bandwidth", got=bandwidth, expected="numbers > 0", fix="set 1.0, or None for the median rule")
        squares = torch.tensor(widths, dtype=points.dtype, device=points.device).square()
    return (-distances / (2 * squares[:, None, None])).exp().mean(0)


class KLTerms(NamedTuple):
    """E_x KL(q(z | x) || p(z)) in three terms, each a scalar in nats."""

    mutual_information: Tensor
    """I(x; z) = E[log q(z | x) - log q(z)]"""
    total_correlation: Tensor
    """E[log q(z) - sum_j log q(z_j)]"""
    dimension_wise_kl: Tensor
    """E[sum_j log q(z_j) - log p(z)]"""


def decompose_kl(z: Tensor, q: Independent, prior: Distribution, dataset_size: int, sampling: str = "stratified") -> KLTerms:
    """The KL of a batch as mutual information, total correlation and dimension-wise KL.

    The aggregate q(z) over all N items is estimated from the b of the batch: ``q(z_i) ≈ sum_j w_ij q(z_i | x_j)``, with the
    weights of `batch_weights`; the marginals q(z_j) alike.

    Args:
        z: (b, k), one draw from each of q.
        q: q(z | x) of the batch, batch shape (b,), event (k,).
        prior: p(z), event (k,).
        dataset_size: N.
        sampling: "stratified" or "weighted".

    Returns:
        The three terms; they sum to the mean of log q(z | x) - log p(z).

    Raises:
        UserError: as `batch_weights`, or z of another shape.

    Source: Chen et al. 2018, beta-TCVAE, arXiv 1802.04942.

    >>> from mmgen.latents.spaces import diagonal_normal
    >>> q = diagonal_normal(torch.randn(4, 2), torch.ones(4, 2))
    >>> prior = diagonal_normal(torch.zeros(2), torch.ones(2))
    >>> len(decompose_kl(q.sample(), q, prior, dataset_size=100))
    3
    """
    log_weights = batch_weights(len(check_batch(z)), dataset_size, sampling).log().to(z)  # (b, b)
    densities = q.base_dist.log_prob(z[:, None])  # (b, b, k): log q(z_i in each dimension | x_j)
    joint = torch.logsumexp(log_weights + densities.sum(-1), 1)  # (b,) log q(z)
    marginals = torch.logsumexp(log_weights[..., None] + densities, 1).sum(-1)  # (b,) sum over dimensions of their log q
    return KLTerms(
        (q.log_prob(z) - joint).mean(),
        (joint - marginals).mean(),
        (marginals - prior.log_prob(z)).mean(),
    )


def batch_weights(b: int, dataset_size: int, sampling: str = "stratified") -> Tensor:
    """How much each item j of a batch counts in the average of q(z_i | x_j) over the data set: w_ij, (b, b) in float64.

    - "stratified": ``w_ii = 1 / N`` and ``w_ij = (N - 1) / (N (b - 1))``, so that over all batches that hold i, drawn without
      replacement, the mean of the estimate is q(z_i).
    - "weighted": ``w_ij = 1 / (N b)``. The estimate is too small by about N, a constant to the gradient: the mutual
      information comes out too large by about log N, the total correlation by about (k - 1) log N.

    Args:
        b: items in the batch, 2 or more.
        dataset_size: N, at least b.
        sampling: "stratified" or "weighted".

    Raises:
        UserError: a value out of range, or an unknown name.

    Source: Chen et al. 2018, beta-TCVAE, arXiv 1802.04942. Their stratified weights give one neighbour of each item a smaller
        weight than the others; here all neighbours weigh alike, the mean of theirs over the choice of that one.

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
    """Total correlation by a discriminator of q(z) (class 0) from prod_j q(z_j) (class 1): mean(logit_0 - logit_1).

    Args:
        logits: (b, 2) of draws from q(z). A discriminator trained on as many of both classes approaches logits that differ
            by log q(z) - sum_j log q(z_j).

    Returns:
        A scalar in nats.

    Source: Kim and Mnih 2018, FactorVAE, arXiv 1802.05983.

    >>> density_ratio_tc(torch.tensor([[2.0, 1.0], [3.0, 0.0]])).item()
    2.0
    """
    return (logits[:, 0] - logits[:, 1]).mean()


def permute_dims(z: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Draws from prod_j q(z_j): each column of z (b, k) in its own random order, without gradient.

    Args:
        z: draws from q(z), other ones than the discriminator sees as class 0.
        generator: makes the orders reproducible.

    Source: Kim and Mnih 2018, FactorVAE, arXiv 1802.05983, algorithm 1.

    >>> permute_dims(torch.tensor([[1.0, 5.0], [2.0, 6.0]])).sort(0).values.tolist()
    [[1.0, 5.0], [2.0, 6.0]]
    """
    device = z.device if generator is None else generator.device
    order = torch.rand(z.shape, generator=generator, device=device).argsort(0)  # (b, k)
    return z.detach().gather(0, order.to(z.device))


def covariance_penalty(q: Independent, version: str, off_diagonal: float, diagonal: float) -> Tensor:
    """What DIP-VAE adds to the loss: the distance of the covariance of q(z) from the identity.

    ``off_diagonal sum_{i != j} C_ij^2 + diagonal sum_i (C_ii - 1)^2`` with C = Cov_x[mu(x)] ("i") or
    C = Cov_x[mu(x)] + E_x[diag sigma^2(x)] ("ii"), the covariance of z itself; Cov is the mean over the batch, not over b - 1.

    Args:
        q: q(z | x) of a batch, batch shape (b,), event (k,).
        version: "i" or "ii".
        off_diagonal: weight, 0 or above.
        diagonal: weight, 0 or above; Locatello et al. 2019 take 10 x ``off_diagonal`` for "i" and the same for "ii".

    Returns:
        A scalar.

    Raises:
        UserError: another version, or a batch of one.

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
    beside = covariance.square().sum() - variances.square().sum()
    return off_diagonal * beside + diagonal * (variances - 1).square().sum()


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
