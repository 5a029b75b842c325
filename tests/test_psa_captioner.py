"""The captioner by pseudo self-attention: the soft words of a captioner, read as keys and values and nowhere else."""

import pytest
import torch
from test_captioner import SETTINGS, batch_of
from transformers import DynamicCache

import mmgen
from mmgen.conditioning.language_model import CACHE
from mmgen.data.batch import Batch, collate
from mmgen.errors import UserError
from mmgen.models.captioner import Captioner
from mmgen.models.psa_captioner import PseudoSelfAttentionCaptioner
from mmgen.storage import fingerprint
from mmgen.training.config import FitConfig
from mmgen.training.loop import fit


def build(scale: float = 10.0, loud: bool = False, **changes) -> PseudoSelfAttentionCaptioner:
    """One as it starts, or whose keys and values are as large as the text's."""
    torch.manual_seed(0)
    model = PseudoSelfAttentionCaptioner({**SETTINGS, "dropout": 0.0, **changes}, scale)
    if loud:
        with torch.no_grad():
            for weight in model.attention.parameters():
                weight.mul_(50)
    return model


@torch.no_grad()
def test_log_likelihood_is_the_language_models_after_these_keys_and_values():
    """By the language model's own forward pass over token ids, its cache filled by hand."""
    model = build(loud=True).eval()
    batch, lm = batch_of(model, "cat"), model.language_model
    words = model.language_model.embed(model.likeliest(batch))[0]  # (n, d)
    x = (words - words.mean(1, keepdim=True)) / (words.var(1, keepdim=True, correction=0) + 1e-5).sqrt() + model.place
    past = model.attention.cache(torch.zeros(1, 3, lm.width))
    for i, layer in enumerate(past.layers):
        keys, values = (x @ u[i].weight.T for u in (model.attention.keys, model.attention.values))
        layer.keys, layer.values = (part.unflatten(1, (2, -1)).transpose(0, 1)[None] for part in (keys, values))
    prompt = lm.tokenizer("a-b", return_tensors="pt").input_ids  # where the words of a prefix would stand is nothing
    ids = torch.cat([prompt, batch["text"]], 1)
    seen = torch.ones(1, 3 + ids.shape[1], dtype=torch.long)
    places = torch.arange(ids.shape[1])[None]
    logits = lm.model(input_ids=ids, attention_mask=seen, position_ids=places, **{CACHE: past}).logits.log_softmax(-1)
    expected = logits[0, prompt.shape[1] - 1 : -1].gather(1, batch["text"][0, :, None]).sum()
    torch.testing.assert_close(model.log_likelihood(batch)[0], expected, rtol=1e-4, atol=1e-3)


@torch.no_grad()
def test_only_places_tell_the_order_of_the_words():
    model = build(loud=True).eval()
    batch, words = batch_of(model, "cat"), torch.randn(1, 3, model.language_model.width)
    assert (model.text_log_prob(words, batch) - model.text_log_prob(words.flip(1), batch)).abs() > 1e-3
    model.place.zero_()
    torch.testing.assert_close(model.text_log_prob(words, batch), model.text_log_prob(words.flip(1), batch))


@torch.no_grad()
def test_another_picture_another_likelihood_and_a_missing_one_is_the_mean_of_all():
    model = build(loud=True, hard=False).eval()
    model.words.standardise(torch.randn(9, len(model.words.mean)) * 3 + 1)
    batch = batch_of(model, "cat", "cat")
    assert model.log_likelihood(batch).diff().abs() > 1e-4
    mean = Batch({"features": model.words.mean.expand(2, -1), "text": batch["text"]}, batch.masks)
    assert torch.equal(model.log_likelihood(batch.without("image")), model.log_likelihood(mean))


def test_training_moves_every_layer_and_never_the_language_model(tmp_path):
    model = build(loud=True, hard=False)
    before, start = fingerprint(model.language_model.model), {k: v.clone() for k, v in model.own_state().items()}
    text, c = model.processors["text"], len(model.words.mean)
    pictures = zip(torch.randn(3, c, generator=torch.Generator().manual_seed(1)), ("cat", "dog", "a bird"))
    data = [{"features": features, "text": text(caption)} for features, caption in pictures]
    batch = collate(data, model.sequences)
    loss = model.losses(batch)["caption"].item()
    fit(model, data, FitConfig(steps=60, batch_size=3, learning_rate=0.005, tracker="none", warmup=1), tmp_path)
    after = model.losses(batch)["caption"].item()
    assert after < loss - 1
    assert fingerprint(model.language_model.model) == before
    new = [name for name in start if name.startswith(("attention.", "place", "text.", "words.members"))]
    assert len(new) > 4 and not any(torch.equal(start[name], model.own_state()[name]) for name in new)
    assert not any(key.startswith("language_model.") for key in model.own_state())
    swapped = Batch({**batch.values, "features": batch["features"].roll(1, 0)}, batch.masks)
    assert model.losses(swapped)["caption"].item() > after + 0.5  # what was learned is the pictures, not the captions


def test_what_the_language_model_reads_learns_at_its_own_rate_and_not_in_the_phase_of_words(tmp_path):
    model = build(scale=7.0)
    scales = {id(p): group.get("scale", 1.0) for group in model.phase_parameters("train") for p in group["params"]}
    assert scales.keys() == {id(p) for p in model.parameters() if p.requires_grad}
    read = [*model.attention.parameters(), model.place]
    assert {scales[id(p)] for p in read} == {7.0}
    assert {scales[id(p)] for p in model.words.parameters()} == {1.0}
    words = {id(p) for group in model.phase_parameters("words") for p in group["params"]}
    assert words == scales.keys() - {id(p) for p in [*read, *model.text.values()]}


@torch.no_grad()
def test_a_batch_is_captioned_as_one_by_one():
    model = build(loud=True, hard=False).eval()
    given = batch_of(model, "cat", "dog", "owl").without("text")
    for options in ({}, {"beams": 3}, {"neighbours": 0, "beams": 2, "n": 2}):
        said = model.generate(given, max_tokens=5, **options)
        alone = [text for i in range(3) for text in model.generate(given.items([i]), max_tokens=5, **options)]
        assert said == alone and len(said) == 3 * options.get("n", 1)
    assert len(set(model.generate(given, max_tokens=5))) > 1  # it looks at the picture


def test_candidates_and_neighbours_of_a_captioner_serve_here_too():
    model = build(loud=True, dropout=0.5).eval()
    seen = batch_of(model, *["red owl"] * 3)
    model.remember([seen])
    given = seen.without("text")
    assert model.generate(given, neighbours=3, max_tokens=2) == ["red owl"] * 3
    assert len(model.generate(given, n=2, candidates=4, max_tokens=3)) == 6


def test_saved_without_the_language_model_and_loaded_with_it(tmp_path):
    model = build(vocabulary=[68, 69, 70]).eval()
    model.save_pretrained(tmp_path)
    again, batch = mmgen.load(tmp_path), batch_of(model, "cat")
    assert type(again) is PseudoSelfAttentionCaptioner and again.scale == 10.0
    assert torch.equal(model.log_likelihood(batch), again.log_likelihood(batch))
    model.language_model_digest += 1
    model.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"language model of .*: got weights [0-9a-f]{12}, expected weights [0-9a-f]{12}"):
        mmgen.load(tmp_path)


def test_words_of_a_captioner_fit():
    captioner, model = Captioner(**SETTINGS), build()
    missing, unexpected = model.load_state_dict(captioner.own_state(), strict=False)
    assert not unexpected
    assert all(name.startswith(("attention.", "place", "language_model.", "step", "vocabulary")) for name in missing)
    batch = batch_of(model, "cat")
    assert torch.equal(model.losses(batch, "words").total, captioner.losses(batch, "words").total)


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan")])
def test_a_scale_that_teaches_nothing(scale):
    with pytest.raises(UserError, match=rf"scale: got {scale}, expected a (finite )?number above 0"):
        build(scale)


@torch.no_grad()
def test_what_imitates_reads_the_words_as_a_prefix_would_have_them_read():
    """With as many features as positions a linear map is exact: every key and value is the one of the prefix."""
    model, ids = build(words=2), torch.tensor([[68, 69, 70, 1], [71, 72, 73, 1]])
    mask = torch.ones_like(ids, dtype=torch.bool)
    batch = Batch({"text": ids}, {"text": mask})
    model.imitate([batch.items([0]), batch.items([1])])
    lm = model.language_model
    targets = model.targets(ids, mask)
    assert targets.tolist() == [[68, 70], [71, 73]]  # the first and the last word
    prompt = torch.stack([torch.cat([lm.tokens("a"), w[:1], lm.tokens("-"), w[1:], lm.tokens("b")]) for w in targets])
    cache = DynamicCache(config=lm.model.config)
    lm.model(input_ids=prompt, use_cache=True, **{CACHE: cache})
    read = model.attention.cache(model.condition(lm.embed(targets))).layers
    for layer, own in zip(read, cache.layers):
        torch.testing.assert_close(layer.keys, own.keys[:, :, [1, 3]], rtol=0.05, atol=0.05)
        torch.testing.assert_close(layer.values, own.values[:, :, [1, 3]], rtol=0.05, atol=0.05)


@pytest.mark.parametrize(("pairs", "ridge", "message"), [([], 0.1, "to imitate: got none"), ([], 0.0, "ridge: got 0.0, exp")])
def test_what_cannot_be_imitated(pairs, ridge, message):
    with pytest.raises(UserError, match=message):
        build().attention.imitate(pairs, ridge)
