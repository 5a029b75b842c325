from itertools import combinations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributions import Independent, Normal

from mmgen.errors import UserError
from mmgen.latents.fusion import (
    mixture_of_experts,
    mixture_of_products,
    present_experts,
    product_of_experts,
    stack_experts,
    subsets,
)
from mmgen.latents.spaces import diagonal_normal, rsample

FUSIONS = {"product": product_of_experts, "mixture": mixture_of_experts, "mixture of products": mixture_of_products}


def parameters(m: int, b: int, k: int = 2, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    mean = torch.randn(m, b, k, generator=generator, dtype=torch.float64)
    return mean, 0.3 + torch.rand(m, b, k, generator=generator, dtype=torch.float64)


def experts(m: int, b: int, k: int = 2, seed: int = 0) -> Independent:
    return diagonal_normal(*parameters(m, b, k, seed))


# present (m, b) in which every item has at least one modality
patterns = st.integers(1, 4).flatmap(
    lambda m: st.lists(st.lists(st.booleans(), min_size=m, max_size=m).filter(any), min_size=1, max_size=5).map(
        lambda items: torch.tensor(items).T
    )
)


def product_by_hand(mean: torch.Tensor, scale: torch.Tensor, prior: bool = False) -> Normal:
    """The product of the Gaussians in the rows of (n, k)."""
    precision = sum(1 / s**2 for s in scale) + float(prior)
    return Normal(sum(m / s**2 for m, s in zip(mean, scale)) / precision, precision**-0.5)


def test_the_product_with_the_prior_is_the_posterior_of_a_linear_gaussian_model():
    # z ~ N(0, 1), x_i = w_i z + b_i + s_i noise; the expert of x_i is its likelihood as a function of z
    generator = torch.Generator().manual_seed(0)
    w, s, offset, x = (torch.randn(3, 4, 1, generator=generator, dtype=torch.float64) for _ in range(4))
    w, s = w[:, :1] + 2, s[:, :1].abs() + 0.5  # one model for all 4 items
    offset = offset[:, :1]
    fused = product_of_experts(
        diagonal_normal((x - offset) / w, (s / w).abs().expand_as(x)), torch.ones(3, 4, dtype=torch.bool)
    )
    column, noise = w[:, 0], s[:, 0, 0].square().diag()  # (3, 1), (3, 3): condition the joint normal of (z, x) on x
    gain = column.T @ torch.linalg.inv(column @ column.T + noise)  # (1, 3)
    torch.testing.assert_close(fused.mean, (gain @ (x - offset)[..., 0]).T)
    torch.testing.assert_close(fused.variance, (1 - gain @ column).expand(4, 1))


@given(patterns, st.booleans())
def test_a_product_is_proportional_to_the_densities_of_those_present(present, prior):
    m, b = present.shape
    q = experts(m, b)
    z = torch.randn(6, b, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    densities = torch.stack([diagonal_normal(mean, scale).log_prob(z) for mean, scale in zip(q.mean, q.stddev)])  # (m, 6, b)
    product = (densities * present[:, None]).sum(0) + prior * Normal(0, 1).log_prob(z).sum(-1)
    ratio = product_of_experts(q, present, prior).log_prob(z) - product  # (6, b)
    torch.testing.assert_close(ratio, ratio[:1].expand_as(ratio))


@given(patterns)
def test_a_mixture_of_products_is_the_mean_over_the_subsets_of_those_present(present):
    m, b = present.shape
    q, z = experts(m, b), torch.randn(b, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    log_prob = mixture_of_products(q, present).log_prob(z)
    for item in range(b):
        here = [i for i in range(m) if present[i, item]]
        chosen = [list(s) for n in range(1, len(here) + 1) for s in combinations(here, n)]
        densities = [product_by_hand(q.mean[s, item], q.stddev[s, item]).log_prob(z[item]).sum().exp() for s in chosen]
        torch.testing.assert_close(log_prob[item].exp(), sum(densities) / len(chosen))


@given(patterns)
def test_a_mixture_is_the_mean_over_those_present(present):
    m, b = present.shape
    q, z = experts(m, b), torch.randn(b, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    densities = q.log_prob(z).exp() * present  # (m, b)
    torch.testing.assert_close(mixture_of_experts(q, present).log_prob(z).exp(), densities.sum(0) / present.sum(0))


def test_components_and_weights_can_be_had_in_the_order_of_subsets():
    q, present = experts(3, 2), torch.tensor([[True, True], [True, False], [True, True]])
    fused, which = mixture_of_products(q, present), subsets(3)
    products, weights = fused.component_distribution, fused.mixture_distribution.probs
    assert products.batch_shape == (2, 7) and weights.shape == (2, 7)
    for row, members in enumerate(which):
        for item in range(2):
            valid = not (members & ~present[:, item]).any()
            assert weights[item, row].item() == pytest.approx((1 / 7 if item == 0 else 1 / 3) if valid else 0, abs=1e-12)
            if valid:
                expected = product_by_hand(q.mean[members, item], q.stddev[members, item])
                torch.testing.assert_close(products.mean[item, row], expected.mean)
                torch.testing.assert_close(products.stddev[item, row], expected.stddev)
            else:
                assert weights[item, row] == 0
                assert (products.mean[item, row] == 0).all() and (products.stddev[item, row] == 1).all()


def test_one_modality_is_its_expert():
    q, present = experts(1, 3), torch.ones(1, 3, dtype=torch.bool)
    z = torch.randn(3, 2, dtype=torch.float64)
    for fused in (
        mixture_of_products(q, present),
        mixture_of_experts(q, present),
        product_of_experts(q, present, prior=False),
    ):
        torch.testing.assert_close(fused.log_prob(z), q.log_prob(z)[0])


def test_the_prior_may_join_some_of_the_products():
    q, present = experts(2, 3), torch.ones(2, 3, dtype=torch.bool)
    z = torch.randn(3, 2, dtype=torch.float64)
    some = mixture_of_products(q, present, prior=subsets(2).all(1)).component_distribution.log_prob(z[:, None])  # (b, s)
    every = mixture_of_products(q, present, prior=True).component_distribution.log_prob(z[:, None])
    none = mixture_of_products(q, present).component_distribution.log_prob(z[:, None])
    torch.testing.assert_close(some, torch.stack([none[:, 0], none[:, 1], every[:, 2]], 1))
    torch.testing.assert_close(every[:, 2], product_of_experts(q, present).log_prob(z))
    assert (every[:, :2] != none[:, :2]).all()


@pytest.mark.parametrize("name", FUSIONS)
@pytest.mark.parametrize("hole", [float("nan"), float("inf"), 0.0])
def test_a_missing_expert_changes_nothing_and_gets_a_gradient_of_zero(name, hole):
    present = torch.tensor([[True, True, False], [True, False, True], [False, True, True]])
    mean, scale = parameters(3, 3)
    holes = [torch.where(present[..., None], value, hole).requires_grad_() for value in (mean, scale)]
    z = torch.randn(3, 2, dtype=torch.float64)
    fused = FUSIONS[name](diagonal_normal(*holes), present)
    expected = FUSIONS[name](diagonal_normal(mean, scale), present)
    torch.testing.assert_close(fused.log_prob(z), expected.log_prob(z), atol=0, rtol=0)
    drawn = rsample(fused, (50,), torch.Generator().manual_seed(0))
    (fused.log_prob(z).sum() + drawn.square().sum()).backward()
    for value in holes:
        assert (value.grad[~present] == 0).all() and value.grad.isfinite().all()
        assert (value.grad[present] != 0).all()


@pytest.mark.parametrize("name", FUSIONS)
def test_absent_and_masked_are_the_same(name):
    q, z = experts(3, 4), torch.randn(4, 2, dtype=torch.float64)
    masked = torch.tensor([[True] * 4, [False] * 4, [True] * 4])
    without = stack_experts([diagonal_normal(q.mean[i], q.stddev[i]) for i in (0, 2)])
    absent = FUSIONS[name](without, masked[[0, 2]])
    fused = FUSIONS[name](q, masked)
    torch.testing.assert_close(fused.log_prob(z), absent.log_prob(z), atol=1e-14, rtol=0)
    torch.testing.assert_close(fused.mean, absent.mean, atol=1e-14, rtol=0)
    torch.testing.assert_close(fused.variance, absent.variance, atol=1e-14, rtol=0)


@pytest.mark.parametrize("name", FUSIONS)
def test_several_patterns_at_once_are_each_alone(name):
    q, z = experts(3, 4), torch.randn(4, 2, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    present = torch.rand(5, 3, 4, generator=generator) < 0.5
    present[:, 0] |= ~present.any(1)
    together = FUSIONS[name](q, present)
    assert together.batch_shape == (5, 4) and together.event_shape == (2,)
    for one, pattern in zip(together.log_prob(z), present):
        torch.testing.assert_close(one, FUSIONS[name](q, pattern).log_prob(z))


@pytest.mark.parametrize("name", FUSIONS)
def test_half_precision_around_it_changes_nothing(name):
    mean, scale = (value.float() for value in parameters(3, 4))
    present = torch.ones(3, 4, dtype=torch.bool)
    plain = FUSIONS[name](diagonal_normal(mean, scale), present)
    with torch.autocast("cpu", torch.bfloat16):
        half = FUSIONS[name](diagonal_normal(mean, scale), present)
    assert torch.equal(half.mean, plain.mean) and half.mean.dtype == torch.float32


def test_with_nothing_present_a_product_is_the_prior():
    fused = product_of_experts(experts(2, 3), torch.tensor([[True, False, False], [False, False, True]]))
    assert (fused.mean[1] == 0).all() and (fused.stddev[1] == 1).all() and (fused.mean[[0, 2]] != 0).all()


def test_missing_experts_stand_in_as_unit_gaussians():
    present = torch.tensor([[True, False], [False, True]])
    known = present_experts(experts(2, 2), present)
    assert (known.mean[~present] == 0).all() and (known.stddev[~present] == 1).all()
    assert torch.equal(known.mean[present], experts(2, 2).mean[present])


def test_subsets_are_all_but_the_empty_one():
    for m in range(1, 6):
        rows = {tuple(row) for row in subsets(m).tolist()}
        assert len(rows) == len(subsets(m)) == 2**m - 1 and all(any(row) for row in rows)


NOTHING = torch.tensor([[True, False, True], [True, False, True]])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mixture_of_experts(experts(2, 3), NOTHING), "modalities: got none for item 1, expected at least one"),
        (lambda: mixture_of_products(experts(2, 3), NOTHING), "modalities: got none for item 1"),
        (lambda: product_of_experts(experts(2, 3), NOTHING, prior=False), "modalities: got none for item 1"),
        (lambda: product_of_experts(experts(2, 3), NOTHING.T), r"present: got \(3, 2\) torch.bool, expected .*\(2, 3\)"),
        (lambda: mixture_of_experts(experts(2, 3), NOTHING.float()), "present: got .*float32"),
        (lambda: stack_experts([]), r"experts: got shapes \[\]"),
        (
            lambda: stack_experts([diagonal_normal(torch.zeros(3, k), torch.ones(3, k)) for k in (2, 4)]),
            r"experts: got shapes \[\(3, 2\), \(3, 4\)\]",
        ),
    ],
)
def test_wrong_use_says_so(call, message):
    with pytest.raises(UserError, match=message):
        call()
