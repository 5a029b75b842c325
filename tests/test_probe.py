"""Probes in closed form, and `mmgen probe` on small runs: its table, its splits, and its errors."""

import json
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import torch
from commands import here
from torch.distributions import Categorical, Independent, Normal

from mmgen.data.cards import cards_folder
from mmgen.data.image import ImageProcessor
from mmgen.distributions import Delta, Joint
from mmgen.errors import UserError
from mmgen.inference.probe import probe
from mmgen.judging import probe as probes
from mmgen.judging.probe import Items, code_of, linear_accuracy, nearest_accuracy, r_squared
from mmgen.models.base import Model
from mmgen.models.classifier import Classifier
from mmgen.models.discrete_vae import DiscreteVAE
from mmgen.models.vae import VAE
from mmgen.training.recipe import load_recipe, recipe_config
from mmgen.training.run_folder import make_run_folder

TINY_VAE = {"latent_dim": 3, "encoder": {"dim": 16, "width": 8}, "decoder": {"width": 8}}


def random(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def thirds(codes: np.ndarray, target: np.ndarray) -> list[Items]:
    return [Items(x, y) for x, y in zip(np.array_split(codes, 3), np.array_split(target, 3))]


def test_labels_are_read_from_themselves_and_not_from_noise():
    labels = random(0).integers(0, 4, 3000)
    learn, choose, judge = thirds(np.eye(4)[labels], labels)
    assert linear_accuracy(learn, choose, judge) == nearest_accuracy(learn, judge) == 1
    assert r_squared(*thirds(np.eye(4)[labels], labels[:, None].astype(float))) == pytest.approx(1, abs=1e-6)
    learn, choose, judge = thirds(random(1).normal(size=(3000, 5)), labels)
    spread = 4 * (0.25 * 0.75 / 1000) ** 0.5  # four standard errors of chance
    assert linear_accuracy(learn, choose, judge) == pytest.approx(0.25, abs=spread)
    assert nearest_accuracy(learn, judge) == pytest.approx(0.25, abs=spread)
    assert r_squared(*thirds(random(1).normal(size=(3000, 5)), labels[:, None])) == pytest.approx(0, abs=0.02)


@pytest.mark.parametrize("noise", [0.3, 1.0, 3.0])
def test_factors_of_a_linear_gaussian_world_have_the_r_squared_of_their_posterior(noise):
    """s ~ N(0, 1), x ~ N(W s, noise^2): the posterior's mean explains 1 - tr(S) / k, S = (1 + W^T W / noise^2)^-1."""
    w, k = random(0).normal(size=(5, 2)), 2
    s = random(1).normal(size=(30_000, k))
    x = s @ w.T + noise * random(2).normal(size=(30_000, 5))
    covariance = np.linalg.inv(np.eye(k) + w.T @ w / noise**2)
    mean = x @ (covariance @ w.T / noise**2).T  # (n, k), what such a VAE encodes
    for codes in (mean, mean @ np.array([[2.0, 1.0], [0.0, -0.1]]) + 7, x):  # no linear map loses anything
        assert r_squared(*thirds(codes, s)) == pytest.approx(1 - np.trace(covariance) / k, abs=0.015)


def test_two_gaussians_are_told_apart_as_well_as_can_be():
    labels = random(0).integers(0, 2, 30_000)
    codes = random(1).normal(size=(30_000, 1)) + 2.0 * labels[:, None]
    assert linear_accuracy(*thirds(codes, labels)) == pytest.approx(scipy.stats.norm.cdf(1), abs=0.015)  # Phi(shift / 2)


def test_the_penalty_is_chosen(monkeypatch):
    """With fewer items than numbers, a penalty reads the factor where none does."""
    codes = random(0).normal(size=(150, 60))
    factor = codes[:, :1] + random(1).normal(size=(150, 1))
    chosen = r_squared(*thirds(codes, factor))
    monkeypatch.setattr(probes, "STRENGTHS", (1e-8,))
    assert chosen > 0 > r_squared(*thirds(codes, factor))


def test_the_code_is_the_mean_of_the_posterior():
    mean = torch.randn(3, 2)
    assert torch.equal(code_of(Independent(Normal(mean, 1.0), 1)), mean)
    codes = Independent(Categorical(probs=torch.eye(4)[torch.tensor([[[0, 1]], [[3, 3]]])]), 2)  # a grid of 1 x 2
    assert code_of(codes).tolist() == [[1, 0, 0, 0, 0, 1, 0, 0], [0, 0, 0, 1, 0, 0, 0, 1]]
    both = Joint({"label": Delta(mean), "image": Delta(torch.ones(3, 1, 2), 2)})
    assert torch.equal(code_of(both), torch.cat([mean, torch.ones(3, 2)], 1))


GOOD = Items(np.eye(4), np.array([0, 1, 0, 1]))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: nearest_accuracy(GOOD, Items(np.full((1, 4), np.nan), np.zeros(1))), r"judge: codes\[0, 0\]: got nan"),
        (lambda: nearest_accuracy(GOOD, Items(np.ones((1, 3)), np.zeros(1))), r"codes: got .*\(1, 3\)"),
        (lambda: nearest_accuracy(GOOD, Items(np.eye(4), np.zeros(1))), "judge: got 4 codes and 1 targets"),
        (lambda: linear_accuracy(Items(np.eye(4), np.zeros(4)), GOOD, GOOD), "labels to learn from: got the class 0.0 only"),
        (lambda: r_squared(GOOD, GOOD, Items(np.eye(4), np.full((4, 1), 2.5))), r"factor: got the value \[2.5\] only"),
    ],
)
def test_bad_codes(call, message):
    with pytest.raises(UserError, match=message):
        call()


def saved_run(out: Path, recipe: str, model: Model, *overrides: str, stage: str = "") -> Path:
    """A run folder as training leaves it, of an untrained model."""
    torch.manual_seed(0)
    found = load_recipe(recipe)
    make_run_folder(found, recipe_config(found, "smoke", list(overrides)), out, [])
    place = out / "stages" / stage if stage else out
    model.processors["image"] = ImageProcessor(size=8, channels=1)
    model.save_pretrained(place / "model")
    return place


def tiny_vae() -> VAE:
    return VAE("image", "image", [1, 8, 8], **TINY_VAE)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return saved_run(tmp_path_factory.mktemp("probe") / "vae", "vae", tiny_vae())


@pytest.fixture(scope="module")
def codes(tmp_path_factory):
    model = DiscreteVAE([1, 8, 8], codes=6, dim=3, width=16, halvings=1, depth=1)
    out = tmp_path_factory.mktemp("probe") / "run"
    return saved_run(out, "text_to_image", model, "data.card=digits", stage="discrete_vae")


def test_the_command_prints_a_row_for_each_representation(run, codes, tmp_path):
    file = tmp_path / "f.json"
    done = here("probe", run, codes, "--features", "", "--limit", 200, "--json", file)
    assert done.returncode == 0, done.stderr
    found = json.loads(file.read_text(encoding="utf-8"))
    assert [*found] == [str(run), str(codes), "raw image 1x8x8", "majority class"]
    assert [found[name]["numbers"] for name in found] == [3, 4 * 4 * 6, 64, 0]
    pixels, majority = found["raw image 1x8x8"], found["majority class"]
    assert pixels["label_linear"] > 0.8 and pixels["label_nearest"] > 0.8
    assert pixels["vector_r2"] > 0.999  # the vector is the pixels
    assert majority["label_linear"] == majority["label_nearest"] < 0.2 and "vector_r2" not in majority
    assert majority["label_linear"] < found[str(run)]["label_linear"] < pixels["label_linear"]
    lines = done.stdout.splitlines()
    assert lines[0].split() == ["probed", "on", "test", "numbers", "label_linear", "label_nearest", "vector_r2"]
    assert len(lines) == 5 and all(len(line) <= len(lines[0]) for line in lines)
    assert f"{pixels['label_linear']:.4g}" in lines[3]


def test_pictures_are_read_by_the_packaged_encoder_too(run):
    found = probe([run], "test", ["label"], features="efficientnet_lite0", limit=15)
    assert found["efficientnet_lite0 1x8x8"]["numbers"] == 1280 and "vector_r2" not in found[str(run)]


def test_the_probes_of_validation_are_chosen_on_a_part_of_train(run):
    found = probe([run], "validation", factors=["label", "vector"], features="", limit=100)
    assert found.keys() == {str(run), "raw image 1x8x8"}
    assert found["raw image 1x8x8"]["vector_r2"] > 0.99 and 0 < found["raw image 1x8x8"]["label_r2"] < 1


def card(folder: Path, *without: str) -> str:
    """The card of the digits without some columns."""
    lines = (cards_folder() / "digits.md").read_text(encoding="utf-8").splitlines()
    kept = [line for line in lines if not line.strip().startswith(tuple(f"{name}:" for name in without))]
    (folder / "own.md").write_text("\n".join(kept), encoding="utf-8")
    return str(folder / "own.md")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--label", "lable"], "--label (a column of digits): got lable, expected a column of label; did you mean 'label'?"),
        (["--label", "image"], "--label=image: got a column of image, expected label"),
        (["--factor", "word"], "--factor=word: got a column of text, expected vector or label"),
        (["--split", "trial"], "--split: got trial"),
        (["--split", "train"], "--split: got train, expected one that probes do not learn from"),
        (["--input", "text"], "got text, expected a known name; choose one of image"),
        (["--limit", "-1"], "--limit: got -1"),
        (["--features", "resnet"], "--features: got resnet, expected a known name; choose one of efficientnet_lite0"),
    ],
)
def test_a_mistake_is_one_line(run, arguments, message):
    done = here("probe", run, *(["--features", ""] if "--features" not in arguments else []), *arguments)
    assert done.returncode == 2 and message in done.stderr, done.stderr


def test_what_cannot_be_probed(run, tmp_path):
    judge = Classifier("image", "image", [1, 8, 8], classes=10, encoder={"dim": 8, "width": 4})
    unread = saved_run(tmp_path / "unread", "vae", tiny_vae(), f"data.card={card(tmp_path, 'label', 'vector')}")
    for folders, message in {
        (tmp_path,): "got no run.json and config.yaml, expected a run folder",
        (saved_run(tmp_path / "judge", "judge", judge),): "got the model classifier, expected a model that defines encode",
        (unread,): "got the columns image, word, caption, image_id, expected a column of labels or of numbers to read",
        (run, unread): "expected digits; probe it separately",
    }.items():
        done = here("probe", *folders, "--features", "")
        assert done.returncode == 2 and message in done.stderr, done.stderr
