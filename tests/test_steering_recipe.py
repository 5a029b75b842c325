"""The recipe steering: its arms, its measures by hand, and texts that are not written twice."""

import importlib
import json
import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from mmgen.cli import main
from mmgen.conditioning.language_model import load_language_model
from mmgen.errors import UserError
from mmgen.judging.perplexity import Reader
from mmgen.metrics.diversity import share_with
from mmgen.training.recipe import load_recipe, recipe_config
from mmgen.training.report import scatter

RECIPE = load_recipe("steering")
steering = importlib.import_module("mmgen.recipes.steering.train")


def rivals(*scores: float) -> list[dict]:
    return [{"prompt": "The", "text": f" text {score}", "attribute": score} for score in scores]


def test_arms():
    made = {"unsteered": {"positive": [rivals(1.0, 3.0), rivals(2.0, 0.0)]}, "gedi": {"positive": [rivals(5.0)]}}
    found = steering.arms(made, threshold=0.0)
    assert [row["attribute"] for row in found["b"]["positive"]] == [1.0, 2.0]
    assert [row["attribute"] for row in found["br"]["positive"]] == [3.0, 2.0]
    assert found["gedi_bc"]["positive"] == rivals(5.0)
    assert "gedi_bcr" not in found  # one candidate cannot be ranked


def test_texts_are_written_as_the_judges_reviews():
    found = steering.as_reviews("I don\N{RIGHT SINGLE QUOTATION MARK}t like it; \"we've\" waited (long), it's Bob's.")
    assert found == "i do n't like it ; \" we 've \" waited ( long ) , it 's bob 's ."


def test_shares_of_words():
    texts = [" The Planets shine", " a planetary idea", " moonlight", " the moon."]
    assert share_with(texts, ["planet", "moon"]) == 0.5


@torch.no_grad()
def test_perplexity_by_hand():
    """Of the tokens after the prompt, each text once, an empty one not at all."""
    model, tokenizer = load_language_model("tiny", "fp32")
    ids = torch.tensor([[tokenizer.bos_token_id, *tokenizer("ab").input_ids]])
    log_p = model(ids).logits[0].log_softmax(-1)
    reader = Reader("tiny")
    assert reader.perplexity(["b", "b", ""], ["a"] * 3) == pytest.approx(math.exp(-log_p[1, ids[0, 2]].item()), rel=1e-4)
    both = log_p[:2].gather(1, ids[0, 1:, None]).mean().item()
    texts = reader.log_probs(["ab", "a", "", "ab"], end=True)  # of several lengths, some of them twice
    assert [count for _, count in texts] == [3, 2, 1, 3] and texts[0] == texts[3]
    assert reader.log_probs(["ab"]) == [(pytest.approx(both, rel=1e-4), 2)]
    assert reader.log_probs(["b"], ["a"])[0][0] == pytest.approx(log_p[1, ids[0, 2]].item(), rel=1e-4)


def scored(**methods: tuple[float, float, float]) -> dict[str, dict[str, float]]:
    """Figures of BC and BCR by method: success of either, and the perplexity ratio of BC."""
    figures = {"b": {"success": 0.5}, "br": {"success": 0.7}}
    for method, (bc, bcr, ratio) in methods.items():
        figures[f"{method}_bc"] = {"success": bc, "perplexity_ratio": ratio}
        figures[f"{method}_bcr"] = {"success": bcr, "perplexity_ratio": 1.0}
    return figures


def test_the_best_method_is_the_best_fluent_one():
    figures = scored(pplm=(0.6, 0.8, 1.1), fudge=(0.7, 0.9, 1.2), gedi=(0.9, 1.0, 1.4))
    found = steering.gains(figures, figures, ["pplm", "fudge", "gedi"])
    assert found == pytest.approx({"gain_bc": 0.2, "gain_bcr": 0.4, "gain_bcr_over_br": 0.2})
    assert steering.gains(figures, figures, ["gedi"]) == {}


def test_gains_are_of_the_method_that_validation_chose(tmp_path, monkeypatch):
    """On test the other one is better, and its gains are not reported."""
    scores = {"test": {"pplm": 0.9, "fudge": 0.6}, "validation": {"pplm": 0.6, "fudge": 0.9}}
    methods = ("unsteered", "pplm", "fudge")

    def figures(kind, chosen, *more):
        (row,) = chosen["b"]["7"]
        return scored(**{method: (success, success, 1.0) for method, success in scores[row["prompt"]].items()})

    def written(run, config, split, kind):
        return {method: {"7": [[{"prompt": split, "text": "", "attribute": 0.0}] * 2]} for method in methods}

    monkeypatch.setattr(steering, "write", written)
    monkeypatch.setattr(steering, "arm_figures", figures)
    monkeypatch.setattr(steering, "trained_judge", lambda config: SimpleNamespace(accuracy=1.0))
    monkeypatch.setattr(steering, "Reader", lambda language_model: None)
    monkeypatch.setattr(steering, "speeds", lambda *arguments: dict.fromkeys(methods, 1.0))
    config, run = recipe_config(RECIPE, "smoke", ["topic.attributes=[]"]), RECIPE.run(tmp_path / "run")
    config.sentiment.methods = {"pplm": {}, "fudge": {}}
    assert steering.evaluate(run, config, "test").about["gain_bc"] == pytest.approx(0.1)
    assert steering.evaluate(run, config, "validation").about["gain_bc"] == pytest.approx(0.4)


def test_texts_that_are_there_are_not_written_again(tmp_path, monkeypatch):
    """Stopped after the first prompt, it goes on with the second."""
    assert main(["train", "steering", "--config", "smoke", "--out", str(tmp_path / "run")]) == 0
    config = recipe_config(RECIPE, "smoke", [])
    texts = replace(config.sentiment, prompts={"test": ["The", "So"]}, methods={"gedi": {}})
    config, write, calls = replace(config, sentiment=texts), steering.steer.write, []
    run = RECIPE.run(tmp_path / "run")

    def counted(model, tokenizer, prompts, *arguments, **more):
        calls.append(prompts)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return write(model, tokenizer, prompts, *arguments, **more)

    monkeypatch.setattr(steering.steer, "write", counted)
    monkeypatch.setattr(steering.steer, "AT_ONCE", 4)  # one prompt
    with pytest.raises(KeyboardInterrupt):
        steering.write(run, config, "test", "sentiment")
    made = steering.write(run, config, "test", "sentiment")
    assert calls == [["The"], ["So"], ["So"], ["The"], ["So"]]  # unsteered, then by GeDi
    assert [len(made[method]["7"]) for method in ("unsteered", "gedi")] == [4, 4]  # 2 prompts x 2 samples
    assert {row["prompt"] for row in made["gedi"]["7"][0]} == {"The"}
    kept = json.loads((tmp_path / "run/texts/test/gedi-7.json").read_text(encoding="utf-8"))
    assert kept.keys() == {"The", "So"}
    monkeypatch.setattr(steering.steer, "write", None)
    assert steering.write(run, config, "test", "sentiment") == made


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("sentiment.attributes=[nine]", "sentiment.attributes: got nine, expected a known name"),
        ("topic.attributes=[spcae]", "topic.attributes: got spcae, expected a known name; did you mean 'space'?"),
        ("sentiment.methods={gedy: {}}", "sentiment.methods: got gedy, expected a known name; did you mean 'gedi'?"),
        ("topic.methods={gedi: {}}", "topic.methods: got gedi, expected a known name"),
        ("threshold=2.0", "threshold: got 2.0, expected 0 to 1"),
        ("sentiment.methods={gedi: {strenth: 2}}", "option: got strenth, expected a known name; did you mean 'strength'?"),
        ("sentiment.methods={gedi: {strength: -2.0}}", "strength: got -2.0, expected a number >= 0"),
        ("topic.methods={pplm: {step_size: -1.0}}", "step_size: got -1.0, expected a number >= 0"),
        ("sentiment.prompts={validation: []}", "prompts of sentiment.prompts.validation: got 0"),
        ("sentiment.samples=0", "sentiment.samples: got 0"),
    ],
)
def test_mistakes(override, message):
    with pytest.raises(UserError) as error:
        recipe_config(RECIPE, "smoke", [override])
    assert message in str(error.value)


def test_scatter_puts_larger_values_right_and_up():
    size = (200, 150)
    picture = scatter({"": (1.0, 0.2), " ": (100.0, 0.9)}, "x", "y", size)
    blue = [(x, y) for x in range(size[0]) for y in range(size[1]) if picture.getpixel((x, y)) == (11, 92, 173)]
    left, right = min(blue), max(blue)
    assert left[0] < right[0] - 50 and left[1] > right[1] + 50
    with pytest.raises(UserError, match="scatter: got slow at 0"):
        scatter({"slow": (0, 1.0)}, "x", "y")
    with pytest.raises(UserError, match="scatter: got no points"):
        scatter({}, "x", "y")
