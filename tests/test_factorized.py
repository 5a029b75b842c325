"""MFM: the prior's term by hand, who gets which gradient, factors swapped, and surrogates where modalities are missing."""

import math

import pytest
import torch
from torch import nn

from mmgen.data.batch import Batch
from mmgen.data.vector import VectorProcessor
from mmgen.errors import UserError
from mmgen.inference.generate import generate
from mmgen.latents.divergences import dependence
from mmgen.latents.fusion import known
from mmgen.latents.fusion import lacking as lacking_modality
from mmgen.modalities.layers.memory_fusion import MemoryFusion
from mmgen.models.factorized import Factorized

NAMES = ("a", "b", "c")
SIZES = (3, 5, 4)


def vectors(names=NAMES, **settings) -> Factorized:
    """A model of vectors in float64."""
    torch.manual_seed(0)
    encoder, decoder = {"dim": 6, "hidden": [8]}, {"hidden": [8], "scale": 1.0}
    sizes = dict(zip(NAMES, SIZES))
    values = {"kind": "vector", "encoder": encoder, "decoder": decoder, "code": 3, "factor": 3, "weight": 0.5}
    modalities = {name: {**values, "shape": [sizes[name]]} for name in names}
    return Factorized(modalities, **{"classes": 3, "code": 4, "factor": 4, "hidden": 8, **settings}).double()


def sequences(**settings) -> Factorized:
    """A model of two aligned sequences, a label a position, in float64."""
    torch.manual_seed(0)
    values = {"kind": "sequence", "encoder": {"dim": 6}, "decoder": {"scale": 1.0}, "code": 3, "factor": 3, "weight": 0.5}
    modalities = {"a": {**values, "shape": [3]}, "b": {**values, "shape": [5]}}
    return Factorized(modalities, **{"per_position": True, "code": 4, "factor": 4, "hidden": 8, **settings}).double()


def batch_of(n: int = 6, names=NAMES) -> Batch:
    generator = torch.Generator().manual_seed(1)
    sizes = dict(zip(NAMES, SIZES))
    values = {name: torch.randn(n, sizes[name], generator=generator).double() for name in names}
    return Batch({**values, "label": torch.arange(n) % 3})


def videos() -> Batch:
    generator = torch.Generator().manual_seed(1)
    mask = torch.tensor([[True, True, True, True], [True, True, False, False]])
    values = {"a": torch.randn(2, 4, 3, generator=generator).double(), "b": torch.randn(2, 4, 5, generator=generator).double()}
    label = torch.tensor([[0, 1, 1, 0], [1, 0, 0, 0]])
    return Batch({**values, "label": label}, {"a": mask, "b": mask, "label": mask})


def lacking(batch: Batch, name: str, *items: int) -> Batch:
    """The batch without modality ``name`` of ``items``."""
    there = batch.present[name].clone()
    there[list(items)] = False
    return Batch(batch.values, batch.masks, {**batch.present, name: there})


def reached(model: Factorized, loss: torch.Tensor) -> set[str]:
    """The parts of the model that ``loss`` has a gradient in."""
    model.zero_grad()
    loss.backward(retain_graph=True)
    return {n.partition(".")[0] for n, p in model.named_parameters() if p.grad is not None and (p.grad != 0).any()}


def test_the_prior_s_term_by_hand():
    model, batch = vectors(mmd_weight=2.0, bandwidth=1.5), batch_of()
    codes = model.codes(model.read(batch))
    assert list(codes) == ["label", *NAMES]
    torch.manual_seed(3)
    found = model.losses(batch)["prior"]
    torch.manual_seed(3)
    total = 0.0
    for z in codes.values():
        prior = torch.randn_like(z)
        for x, y, sign in ((z, z, 1), (prior, prior, 1), (z, prior, -2)):
            pairs = [math.exp(-(u - v).square().sum().item() / (2 * 1.5**2)) for u in x for v in y]
            total += 2.0 * sign * sum(pairs) / len(pairs)
    assert found.item() == pytest.approx(total, rel=1e-4)


@pytest.mark.parametrize("classes", [3, None])
def test_the_label_is_kept_out_of_the_private_codes(classes):
    model = vectors(independence_weight=2.0, classes=classes)
    batch = batch_of()
    labels = batch["label"] if classes else batch["label"].double() / 7
    present = {**batch.present, "a": torch.arange(6) != 4, "label": torch.arange(6) != 0}
    batch = Batch({**batch.values, "label": labels}, present=present)
    codes = model.codes(model.read(batch))
    y = nn.functional.one_hot(labels, 3).double() if classes else labels[:, None]
    rows = {"a": [1, 2, 3, 5], "b": [1, 2, 3, 4, 5], "c": [1, 2, 3, 4, 5]}  # who has both
    expected = 2 * sum(dependence(codes[name][own], y[own]) for name, own in rows.items())
    loss = model.losses(batch)["independence"]
    torch.testing.assert_close(loss, expected, atol=1e-6, rtol=0)
    assert reached(model, loss) == {"private_encoders", "private_codes"}
    assert "independence" not in vectors(classes=classes).losses(batch)
    assert model.losses(batch.items([0, 1]))["independence"] == 0  # one item alone with a label


def test_the_label_s_gradient_goes_through_its_factor_alone():
    model, batch = vectors(), batch_of()
    losses = model.losses(batch)
    own = {"label_encoders", "label_code", "label_factor", "label_head"}
    assert reached(model, losses["label"]) == own
    assert reached(model, losses["surrogate_label"]) == own - {"label_code"} | {"label_surrogate"}
    assert {"private_encoders", "private_factors", "decoders"} <= reached(model, losses["reconstruction_a"])

    x = batch["a"].clone().requires_grad_()
    factors = model.encode(Batch({**batch.values, "a": x})).mean
    cut = factors["label"].detach().requires_grad_()
    (by_factor,) = torch.autograd.grad(model.decode({"label": cut}, "label").log_prob(batch["label"]).sum(), cut)
    (chained,) = torch.autograd.grad(factors["label"], x, by_factor, retain_graph=True)
    (whole,) = torch.autograd.grad(model.decode(factors, "label").log_prob(batch["label"]).sum(), x)
    torch.testing.assert_close(whole, chained)


def test_codes_of_everything_are_targets_without_gradient():
    model, batch = vectors(), batch_of()
    assert reached(model, model.losses(batch)["surrogate_codes"]) == {
        "label_encoders",
        "private_encoders",
        "label_surrogate",
        "private_surrogates",
    }


def test_swapped_factors():
    model, batch = vectors().eval(), batch_of()
    own = model.encode(batch).mean
    other_private = {name: f if name == "label" else f.roll(-1, 0) for name, f in own.items()}
    assert torch.equal(model.decode(own, "label").probs, model.decode(other_private, "label").probs)
    assert not torch.equal(model.decode(own, "b").mean, model.decode(other_private, "b").mean)
    assert torch.equal(model.generate(batch, "b", swap="private"), model.decode(other_private, "b").mean)
    other_label = own | {"label": own["label"].roll(-1, 0)}
    assert torch.equal(model.generate(batch, "b", swap="label"), model.decode(other_label, "b").mean)
    drawn = model.generate(batch, "b", n=3, private="prior", generator=torch.Generator().manual_seed(0))
    assert drawn.shape == (18, 5) and not torch.equal(drawn[0], drawn[1])
    assert torch.equal(model.generate(batch, "b", n=3)[::3], model.decode(own, "b").mean)


def test_surrogates_are_exact_where_modalities_determine_each_other():
    model = vectors(("a", "b"), mmd_weight=0.0)
    model.label_encoders = model.private_encoders = nn.ModuleDict({name: nn.Identity() for name in ("a", "b")})
    model.sizes = {"a": 3, "b": 5}
    model.label_code = nn.Linear(8, 4).double()
    model.private_codes = nn.ModuleDict({"a": nn.Linear(3, 3), "b": nn.Linear(5, 3)}).double()
    model.label_surrogate = nn.Linear(10, 4).double()  # 3 + 5 numbers, and which of the two are there
    model.private_surrogates = nn.ModuleDict({name: nn.Linear(10, 3) for name in ("a", "b")}).double()
    batch = batch_of(40, ("a",))
    to_b = torch.randn(3, 5, generator=torch.Generator().manual_seed(2)).double()
    batch = Batch({**batch.values, "b": batch["a"] @ to_b})  # of rank 3: each modality determines the other
    seen = model.read(batch)
    codes, both = model.codes(seen), seen.all

    def solve(layer: nn.Linear, inputs: list[torch.Tensor], code: torch.Tensor) -> None:
        """Least squares over the patterns; that a modality is there is 1 in the inputs, so no bias is needed."""
        found = torch.linalg.pinv(torch.cat(inputs)) @ code.repeat(len(inputs), 1)
        layer.weight.data, layer.bias.data = found.T.contiguous(), torch.zeros_like(layer.bias)

    with torch.no_grad():
        alone = [lacking_modality(both, i) for i in (1, 0)]  # a alone, b alone
        solve(model.label_surrogate, [known(seen.label, one) for one in alone], codes["label"])
        solve(model.private_surrogates["a"], [known(seen.private, alone[1])], codes["a"])
        solve(model.private_surrogates["b"], [known(seen.private, alone[0])], codes["b"])
    assert model.losses(batch)["surrogate_codes"].item() < 1e-18
    whole = model.encode(batch).mean
    for missing in ("a", "b"):
        inferred = model.encode(batch.without(missing)).mean
        torch.testing.assert_close(inferred["label"], whole["label"], atol=1e-8, rtol=0)
        torch.testing.assert_close(inferred[missing], whole[missing], atol=1e-8, rtol=0)


@pytest.mark.parametrize("missing", NAMES)
def test_reconstruction_with_a_modality_absent_is_that_modality_s(missing):
    """The reference reads the reconstruction that lacks another modality than the one that is judged."""
    model, batch = vectors(surrogate_weight=2.0).eval(), batch_of()
    term = model.losses(batch)[f"surrogate_reconstruction_{missing}"]
    by_absent = {
        absent: -model.decode(model.encode(batch.without(absent)).mean, missing).log_prob(batch[missing]).mean()
        for absent in NAMES
    }
    torch.testing.assert_close(term, 2.0 * 0.5 * by_absent[missing])
    for other in set(NAMES) - {missing}:
        assert not torch.isclose(term, 2.0 * 0.5 * by_absent[other])


def test_surrogates_are_trained_for_every_pattern():
    model, batch = vectors().eval(), batch_of()
    patterns = ["a", "b", "c", "ab", "ac", "bc"]
    expected = [-model.predict(batch.keep(list(kept))).log_prob(batch["label"]).mean() for kept in patterns]
    losses, whole = model.losses(batch), model.codes(model.read(batch))
    torch.testing.assert_close(losses["surrogate_label"], torch.stack(expected).mean())
    misses = []
    for kept in patterns:
        codes = model.codes(model.read(batch.keep(list(kept))))
        misses.append(sum((codes[k] - whole[k]).square().sum(-1) for k in whole if k == "label" or k not in kept).mean())
    torch.testing.assert_close(losses["surrogate_codes"], torch.stack(misses).mean())


@pytest.mark.parametrize("make", [lambda: (vectors(), batch_of()), lambda: (sequences(), videos())])
def test_missing_by_key_or_by_mask(make):
    model, batch = make()
    model.eval()
    nobody = lacking(batch, "b", *range(batch.size))
    torch.manual_seed(0)
    by_key = model.losses(batch.without("b"))
    torch.manual_seed(0)
    by_mask = model.losses(nobody)
    assert {k: v.item() for k, v in by_key.items()} == {k: v.item() for k, v in by_mask.items()}
    assert torch.equal(model.predict(batch.without("b")).logits, model.predict(nobody).logits)


@pytest.mark.parametrize("make", [lambda: (vectors(), batch_of()), lambda: (sequences(), videos())])
def test_a_missing_modality_has_no_gradient_whatever_it_holds(make):
    model, batch = make()
    x = batch["b"].clone()
    x[0] = math.nan
    x.requires_grad_()
    losses = model.losses(lacking(Batch({**batch.values, "b": x}, batch.masks), "b", 0))
    losses.total.backward()
    assert (x.grad[0] == 0).all() and (x.grad[1] != 0).any()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_an_item_does_not_see_what_others_lack():
    model, batch = vectors().eval(), batch_of()
    torch.testing.assert_close(model.predict(lacking(batch, "b", 0)).logits[1:], model.predict(batch).logits[1:])
    torch.testing.assert_close(model.predict(lacking(batch, "b", 0)).logits[0], model.predict(batch.without("b")).logits[0])


def test_a_label_a_position():
    model, batch = sequences().eval(), videos()
    losses, real = model.losses(batch), batch.masks["label"]
    log_prob = model.predict(batch).log_prob(batch["label"])  # (2, 4)
    assert losses["label"].item() == pytest.approx(-log_prob[real].mean().item())
    decoded = model.decode(model.encode(batch).mean, "b").log_prob(batch["b"])
    assert losses["reconstruction_b"].item() == pytest.approx(-0.5 * decoded[real].mean().item())
    one = batch.items(slice(1, 2))  # a video alone, its padding filled with what must not be read
    one = Batch({**one.values, "a": one["a"].masked_fill(~one.masks["a"][..., None], math.nan)}, one.masks)
    torch.testing.assert_close(model.predict(one).logits[0, :2], model.predict(batch).logits[1, :2])


def test_items_without_a_label_count_elsewhere():
    model, batch = vectors().eval(), batch_of()
    some = model.losses(lacking(batch, "label", 0, 1, 2))
    assert some["label"].item() == pytest.approx(model.losses(batch.items(slice(3, 6)))["label"].item())
    assert some["reconstruction_a"].item() == pytest.approx(model.losses(batch)["reconstruction_a"].item())
    assert "label" not in model.losses(batch.without("label"))


def test_a_number_as_label_has_the_l1_loss():
    model = vectors(classes=None).eval()
    batch = Batch({**batch_of().values, "label": torch.linspace(-3, 3, 6).double()})
    predicted = model.predict(batch).mean
    expected = (predicted - batch["label"]).abs().mean().item() + math.log(2)
    assert model.losses(batch)["label"].item() == pytest.approx(expected)


def test_what_is_read_is_what_is_reconstructed_noise_and_all():
    """x becomes (x + s e) / sqrt(1 + s^2) in training, x / sqrt(1 + s^2) afterwards; what is generated has the units of x."""
    torch.manual_seed(0)
    plain = {"kind": "vector", "shape": [3], "decoder": {"scale": 1.0}}
    model = Factorized({"a": {**plain, "noise": 2.0}, "b": {"kind": "vector", "shape": [5]}}, mmd_weight=0.0)
    seen = []
    model.label_encoders["a"].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    batch = Batch({"a": torch.full((20000, 3), 5.0), "label": torch.zeros(20000, dtype=torch.int64)})
    losses = model.losses(batch)
    assert seen[0].mean().item() == pytest.approx(5 / 5**0.5, abs=0.02)
    assert seen[0].std().item() == pytest.approx(2 / 5**0.5, abs=0.02)
    assert losses["reconstruction_a"].item() == pytest.approx(expected_reconstruction(model, seen[0]), rel=1e-4)
    model.eval()
    seen.clear()
    assert model.losses(batch)["reconstruction_a"].item() == pytest.approx(expected_reconstruction(model, seen[0]), rel=1e-4)
    torch.testing.assert_close(seen[0], batch["a"] / 5**0.5)
    made, read = model.generate(batch, "a"), model.decode(model.encode(batch).mean, "a").mean
    torch.testing.assert_close(made, read * 5**0.5)


def expected_reconstruction(model, read):
    """-w log N(read; mean, 1), averaged, the mean decoded from the factors of what was read."""
    label = torch.cat([model.label_encoders["a"](read), read.new_zeros(len(read), model.sizes["b"])], -1)
    label = model.label_surrogate(torch.cat([label, torch.tensor([1.0, 0.0]).expand(len(read), 2)], -1))
    private = model.private_codes["a"](model.private_encoders["a"](read))
    factors = {"label": model.label_factor(label), "a": model.private_factors["a"](private)}
    mean = model.decode(factors, "a").mean
    log_prob = -0.5 * (read - mean).square().sum(-1) - 1.5 * math.log(2 * math.pi)
    return -model.modalities["a"].weight * log_prob.mean().item()


def test_ablations():
    generative = vectors(without="generative")
    assert not generative.decoders and not generative.private
    assert set(generative.losses(batch_of())) == {"label", "prior", "surrogate_codes", "surrogate_label"}
    with pytest.raises(UserError, match="to: got b, expected a known name"):
        generative.generate(batch_of(), "b")
    one = vectors(without="factorization")
    factors = one.encode(batch_of()).mean
    assert {name: factor.shape for name, factor in factors.items()} == {"label": (6, 4 + 3 * 3)}
    assert one.generate(batch_of().keep(["a"]), "b").shape == (6, 5)
    assert "private_encoders" not in reached(one, one.losses(batch_of()).total)


def test_memory_by_hand_and_gaps_hand_it_on():
    torch.manual_seed(0)
    fusion = MemoryFusion([2, 3], memory=4, hidden=5).double()
    steps = [torch.randn(1, 3, size).double() for size in (2, 3)]
    memory, before = torch.zeros(4).double(), torch.zeros(5).double()
    for t in range(3):
        now = torch.cat([x[0, t] for x in steps])
        window = torch.cat([before, now])
        attended = window * torch.exp(fusion.attention(window)) / torch.exp(fusion.attention(window)).sum()
        keep, write = (1 / (1 + torch.exp(-gate(torch.cat([attended, memory])))) for gate in fusion.gates)
        memory, before = keep * memory + write * torch.tanh(fusion.candidate(attended)), now
    real = torch.ones(1, 3, dtype=torch.bool)
    torch.testing.assert_close(fusion(steps, real)[0, -1], memory)
    gaps = torch.tensor([[True, False, True, True, False]])
    spread = [torch.full((1, 5, x.shape[-1]), 9.0).double().masked_scatter(gaps[..., None], x) for x in steps]
    torch.testing.assert_close(fusion(spread, gaps)[0, -1], memory)


@pytest.mark.parametrize("per_position", [False, True])
def test_memory_fusion_in_the_model(per_position):
    model, batch = sequences(fusion="memory"), videos()
    if not per_position:
        batch = Batch({**batch.values, "label": torch.tensor([0, 1])}, {n: batch.masks[n] for n in ("a", "b")})
        values = {"kind": "sequence", "encoder": {"dim": 6}, "decoder": {"length": 4, "scale": 1.0}}
        modalities = {"a": {**values, "shape": [3]}, "b": {**values, "shape": [5]}}
        model = Factorized(modalities, fusion="memory", hidden=8).double()
    assert "fusion" in reached(model, model.losses(batch)["label"])
    assert model.generate(batch.keep(["a"]), "b").shape == (2, 4, 5)


def test_pictures_sounds_and_texts():
    torch.manual_seed(0)
    model = Factorized(
        {
            "image": {"kind": "image", "shape": [1, 8, 8], "encoder": {"dim": 8, "width": 4}, "decoder": {"width": 4}},
            "audio": {"kind": "audio", "shape": [8, 6], "encoder": {"dim": 6, "width": 4}, "decoder": {"width": 4}},
            "text": {
                "kind": "text",
                "shape": [9],
                "encoder": {"dim": 8, "depth": 1, "heads": 2},
                "decoder": {"length": 4, "stop": 2, "dim": 8, "depth": 1, "heads": 2},
            },
        },
        hidden=8,
    )
    mask = torch.tensor([[True, True, True], [True, True, False]])
    values = {"image": torch.rand(2, 1, 8, 8), "audio": torch.rand(2, 8, 6), "text": torch.tensor([[5, 6, 2], [7, 2, 0]])}
    batch = Batch({**values, "label": torch.tensor([0, 1])}, {"text": mask})
    model.losses(batch).total.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    one = batch.keep(["image"])
    assert model.generate(one, "audio").shape == (2, 8, 6) and model.generate(one, "image", n=2).shape == (4, 1, 8, 8)
    drawn = [model.generate(one, "text", generator=torch.Generator().manual_seed(0)) for _ in range(2)]
    assert drawn[0].shape == (2, 4) and torch.equal(*drawn)


def changed(**values: torch.Tensor) -> Batch:
    return Batch({**batch_of().values, **values})


def not_finite() -> Batch:
    x = batch_of()["b"]
    x[4, 1] = math.nan
    return changed(b=x)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (lambda: lacking(lacking(batch_of(2, "ab"), "a", 1), "b", 1), "modalities: got none for item 1"),
        (not_finite, "b of item 4: got (nan|inf|-inf), expected finite"),
        (lambda: changed(label=torch.tensor([0, 1, 2, 3, 0, 1])), "label: got 3, expected 0 to 2"),
        (lambda: changed(label=torch.tensor([0, 1, 2, -1, 0, 1])), "label: got -1, expected 0 to 2"),
        (lambda: changed(label=torch.tensor([0, 0.5, 1, 2, 0, 1])), r"label: got torch.float32, expected torch.int64"),
        (lambda: changed(a=torch.zeros(6, 4).double()), r"a: got shape \(4,\), expected \(3,\)"),
        (lambda: changed(d=torch.zeros(6, 2)), "modality: got d, expected a known name"),
        (lambda: changed(label=torch.zeros(6, 2, dtype=torch.long)), r"label: got \(6, 2\), expected \(6,\)"),
    ],
)
def test_batches_that_cannot_be_used(batch, message):
    with pytest.raises(UserError, match=message):
        vectors().losses(batch())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"classes": 1}, "classes: got 1"),
        ({"fusion": "sum"}, "fusion: got sum"),
        ({"fusion": "memory"}, r"fusion of kinds: got \['vector'\], expected sequences only"),
        ({"per_position": True}, r"per_position of kinds: got \['vector'\]"),
        ({"without": "generativ"}, "without: got generativ, expected a known name; did you mean 'generative'"),
        ({"independence_weight": -1}, "independence_weight: got -1"),
        ({"mmd_weight": -1}, "mmd_weight: got -1"),
        ({"surrogate_weight": -1}, "surrogate_weight: got -1"),
        ({"code": 0}, "code: got 0"),
        ({"dropout": 1.0}, "dropout: got 1.0, expected 0 or more and below 1"),
        ({"class_names": ["x"]}, r"class_names: got \['x'\], expected 3 names"),
    ],
)
def test_settings_that_cannot_be_used(settings, message):
    with pytest.raises(UserError, match=message):
        vectors(**settings)


@pytest.mark.parametrize(
    ("modality", "message"),
    [
        ({"a": {"kind": "vektor", "shape": [3]}}, "modalities.a.kind: got vektor"),
        ({"a": {"kind": "vector"}}, r"modalities.a: got \['kind'\], expected kind and shape"),
        ({"a": {"kind": "vector", "shape": [3], "wieght": 1.0}}, "modalities.a.wieght: got wieght"),
        ({"a": {"kind": "vector", "shape": [3], "decoder": {"hiden": [8]}}}, "modalities.a.decoder.hiden: got hiden"),
        ({"a": {"kind": "sequence", "shape": [3], "encoder": {"dimm": 8}}}, "modalities.a.encoder.dimm: got dimm"),
        ({"a": {"kind": "sequence", "shape": [3]}}, r"modalities.a.decoder: got \[\], expected its length"),
        ({"a": {"kind": "vector", "shape": [3], "weight": -1.0}}, "modalities.a.weight: got -1.0"),
        ({"keys": {"kind": "vector", "shape": [3]}}, "name of a modality: got keys, expected letters, digits and _"),
        ({"a.b": {"kind": "vector", "shape": [3]}}, "name of a modality: got a.b"),
        ({"a": {"kind": "vector", "shape": [3], "noise": -1.0}}, "modalities.a.noise: got -1.0"),
        ({"a": {"kind": "text", "shape": [300], "noise": 1.0}}, "modalities.a.noise: got 1.0, expected 0 for a text"),
        (
            {"a": {"kind": "image", "shape": [1, 8, 8], "noise": 1.0, "decoder": {"likelihood": "bernoulli"}}},
            "modalities.a.noise: got 1.0, expected 0 for bernoulli",
        ),
        ({"label": {"kind": "vector", "shape": [3]}}, "modality: got label, expected another name"),
        ({}, "modalities: got 0"),
    ],
)
def test_modalities_that_cannot_be_used(modality, message):
    with pytest.raises(UserError, match=message):
        Factorized(modality)


def test_sequences_that_are_not_aligned():
    batch = videos()
    short = Batch({**batch.values, "b": batch["b"][:, :3]}, {**batch.masks, "b": batch.masks["b"][:, :3]})
    with pytest.raises(UserError, match=r"sequences: got .*'b': \(2, 3\).*expected one length for all"):
        sequences().losses(short)
    with pytest.raises(UserError, match=r"sequences: got \[\(1, 3\), \(1, 2\)\]"):
        MemoryFusion([1, 1], 2)([torch.zeros(1, 3, 1), torch.zeros(1, 2, 1)], torch.ones(1, 3, dtype=torch.bool))


def test_generation_options_that_are_unknown():
    for options, message in (
        ({"to": "d"}, "to: got d"),
        ({"to": "a", "swap": "both"}, "swap: got both"),
        ({"to": "a", "private": "zero"}, "private: got zero"),
        ({"to": "a", "n": 0}, "n: got 0"),
    ):
        with pytest.raises(UserError, match=message):
            vectors().generate(batch_of(), **options)
    with pytest.raises(UserError, match="swap=label: got one item, expected two or more"):
        vectors().generate(batch_of(1), to="a", swap="label")
    for options in ({"swap": "private"}, {"private": "prior"}):
        with pytest.raises(UserError, match="private factors: got none in this model"):
            vectors(without="factorization").generate(batch_of(), to="a", **options)


def test_a_swap_reaches_the_last_item_of_many():
    model, x = vectors(names="ab").float(), torch.randn(20, 3)  # more than the command reads at once
    model.processors |= {name: VectorProcessor([0.0] * size, [1.0] * size) for name, size in zip("ab", SIZES)}
    whole = model.generate(Batch({"a": x}), "a", swap="private")
    made = generate(model, {"a": x.tolist()}, "a", swap="private")
    assert made == [[model.processors["a"].decode(one)] for one in whole]


def test_a_text_without_a_mask_ends_at_its_stop():
    text = {
        "kind": "text",
        "shape": [12],
        "encoder": {"dim": 8, "depth": 1},
        "decoder": {"dim": 8, "depth": 1, "length": 4, "stop": 2},
    }
    model = Factorized({"text": text}).eval()
    ids = torch.tensor([[5, 2, 0, 0], [5, 2, 7, 9]])
    mask = torch.tensor([[True, True, False, False]] * 2)
    torch.testing.assert_close(
        model.predict(Batch({"text": ids})).probs[:1].expand(2, 2), model.predict(Batch({"text": ids})).probs
    )
    torch.testing.assert_close(
        model.predict(Batch({"text": ids})).probs, model.predict(Batch({"text": ids}, {"text": mask})).probs
    )
    with pytest.raises(UserError, match="text of item 0: got 50, expected token ids from 0 to 11"):
        model.predict(Batch({"text": torch.tensor([[50, 2]])}))
