"""Results of evaluations: flat figures, what a run folder keeps of them, and the reports made of them and of card.md."""

import json
import math
from dataclasses import dataclass, field, replace

import pytest
import torch
from PIL import Image

from mmgen.errors import UserError
from mmgen.training.config import FitConfig, section
from mmgen.training.recipe import Recipe, RecipeConfig, Stage, stage
from mmgen.training.result import Result, read_result
from mmgen.training.run_report import write_reports
from mmgen.training.study import evaluate, train

CARD = """---
name: own-{data.name}
title: "Own: {word}"
description: A model of {data.name}.
tags: [own, "{word}"]
---
It trains {config.fit.steps} steps
on {data.name}.

## Use

{word}, of {data.license}.
"""


@dataclass
class Data:
    card: str = "digits"


@dataclass
class Config(RecipeConfig):
    data: Data = section()
    fit: FitConfig = field(default_factory=lambda: FitConfig(steps=7))


def result(seed=0):
    found = Result("model", {"blind": "without the picture"}, {"judge_accuracy": 0.9}, outputs=["a"], words={"word": "said"})
    found["model"], found["blind"] = {"cider": 4.0 + seed}, {"cider": 0.5}
    found["unused"]  # without figures: no row
    found.texts["tokenisation"] = "by words"
    found.show(Image.new("RGB", (8, 8), "red"), {"model": "a cat"}, note="best", group="drawn", name="cat")
    found.show(Image.new("L", (8, 8)), {"model": "a dog"}, wide=True)
    found.hear("tone", torch.zeros(80), 8000)
    return found


def trains(run, config):
    (run.stage_folder() / "model").mkdir(parents=True)


@pytest.fixture
def recipe(tmp_path):
    """A recipe of one's own, with a card.md, that evaluates to `result`."""
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "card.md").write_text(CARD, encoding="utf-8")
    return Recipe(
        "own", Config, [Stage("model", trains)], lambda run, config, split: result(config.seed), place=tmp_path / "own"
    )


def evaluated(recipe, out, config=None, split="test"):
    train(recipe, config or Config(), out, command=["train", "own"])
    return evaluate(recipe, config or Config(), out, split)


def read(file):
    return file.read_text(encoding="utf-8")


def test_figures_are_flat():
    assert result().figures() == {"cider": 4.0, "cider_blind": 0.5, "judge_accuracy": 0.9}
    assert list(result()) == ["model", "blind", "unused"] and len(result()) == 3
    first = Result("model")
    first["blind"] = {"cider": 0.5}  # the model's own row comes first, whoever is judged first
    first["model"] |= {"cider": 1.0}
    assert list(first.figures()) == ["cider", "cider_blind"]


def test_a_result_is_read_as_it_was_saved(tmp_path):
    (tmp_path / "samples").mkdir()
    result().save(tmp_path, "test")
    kept = read_result(tmp_path, "test")
    assert kept.systems == {"model": {"cider": 4.0}, "without the picture": {"cider": 0.5}}
    assert (kept.about, kept.texts, kept.words) == ({"judge_accuracy": 0.9}, {"tokenisation": "by words"}, {"word": "said"})
    first, second = kept.samples
    assert (first.text, first.note, first.group, first.wide) == ({"model": "a cat"}, "best", "drawn", False) and second.wide
    assert first.picture().getpixel((0, 0)) == (255, 0, 0)
    files = sorted(str(file.relative_to(tmp_path)) for file in tmp_path.rglob("*.*"))
    assert files == ["predictions/test.json", "results/test.json", "samples/test_01.png", "samples/test_cat.png",
                     "samples/test_tone.wav"]  # fmt: skip
    assert json.loads(read(tmp_path / "predictions" / "test.json")) == ["a"]
    assert read_result(tmp_path, "validation") is None
    (tmp_path / "samples" / "test_cat.png").unlink()
    assert [sample.text for sample in read_result(tmp_path, "test").samples] == [{"model": "a dog"}]


def test_card_md_says_what_config_data_and_result_are(recipe, tmp_path):
    evaluated(recipe, tmp_path / "run")
    card, page = (read(tmp_path / "run" / name) for name in ("README.md", "report.html"))
    assert "# own-digits" in card and "A model of digits." in card and "- said" in card
    assert "## Use\n\nsaid, of " in card and "| test | without the picture | 0.50 |" in card
    assert "Own: said" in page and "It trains 7 steps on digits." in page and "judge_accuracy: 0.9" in page
    assert "test: drawn" in page and "tokenisation (test)" in page and "mmgen train own" in page


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("---\ntitle: a\n---\n{wrd}\n", r"card\.md: got 'wrd', expected placeholders that have a value; use \{config"),
        ("---\ntitle: '{config.fit.stps}'\n---\n", r"card\.md: got .*stps"),
        ("---\ntitle: a\n---\n{data.nme}\n", r"card\.md: got .*nme"),
        ("A title\n", r"card\.md: got 'A title\\n', expected front matter"),
    ],
)
def test_a_placeholder_without_a_value_is_named(recipe, tmp_path, text, message):
    (recipe.folder / "card.md").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=message):
        evaluated(recipe, tmp_path / "run")


def test_a_recipe_without_card_md_has_reports_under_its_name(recipe, tmp_path):
    (recipe.folder / "card.md").unlink()
    evaluated(recipe, tmp_path / "run")
    assert "# own-digits" in read(tmp_path / "run" / "README.md") and "<h1>own</h1>" in read(tmp_path / "run" / "report.html")


def test_a_recipe_without_a_data_card_has_a_report_and_no_model_card(recipe, tmp_path):
    (recipe.folder / "card.md").unlink()
    evaluated(replace(recipe, config=RecipeConfig), tmp_path / "run", RecipeConfig())
    assert (tmp_path / "run" / "report.html").is_file() and not (tmp_path / "run" / "README.md").exists()


def test_the_report_of_a_study_is_of_the_mean_over_its_seeds(recipe, tmp_path):
    figures = evaluated(recipe, tmp_path / "study", Config(seeds=2))
    assert figures["cider"] == 4.5 and figures["cider_sd"] == pytest.approx(0.5**0.5) and figures["seeds"] == 2
    card = read(tmp_path / "study" / "README.md")
    assert "| test | model | 4.50 ±\u00a00.71 |" in card and "| test | without the picture | 0.50 ±\u00a00.00 |" in card
    assert "| test | model | 5.00 |" in read(tmp_path / "study" / "seed_1" / "README.md")


def test_a_figure_that_is_no_number_leaves_a_study_whole(recipe, tmp_path):
    def evaluated_to(run, config, split):
        found = Result("model", words={"word": "said"})
        found["model"] = {"cider": 1.0, "fid": math.nan if config.seed else 2.0}
        return found

    figures = evaluated(replace(recipe, evaluate=evaluated_to), tmp_path / "study", Config(seeds=2))
    assert (figures["cider"], figures["cider_sd"]) == (1.0, 0.0) and math.isnan(figures["fid"])


def test_figures_of_an_older_version_stay_in_the_report(recipe, tmp_path):
    evaluated(recipe, tmp_path / "run")
    (tmp_path / "run" / "results" / "test.json").unlink()  # an older version wrote metrics.json alone
    (recipe.folder / "card.md").write_text("---\ntitle: Own\n---\n", encoding="utf-8")
    write_reports(tmp_path / "run", Config(), recipe.folder / "card.md")
    assert "| test | model | 4.00 |" in read(tmp_path / "run" / "README.md")
    evaluate(recipe, Config(), tmp_path / "run", "validation")
    card = read(tmp_path / "run" / "README.md")
    assert "| test | model | 4.00 |" in card and "| validation | without the picture |" in card


def test_membership_adds_no_system_and_two_figures_of_one_name_are_refused():
    result = Result("m")
    assert "a" not in result and result.get("a", {}) == {} and list(result) == ["m"]
    result["m"], result["text"] = {"a_text": 1.0}, {"a": 2.0}
    with pytest.raises(UserError, match="figure a_text: got two of this name"):
        result.figures()


def test_figures_are_numbers():
    result = Result("m")
    result["m"] = {"a": torch.tensor(2.0), "b": True, "c": 3}
    assert result["m"] == {"a": 2.0, "b": True, "c": 3}
    with pytest.raises(UserError, match=r"figure a: got .*, expected a number; give its mean"):
        result["m"] = {"a": torch.zeros(2)}


def test_an_author_of_a_recipe_is_told_what_is_wrong(tmp_path):
    @stage
    def part(run, config):
        (run.stage_folder() / "model").mkdir(parents=True)

    recipe = Recipe("own", RecipeConfig, [part], lambda run, config, split: None)
    train(recipe, RecipeConfig(), tmp_path / "run")
    with pytest.raises(UserError, match="evaluate of own: got NoneType, expected a Result"):
        evaluate(recipe, RecipeConfig(), tmp_path / "run", "test")
