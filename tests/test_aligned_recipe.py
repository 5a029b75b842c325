"""The recipe aligned: pictures that are reduced before they are read."""

import pytest
import torch

from mmgen.data.image import ImageProcessor
from mmgen.data.rows import open_rows
from mmgen.errors import UserError
from mmgen.judging.shared_space import Reduced, pairs
from mmgen.models.aligned import Aligned
from mmgen.training.recipe import checked, load_recipe, recipe_config
from mmgen.training.run_folder import open_run
from mmgen.training.study import evaluate, train

RECIPE = load_recipe("aligned")


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
    assert 0 <= figures["item_r1_sentence"] <= figures["item_r10_sentence"] <= 1
    assert "by the sentence embedder" in (tmp_path / "run" / "README.md").read_text(encoding="utf-8")


def test_the_size_of_pictures_under_its_old_key(tmp_path):
    out, config = tmp_path / "run", recipe_config(RECIPE, "smoke", ["data.size=4", "fit.steps=1"])
    train(RECIPE, config, out)
    old = (out / "config.yaml").read_text(encoding="utf-8").replace("  size: 4", "  side: 4")
    (out / "config.yaml").write_text(old, encoding="utf-8")
    recipe, read = open_run(out)
    assert "side: 4" in old and read == config and "item_r10" in evaluate(recipe, read, out, "test")
