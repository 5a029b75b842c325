"""The recipe families: its baseline of independent pixels, training times, and bits per dimension."""

import json
import math

import pytest
import torch
from mmgen.recipes.families.train import Data, draw, pictures

from mmgen.data.image import ImageProcessor
from mmgen.errors import UserError
from mmgen.judging.likelihood import bits_per_dim
from mmgen.metrics.likelihood import independent_bits
from mmgen.models.pixel_cnn import PixelCNN
from mmgen.training.config import FitConfig
from mmgen.training.recipe import load_recipe, recipe_config
from mmgen.training.run_folder import training_minutes


def test_independent_pixels_have_their_frequencies():
    seen = torch.tensor([0.0, 0.0, 0.0, 1.0]).reshape(4, 1, 1, 1)  # with one of each: 4 of 6, 2 of 6
    assert independent_bits(seen, torch.zeros(1, 1, 1, 1), levels=2) == pytest.approx(-math.log2(4 / 6))
    both = independent_bits(seen, torch.tensor([0.0, 1.0]).reshape(2, 1, 1, 1), levels=2)
    assert both == pytest.approx(-(math.log2(4 / 6) + math.log2(2 / 6)) / 2)


def test_training_minutes_are_those_of_the_logged_speeds(tmp_path):
    lines = [{"step": 10, "items_per_s": 8.0}, {"step": 30, "items_per_s": 4.0}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    assert training_minutes(tmp_path, FitConfig(batch_size=2, accumulation=3)) == pytest.approx((60 / 8 + 120 / 4) / 60)


def test_bits_per_dim_of_a_uniform_model_are_those_of_its_levels():
    torch.manual_seed(0)
    model, processor = PixelCNN((1, 8, 8), levels=4, width=4, depth=2).eval(), ImageProcessor(8, 1)
    model.processors["image"] = processor
    for head in model.head.out:
        torch.nn.init.zeros_(head.weight)
        torch.nn.init.zeros_(head.bias)
    data = pictures(Data(limit=6), "test", processor)
    assert bits_per_dim(model, data, 6, samples=1) == pytest.approx(2.0)
    made = draw(model, 3, seed=0)
    assert made.shape == (3, 1, 8, 8) and torch.equal(made, draw(model, 3, seed=0))


def test_a_size_that_glow_cannot_halve_and_an_unknown_game_are_found_before_training():
    recipe = load_recipe("families")
    with pytest.raises(UserError, match="size for 2 scales: got 10 x 10, expected multiples of 4"):
        recipe_config(recipe, "config", ["data.size=10"])
    with pytest.raises(UserError, match=r"gan\.objective: got wgan"):
        recipe_config(recipe, "config", ["gan.objective=wgan"])
