"""What the recipes vqa_supervised and vqa_fewshot make of their data: captions from answers, words of pictures, episodes."""

import json
import sys

import pytest
import torch
from tiny import TINY_CAPTIONER

from mmgen.data.cards import open_card
from mmgen.errors import UserError
from mmgen.models.captioner import Captioner
from mmgen.training.recipe import load_recipe, recipe_config

SUPERVISED, FEWSHOT = (sys.modules[load_recipe(name).config.__module__] for name in ("vqa_supervised", "vqa_fewshot"))
NAMES = [["circle", "square"], ["red", "blue"]]


def test_captions_are_what_open_questions_say_and_take_for_granted():
    asked = [
        (0, "what color is the circle?", "red"),  # takes the circle for granted
        (0, "is there a blue square?", "no"),  # closed: nothing of it is true
        (1, "what shape is it?", "square"),
        (1, "what color is the shape?", "blue"),
        (2, "what shape is it?", "circle"),  # its colour is not known
        (3, "is it red?", "yes"),
    ]
    assert SUPERVISED.captions(*zip(*asked), NAMES) == {0: " circle red", 1: " square blue"}
    assert SUPERVISED.captions(*zip(*asked), NAMES[:1]) == {1: " square", 2: " circle"}


def test_questions_about_one_picture_share_its_number():
    data = SUPERVISED.Data(card="digits", question="which?", answer="word", picture="word", names=[["zero", "one"]], limit=40)
    known = SUPERVISED.Questions(data, "train")
    words = open_card("digits", "train", limit=40)["word"]
    assert [words[row] for row in known.first] == list(dict.fromkeys(words))
    assert [words[known.first[picture]] for picture in known.pictures] == list(words)
    assert {words[known.first[picture]]: caption for picture, caption in known.captions.items()} == {
        "zero": " zero", "one": " one"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("recipe", "change", "message"),
    [
        ("vqa_supervised", "data.names=[]", "data.names: got []"),
        ("vqa_supervised", "data.answer=image", "data.answer=image: got a column of image"),
        ("vqa_supervised", "support=0", "support: got 0"),
        ("vqa_supervised", "format='{question}'", "format: got '{question}'"),
        ("vqa_fewshot", "vqa.caption=wordy", "vqa.caption (a column of digits): got wordy"),
        ("vqa_fewshot", "binding.label=labels", "binding.label (a column of digits): got labels"),
        ("vqa_fewshot", "knowledge.supports=0", "knowledge.supports: got 0"),
        ("vqa_fewshot", "binding.ways=[2, 3]", "binding.words: got 2 words"),
    ],
)
def test_a_config_that_does_not_fit(recipe, change, message):
    with pytest.raises(UserError) as error:
        recipe_config(load_recipe(recipe), "smoke", [change])
    assert message in str(error.value)


def test_pictures_are_read_as_each_word_once_up_to_the_captions_end():
    torch.manual_seed(0)
    model = Captioner(**TINY_CAPTIONER).eval()
    rows = open_card("digits", "train", limit=6)
    end = model.language_model.tokenizer.eos_token_id
    model.likeliest = lambda batch: torch.tensor(
        [[7, 7, 5], [end, 9, end], [end, end, end], [5, end, 5], [1, 3, 1], [3, 4, 5]]
    )
    words = FEWSHOT.read_words(model, rows, "image")
    assert [row.tolist() for row in words] == [[7, 5], [9], [], [5], [1, 3], [3, 4, 5]]


def test_every_question_is_answered_after_examples_of_its_kind(monkeypatch):
    torch.manual_seed(0)
    model = Captioner(**TINY_CAPTIONER).eval()
    part = FEWSHOT.Questions(
        card="digits", support="validation", question="which?", answer="word", template="word", shots=[0, 2], supports=2,
        queries=12, open=False, format="{image}{question} {answer}.",
    )  # fmt: skip
    seen = []

    def answered(model, part, shots, queries, answers):
        seen.append(({shot.answer for shot in shots}, {query.answer for query in queries}, queries[0].image is None))
        assert len(shots) in part.shots and answers == sorted(answers)
        return [("closed", [query.answer for query in queries])]

    monkeypatch.setattr(FEWSHOT, "answered", answered)
    rows, made = FEWSHOT.ask(model, part, "test", seed=0)
    assert set(made) == {f"closed/{kind}/{k}" for kind in ("seen", "blind") for k in (0, 2)}
    assert len(rows) == 12 and all(said == list(rows["word"]) for said in made.values())  # each answer in its own place
    assert all(len(asked) == 1 and shown <= asked for shown, asked, _ in seen)
    assert {blind for *_, blind in seen} == {True, False}


def test_without_captions_there_is_no_text_oracle(tmp_path):
    torch.manual_seed(0)
    Captioner(**TINY_CAPTIONER).save_pretrained(tmp_path / "model")
    config = recipe_config(load_recipe("vqa_fewshot"), "smoke", ['knowledge.caption=""'])
    figures = FEWSHOT.evaluate(tmp_path, config, "test")
    assert figures["knowledge_gain"] == figures["knowledge_accuracy"] - figures["knowledge_accuracy_blind"]
    assert not [name for name in figures if "oracle" in name]
    (tmp_path / "metrics.json").write_text(json.dumps({"test": figures}))
    (tmp_path / "run.json").write_text(json.dumps({"command": ["mmgen", "train", "vqa_fewshot"]}))
    (tmp_path / "config.yaml").write_text("seed: 0\n")
    FEWSHOT.report(tmp_path, config)
    assert "mmgen train vqa_fewshot" in (tmp_path / "report.html").read_text()
