"""Counts under a Poisson likelihood: a modality that is its processor, its networks and its entry in the table."""

import json

import numpy as np
import pytest
import torch
from scipy.stats import poisson

from mmgen.cli import main
from mmgen.data.batch import Batch
from mmgen.data.counts import MOST, CountProcessor
from mmgen.data.processors import load_processors, save_processors
from mmgen.data.sources.columns import stored
from mmgen.errors import UserError
from mmgen.modalities.counts import CountDecoder
from mmgen.modalities.kinds import PROCESSORS, build_decoder, build_encoder, fit_processor
from mmgen.models.base import load
from mmgen.models.classifier import Classifier
from mmgen.models.factorized import Factorized
from mmgen.models.multimodal_vae import OBJECTIVES, MultimodalVAE
from mmgen.models.vae import VAE

SMALL = {"kind": "counts", "shape": [3], "encoder": {"hidden": [8], "dim": 8}, "decoder": {"hidden": [8]}}
X = torch.tensor([[0.0, 3.0, 250.0], [1.0, 0.0, 40.0], [2.0, 5.0, 0.0], [0.0, 0.0, 7.0]])


def test_log_prob_is_scipys():
    decoder, z = build_decoder("counts", 2, [3], {}).double(), torch.randn(5, 4, 2, dtype=torch.float64)
    p = decoder(z)
    expected = poisson.logpmf(X.numpy(), p.mean.detach().numpy()).sum(-1)
    np.testing.assert_allclose(p.log_prob(X.double()).detach().numpy(), expected)
    assert p.batch_shape == (5, 4) and p.event_shape == (3,)


def test_there_and_back(tmp_path):
    processor = fit_processor("counts", [[1, 2, 3], None, [0.0, 4.0, float(MOST)]])
    assert processor == CountProcessor(3) and processor.shape == (3,)
    for value in ([0, 5, MOST], "0,5,16777216", torch.tensor([0, 5, MOST])):
        assert processor.decode(processor(value)) == [0, 5, MOST]
    save_processors({"x": processor}, tmp_path)
    assert load_processors(tmp_path, PROCESSORS) == {"x": processor}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: CountProcessor(2)([1, -2]), "counts: got -2 at entry 1, expected whole numbers 0"),
        (lambda: CountProcessor(2)("0.5,1"), "counts: got 0.5 at entry 0, expected whole numbers 0"),
        (lambda: CountProcessor(2)([1, MOST + 1]), "at entry 1, expected whole numbers 0..16777216"),
        (lambda: CountProcessor(2)([1, 2, 3]), "counts: got 3 numbers, expected 2 counts"),
        (lambda: CountProcessor(0), "size: got 0"),
        (lambda: fit_processor("counts", [[1, 2], [1]]), r"rows: got lengths \[1, 2\]"),
        (lambda: VAE("x", "counts", [3]).losses(Batch({"x": X - 1})), "x of item 0: got -1.0, expected whole numbers >= 0"),
        (lambda: VAE("x", "counts", [3]).losses(Batch({"x": X / 2})), "x of item 0: got 1.5, .*for the likelihood poisson"),
        (lambda: Factorized({"x": {**SMALL, "noise": 1.0}}), "modalities.x.noise: got 1.0, expected 0 for poisson"),
        (lambda: build_encoder("counts", [3, 4], {}), r"shape: got \[3, 4\], expected 1 number for counts"),
    ],
)
def test_no_counts(call, message):
    with pytest.raises(UserError, match=message):
        call()


def fitted(model, batch, steps=150):
    torch.manual_seed(0)
    optimiser = torch.optim.Adam(model.parameters(), 0.02)
    for _ in range(steps):
        optimiser.zero_grad()
        model.losses(batch).total.backward()
        optimiser.step()
    return model.eval()


def test_rates_are_learned():
    rates = torch.tensor([0.5, 4.0, 300.0])
    x = torch.poisson(rates.expand(500, 3), torch.Generator().manual_seed(0))
    decoder = CountDecoder(1, 3, hidden=[8])
    optimiser = torch.optim.Adam(decoder.parameters(), 0.05)
    for _ in range(200):
        optimiser.zero_grad()
        (-decoder(torch.zeros(1, 1)).log_prob(x).mean()).backward()
        optimiser.step()
    torch.testing.assert_close(decoder(torch.zeros(1, 1)).mean[0], x.mean(0), rtol=0.05, atol=0)


def test_a_vae_learns_them(tmp_path):
    torch.manual_seed(1)
    x = torch.tensor([[0.0, 9.0, 100.0], [9.0, 0.0, 1.0]]).repeat(10, 1)
    model = VAE("x", "counts", [3], 2, encoder=SMALL["encoder"], decoder=SMALL["decoder"])
    fitted(model, Batch({"x": x}), steps=600)
    mean = model.decode(model.encode(Batch({"x": x})).mean, "x").mean
    assert (mean - x).abs().max() < 8 and model.log_likelihood(Batch({"x": x}), 8).isfinite().all()
    model.save_pretrained(tmp_path / "model")
    again = load(tmp_path / "model")
    z = torch.randn(3, 2)
    assert torch.equal(again.decode(z, "x").mean, model.decode(z, "x").mean)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_multimodal_vae_learns_them_beside_others(objective):
    torch.manual_seed(0)
    vector = {**SMALL, "kind": "vector", "shape": [1]}
    model = MultimodalVAE({"x": SMALL, "v": vector}, 2, objective)
    x = torch.tensor([[0.0, 9.0, 100.0], [9.0, 0.0, 1.0]]).repeat(10, 1)
    batch = Batch({"x": x, "v": torch.tensor([[-1.0], [1.0]]).repeat(10, 1)})
    first = model.losses(batch).total.item()
    made = fitted(model, batch).generate(batch.without("x"), "x")
    many, few = made[::2, 2].mean(), made[1::2, 2].mean()
    assert many > 2 * few and model.losses(batch).total.item() < first / 2


def test_factorized_and_classifier_read_them():
    batch = Batch({"x": X, "label": torch.tensor([0, 1, 0, 1])})
    assert Factorized({"x": SMALL}, classes=2).losses(batch).total.isfinite()
    assert Classifier("x", "counts", [3], 2).losses(batch).total.isfinite()


def test_from_a_file_to_generated_counts(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("MMGEN_CACHE", str(tmp_path / "cache"))
    rows = [{"stock": [i % 5, 2 * (i % 2), 3], "word": ("few", "many")[i % 2]} for i in range(40)]
    file, run = tmp_path / "stock.jsonl", str(tmp_path / "run")
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    modalities = {"counts": {"column": "stock", "kind": "counts"}, "text": {"column": "word", "max_length": 6}}
    config = {"data": {"card": str(file), "modalities": modalities}, "fit": {"steps": 3, "tracker": "none"}}
    (tmp_path / "own.yaml").write_text(json.dumps(config), encoding="utf-8")
    assert main(["train", "multimodal_vae", "--config", str(tmp_path / "own.yaml"), "--out", run]) == 0
    capsys.readouterr()
    assert main(["generate", run, "--to", "counts", "--text", "few"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert len(made) == 3 and all(isinstance(number, int) and number >= 0 for number in made)
    assert main(["generate", run, "--to", "counts,text", "--counts", "1,2,3"]) == 0
    assert main(["generate", run, "--to", "counts", "--counts=1,2.5,3"]) == 2
    assert "counts: got 2.5 at entry 1, expected whole numbers" in capsys.readouterr().err


def test_a_cell_of_a_csv_holds_counts():
    spec = {"kind": "vector", "shape": [3], "unit": "counts", "range": [0, None]}
    assert stored(spec, "0,7,0") == stored(spec, "[0, 7, 0]") == [0.0, 7.0, 0.0]
    with pytest.raises(UserError, match="got '0,x', expected numbers joined by commas"):
        stored(spec, "0,x")
