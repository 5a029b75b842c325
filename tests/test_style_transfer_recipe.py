"""The recipe style_transfer and `mmgen restyle`: tables of one's own, what judges read, and that no line is lost."""

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
from mmgen.metrics.style import tokenize
from mmgen.models.base import load
from mmgen.training.recipe import load_recipe, recipe_config
from mmgen.training.study import evaluate, train

RECIPE = load_recipe("style_transfer")
MODULE = sys.modules[RECIPE.config.__module__]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("style") / "run"
    train(RECIPE, recipe_config(RECIPE, "smoke", ["fit.steps=40"]), out)
    return out


@pytest.fixture
def typed(monkeypatch, capsys):
    """Runs `mmgen restyle` on bytes: (exit code, what it prints, its error)."""

    def restyled(run, target, lines: bytes):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines), encoding="utf-8"))
        code = main(["restyle", str(run), "--to", target])
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
    with pytest.raises(UserError, match=r"judging\.split: got validation, expected a known name; choose one of test, train"):
        recipe_config(RECIPE, "smoke", [table(tmp_path / "my.csv", ["text 0,a", "text 6,b"])])
    config = recipe_config(RECIPE, "smoke", [])  # of a card it is known when its rows are read
    read_all = MODULE.read_all
    empty = MODULE.Texts([], [], ["negative", "positive"])
    monkeypatch.setattr(MODULE, "read_all", lambda c, split, n: empty if split == "validation" else read_all(c, split, n))
    monkeypatch.setattr(MODULE, "fit", lambda *a, **k: pytest.fail("a stage was trained"))
    with pytest.raises(UserError, match="validation: got 0 texts"):
        MODULE.train(config, tmp_path, False)


def test_a_table_is_split_by_its_texts(tmp_path):
    rows = [f"text {i},{'ab'[i % 2]}" for i in range(400)] + [" ,a", "empty,"]
    config = recipe_config(RECIPE, "smoke", [table(tmp_path / "my.csv", rows)])
    splits = {split: MODULE.read(config, split) for split in ("train", "validation", "test")}
    texts = [text for data in splits.values() for text in data.texts]
    assert sorted(texts) == sorted(f"text {i}" for i in range(400)) and splits["train"].names == ["a", "b"]
    assert 290 < len(splits["train"].texts) < 350
    for data in splits.values():
        assert all(label == int(text.split()[1]) % 2 for text, label in zip(data.texts, data.labels))
    assert MODULE.read(config, "train", 5).texts[0] == splits["train"].texts[0]


def test_the_judge_never_sees_what_the_model_trains_on(tmp_path, monkeypatch):
    config, asked = recipe_config(RECIPE, "smoke", []), []
    read = MODULE.read
    monkeypatch.setattr(MODULE, "read", lambda config, split, limit=0: asked.append(split) or read(config, split, limit))
    MODULE.train_judge(config, tmp_path, False)
    assert set(asked) == {"validation"}
    asked.clear()
    fitted = []
    monkeypatch.setattr(MODULE, "fit", lambda model, data, *a, **k: fitted.append(len(data)))
    MODULE.train(config, tmp_path, False)
    assert set(asked) == {"validation", "train"} and fitted == [len(read(config, "train").texts)]
    with pytest.raises(UserError, match=r"judging\.split: got train, expected a split that is neither"):
        recipe_config(RECIPE, "smoke", ["judging.split=train"])


def test_no_split_is_scored_by_a_judge_that_trained_on_it(run):
    with pytest.raises(UserError, match="--split: got validation, expected one the judge was not trained on"):
        MODULE.evaluate(run, recipe_config(RECIPE, "smoke", []), "validation")


def test_a_split_without_a_style_is_named(tmp_path):
    rows = ["x,a,train", "y,b,train", "z,a,validation", "v,b,validation", "w,a,test"]
    config = recipe_config(RECIPE, "smoke", [table(tmp_path / "my.csv", rows, header="text,label,split")])
    with pytest.raises(UserError, match=r"my\.csv: test: got 1 text, none b, expected texts of both styles"):
        MODULE.read(config, "test")


def test_judged_one_by_one_and_together(run):
    judge = load(RECIPE.run(run).stage_folder("judge"))
    texts = ["The tea was awful.", "", "I love it", "..."]
    together = MODULE.judged(judge, texts)
    assert together[1].tolist() == [0.5, 0.5] and together.sum(1) == pytest.approx(1)
    np.testing.assert_allclose(together, np.concatenate([MODULE.judged(judge, [text]) for text in texts]), atol=1e-6)


def test_log_probs_are_those_of_the_language_model():
    model, tokenizer = load_language_model("tiny", "fp32")
    known: dict[str, float] = {}
    found = MODULE.log_probs((model, tokenizer), ["Good soup!", "x", "good soup !"], known)
    assert found[0] == found[2] and set(known) == {"good soup !", "x"}
    begin = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    ids = torch.tensor([[begin, *tokenizer("good soup !", add_special_tokens=False).input_ids, tokenizer.eos_token_id]])
    with torch.no_grad():
        logits = model(ids).logits[0, :-1].log_softmax(-1)
    assert found[0] == pytest.approx(logits.gather(1, ids[0, 1:, None]).sum().item(), rel=1e-4)
    known["x"] = -1.0
    assert MODULE.log_probs((model, tokenizer), ["x"], known) == [-1.0]  # not read again


def test_every_sentence_gets_the_style_it_is_not_in(run):
    class Echo:
        def restyle(self, texts, target):
            return [f"{text} {target}" for text in texts]

    data = MODULE.Texts(["a", "b", "c"], [0, 1, 0], ["bad", "good"])
    assert MODULE.restyled(Echo(), data) == ["a good", "b bad", "c good"]


def test_the_worst_are_those_that_fail_or_lose_most():
    rows = [{"text": str(i), "output": "", "probability": 0.9, "kept": 1.0} for i in range(60)]
    rows[7] |= {"probability": 0.01}
    rows[9] |= {"kept": 0.0}
    rows[11] |= {"kept": None}
    drawn, worst = MODULE.shown(rows, seed=0)
    assert len(drawn) == MODULE.SHOWN and len(worst) == MODULE.WORST
    assert [row["text"] for row in worst[:2]] == ["9", "7"] and "11" not in [row["text"] for row in worst[:2]]
    assert MODULE.shown(rows, seed=0)[0] == drawn


def test_scores_without_references_leave_out_what_needs_them(run):
    config = recipe_config(RECIPE, "smoke", [])
    data = MODULE.read(config, "test")
    score = MODULE.Scorer(config, run, data)
    assert score(data.texts).keys() == {"accuracy", "self_bleu", "perplexity", "content_recall"}
    assert score(data.texts)["self_bleu"] == pytest.approx(100)
    rewritten = MODULE.Scorer(config, run, replace(data, references=[[text] for text in data.texts]))
    assert rewritten(data.texts)["ref_bleu"] == pytest.approx(100) and math.isfinite(rewritten(data.texts)["geometric_mean"])
    assert all(tokenize(word) == [word] for word in score.style_words)


# other rewriters and judges

AUTOENCODER = ["judging.margins=[]", "judging.fluency=", "autoencoder.dim=16", "autoencoder.depth=1", "autoencoder.heads=2"]


def test_an_autoencoder_by_the_same_commands(tmp_path, run, typed):
    config = recipe_config(RECIPE, "smoke", ["objective=reinforced", *AUTOENCODER])
    train(RECIPE, config, tmp_path / "run", stages_from={"judge": run})
    assert load(tmp_path / "run").objective == "reinforced"
    figures = evaluate(RECIPE, config, tmp_path / "run", "test")
    assert {"accuracy", "self_bleu", "content_recall", "sentences_per_s"} <= figures.keys()
    card = (tmp_path / "run" / "README.md").read_text(encoding="utf-8")
    assert "by reinforced" in card and "Card `smoke`, licence unknown." in card and "mmgen data show" not in card
    code, out, _ = typed(tmp_path / "run", "positive", b"The tea was awful!\n\nEs regnet heute.\n")
    assert code == 0 and out.split("\n")[1:] == ["", "Es regnet heute.", ""]


def test_a_pretrained_judge(tmp_path):
    config = recipe_config(RECIPE, "smoke", ["judging.pretrained=tiny", "fit_judge.steps=2"])
    MODULE.train_judge(config, tmp_path / "run", False)
    judge = load(RECIPE.run(tmp_path / "run").stage_folder("judge"))
    assert judge.name == "mag" and judge.class_names == ["negative", "positive"]
    together = MODULE.judged(judge, ["the tea was awful .", "", "tea"])
    assert together[1].tolist() == [0.5, 0.5] and np.allclose(together.sum(1), 1, atol=1e-5)
    assert np.allclose(together[2], MODULE.judged(judge, ["tea"])[0], atol=1e-5)


def test_what_only_an_edit_has_is_refused_of_others():
    with pytest.raises(UserError, match=r"judging.margins: got some of objective=controlled, expected none; set"):
        recipe_config(RECIPE, "smoke", ["objective=controlled"])
    with pytest.raises(UserError, match="objective"):
        recipe_config(RECIPE, "smoke", ["objective=delete"])


def test_a_judge_of_another_split_is_no_judge_of_this_run(tmp_path, run):
    config = recipe_config(RECIPE, "smoke", ["judging.vocab_size=290", "judging.fluency="])
    with pytest.raises(UserError, match=r"other values of judging.vocab_size \(300, now 290\)"):
        train(RECIPE, config, tmp_path / "run", stages_from={"judge": run})


def test_a_language_model_is_steered_to_write_the_sentence_again(tmp_path, run):
    config = recipe_config(RECIPE, "smoke", ["judging.steered=2", "judging.margins=[]"])
    figures = MODULE.evaluate(run, config, "test")
    assert {"accuracy_steered", "self_bleu_steered", "perplexity_steered"} <= figures.keys()
    data = MODULE.read(config, "train")
    words = MODULE.style_words(data)
    assert "awful" in words[0] and not set(words[0]) & set(words[1])
    writer = MODULE.SteeredCopy(*load_language_model("tiny", "fp32"), data.names, words)
    texts = ["the tea was awful .", "", "soup"]
    made = writer.restyle(texts, "positive")
    assert made[1] == "" and made == writer.restyle(texts, "positive")
    part = MODULE.part_of(MODULE.Texts(list("abcdef"), [0, 1] * 3, ["x", "y"], [[t] for t in "ABCDEF"]), 3)
    assert (part.texts, part.labels, part.references) == (["a", "c", "e"], [0, 0, 0], [["A"], ["C"], ["E"]])


def test_steering_needs_a_language_model():
    with pytest.raises(UserError, match=r"judging.steered: got no judging.fluency, expected a language model to steer"):
        recipe_config(RECIPE, "smoke", ["judging.steered=2", "judging.fluency="])
