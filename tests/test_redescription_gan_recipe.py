"""The recipe redescription_gan: its captioner, what its figures are of true pictures, and configs that cannot be."""

import importlib
import shutil
from dataclasses import replace
from functools import partial

import pytest
import torch
import yaml
from PIL import Image

from mmgen.data import rows
from mmgen.data.batch import Batch
from mmgen.data.image import ImageProcessor
from mmgen.errors import UserError
from mmgen.inference.files import generate_files
from mmgen.judging import pictures as judging
from mmgen.judging.classifier import JudgeConfig, trained_judge
from mmgen.judging.features import nearest_pictures
from mmgen.models.base import load
from mmgen.training.config import FitConfig, read_yaml
from mmgen.training.recipe import load_recipe, recipe_config
from mmgen.training.run import Run
from mmgen.training.run_folder import check_run_folder, open_run
from mmgen.training.study import evaluate, train

RECIPE = load_recipe("redescription_gan")
MODULE = importlib.import_module("mmgen.recipes.redescription_gan.train")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of the smoke config and its config."""
    out, config = tmp_path_factory.mktemp("redescription") / "run", recipe_config(RECIPE, "smoke", ["fit.sample_every=6"])
    train(RECIPE, config, out)
    return out, config


@pytest.fixture(scope="module")
def data(run):
    out, config = run
    return config.data.pairs("test", **load(out).processors, limit=config.evaluation.items)


def test_the_gan_has_the_captioner_of_the_stage_before(run):
    out, config = run
    model, captioner = load(out), load(RECIPE.run(out).stage_folder("captioner"))
    state = captioner.own_state()
    assert all(torch.equal(value, state[name]) for name, value in model.redescriber.own_state().items())
    torch.manual_seed(config.seed)
    _, untrained = MODULE.build(config, captioner.vocabulary)
    assert not torch.equal(untrained.decoder.prefix.weight, state["decoder.prefix.weight"])


def test_the_gan_begins_with_the_words_of_the_captioner(run, tmp_path, monkeypatch):
    out, config = run
    words, begun = load(RECIPE.run(out).stage_folder("captioner")).decoder.transformer.embed.weight, []
    monkeypatch.setattr(Run, "fit", lambda run, model, *_: begun.append(model))
    (tmp_path / "stages").symlink_to(out / "stages")
    MODULE.gan(RECIPE.run(tmp_path), config)
    for encoder in (begun[0].text, begun[0].discriminator.text):
        assert torch.equal(encoder.embed.weight, words)


def test_training_reads_no_test_split(run, tmp_path, monkeypatch):
    read, real = [], rows.open_card

    def noted(card, split, **options):
        read.append(split)
        return real(card, split, **options)

    monkeypatch.setattr(rows, "open_card", noted)
    config = replace(run[1], fit=replace(run[1].fit, steps=1), fit_captioner=replace(run[1].fit_captioner, steps=1))
    train(RECIPE, config, tmp_path / "run")
    assert set(read) == {"train", "validation"}  # the second for the pictures that are shown


def test_a_captioner_of_another_run_serves_another_weight(run, tmp_path):
    out, config = run
    without = replace(config, gan=replace(config.gan, redescription=0.0), fit=replace(config.fit, steps=1))
    train(RECIPE, without, tmp_path / "without", stages_from={"captioner": out})
    assert load(tmp_path / "without").redescriber is None
    with_, without = (MODULE.evaluate(RECIPE.run(r), c, "test") for r, c in ((out, config), (tmp_path / "without", without)))
    assert with_["real"]["redescription"] == without["real"]["redescription"]


class Looks:
    """In place of an aligned model: pictures and texts are near where they show and say the same digit's picture."""

    towers = ("image", "text")

    def __init__(self, data):
        self.data, self.process = data, data.processors["image"]

    def to(self, device):
        return self

    def points(self, values, modality):
        told = lambda text: self.data[self.data.texts.index(text)]["image"]  # noqa: E731
        read = told if modality == "text" else self.process
        return torch.nn.functional.normalize(torch.stack([read(value).flatten() for value in values]), dim=1)


def test_true_pictures_in_place_of_drawn_ones_have_the_figures_of_true_pictures(run, data, monkeypatch):
    out, config = run
    config = replace(config, aligned={"data": {"card": "digits"}})
    monkeypatch.setattr(judging, "trained_space", lambda config, size: Looks(data))
    monkeypatch.setattr(MODULE, "draw_all", lambda model, pairs, seed: pairs.all("image"))
    figures = MODULE.evaluate(RECIPE.run(out), config, "test").figures()
    for name in ("redescription", "r_precision", "digit_accuracy", "nearest_rmse"):
        assert figures[name] == figures[f"{name}_real"], name
    assert figures["judge_disjoint"] and 0 < figures["judge_accuracy"] < 1
    first = {data.texts.index(text) for text in data.texts}  # of each digit the picture that stands for its text
    assert figures["r_precision"] >= len(first) / len(data)


def test_redescription_is_the_mean_over_all_pairs(run, data, monkeypatch):
    captioner = load(RECIPE.run(run[0]).stage_folder("captioner"))
    pictures = torch.stack([row["image"] for row in data])
    with torch.no_grad():
        each = captioner.log_likelihood(data.batch(range(len(data))))
        ids = data[1]["text"][None]
        moved = Batch({"image": pictures[:1], "text": ids}, {"text": torch.ones(ids.shape, dtype=torch.bool)})
        shown = captioner.log_likelihood(moved)
    monkeypatch.setattr(data, "batches", partial(data.batches, size=7))
    assert MODULE.redescription(captioner, data, pictures) == pytest.approx(-each.mean().item(), rel=1e-5)
    swapped = pictures.clone()
    swapped[1] = pictures[0]
    expected = -(each.sum() - each[1] + shown[0]).item() / len(data)
    assert MODULE.redescription(captioner, data, swapped) == pytest.approx(expected, rel=1e-5)


def test_what_is_drawn_depends_on_the_seed_and_not_on_the_batches(run, data, monkeypatch):
    model = load(run[0])
    drawn = MODULE.draw_all(model, data, 0)
    assert torch.equal(MODULE.draw_all(model, data, 0), drawn) and not torch.allclose(MODULE.draw_all(model, data, 1), drawn)
    assert drawn.shape == (20, 1, 8, 8) and drawn.abs().max() <= 1


def test_prompts_become_files(run, tmp_path):
    model = load(run[0])
    made = generate_files(model, {"text": ["a handwritten seven", "two"]}, "image", n=2, out=tmp_path)
    files = [file for of_prompt in made for file in of_prompt]
    assert len(files) == len(set(files)) == 4 and all(Image.open(file).size == (8, 8) for file in files)
    for prompt, message in (
        ("  ", "text: got ' ', expected at least one word"),
        ("nine " * 40, r"text of item 0: got \d+ tok"),
    ):
        with pytest.raises(UserError, match=message):
            generate_files(model, {"text": [prompt]}, "image", out=tmp_path)
    with pytest.raises(UserError, match="--n: got 0"):
        generate_files(model, {"text": ["two"]}, "image", n=0, out=tmp_path)


def test_a_report_shows_the_prompts(run):
    out, config = run
    evaluate(RECIPE, config, out, "test")
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "a handwritten" in page and "true pictures" in page and "re-captioning loss 0.5" in page
    assert (out / "samples" / "samples.png").is_file() and "text-to-image" in (out / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("gan.vocabulary=5", ["gan.vocabulary", "an unknown key"]),
        ("captioner.shape=[1,8,8]", ["captioner.shape", "an unknown key"]),
        ("gan.sizes=[4,12]", ["sizes", "[4, 12]", "each twice the one before"]),
        ("gan.redescription=-1", ["redescription", "-1", ">= 0"]),
        ("gan.text.dim=8", ["gan.text.dim", "8", "captioner.decoder.dim, 16", "set gan.text.dim=16"]),
        ("captioner.encoder.widht=3", ["encoder.widht", "did you mean 'width'?"]),
        ("data.image=word", ["data.image=word", "a column of text", "image"]),
        ("data.text=image", ["data.text=image", "a column of image", "text"]),
        ("data.text_length=1", ["data.text_length", "1", ">= 2"]),
        ("data.limit=-1", ["data.limit", "-1", ">= 0"]),
        ("data.label=digit", ["data.label", "digit"]),
        ("evaluation.items=1", ["evaluation.items", "1", "two or more"]),
        ("evaluation.among=1", ["evaluation.among", "1", ">= 2"]),
        ("judge.data.input=pictures", ["data.input", "pictures"]),
        ("aligned.data.text=picture", ["data.text", "picture"]),
    ],
)
def test_configs_that_cannot_be(override, words):
    with pytest.raises(UserError) as error:
        recipe_config(RECIPE, "smoke", [override])
    assert all(word in str(error.value) for word in words), str(error.value)


@pytest.mark.parametrize("override", ["captioner.noise=0.1", "gan.sizes=[8]"])
def test_a_captioner_of_other_settings_is_not_taken(run, tmp_path, override):
    key = override.partition("=")[0]
    with pytest.raises(UserError, match=rf"other values of {key} "):
        train(RECIPE, recipe_config(RECIPE, "smoke", [override]), tmp_path / "run", stages_from={"captioner": run[0]})


def test_a_text_that_is_too_long_is_named(run):
    out, config = run
    with pytest.raises(
        UserError, match=r"digits: test: row \d+: column caption: got \d+ tokens: 'a handwritten \w+', expected at most 3"
    ):
        replace(config.data, text_length=3).pairs("test", **load(out).processors)


def test_a_run_of_an_older_version_is_read_by_its_old_keys(run, tmp_path):
    out, config = tmp_path / "run", run[1]
    shutil.copytree(run[0], out)
    values = read_yaml(out / "config.yaml")
    values["captioner_fit"] = values.pop("fit_captioner")
    values["data"] |= {"input": values["data"].pop("image"), "length": values["data"].pop("text_length")}
    values["judge"] = {}
    (out / "config.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    recipe, read = open_run(out)
    assert read == replace(config, judge={}) and recipe.name == RECIPE.name
    check_run_folder(read, out, resume=True)
    assert "redescription_real" in evaluate(recipe, read, out, "validation")
    values["aligned"] = {"data": {"card": "digits", "side": 8}}
    (out / "config.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    assert open_run(out)[1].nested()["aligned"].data.size == 8


def test_pictures_of_ones_own_are_judged_without_a_recipe(monkeypatch):
    judged = trained_judge(JudgeConfig(fit=FitConfig(steps=2, batch_size=8, tracker="none"), encoder={"dim": 8, "width": 4}))
    columns, image = {"image": "image", "text": "caption"}, ImageProcessor(8, 1)
    data = rows.DataSet(rows.open_rows("digits", "test", [*columns.values()], limit=6), columns, {"image": image})
    monkeypatch.setattr(judging, "picture_features", lambda network, image, values: torch.stack(values).flatten(1))
    judges = judging.PictureJudges(data, image, judged, features="pixels")
    assert judges.of_texts(data.all("image")).keys() == {"digit_accuracy"} and judges.about["judge_disjoint"]
    assert judges.fidelity(data.all("image"))["fid_pixels"] == pytest.approx(0, abs=1e-4)


def test_the_nearest_picture_is_found_and_how_far_it_is():
    seen = torch.stack([torch.full((1, 2, 2), value) for value in (-1.0, 0.0, 1.0)])
    distance, place = nearest_pictures(torch.stack([torch.full((1, 2, 2), 0.8), seen[0]]), seen)
    assert place.tolist() == [2, 0] and distance.tolist() == pytest.approx([0.2, 0.0], abs=1e-4)
