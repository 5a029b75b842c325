"""Overhead of the training loop: `fit` against a bare PyTorch loop over the same model, data and optimiser.

python -m benchmarks.loop --json F

`fit` makes the process keep freed memory, which speeds up any loop, so both loops run with this setting;
``ratio_memory_given_back`` is the time of a bare loop without the setting over that of the same loop with it.
"""

import tempfile
from pathlib import Path

import torch
from torch.utils.data import DataLoader

from benchmarks.interleave import race, ratio, report
from mmgen.data.batch import collate
from mmgen.models.classifier import Classifier
from mmgen.training.config import FitConfig
from mmgen.training.loop import Order, fit, learning_rate
from mmgen.training.memory import keep_freed_memory

CONFIG = FitConfig(steps=200, batch_size=64, checkpoint_every=200, tracker="none")


def model() -> Classifier:
    torch.manual_seed(0)
    return Classifier("image", "image", [1, 28, 28], classes=10, encoder={"width": 32, "dim": 128})


def data() -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    images, labels = torch.rand(512, 1, 28, 28, generator=generator), torch.arange(512) % 10
    return [{"image": image, "label": label} for image, label in zip(images, labels)]


def with_fit(rows: list[dict[str, torch.Tensor]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        fit(model(), rows, CONFIG, Path(folder))


def bare(rows: list[dict[str, torch.Tensor]]) -> None:
    network = model().train()
    groups = network.phase_parameters("train")
    optimizer = torch.optim.AdamW(groups, CONFIG.learning_rate, CONFIG.betas, weight_decay=CONFIG.weight_decay)
    loader = iter(DataLoader(rows, batch_sampler=Order(len(rows), CONFIG, 0, 0, 1), collate_fn=collate))
    for step in range(CONFIG.steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(CONFIG, step)
        loss = network.losses(next(loader)).total
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), CONFIG.clip)
        optimizer.step()
        optimizer.zero_grad()


if __name__ == "__main__":
    rows = data()
    unset = race({"bare, memory given back": lambda: bare(rows)}, rounds=3)
    keep_freed_memory()
    seconds = race({"fit": lambda: with_fit(rows), "bare": lambda: bare(rows)})
    seconds |= unset
    figures = {
        "ratio_to_bare": ratio(seconds, "fit", "bare"),
        "ratio_memory_given_back": ratio(seconds, "bare, memory given back", "bare"),
    }
    report("loop", figures, seconds)
