import math
import re

import pytest
import torch
from torch.autograd.functional import jacobian
from torch.distributions import Normal, Poisson

from mmgen.errors import UserError
from mmgen.latents.spaces import (
    LOG_SCALE_BOUND,
    PRIORS,
    AggregatePrior,
    FlowPrior,
    GaussianHead,
    MixturePrior,
    StandardPrior,
    bounded_scale,
    diagonal_normal,
    gaussian_mixture,
    make_prior,
    rsample,
)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def prior(name: str, k: int) -> torch.nn.Module:
    torch.manual_seed(1)
    return make_prior(name, k, **({"transforms": 2, "hidden": 16} if name == "flow" else {})).double()


def grid(k: int, reach: float = 9.0) -> tuple[torch.Tensor, float]:
    """Points (n, k) of a square grid and the volume of each."""
    points = {1: 20001, 2: 241}[k]
    line = torch.linspace(-reach, reach, points, dtype=torch.float64)
    return torch.cartesian_prod(*[line] * k).reshape(-1, k), (2 * reach / (points - 1)) ** k


def test_a_head_gives_the_mean_and_the_bounded_scale_of_its_layer():
    head = GaussianHead(3, latent_dim=2).double()
    features = torch.randn(5, 3, dtype=torch.float64)
    mean, s = head.linear(features).chunk(2, -1)
    q = head(features)
    torch.testing.assert_close(q.mean, mean)
    torch.testing.assert_close(q.stddev.log(), 6 * (s / 6).tanh())
    assert q.batch_shape == (5,) and q.event_shape == (2,)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [1.0, 1e4, 1e12])
def test_no_feature_makes_a_head_infinite(dtype, size):
    torch.manual_seed(0)
    head = GaussianHead(8, latent_dim=4).to(dtype)
    features = (size * torch.randn(64, 8)).to(dtype).requires_grad_()
    q = head(features)
    assert q.mean.dtype == torch.float32  # half precision ends at the head
    assert (q.stddev >= math.exp(-LOG_SCALE_BOUND) * 0.999).all() and (q.stddev <= math.exp(LOG_SCALE_BOUND) * 1.001).all()
    (q.rsample() / size).square().sum().backward()
    assert q.stddev.pow(-2).isfinite().all() and features.grad.isfinite().all()


def test_the_scale_is_exp_for_small_numbers_and_bounded_for_any():
    s = torch.tensor([-math.inf, -0.01, 0.0, 0.01, math.inf], dtype=torch.float64)
    expected = torch.tensor([-6.0, -0.01, 0.0, 0.01, 6.0], dtype=torch.float64)
    torch.testing.assert_close(bounded_scale(s).log(), expected, atol=1e-7, rtol=0)


@pytest.mark.parametrize("name", PRIORS)
@pytest.mark.parametrize("k", [1, 2])
def test_priors_integrate_to_one(name, k):
    z, volume = grid(k)
    p = prior(name, k)()
    assert p.batch_shape == () and p.event_shape == (k,)
    total = p.log_prob(z).exp().sum().item() * volume
    assert total == pytest.approx(1, abs=2e-3 if name == "flow" else 1e-6)  # a spline's slope has kinks


@pytest.mark.parametrize("name", PRIORS)
def test_draws_follow_the_density(name):
    p, (z, volume) = prior(name, 2)(), grid(2)
    density = p.log_prob(z).exp()[:, None] * volume  # (n, 1)
    drawn = rsample(p, (8000,), seeded()).detach()
    for moment in (lambda z: z, lambda z: z**2, lambda z: z.prod(1, keepdim=True), lambda z: (z > 0.5).double()):
        values, error = moment(drawn), 5 * moment(drawn).std(0) / 8000**0.5
        assert ((values.mean(0) - (moment(z) * density).sum(0)).abs() < error + 2e-3).all()


@pytest.mark.parametrize("name", PRIORS)
def test_every_weight_of_a_prior_learns_and_comes_back(name):
    module = prior(name, 3)
    if parameters := {n: p for n, p in module.named_parameters() if p.requires_grad}:
        module().log_prob(torch.randn(50, 3, dtype=torch.float64)).sum().backward()
        assert [n for n, p in parameters.items() if p.grad is None or not p.grad.any()] == []
    again = prior(name, 3)
    for parameter in again.parameters():
        torch.nn.init.normal_(parameter)
    again.load_state_dict(module.state_dict())
    z = torch.randn(5, 3, dtype=torch.float64)
    assert torch.equal(again().log_prob(z), module().log_prob(z))


def test_the_volume_of_a_flow_is_that_of_its_jacobian():
    module = prior("flow", 3)
    z = rsample(module(), (4,), seeded())
    for point in z.detach():
        f = module().transform
        log_volume = jacobian(f, point).det().abs().log()
        expected = Normal(0, 1).log_prob(f(point)).sum() + log_volume
        torch.testing.assert_close(module().log_prob(point), expected)
        torch.testing.assert_close(f.inv(f(point)), point)


def test_coupling_lets_every_dimension_of_a_flow_see_every_other():
    torch.manual_seed(0)
    f = FlowPrior(4, transforms=3, hidden=16).double()().transform
    assert (jacobian(f, torch.tensor([0.3, -0.2, 0.5, 0.1], dtype=torch.float64)) != 0).all()


def test_a_mixture_prior_is_the_sum_of_its_components():
    module = MixturePrior(2, components=3, spread=4.0).double()
    with torch.no_grad():
        module.logits.copy_(torch.tensor([0.0, 1.0, -1.0]))
        module.log_scale.normal_(generator=seeded())
    z, weights = torch.randn(7, 2, dtype=torch.float64), module.logits.softmax(0)
    parts = [Normal(m, bounded_scale(s)).log_prob(z).sum(1).exp() for m, s in zip(module.mean, module.log_scale)]
    torch.testing.assert_close(module().log_prob(z).exp(), sum(w * p for w, p in zip(weights, parts)))


def test_the_spread_is_that_of_the_means():
    torch.manual_seed(0)
    assert MixturePrior(50, components=100, spread=3.0).mean.std().item() == pytest.approx(3, rel=0.05)
    assert not MixturePrior(5, spread=0.0).mean.any()


def test_a_draw_is_reparameterised():
    mean = torch.zeros(4, 2, dtype=torch.float64, requires_grad=True)
    scale = torch.full((4, 2), 2.0, dtype=torch.float64, requires_grad=True)
    z = rsample(diagonal_normal(mean, scale), (3,), seeded())
    z.sum().backward()
    assert z.shape == (3, 4, 2) and (mean.grad == 3).all()
    torch.testing.assert_close(scale.grad, z.detach().sum(0) / 2)


def test_without_a_generator_a_draw_is_that_of_torch():
    q = diagonal_normal(torch.randn(4, 2), torch.rand(4, 2) + 0.1)
    torch.manual_seed(0)
    ours = rsample(q, (3,))
    torch.manual_seed(0)
    assert torch.equal(ours, q.rsample((3,)))


@pytest.mark.parametrize("name", PRIORS)
def test_a_generator_repeats_a_draw(name):
    p = prior(name, 2)()
    torch.testing.assert_close(rsample(p, (6,), seeded(3)), rsample(p, (6,), seeded(3)), atol=0, rtol=0)
    assert (rsample(p, (6,), seeded(3)) != rsample(p, (6,), seeded(4))).any()
    assert rsample(p).shape == (2,)


def test_draws_from_mixtures_keep_items_apart_and_weights():
    # item i has components at 100 i + 10 c, of which the second has probability 0
    mean = (100 * torch.arange(3)[:, None] + 10 * torch.arange(3)).double()[..., None].requires_grad_()  # (b, c, 1)
    weights = torch.tensor([[0.75, 0.0, 0.25], [0.25, 0.0, 0.75], [1.0, 0.0, 0.0]])
    z = rsample(gaussian_mixture(weights.log(), mean, torch.full_like(mean, 0.1)), (4000,), seeded())  # (n, b, 1)
    item, component = (z.detach().squeeze(-1) / 100).round(), (z.detach().squeeze(-1) % 100 / 10).round() % 10
    assert (item == torch.arange(3)).all() and set(component.unique().tolist()) == {0, 2}
    torch.testing.assert_close((component == 2).float().mean(0), weights[:, 2], atol=0.03, rtol=0)
    z.sum().backward()
    assert (mean.grad[:, 1] == 0).all() and (mean.grad.sum((1, 2)) == 4000).all()


def test_the_standard_prior_follows_the_dtype_and_has_no_state():
    assert StandardPrior(2).double()().mean.dtype == torch.float64 and not StandardPrior(2).state_dict()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: make_prior("mixtur", 2), "prior: got mixtur, .*did you mean 'mixture'"),
        (lambda: make_prior("mixture", 2, component=3), "prior.component: got component, .*did you mean 'components'"),
        (lambda: make_prior("standard", 2, spread=1.0), "prior.spread: got spread"),
        (lambda: MixturePrior(2, components=0), "components: got 0"),
        (lambda: MixturePrior(2, spread=-1.0), r"spread: got -1\.0"),
        (lambda: FlowPrior(2, transforms=0), "transforms: got 0"),
        (lambda: StandardPrior(0), "latent_dim: got 0"),
        (lambda: rsample(Poisson(torch.ones(2))), "rsample: got Poisson, expected a diagonal Gaussian"),
    ],
)
def test_wrong_use_says_so(call, message):
    with pytest.raises(UserError, match=message):
        call()


def test_an_aggregate_prior_is_the_standard_one_until_it_is_fitted():
    module, z = AggregatePrior(2, components=4).double(), torch.randn(9, 2).double()
    standard = StandardPrior(2).double()()
    for mode in (True, False):
        assert type(module.train(mode)()) is type(standard)  # the KL keeps its closed form
        torch.testing.assert_close(module().log_prob(z), standard.log_prob(z))
    assert not list(module.parameters())  # nothing that a step could move


def test_an_aggregate_prior_finds_the_clusters_and_comes_back():
    generator = torch.Generator().manual_seed(0)
    centres, n = torch.tensor([[-4.0, 0.0], [3.0, 2.0]]), 4000
    chosen = (torch.rand(n, generator=generator) < 0.25).long()  # a quarter in the second
    z = centres[chosen] + torch.tensor([[0.5, 1.0], [1.0, 0.2]])[chosen] * torch.randn(n, 2, generator=generator)
    module = AggregatePrior(2, components=2)
    module.fit(z)
    order = module.mean[:, 0].argsort()
    torch.testing.assert_close(module.weight[order], torch.tensor([0.75, 0.25]), atol=0.03, rtol=0)
    torch.testing.assert_close(module.mean[order], centres, atol=0.1, rtol=0)
    torch.testing.assert_close(module.scale[order], torch.tensor([[0.5, 1.0], [1.0, 0.2]]), atol=0.05, rtol=0)
    again = AggregatePrior(2, components=2).eval()
    again.load_state_dict(module.state_dict())
    torch.testing.assert_close(again().log_prob(z), module.eval()().log_prob(z))
    assert module().log_prob(z).mean() > StandardPrior(2)().log_prob(z).mean() + 5
    torch.testing.assert_close(module.train()().log_prob(z), StandardPrior(2)().log_prob(z))  # as training goes on


@pytest.mark.parametrize("shape", [(4, 2), (9, 3), (9,)])
def test_an_aggregate_prior_needs_draws_of_its_size(shape):
    with pytest.raises(UserError, match=rf"draws: got shape {re.escape(str(shape))}, expected \(n, 2\) with n at least 5"):
        AggregatePrior(2, components=5).fit(torch.zeros(shape))
