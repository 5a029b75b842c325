import pytest
import torch
from sklearn.datasets import load_digits

from mmgen.data.batch import Batch
from mmgen.errors import UserError
from mmgen.models.base import load
from mmgen.models.classifier import Classifier, distorted

SETTINGS = {
    "image": ([1, 8, 8], {"dim": 8, "width": 4}, lambda n: torch.rand(n, 1, 8, 8)),
    "audio": ([16, 10], {"dim": 8, "width": 4}, lambda n: torch.rand(n, 16, 10)),
    "vector": ([5], {"dim": 8, "hidden": [4]}, lambda n: torch.randn(n, 5)),
    "text": ([11], {"dim": 16, "depth": 1, "heads": 2}, lambda n: torch.randint(0, 11, (n, 6))),
}


def build(kind: str = "image") -> Classifier:
    torch.manual_seed(0)
    shape, encoder, _ = SETTINGS[kind]
    return Classifier("x", kind, shape, 3, encoder, ["a", "b", "c"]).eval()


def batch_of(kind: str, n: int = 4) -> Batch:
    masks = {"x": torch.arange(6)[None] < torch.tensor([6, 3, 1, 5])[:n, None]} if kind == "text" else {}
    return Batch({"x": SETTINGS[kind][2](n), "label": torch.arange(n) % 3}, masks)


@pytest.mark.parametrize("kind", SETTINGS)
def test_loss_is_the_mean_of_the_log_likelihood_and_survives_saving(kind, tmp_path):
    model, batch = build(kind), batch_of(kind)
    log_likelihood = model.log_likelihood(batch)
    torch.testing.assert_close(log_likelihood, model.predict(batch).probs.log()[torch.arange(4), batch["label"]])
    torch.testing.assert_close(model.losses(batch).total, -log_likelihood.mean())
    model.save_pretrained(tmp_path / "judge")
    again = load(tmp_path / "judge")
    assert again.class_names == ["a", "b", "c"] and torch.equal(again.log_likelihood(batch), log_likelihood)


def test_items_without_a_label_count_nowhere():
    model, batch = build(), batch_of("image")
    partial = Batch(batch.values, present={"label": torch.tensor([True, False, True, False])})
    torch.testing.assert_close(model.losses(partial).total, model.losses(batch.items(slice(0, 4, 2))).total)
    assert model.log_likelihood(partial)[[1, 3]].tolist() == [0, 0]


def test_sampled_labels_follow_the_probabilities():
    model, batch = build(), batch_of("image", 2).without("label")
    labels = model.generate(batch, n=20000, generator=torch.Generator().manual_seed(0)).unflatten(0, (2, -1))
    shares = torch.nn.functional.one_hot(labels, 3).double().mean(1)
    torch.testing.assert_close(shares, model.predict(batch).probs.double(), atol=0.02, rtol=0)


def test_learns_the_digits():
    torch.manual_seed(0)
    digits = load_digits()
    images, labels = torch.tensor(digits.images).float()[:, None] / 16, torch.tensor(digits.target)
    model = Classifier("image", "image", [1, 8, 8], 10, {"width": 8, "dim": 32})
    optimiser = torch.optim.AdamW(model.parameters(), 3e-3)
    for _ in range(80):
        rows = torch.randint(0, 1400, (32,))
        optimiser.zero_grad()
        model.losses(Batch({"image": images[rows], "label": labels[rows]})).total.backward()
        optimiser.step()
    with torch.no_grad():
        predicted = model.eval().predict(Batch({"image": images[1400:]})).mode
    assert (predicted == labels[1400:]).double().mean() > 0.9


def test_pictures_are_distorted_in_training_alone():
    model, x = Classifier("x", "image", [1, 8, 8], 3, {"dim": 4, "width": 4}, distort=0.2), torch.rand(2, 1, 8, 8)
    once, again = (model.train().features(Batch({"x": x})) for _ in range(2))
    assert not torch.equal(once, again)
    once, again = (model.eval().features(Batch({"x": x})) for _ in range(2))
    assert torch.equal(once, again)


def test_a_distorted_picture_is_moved_turned_and_scaled(monkeypatch):
    x = torch.zeros(1, 1, 9, 9)
    x[0, 0, 4, 6] = 1  # right of the middle
    draws = {"moved": [0, 0, 0, 1], "turned": [1, 0, 0, 0], "scaled": [0, 1, 0, 0]}  # turn, scale, down, across
    found = {}
    for name, one in draws.items():
        monkeypatch.setattr(torch, "rand", lambda *size, one=one, device=None: (torch.tensor(one).float()[:, None] + 1) / 2)
        most = 0.9 if name == "turned" else 4 / 9
        found[name] = divmod(distorted(x, most)[0, 0].argmax().item(), 9)
    assert found["moved"] == (4, 4)  # the window moved right by 2 pixels
    assert found["turned"] == (6, 4) or found["turned"] == (2, 4)  # by 90 degrees
    assert found["scaled"] == (4, 7)  # 1.44 times as far out


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Classifier("x", "imag", [1, 8, 8], 3), "kind: got imag, .*did you mean 'image'"),
        (lambda: Classifier("x", "image", [8, 8], 3), r"shape: got \[8, 8\], expected 3 numbers"),
        (lambda: Classifier("x", "vector", [8], 1), "classes: got 1"),
        (lambda: Classifier("x", "vector", [8], 3, class_names=["a"]), r"class_names: got \['a'\], expected 3 names"),
        (lambda: Classifier("x", "vector", [8], 3, {"hiden": [4]}), "encoder.hiden: got hiden.*did you mean 'hidden'"),
        (lambda: Classifier("x", "image", [3, 8, 8], 3, {"backbone": "resnet18", "dim": 8}), "encoder.dim: got dim"),
        (lambda: Classifier("x", "image", [1, 8, 8], 3, distort=1.0), "distort: got 1.0 of image, .*below 1"),
        (lambda: Classifier("x", "vector", [8], 3, distort=0.1), "distort: got 0.1 of vector, .*0 for kinds other than image"),
        (lambda: build().generate(batch_of("image"), to="text"), "to: got text"),
        (lambda: build().generate(batch_of("image"), n=0), "n: got 0"),
        (lambda: build().predict(batch_of("image").without("x")), r"x: got no item that has it \(the batch holds label\)"),
        (lambda: build().log_likelihood(batch_of("image").without("label")), "x and label: got no item"),
        (lambda: build().losses(Batch({"x": torch.zeros(1, 1, 8, 8), "label": torch.tensor([3])})), "label: got 3, .*0 to 2"),
        (lambda: build().encode(batch_of("image")), "classifier.encode"),
    ],
)
def test_wrong_use_says_so(make, message):
    with pytest.raises(UserError, match=message) as error:
        make()
    assert "\n" not in str(error.value)
