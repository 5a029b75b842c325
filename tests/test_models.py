"""The contract: what holds for every model of the table."""

import pytest
import torch
from test_estimators import constant_noise
from tiny import PENDING, tiny_models

from mmgen.data.batch import Batch
from mmgen.errors import UserError
from mmgen.models.base import MODELS, load, model_class

TINY = tiny_models()


@pytest.fixture(params=TINY)
def tiny(request):
    torch.manual_seed(0)
    return TINY[request.param]


def outcome(model, batch: Batch) -> dict[str, float] | str:
    """The losses, or the message of the error that the batch gives."""
    try:
        return {name: value.item() for name, value in model.losses(batch).items()}
    except UserError as error:
        return str(error)


@pytest.mark.parametrize("name", MODELS)
def test_every_model_of_the_table_has_a_tiny_one(name):
    if name in PENDING and name not in TINY:
        pytest.xfail(f"tests/tiny.py holds no {name!r} yet")
    assert name not in PENDING, f"take {name!r} out of PENDING in tests/tiny.py"
    assert name in TINY, f"add {name!r} to tests/tiny.py"
    assert model_class(name).name == name


def test_every_trainable_parameter_gets_a_gradient(tiny):
    model = tiny.model().train()
    model.losses(tiny.batch(6)).total.backward()
    assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []
    assert [name for name, p in model.named_parameters() if p.requires_grad and not p.grad.isfinite().all()] == []


def test_saved_and_loaded_is_bitwise_equal(tiny, tmp_path):
    model, batch = tiny.model().eval(), tiny.batch(4)
    model.save_pretrained(tmp_path / "model")
    again = load(tmp_path / "model")
    state = again.own_state()
    assert state.keys() == model.own_state().keys()
    assert all(torch.equal(value, state[name]) for name, value in model.own_state().items())
    torch.manual_seed(1)
    expected = outcome(model, batch)
    torch.manual_seed(1)
    assert outcome(again, batch) == expected


def test_a_batch_of_one(tiny):
    model = tiny.model().train()
    assert model.losses(tiny.batch(1)).total.isfinite()


def test_a_repeated_batch_has_the_same_loss(tiny, monkeypatch):
    """With the same noise for all items."""
    constant_noise(monkeypatch)
    model, batch = tiny.model().double().eval(), tiny.batch(3)
    batch = Batch({k: v.double() if v.is_floating_point() else v for k, v in batch.values.items()}, batch.masks, batch.present)
    torch.manual_seed(0)
    once = model.losses(batch).total
    torch.manual_seed(0)
    torch.testing.assert_close(model.losses(batch.items(torch.arange(3).repeat(2))).total, once)


def test_bfloat16_is_finite(tiny):
    model = tiny.model().train()
    with torch.autocast("cpu", torch.bfloat16):
        loss = model.losses(tiny.batch(4)).total
    loss.backward()
    assert loss.isfinite() and all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)


def test_missing_by_key_or_by_mask_is_the_same(tiny):
    model, batch = tiny.model().eval(), tiny.batch(4)
    nobody = {**batch.present, tiny.optional: torch.zeros(4, dtype=torch.bool)}
    assert outcome(model, batch.without(tiny.optional)) == outcome(model, Batch(batch.values, batch.masks, nobody))


@pytest.mark.parametrize("absent", ["key", "mask"])
def test_a_batch_in_which_nobody_has_anything_has_no_loss(tiny, absent):
    model, batch = tiny.model().train(), tiny.batch(4)
    nobody = dict.fromkeys(batch.values, torch.zeros(4, dtype=torch.bool))
    for phase in model.phases:
        losses = model.losses(Batch.nothing(4) if absent == "key" else Batch(batch.values, batch.masks, nobody), phase)
        assert losses and all(term == 0 for term in losses.values())
        losses.total.backward()
    assert all((p.grad == 0).all() for p in model.parameters() if p.requires_grad)


def test_a_missing_modality_is_not_read(tiny):
    model, batch = tiny.model().train(), tiny.batch(4)
    present = {**batch.present, tiny.optional: torch.tensor([False, True, True, True])}
    torch.manual_seed(0)
    x = batch[tiny.optional].clone()
    x.requires_grad_(x.is_floating_point())  # token ids have no gradient
    loss = model.losses(Batch({**batch.values, tiny.optional: x}, batch.masks, present)).total
    loss.backward()
    assert not x.requires_grad or ((x.grad[0] == 0).all() and (x.grad[1:] != 0).any())
    other = x.detach().clone()
    other[0] = 1e3
    torch.manual_seed(0)
    assert model.losses(Batch({**batch.values, tiny.optional: other}, batch.masks, present)).total.item() == loss.item()


def test_a_generator_makes_generation_reproducible(tiny):
    model, batch = tiny.model().eval(), tiny.batch(4)
    if tiny.to is None:
        with pytest.raises(UserError, match=f"{model.name} does not define generate"):
            model.generate(batch, to=tiny.optional)
        return
    given = batch.without(tiny.to) if tiny.to in batch else batch
    drawn = [model.generate(given, to=tiny.to, n=3, generator=torch.Generator().manual_seed(7)) for _ in range(2)]
    assert torch.equal(*drawn) if isinstance(drawn[0], torch.Tensor) else drawn[0] == drawn[1]
