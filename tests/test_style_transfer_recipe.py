"""The recipe style_transfer and `mmgen restyle`: tables of one's own, what judges read, and that no line is lost."""

import importlib
import io
import math
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from mmgen.cli import main
from mmgen.conditioning.language_model import load_language_model
from mmgen.errors import UserError
from mmgen.inference.restyle import restyle
from mmgen.judging.perplexity import Reader
from mmgen.judging.style import Sentences, StyleData, StyleScorer, sentence_log_probs, style_probs
from mmgen.judging.style_systems import THRESHOLDS, restyled, style_words, tuned
from mmgen.metrics.style import tokenize
from mmgen.models.base import load
from mmgen.models.style.edit_baselines import MarkerEditor
from mmgen.models.style.steered_copy import SteeredCopy
from mmgen.training.recipe import load_recipe, recipe_config
from mmgen.training.run import Run
from mmgen.training.study import evaluate, train

RECIPE = load_recipe("style_transfer")
MODULE = importlib.import_module("mmgen.recipes.style_transfer.train")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("style") / "run"
    train(RECIPE, recipe_config(RECIPE, "smoke", ["fit.steps=40"]), out)
    return out


@pytest.fixture
def typed(monkeypatch, capsys):
    """Runs `mmgen restyle` on bytes: (exit code, what it prints, its error)."""

    def restyled(run, target, lines: bytes, *options):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines), encoding="utf-8"))
        code = main(["restyle", str(run), "--to", target, *options])
        read = capsys.readouterr()
        return code, read.out, read.err

    return restyled


def test_lines_keep_their_order_their_endings_and_what_is_no_text(run, typed):
    lines = (
        "The tea was AWFUL!\n\n   \nI hate the music.\r\n\N{GRINNING FACE} \N{PILE OF POO}\nDie Suppe war schlecht.\nno end"
    )
    code, out, _ = typed(run, "positive", lines.encode())
    made, given = out.split("\n"), lines.split("\n")
    assert code == 0 and len(made) == len(given)
    assert made[0] != given[0] and made[0].startswith("The tea was ") and made[3].endswith("\r")
    assert [made[i] for i in (1, 2, 4, 5, 6)] == [given[i] for i in (1, 2, 4, 5, 6)]


def test_lines_are_restyled_without_the_language_model(run, typed):
    code, out, _ = typed(run, "positive", b"The tea was awful!\n", "--language-model", "")
    assert code == 0 and out == load(run, language_model="").restyle(["The tea was awful!"], "positive")[0] + "\n"
    code, _, error = typed(run, "positive", b"a\n", "--language-model", "missing")
    assert code == 2 and "language model missing" in error


def test_a_line_of_ten_thousand_words(run, typed):
    line = " ".join(["the soup was awful ."] * 2000)
    code, out, _ = typed(run, "positive", f"{line}\nThe soup was cold.\n".encode())
    long, short = out.splitlines()
    assert code == 0 and 8000 <= len(long.split()) <= 10000 and "awful" not in long and short.startswith("The soup was ")


def test_lines_are_read_some_at_a_time(run):
    model, read = load(run), []

    def lines():
        for i in range(7):
            read.append(i)
            yield f"line {i}\n".encode()

    made = restyle(model, lines(), "positive", at_once=3)
    assert next(made) == "line 0\n" and read == [0, 1, 2]
    assert len(list(made)) == 6


@pytest.mark.parametrize(
    ("target", "lines", "printed", "message"),
    [
        ("positve", b"a\n", "", "target: got positve, expected a known name; did you mean 'positive'?"),
        ("positive", b"the end\n\xff\n", "the end\n", "line 2: got 'utf-8' codec can't decode byte 0xff"),
    ],
)
def test_what_cannot_be_restyled_is_told(run, typed, target, lines, printed, message):
    code, out, error = typed(run, target, lines)
    assert code == 2 and out == printed and message in error and len(error.splitlines()) == 1


def test_a_judge_restyles_nothing(run, typed):
    code, _, error = typed(run / "stages" / "judge", "positive", b"a\n")
    assert code == 2 and "RUN: got classifier, expected a model that changes styles" in error


def table(file, rows, header="text,label", encoding="utf-8"):
    file.write_bytes("\n".join([header, *rows]).encode(encoding))
    return f"data.card={file}"


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        (["good,a"] * 3, {}, "data.label=label: got 1 styles (a), expected exactly two; keep two"),
        (["x,a", "y,b", "z,c"], {}, "label: got 3 styles (a, b, c), expected exactly two"),
        ([], {}, "my.csv: got no rows, expected at least one"),
        (
            ["x,a,p", "y,b,q"],
            {"header": "words,label,texts"},
            "data.text (a column of my): got text, expected a column of text; write data.text=words or data.text=texts",
        ),
        (["x,a", "y,b"], {"header": "text,mood"}, "expected a column of label; its columns are text, mood"),
        (["caf\N{LATIN SMALL LETTER E WITH ACUTE},a"], {"encoding": "latin-1"}, "my.csv: line 2: "),
    ],
)
def test_tables_that_cannot_be(tmp_path, rows, options, message):
    with pytest.raises(UserError) as error:
        recipe_config(RECIPE, "smoke", [table(tmp_path / "my.csv", rows, **options)])
    assert message in str(error.value)


def test_a_missing_table_is_named(tmp_path):
    with pytest.raises(UserError, match=r"got .*none\.csv, expected a card .* a table or a \.md file \(there is none\)"):
        recipe_config(RECIPE, "smoke", [f"data={tmp_path / 'none.csv'}"])


def test_a_split_that_the_second_stage_lacks_is_told_before_the_first(tmp_path, monkeypatch):
    with pytest.raises(
        UserError, match=r"evaluation\.split: got validation, expected a known name; choose one of test, train"
    ):
        recipe_config(RECIPE, "smoke", [table(tmp_path / "my.csv", ["text 0,a", "text 6,b"])])
    rows = ["text 0,a,train", "text 6,b,train", "text 1,a,validation", "text 2,a,test"]
    config = recipe_config(RECIPE, "smoke", [table(tmp_path / "my.csv", rows, header="text,label,split")])
    monkeypatch.setattr(Run, "fit", lambda *a, **k: pytest.fail("a stage was trained"))
    with pytest.raises(UserError, match="validation: got 1 text, none b"):
        train(RECIPE, config, tmp_path / "run")


def test_a_table_is_split_by_its_texts(tmp_path):
    rows = [f"text {i},{'ab'[i % 2]}" for i in range(400)] + [" ,a", "empty,"]
    config = recipe_config(RECIPE, "smoke", [table(tmp_path / "my.csv", rows)])
    splits = {split: config.data.sentences(split) for split in ("train", "validation", "test")}
    texts = [text for data in splits.values() for text in data.texts]
    assert sorted(texts) == sorted(f"text {i}" for i in range(400)) and splits["train"].names == ["a", "b"]
    assert 290 < len(splits["train"].texts) < 350
    for data in splits.values():
        assert all(label == int(text.split()[1]) % 2 for text, label in zip(data.texts, data.labels))
    assert config.data.sentences("train", 5).texts[0] == splits["train"].texts[0]


def test_the_judge_never_sees_what_the_model_trains_on(tmp_path, monkeypatch):
    config, asked, fitted, read = recipe_config(RECIPE, "smoke", []), [], [], StyleData.sentences
    monkeypatch.setattr(StyleData, "sentences", lambda self, split, *a: asked.append(split) or read(self, split, *a))
    monkeypatch.setattr(Run, "fit", lambda run, model, data, *a: fitted.append(len(data)))
    MODULE.judge(RECIPE.run(tmp_path), config)
    assert set(asked) == {"validation"}
    asked.clear()
    MODULE.rewriter(RECIPE.run(tmp_path), config)
    assert set(asked) == {"train"} and fitted == [len(read(config.data, split).texts) for split in ("validation", "train")]
    with pytest.raises(UserError, match=r"evaluation\.split: got train, expected a split that is neither"):
        recipe_config(RECIPE, "smoke", ["evaluation.split=train"])


def test_no_split_is_scored_by_a_judge_that_trained_on_it(run):
    with pytest.raises(UserError, match="--split: got validation, expected one the judge was not trained on"):
        evaluate(RECIPE, recipe_config(RECIPE, "smoke", []), run, "validation")


def test_a_split_without_a_style_is_named(tmp_path):
    rows = ["x,a,train", "y,b,train", "z,a,validation", "v,b,validation", "w,a,test"]
    config = recipe_config(RECIPE, "smoke", [table(tmp_path / "my.csv", rows, header="text,label,split")])
    with pytest.raises(UserError, match=r"my\.csv: test: got 1 text, none b, expected texts of both styles"):
        config.data.sentences("test")


def test_judged_one_by_one_and_together(run):
    judge = load(RECIPE.run(run).stage_folder("judge"))
    texts = ["The tea was awful.", "", "I love it", "..."]
    together = style_probs(judge, texts)
    assert together[1].tolist() == [0.5, 0.5] and together.sum(1) == pytest.approx(1)
    np.testing.assert_allclose(together, np.concatenate([style_probs(judge, [text]) for text in texts]), atol=1e-6)


def test_log_probs_are_those_of_the_language_model():
    model, tokenizer = load_language_model("tiny", "fp32")
    reader, text = Reader("tiny"), "good soup !"
    found = reader.log_probs([text, "x", text], end=True)
    begin = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    ids = torch.tensor([[begin, *tokenizer(text, add_special_tokens=False).input_ids, tokenizer.eos_token_id]])
    with torch.no_grad():
        log_p = model(ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])
    assert found[0] == found[2] == (pytest.approx(log_p.mean().item(), rel=1e-4), len(log_p))
    reader.model = None
    assert reader.log_probs(["x"], end=True) == [found[1]]  # not read again


def test_every_sentence_gets_the_style_it_is_not_in(run):
    class Echo:
        def restyle(self, texts, target):
            return [f"{text} {target}" for text in texts]

    data = Sentences(["a", "b", "c"], [0, 1, 0], ["bad", "good"])
    assert restyled(Echo(), data) == ["a good", "b bad", "c good"]


def test_the_worst_are_those_that_fail_or_lose_most():
    rows = [{"text": str(i), "output": "", "probability": 0.9, "kept": 1.0} for i in range(60)]
    rows[7] |= {"probability": 0.01}
    rows[9] |= {"kept": 0.0}
    rows[11] |= {"kept": None}
    drawn, worst = MODULE.drawn_and_worst(rows, seed=0)
    assert len(drawn) == MODULE.SHOWN and len(worst) == MODULE.WORST
    assert [row["text"] for row in worst[:2]] == ["9", "7"] and "11" not in [row["text"] for row in worst[:2]]
    assert MODULE.drawn_and_worst(rows, seed=0)[0] == drawn


def scorer(run, data):
    config, loaded = recipe_config(RECIPE, "smoke", []), RECIPE.run(run)
    judges = {"accuracy": loaded.load("judge"), "accuracy_order": loaded.load("order_judge")}
    return StyleScorer(judges, config.data.sentences("validation"), data, loaded.load("fluency_judge"))


def test_scores_without_references_leave_out_what_needs_them(run):
    data = recipe_config(RECIPE, "smoke", []).data.sentences("test")
    score = scorer(run, data)
    found = score(data.texts)
    accuracies = {"accuracy", "accuracy_order", "accuracy_strict"}
    assert found.keys() == {*accuracies, "self_bleu", "perplexity", "broken_share", "content_recall"}
    assert found["self_bleu"] == pytest.approx(100) and found["broken_share"] == 0
    assert found["accuracy_strict"] == min(found["accuracy"], found["accuracy_order"])
    rewritten = score.of(replace(data, references=[[text] for text in data.texts]))(data.texts)
    assert rewritten["ref_bleu"] == pytest.approx(100) and math.isfinite(rewritten["geometric_mean"])
    assert rewritten["style_content"] == pytest.approx(100 * math.sqrt(found["accuracy_strict"]))
    assert all(tokenize(word) == [word] for word in score.style_words)


def test_an_empty_rewrite_is_wrong_and_broken(run):
    data = Sentences(["the tea was awful .", "the tea was lovely ."], [0, 1], ["negative", "positive"])
    found = scorer(run, data)(["", ""])
    assert found["accuracy"] == found["accuracy_order"] == found["accuracy_strict"] == 0 and found["broken_share"] == 1


def test_the_fluency_judge_says_the_same_every_time_and_of_every_batch(run):
    judge, texts = RECIPE.run(run).load("fluency_judge"), ["the tea was awful .", "soup", "the tea was awful ."]
    found = sentence_log_probs(judge, texts)
    assert found == sentence_log_probs(judge, texts) and all(log_p < 0 for log_p in found)


def test_a_baseline_is_tuned_on_sentences_held_out_of_train(run):
    config = recipe_config(RECIPE, "smoke", [])
    data, score = config.data.sentences("train"), scorer(run, config.data.sentences("test"))
    editor = tuned("delete", data, score)
    learnt = {t: MarkerEditor.learn(data.texts, data.labels, data.names, "delete", threshold=t) for t in THRESHOLDS}
    assert editor.markers in [other.markers for other in learnt.values()]


# other rewriters and judges

AUTOENCODER = [
    "evaluation.margins=[]",
    "autoencoder.dim=16",
    "autoencoder.depth=1",
    "autoencoder.heads=2",
]


def test_an_autoencoder_by_the_same_commands(tmp_path, run, typed):
    config = recipe_config(RECIPE, "smoke", ["objective=reinforced", *AUTOENCODER])
    train(RECIPE, config, tmp_path / "run", stages_from={name: run for name in ("judge", "order_judge", "fluency_judge")})
    assert load(tmp_path / "run").objective == "reinforced"
    figures = evaluate(RECIPE, config, tmp_path / "run", "test")
    assert {"accuracy", "self_bleu", "content_recall", "sentences_per_s"} <= figures.keys()
    card = (tmp_path / "run" / "README.md").read_text(encoding="utf-8")
    assert "objective reinforced" in card and "Card `smoke`, licence unknown." in card and "mmgen data show" not in card
    code, out, _ = typed(tmp_path / "run", "positive", b"The tea was awful!\n\nEs regnet heute.\n")
    assert code == 0 and out.split("\n")[1:] == ["", "Es regnet heute.", ""]


def test_a_pretrained_judge(tmp_path):
    MODULE.order_judge(RECIPE.run(tmp_path / "run"), recipe_config(RECIPE, "smoke", []))
    judge = load(RECIPE.run(tmp_path / "run").stage_folder("order_judge"))
    assert judge.name == "mag" and judge.class_names == ["negative", "positive"]
    together = style_probs(judge, ["the tea was awful .", "", "tea"])
    assert together[1].tolist() == [0.5, 0.5] and np.allclose(together.sum(1), 1, atol=1e-5)
    assert np.allclose(together[2], style_probs(judge, ["tea"])[0], atol=1e-5)


def test_what_only_an_edit_has_is_refused_of_others():
    with pytest.raises(UserError, match=r"evaluation.margins: got margins for objective=controlled, expected none; set"):
        recipe_config(RECIPE, "smoke", ["objective=controlled"])
    with pytest.raises(UserError, match="objective"):
        recipe_config(RECIPE, "smoke", ["objective=delete"])


def test_a_judge_of_another_split_is_no_judge_of_this_run(tmp_path, run):
    config = recipe_config(RECIPE, "smoke", ["evaluation.vocab_size=290"])
    with pytest.raises(UserError, match=r"other values of evaluation.vocab_size \(300, now 290\)"):
        train(RECIPE, config, tmp_path / "run", stages_from={"judge": run})


def test_a_language_model_is_steered_to_write_the_sentence_again(tmp_path, run):
    config = recipe_config(RECIPE, "smoke", ["evaluation.steered=2", "evaluation.steering=tiny", "evaluation.margins=[]"])
    figures = MODULE.evaluate(RECIPE.run(run), config, "test").figures()
    assert {"accuracy_steered", "self_bleu_steered", "perplexity_steered"} <= figures.keys()
    data = config.data.sentences("train")
    words = style_words(data)
    assert "awful" in words[0] and not set(words[0]) & set(words[1])
    writer = SteeredCopy(*load_language_model("tiny", "fp32"), data.names, words)
    texts = ["the tea was awful .", "", "soup"]
    made = writer.restyle(texts, "positive")
    assert made[1] == "" and made == writer.restyle(texts, "positive")
    part = Sentences(list("abcdef"), [0, 1] * 3, ["x", "y"], [[t] for t in "ABCDEF"]).part(3)
    assert (part.texts, part.labels, part.references) == (["a", "c", "e"], [0, 0, 0], [["A"], ["C"], ["E"]])


def test_a_language_model_does_not_judge_what_it_weighed():
    message = (
        "evaluation.fluency: got tiny, expected another language model than model.language_model; set evaluation.fluency="
    )
    with pytest.raises(UserError, match=message):
        recipe_config(RECIPE, "smoke", ["evaluation.fluency=tiny"])
