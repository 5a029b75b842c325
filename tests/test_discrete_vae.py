"""The discrete VAE: its bound against the sum over all codes, the scale of its KL, its schedules, and wrong input."""

import itertools
import math

import pytest
import torch
from torch.distributions import Independent, Normal

from mmgen.data.batch import Batch
from mmgen.errors import UserError
from mmgen.latents.discrete import kl_to_uniform
from mmgen.models.discrete_vae import DiscreteVAE, code_use

SMALL = {"shape": (1, 4, 4), "codes": 3, "dim": 2, "width": 16, "halvings": 1, "depth": 1}


def build(quantizer, **settings):
    torch.manual_seed(0)
    return DiscreteVAE(**{**SMALL, "quantizer": quantizer, "scale": 0.5, **settings})


def marginal(model, x):
    """log p(x) by the sum over all 3^4 grids of codes."""
    grids = torch.tensor(list(itertools.product(range(3), repeat=4))).reshape(-1, 1, 2, 2)  # (81, 1, 2, 2)
    return model.decode(grids).log_prob(x).logsumexp(0) - 4 * math.log(3)


def test_the_bound_meets_the_sum_over_all_codes():
    model, x = build("gumbel").eval(), torch.rand(1, 1, 4, 4)
    torch.manual_seed(1)
    bounds = [torch.stack([model.log_likelihood(Batch({"image": x}), k) for _ in range(40)]).mean() for k in (1, 32)]
    true = marginal(model, x)[0]
    assert bounds[0] < bounds[1] <= true + 0.05
    assert bounds[1] == pytest.approx(true.item(), abs=0.1)


def test_the_bound_of_nearest_codes_is_one_term_of_that_sum():
    model, x = build("vq").eval(), torch.rand(2, 1, 4, 4)
    expected = model.decode(model.codes(x)).log_prob(x) - 4 * math.log(3)
    torch.testing.assert_close(model.log_likelihood(Batch({"image": x}), 3), expected)
    assert (expected < marginal(model, x)).all()


def test_kl_is_a_mean_over_the_batch_and_a_sum_over_cells():
    model = build("gumbel", kl=1.0, kl_steps=1).eval()
    model.step.fill_(1)
    x = torch.rand(3, 1, 4, 4)
    q = model.posterior(x).base_dist.probs  # (3, 2, 2, 3)
    by_hand = (q * (q * 3).log()).sum((1, 2, 3)).mean()
    for repeats in (1, 2):
        losses = model.losses(Batch({"image": x.repeat(repeats, 1, 1, 1)}))
        torch.testing.assert_close(losses["kl"], by_hand)
    assert kl_to_uniform(torch.zeros(5, 2, 2, 3)) == pytest.approx(0, abs=1e-6)


def test_reconstruction_is_the_likelihood_of_the_decoders_picture():
    model, x = build("vq").eval(), torch.rand(2, 1, 4, 4)
    location = model.decoder(model.quantizer.embed(model.codes(x)).movedim(-1, 1))
    expected = -Independent(Normal(location, 0.5), 3).log_prob(x).mean()
    torch.testing.assert_close(model.losses(Batch({"image": x}))["reconstruction"], expected)


def test_temperature_and_weight_follow_the_step_alone(monkeypatch):
    model, seen = build("gumbel", temperature=(1.0, 0.25), temperature_steps=10, kl=0.8, kl_steps=4), []
    import mmgen.models.discrete_vae as module

    draw = module.gumbel_softmax
    monkeypatch.setattr(module, "gumbel_softmax", lambda logits, t: seen.append(t) or draw(logits, t))
    batch, kls = Batch({"image": torch.rand(2, 1, 4, 4)}), []
    for step in (0, 2, 4, 10, 99, 2):
        model.step.fill_(step)
        kls.append(model.losses(batch)["kl"].item())
    assert seen[0] == 1.0 and seen[3] == seen[4] == 0.25 and seen[1] == seen[5]
    assert kls[0] == 0 and kls[1] == pytest.approx(kls[2] / 2) and kls[2] == pytest.approx(kls[4]) and kls[1] == kls[5]


def test_hot_draws_are_flat_and_cold_ones_are_codes():
    model, x = build("gumbel", temperature=(100.0, 1e-4), temperature_steps=1), torch.rand(2, 1, 4, 4)
    seen = []
    model.decoder.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    for step in (0, 1):
        model.step.fill_(step)
        model.losses(Batch({"image": x}))
    table = model.codebook.weight
    torch.testing.assert_close(seen[0], table.mean(0)[:, None, None].expand(2, 2, 2, 2), atol=0.1, rtol=0)
    distance = torch.cdist(seen[1].movedim(1, -1).reshape(-1, 2), table)
    assert (distance.min(1).values < 1e-3).all()


@pytest.mark.parametrize("quantizer", ["gumbel", "vq"])
def test_it_learns_to_tell_four_pictures_apart(quantizer):
    x = torch.zeros(4, 1, 4, 4)
    x[0, :, :2], x[1, :, 2:], x[2, :, :, :2], x[3, :, :, 2:] = 1, 1, 1, 1
    model = build(quantizer, codes=8, kl=0.01, temperature_steps=200).train()
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for step in range(250):
        model.step.fill_(step)
        model.losses(Batch({"image": x})).total.backward()
        optimizer.step()
        optimizer.zero_grad()
    made = model.eval().decode(model.codes(x)).mean
    assert torch.equal(made > 0.5, x > 0.5) and (made - x).abs().mean() < 0.1  # far from where rounding decides
    assert len({tuple(codes.flatten().tolist()) for codes in model.codes(x)}) == 4


def test_use_of_codes_is_logged():
    model = build("vq")
    model.losses(Batch({"image": torch.rand(5, 1, 4, 4)}))
    assert 1 / 3 <= model.monitored["codes_used"] <= 1 and 1 <= model.monitored["code_perplexity"] <= 3
    assert code_use(torch.tensor([1, 1, 1]), 4) == {"codes_used": 0.25, "code_perplexity": 1.0}


def test_generate_reconstructs_from_draws():
    model, x = build("gumbel").eval(), torch.rand(2, 1, 4, 4)
    made = model.generate(Batch({"image": x}), "image", 3, torch.Generator().manual_seed(0))
    assert made.shape == (6, 1, 4, 4)
    grids = torch.tensor(list(itertools.product(range(3), repeat=4))).reshape(-1, 2, 2)
    all_pictures = model.decode(grids).mean.flatten(1)
    assert (torch.cdist(made.flatten(1), all_pictures).min(1).values < 1e-4).all()


def test_without_a_picture_codes_are_uniform(monkeypatch):
    model, seen = build("vq").eval(), []
    decode = model.decode
    monkeypatch.setattr(model, "decode", lambda z: seen.append(z) or decode(z))
    x = torch.rand(2, 1, 4, 4)
    given = Batch({"image": x}, present={"image": torch.tensor([True, False])})
    model.generate(given, "image", 500, torch.Generator().manual_seed(0))
    own, free = seen[0].unflatten(0, (2, 500))
    assert (own == model.codes(x[:1])).all()
    torch.testing.assert_close(torch.bincount(free.flatten(), minlength=3) / 2000, torch.full((3,), 1 / 3), atol=0.04, rtol=0)


def test_encode_says_what_codes_says():
    x = torch.rand(2, 1, 4, 4)
    for quantizer in ("gumbel", "vq"):
        model = build(quantizer).eval()
        q = model.encode(Batch({"image": x}))
        assert q.batch_shape == (2,) and q.event_shape == (2, 2)
        assert torch.equal(q.base_dist.probs.argmax(-1), model.codes(x))
    assert (q.base_dist.probs.max(-1).values == 1).all()  # of the nearest code there is no doubt


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: build("vq", shape=(1, 5, 4)), "size: got 5 x 4, expected multiples of 2"),
        (lambda: build("vqq"), "quantizer: got vqq"),
        (lambda: build("vq", codes=1), "codes: got 1"),
        (lambda: build("gumbel", temperature=(1.0, 0.0)), "end: got 0.0"),
        (lambda: build("vq").decode(torch.full((1, 2, 2), 3)), "z: got code 3, expected 0 to 2"),
        (lambda: build("vq").decode(torch.zeros(1, 3, 2, dtype=torch.long)), r"z: got a grid \(3, 2\), expected \(2, 2\)"),
        (lambda: build("vq").encode(Batch({"text": torch.zeros(2)})), "image: got no item that has it .the batch holds text"),
        (lambda: build("vq").losses(Batch({"image": torch.full((1, 1, 4, 4), math.nan)})), "image of item 0: got nan"),
        (lambda: build("vq").losses(Batch({"image": torch.zeros(1, 1, 8, 8)})), r"image: got shape \(1, 8, 8\)"),
    ],
)
def test_wrong_use_says_so(call, message):
    with pytest.raises(UserError, match=message):
        call()
