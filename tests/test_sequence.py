import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributions import Laplace, Normal

from mmgen.errors import UserError
from mmgen.modalities.sequence import NETWORKS, SequenceDecoder, SequenceEncoder

KINDS = [(network, both) for network in NETWORKS for both in (False, True)]
SIZES = {"size": 3, "dim": 8, "heads": 2}


def encoder(network: str = "gru", bidirectional: bool = True, **options) -> SequenceEncoder:
    torch.manual_seed(0)
    module = SequenceEncoder(**{**SIZES, "network": network, "bidirectional": bidirectional, "depth": 2, **options})
    for name, parameter in module.named_parameters():  # GPT-2's small weights would hide a leak
        if "blocks" in name and parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    return module.double()


def decoder(network: str = "gru", **options) -> SequenceDecoder:
    torch.manual_seed(0)
    return SequenceDecoder(2, **{**SIZES, "length": 5, "network": network, "depth": 2, **options}).double()


def data(b: int = 2, t: int = 5, size: int = 3, seed: int = 0) -> torch.Tensor:
    return torch.randn(b, t, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(("network", "bidirectional"), KINDS)
@settings(max_examples=10)
@given(positions=st.lists(st.booleans(), min_size=5, max_size=9).filter(any), hole=st.sampled_from([0.0, 7.0, float("nan")]))
def test_padding_wherever_it_is_changes_nothing(network, bidirectional, positions, hole):
    module, mask = encoder(network, bidirectional), torch.tensor([positions, [True] * len(positions)])
    x = data(1, sum(positions))
    padded = torch.full((2, len(positions), 3), hole, dtype=torch.float64)
    padded[0, mask[0]], padded[1] = x[0], data(1, len(positions), seed=1)[0]
    torch.testing.assert_close(module(padded, mask)[:1], module(x))
    torch.testing.assert_close(module.steps(padded, mask)[0, mask[0]], module.steps(x)[0])
    assert (module.steps(padded, mask)[~mask] == 0).all()
    torch.testing.assert_close(module(x, torch.ones(1, sum(positions), dtype=torch.bool)), module(x))


@pytest.mark.parametrize(("network", "bidirectional"), KINDS)
def test_padding_gets_a_gradient_of_zero_and_an_empty_sequence_is_zero(network, bidirectional):
    x, mask = data().requires_grad_(), torch.tensor([[True, False, True, True, False], [False] * 5])
    features = encoder(network, bidirectional)(x, mask)
    features.square().sum().backward()
    assert (x.grad[~mask] == 0).all() and (x.grad[mask] != 0).any(-1).all()
    assert (features[1] == 0).all() and (features[0] != 0).all()


@pytest.mark.parametrize(("network", "bidirectional"), KINDS)
def test_one_direction_sees_the_past_and_two_see_all(network, bidirectional):
    module, x = encoder(network, bidirectional), data(1, 4)
    jacobian = torch.autograd.functional.jacobian(lambda x: module.steps(x)[0, :, 0], x)[:, 0].abs().sum(-1)  # (t, t)
    seen = torch.ones(4, 4, dtype=torch.bool)
    assert torch.equal(jacobian != 0, seen if bidirectional else seen.tril())


@pytest.mark.parametrize(("network", "bidirectional"), KINDS)
def test_the_order_counts(network, bidirectional):
    module, x = encoder(network, bidirectional), data(1, 4)
    assert (module(x) - module(x[:, [1, 0, 2, 3]])).abs().max() > 1e-6


@pytest.mark.parametrize("network", NETWORKS)
def test_every_weight_of_an_autoencoder_gets_a_gradient_and_items_do_not_mix(network):
    reader, writer, x = encoder(network), decoder(network), data()
    mask = torch.tensor([[True] * 5, [True, True, False, False, False]])
    z = torch.nn.Linear(8, 2).double()
    log_prob = writer(z(reader(x, mask))).log_prob(x, mask)
    (-log_prob.mean()).backward()
    for part in (reader, writer):
        assert [n for n, p in part.named_parameters() if p.grad is None or not p.grad.any()] == []
    torch.testing.assert_close(writer(z(reader(x[1:, :2]))).log_prob(x[1:, :2]), log_prob[1:])


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize(("likelihood", "family"), [("normal", Normal), ("laplace", Laplace)])
def test_log_prob_is_the_sum_over_real_positions(network, likelihood, family):
    x, mask = data(), torch.tensor([[True, True, False, True, False], [True] * 5])
    p = decoder(network, likelihood=likelihood, scale=0.7)(data(1, 2, 2)[0])
    assert p.batch_shape == (2,) and p.event_shape == (5, 3) and p.sample((4,)).shape == (4, 2, 5, 3)
    terms = family(p.mean, 0.7).log_prob(x).sum(-1)  # (b, t)
    torch.testing.assert_close(p.log_prob(x), terms.sum(1))
    torch.testing.assert_close(p.log_prob(x, mask), torch.stack([terms[0, [0, 1, 3]].sum(), terms[1].sum()]))
    torch.testing.assert_close(p.log_prob(x[:, :3]), terms[:, :3].sum(1))
    torch.testing.assert_close(p.log_prob(x[:, :3], mask[:, :3]), (terms * mask)[:, :3].sum(1))
    assert (p.log_prob(x, torch.zeros_like(mask)) == 0).all()
    torch.testing.assert_close(p.expand((4, 2)).log_prob(x, mask), p.log_prob(x, mask).expand(4, 2))


def test_what_padding_holds_is_not_read():
    x, mask = data(), torch.tensor([[True, True, False, True, False], [True] * 5])
    module, z = decoder(), data(1, 2, 2)[0]
    holes = torch.where(mask[..., None], x, float("nan")).requires_grad_()
    p = module(z)
    means = p.mean
    means.retain_grad()
    log_prob = p.log_prob(holes, mask)
    torch.testing.assert_close(log_prob, p.log_prob(x, mask), atol=0, rtol=0)
    log_prob.sum().backward()
    assert (means.grad[~mask] == 0).all() and (means.grad[mask] != 0).all()
    assert (holes.grad[~mask] == 0).all() and (holes.grad[mask] != 0).all()
    assert all(parameter.grad.isfinite().all() for parameter in module.parameters())


@pytest.mark.parametrize("network", NETWORKS)
def test_several_draws_of_z_are_each_alone(network):
    module, z, x = decoder(network), torch.randn(4, 2, 2, dtype=torch.float64), data()
    mask = torch.tensor([[True, True, False, True, False], [True] * 5])
    p = module(z)
    assert p.batch_shape == (4, 2) and p.log_prob(x, mask).shape == (4, 2)
    for one, row in zip(z, p.log_prob(x, mask)):
        torch.testing.assert_close(module(one).log_prob(x, mask), row)


@pytest.mark.parametrize("network", NETWORKS)
def test_a_decoder_learns_what_the_latent_says(network):
    torch.manual_seed(0)
    module = SequenceDecoder(2, size=1, length=4, network=network, dim=16, heads=2, scale=1.0)
    z, line = torch.eye(2), torch.linspace(-1, 1, 4)
    x = torch.stack([line, -line])[..., None]  # (b, t, 1)
    optimiser = torch.optim.Adam(module.parameters(), 2e-2)
    for _ in range(50):
        optimiser.zero_grad()
        (-module(z).log_prob(x).mean()).backward()
        optimiser.step()
    assert (module(z).mean - x).abs().max() < 0.2


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("depth", [1, 2])
def test_dropout_is_for_training(network, depth, recwarn):
    module, x = encoder(network, dropout=0.5, depth=depth), data()
    assert (module.train()(x) != module(x)).any() and torch.equal(module.eval()(x), module(x))
    assert not recwarn.list


@pytest.mark.parametrize("network", NETWORKS)
def test_half_precision_around_it_is_finite(network):
    reader, writer, x = encoder(network).float(), decoder(network).float(), data().float()
    mask = torch.tensor([[True] * 5, [True, True, False, False, False]])
    with torch.autocast("cpu", torch.bfloat16):
        loss = -writer(reader(x, mask)[:, :2]).log_prob(x, mask).mean()
    loss.backward()
    assert loss.isfinite() and loss.dtype == torch.float32
    assert all(parameter.grad.isfinite().all() for part in (reader, writer) for parameter in part.parameters())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: SequenceEncoder(3, network="grru"), "network: got grru, .*did you mean 'gru'"),
        (lambda: SequenceEncoder(3, dim=7), "dim: got 7, expected an even number"),
        (lambda: SequenceEncoder(3, dim=6, network="transformer", heads=2), "dim: got 6, expected a multiple of 4"),
        (lambda: SequenceEncoder(3, depth=0), "depth: got 0"),
        (lambda: SequenceDecoder(2, 3, length=0), "length: got 0"),
        (lambda: SequenceDecoder(2, 3, length=4, likelihood="norml"), "likelihood: got norml"),
        (lambda: decoder()(data(1, 2, 2)[0]).log_prob(data(2, 6)), "sequence: got 6 positions, expected at most 5"),
    ],
)
def test_wrong_use_says_so(call, message):
    with pytest.raises(UserError, match=message):
        call()
