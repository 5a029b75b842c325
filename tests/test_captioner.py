"""The captioner: an exact likelihood through a frozen language model that nothing changes."""

import pytest
import torch
from PIL import Image
from transformers import LlamaForCausalLM

import mmgen
from mmgen.conditioning.language_model import load_language_model
from mmgen.data.batch import Batch, collate
from mmgen.errors import UserError
from mmgen.inference.generate import generate
from mmgen.models.captioner import Captioner
from mmgen.storage import fingerprint
from mmgen.training.config import FitConfig
from mmgen.training.loop import fit

SETTINGS = {
    **{"language_model": "tiny", "dtype": "fp32", "before": "a", "between": "-", "after": "b"},
    **{"encoder": "test_convnext", "weights": None, "trained_encoder": True, "size": 32, "stages": [3], "grid": 1},
    **{"words": 3, "width": 8, "dropout": 0.0},
}


def build(**changes) -> Captioner:
    torch.manual_seed(0)
    return Captioner(**{**SETTINGS, **changes})


def rows(model: Captioner, *texts: str) -> list[dict]:
    generator = torch.Generator().manual_seed(1)
    return [{"image": torch.rand(3, 32, 32, generator=generator), "text": model.processors["text"](t)} for t in texts]


def batch_of(model: Captioner, *texts: str) -> Batch:
    return collate(rows(model, *texts), model.sequences)


@torch.no_grad()
def test_log_likelihood_is_the_language_models_own():
    """Hard words are tokens, so the language model fed with token ids must say the same."""
    model = build(hard=True).eval()
    batch = batch_of(model, "cat")
    lm = model.language_model
    words = model.vocabulary[model.words.logits(model.features(batch), model.table).argmax(-1)][0]
    before, between, after = (lm.tokenizer(text, return_tensors="pt").input_ids[0] for text in ("a", "-", "b"))
    prompt, caption = torch.cat([before, words[:2], between, words[2:], after]), batch["text"][0]
    logits = lm.model(input_ids=torch.cat([prompt, caption])[None]).logits[0].log_softmax(-1)
    expected = logits[len(prompt) - 1 : -1].gather(1, caption[:, None]).sum()
    torch.testing.assert_close(model.log_likelihood(batch)[0], expected, rtol=1e-4, atol=1e-3)


@torch.no_grad()
def test_words_loss_by_hand():
    model = build().eval()
    batch = batch_of(model, "cats", "d")  # longer and shorter than the three soft words
    log_p = model.words.logits(model.features(batch), model.table).log_softmax(-1)
    end = model.language_model.tokenizer.eos_token_id
    (c, a, _, s, *_), (d, *_) = batch["text"].tolist()
    targets = [[c, a, s], [d, end, d]]  # the first two tokens and the last one
    expected = -sum(log_p[i, j, t] for i, row in enumerate(targets) for j, t in enumerate(row)) / 2
    torch.testing.assert_close(model.losses(batch, "words")["words"], expected)


@torch.no_grad()
def test_keywords_are_the_likeliest_tokens_of_any_soft_word_in_one_order():
    model = build(vocabulary=[66, 67, 68, 69, 70]).eval()
    batch = batch_of(model, "cats", "d")
    p = model.words.logits(model.features(batch), model.table).softmax(-1)  # (2, 3, 6)
    end = model.language_model.tokenizer.eos_token_id
    for row, chosen in zip(p, model.keywords(batch, 3)):
        present = {int(w): float(1 - (1 - row[:, i]).prod()) for i, w in enumerate(model.vocabulary) if w != end}
        assert chosen.tolist() == sorted(sorted(present, key=present.get)[-3:])
    assert model.keywords(batch, 9).tolist() == [[66, 67, 68, 69, 70]] * 2  # no more than there are


def test_a_vocabulary_is_what_soft_words_are_made_of():
    model = build(vocabulary=[70, 68, 69])
    end = model.language_model.tokenizer.eos_token_id
    assert model.vocabulary.tolist() == sorted([68, 69, 70, end])
    assert model.words.logits(model.features(batch_of(model, "cat")), model.table).shape == (1, 3, 4)


def test_training_leaves_the_language_model_bitwise_the_same(tmp_path):
    model = build()
    before = fingerprint(model.language_model.model)
    data = rows(model, "cat", "dog", "a bird")
    start = model.losses(collate(data, model.sequences))["caption"].item()
    fit(model, data, FitConfig(steps=40, batch_size=3, learning_rate=0.01, tracker="none", warmup=1), tmp_path)
    assert fingerprint(model.language_model.model) == before
    assert model.losses(collate(data, model.sequences))["caption"].item() < start
    assert not any(key.startswith("language_model.") for key in model.own_state())


@pytest.mark.parametrize("weights", ["trained", "scratch"])
def test_a_language_model_that_is_trained_is_saved_too(weights, tmp_path):
    torch.manual_seed(1)
    model = Captioner(**SETTINGS, language_model_weights=weights)
    frozen, before = build().language_model.model, fingerprint(model.language_model.model)
    assert (fingerprint(frozen) == before) == (weights == "trained")
    data = rows(model, "cat", "dog", "a bird")
    fit(model, data, FitConfig(steps=2, batch_size=3, tracker="none"), tmp_path, phases=("words",))
    assert fingerprint(model.language_model.model) == before  # no word phase reads it
    fit(model, data, FitConfig(steps=4, batch_size=3, tracker="none"), tmp_path)
    assert fingerprint(model.language_model.model) != before
    again, batch = mmgen.load(tmp_path / "model"), batch_of(model, "cat")
    assert torch.equal(model.log_likelihood(batch), again.log_likelihood(batch))
    assert fingerprint(again.language_model.model) == fingerprint(model.language_model.model)


def test_a_trained_language_model_learns_at_its_own_rate():
    for weights, scale in (("trained", 0.1), ("scratch", 1.0)):
        model = build(language_model_weights=weights)
        scales = {id(p): group.get("scale", 1.0) for group in model.phase_parameters("train") for p in group["params"]}
        assert {scales[id(p)] for p in model.language_model.parameters()} == {scale}
        assert scales.keys() == {id(p) for p in model.parameters() if p.requires_grad}
        words = {id(p) for group in model.phase_parameters("words") for p in group["params"]}
        assert not words & {id(p) for p in [*model.language_model.parameters(), *model.text.values()]}


def test_tied_weights_are_saved_once(tmp_path):
    """As those of most small language models: the output layer is the table of embeddings."""
    model, tokenizer = load_language_model("tiny", "fp32")
    model.config.tie_word_embeddings = True
    tied = LlamaForCausalLM(model.config)
    tied.save_pretrained(tmp_path / "lm")
    tokenizer.save_pretrained(tmp_path / "lm")
    model = build(language_model=str(tmp_path / "lm"), language_model_weights="trained")
    assert sum("embed_tokens" in key or "lm_head" in key for key in model.own_state()) == 1
    with torch.no_grad():
        model.language_model.embedding_table.mul_(2)
    model.save_pretrained(tmp_path / "run")
    again = mmgen.load(tmp_path / "run").language_model.model
    assert torch.equal(again.lm_head.weight, model.language_model.model.lm_head.weight)


def test_gradients_reach_words_prompt_and_encoder():
    model = build()
    model.losses(batch_of(model, "cat", "a dog")).total.backward()
    for part in (*model.text.values(), model.words.members[0][1].weight, next(model.encoder.parameters())):
        assert part.grad.abs().sum() > 0


@torch.no_grad()
def test_another_picture_another_likelihood():
    model = build(hard=False).eval()
    batch = batch_of(model, "cat")
    other = Batch({**batch.values, "image": 1 - batch["image"]}, batch.masks)
    assert model.log_likelihood(batch).item() != model.log_likelihood(other).item()


@torch.no_grad()
def test_features_stand_for_their_picture():
    model = build().eval()
    batch = batch_of(model, "cat", "dog")
    features = model.read(batch["image"])["features"]
    instead = Batch({"features": features, "text": batch["text"]}, batch.masks)
    assert torch.equal(model.log_likelihood(batch), model.log_likelihood(instead))


def test_generate_makes_n_captions_of_each_item():
    model = build().eval()
    given = batch_of(model, "cat", "dog").without("text")
    for options in ({}, {"beams": 3}, {"temperature": 1.0}):
        captions = model.generate(given, n=2, generator=torch.Generator().manual_seed(0), max_tokens=4, **options)
        assert len(captions) == 4 and all(isinstance(caption, str) for caption in captions)
    with pytest.raises(UserError, match="got image, expected a known name; choose one of text"):
        model.generate(given, to="image")


def test_samples_follow_the_global_generator():
    model = build().eval()
    given = batch_of(model, "cat", "dog").without("text")
    torch.manual_seed(5)
    first, second = (model.generate(given, temperature=1.0, max_tokens=8) for _ in range(2))
    torch.manual_seed(5)
    assert first != second and first == model.generate(given, temperature=1.0, max_tokens=8)


def test_candidates_agree_on_a_caption():
    model = build(dropout=0.5).eval()
    given = batch_of(model, "cat", "dog", "owl").without("text")
    seeded = lambda: torch.Generator().manual_seed(3)  # noqa: E731
    captions = model.generate(given, candidates=5, generator=seeded(), max_tokens=4)
    assert captions == model.generate(given, candidates=5, generator=seeded(), max_tokens=4) and len(captions) == 3
    assert len(model.generate(given, n=2, candidates=5, max_tokens=4)) == 6
    assert not model.words.training  # dropout is for the candidates alone
    with pytest.raises(UserError, match="candidates: got 0, expected a number >= 1"):
        model.generate(given, candidates=0)


def test_without_dropout_all_candidates_are_the_one_caption():
    model = build(dropout=0.0).eval()
    given = batch_of(model, "cat", "dog").without("text")
    assert model.generate(given, candidates=4, max_tokens=1) == model.generate(given, max_tokens=1)


def test_the_members_share_the_candidates_of_every_item():
    model = build(dropout=0.0, members=2).eval()
    given = batch_of(model, "cat", "dog", "owl").without("text")
    draws = model.drawn_words(given, 4).unflatten(0, (3, 4))  # (b, m, n, d)
    assert torch.equal(draws[:, 0], draws[:, 1]) and torch.equal(draws[:, 2], draws[:, 3])
    for i, member in enumerate(model.words.members):
        alone = build(dropout=0.0).eval()
        alone.words.members[0].load_state_dict(member.state_dict())
        torch.testing.assert_close(draws[:, 2 * i], alone.encode(given).mean)


def test_the_candidates_of_a_picture_alone_are_those_among_others():
    model = build(dropout=0.5, members=2, hard=False).eval()
    given = batch_of(model, "cat", "a dog", "owl", "cow").without("text")
    options = {"candidates": 3, "max_tokens": 3}

    def captions(batch: Batch) -> list[str]:
        return model.generate(batch, generator=torch.Generator().manual_seed(1), n=2, **options)

    together = captions(given)
    assert together == [text for i in range(4) for text in captions(given.items(slice(i, i + 1)))]


def test_neighbours_are_stored_captions_by_their_posterior(tmp_path):
    """log p(i | x) = 150 cos(f_i, f(x)) + 0.05 log p_words(text_i | x), normalised."""
    model = build().eval()
    texts = ["cat", "a dog", "owl", "cow"]
    seen = batch_of(model, *texts)
    model.remember([seen.items(slice(0, 3)), seen.items(slice(3, 4))])
    given = seen.without("text")
    with torch.no_grad():
        features = torch.nn.functional.normalize(
            model.features(given)[:, : -((2 * model.grid) ** 2) * model.colours**3], dim=1
        )
        logits = model.words.logits(model.features(given), model.table)  # (b, n, v)
        targets = model.targets(seen["text"], seen.masks["text"])  # (p, n)
    logs = logits.log_softmax(-1).clamp(min=-8)
    named = torch.stack(
        [sum(logs[:, i, (model.vocabulary == t[i]).nonzero()[0, 0]] for i in range(len(t))) for t in targets], 1
    )
    expected = (150 * features @ features.T + 0.05 * named).softmax(1)  # (b, p)
    for row, near in zip(expected, model.neighbours(given, 9)):
        torch.testing.assert_close(torch.tensor([near[text] for text in texts]), row, rtol=1e-4, atol=1e-5)
        assert list(near.values()) == sorted(near.values(), reverse=True)
    assert [len(near) for near in model.neighbours(given, 2)] == [2] * 4
    agreed = model.generate(given, neighbours=4, max_tokens=2)
    assert len(agreed) == 4
    assert model.generate(given, candidates=0, neighbours=1) == texts  # a picture is most like itself
    read = []
    maps, model.encoder.maps = model.encoder.maps, lambda *values: (read.append(1), maps(*values))[1]
    model.generate(given, candidates=2, neighbours=2, max_tokens=2)
    assert len(read) == 1  # a picture is read once, for the candidates and the neighbours
    model.encoder.maps = maps
    model.save_pretrained(tmp_path)
    again = mmgen.load(tmp_path)
    assert again.neighbours(given, 2) == model.neighbours(given, 2)


def test_neighbours_have_their_say():
    """Neighbours who agree outvote candidates of the same weight that do not."""
    model = build(dropout=0.9).eval()
    seen = batch_of(model, *["a red owl sits"] * 3)
    model.remember([seen])
    assert model.generate(seen.without("text"), candidates=8, neighbours=3, max_tokens=2) == ["a red owl sits"] * 3
    with pytest.raises(UserError, match="candidates: got 0, expected a number >= 1"):
        model.generate(seen.without("text"), candidates=0)
    with pytest.raises(UserError, match="neighbours: got 2, expected 0: this captioner remembers nothing"):
        build().generate(seen.without("text"), neighbours=2)


def test_a_colour_is_read_wherever_it_stands():
    """The same few pixels of another colour move the features by much more than their share of the picture's mean."""
    model = build(colours=4, stages=[3]).eval()
    plain = torch.ones(1, 3, 32, 32)
    spot = plain.clone()
    spot[:, :, 3:5, 3:5] = torch.tensor([0.9, -0.9, -0.9])[:, None, None]
    with torch.no_grad():
        before, after = (model.read(x)["features"][0, -4 * 64 :] for x in (plain, spot))
    changed = (before - after).abs().max()
    assert changed == pytest.approx((4 / 256) ** 0.5, abs=1e-3)  # 4 of the 16 x 16 pixels of a cell


def test_saved_without_the_language_model_and_loaded_with_it(tmp_path):
    model = build(vocabulary=[68, 69, 70]).eval()
    model.save_pretrained(tmp_path)
    again = mmgen.load(tmp_path)
    batch = batch_of(model, "cat")
    assert torch.equal(model.log_likelihood(batch), again.log_likelihood(batch))
    assert again.processors.keys() == {"image", "text"}
    picture = Image.new("RGB", (20, 30), "red")
    assert torch.equal(model.processors["image"](picture), again.processors["image"](picture))


def test_another_language_model_is_refused(tmp_path):
    model = build()
    model.language_model_digest += 1
    model.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"language model of .*: got weights [0-9a-f]{12}, expected weights [0-9a-f]{12}"):
        mmgen.load(tmp_path)


def test_frozen_weights_for_a_trained_language_model_are_refused():
    with pytest.raises(UserError, match=r"got weights of its own, expected weights [0-9a-f]{12}; load it with the language"):
        build(language_model_weights="trained").load_own_state(build().own_state())


def test_sounds_are_captioned_too():
    """Only the sound can tell the two orders apart; and the encoder learns from it."""
    model = build(modality="audio", width=16, hard=False).eval()
    audio = torch.rand(2, *model.processors["audio"].shape, generator=torch.Generator().manual_seed(1))
    batch = collate([{"audio": a, "text": model.processors["text"]("one")} for a in audio], model.sequences)
    swapped = Batch({**batch.values, "audio": audio.flip(0)}, batch.masks)
    likelihood, other = model.log_likelihood(batch), model.log_likelihood(swapped)
    assert (likelihood != other).all()
    torch.testing.assert_close(likelihood, other.flip(0))  # the text is the same
    model.losses(batch).total.backward()
    assert next(model.encoder.parameters()).grad.abs().sum() > 0
    assert len(model.generate(batch.without("text"), max_tokens=3)) == 2


def test_an_unknown_modality():
    with pytest.raises(UserError, match="modality: got smell"):
        build(modality="smell")


def test_an_empty_caption():
    with pytest.raises(UserError, match="text: got ' ', expected at least one word"):
        rows(build(), "  ")


def test_generation_options_have_types(tmp_path):
    model = build().eval()
    Image.new("RGB", (20, 30), "red").save(tmp_path / "red.png")
    given = {"image": [str(tmp_path / "red.png")]}
    with pytest.raises(UserError, match="option beams: got 'x', expected int"):
        generate(model, given, "text", beams="x")
    with pytest.raises(UserError, match="input modality: got text"):
        generate(model, {"text": ["hello"]}, "text")
    assert len(generate(model, given, "text", n=2, max_tokens=3)[0]) == 2


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"stages": [9]}, r"stages: got \[9\], expected numbers from 0 to 3"),
        ({"dropout": 2.0}, "dropout: got 2.0, expected 0 or more and below 1"),
        ({"size": 1}, "size: got 1, expected pixels enough for test_convnext"),
        ({"size": 0}, "size: got 0, expected a number >= 1"),
        ({"grid": 0}, "grid: got 0"),
        ({"words": 0}, "words: got 0"),
        ({"width": 0}, "width: got 0"),
        ({"colours": -1}, "colours: got -1"),
        ({"language_model_weights": "warm"}, "language model weights: got warm, expected one of|known"),
        ({"language_model_weights": "trained", "dtype": "bf16"}, "dtype of a language model that is trained: got bf16"),
    ],
    ids=str,
)
def test_a_captioner_that_cannot_be(setting, message):
    with pytest.raises(UserError, match=message):
        build(**setting)


def test_generation_options_out_of_range():
    model = build().eval()
    given = batch_of(model, "cat").without("text")
    for option, value in {"n": 0, "beams": 0, "max_tokens": 0, "temperature": -1.0}.items():
        with pytest.raises(UserError, match=f"{option}: got {value}, expected a number >= "):
            model.generate(given, **{option: value})
    for value in (0.0, 7.0, float("nan")):
        with pytest.raises(UserError, match=f"top_p: got {value}, expected above 0 and at most 1"):
            model.generate(given, top_p=value)


def test_many_items_are_read_a_few_at_a_time(tmp_path, monkeypatch):
    model = build().eval()
    colours = ["red", "lime", "blue"] * 6
    for i, colour in enumerate(colours):
        Image.new("RGB", (20, 30), colour).save(tmp_path / f"{i}.png")
    files, sizes, own = [str(tmp_path / f"{i}.png") for i in range(18)], [], model.generate
    monkeypatch.setattr(model, "generate", lambda given, *a, **k: sizes.append(given.size) or own(given, *a, **k))
    options = {"beams": 2, "max_tokens": 3}
    captions = generate(model, {"image": files}, "text", n=2, **options)
    assert sizes == [16, 2]
    assert captions == generate(model, {"image": files[:3]}, "text", n=2, **options) * 6


def test_a_candidate_that_is_no_phrase_of_stored_captions_is_not_returned(monkeypatch):
    """All draws agree on a caption in which "red" stands last, as in no stored one."""
    model = build().eval()
    seen = batch_of(model, "a red owl", "a dog", "a red cat")
    model.remember([seen])
    written = "a red"
    monkeypatch.setattr(model.language_model, "generate", lambda prompt, **options: [written] * len(prompt.mask))
    given = seen.without("text")
    assert model.generate(given, candidates=3) == ["a red"] * 3
    assert set(model.generate(given, candidates=3, neighbours=3)) <= {"a red owl", "a red cat", "a dog"}
    written = "a red cat"
    assert model.generate(given, candidates=3, neighbours=3) == ["a red cat"] * 3
