import math
from itertools import combinations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributions import Categorical, Independent, MultivariateNormal, Normal

from mmgen.errors import UserError
from mmgen.latents.divergences import (
    batch_weights,
    covariance_penalty,
    decompose_kl,
    density_ratio_tc,
    dependence,
    kl,
    mmd,
    permute_dims,
)
from mmgen.latents.spaces import FlowPrior, StandardPrior, diagonal_normal, gaussian_mixture

LINE = torch.linspace(-12, 12, 20001, dtype=torch.float64)[:, None, None]  # (n, 1, 1) for numeric integrals of one dimension
WIDTH = 24 / 20000


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=seeded(seed), dtype=torch.float64)


def posterior(b: int, k: int, seed: int = 0) -> Independent:
    return diagonal_normal(normal(b, k, seed=seed), 0.3 + normal(b, k, seed=seed + 1).abs())


def integral_kl(q, p) -> torch.Tensor:
    """KL of distributions over one dimension, batch shape (b,), by the rectangle rule."""
    log_q = q.log_prob(LINE)  # (n, b)
    return (log_q.exp() * (log_q - p.log_prob(LINE))).sum(0) * WIDTH


def mixture(logits: torch.Tensor | None = None):
    """Two items, each a mixture of three Gaussians on a line."""
    logits = torch.tensor([[0.0, 1.0, -1.0], [0.5, 0.0, -math.inf]], dtype=torch.float64) if logits is None else logits
    return gaussian_mixture(logits, 2 * normal(2, 3, 1), 0.5 + normal(2, 3, 1, seed=1).abs())


def test_kl_of_gaussians_is_the_closed_form():
    q, p = posterior(5, 3), posterior(5, 3, seed=7)
    ratio = q.stddev / p.stddev
    expected = 0.5 * (ratio**2 + ((q.mean - p.mean) / p.stddev) ** 2 - 1 - 2 * ratio.log()).sum(1)
    torch.testing.assert_close(kl(q, p), expected)
    torch.testing.assert_close(kl(q.base_dist, p.base_dist).sum(1), expected)
    standard = 0.5 * (q.mean**2 + q.variance - 1 - q.variance.log()).sum(1)
    torch.testing.assert_close(kl(q, StandardPrior(3).double()()), standard)


def test_kl_without_a_closed_form_is_the_integral():
    q = posterior(4, 1)
    flow = FlowPrior(1, transforms=2, hidden=8).double()()
    for p in (gaussian_mixture(torch.zeros(3).double(), 2 * normal(3, 1), torch.ones(3, 1).double()), flow):
        exact, n = integral_kl(q, p), 4000
        z = q.sample((n,))
        error = (q.log_prob(z) - p.log_prob(z)).std(0) / n**0.5  # of the mean over n draws
        assert ((kl(q, p, samples=n, generator=seeded()) - exact).abs() < 5 * error).all()


def test_kl_from_a_mixture_is_the_integral_and_so_is_its_gradient():
    logits = torch.tensor([[0.0, 1.0, -1.0], [0.5, 0.0, 2.0]], dtype=torch.float64, requires_grad=True)
    p = Independent(Normal(torch.zeros(1).double(), 1.5), 1)
    exact = integral_kl(mixture(logits), p)
    estimate = kl(mixture(logits), p, samples=20000, generator=seeded())
    torch.testing.assert_close(estimate, exact, atol=0.03, rtol=0)
    torch.testing.assert_close(*(torch.autograd.grad(x.sum(), logits)[0] for x in (estimate, exact)), atol=0.03, rtol=0)


def test_a_component_without_weight_counts_nothing():
    q, p = mixture(), StandardPrior(1).double()()
    less = gaussian_mixture(
        q.mixture_distribution.logits[1:, :2], q.component_distribution.mean[1:, :2], q.component_distribution.stddev[1:, :2]
    )
    torch.testing.assert_close(integral_kl(q, p)[1:], integral_kl(less, p))
    torch.testing.assert_close(kl(q, p, 20000, seeded())[1], kl(less, p, 20000, seeded())[0], atol=0.03, rtol=0)


def test_kl_of_a_mixture_is_below_that_of_its_components_and_zero_to_itself():
    q, p = mixture(), StandardPrior(1).double()()
    bound = (q.mixture_distribution.probs * kl(q.component_distribution, p)).sum(-1)
    assert (integral_kl(q, p) < bound).all()
    assert (kl(q, q, samples=3) == 0).all()


def test_kl_of_categoricals_and_a_repeated_estimate():
    q, p = Categorical(logits=normal(3, 4)), Categorical(logits=torch.zeros(4).double())
    torch.testing.assert_close(kl(q, p), math.log(4) - q.entropy())
    assert torch.equal(kl(mixture(), StandardPrior(1)(), 2, seeded(3)), kl(mixture(), StandardPrior(1)(), 2, seeded(3)))
    assert (kl(mixture(), StandardPrior(1)(), 2, seeded(3)) != kl(mixture(), StandardPrior(1)(), 2, seeded(4))).all()


def kernel(d: float, h: float) -> float:
    return math.exp(-(d**2) / (2 * h**2))


def test_mmd_of_two_points_each_by_hand():
    x, y, h = torch.tensor([[0.0], [1.0]]).double(), torch.tensor([[3.0], [5.0]]).double(), 1.7
    across = (kernel(3, h) + kernel(5, h) + kernel(2, h) + kernel(4, h)) / 4
    unbiased = kernel(1, h) + kernel(2, h) - 2 * across
    biased = (1 + kernel(1, h)) / 2 + (1 + kernel(2, h)) / 2 - 2 * across
    assert mmd(x, y, h).item() == pytest.approx(unbiased, abs=1e-12)
    assert mmd(x, y, h, unbiased=False).item() == pytest.approx(biased, abs=1e-12)
    several = [mmd(x, y, width).item() for width in (0.5, 1.0, 4.0)]
    assert mmd(x, y, [0.5, 1.0, 4.0]).item() == pytest.approx(sum(several) / 3, abs=1e-12)
    assert mmd(x[:1], y[:1], h, unbiased=False).item() == pytest.approx(2 - 2 * kernel(3, h), abs=1e-12)


def test_the_median_rule_takes_the_median_of_the_pooled_distances():
    x, y = normal(5, 3), 2 * normal(4, 3, seed=1)
    h = torch.pdist(torch.cat([x, y])).median().item()  # 36 distances
    torch.testing.assert_close(mmd(x, y), mmd(x, y, h))
    same = torch.zeros(3, 2).double()
    assert mmd(same, same).item() == 0  # a median of 0


def test_mmd_is_unbiased_where_it_says_so_and_biased_where_not():
    draws = normal(200, 2, 8, 2)
    unbiased = torch.stack([mmd(x, y, 1.0) for x, y in draws])
    biased = torch.stack([mmd(x, y, 1.0, unbiased=False) for x, y in draws])
    assert abs(unbiased.mean()) < 4 * unbiased.std() / 200**0.5 and unbiased.min() < 0
    # E k over independent draws of N(0, 1) in 2 dimensions with h = 1 is 1 / 3: the bias is 2 (1 - 1/3) / 8
    torch.testing.assert_close(biased.mean().item(), 2 * (1 - 1 / 3) / 8, atol=0.01, rtol=0)
    assert (biased > 0).all()


def test_mmd_between_gaussians_is_the_closed_form():
    h, d = 1.3, 1.5  # E k = h / sqrt(h^2 + 2) exp(-d^2 / (2 (h^2 + 2)))
    x, y = normal(1000, 1), normal(1000, 1, seed=1) + d
    expected = 2 * h / math.sqrt(h**2 + 2) * (1 - math.exp(-(d**2) / (2 * (h**2 + 2))))
    assert mmd(x, y, h).item() == pytest.approx(expected, abs=0.03)


@given(st.integers(1, 6))
def test_mmd_and_the_number_of_dimensions(times):
    x, y = normal(6, 2), normal(7, 2, seed=1) + 1
    wider = [value.repeat(1, times) for value in (x, y)]  # squared distances times `times`
    torch.testing.assert_close(mmd(*wider), mmd(x, y))  # the median rule follows
    torch.testing.assert_close(mmd(*wider, bandwidth=times**0.5), mmd(x, y, bandwidth=1.0))
    padded = [torch.nn.functional.pad(value, (0, times)) for value in (x, y)]
    torch.testing.assert_close(mmd(*padded, bandwidth=1.0), mmd(x, y, bandwidth=1.0))  # no hidden division by k


def test_mmd_far_from_the_origin_and_its_gradient():
    x, y = normal(6, 2), normal(6, 2, seed=1)
    torch.testing.assert_close(mmd(x.float() + 1000, y.float() + 1000, 1.0).double(), mmd(x, y, 1.0), atol=1e-4, rtol=0)
    assert torch.autograd.gradcheck(lambda a, b: mmd(a, b, [0.7, 2.0]), (x.requires_grad_(), y.requires_grad_()))
    by_rule = torch.autograd.grad(mmd(x, y), x)[0]
    h = torch.pdist(torch.cat([x, y]).detach()).median().item()
    torch.testing.assert_close(by_rule, torch.autograd.grad(mmd(x, y, h), x)[0])  # the bandwidth is a constant


def test_dependence_is_the_normalised_trace():
    x, y = normal(7, 3), normal(7, 2, seed=1)
    k, m = (torch.exp(-torch.cdist(points, points).square() / (2 * 1.3**2)) for points in (x, y))
    h = torch.eye(7).double() - 1 / 7
    hsic = lambda a, b: torch.trace(a @ h @ b @ h)  # noqa: E731
    torch.testing.assert_close(dependence(x, y, 1.3), hsic(k, m) / (hsic(k, k) * hsic(m, m)).sqrt())
    torch.testing.assert_close(dependence(x, y), dependence(5 * x + 3, y / 4))  # the median rule: units do not count
    torch.testing.assert_close(dependence(x, x), torch.tensor(1.0).double())
    assert dependence(x, torch.ones(7, 1).double()).item() == 0
    assert torch.autograd.gradcheck(lambda a, b: dependence(a, b, 2.0), (x.requires_grad_(), y.requires_grad_()))


def test_dependence_sees_what_correlation_does_not():
    x = normal(200, 1)
    x = torch.cat([x, -x])  # symmetric: not correlated with its square
    independent, square = dependence(x, normal(400, 1, seed=1)), dependence(x, x.square())
    assert abs(torch.corrcoef(torch.cat([x, x.square()], 1).T)[0, 1]) < 1e-12
    assert independent < 0.02 < 0.2 < square
    assert dependence(x[:20], normal(20, 1, seed=1)) > independent  # few points look dependent


def by_hand(z, q, prior, dataset_size, weights) -> tuple[float, float, float]:
    """The three terms with loops over the batch."""
    b, k = z.shape
    density = lambda i, j, d: Normal(q.mean[j, d], q.stddev[j, d]).log_prob(z[i, d]).exp().item()  # noqa: E731
    terms = [0.0, 0.0, 0.0]
    for i in range(b):
        joint = math.log(sum(weights[i][j] * math.prod(density(i, j, d) for d in range(k)) for j in range(b)))
        marginals = sum(math.log(sum(weights[i][j] * density(i, j, d) for j in range(b))) for d in range(k))
        conditional = sum(math.log(density(i, i, d)) for d in range(k))
        terms[0] += (conditional - joint) / b
        terms[1] += (joint - marginals) / b
        terms[2] += (marginals - prior.log_prob(z[i]).item()) / b
    return tuple(terms)


def test_the_three_terms_are_those_of_loops():
    q, prior, n, b = posterior(4, 3), StandardPrior(3).double()(), 50, 4
    z = q.sample()
    stratified = [[1 / n if i == j else (n - 1) / (n * (b - 1)) for j in range(b)] for i in range(b)]
    weighted = [[1 / (n * b)] * b] * b
    for sampling, weights in (("stratified", stratified), ("weighted", weighted)):
        terms = decompose_kl(z, q, prior, n, sampling)
        assert [t.item() for t in terms] == pytest.approx(by_hand(z, q, prior, n, weights))
        torch.testing.assert_close(sum(terms), (q.log_prob(z) - prior.log_prob(z)).mean())


def test_stratified_weights_are_unbiased_over_all_batches():
    n, b, item = 6, 3, 2
    densities = posterior(n, 2).log_prob(torch.tensor([0.3, -0.2]).double()).exp()  # (n,) q(z | x_j) of one z
    others = combinations([j for j in range(n) if j != item], b - 1)
    estimates = [batch_weights(b, n)[0] @ densities[[item, *rest]] for rest in others]
    torch.testing.assert_close(torch.stack(estimates).mean(), densities.mean())


def test_theirs_is_ours_in_the_mean_over_the_neighbour_of_smaller_weight():
    n, m = 20, 4  # a batch of m + 1
    theirs = [1 / m] * (m - 1) + [(n - m) / (n * m)]  # of the other m items
    assert batch_weights(m + 1, n)[0, 1].item() == pytest.approx(sum(theirs) / m)
    assert batch_weights(m + 1, n).sum(1).tolist() == pytest.approx([1 / n + sum(theirs)] * (m + 1))


def test_the_whole_data_set_as_the_batch_is_exact_and_weighting_adds_constants():
    b, k = 7, 3
    q, prior = posterior(b, k), StandardPrior(k).double()()
    z = q.sample()
    exact, weighted = decompose_kl(z, q, prior, b), decompose_kl(z, q, prior, b, "weighted")
    aggregate = gaussian_mixture(torch.zeros(b).double(), q.mean, q.stddev)
    torch.testing.assert_close(exact.mutual_information, (q.log_prob(z) - aggregate.log_prob(z)).mean())
    torch.testing.assert_close(weighted.mutual_information, exact.mutual_information + math.log(b))
    torch.testing.assert_close(weighted.total_correlation, exact.total_correlation + (k - 1) * math.log(b))


def correlated(n: int, seed: int = 0) -> tuple[MultivariateNormal, torch.Tensor, float]:
    """A Gaussian, n draws, and its total correlation."""
    covariance = torch.tensor([[1.0, 0.7, 0.0], [0.7, 2.0, 0.3], [0.0, 0.3, 1.0]], dtype=torch.float64)
    distribution = MultivariateNormal(torch.zeros(3).double(), covariance)
    scale = covariance.diagonal().rsqrt()
    tc = -0.5 * torch.logdet(covariance * scale * scale[:, None]).item()
    return distribution, normal(n, 3, seed=seed) @ distribution.scale_tril.T, tc


def test_the_total_correlation_of_a_gaussian():
    n, noise = 1000, 0.5
    distribution, z, tc = correlated(n)
    # means with the covariance that noise completes to the one asked for
    rest = distribution.covariance_matrix - noise**2 * torch.eye(3).double()
    q = diagonal_normal(normal(n, 3) @ torch.linalg.cholesky(rest).T, torch.full((n, 3), noise).double())
    z = q.mean + noise * normal(n, 3, seed=5)
    assert decompose_kl(z, q, StandardPrior(3).double()(), n).total_correlation.item() == pytest.approx(tc, abs=0.06)
    alone = diagonal_normal(normal(n, 3) * math.sqrt(1 - noise**2), torch.full((n, 3), noise).double())
    z = alone.mean + noise * normal(n, 3, seed=5)
    assert decompose_kl(z, alone, StandardPrior(3).double()(), n).total_correlation.item() == pytest.approx(0, abs=0.06)


def test_the_density_ratio_of_the_best_discriminator_is_the_total_correlation():
    distribution, z, tc = correlated(20000)
    marginals = Normal(0, distribution.variance.sqrt()).log_prob(z).sum(1)
    logits = torch.stack([distribution.log_prob(z), marginals], 1)  # the best of all discriminators
    assert density_ratio_tc(logits).item() == pytest.approx(tc, abs=0.02)


def test_permuted_dimensions_keep_their_marginals_and_lose_their_correlation():
    _, z, _ = correlated(5000)
    permuted = permute_dims(z.requires_grad_(), seeded())
    torch.testing.assert_close(permuted.sort(0).values, z.detach().sort(0).values, atol=0, rtol=0)
    assert z.detach().T.corrcoef()[0, 1] > 0.4 and permuted.T.corrcoef().fill_diagonal_(0).abs().max() < 0.05
    assert torch.equal(permuted, permute_dims(z, seeded())) and not torch.equal(permuted, permute_dims(z, seeded(1)))
    assert not permuted.requires_grad


def test_covariance_penalties_are_those_of_the_covariance():
    q = posterior(50, 3)
    of_means = torch.cov(q.mean.T, correction=0)
    for version, covariance in (("i", of_means), ("ii", of_means + q.variance.mean(0).diag())):
        beside = (covariance - covariance.diag().diag()).square().sum()
        expected = 5 * beside + 2 * (covariance.diag() - 1).square().sum()
        torch.testing.assert_close(covariance_penalty(q, version, off_diagonal=5, diagonal=2), expected)
        twice = diagonal_normal(q.mean.repeat(2, 1), q.stddev.repeat(2, 1))
        torch.testing.assert_close(covariance_penalty(twice, version, off_diagonal=5, diagonal=2), expected)
    z = q.sample((4000,)).reshape(-1, 3)  # draws of the aggregate: its covariance is that of version ii
    torch.testing.assert_close(torch.cov(z.T), of_means + q.variance.mean(0).diag(), atol=0.03, rtol=0)


def one() -> Independent:
    return posterior(1, 2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: kl(posterior(2, 2), posterior(2, 2), samples=0), "samples: got 0"),
        (lambda: dependence(normal(1, 2), normal(1, 2)), r"samples: got \(1, 2\) and \(1, 2\)"),
        (lambda: dependence(normal(3, 2), normal(4, 2)), r"samples: got \(3, 2\) and \(4, 2\)"),
        (lambda: mmd(normal(1, 2), normal(3, 2)), r"samples: got \(1, 2\) and \(3, 2\)"),
        (lambda: mmd(normal(3, 2), normal(3, 4)), r"samples: got \(3, 2\) and \(3, 4\)"),
        (lambda: mmd(normal(3, 2), normal(3, 2), 0), "bandwidth: got 0"),
        (lambda: mmd(normal(3, 2), normal(3, 2), [1.0, -2.0]), r"bandwidth: got \[1\.0, -2\.0\]"),
        (lambda: mmd(normal(3, 2), normal(3, 2), []), r"bandwidth: got \[\]"),
        (lambda: decompose_kl(one().mean, one(), StandardPrior(2)(), 9), r"batch: got \(1, 2\)"),
        (lambda: decompose_kl(normal(3, 2), posterior(3, 2), StandardPrior(2)(), 2), "dataset_size: got 2"),
        (lambda: decompose_kl(normal(3, 2), posterior(3, 2), StandardPrior(2)(), 9, "weigted"), "sampling: got weigted"),
        (lambda: covariance_penalty(posterior(3, 2), "I", 1, 1), "version: got I"),
        (lambda: covariance_penalty(one(), "i", 1, 1), r"batch: got \(1, 2\)"),
    ],
)
def test_wrong_use_says_so(call, message):
    with pytest.raises(UserError, match=message):
        call()
