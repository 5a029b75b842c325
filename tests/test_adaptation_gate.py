"""The Multimodal Adaptation Gate: its equations written out, what is missing, the length of a shift, its place in a model."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_language_model import DECODERS, SIZES
from torch import nn
from transformers import AlbertConfig, AlbertModel, BertConfig, BertModel, LlamaConfig, LlamaForCausalLM

from mmgen.conditioning.adaptation_gate import AdaptationGate
from mmgen.errors import UserError
from mmgen.storage import fingerprint

MODELS = {
    "bert": lambda: BertModel(BertConfig(vocab_size=50, **SIZES)),
    "llama": lambda: LlamaForCausalLM(LlamaConfig(vocab_size=50, **SIZES)),
    **{name: lambda build=build: build(50) for name, build in DECODERS.items()},
}
IDS = torch.tensor([[5, 6, 7, 8], [9, 8, 7, 6]])


def gate_of(width: int = 8, **settings) -> AdaptationGate:
    torch.manual_seed(0)
    return AdaptationGate(width, {"audio": 5, "vision": 3}, **settings)


def features_of(b: int = 2, t: int = 4) -> dict[str, torch.Tensor]:
    return {"audio": torch.randn(b, t, 5), "vision": torch.randn(b, t, 3)}


@pytest.fixture(params=MODELS)
def model(request):
    torch.manual_seed(0)
    return MODELS[request.param]().eval()


def read(model) -> torch.Tensor:
    output = model(input_ids=IDS)
    return output.logits if "logits" in output else output.last_hidden_state


def test_the_equations_written_out():
    gate = gate_of(beta=0.3).double().eval()
    z, x = torch.randn(2, 4, 8).double(), {name: value.double() for name, value in features_of().items()}
    h = 0
    for name in ("audio", "vision"):
        g = torch.relu(torch.cat([x[name], z], -1) @ gate.gates[name].weight.T + gate.gates[name].bias)
        h = h + g * (x[name] @ gate.projections[name].weight.T + gate.projections[name].bias)
    alpha = (z.square().sum(-1).sqrt() / (h.square().sum(-1).sqrt() + 1e-6) * 0.3).clamp(max=1)
    assert 0 < (alpha < 1).double().mean() < 1  # both sides of the minimum
    y = z + alpha[..., None] * h
    normed = (y - y.mean(-1, keepdim=True)) / (y.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(gate(z, x), normed)


@given(st.floats(0.01, 5), st.floats(0, 50), st.integers(0, 99))
def test_a_shift_is_at_most_beta_of_the_hidden_state(beta, scale, seed):
    gate = gate_of(beta=beta, dropout=0.0).double()
    gate.norm = nn.Identity()
    torch.manual_seed(seed)
    z, x = torch.randn(2, 4, 8).double(), {name: scale * value.double() for name, value in features_of().items()}
    shift = (gate(z, x) - z).norm(dim=-1)
    assert (shift <= beta * z.norm(dim=-1) * (1 + 1e-9)).all()
    gate.beta = 1e9
    whole = (gate(z, x) - z).norm(dim=-1)  # alpha = 1
    torch.testing.assert_close(shift, torch.minimum(whole, beta * z.norm(dim=-1)), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("missing", ["item", "token"])
def test_what_is_missing_adds_nothing_and_has_no_gradient(missing):
    gate, z, x = gate_of().eval(), torch.randn(2, 4, 8), features_of()
    mask = torch.tensor([True, False]) if missing == "item" else torch.tensor([[True, True, False, True], [False] * 4])
    x["vision"][~mask] = torch.nan  # of no account
    x["vision"].requires_grad_()
    mixed = gate(z, x, {"vision": mask})
    without, full = gate(z, {"audio": x["audio"]}), gate(z, x)
    assert mixed[~mask].equal(without[~mask]) and mixed[mask].equal(full[mask])
    assert not without[mask].allclose(full[mask])
    (mixed**3).sum().backward()
    assert (x["vision"].grad[~mask] == 0).all() and (x["vision"].grad[mask].abs().sum(-1) > 0).all()


def test_a_modality_that_is_missing_everywhere():
    gate, z, x = gate_of().eval(), torch.randn(2, 4, 8), features_of()
    nowhere = {name: torch.zeros(2).bool() for name in x}
    out = gate(z, x, nowhere)
    assert out.equal(gate(z, {})) and out.equal(gate.norm(z))
    (out**3).sum().backward()
    for part in (gate.gates, gate.projections):
        assert all((weight.grad == 0).all() for weight in part.parameters())


def test_gradients_are_right_where_the_shift_is_bounded_and_where_not():
    gate = gate_of(beta=0.3).double().eval()
    z, x = (
        torch.randn(1, 3, 8).double().requires_grad_(),
        {k: v.double().requires_grad_() for k, v in features_of(1, 3).items()},
    )
    assert torch.autograd.gradcheck(lambda z, a, v: gate(z, {"audio": a, "vision": v}), (z, x["audio"], x["vision"]))


def test_dropout_is_of_the_output_and_of_training_alone():
    gate, z, x = gate_of(dropout=0.5), torch.randn(2, 4, 8), features_of()
    dropped = gate(z, x)
    kept = dropped != 0
    assert 0.2 < kept.float().mean() < 0.8
    torch.testing.assert_close(dropped[kept], 2 * gate.eval()(z, x)[kept])


def test_inside_after_the_embeddings_is_reading_gated_embeddings():
    torch.manual_seed(0)
    model, gate, x = MODELS["llama"]().eval(), gate_of(32).eval(), features_of()
    with gate.inside(model, x):
        logits = read(model)
    embeddings = gate(model.get_input_embeddings()(IDS), x)
    torch.testing.assert_close(logits, model(inputs_embeds=embeddings).logits)


def test_inside_bert_after_the_embeddings():
    torch.manual_seed(0)
    model, gate, x = MODELS["bert"]().eval(), gate_of(32).eval(), features_of()
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]])
    with gate.inside(model, x):
        states = model(input_ids=IDS, attention_mask=mask).last_hidden_state
    model.embeddings.register_forward_hook(lambda module, args, output: gate(output, x))
    torch.testing.assert_close(states, model(input_ids=IDS, attention_mask=mask).last_hidden_state)


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_inside_a_model(model, layer):
    before, plain = fingerprint(model), read(model)
    gate, x = gate_of(32).eval(), {name: value.requires_grad_() for name, value in features_of().items()}
    with gate.inside(model, x, layer=layer):
        gated = read(model)
        assert gate not in model.modules()
    assert read(model).equal(plain) and fingerprint(model) == before  # as if it had never been there
    (gated**3).sum().backward()
    assert all(weight.grad.abs().max() > 0 for weight in gate.parameters())
    assert all(value.grad.abs().max() > 0 for value in x.values())


@pytest.mark.parametrize("layer", [0, 1])
def test_the_next_layer_reads_gated_hidden_states(model, layer):
    gate, x, read_in = gate_of(32).eval(), features_of(), []
    plain = model(input_ids=IDS, output_hidden_states=True).hidden_states[layer]
    layers = next(part for part in model.modules() if isinstance(part, nn.ModuleList))
    with gate.inside(model, x, layer=layer):  # a hook that is set later runs later
        hook = layers[layer].register_forward_pre_hook(
            lambda module, args, kwargs: read_in.append(args[0] if args else kwargs["hidden_states"]), with_kwargs=True
        )
        read(model)
    hook.remove()
    torch.testing.assert_close(read_in, [gate(plain, x)])


def test_inside_a_causal_model_stays_causal():
    torch.manual_seed(0)
    model, gate, x = MODELS["gpt2"]().eval(), gate_of(32).eval(), features_of()
    with gate.inside(model, x, layer=1):
        one = read(model)
        x["audio"] = x["audio"].clone()
        x["audio"][:, 2] += 1
    with gate.inside(model, x, layer=1):
        two = read(model)
    changed = (one - two).abs().amax((0, 2)) > 0
    assert changed.tolist() == [False, False, True, True]


def test_the_hook_goes_when_the_block_fails():
    torch.manual_seed(0)
    model, gate = MODELS["bert"]().eval(), gate_of(32).eval()
    plain = read(model)
    with pytest.raises(UserError, match="features of audio"), gate.inside(model, {"audio": torch.zeros(2, 3, 5)}):
        read(model)
    assert read(model).equal(plain)


def test_a_model_in_half_precision():
    torch.manual_seed(0)
    model, gate = MODELS["llama"]().eval().bfloat16(), gate_of(32).eval()
    with gate.inside(model, features_of(), layer=1):
        logits = read(model)
    assert logits.dtype == torch.bfloat16 and logits.isfinite().all()


@pytest.mark.parametrize("layer", [3, -1])
def test_a_layer_that_does_not_exist(model, layer):
    message = rf"layer: got {layer}, expected 0 to 2, the layers of this \w+ model"
    with pytest.raises(UserError, match=message), gate_of(32).inside(model, {}, layer=layer):
        pass


def test_a_model_without_a_stack_of_layers():
    model = AlbertModel(AlbertConfig(vocab_size=50, embedding_size=8, **SIZES))
    with pytest.raises(UserError, match="model: got a albert model with no list of 2 layers"), gate_of(32).inside(model, {}):
        pass


@pytest.mark.parametrize(
    ("z", "x", "masks", "message"),
    [
        ((2, 4, 7), {}, {}, r"hidden states: got shape \(2, 4, 7\), expected \(b, t, 8\)"),
        ((4, 8), {}, {}, r"hidden states: got shape \(4, 8\)"),
        ((2, 4, 8), {"audio": torch.zeros(2, 4, 6)}, {}, r"features of audio: got shape \(2, 4, 6\), expected \(2, 4, 5\)"),
        ((2, 4, 8), {"audio": torch.zeros(2, 5)}, {}, r"features of audio: got shape \(2, 5\), expected \(2, 4, 5\)"),
        ((2, 4, 8), {"visoin": torch.zeros(2, 4, 3)}, {}, "modality: got visoin, .*did you mean 'vision'"),
        ((2, 4, 8), {}, {"touch": torch.ones(2).bool()}, "modality of a mask: got touch, .*choose one of audio, vision"),
        ((2, 4, 8), {}, {"audio": torch.ones(2, 3).bool()}, r"mask of audio: got torch.bool .*\(2, 3\), expected .*\(2, 4\)"),
        ((2, 4, 8), {}, {"audio": torch.ones(2)}, r"mask of audio: got torch.float32 of shape \(2,\)"),
    ],
)  # fmt: skip
def test_inputs_that_cannot_be_used(z, x, masks, message):
    with pytest.raises(UserError, match=message):
        gate_of()(torch.zeros(z), x, masks)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"features": {}}, "modalities of the gate: got 0"),
        ({"features": {"audio": 0}}, "features of audio: got 0"),
        ({"features": {"audio": 2}, "beta": 0.0}, "beta: got 0.0, expected a number > 0"),
        ({"features": {"audio": 2}, "beta": float("nan")}, "beta: got nan"),
    ],
)
def test_settings_that_cannot_be_used(settings, message):
    with pytest.raises(UserError, match=message):
        AdaptationGate(8, **settings)
