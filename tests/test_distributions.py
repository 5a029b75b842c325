import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from mmgen.distributions import DiscretizedLogistic, DiscretizedLogisticMixture, Likelihood, draw, until_stop
from mmgen.errors import UserError
from mmgen.modalities.text import TextDecoder


def decoder(length: int = 3, vocabulary: int = 3, stop: int = 2) -> TextDecoder:
    torch.manual_seed(0)
    model = TextDecoder(2, vocabulary, length, stop, dim=16, depth=1, heads=2).double()
    torch.nn.init.normal_(model.transformer.embed.weight)
    return model


def test_a_sequence_distribution_sums_to_one():
    distribution = decoder()(torch.randn(1, 2).double())
    sequences = torch.tensor(list(itertools.product(range(3), repeat=3)))  # (27, 3)
    mask = until_stop(sequences, 2)
    distinct = torch.unique(sequences * mask - (~mask).long(), dim=0).clamp(min=0)[:, None]  # (n, 1, 3), one an outcome
    assert len(distinct) == 1 + 2 + 4 + 8
    torch.testing.assert_close(distribution.log_prob(distinct).exp().sum().item(), 1.0)


def test_log_prob_is_the_sum_over_real_tokens():
    model, z = decoder(length=5, vocabulary=7), torch.randn(2, 2).double()
    ids = torch.tensor([[5, 6, 2, 0, 0], [4, 4, 3, 1, 2]])
    mask = torch.tensor([[True] * 3 + [False] * 2, [True] * 5])
    logits = model.transformer(ids, model.prefix(z)[:, None])[:, :-1]
    terms = -F.cross_entropy(logits.transpose(1, 2), ids, reduction="none")
    distribution = model(z)
    torch.testing.assert_close(distribution.log_prob(ids, mask), (terms * mask).sum(1))
    torch.testing.assert_close(distribution.log_prob(ids), distribution.log_prob(ids, mask))
    torch.testing.assert_close(distribution.log_prob(ids[:1, :3].expand(2, 3))[0], distribution.log_prob(ids)[0])
    assert distribution.log_prob(ids, torch.zeros_like(mask)).tolist() == [0, 0]


def test_samples_have_the_shapes_of_torch_and_the_right_frequencies():
    distribution = decoder()(torch.randn(2, 2).double())
    ids = distribution.sample((4000,), generator=torch.Generator().manual_seed(0))
    assert ids.shape == (4000, 2, 3) and distribution.batch_shape == (2,) and distribution.event_shape == (3,)
    assert distribution.log_prob(ids).shape == (4000, 2) and distribution.sample().shape == (2, 3)
    for sequence in ([2, 0, 0], [0, 1, 2]):
        share = (ids == torch.tensor(sequence)).all(-1).double().mean(0)
        probability = distribution.log_prob(torch.tensor([sequence, sequence])).exp()
        torch.testing.assert_close(share, probability, atol=0.03, rtol=0)


def test_a_sequence_beyond_the_length_is_refused():
    with pytest.raises(UserError, match="sequence: got 4 tokens, expected at most 3"):
        decoder()(torch.zeros(1, 2).double()).log_prob(torch.zeros(1, 4, dtype=torch.long))


@given(st.lists(st.integers(0, 3), min_size=1, max_size=8))
def test_until_stop_keeps_the_first_stop(ids):
    kept = until_stop(torch.tensor([ids]), 2)[0].tolist()
    end = ids.index(2) + 1 if 2 in ids else len(ids)
    assert kept == [True] * end + [False] * (len(ids) - end)


@pytest.mark.parametrize("family", ["bernoulli", "continuous_bernoulli", "normal", "laplace"])
def test_likelihoods_sum_over_the_event(family):
    location = torch.randn(2, 3, 1, 4, 4, dtype=torch.float64)
    x = torch.rand(2, 3, 1, 4, 4, dtype=torch.float64).round()
    distribution = Likelihood(family, event_dims=3).double()(location)
    assert distribution.batch_shape == (2, 3) and distribution.log_prob(x).shape == (2, 3)
    if family == "bernoulli":
        expected = -F.binary_cross_entropy_with_logits(location, x, reduction="none").sum((2, 3, 4))
        torch.testing.assert_close(distribution.log_prob(x), expected)
    if family == "normal":
        expected = -0.5 * ((x - location) ** 2 + torch.tensor(2 * torch.pi).log()).sum((2, 3, 4))
        torch.testing.assert_close(distribution.log_prob(x), expected)


def test_the_learned_scale_finds_the_error():
    likelihood, x = Likelihood("normal", event_dims=1), 3 * torch.randn(4000, 1, generator=torch.Generator().manual_seed(0))
    optimiser = torch.optim.Adam(likelihood.parameters(), 0.05)
    for _ in range(100):
        optimiser.zero_grad()
        (-likelihood(torch.zeros(4000, 1)).log_prob(x).mean()).backward()
        optimiser.step()
    assert abs(likelihood.log_scale.exp().item() - 3) < 0.1
    assert not list(Likelihood("normal", event_dims=1, scale=1.0).parameters())


def test_wrong_likelihoods_say_so():
    with pytest.raises(UserError, match="likelihood: got gausian"):
        Likelihood("gausian", 1)
    with pytest.raises(UserError, match="scale: got 0"):
        Likelihood("normal", 1, scale=0)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 5))
def test_draw_is_reproducible_and_never_takes_the_impossible(seed, n):
    probabilities = torch.tensor([[0.0, 1.0, 0.0], [0.5, 0.0, 0.5]])
    drawn = [draw(probabilities, n, torch.Generator().manual_seed(seed)) for _ in range(2)]
    assert torch.equal(*drawn) and drawn[0].shape == (2, n)
    assert (drawn[0][0] == 1).all() and (drawn[0][1] != 1).all()


@pytest.mark.parametrize(("mean", "scale"), [(0.3, 0.1), (-2.0, 1e-3), (3.0, 1e-3), (0.5, 50.0), (0.51, 1e-6)])
def test_discretized_logistic_sums_to_one_and_is_the_mixture_of_one_component(mean: float, scale: float) -> None:
    levels = 7
    x, m = torch.linspace(0, 1, levels, dtype=torch.float64), torch.tensor(mean, dtype=torch.float64)
    log_p = DiscretizedLogistic(m, scale, levels).log_prob(x)
    assert log_p.isfinite().all() and (log_p <= 0).all()
    torch.testing.assert_close(log_p.exp().sum(), torch.ones((), dtype=torch.float64))
    if scale > 1e-3:  # the mixture limits its scales
        means, log_scales = (2 * m - 1).reshape(1, 1), torch.tensor([[2 * scale]], dtype=torch.float64).log()
        one = DiscretizedLogisticMixture(m.new_zeros(1), means, log_scales, m.new_zeros(1, 0), levels)
        torch.testing.assert_close(log_p, one.log_prob(torch.arange(levels)[:, None]))


def test_discretized_logistic_draws_follow_it() -> None:
    torch.manual_seed(0)
    p = DiscretizedLogistic(torch.tensor(0.4), 0.2, levels=5)
    drawn = p.sample((20_000,))
    shares = torch.stack([(drawn == value).float().mean() for value in torch.linspace(0, 1, 5)])
    torch.testing.assert_close(shares, p.log_prob(torch.linspace(0, 1, 5)).exp(), atol=0.012, rtol=0)
    assert Likelihood("discretized_logistic", 1, levels=5)(torch.zeros(3)).log_prob(torch.zeros(3)) <= 0


def mixture(levels, channels=1, scale=1.0, dtype=torch.float64, rows=5):
    """Random parameters of three components, times ``scale``."""
    generator = torch.Generator().manual_seed(levels + channels)
    shapes = [(3,), (3, channels), (3, channels), (3, channels * (channels - 1) // 2)]
    parameters = [(scale * torch.randn(rows, *shape, generator=generator)).to(dtype).requires_grad_() for shape in shapes]
    return DiscretizedLogisticMixture(*parameters, levels), parameters


@pytest.mark.parametrize("scale", [1.0, 10.0, 1e4])
@pytest.mark.parametrize("levels", [2, 3, 256])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_levels_of_a_logistic_mixture_sum_to_one(levels, scale, dtype):
    p, parameters = mixture(levels, 1, scale, dtype)
    log_p = p.log_prob(torch.arange(levels)[:, None, None].expand(levels, 5, 1))  # (L, 5)
    torch.testing.assert_close(log_p.exp().sum(0), torch.ones(5, dtype=dtype))
    assert log_p.isfinite().all() and (log_p <= 0).all()
    log_p.sum().backward()
    assert all(x.grad.isfinite().all() for x in parameters)


@settings(deadline=None, max_examples=50)
@given(mean=st.floats(-1e6, 1e6), log_scale=st.floats(-1e3, 1e3), levels=st.sampled_from([2, 16, 256, 65536]))
def test_a_logistic_of_any_parameters_sums_to_one(mean, log_scale, levels):
    one = torch.ones(1, 1, 1, dtype=torch.float64)
    p = DiscretizedLogisticMixture(one[0], mean * one, log_scale * one, one[..., :0], levels)
    log_p = p.conditional(torch.zeros(1, 0, dtype=torch.long))
    assert log_p.exp().sum().item() == pytest.approx(1, abs=1e-9) and (log_p <= 0).all()


@pytest.mark.parametrize("mean", [-2.0, 2.0, 0.1])
def test_the_narrowest_logistics_sum_to_one_and_leave_nothing_to_other_levels(mean):
    one = torch.ones(1, 1, 1, dtype=torch.float64)
    p = DiscretizedLogisticMixture(one[0], mean * one, -7 * one, one[..., :0], 256).conditional(torch.zeros(1, 0).long()).exp()
    assert p.sum().item() == pytest.approx(1, abs=1e-12)
    assert p.argmax().item() == {-2.0: 0, 2.0: 255, 0.1: 140}[mean] and p.max() > 0.7


def test_a_logistic_mixture_is_its_formula():
    p, (logits, means, log_scales, coefficients) = mixture(8, 3)
    x = torch.randint(8, (5, 3), generator=torch.Generator().manual_seed(0)).clamp(1, 6)  # no outermost levels
    r, g, b = (2 * x.double() / 7 - 1)[:, None].unbind(2)  # (5, 1)
    of_red, of_red_too, of_green = coefficients.tanh().unbind(2)  # (5, 3)
    mu = torch.stack([means[..., 0] + 0 * r, means[..., 1] + of_red * r, means[..., 2] + of_red_too * r + of_green * g], 2)
    y, s = torch.stack([r, g, b], 2), log_scales.exp()
    bins = ((y + 1 / 7 - mu) / s).sigmoid() - ((y - 1 / 7 - mu) / s).sigmoid()  # (5, 3, 3)
    torch.testing.assert_close(p.log_prob(x), (logits.softmax(1) * bins.prod(2)).sum(1).log())


@pytest.mark.parametrize("scale", [1.0, 10.0])
def test_all_vectors_of_a_logistic_mixture_sum_to_one_and_are_products_of_conditionals(scale):
    p, _ = mixture(4, 3, scale)
    every = torch.tensor(list(itertools.product(range(4), repeat=3)))[:, None].expand(64, 5, 3)
    log_p = p.log_prob(every)  # (64, 5)
    torch.testing.assert_close(log_p.exp().sum(0), torch.ones(5, dtype=torch.float64))
    each = [p.conditional(every[..., :j]).gather(-1, every[..., j : j + 1])[..., 0] for j in range(3)]
    torch.testing.assert_close(sum(each), log_p)
