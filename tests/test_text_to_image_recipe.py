"""The recipe text_to_image and `mmgen generate` of its runs: what its figures count, files, completion, and wrong values."""

import csv
import importlib
import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from mmgen.cli import main
from mmgen.data.batch import Batch
from mmgen.data.cards import open_card
from mmgen.data.image import ImageProcessor
from mmgen.errors import UserError
from mmgen.judging import nearest, shared_space
from mmgen.judging.classifier import trained_judge
from mmgen.judging.features import nearest_pictures
from mmgen.judging.pictures import PictureJudges, draw_all
from mmgen.latents.spaces import AggregatePrior
from mmgen.metrics.retrieval import r_precision
from mmgen.models.base import load
from mmgen.training.recipe import load_recipe, recipe_config
from mmgen.training.study import evaluate, train

RECIPE = load_recipe("text_to_image")
MODULE = importlib.import_module("mmgen.recipes.text_to_image.train")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("text_to_image") / "run"
    train(RECIPE, recipe_config(RECIPE, "smoke", []), out)
    return out


def generate(capsys, run, *arguments):
    code = main(["generate", str(run), *map(str, arguments)])
    read = capsys.readouterr()
    return code, read.out.split(), read.err


def test_pictures_of_texts_are_files_and_a_grid(capsys, run, tmp_path):
    words = ["--to", "image", "--text", "a handwritten seven", "--text", "a handwritten two", "--n", 3, "--guidance", 2]
    code, printed, _ = generate(capsys, run, *words, "--out", tmp_path / "a", "--json", tmp_path / "a.json")
    files = [str(tmp_path / "a" / f"{i:04d}.png") for i in range(6)]
    assert (
        code == 0
        and printed[1::2] == files
        and json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == [files[:3], files[3:]]
    )
    assert Image.open(files[0]).size == (8, 8) and Image.open(tmp_path / "a" / "grid.png").size == (3 * 52 - 4, 2 * 52 - 4)
    generate(capsys, run, *words, "--out", tmp_path / "b")
    assert all(Path(f).read_bytes() == (tmp_path / "b" / Path(f).name).read_bytes() for f in files)


def test_the_nearest_training_pictures_are_written(capsys, run, tmp_path):
    words = ["--to", "image", "--text", "a handwritten seven", "--text", "a handwritten two", "--n", 3]
    assert generate(capsys, run, *words, "--nearest", "digits", "--out", tmp_path)[0] == 0
    assert Image.open(tmp_path / "nearest.png").size == (3 * 52 - 4, 4 * 52 - 4)
    rows = list(csv.DictReader((tmp_path / "nearest.csv").read_text(encoding="utf-8").splitlines()))
    data, eye = open_card("digits", "train"), ImageProcessor(8, 1)
    seen = torch.stack([eye(picture) for picture in data["image"]])
    made = torch.stack([eye(tmp_path / f"{i:04d}.png") for i in range(6)])
    apart = (made[:, None] - seen).square().mean((2, 3, 4)).sqrt()  # (6, m)
    among = (made[:3, None] - made[:3]).square().mean((2, 3, 4)).sqrt() + torch.eye(3) * 9  # of the first prompt
    for i, row in enumerate(rows):
        assert int(row["training_row"]) == apart[i].argmin() and row["text"] == data["word"][int(row["training_row"])]
        assert float(row["distance"]) == pytest.approx(apart[i].min().item(), abs=1e-5)
    assert [float(row["variety"]) for row in rows[:3]] == pytest.approx(among.min(1).values.tolist(), abs=1e-5)


def test_a_training_picture_is_its_own_nearest(tmp_path, monkeypatch):
    monkeypatch.setattr(nearest, "AT_ONCE", 100)  # several parts
    rows = open_card("digits", "train")
    for i in (7, 1100):
        (tmp_path / f"{i}.png").write_bytes(rows[i]["image"]["bytes"])
    found = nearest.write_nearest(
        [[str(tmp_path / f"{i}.png")] for i in (7, 1100)], ImageProcessor(8, 1, 0.5, 0.5), "digits", tmp_path
    )
    assert [(row["training_row"], row["distance"], row["variety"]) for row in found] == [(7, 0, None), (1100, 0, None)]


def test_a_picture_is_completed_and_one_is_described(capsys, run, tmp_path):
    Image.new("L", (8, 4), 255).save(tmp_path / "half.png")
    for words in ([], ["--text", "a handwritten one"]):
        out = tmp_path / f"made{len(words)}"
        assert generate(capsys, run, "--to", "image", "--from", tmp_path / "half.png", *words, "--out", out)[0] == 0
        assert (out / "0000.png").is_file() and not (out / "grid.png").exists()
    assert generate(capsys, run, "--to", "text", "--image", out / "0000.png")[0] == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--text", ""], "text: got '', expected at least one word"),
        (["--text", "a handwritten seven and a half"], "tokens, expected at most 16, the end included"),
        (["--text", "one", "--n", "0"], "--n: got 0"),
        (["--from", "square.png"], "--from: got 8 x 8 pixels, expected 8 wide and a multiple of 2 below 8 high"),
        (["--from", "none.png"], "none.png"),
        (["--from", "square.png", "--image", "square.png"], "--from: got --image too"),
        (["--text", "one", "--rerank"], "runs/aligned: got no such folder"),
        (["--text", "one", "--rerank", "."], "got no config.json"),
        (["--text", "one", "top_p=2"], "top_p"),
        (["--text", "one", "candidates=2"], "candidates: got 2 and no rerank"),
        (["--text", "one", "temperature=1.0e-39"], "temperature: got 1e-39, expected 0, or 0.0001 or more"),
        (["--text", "one", "--guidance", "1e39"], "guidance: got 1e+39, expected at most 10000"),
        (["--guidance", "3"], "guidance: got 3 without a text"),
        (
            ["--to", "text", "--text", "one"],
            "image: got an item without it, expected a picture for each text; add --image FILE",
        ),
        (["--to", "text", "--text", "one", "--image", "square.png"], "text: got one with a picture to describe"),
        (["--to", "text", "--from", "square.png"], "--from: got --to text"),
        (["--text", "one", "temperature=nan"], "option temperature: got 'nan', expected float"),
        (["--text", "one", "--seed", "-1"], "--seed: got -1, expected 0 to 2147483647"),
        (["--text", "one", "--seed", "2147483648"], "--seed: got 2147483648, expected 0 to 2147483647"),
        (["--text", "one", "--nearest", "digit"], "did you mean 'digits'"),
        (["--text", "one", "--nearest", "sst2"], "--nearest sst2: got columns"),
        (["--to", "text", "--image", "square.png", "--nearest", "digits"], "--nearest: got --to text"),
        (["--to", "text", "--image", "square.png", "--guidance", "2"], "guidance: got 2.0 with --to text"),
        (["--to", "text", "--image", "square.png", "--rerank"], "rerank: got runs/aligned with --to text"),
    ],
)
def test_wrong_values_of_generate(capsys, run, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    Image.new("L", (8, 8)).save("square.png")
    code, _, error = generate(capsys, run, "--to", "image", *words, "--out", tmp_path)
    assert code == 2 and message in error and len(error.splitlines()) == 1


@pytest.mark.parametrize("taken", ["0000.png", "grid.png", "nearest.png", "nearest.csv"])
def test_a_file_that_cannot_be_written(capsys, run, tmp_path, taken):
    (tmp_path / taken).mkdir()
    code, _, error = generate(
        capsys, run, "--to", "image", "--text", "one", "--n", "2", "--nearest", "digits", "--out", tmp_path
    )
    assert code == 2 and taken in error and "expected a file that can be written" in error and "Traceback" not in error


def test_another_model_completes_nothing(capsys, run, tmp_path):
    code, _, error = generate(capsys, run / "stages" / "baseline", "--to", "image", "--from", "half.png", "--out", tmp_path)
    assert code == 2 and "--from: got vae, expected a model that completes pictures" in error


class Space:
    """A space in which a picture lies at its brightness, a whole number of ``steps``, and a text at the number in it."""

    modality, name, towers = "image", "aligned", ("image", "text")

    def __init__(self, steps=10):
        self.processors, self.step, self.steps = {"image": ImageProcessor(8, 1)}, torch.zeros(()), steps

    def to(self, device):
        return self

    def points(self, values, modality):
        read = self.processors["image"]
        numbers = [int(value) if modality == "text" else round(read(value).mean().item() * self.steps) for value in values]
        return torch.eye(self.steps + 1)[numbers]


def test_r_precision_is_of_each_pictures_own_text(run):
    model, texts = load(run), ["3", "5", "5", "9"]
    data = SimpleNamespace(texts=texts)
    judges = PictureJudges(data, model.processors["image"], space=Space())
    right = torch.tensor([0.3, 0.5, 0.5, 0.9])[:, None, None, None].expand(-1, 1, 8, 8)
    assert judges.of_texts(right) == {"r_precision": 1.0}
    assert judges.of_texts(right.flip(0)) == {"r_precision": 0.5}
    assert r_precision(torch.eye(3), torch.arange(3)) == 1


def test_r_precision_reads_texts_by_the_sentence_embedder_of_a_space(run):
    space, seen = Space(), []
    space.towers = ("image", "text", "sentence")
    read = space.points
    space.points = lambda values, tower: seen.append(tower) or read(values, "image" if tower == "image" else "text")
    pictures = [load(run).processors["image"].decode(torch.full((1, 8, 8), x)) for x in (0.3, 0.5)]
    assert shared_space.precision(space, pictures, ["3", "5"], 100) == 1.0 and seen == ["image", "sentence"]


def test_the_baseline_draws_from_the_aggregate_of_its_posteriors(run):
    prior = load(run / "stages" / "baseline").prior
    assert isinstance(prior, AggregatePrior) and prior.mean.any()


def test_reranking_takes_the_picture_that_is_nearest(run):
    model, config, space = load(run), recipe_config(RECIPE, "smoke", []), Space(1000)
    data = config.data.pairs("test", **load(run).processors, limit=3)
    generator = torch.Generator().manual_seed(config.seed)
    given = next(iter(data.batches("test"))).keep(["text"])
    drawn = model.generate(given, "image", 6, generator).unflatten(0, (3, 6))
    decode = model.processors["image"].decode
    seen = [space.points([decode(one) for one in own], "image").argmax(1).tolist() for own in drawn]
    number = next(number for number in seen[0] if number != seen[0][0])  # of a picture that is not the first drawn
    model.processors["text"] = SimpleNamespace(decode=lambda ids: str(number))
    kept = draw_all(model, data, config.seed, candidates=6, rerank=partial(model.similarity, space))
    for one, own, numbers in zip(kept, drawn, seen):
        taken = next(i for i, other in enumerate(own) if torch.equal(one, other))
        if number in numbers:  # as in those of the first text
            assert numbers[taken] == number


def test_figures_of_a_copy():
    x = torch.rand(5, 1, 8, 8)
    distance, which = nearest_pictures(x[[3, 1]] + 0.01, x)
    assert which.tolist() == [3, 1] and distance.tolist() == pytest.approx([0.01, 0.01], rel=1e-3)


def test_judge_and_reranker_differ_and_see_pictures_of_the_size_that_is_made(run, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(Space, "points", lambda self, values, modality: torch.ones(len(values), 1))
    monkeypatch.setattr(shared_space, "cached_run", lambda recipe, config, kind: asked.append(config) or tmp_path)
    monkeypatch.setattr(shared_space, "load", lambda folder: Space())
    config, judge = recipe_config(RECIPE, "smoke", []), {"data": {"card": "digits"}, "model": {"sentences": "tiny"}}
    figures = MODULE.evaluate(RECIPE.run(run), replace(config, aligned=judge), "test").figures()
    assert {"r_precision", "r_precision_reranked", "r_precision_real"} <= figures.keys()
    assert [c.data.size for c in asked] == [config.data.size] * 2 and asked[0].seed != asked[1].seed
    assert [c.model.sentences for c in asked] == ["tiny", ""]
    for size in ("size", "side"):  # as an older version called it
        config = replace(config, aligned={"data": {"card": "digits", size: 64}})
        shared_space.trained_space(config.nested()["aligned"], config.data.size)
        assert asked.pop().data.size == 64


def test_evaluation_with_a_judge(run):
    judge = {
        "data": {"card": "digits"},
        "encoder": {"dim": 8, "width": 4},
        "fit": {"steps": 2, "batch_size": 8, "tracker": "none"},
    }
    config = replace(recipe_config(RECIPE, "smoke", []), judge=judge)
    figures = evaluate(RECIPE, config, run, "validation")
    assert {
        "digit_accuracy",
        "digit_accuracy_unguided",
        "digit_accuracy_real",
        "judge_accuracy",
        "codes_used",
    } <= figures.keys()
    assert not figures["judge_disjoint"] and 0 < figures["codes_used"] <= 1
    model = load(run)
    data = config.data.pairs("validation", **model.processors, limit=8)
    judge = trained_judge(config.nested()["judge"]).model
    eye = judge.processors["image"]
    seen = judge.predict(
        Batch({"image": torch.stack([eye(model.processors["image"].decode(x)) for x in data.all("image")])})
    ).mode
    truth = [judge.class_names.index(str(label)) for label in data.rows["label"][:]]
    assert figures["digit_accuracy_real"] == pytest.approx((seen == torch.tensor(truth)).double().mean().item())
    nats = [model.log_likelihood(batch) for batch in data.batches("test")]
    assert figures["log_likelihood"] == pytest.approx(torch.cat(nats).mean().item(), rel=1e-5)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("data.image=caption", ["data.image=caption", "a column of text", "image"]),
        ("data.text=label", ["data.text=label", "expected text"]),
        ("data.size=9", ["size", "9 x 9", "multiples of 2"]),
        ("discrete_vae.quantizer=vqq", ["discrete_vae.quantizer", "vqq", "gumbel, vq"]),
        ("evaluation.features=foo", ["evaluation.features", "foo", "efficientnet_lite0"]),
        ("baseline.width=0", ["baseline.width", "0", ">= 1"]),
        ("evaluation.candidates=0", ["evaluation.candidates", "0", ">= 1"]),
        ("judge.data.card=digitz", ["digitz"]),
        ("aligned.data.card=openmoji", ["aligned.data.card", "openmoji", "digits"]),
        ("evaluation.items=1", ["evaluation.items", "1", "two or more"]),
        ("data.limit=-3", ["data.limit", "-3"]),
        ("seed=-1", ["seed", "-1", "0 to 2147483647"]),
        ("data.text_length=1", ["text_length", "1", ">= 2"]),
        ("data.vocab_size=100", ["data.vocab_size", "100", ">= 259"]),
        ("model.heads=3", ["dim", "16", "multiple of 6"]),
        ("model.heads=0", ["heads", "0", ">= 1"]),
        ("model.dim=0", ["dim", "0", ">= 1"]),
        ("model.depth=0", ["depth", "0", ">= 1"]),
        ("model.dropout=2.0", ["dropout", "2.0", "below 1"]),
        ("model.drop_text=1.5", ["drop_text", "1.5", "below 1"]),
        ("model.text_weight=-1", ["text_weight", "-1", ">= 0"]),
        ("discrete_vae.codes=1", ["codes", "1", ">= 2"]),
        ("discrete_vae.width=-4", ["width", "-4", ">= 1"]),
        ("discrete_vae.depth=-1", ["depth", "-1", ">= 0"]),
        ("discrete_vae.decay=2", ["decay", "2", "below 1"]),
        ("discrete_vae.likelihood=foo", ["likelihood", "foo"]),
    ],
)
def test_configs_that_cannot_be(override, words):
    with pytest.raises(UserError) as error:
        recipe_config(RECIPE, "smoke", [override])
    assert all(word in str(error.value) for word in words), str(error.value)


def test_a_judge_needs_a_label():
    with pytest.raises(UserError, match=r"judge: got no data.label, expected the column of its classes"):
        recipe_config(RECIPE, "smoke", ["data.label=", "judge.data.card=digits"])


def test_texts_that_are_too_long_are_named(tmp_path):
    config = recipe_config(RECIPE, "smoke", ["data.text_length=3"])
    with pytest.raises(
        UserError,
        match=r"digits: train: row \d+: column caption: got \d+ tokens: 'a handwritten \w+', expected at most 3; set ",
    ):
        train(RECIPE, config, tmp_path / "run")
    assert not any((tmp_path / "run").rglob("*.safetensors"))  # before anything is trained


def test_any_tokenizer_of_transformers_will_do(run, tmp_path):
    load(run).processors["text"].tokenizer.save_pretrained(tmp_path / "tokenizer")  # such as one of these
    config = recipe_config(RECIPE, "smoke", [f"data.tokenizer={tmp_path / 'tokenizer'}", "data.vocab_size=300", "fit.steps=1"])
    train(RECIPE, config, tmp_path / "run")
    one, two = (load(folder).processors["text"] for folder in (run, tmp_path / "run"))
    assert two.vocabulary == one.vocabulary and torch.equal(one("a handwritten seven"), two("a handwritten seven"))
    with pytest.raises(UserError, match=r"tokenizer .*none: got no such folder, expected a folder or a Hub name"):
        train(RECIPE, recipe_config(RECIPE, "smoke", [f"data.tokenizer={tmp_path / 'none'}"]), tmp_path / "other")


def test_codes_of_other_arguments_do_not_fit(run, tmp_path):
    config = recipe_config(RECIPE, "smoke", ["discrete_vae.likelihood=continuous_bernoulli"])
    with pytest.raises(UserError, match=r"other values of discrete_vae\.likelihood \(bernoulli, now continuous_bernoulli\)"):
        train(RECIPE, config, tmp_path / "run", stages_from={"discrete_vae": run})


def test_another_prior_takes_the_same_codes(run, tmp_path):
    config, out = recipe_config(RECIPE, "smoke", ["model.dim=24", "fit.steps=1"]), tmp_path / "run"
    train(RECIPE, config, out, stages_from={"discrete_vae": run, "baseline": run})
    one, two = (load(folder).discrete_vae.state_dict() for folder in (run, out))
    assert all(torch.equal(one[name], two[name]) for name in one)
