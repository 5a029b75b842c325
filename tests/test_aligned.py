"""The shared space: the loss by hand, repeated pictures and texts, partial texts, and what is saved."""

import json
import math

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file
from tiny import tiny_aligned

from mmgen.conditioning.language_model import load_language_model
from mmgen.conditioning.text_encoder import load_text_encoder
from mmgen.data.batch import Batch, collate
from mmgen.errors import UserError
from mmgen.models.aligned import Aligned, WordsEncoder
from mmgen.models.base import load
from mmgen.storage import fingerprint


@pytest.fixture
def model() -> Aligned:
    torch.manual_seed(0)
    return tiny_aligned().eval()


def batch_of(model: Aligned, *texts: str, images: torch.Tensor | None = None) -> Batch:
    images = torch.rand(len(texts), 3, 32, 32) if images is None else images
    return collate([{"image": x, "text": model.tokens(text)} for x, text in zip(images, texts)], ["text"])


def test_the_loss_by_hand(model):
    batch = batch_of(model, "a cat", "two dogs", "sea")
    found = model.encode(batch).mean
    scores = model.scale * found["image"] @ found["text"].T
    losses, rows = model.losses(batch), torch.arange(3)
    torch.testing.assert_close(losses["to_text"], 0.5 * F.cross_entropy(scores, rows))
    torch.testing.assert_close(losses["to_image"], 0.5 * F.cross_entropy(scores.T, rows))
    for name in ("image", "text"):
        torch.testing.assert_close(found[name].norm(dim=1), torch.ones(3))


def test_whole_texts_are_read_by_a_sentence_embedder_too(tmp_path):
    torch.manual_seed(0)
    model, texts = tiny_aligned(sentences="tiny").eval(), ["a cat", "two dogs", "sea"]
    batch, embedded = batch_of(model, *texts), model.embed(texts)
    states = [model.embedder(**model.reader(text, return_tensors="pt")).last_hidden_state[0] for text in texts]
    torch.testing.assert_close(embedded, F.normalize(torch.stack([s.mean(0) for s in states]), dim=1))  # one by one
    assert model.losses(batch).total == 0  # nobody has a sentence
    batch = Batch(batch.values | {"sentence": embedded}, present=batch.present, masks=batch.masks)
    found = model.encode(batch).mean
    scores = model.scale * found["image"] @ found["sentence"].T
    losses, rows = model.losses(batch), torch.arange(3)
    torch.testing.assert_close(losses["to_sentence"], 0.5 * F.cross_entropy(scores, rows))
    torch.testing.assert_close(losses["to_image_by_sentence"], 0.5 * F.cross_entropy(scores.T, rows))
    assert not any(p.requires_grad for p in model.embedder.parameters())
    model.save_pretrained(tmp_path / "model")
    torch.testing.assert_close(load(tmp_path / "model").points(texts, "sentence"), found["sentence"])
    config = json.loads((tmp_path / "model" / "config.json").read_text(encoding="utf-8"))
    assert not any(name.startswith("embedder.") for name in load_file(tmp_path / "model" / "model.safetensors"))
    assert config["sentences"] == "tiny"


def test_another_sentence_embedder_is_refused(tmp_path, monkeypatch):
    tiny_aligned(sentences="tiny").save_pretrained(tmp_path / "model")
    other, tokenizer = load_text_encoder("tiny")
    with torch.no_grad():
        next(other.parameters()).add_(0.1)
    monkeypatch.setattr("mmgen.models.aligned.load_text_encoder", lambda name: (other, tokenizer))
    with pytest.raises(UserError, match=r"sentence embedder of .*: got \w{12}, expected \w{12}; load it with sentences="):
        load(tmp_path / "model")


@torch.no_grad()
def test_the_same_text_or_picture_is_no_negative(model):
    images = torch.rand(4, 3, 32, 32)
    images[3] = images[0]
    batch = batch_of(model, "a cat", "sea", "a cat", "a grey cat", images=images)
    right = torch.tensor([[1, 0, 1, 1], [0, 1, 0, 0], [1, 0, 1, 0], [1, 0, 0, 1]]).bool()
    found = model.encode(batch).mean
    p = (model.scale * found["image"] @ found["text"].T).softmax(1)
    torch.testing.assert_close(model.losses(batch)["to_text"], -0.5 * (p * right).sum(1).log().mean())
    twins = batch_of(model, "a cat", "a cat")
    assert model.losses(twins).total.abs() < 1e-6  # nothing there is wrong


def test_training_brings_pairs_together(model):
    batch = batch_of(model, "a cat", "two dogs", "sea", "zebra")
    optimiser = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.01)
    before = model.losses(batch).total.item()
    for _ in range(30):
        optimiser.zero_grad()
        model.losses(batch).total.backward()
        optimiser.step()
    assert model.losses(batch).total.item() < 0.3 * before


def test_the_scale_is_kept_in_its_range(model):
    with torch.no_grad():
        model.log_scale.fill_(20.0)
        assert model.scale == 100
        model.log_scale.fill_(-3.0)
        assert model.scale == 1


@torch.no_grad()
@pytest.mark.parametrize("depth", [0, 1])
def test_padding_changes_nothing_wherever_it_is(depth):
    torch.manual_seed(0)
    model = Aligned("tiny", "fp32", "audio", dim=4, width=8, text_width=8, text_depth=depth).eval()
    words = torch.randn(2, 5, 32)
    alone = model.encode_embeddings(words[:, 2:4])
    mask = torch.tensor([[False, False, True, True, False]] * 2)
    torch.testing.assert_close(model.encode_embeddings(words, mask), alone)
    words[:, 0] = torch.nan
    torch.testing.assert_close(model.encode_embeddings(words, mask), alone)


def test_no_words_at_all_are_a_point_too():
    assert WordsEncoder(5, 8)(torch.ones(2, 3, 5), torch.zeros(2, 3, dtype=torch.bool)).abs().max() == 0


@torch.no_grad()
def test_texts_are_their_embeddings_and_mixtures_lie_between(model):
    ids = model.tokens("a cat")[None]
    text = model.encode(Batch({"text": ids}, {"text": torch.ones_like(ids).bool()})).mean["text"]
    torch.testing.assert_close(text, model.encode_embeddings(model.table(ids)))
    assert model.processors["text"].decode(ids[0]) == " a cat"


def test_parts_of_texts(model):
    torch.manual_seed(0)
    mask = torch.tensor([[True] * 6, [True] * 2 + [False] * 4]).repeat(500, 1)
    model.word_dropout, model.fragments = 0.25, 0.0
    kept = model.words_read(mask)
    assert not (kept & ~mask).any() and kept.any(1).all()
    assert kept[::2].float().mean().item() == pytest.approx(0.75, abs=0.03)
    model.word_dropout, model.fragments = 0.0, 1.0
    kept = model.words_read(mask)[::2]
    runs = (kept[:, 1:] & ~kept[:, :-1]).sum(1) + kept[:, 0]
    assert (runs == 1).all() and 0.2 < kept.float().mean() < 0.8
    model.fragments = 0.0
    assert torch.equal(model.words_read(mask), mask)


def test_other_words_in_training(model):
    batch = batch_of(model, "a cat", "sea", "sun")
    model.apply(lambda part: setattr(part, "p", 0.0) if isinstance(part, torch.nn.Dropout) else None)
    model.word_dropout = model.fragments = 0.0
    model.noise, model.distractors = 0, 50
    whole = model.losses(batch)
    found = model.train().losses(batch)
    assert found["to_text"] > whole["to_text"]  # more that is wrong
    torch.testing.assert_close(found["to_image"], whole["to_image"])
    model.distractors = 0
    torch.testing.assert_close(model.losses(batch).total, whole.total)
    model.noise = 3
    assert model.losses(batch).total != whole.total


def test_points_of_raw_values_are_those_of_each_alone(model, monkeypatch):
    monkeypatch.setattr("mmgen.models.aligned.AT_ONCE", 2)
    pictures = [Image.fromarray(torch.randint(256, (40, 30, 3), dtype=torch.uint8).numpy()) for _ in range(5)]
    texts = ["a red apple", "dog", "the long tail of a cat"]
    for modality, values in {"image": pictures, "text": texts}.items():
        points = model.points(values, modality)
        assert points.shape == (len(values), 4) and not points.requires_grad
        for value, point in zip(values, points):
            read = model.tokens(value) if modality == "text" else model.processors["image"](value)
            alone = model.encode(collate([{modality: read}], ["text"])).mean[modality][0]
            torch.testing.assert_close(point, alone, atol=1e-5, rtol=1e-4)
    with pytest.raises(UserError, match="modality: got audio, expected"):
        model.points(pictures, "audio")


def test_whole_texts_are_read_when_not_training(model):
    batch = batch_of(model, "a cat", "two dogs and a goat")
    assert torch.equal(model.encode(batch).mean["text"], model.encode(batch).mean["text"])
    model.train().word_dropout, model.noise = 0.9, 0
    assert not torch.equal(model.encode(batch).mean["text"], model.encode(batch).mean["text"])


def test_precomputed_features_are_the_same(model):
    batch = batch_of(model, "a cat", "sea", "sun")
    with torch.no_grad():
        features = Batch({"features": model.read(batch["image"]), "text": batch["text"]}, batch.masks)
        assert torch.equal(model.encode(features).mean["image"], model.encode(batch).mean["image"])
        torch.testing.assert_close(model.losses(features).total, model.losses(batch).total)


def test_features_are_standardised(model):
    features = 3 * torch.randn(500, len(model.feature_mean)) + 7
    features[:, 0] = 1.0
    model.standardise(features)
    torch.testing.assert_close(model.feature_mean, features.mean(0))
    torch.testing.assert_close(model.feature_std[1:], features.std(0, correction=0)[1:])
    assert model.feature_std[0] == torch.tensor(1e-3)


def test_what_is_remembered_is_saved(model, tmp_path):
    batch = batch_of(model, "a cat", "sea", "sun")
    model.remember([batch.without("text"), batch.items(slice(0, 2)).without("text")])
    found = model.encode(batch).mean["image"]
    torch.testing.assert_close(model.references, torch.cat([found, found[:2]]))
    model.save_pretrained(tmp_path / "m")
    assert torch.equal(load(tmp_path / "m").references, model.references)


def test_the_table_is_frozen_and_not_saved(model):
    own = model.own_state()
    assert not any(name.startswith("table.") for name in own) and "table_digest" in own
    before = model.table.weight.clone()
    model.train().losses(batch_of(model, "a cat", "sea")).total.backward()
    assert model.table.weight.grad is None and torch.equal(model.table.weight, before)


def test_another_language_model_is_refused(model, tmp_path, monkeypatch):
    model.save_pretrained(tmp_path / "m")
    other, tokenizer = load_language_model("tiny", "fp32")
    with torch.no_grad():
        other.get_input_embeddings().weight.add_(1.0)
    other.digests["embeddings"] = fingerprint(other.get_input_embeddings())
    monkeypatch.setattr("mmgen.models.aligned.load_language_model", lambda name, dtype: (other, tokenizer))
    with pytest.raises(
        UserError, match=r"language model of .*: got embeddings \w{12}, expected embeddings \w{12}; load it with"
    ):
        load(tmp_path / "m")


def test_verbs_without_a_meaning_here(model):
    for call in (lambda: model.log_likelihood(Batch({"image": torch.rand(1, 3, 32, 32)})),
                 lambda: model.decode(torch.zeros(1, 4), "text")):  # fmt: skip
        with pytest.raises(UserError, match="expected one of losses, encode"):
            call()


def test_nothing_to_encode(model):
    with pytest.raises(UserError, match=r"image or text: got no item that has it \(the batch holds label\)"):
        model.encode(Batch({"label": torch.zeros(2)}))
    with pytest.raises(UserError, match="text: got ' ', expected at least one word"):
        model.tokens(" ")


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"dim": 0}, "dim: got 0, expected a number >= 1"),
        ({"colours": -1}, "colours: got -1"),
        ({"noise": -1}, "noise: got -1"),
        ({"distractors": -1}, "distractors: got -1"),
        ({"text_depth": -1}, "text_depth: got -1"),
        ({"dropout": 1.0}, "dropout: got 1.0, expected 0 or more and below 1"),
        ({"word_dropout": -0.1}, "word_dropout: got -0.1"),
        ({"fragments": 1.5}, "fragments: got 1.5, expected 0 to 1"),
        ({"scale": math.nan}, "scale: got nan, expected 1 to 100"),
        ({"modality": "touch"}, "modality: got touch"),
    ],
)
def test_bad_settings(setting, message):
    with pytest.raises(UserError, match=message):
        Aligned("tiny", "fp32", **{"modality": "audio", **setting})
