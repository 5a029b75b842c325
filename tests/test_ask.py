"""`mmgen ask`: answers are those of the captioner's language model, and every mistake is one line."""

import functools
import io
import json

import pytest
import soundfile
import torch
from PIL import Image
from tiny import tiny_models

from mmgen.cli import main
from mmgen.conditioning.few_shot import Episode, Example, Format, answer, read, score
from mmgen.data.batch import collate
from mmgen.errors import UserError
from mmgen.inference.ask import Conversation, ask, chat
from mmgen.models.base import Model, load
from mmgen.models.captioner import Captioner


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("ask")
    torch.manual_seed(0)
    tiny_models()["captioner"].model().save_pretrained(place / "model")
    Captioner("tiny", "fp32", "audio", words=2, width=8).save_pretrained(place / "hearing")
    for name in ("classifier", "answerer"):
        tiny_models()[name].model().save_pretrained(place / name)
    for name, colour in (("red", (255, 0, 0)), ("blue", (0, 0, 255)), ("green", (0, 255, 0))):
        Image.new("RGB", (32, 32), colour).save(place / f"{name}.png")
    (place / "broken.png").write_bytes(b"not a picture")
    soundfile.write(place / "tone.wav", torch.linspace(0, 900, 8000).sin().numpy(), 16000)
    soundfile.write(place / "low.wav", torch.linspace(0, 300, 8000).sin().numpy(), 16000)
    return place


@pytest.fixture
def here(folder, monkeypatch):
    monkeypatch.chdir(folder)
    monkeypatch.setattr("mmgen.models.base.load", loaded)


@functools.cache
def loaded(name: str) -> Model:
    return load(name)


PICTURE = ["model", "--image", "red.png"]
ASKED = [*PICTURE, "--question", "a"]
SHOTS = [("red.png", "what colour?", "red"), ("blue.png", "what colour?", "blue")]


def words(model, file: str) -> torch.Tensor:
    with torch.no_grad():
        batch = collate([{model.modality: model.processors[model.modality](file)}])
        return model.encode(batch).mean[0] if model.name == "answerer" else model.language_model.embed(model.names(batch)[0])


def expected(model, file: str, question: str, answers: list[str]) -> list[float]:
    """The scores by hand: the captioner's soft words in the prompt of its language model."""
    reader, support = model.language_model, [Example(q, a, words(model, f)) for f, q, a in SHOTS]
    shared = read(reader, Format(), Episode(support))
    return score(reader, shared, [Example(question, image=words(model, file))], answers)[0].tolist()


def fails(capsys, *arguments: str) -> str:
    assert main(["ask", *arguments]) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1 and error[0].startswith("mmgen: ")
    return error[0]


def test_scores_of_a_closed_set(here):
    model = loaded("model")
    made = ask(model, ["what?", "which one?"], ["green.png", "red.png"], SHOTS, answers=["red", "no", "a b"])
    for result, file, question in zip(made, ("green.png", "red.png"), ("what?", "which one?")):
        by_hand = expected(model, file, question, ["red", "no", "a b"])
        assert list(result["scores"].values()) == pytest.approx(by_hand, abs=1e-4)
        assert result["answer"] == max(result["scores"], key=result["scores"].get)
        assert (result["file"], result["question"]) == (file, question)


def test_what_the_model_says(here):
    model = loaded("model")
    reader = model.language_model
    by_hand = answer(reader, read(reader, Format()), [Example("what?", image=words(model, "green.png"))], max_tokens=5)
    assert [result["answer"] for result in ask(model, ["what?"], ["green.png"], max_tokens=5)] == by_hand


def test_a_file_for_all_questions_and_a_question_for_all_files(here):
    model, options = loaded("model"), {"shots": SHOTS, "answers": ["red", "blue"]}
    both = ask(model, ["what?", "why?"], ["red.png"], **options)
    assert [result["question"] for result in both] == ["what?", "why?"] and both[0] != both[1]
    both = ask(model, ["what?"], ["red.png", "green.png"], **options)
    assert [result["file"] for result in both] == ["red.png", "green.png"]
    assert both[0]["scores"] != both[1]["scores"]  # the picture is read
    with pytest.raises(UserError, match="inputs: got 2 questions and 3 files, expected one for each"):
        ask(model, ["a", "b"], ["red.png"] * 3)
    with pytest.raises(UserError, match="questions: got none"):
        ask(model, [], ["red.png"])


def test_without_pictures(here):
    made = ask(
        loaded("model"), ["2?"], shots=[("", "1?", "one")], format=Format("{question} {answer}\n"), answers=["two", "x"]
    )
    assert made[0]["file"] == "" and set(made[0]["scores"]) == {"two", "x"}


def test_command(here, capsys, tmp_path):
    shots = [word for shot in SHOTS for word in ("--shot", *shot)]
    arguments = ["ask", "model", "--image", "green.png", "--question", "what?", *shots, "--answers", "red, no"]
    assert main([*arguments, "--json", str(tmp_path / "f.json")]) == 0
    (made,) = json.loads((tmp_path / "f.json").read_text(encoding="utf-8"))
    assert capsys.readouterr().out == f"{made['answer']}\n"
    assert list(made["scores"].values()) == pytest.approx(
        expected(loaded("model"), "green.png", "what?", ["red", "no"]), abs=1e-4
    )
    assert main([*arguments, "--question", "why?"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("\t")[0] for line in lines] == ["0", "1"] and lines[0] == f"0\t{made['answer']}"


def test_format_and_induction_of_the_command(here, capsys, tmp_path):
    shown = ["--format", r"{image}\n{question} {answer}.", "--induction", r"Say.\n"]
    arguments = ["ask", "model", "--image", "red.png", "--question", "what?", "--answers", "a,b", *shown]
    assert main([*arguments, "--json", str(tmp_path / "f.json")]) == 0
    (made,) = json.loads((tmp_path / "f.json").read_text(encoding="utf-8"))
    format = Format("{image}\n{question} {answer}.", "Say.\n")
    assert ask(loaded("model"), ["what?"], ["red.png"], format=format, answers=["a", "b"])[0] == made


def test_a_spoken_question(here, capsys):
    model = loaded("hearing")
    made = ask(model, [""], ["tone.wav"], [("low.wav", "", "low")], Format("{audio} {answer}\n"), ["low", "high"])
    shared = read(model.language_model, Format("{audio} {answer}\n"), Episode([Example("", "low", words(model, "low.wav"))]))
    by_hand = score(model.language_model, shared, [Example(image=words(model, "tone.wav"))], ["low", "high"])[0]
    assert list(made[0]["scores"].values()) == pytest.approx(by_hand.tolist(), abs=1e-4)
    assert main(["ask", "hearing", "--audio", "tone.wav", "--question", "what?", "--answers", "yes,no"]) == 0
    assert capsys.readouterr().out.strip() in ("yes", "no")


def test_chat(here, capsys, monkeypatch):
    lines = ["image green.png", "what?", "", f"shot {' | '.join(SHOTS[0])}", f"shot {' | '.join(SHOTS[1])}", "what?",
             "forget", "what?", "image red.png", "what?", "quit", "never asked"]  # fmt: skip
    model, answers = loaded("model"), [str(i) for i in range(30)]
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(lines)))
    assert main(["ask", "model", "--chat", "--answers", ",".join(answers)]) == 0
    out, err = capsys.readouterr()
    by_hand = [ask(model, ["what?"], [file], shots, answers=answers)[0]["answer"]
               for file, shots in (("green.png", []), ("green.png", SHOTS), ("green.png", []), ("red.png", []))]  # fmt: skip
    assert out.splitlines() == by_hand and not err


def test_chat_reads_the_shots_once_and_keeps_them(here, monkeypatch):
    conversation = Conversation(loaded("model"), answers=["a", "b"])
    conversation.show(SHOTS)
    monkeypatch.setattr("mmgen.inference.ask.read", lambda *given: pytest.fail("read again"))
    replies = list(chat(conversation, ["what?", "why?", "what?"], "green.png"))
    assert len(replies) == 3 and replies[0] == replies[2]


def test_chat_goes_on_after_a_mistake(here, capsys, monkeypatch):
    lines = ["what?", "image none.png", "image green.png", "shot red.png | red", "shot none.png | what? | red",
             "shot red.png | what? |", "audio tone.wav", "forget", "what?"]  # fmt: skip
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(lines)))
    assert main(["ask", "model", "--chat", "--answers", "a,b"]) == 0
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 1
    errors = err.strip().splitlines()
    assert len(errors) == 6 and all(error.startswith("mmgen: ") for error in errors)
    for error, part in zip(errors, (
        "images of 'what?': got 0, expected 1", "none.png: got no such file", "shot: got red.png | red, expected a file, a",
        "none.png: got no such file", "answer of the shot 'what?': got ''", "audio: got tone.wav, expected image, which",
    )):  # fmt: skip
        assert part in error


def test_a_chat_can_ask_about_images_and_put_the_picture_away(here):
    conversation = Conversation(loaded("model"), Format("{image}{question}{answer}\n"), max_tokens=3)
    said = [*chat(conversation, ["image of what?", "image", "what?", "image red.png", "what?"], "red.png")]
    assert said[0] == ask(loaded("model"), "image of what?", "red.png", format=conversation.format, max_tokens=3)[0]["answer"]
    assert "images of 'what?': got 0, expected 1" in str(said[1])
    assert said[2] == ask(loaded("model"), "what?", "red.png", format=conversation.format, max_tokens=3)[0]["answer"]


def test_mistakes_in_python(here):
    model = loaded("model")
    with pytest.raises(UserError, match="answers: got 'yes,no', expected a list of texts"):
        ask(model, "what?", "red.png", answers="yes,no")
    with pytest.raises(UserError, match=r"shot: got \('red.png', 'what\?'\), expected a file, a question and an answer"):
        ask(model, "what?", "red.png", [("red.png", "what?")])


def test_a_chat_that_starts_with_a_picture_and_shots(here, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("what?\n"))
    shots = [word for shot in SHOTS for word in ("--shot", *shot)]
    assert main(["ask", "model", "--chat", "--image", "green.png", *shots, "--answers", "a,b,c"]) == 0
    assert (
        capsys.readouterr().out.strip()
        == ask(loaded("model"), ["what?"], ["green.png"], SHOTS, answers=["a", "b", "c"])[0]["answer"]
    )


def test_an_answerer_is_asked_after_its_own_prompt(here, capsys, monkeypatch):
    """As `Answerer.answer` does: the words of the picture, then the question as its row holds it."""
    model = loaded("answerer")
    asked = [model.row(question, "?")["question"] for question in ("is it red?", "what is it?")]
    expected = model.answer(torch.stack([words(model, "red.png")] * 2), asked, max_tokens=16)
    made = ask(model, ["is it red?", "what is it?"], ["red.png"])
    assert [row["answer"] for row in made] == expected
    closed = ask(model, ["is it red?"], ["red.png"], answers=["yes", "no"])[0]
    batch = collate([{"image": model.processors["image"]("red.png"), **model.row("is it red?", "yes")}], model.sequences)
    with torch.no_grad():  # the likelihood of "yes" and the end of the line; of "yes" alone, and a token
        assert closed["scores"]["yes"] * 3 > model.log_likelihood(batch).item()
    monkeypatch.setattr("sys.stdin", io.StringIO("forget\nis it red?\n"))
    assert main(["ask", "answerer", "--image", "red.png", "--chat"]) == 0
    assert capsys.readouterr().out.strip() == expected[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (PICTURE, "--question: got none, expected at least one, or --chat; add --question"),
        (["model", "--image", "none.png", "--question", "a"], "none.png: got no such file, expected an image file"),
        (["model", "--image", "broken.png", "--question", "a"], "broken.png: got a file that begins with b'not a pictur'"),
        ([*ASKED, "--shot", "none.png", "b", "c"], "none.png: got no such file"),
        ([*ASKED, "--shot", "", "b", "c"], "images of 'b': got 0, expected 1"),
        ([*ASKED, "--shot", "red.png", "b", ""], "answer of the shot 'b': got ''"),
        ([*ASKED, "--shot", "red.png", "b", "c\nd"], r"answer of a shot: got 'c\nd', expected a text without '\n'"),
        ([*PICTURE, "--question", "\udcff"], r"text: got 'Question: \udcff Answer:', expected text in UTF-8"),
        ([*ASKED, "--shot", "red.png", "b", "c", "--induction", "a" * 300], "shorten the question, or the sentence before"),
        (["model", "--chat", "--answers", "a,a"], "answers: got 'a' twice"),
        (["model", "--question", "what?"], "images of 'what?': got 0, expected 1"),
        ([*PICTURE, "--question", ""], "question: got '', expected"),
        ([*ASKED, "--format", "{question}"], "format: got '{question}', expected {answer}"),
        ([*ASKED, "--answers", "a,b, a"], "answers: got ' a' twice"),
        ([*ASKED, "--answers", ""], "answers: got '', expected different"),
        ([*PICTURE, "--question", "a" * 300], "prompt: got 337 tokens with 0 shots, expected at most 256"),
        (["model", "--audio", "tone.wav", "--question", "a"], "audio: got tone.wav, expected image, which this captioner"),
        (["hearing", "--image", "red.png", "--question", "a"], "image: got red.png, expected audio, which this captioner"),
        (["hearing", "--audio", "broken.png", "--question", "a"], "broken.png: got a file that begins with"),
        (["model", *["--image", "red.png"] * 3, *["--question", "a"] * 2], "inputs: got 2 questions and 3 files"),
        (["classifier", "--image", "red.png", "--question", "a"], "model: got a classifier, expected a captioner or an"),
        (["answerer", *ASKED[1:], "--format", "{image} {answer}"], "format: got '{image} {answer}', expected the one that"),
        (["answerer", *ASKED[1:], "--induction", "Answer."], "format: got "),
        (["answerer", *ASKED[1:], "--shot", "red.png", "b", "c"], "shots: got 1, expected none, as an answerer's prompt is"),
        (["answerer", "--question", "a"], "images of 'a': got 0, expected 1"),
        (["nowhere/at/all", "--image", "red.png", "--question", "a"], "nowhere/at/all: got no such folder"),
        (["model", "--chat", "--question", "a"], "--chat: got --question too, expected one picture or sound at most"),
        (["model", "--chat", "--json", "f.json"], "--chat: got --json too"),
        (["model", "--chat", "--image", "red.png", "--image", "red.png"], "--chat: got several files too"),
        (["model", "--chat", "--image", "none.png"], "none.png: got no such file"),
        (["model", "--question", "a", "--json", "none/f.json"], "none/f.json: got no folder none"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line(here, capsys, arguments, message):
    assert message in fails(capsys, *arguments)
