"""Steering toward a picture: the gradient, what is read of a text, and the command."""

import json
import math

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from tiny import tiny_aligned
from transformers import LogitsProcessorList

from mmgen.cli import main
from mmgen.conditioning.attributes import State, Together, Toward
from mmgen.conditioning.gradient import PPLM
from mmgen.conditioning.language_model import load_language_model
from mmgen.conditioning.ranking import text_log_prob
from mmgen.conditioning.reweighting import Fudge
from mmgen.data.batch import Batch
from mmgen.data.vector import VectorProcessor
from mmgen.errors import UserError
from mmgen.inference.steer import steer
from mmgen.inference.targets import bag, toward
from mmgen.models.base import load
from mmgen.models.classifier import Classifier

MODEL, TOKENIZER = load_language_model("tiny", "fp32")
TABLE = MODEL.get_input_embeddings().weight


def tower(embeddings: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """A text encoder that is not linear in what it reads."""
    return F.normalize((embeddings.tanh() * mask[..., None]).sum(1), dim=-1)


def attribute(dtype: torch.dtype = torch.float32, **settings) -> Toward:
    generator = torch.Generator().manual_seed(0)
    points = F.normalize(torch.randn(4, 6, generator=generator, dtype=dtype), dim=1)
    table = torch.randn(9, 6, generator=generator, dtype=dtype)
    return Toward(tower, table, points[0], points[1:], scale=3.0, **{"window": 4, **settings})


def named(made: Toward, ids: torch.Tensor, word: torch.Tensor) -> torch.Tensor:
    """log p(a | the words ids (t,), an embedding (d,))."""
    words = torch.cat([made.table[ids], word[None]])
    return (3 * F.normalize(words.tanh().sum(0), dim=0) @ made.points.T).log_softmax(0)[0]


def test_the_expected_word_by_hand():
    made, ids, log_p = attribute(likeliest=0), torch.tensor([1, 2, 3]), torch.randn(1, 9).log_softmax(-1)
    found = made.log_prob(State(ids[None], log_p))
    torch.testing.assert_close(found[0], named(made, ids, log_p[0].exp() @ made.table))


def test_the_likeliest_words_one_by_one_by_hand():
    """All but one are read alone, so the sum over next words is exact; with fewer, the expected one stands for the rest."""
    ids, log_p = torch.tensor([1, 2, 3]), torch.randn(1, 9).log_softmax(-1)
    made, p = attribute(likeliest=100), log_p[0].exp()
    exact = sum(p[i] * named(made, ids, made.table[i]).exp() for i in range(9)).log()
    torch.testing.assert_close(made.log_prob(State(ids[None], log_p))[0], exact)
    made, order = attribute(likeliest=2), log_p[0].argsort(descending=True)
    rest = order[2:]
    some = sum(p[i] * named(made, ids, made.table[i]).exp() for i in order[:2])
    some = some + p[rest].sum() * named(made, ids, p[rest] / p[rest].sum() @ made.table[rest]).exp()
    torch.testing.assert_close(made.log_prob(State(ids[None], log_p))[0], some.log())


@pytest.mark.parametrize("likeliest", [0, 3, 100])
def test_the_gradient_is_that_of_finite_differences(likeliest):
    made, ids = attribute(torch.float64, likeliest=likeliest), torch.tensor([[1, 2], [3, 4]])
    logits = torch.randn(2, 9, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: made.log_prob(State(ids, x.log_softmax(-1))), logits)
    assert torch.autograd.grad(made.log_prob(State(ids, logits.log_softmax(-1))).sum(), logits)[0].abs().max() > 1e-3


def test_the_gradient_through_the_encoder_of_a_model():
    model = tiny_aligned().double().eval()
    model.requires_grad_(False)
    points = F.normalize(torch.randn(3, 4, dtype=torch.float64), dim=1)
    made = Toward(model.encode_embeddings, model.table.weight, points[0], points[1:], scale=5.0, window=2, likeliest=4)
    logits = torch.randn(1, 259, dtype=torch.float64, requires_grad=True)
    ids = torch.tensor([[70, 71, 72]])
    assert torch.autograd.gradcheck(lambda x: made.log_prob(State(ids, x.log_softmax(-1))), logits, fast_mode=True)


def test_only_the_newest_words_and_the_expected_one_are_read():
    log_p = torch.randn(1, 9).log_softmax(-1)

    def said(ids: list[int], **settings) -> float:
        return attribute(**settings).log_prob(State(torch.tensor([ids]), log_p)).item()

    assert said([5, 1, 2], window=2) == said([6, 1, 2], window=2) != said([5, 1, 3], window=2)
    assert said([5, 6], window=0) == said([7, 8], window=0)
    assert said([0, 0, 1, 2], unread=[0]) == pytest.approx(said([1, 2]), abs=1e-6)  # padding on the left
    assert said([5, 6, 1, 2], start=2) == said([7, 8, 1, 2], start=2) != said([5, 6, 1, 3], start=2)  # a prompt
    assert said([5, 6], start=2) == said([7, 8], start=2)  # nothing was written yet


@pytest.mark.parametrize("likeliest", [0, 3])
def test_a_word_that_is_sure_is_read_as_written(likeliest):
    made, ids, sure = attribute(likeliest=likeliest), torch.tensor([1, 2]), torch.zeros(1, 9)
    sure[0, 5] = 1
    torch.testing.assert_close(made.log_prob(State(ids[None], sure.log()))[0], named(made, ids, made.table[5]))


def test_a_text_alone_is_read_with_its_newest_word_in_place_of_the_next():
    made, ids, sure = attribute(window=2), torch.tensor([[7, 1, 2, 5]]), torch.full((1, 9), -torch.inf)
    sure[0, 5] = 0
    torch.testing.assert_close(made.log_prob(State(ids, None)), made.log_prob(State(ids[:, :-1], sure)))


def test_a_look_ahead_reads_no_more_than_the_text():
    """The language model is asked for its own next token only, and the steered distribution is that of the definition."""
    points = F.normalize(TABLE[[90, 100, 101]], dim=1)
    mean = lambda words, mask: F.normalize((words * mask[..., None]).sum(1), dim=-1)  # noqa: E731
    made, calls, seen = Toward(mean, TABLE, points[0], points[1:], scale=9.0), [], []
    handle = MODEL.register_forward_hook(lambda *_: calls.append(1))
    ids = torch.tensor([TOKENIZER("hello").input_ids])
    keep = lambda ids, scores: seen.append(scores) or scores  # noqa: E731
    options = {"max_new_tokens": 1, "min_new_tokens": 0, "do_sample": True, "top_k": 0, "pad_token_id": 0}
    MODEL.generate(
        ids, custom_generate=Fudge(made, strength=2.0, top=5), logits_processor=LogitsProcessorList([keep]), **options
    )
    handle.remove()
    assert len(calls) == 1
    log_p, tokens = MODEL(ids).logits[0, -1].log_softmax(-1).topk(5)
    named = made.log_prob(State(torch.cat([ids.expand(5, -1), tokens[:, None]], 1), None))
    expected = torch.full((259,), -torch.inf).scatter(0, tokens, log_p + 2 * named).softmax(-1)
    torch.testing.assert_close(seen[0][0].softmax(-1), expected)


@pytest.mark.parametrize("method", [PPLM, Fudge])
def test_both_methods_raise_it(method):
    points = F.normalize(TABLE[[90, 100, 101, 102, 103]], dim=1)
    mean = lambda words, mask: F.normalize((words * mask[..., None]).sum(1), dim=-1)  # noqa: E731
    made = Toward(mean, TABLE, points[0], points[1:], scale=20.0, window=4, unread=TOKENIZER.all_special_ids)
    settings = {"step_size": 0.3} if method is PPLM else {"strength": 3.0, "top": 60}
    rows = steer(MODEL, TOKENIZER, ["hello", "so it is"], method(made, **settings), n=4, length=8)
    unsteered, steered = ([r["attribute"] for r in rows if r["arm"] == arm] for arm in ("unsteered", "steered"))
    assert sum(steered) > 0.5 * sum(unsteered)  # of eight texts


@pytest.mark.parametrize(
    ("target", "others", "scale", "message"),
    [
        (torch.zeros(1, 3), torch.zeros(2, 3), 1.0, r"target and others: got \(1, 3\) and \(2, 3\)"),
        (torch.zeros(3), torch.zeros(2, 4), 1.0, r"got \(3,\) and \(2, 4\)"),
        (torch.zeros(3), torch.zeros(0, 3), 1.0, r"got \(3,\) and \(0, 3\), expected \(s,\) and \(m, s\), m at least 1"),
        (torch.zeros(3), torch.zeros(2, 3), 0.0, "scale: got 0.0, expected a finite number above 0"),
        (torch.zeros(3), torch.zeros(2, 3), math.nan, "scale: got nan"),
    ],
)
def test_what_cannot_be_compared(target, others, scale, message):
    with pytest.raises(UserError, match=message):
        Toward(tower, torch.zeros(9, 6), target, others, scale)


@pytest.mark.parametrize("setting", [{"window": -1}, {"start": -1}, {"likeliest": -1}])
def test_negative_settings(setting):
    with pytest.raises(UserError, match=f"{next(iter(setting))}: got -1"):
        attribute(**setting)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    torch.manual_seed(0)
    model = tiny_aligned()
    pictures = torch.rand(6, 3, 32, 32)
    model.remember([Batch({"image": pictures[:4]}), Batch({"image": pictures[4:]})])
    model.save_pretrained(folder / "aligned")
    with torch.no_grad():
        model.table.weight.add_(torch.randn_like(model.table.weight))
    whole = tiny_aligned(sentences="tiny")
    whole.remember([Batch({"image": pictures})])
    whole.save_pretrained(folder / "whole")
    head = Classifier("hidden", "vector", [32], 2, {"hidden": [], "dim": 8}, ["negative", "positive"])
    head.processors["hidden"] = VectorProcessor([0.0] * 32, [1.0] * 32)
    head.save_pretrained(folder / "attribute")
    Image.new("RGB", (40, 40), "red").save(folder / "red.png")
    (folder / "text.png").write_text("no picture", encoding="utf-8")
    return folder


@torch.no_grad()
def test_a_picture_is_compared_with_those_that_are_remembered(runs):
    made = toward(str(runs / "red.png"), str(runs / "aligned"), MODEL, TOKENIZER)
    space = load(runs / "aligned")
    red = space.encode(Batch({"image": space.processors["image"](runs / "red.png")[None]}))["image"].mean
    different = space.references[(space.references @ red[0]) < 0.9]
    torch.testing.assert_close(made.points, torch.cat([red, different]))
    ids, log_p = torch.tensor([[70, 71]]), torch.randn(1, 259).log_softmax(-1)
    made.likeliest = 0
    features = space.word_features(TABLE)
    words = torch.cat([features[ids], (log_p.exp() @ features)[None]], 1)
    scores = space.scale * space.encode_features(words) @ made.points.T
    torch.testing.assert_close(made.log_prob(State(ids, log_p)), scores.log_softmax(-1)[:, 0])
    scores = space.scale * space.encode_embeddings(TABLE[ids]) @ made.points.T
    torch.testing.assert_close(made.log_prob(State(ids, None)), scores.log_softmax(-1)[:, 0])


@torch.no_grad()
def test_whole_texts_are_compared_by_the_sentence_embedder(runs):
    made, space = toward(str(runs / "red.png"), str(runs / "whole"), MODEL, TOKENIZER, whole=True), load(runs / "whole")
    ids = TOKENIZER(["a dog", "two "], padding=True, return_tensors="pt", padding_side="right").input_ids
    scores = space.scale * space.points(["a dog", "two "], "sentence") @ made.points.T
    torch.testing.assert_close(made.log_prob(State(ids, None)), scores.log_softmax(-1)[:, 0])
    likely, _ = text_log_prob(MODEL, ids, ids != TOKENIZER.pad_token_id, 2, made)  # asked once, of all of each text
    torch.testing.assert_close(likely, made.log_prob(State(ids, None)))
    torch.testing.assert_close(made.points[0], space.points([runs / "red.png"], "image")[0])
    with pytest.raises(UserError, match="attribute: got one of whole texts, expected one of the next token"):
        steer(MODEL, TOKENIZER, ["hello"], PPLM(made), length=2)
    with pytest.raises(UserError, match="got no sentence embedder, expected one, for whole texts; train one with"):
        toward(str(runs / "red.png"), str(runs / "aligned"), MODEL, TOKENIZER, whole=True)


def test_a_whole_text_is_steered_and_ranked(runs):
    made = toward(str(runs / "red.png"), str(runs / "whole"), MODEL, TOKENIZER, whole=True)
    rows = steer(MODEL, TOKENIZER, ["hello", "so"], Fudge(made, strength=30.0, top=20), n=4, length=8)
    unsteered, steered = ([r["attribute"] for r in rows if r["arm"] == arm] for arm in ("unsteered", "steered"))
    assert sum(steered) > sum(unsteered)
    plain = Toward(lambda e, m: F.normalize(torch.ones(len(e), 3), dim=1), TABLE, torch.eye(3)[0], torch.eye(3)[1:], 1.0)
    one, best = (
        steer(MODEL, TOKENIZER, ["hello"], PPLM(plain), ranked=made, length=6, candidates=n)[1]["attribute"] for n in (1, 6)
    )
    assert best > one  # of which the first is one


def test_with_a_bag(runs):
    both = Together(
        [(bag("space", MODEL, TOKENIZER), 1.0), (toward(str(runs / "red.png"), str(runs / "aligned"), MODEL, TOKENIZER), 1.0)]
    )
    assert both.horizon is None and both.log_prob(State(torch.tensor([[70]]), torch.randn(1, 259).log_softmax(-1))).isfinite()


@pytest.mark.parametrize("method", ["pplm", "fudge"])
def test_command_by_whole_texts(runs, capsys, method):
    arguments = ["--prompt", "hello", "--toward", str(runs / "red.png"), "--aligned", str(runs / "whole"), "--length", "4"]
    assert main(["steer", "tiny", *arguments, "--bag", "space", "--whole", "--method", method, "--candidates", "2"]) == 0
    assert capsys.readouterr().out.count("steered (log p(attribute) ") == 2
    assert main(["steer", "tiny", "--prompt", "hello", "--bag", "space", "--whole"]) == 2
    assert "--whole: got no --toward, expected a picture or a sound to compare with" in capsys.readouterr().err


@pytest.mark.parametrize("more", [["--method", "fudge"], ["--bag", "space", "--length", "3"], ["--dtype", "bf16"]])
def test_command(runs, capsys, tmp_path, more):
    arguments = ["--prompt", "hello", "--toward", str(runs / "red.png"), "--aligned", str(runs / "aligned"), "--length", "4"]
    assert main(["steer", "tiny", *arguments, *more, "--json", str(tmp_path / "f.json")]) == 0
    rows = json.loads((tmp_path / "f.json").read_text(encoding="utf-8"))
    assert [row["arm"] for row in rows] == ["unsteered", "steered"] and all(row["attribute"] < 0 for row in rows)


@pytest.mark.parametrize(
    ("file", "run", "message"),
    [
        ("none.png", "aligned", "none.png: got no such file"),
        ("text.png", "aligned", "text.png: got a file that begins with b'no picture'"),
        ("red.png", "none", "got no such folder"),
        (
            "red.png",
            "attribute",
            "got the model classifier, expected a shared space of texts and pictures or sounds; train one",
        ),
    ],
)
def test_a_mistake_is_one_line(runs, capsys, file, run, message):
    arguments = ["--prompt", "a", "--toward", str(runs / file), "--aligned", str(runs / run)]
    assert main(["steer", "tiny", *arguments]) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1 and message in error[0]


def test_a_missing_picture_is_told_before_anything_is_loaded(capsys):
    assert main(["steer", "no-such-model", "--prompt", "a", "--toward", "none.png"]) == 2
    assert "none.png: got no such file, expected a picture or a sound; check the path" in capsys.readouterr().err


@pytest.mark.parametrize("other", ["values", "shape"])
def test_a_space_of_another_language_model(runs, other):
    model, tokenizer = load_language_model("tiny", "fp32")
    with torch.no_grad():
        if other == "values":
            model.get_input_embeddings().weight.add_(0.1)
        else:
            model.resize_token_embeddings(300)
    with pytest.raises(UserError, match="got a shared space for another language model's tokens, expected one for"):
        toward(str(runs / "red.png"), str(runs / "aligned"), model, tokenizer)
