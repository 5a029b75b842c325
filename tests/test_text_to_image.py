"""Text to image: its likelihood token by token, sampling, guidance, completion, captions, and what it says of bad input."""

import itertools
import math
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from mmgen.data.batch import Batch
from mmgen.data.image import ImageProcessor
from mmgen.data.text import train_tokenizer
from mmgen.errors import UserError
from mmgen.models.base import load
from mmgen.models.discrete_vae import DiscreteVAE
from mmgen.models.text_to_image import TextToImage

CODES = {"shape": [1, 4, 4], "codes": 3, "dim": 2, "width": 16, "halvings": 1, "depth": 1}  # 4 cells of 3 codes
WORDS, LENGTH, END = 5, 3, 2


def build(**settings):
    torch.manual_seed(0)
    model = TextToImage(CODES, WORDS, LENGTH, END, **{"dim": 16, "depth": 2, "heads": 2, "dropout": 0.0, **settings})
    model.take_codes(DiscreteVAE(**CODES))
    for p in model.transformer.parameters():  # far from uniform
        torch.nn.init.normal_(p, std=0.3) if p.ndim > 1 else None
    return model.eval()


@pytest.fixture(scope="module")
def model():
    return build()


def texts(*rows):
    lengths = torch.tensor([len(row) for row in rows])
    ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True)
    return {"values": {"text": ids}, "masks": {"text": torch.arange(ids.shape[1]) < lengths[:, None]}}


def batch_of(x, *rows):
    found = texts(*rows)
    return Batch({"image": x, **found["values"]}, found["masks"])


def test_all_pictures_of_a_text_have_probability_one(model, monkeypatch):
    grids = torch.tensor(list(itertools.product(range(3), repeat=4))).reshape(-1, 2, 2)  # all 81
    monkeypatch.setattr(model.discrete_vae, "codes", lambda x: grids[x[:, 0, 0, 0].long()])
    x = torch.arange(81.0)[:, None, None, None].expand(-1, 1, 4, 4)
    for rows in ([[3, 4, END]] * 81, [[4, END]] * 81):
        assert model.log_likelihood(batch_of(x, *rows)).exp().sum() == pytest.approx(1, abs=1e-4)
    assert model.log_likelihood(Batch({"image": x})).exp().sum() == pytest.approx(1, abs=1e-4)


def test_likelihood_token_by_token(model):
    x, transformer = torch.rand(1, 1, 4, 4), model.transformer
    codes = model.discrete_vae.codes(x).flatten().tolist()
    text = [3, END, transformer.padding]
    sequence = [transformer.start, *text, *(code + WORDS for code in codes)]
    found = {"text": 0.0, "image": 0.0}
    for i in range(1, len(sequence)):
        logits = transformer(torch.tensor([sequence[:i]]))[0, -1]
        if sequence[i] < WORDS:
            found["text"] += logits[:WORDS].log_softmax(0)[sequence[i]].item()
        elif sequence[i] < WORDS + 3:
            found["image"] += logits[WORDS : WORDS + 3].log_softmax(0)[sequence[i] - WORDS].item()
    losses = model.losses(batch_of(x, [3, END]))
    assert losses["image"].item() == pytest.approx(-found["image"], rel=1e-4)
    assert losses["text"].item() == pytest.approx(-0.1 * found["text"], rel=1e-4)
    assert model.log_likelihood(batch_of(x, [3, END])).item() == pytest.approx(found["image"], rel=1e-4)


def test_no_code_looks_ahead_and_all_look_at_the_text(model):
    x = model.transformer.embed(torch.tensor([[model.transformer.start, 3, END, 9, 5, 6, 7]])).detach().requires_grad_()
    for at in range(x.shape[1]):
        (gradient,) = torch.autograd.grad(model.transformer(x)[0, at].square().sum(), x)
        assert (gradient[0, at + 1 :] == 0).all() and (gradient[0, : at + 1].abs().sum(1) > 0).all()


@pytest.mark.parametrize("options", [{}, {"guidance": 3.0}, {"top_k": 2, "temperature": 0.7}, {"top_p": 0.8}])
def test_cached_and_uncached_draw_the_same(model, options):
    given = Batch(**texts([3, 4, END], [1, END]))
    drawn = [
        model.generate(given, "image", 3, torch.Generator().manual_seed(1), cached=cached, **options)
        for cached in (True, False)
    ]
    assert torch.equal(*drawn) and drawn[0].shape == (6, 1, 4, 4)
    captions = []
    model.processors = {"text": SimpleNamespace(decode=lambda ids: " ".join(map(str, ids.tolist())))}
    x = torch.rand(2, 1, 4, 4)
    for cached in (True, False):
        generator = torch.Generator().manual_seed(1)
        own = {name: value for name, value in options.items() if name != "guidance"}
        captions.append(model.generate(Batch({"image": x}), "text", 2, generator, cached=cached, **own))
    model.processors = {}
    assert captions[0] == captions[1] and len(captions[0]) == 4


def test_draws_follow_the_likelihood(model, monkeypatch):
    given, n = Batch(**texts([3, END])), 4000
    seen = []
    decode = model.discrete_vae.decode
    monkeypatch.setattr(model.discrete_vae, "decode", lambda z: seen.append(z) or decode(z))
    model.generate(given, "image", n, torch.Generator().manual_seed(0))
    first = torch.bincount(seen[0][:, 0, 0], minlength=3) / n
    prompt = torch.tensor([[model.transformer.start, 3, END, model.transformer.padding]])
    expected = model.transformer(prompt)[0, -1, WORDS : WORDS + 3].softmax(0)
    torch.testing.assert_close(first, expected, atol=0.03, rtol=0)


def test_guidance_moves_the_logits_from_those_of_no_text(model, monkeypatch):
    import mmgen.modalities.layers.autoregressive as module

    seen = []
    choose = module.choose
    monkeypatch.setattr(module, "choose", lambda logits, *rest: seen.append(logits) or choose(logits, *rest))
    model.generate(Batch(**texts([3, 4, END])), "image", guidance=3.0)
    transformer, pad = model.transformer, model.transformer.padding
    rows = torch.tensor([[transformer.start, 3, 4, END], [transformer.start, END, pad, pad]])
    text, nothing = transformer(rows)[:, -1, WORDS : WORDS + 3]
    torch.testing.assert_close(seen[0][0], nothing + 3 * (text - nothing), atol=1e-4, rtol=1e-4)


def test_a_missing_text_is_no_text(model):
    found = texts([3, END], [4, 1])
    given = Batch(found["values"], found["masks"], {"text": torch.tensor([False, True])})
    made = model.generate(given, "image", generator=torch.Generator().manual_seed(0), temperature=0.0)
    torch.testing.assert_close(made[:1], model.generate(Batch.nothing(1), "image", temperature=0.0))


def test_completion_keeps_the_codes_of_the_upper_part(model, monkeypatch):
    x, seen = torch.rand(2, 1, 4, 4), []
    decode = model.discrete_vae.decode
    monkeypatch.setattr(model.discrete_vae, "decode", lambda z: seen.append(z) or decode(z))
    found = texts([3, END], [1, END])
    model.generate(
        Batch({"image": x[:, :, :2], **found["values"]}, found["masks"]), "image", 3, torch.Generator().manual_seed(0)
    )
    whole = torch.cat([x[:, :, :2], x[:, :, 1:2].repeat(1, 1, 2, 1)], 2)
    kept = model.discrete_vae.codes(whole)[:, :1].repeat_interleave(3, 0)
    assert torch.equal(seen[0][:, :1], kept) and seen[0].shape == (6, 2, 2)


def test_captions_continue_the_picture(model):
    x, transformer = torch.rand(1, 1, 4, 4), model.transformer
    written = []
    model.processors = {"text": SimpleNamespace(decode=lambda ids: written.append(ids) or "text")}
    assert model.generate(Batch({"image": x}), "text", temperature=0.0) == ["text"]
    model.processors = {}
    sequence = [transformer.start, *(model.discrete_vae.codes(x).flatten() + WORDS).tolist()]
    for token in written[0].tolist():
        features = transformer.features(torch.tensor([sequence]), first="image")
        assert token == transformer.logits(features)[0, -1, :WORDS].argmax().item()
        sequence.append(token)
        if token == END:
            break


def test_it_learns_to_draw_and_to_tell():
    torch.manual_seed(0)
    vae = DiscreteVAE(**{**CODES, "codes": 8})
    x = torch.zeros(2, 1, 4, 4)
    x[1] = 1
    optimizer = torch.optim.Adam(vae.parameters(), 3e-3)
    for _ in range(100):
        vae.losses(Batch({"image": x})).total.backward()
        optimizer.step()
        optimizer.zero_grad()
    text = train_tokenizer(["black", "white"], 270)
    model = TextToImage(
        {**CODES, "codes": 8}, text.vocabulary, 4, text.tokenizer.eos_token_id, 32, 2, 2, dropout=0.0, image_first=0.5
    )
    model.take_codes(vae.eval())
    model.processors = {"text": text, "image": ImageProcessor(4, 1)}
    ids = [text("black"), text("white")]
    batch = batch_of(x, *(row.tolist() for row in ids))
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], 3e-3)
    for _ in range(150):
        model.train().losses(batch).total.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()
    assert [round(made.mean().item()) for made in model.generate(batch.keep(["text"]), "image", temperature=0.0)] == [0, 1]
    assert model.generate(batch.keep(["image"]), "text", temperature=0.0) == ["black", "white"]
    assert all(torch.equal(a, b) for a, b in zip(vae.state_dict().values(), model.discrete_vae.state_dict().values()))


def test_the_vae_is_frozen_and_saved_with_the_model(model, tmp_path):
    model.train()
    assert not model.discrete_vae.training and not any(p.requires_grad for p in model.discrete_vae.parameters())
    model.eval().save_pretrained(tmp_path)
    again = load(tmp_path)
    assert torch.equal(again.discrete_vae.quantizer.codebook, model.discrete_vae.quantizer.codebook)


def brightness(drawn, given):
    return drawn.mean((1, 2, 3))


def test_reranking_keeps_the_nearest_first(model):
    given = Batch(**texts([3, END], [1, END]))
    drawn = model.generate(given, "image", 6, torch.Generator().manual_seed(0)).unflatten(0, (2, 6))
    kept = model.generate(given, "image", 2, torch.Generator().manual_seed(0), rerank=brightness, candidates=3)
    for own, best in zip(drawn, kept.unflatten(0, (2, 2))):
        scores = own.mean((1, 2, 3)).sort(descending=True)
        torch.testing.assert_close(best, own[scores.indices[:2]])


def other_codes():
    model = build()
    model.discrete_vae.quantizer.codebook.add_(1)
    return model


def part(width, height):
    model = build()
    model.processors = {"image": ImageProcessor(4, 1)}
    return model.upper_part(Image.new("RGB", (width, height)))


def test_the_upper_part_of_a_file_is_read_as_the_whole_is():
    assert torch.equal(part(4, 2), torch.zeros(1, 2, 4))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m.generate(Batch(**texts([3, END])), "image", n=0), "n: got 0"),
        (lambda m: m.generate(Batch(**texts([3, END])), "sound"), "to: got sound"),
        (lambda m: m.generate(Batch(**texts([3, 3, 3, END])), "image"), "text: got 4 tokens, expected at most 3"),
        (lambda m: m.generate(Batch({"text": torch.zeros(1, 0, dtype=torch.long)}), "image"), "text: got no tokens"),
        (lambda m: m.generate(Batch(**texts([3, END])), "text"), "image: got an item without it"),
        (lambda m: m.generate(Batch(**texts([3, END])), "image", temperature=-1.0), "temperature: got -1"),
        (lambda m: m.generate(Batch({"image": torch.zeros(1, 1, 3, 4)}), "image"), r"image: got shape \(1, 3, 4\)"),
        (lambda m: m.generate(Batch({"image": torch.zeros(1, 1, 4, 4)}), "image"), r"image: got shape \(1, 4, 4\)"),
        (
            lambda m: m.generate(Batch({"image": torch.zeros(1, 1, 2, 4)}), "image", rerank=brightness),
            "rerank: got an item",
        ),
        (lambda m: m.log_likelihood(Batch(**texts([3, END]))), "image: got no item that has it"),
        (lambda m: m.losses(batch_of(torch.zeros(1, 1, 8, 8), [3, END])), r"image: got shape \(1, 8, 8\)"),
        (
            lambda m: m.losses(batch_of(torch.full((1, 1, 4, 4), math.nan), [3, END])),
            "image of item 0: got nan, expected finite",
        ),
        (lambda m: build(drop_text=1.0), "drop_text: got 1.0"),
        (lambda m: TextToImage(CODES, WORDS, LENGTH, end=5), "end: got 5, expected a token, 0 to 4"),
        (lambda m: TextToImage(CODES, WORDS, 1, END), "text_length: got 1"),
        (lambda m: m.take_codes(DiscreteVAE(**{**CODES, "codes": 4})), r"discrete VAE: got .*expected"),
        (
            lambda m: TextToImage(CODES, WORDS, LENGTH, END, dim=8, depth=1, heads=2).generate(
                Batch(**texts([3, END])), "image"
            ),
            "got no code book",
        ),
        (
            lambda m: m.load_own_state(other_codes().own_state()),
            "discrete VAE of weights: got [0-9a-f]{12}, expected [0-9a-f]{12}",
        ),
        (lambda m: part(5, 2), "--from: got 5 x 2 pixels, expected 4 wide and a multiple of 2 below 4 high"),
        (lambda m: part(4, 4), "--from: got 4 x 4"),
        (lambda m: part(4, 3), "--from: got 4 x 3"),
    ],
)
def test_wrong_use_says_so(call, message):
    with pytest.raises(UserError, match=message):
        call(build())


def test_log_likelihood_of_items_without_picture_is_zero(model):
    found = texts([3, END], [1, END])
    x = torch.rand(2, 1, 4, 4)
    given = Batch({"image": x, **found["values"]}, found["masks"], {"image": torch.tensor([True, False])})
    both = model.log_likelihood(given)
    assert both[1] == 0 and both[0] == model.log_likelihood(given.items(slice(0, 1)))[0]
    assert both[0] < 0 and math.isfinite(both[0])
