"""Estimators that do not depend on how items are put together: in batches, in processes, beside other items."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny import tiny_models
from torch import Tensor, nn

from mmgen.data.batch import Batch, collate
from mmgen.latents.discrete import VectorQuantizer
from mmgen.models.base import Losses, Model
from mmgen.models.classifier import Classifier
from mmgen.models.discrete_vae import DiscreteVAE
from mmgen.models.factorized import Factorized
from mmgen.models.mag import AdaptedTransformer
from mmgen.models.vae import OBJECTIVES, VAE
from mmgen.training import prior
from mmgen.training.config import FitConfig
from mmgen.training.loop import Order, fit, own_seed

TINY = tiny_models()
# entries without which an item counts in no term, or not in all, where this is not the optional one
NEEDED = {
    "vision_touch": ["action", "force"],
    "captioner": ["text"],
    "psa_captioner": ["text"],
    "answerer": ["text", "caption"],
    "mag": ["label"],
    "factorized": ["touch", "label"],
    "pixel_cnn": ["image"],
    "glow": ["image"],
}
# terms of a batch as a whole, which several batches estimate differently: contrasts with its other items
OF_A_BATCH = {"aligned": "", "mirror_gan": "discriminator/"}  # the start of their names


def rows_of(batch: Batch) -> list[dict[str, Tensor]]:
    """The rows that `collate` makes this batch of."""
    return [
        {k: v[i][batch.masks[k][i]] if k in batch.masks else v[i] for k, v in batch.values.items() if batch.present[k][i]}
        for i in range(batch.size)
    ]


def settings(**changes) -> FitConfig:
    values = {"steps": 1, "batch_size": 8, "clip": 0, "tracker": "none", "log_every": 1, "seed": 3}
    return FitConfig(**{**values, **changes})


def some_observed(name: str, places: set[int]) -> list[dict[str, Tensor]]:
    """Eight rows of doubles; those at other ``places`` of the first eight that training takes lack what the model needs."""
    torch.manual_seed(0)
    rows = rows_of(TINY[name].batch(8))
    rows = [{k: v.double() if v.is_floating_point() else v for k, v in row.items()} for row in rows]
    needed = NEEDED.get(name, [TINY[name].optional])
    for place, i in enumerate(Order(8, settings(), 0, 0, 1).batch(0)):
        rows[i] = {k: v for k, v in rows[i].items() if place in places or k not in needed}
    return rows


def gradients(name: str, rows: list, folder: Path, config: FitConfig) -> dict[str, Tensor]:
    """The gradients of the first step, by phase and parameter, 0 where there is none; without dropout, with equal noise."""
    torch.manual_seed(1)
    model, found = TINY[name].model().double().eval(), {}
    model.train = lambda mode=True: model
    named = {p: key for key, p in model.named_parameters()}
    groups = {phase: [p for group in model.phase_parameters(phase) for p in group["params"]] for phase in model.phases}
    phases = iter(model.phases)

    def step(optimizer, *_, **__):
        phase = next(phases)
        for p in groups[phase]:
            found[f"{phase}/{named[p]}"] = (torch.zeros_like(p) if p.grad is None else p.grad.clone()).contiguous()

    with pytest.MonkeyPatch.context() as patch:
        constant_noise(patch)
        patch.setattr(torch.optim.AdamW, "step", step)
        fit(model, rows, config, folder)
    return found


def constant_noise(patch: pytest.MonkeyPatch) -> None:
    """Make the noise of all items the same; the likeliest value is drawn from probabilities."""
    for name in ("randn", "rand", "randn_like", "rand_like"):
        drawn = getattr(torch, name)
        patch.setattr(torch, name, lambda *a, drawn=drawn, **k: drawn(*a, **k).fill_(0.4))
    patch.setattr(Tensor, "exponential_", lambda self, *_, **__: self.fill_(0.4))
    patch.setattr(torch, "multinomial", lambda p, n, *_, **__: p.argmax(-1, keepdim=True).expand(-1, n))


def log(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def logged(folder: Path) -> dict[str, float]:
    """What was logged of the losses of the first step, means over items all."""
    other = ("items_per_s", "codes_used", "code_perplexity")
    return {name: value for name, value in log(folder)[0].items() if name not in other}


def exact(name: str, observed: str, found: Mapping[str, Any]) -> dict[str, Any]:
    """The entries that do not depend on how items are put together."""
    of_a_batch = OF_A_BATCH.get(name, "-") if observed == "1 + 4" else "-"  # nothing is compared across batches in 0 + 4
    return {key: value for key, value in found.items() if not key.startswith(of_a_batch)}


SOME = {"1 + 4": {0, 4, 5, 6, 7}, "0 + 4": {4, 5, 6, 7}}


@pytest.mark.parametrize("observed", SOME)
@pytest.mark.parametrize("name", TINY)
def test_two_batches_of_four_have_the_gradient_of_one_of_eight(tmp_path, name, observed):
    rows = some_observed(name, SOME[observed])
    whole = gradients(name, rows, tmp_path / "8", settings())
    parts = gradients(name, rows, tmp_path / "2x4", settings(batch_size=4, accumulation=2))
    assert any(g.any() for g in whole.values())
    torch.testing.assert_close(exact(name, observed, parts), exact(name, observed, whole), rtol=1e-6, atol=1e-9)
    losses = [exact(name, observed, logged(tmp_path / folder)) for folder in ("2x4", "8")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5, abs=1e-7)


# nobody has anything in one of the processes; and models whose terms count different items
ON_TWO = [(name, "0 + 4") for name in TINY]
ON_TWO += [
    (name, "1 + 4") for name in ("classifier", "answerer", "factorized", "multimodal_vae", "vision_touch", "mirror_gan")
]

RUN = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from safetensors.torch import save_file
from test_estimators import *

for name, observed in ON_TWO:
    place = Path(sys.argv[1]) / observed / name
    found = gradients(name, some_observed(name, SOME[observed]), place, settings(batch_size=4))
    if int(os.environ["RANK"]) == 0:
        save_file(found, place / "gradients.safetensors")
"""


def launch(script: str, folder: Path) -> None:
    (folder / "run.py").write_text(script.format(tests=str(Path(__file__).parent)), encoding="utf-8")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", folder / "run.py"]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, folder], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]


def test_two_processes_of_four_have_the_gradient_of_one_of_eight(tmp_path):
    launch(RUN, tmp_path)
    for name, observed in ON_TWO:
        whole = gradients(name, some_observed(name, SOME[observed]), tmp_path / "8", settings())
        parts = load_file(tmp_path / observed / name / "gradients.safetensors")
        torch.testing.assert_close(
            exact(name, observed, parts), exact(name, observed, whole), rtol=1e-6, atol=1e-9,
            msg=lambda text, at=f"{name}, {observed}": f"{at}: {text}",
        )  # fmt: skip
        losses = [exact(name, observed, logged(folder)) for folder in (tmp_path / observed / name, tmp_path / "8")]
        assert losses[0] == pytest.approx(losses[1], rel=1e-5, abs=1e-7), f"{name}, {observed}"


def digits(share: float = 1.0) -> list[dict[str, Tensor]]:
    """scikit-learn's digits, (1, 8, 8) from 0 to 1; only a share of them, drawn at random, have a label."""
    from sklearn.datasets import load_digits

    data, generator = load_digits(), torch.Generator().manual_seed(0)
    labelled = torch.rand(len(data.target), generator=generator) < share
    images = torch.from_numpy(data.images / 16).float()[:, None]
    return [
        {"image": image, "label": torch.tensor(int(label)) if known else None}
        for image, label, known in zip(images, data.target, labelled.tolist())
    ]


FIVE = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_estimators import *

few_labels(Path(sys.argv[1]), batch_size=8)
"""


def few_labels(folder: Path, batch_size: int) -> list[Model]:
    """Train a classifier on digits of which 5 % have a label, and other models on digits of which 5 % have a picture."""
    torch.manual_seed(0)
    rows, config = digits(0.05), settings(steps=30, batch_size=batch_size, log_every=10, learning_rate=1e-2)
    encoder = {"dim": 16, "width": 8}
    both = {
        "image": {"kind": "image", "shape": [1, 8, 8], "encoder": encoder, "decoder": {"width": 8}},
        "upper": {"kind": "vector", "shape": [32]},
    }
    halves = [{**row, "upper": row["image"].flatten()[:32], "image": row["image"] if row["label"] is not None else None}
              for row in rows]  # fmt: skip
    numbers = [{"text": torch.tensor([5, 6, 7 + i % 9]), "label": row["label"], "upper": row["upper"] if i % 20 == 0 else None}
               for i, row in enumerate(halves)]  # fmt: skip
    factor = {"objective": "factor", "discriminator": [8], "encoder": encoder, "decoder": {"width": 8}}
    return [
        fit(
            Classifier("image", "image", [1, 8, 8], 10, encoder),
            rows,
            replace(config, steps=120, log_every=40),
            folder / "classifier",
        ),
        fit(Factorized(both, 10, hidden=16), halves, config, folder / "factorized"),
        fit(AdaptedTransformer("tiny", {"upper": 32}, 10, layer=1), numbers, config, folder / "mag"),
        fit(VAE("image", "image", [1, 8, 8], 2, **factor), halves, config, folder / "factor"),
        fit(DiscreteVAE([1, 8, 8], codes=6, dim=4, width=8, halvings=1), halves, config, folder / "discrete"),
    ]


def test_five_per_cent_of_labels_in_batches_of_sixteen_train_to_the_end(tmp_path):
    classifier, *_ = few_labels(tmp_path, batch_size=16)
    every = [row for row in digits()]
    predicted = classifier.predict(collate(every)).probs.argmax(1)
    share = (predicted == torch.stack([row["label"] for row in every])).float().mean().item()
    assert share > 0.5, share
    for stage in ("factorized", "mag", "factor", "discrete"):
        assert [line["step"] for line in log(tmp_path / stage)] == [10, 20, 30]
    first, *_, last = log(tmp_path / "classifier")
    assert last["loss"] == last["cross_entropy"] < first["loss"]
    # of an untrained classifier: not less for the batches in which nobody has a label
    start = settings(steps=20, batch_size=16, log_every=20, learning_rate=0.0)
    fit(Classifier("image", "image", [1, 8, 8], 10, {"dim": 16, "width": 8}), digits(0.05), start, tmp_path / "start")
    assert log(tmp_path / "start")[0]["loss"] > 2.2  # log 10 = 2.3


def test_five_per_cent_of_labels_train_to_the_end_on_two_processes(tmp_path):
    launch(FIVE, tmp_path)
    for stage in ("classifier", "factorized", "mag", "factor", "discrete"):
        assert len(log(tmp_path / stage)) == 3 and (tmp_path / stage / "model").is_dir()


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("observed", [0, 1, 2, 3])
def test_a_few_observed_items_abort_no_objective(objective, observed):
    given = {"dataset_size": 100} if objective == "beta_tc" else {}
    model = VAE("x", "vector", [3], 2, objective, given, discriminator=[4]).train()
    batch = Batch({"x": torch.randn(8, 3)}, present={"x": torch.arange(8) < observed})
    for phase in model.phases:
        loss = model.losses(batch, phase).total
        loss.backward()
        assert loss.isfinite() and (loss == 0) == (not model.usable(batch, phase)["rest"].any())


class WithBuffers(Model):
    """A model with all kinds of buffers: of batch statistics, of a code book, and of whole numbers."""

    name = "with_buffers"

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.quantizer = nn.BatchNorm1d(3), VectorQuantizer(4, 3)

    def losses(self, batch: Batch, phase: str = "train") -> Losses:
        return Losses(commitment=self.quantizer(self.norm(batch["x"])).commitment)


def random_rows(n: int = 40) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [{"x": 2 + torch.randn(3, generator=generator)} for _ in range(n)]


def with_buffers(folder: Path, steps: int, **changes) -> Model:
    torch.manual_seed(1)
    config = settings(steps=steps, checkpoint_every=1, keep=9, schedule="constant", **changes)
    return fit(WithBuffers(), random_rows(), config, folder, resume=True)


def test_the_moving_average_is_of_buffers_too(tmp_path):
    with_buffers(tmp_path / "plain", 4)
    states = [load_file(f / "model.safetensors") for f in sorted((tmp_path / "plain" / "checkpoints").iterdir())]
    torch.manual_seed(1)
    average = WithBuffers().own_state()
    for state in states:
        average = {
            name: 0.5 * average[name] + 0.5 * value if value.is_floating_point() else value for name, value in state.items()
        }
    found = with_buffers(tmp_path / "averaged", 4, ema=0.5).own_state()
    torch.testing.assert_close(found, average)
    assert found["norm.num_batches_tracked"] == 4
    assert not torch.equal(found["norm.running_mean"], states[-1]["norm.running_mean"])
    assert not torch.equal(found["quantizer.codebook"], states[-1]["quantizer.codebook"])
    with_buffers(tmp_path / "resumed", 2, ema=0.5)
    again = with_buffers(tmp_path / "resumed", 4, ema=0.5).own_state()
    assert all(torch.equal(value, found[name]) for name, value in again.items())


def test_the_streams_of_seeds_and_processes_are_apart():
    seeds = {(seed, rank): own_seed(seed, rank) for seed in range(50) for rank in range(8)}
    assert len(set(seeds.values())) == len(seeds)
    assert all(own_seed(seed, 0) == seed for seed in range(50))
    assert all(abs(own_seed(0, rank) - rank) > 1000 for rank in range(1, 8))
    assert 0 <= own_seed(2**32 - 1, 7) < 2**32


def test_the_aggregate_prior_is_fitted_to_a_sample_of_all_items(monkeypatch):
    monkeypatch.setattr(prior, "ITEMS", 50)
    model = VAE("x", "vector", [1], 1, prior="aggregate", prior_settings={"components": 1})
    read = []
    monkeypatch.setattr(
        model, "fit_prior", lambda batches, generator: read.extend(x for b in batches for x in b["x"][:, 0].tolist())
    )
    data = [{"x": torch.tensor([float(i)])} for i in range(1000)]  # sorted, as many data sets are
    for seed in (0, 0, 1):
        prior.prior_fit(model, data, seed)(model)
    first, second, third = (set(read[start : start + 50]) for start in (0, 50, 100))
    assert len(read) == 150 and len(first) == 50 and first == second != third
    assert min(first) < 200 and max(first) > 800
    del read[:]
    prior.prior_fit(model, data[:50], 3)(model)
    assert read == [float(i) for i in range(50)]


@pytest.mark.parametrize("name", [name for name in TINY if TINY[name].to])
def test_an_item_alone_is_generated_as_among_others(monkeypatch, name):
    """With the same noise for all items; where a model draws, each item has its own in use, so a seed fixes whole batches."""
    torch.manual_seed(0)
    model, to = TINY[name].model().eval(), TINY[name].to
    rows = [{key: value for key, value in row.items() if key != to} for row in rows_of(TINY[name].batch(5))]
    if name in ("vae", "discrete_vae"):  # a reconstruction
        rows = rows_of(TINY[name].batch(5))
    constant_noise(monkeypatch)
    together = model.generate(collate(rows, model.sequences), to, n=2)
    for i, row in enumerate(rows):
        alone, found = model.generate(collate([row], model.sequences), to, n=2), together[2 * i : 2 * i + 2]
        if isinstance(alone, Tensor):
            torch.testing.assert_close(found, alone, rtol=1e-4, atol=1e-5)
        else:
            assert found == alone
