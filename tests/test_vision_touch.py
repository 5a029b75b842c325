"""Vision and touch: the fusion in closed form, each term of the loss, causal convolutions, and senses that are missing."""

import math

import pytest
import torch
from tiny import moments
from torch import nn

from mmgen.data.batch import Batch
from mmgen.errors import UserError
from mmgen.latents.divergences import kl
from mmgen.modalities.flow import Flow, FlowDecoder
from mmgen.modalities.image import PyramidEncoder
from mmgen.modalities.touch import ForceEncoder, StateEncoder
from mmgen.models.vision_touch import SENSES, TOUCH, VISION, WEIGHTS, VisionTouch, end_point_error

SMALL = {"size": 8, "latent_dim": 3, "readings": 4}


@pytest.fixture(params=[True, False], ids=["variational", "deterministic"])
def model(request):
    torch.manual_seed(0)
    return VisionTouch(**SMALL, variational=request.param, drop=0.0)


def test_the_posterior_is_the_product_of_the_senses_and_the_prior():
    torch.manual_seed(0)
    model, batch = VisionTouch(**SMALL).eval(), moments(5)
    batch = Batch(batch.values, present={"depth": torch.tensor([True, False, True, False, True])})
    precision, weighted = torch.ones(5, 3), torch.zeros(5, 3)
    for sense in SENSES:
        alone = model.heads[sense](model.encoders[sense](batch[sense]))  # the depth is between its bounds
        there = batch.present[sense][:, None]
        precision = precision + there / alone.variance
        weighted = weighted + there * alone.mean / alone.variance
    q = model.encode(batch)
    torch.testing.assert_close(q.mean, weighted / precision)
    torch.testing.assert_close(q.variance, 1 / precision)


def test_nothing_sensed_gives_the_prior():
    model, batch = VisionTouch(**SMALL).eval(), moments(2)
    gone = Batch(batch.values, present={sense: torch.zeros(2, dtype=torch.bool) for sense in SENSES})
    q = model.encode(gone)
    assert (q.mean == 0).all() and (q.stddev == 1).all()


def test_without_variation_the_code_is_a_point():
    model, batch = VisionTouch(**SMALL, variational=False).eval(), moments(2)
    q = model.encode(batch)
    assert (q.base_dist.scale == 0).all() and "kl" not in model.losses(batch)


def test_terms_are_what_they_say():
    torch.manual_seed(0)
    model, batch = VisionTouch(**SMALL, drop=0.0, weights={"kl": 2.0, "pairing": 3.0, "relief": 0.5}).eval(), moments(6)
    for head in (
        model.relief.deconvolution.convolutions[-1],
        model.contact,
        model.pairing[-1],
        model.displacement[-1],
        model.flow.mask,
        *model.flow.flows,
    ):
        nn.init.zeros_(head.weight)
        nn.init.zeros_(head.bias)
    losses = model.losses(batch)
    assert losses["contact"].item() == pytest.approx(math.log(2))
    assert losses["pairing"].item() == pytest.approx(3 * math.log(2))
    z = torch.zeros(6, 3)  # of a relief decoder that is 0
    flat = torch.distributions.Normal(0.0, 0.01).log_prob(batch["depth"] - batch["depth"].mean((2, 3), keepdim=True))
    torch.testing.assert_close(losses["relief"], -0.5 * flat.sum((1, 2, 3)).mean())
    assert (model.decode(z, "relief").mean == 0).all()
    assert losses["mask"].item() == pytest.approx(WEIGHTS["mask"] * math.log(2))
    still = -torch.distributions.Normal(0.0, 1.0).log_prob(batch["displacement"]).sum(1).mean()
    torch.testing.assert_close(losses["displacement"], still)
    sides = [int(f.shape[-1]) for f in model.predict(batch).flow.scales]
    assert sides == [2, 4]
    true = [nn.functional.adaptive_avg_pool2d(batch["flow"], side) for side in sides]
    none = 10 * torch.stack([f.square().sum(1).sqrt().mean() for f in true]).mean()
    torch.testing.assert_close(losses["flow"], none)
    torch.testing.assert_close(losses["kl"], 2 * kl(model.encode(batch), model.prior()).mean())


def test_pairs_weigh_as_much_as_both_kinds_of_no_pairs_together():
    torch.manual_seed(0)
    model, batch = VisionTouch(**SMALL, drop=0.0).eval(), moments(6)
    nn.init.zeros_(model.pairing[-1].weight)
    nn.init.constant_(model.pairing[-1].bias, 2.0)
    together, apart = (-nn.functional.logsigmoid(torch.tensor(x)).item() for x in (2.0, -2.0))
    for names in ((), ("near_force", "near_proprioception"), ("far_force", "far_proprioception")):
        assert model.losses(batch.without(*names))["pairing"].item() == pytest.approx(
            WEIGHTS["pairing"] * (together + apart) / 2
        )
    everything = ("near_force", "near_proprioception", "far_force", "far_proprioception")
    assert model.losses(batch.without(*everything))["pairing"].item() == pytest.approx(WEIGHTS["pairing"] * together / 2)


def test_touch_whose_swapped_sense_is_missing_is_no_other_touch():
    torch.manual_seed(0)
    model, batch = VisionTouch(**SMALL, drop=0.0, variational=False).eval(), moments(4)
    alone = Batch(batch.values | {"near_proprioception": batch["proprioception"]}, present=batch.present)  # force is swapped
    deaf = Batch(alone.values, present=alone.present | {"force": torch.tensor([False, False, True, True])})
    first = {name: value[:2] for name, value in deaf.values.items()}
    gone = Batch(first, present={"force": torch.zeros(2, dtype=torch.bool)})
    without_near = model.losses(gone.without("near_force", "near_proprioception"))["pairing"]
    together = -model.predict(gone).pairing.log_prob(torch.ones(2)).mean()
    near = model.losses(gone)["pairing"] / WEIGHTS["pairing"] - together / 2  # half of far's, for near adds nothing
    torch.testing.assert_close(near, (without_near / WEIGHTS["pairing"] - together / 2) / 2)
    heard = Batch({name: value[2:] for name, value in alone.values.items()})
    assert model.losses(heard)["pairing"] != model.losses(heard.without("near_force", "near_proprioception"))["pairing"]


def test_flow_is_weighed_by_its_mask_and_its_error_is_a_length():
    flow = Flow([torch.ones(1, 2, 2, 2)], torch.full((1, 1, 2, 2), math.log(3.0)))
    torch.testing.assert_close(flow.finest, torch.full((1, 2, 2, 2), 0.75))
    right, true = torch.tensor([1.0, 1.0]).reshape(1, 2, 1, 1), torch.tensor([4.0, 5.0]).reshape(1, 2, 1, 1)
    assert end_point_error(right, true).item() == pytest.approx(5.0)


def test_each_scale_of_flow_is_twice_as_fine():
    encoder = PyramidEncoder(3, 64)
    maps = encoder.maps(torch.rand(2, 3, 64, 64))[::-1]
    flow = FlowDecoder(5, encoder.map_dims[::-1])(torch.randn(2, 5), maps)
    assert [f.shape[-1] for f in flow.scales] == [2, 4, 8, 16, 32] and flow.mask_logits.shape == (2, 1, 32, 32)


def test_force_features_of_a_time_do_not_know_what_comes_later():
    encoder, force = ForceEncoder(8, readings=16), torch.randn(1, 6, 16)
    changed = force.clone()
    changed[..., 8:] += 1
    for layer in encoder.convolutions:  # after each, half as many times
        force, changed = layer(force), layer(changed)
        half = force.shape[-1] // 2
        assert torch.equal(force[..., :half], changed[..., :half])
        assert not torch.equal(force[..., half:], changed[..., half:])


def test_a_sense_that_is_missing_is_not_read(model):
    batch = moments(4)
    for sense in SENSES:
        present = {sense: torch.tensor([False, True, True, True])}
        x = batch[sense].clone().requires_grad_()
        torch.manual_seed(1)
        loss = model.losses(Batch({**batch.values, sense: x}, present=present)).total
        loss.backward()
        assert (x.grad[0] == 0).all() and (x.grad[1:] != 0).any(), sense
        other = x.detach().clone()
        other[0] = torch.nan
        torch.manual_seed(1)
        assert model.losses(Batch({**batch.values, sense: other}, present=present)).total.item() == loss.item(), sense


def test_depth_out_of_bounds_is_unknown(model):
    batch = moments(3)
    far, none = batch["depth"].clone(), batch["depth"].clone()
    far[:, :, :2], none[:, :, :2] = 5.0, 0.0
    a, b = (model.eval().encode(Batch({**batch.values, "depth": x})).mean for x in (far, none))
    assert torch.equal(a, b)


def test_models_of_some_senses_have_the_heads_that_apply():
    batch = moments(3)
    touch = VisionTouch(TOUCH, **SMALL)
    assert {*touch.losses(batch)} == {"contact", "displacement", "pairing", "kl"}
    found = touch.predict(batch)
    assert found.flow is None and found.contact.probs.shape == found.pairing.probs.shape == (3,)
    vision = VisionTouch(VISION, **SMALL)
    assert {*vision.losses(batch)} == {"contact", "displacement", "flow", "mask", "relief", "kl"}
    assert vision.predict(batch).pairing is None


def test_senses_drop_out_in_training_only():
    torch.manual_seed(0)
    model, batch = VisionTouch(**SMALL, variational=False, drop=0.9), moments(16)
    assert model.train().losses(batch).total != model.losses(batch).total
    assert model.eval().losses(batch).total == model.losses(batch).total


def test_vision_and_touch_of_one_moment_are_told_from_others():
    torch.manual_seed(0)
    model = VisionTouch(["depth", "proprioception"], size=4, latent_dim=8, drop=0.0)
    optimiser = torch.optim.Adam(model.parameters(), lr=3e-3)

    def drawn(n: int) -> Batch:
        places, others = torch.rand(2, n)
        others = (places + 0.3 + 0.4 * others) % 1
        felt = {f"{of}proprioception": (4 * x - 2)[:, None].expand(-1, 8) for of, x in (("", places), ("far_", others))}
        return Batch({"depth": places[:, None, None, None].expand(-1, 1, 4, 4) + 0.1, **felt})

    for _ in range(200):
        optimiser.zero_grad()
        model.losses(drawn(64)).total.backward()
        optimiser.step()
    batch = drawn(500)
    z = model.eval().encode(batch).mean
    swapped = model.encode(Batch({"depth": batch["depth"], "proprioception": batch["far_proprioception"]})).mean
    right = (model.decode(z, "pairing").probs > 0.5).sum() + (model.decode(swapped, "pairing").probs < 0.5).sum()
    assert right.item() / 1000 > 0.9


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (lambda: VisionTouch(["sight"]), ["senses", "sight", "choose one of depth, force, image, proprioception"]),
        (lambda: VisionTouch([]), ["senses", "none", "one or more of image"]),
        (lambda: VisionTouch(size=48), ["size", "48", "power of two"]),
        (lambda: VisionTouch(size=256), ["size", "256", "from 4 to 128"]),
        (lambda: VisionTouch(drop=1.0), ["drop", "1.0", "below 1"]),
        (lambda: VisionTouch(readings=24), ["readings", "24", "power of two"]),
        (lambda: VisionTouch(weights={"flows": 1.0}), ["weights", "flows", "did you mean 'flow'?"]),
        (lambda: VisionTouch(weights={"flow": -1.0}), ["weights.flow", "-1.0", ">= 0"]),
    ],
)
def test_settings_that_cannot_be(made, words):
    with pytest.raises(UserError) as error:
        made()
    assert all(word in str(error.value) for word in words), str(error.value)


def test_values_that_cannot_be(model):
    batch = moments(2)
    force = batch["force"].clone()
    force[1, 2, 3] = torch.nan
    with pytest.raises(UserError, match="force of item 1: got nan, expected finite numbers"):
        model.losses(Batch({**batch.values, "force": force}))
    with pytest.raises(UserError, match=r"image: got shape \(3, 4, 4\), expected \(3, 8, 8\)"):
        model.encode(Batch({"image": torch.rand(2, 3, 4, 4)}))
    unsensed = Batch(batch.values, present=dict.fromkeys(SENSES, torch.zeros(2, dtype=torch.bool)))
    torch.testing.assert_close(model.encode(batch.keep(["action"])).mean, model.encode(unsensed).mean)
    with pytest.raises(UserError, match="action: got none, expected one for every item"):
        model.predict(batch.without("action"))
    with pytest.raises(UserError, match="action: got none"):
        model.decode(torch.zeros(2, 3), "contact")
    with pytest.raises(UserError, match="to: got flow, expected a known name"):
        model.decode(torch.zeros(2, 3), "flow")


def test_state_encoder_needs_no_hidden_layer():
    assert StateEncoder([8, 5])(torch.zeros(2, 8)).shape == (2, 5)
