"""Fusion of the posteriors of present modalities: product, mixture, and mixture of products of experts.

Each modality is encoded once, and its posterior is an expert. Missing modalities are masked before any arithmetic, so the
values in their rows, even NaN, have no effect and get a gradient of exactly zero.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.distributions import Independent, MixtureSameFamily

from mmgen.errors import UserError
from mmgen.latents.spaces import diagonal_normal, gaussian_mixture


def stack_experts(posteriors: Sequence[Independent]) -> Independent:
    """Stack m Gaussian posteriors of batch shape (b,) into one of batch shape (m, b), event (k,).

    Raises:
        UserError: there are none, or their shapes differ.

    >>> q = diagonal_normal(torch.zeros(4, 2), torch.ones(4, 2))
    >>> stack_experts([q, q, q]).batch_shape
    torch.Size([3, 4])
    """
    shapes = sorted({tuple(q.mean.shape) for q in posteriors})
    if len(shapes) != 1:
        fix = "encode the same items into one latent space"
        raise UserError("experts", got=f"shapes {shapes}", expected="one shape (b, k) for all, of at least one", fix=fix)
    normals = [q.base_dist for q in posteriors]  # .stddev is sqrt(scale^2), whose gradient at 0 is NaN
    return diagonal_normal(torch.stack([normal.loc for normal in normals]), torch.stack([normal.scale for normal in normals]))


def present_experts(experts: Independent, present: Tensor) -> Independent:
    """Replace missing experts by N(0, 1), which passes no gradient.

    Args:
        experts: batch shape (m, b), event (k,).
        present: (..., m, b) bool; leading dimensions hold several presence patterns for the same experts.

    Returns:
        Batch shape (..., m, b), event (k,).

    Raises:
        UserError: ``present`` has another shape, or is not bool.
    """
    if present.shape[-2:] != experts.batch_shape or present.dtype != torch.bool:
        got, expected = f"{tuple(present.shape)} {present.dtype}", f"(..., m, b) = {tuple(experts.batch_shape)} of bool"
        raise UserError("present", got=got, expected=expected, fix="give one row of bool for each modality")
    normal, present = experts.base_dist, present[..., None]  # (..., m, b, 1)
    return diagonal_normal(torch.where(present, normal.loc, 0.0), torch.where(present, normal.scale, 1.0))  # (..., m, b, k)


def product_of_experts(experts: Independent, present: Tensor, prior: bool = True) -> Independent:
    """Product of experts, q(z) ∝ p(z) prod_i q(z | x_i) over the present modalities, with p(z) = N(0, 1).

    ``1 / sigma^2 = 1 + sum_i 1 / sigma_i^2`` and ``mu = sigma^2 sum_i mu_i / sigma_i^2``

    Args:
        experts: batch shape (m, b), event (k,).
        present: (..., m, b) bool; leading dimensions hold several presence patterns for the same experts.
        prior: include N(0, 1) as an expert (the 1 in the sum).

    Returns:
        Batch shape (..., b), event (k,); the prior for items with nothing present.

    Raises:
        UserError: an item has nothing present and there is no prior, or ``present`` has another shape.

    Source: Wu and Goodman 2018, MVAE, arXiv 1802.05335 (with prior); Hwang et al. 2021, MVTCAE (without).

    >>> experts = diagonal_normal(torch.tensor([[[4.0]], [[9.0]]]), torch.ones(2, 1, 1))  # two modalities, one item
    >>> product_of_experts(experts, torch.tensor([[True], [False]])).mean.tolist()
    [[2.0]]
    """
    known = present_experts(experts, present).base_dist
    if not prior:
        _check_something(present)
    precision = known.scale.pow(-2) * present[..., None]  # (..., m, b, k)
    total = precision.sum(-3) + float(prior)  # (..., b, k)
    return diagonal_normal((precision * known.loc).sum(-3) / total, total.rsqrt())


def mixture_of_experts(experts: Independent, present: Tensor) -> MixtureSameFamily:
    """Mixture of experts, q(z) = 1/n sum_i q(z | x_i) over the n present modalities.

    Args:
        experts: batch shape (m, b), event (k,).
        present: (..., m, b) bool.

    Returns:
        Batch shape (..., b), event (k,). ``component_distribution`` holds the experts, batch shape (..., b, m), with N(0, 1)
        for missing ones; ``mixture_distribution.probs`` their weights (..., b, m), exactly 0 for missing ones.

    Raises:
        UserError: an item has nothing present, or ``present`` has another shape.

    Source: Shi et al. 2019, MMVAE, arXiv 1911.03393.

    >>> experts = diagonal_normal(torch.tensor([[[4.0]], [[9.0]]]), torch.ones(2, 1, 1))
    >>> mixture_of_experts(experts, torch.tensor([[True], [False]])).mixture_distribution.probs.tolist()
    [[1.0, 0.0]]
    """
    known = present_experts(experts, present).base_dist
    _check_something(present)
    return _uniform_mixture(present, known.loc, known.scale)


def mixture_of_products(experts: Independent, present: Tensor, prior: bool | Tensor = False) -> MixtureSameFamily:
    """Mixture of products of experts, q(z) = 1/n sum_S q_S(z) over the n non-empty subsets S of the present modalities.

    q_S is the product of the experts in S. All products together take two matrix products of subsets and precisions.

    Args:
        experts: batch shape (m, b), event (k,).
        present: (..., m, b) bool.
        prior: include N(0, 1) in each product; or one value for each subset (s,), in the order of `subsets`.

    Returns:
        Batch shape (..., b), event (k,). ``component_distribution`` holds the products in the order of `subsets`, batch
        shape (..., b, 2^m - 1), with N(0, 1) for subsets with a missing modality; ``mixture_distribution.probs`` their
        weights, exactly 0 for those subsets.

    Raises:
        UserError: an item has nothing present, or ``present`` has another shape.

    Source: Sutter et al. 2021, MoPoE, arXiv 2105.02470. Their code adds the prior only to the product of all modalities:
        ``prior=subsets(m).all(1)``.

    >>> experts = diagonal_normal(torch.tensor([[[4.0]], [[9.0]]]), torch.ones(2, 1, 1))
    >>> mixture_of_products(experts, torch.tensor([[True], [True]])).component_distribution.mean.flatten().tolist()
    [4.0, 9.0, 6.5]
    """
    known = present_experts(experts, present).base_dist
    _check_something(present)
    precision = known.scale.pow(-2)  # (..., m, b, k)
    members = subsets(experts.batch_shape[0], precision.device)  # (s, m)
    valid = ~(members[:, :, None] & ~present[..., None, :, :]).any(-2)  # (..., s, b): True if no member is missing
    joins = torch.as_tensor(prior, device=precision.device).to(precision.dtype)
    with torch.autocast(precision.device.type, enabled=False):  # half precision is too coarse for precisions
        inside = members.to(precision.dtype)
        total = torch.einsum("sm,...mbk->...sbk", inside, precision) + joins.reshape(-1, 1, 1)
        mean = torch.einsum("sm,...mbk->...sbk", inside, precision * known.loc) / total  # (..., s, b, k)
    keep = valid[..., None]
    return _uniform_mixture(valid, torch.where(keep, mean, 0.0), torch.where(keep, total.rsqrt(), 1.0))


def subsets(m: int, device: torch.device | str | None = None) -> Tensor:
    """Membership of m modalities in each non-empty subset, (2^m - 1, m) bool; row i - 1 is i in binary, lowest digit first.

    >>> subsets(2).tolist()
    [[True, False], [False, True], [True, True]]
    """
    numbers = torch.arange(1, 2**m, device=device)[:, None]  # (s, 1)
    return (numbers >> torch.arange(m, device=device)) % 2 == 1


def _uniform_mixture(valid: Tensor, mean: Tensor, scale: Tensor) -> MixtureSameFamily:
    """Mixture of batch shape (..., b) with equal weights of the ``valid`` (..., c, b) components (..., c, b, k)."""
    logits = torch.where(valid, 0.0, -torch.inf).to(mean.dtype).movedim(-2, -1)  # (..., b, c): probabilities of exactly 0
    return gaussian_mixture(logits, mean.movedim(-3, -2), scale.movedim(-3, -2))


def _check_something(present: Tensor) -> None:
    nothing = ~present.any(-2)  # (..., b)
    if nothing.any():
        item = nothing.nonzero()[0, -1].item()
        fix = "leave the item out, or use a product with the prior"
        raise UserError("modalities", got=f"none for item {item}", expected="at least one for every item", fix=fix)


def known(features: list[Tensor], present: Tensor) -> Tensor:
    """Concatenate features, 0 where missing, and the presence mask, as input of a network that infers missing modalities.

    Args:
        features: m tensors (..., d_i).
        present: (m, s, ...) bool, s presence patterns.

    Returns:
        (s, ..., sum d_i + m).
    """
    parts = [torch.where(there[..., None], x, 0.0) for x, there in zip(features, present)]  # (s, ..., d) each
    return torch.cat([*parts, present.movedim(0, -1).to(parts[0].dtype)], -1)


def lacking(present: Tensor, i: int) -> Tensor:
    """Mark modality ``i`` of ``present`` (m, ...) as missing for all items."""
    return present & (torch.arange(len(present), device=present.device) != i).reshape(-1, *[1] * (present.ndim - 1))
