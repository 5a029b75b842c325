"""A VAE of pictures, its objective by name: judged by its likelihood and, where the factors are known, by disentanglement.

mmgen train vae                                                            # MNIST, minutes on two CPU cores
mmgen train vae --config factor_shapes model.objective=factor              # or any other of mmgen.models.vae.OBJECTIVES
accelerate launch recipes/vae/train.py --config recipes/vae/gpu.yaml
"""

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm.auto import tqdm

from mmgen import processes
from mmgen.cli import main
from mmgen.data.batch import Batch, collate
from mmgen.data.cards import check_column, held_out, read_card
from mmgen.data.image import ImageProcessor
from mmgen.data.processors import Processor
from mmgen.data.rows import open_rows
from mmgen.errors import UserError, check_one_of
from mmgen.metrics.disentanglement import disentanglement_scores
from mmgen.models.base import load
from mmgen.models.vae import VAE, check_settings
from mmgen.ranges import AtLeast, Each
from mmgen.storage import read_json
from mmgen.training.config import FitConfig, section
from mmgen.training.loop import fit
from mmgen.training.model_card import ModelCard, write_model_card
from mmgen.training.prior import prior_fit
from mmgen.training.recipe import Recipe, run_details
from mmgen.training.report import Sample, picture_grid, write_report


@dataclass
class Data:
    """A data card of pictures.

    Args:
        card: name or path.
        input: the column of pictures.
        split: what the model trains on.
        size: side in pixels.
        channels: 1 or 3.
        binary: every value above 0.5 becomes 1, every other 0: then the Bernoulli likelihood is a probability.
        factors: label columns, the factors that made each picture; none: no disentanglement scores.
        grid: the split whose codes are scored against the factors.
        limit: items of each split; 0 takes all.
    """

    card: str = "mnist"
    input: str = "image"
    split: str = "train"
    size: Annotated[int, AtLeast(1)] = 28
    channels: Literal[1, 3] = 1
    binary: bool = False
    factors: list[str] = field(default_factory=list)
    grid: str = "grid"
    limit: Annotated[int, AtLeast(0)] = 0


@dataclass
class Model:
    """The arguments of `VAE` that the data do not settle.

    Args:
        latent_dim: size of z.
        objective: name of the objective, see `VAE`.
        settings: objective -> its settings, such as ``{"beta": {"beta": 4.0}}``, so that another objective is one key away;
            ``beta_tc`` gets its ``dataset_size`` from the data.
        prior: name of the prior, see `VAE`.
        prior_settings: its settings.
        encoder: settings of the encoder.
        decoder: settings of the decoder.
        discriminator: widths of the discriminator of the objective ``factor``.
    """

    latent_dim: Annotated[int, AtLeast(1)] = 10
    objective: str = "vae"
    settings: dict[str, dict[str, Any]] = field(default_factory=dict)
    prior: str = "standard"
    prior_settings: dict[str, Any] = field(default_factory=dict)
    encoder: dict[str, Any] = field(default_factory=dict)
    decoder: dict[str, Any] = field(default_factory=dict)
    discriminator: Annotated[list[int], Each(AtLeast(1))] = field(default_factory=lambda: [1000] * 6)


@dataclass
class Evaluation:
    """Estimation of the importance-weighted bound.

    Args:
        samples: draws for each item.
        limit: items of the split; 0 takes all.
    """

    samples: Annotated[int, AtLeast(1)] = 64
    limit: Annotated[int, AtLeast(0)] = 1000


@dataclass
class Config:
    """The config of the recipe ``vae``."""

    data: Data = section()
    model: Model = section()
    evaluation: Evaluation = section()
    fit: FitConfig = section()
    seed: int = 0
    seeds: int = 1


class Pictures(Sequence):
    """The pictures of a split, as the model reads them."""

    def __init__(self, data: Data, split: str, process: Processor) -> None:
        self.values = open_rows(data.card, split, [data.input], limit=data.limit)[data.input]
        self.name, self.binary, self.process = data.input, data.binary, process
        self.kept: dict[int, Tensor] = {}  # black and white, a byte a pixel: decoding takes as long as a small network

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        if not self.binary:
            return {self.name: self.values.read(index, self.process)}  # (c, h, w)
        if index not in self.kept:
            self.kept[index] = self.values.read(index, self.process) > 0.5
        return {self.name: self.kept[index].float()}

    def batch(self, items: Sequence[int]) -> Batch:
        """The pictures at ``items``, together."""
        return collate([self[i] for i in items])


def check(config: Config) -> None:
    """The columns are there, and the objective has its settings."""
    data, card = config.data, read_card(config.data.card)
    data.input = check_column(card, "data.input", data.input, "image")
    check_one_of("data.split", data.split, card.splits)
    for factor in data.factors:
        check_column(card, "data.factors", factor, "label")
    if data.factors:
        check_one_of("data.grid", data.grid, card.splits)
    if len(data.factors) == 1:
        raise UserError("data.factors", got=data.factors, expected="two or more, or none", fix="name the other factors too")
    for objective in {config.model.objective, *config.model.settings}:
        check_settings(objective, settings_of(config, objective, 1))


def settings_of(config: Config, objective: str, items: int) -> dict[str, Any]:
    """An objective's settings, the size of the training data among them where it needs that."""
    return {**({"dataset_size": items} if objective == "beta_tc" else {}), **config.model.settings.get(objective, {})}


def train_vae(config: Config, run: Path, resume: bool) -> None:
    """Train the model on ``config.data.split``."""
    torch.manual_seed(config.seed)
    processor = ImageProcessor(size=config.data.size, channels=config.data.channels)
    data = Pictures(config.data, config.data.split, processor)
    values = {**asdict(config.model), "settings": settings_of(config, config.model.objective, len(data))}
    model = VAE(config.data.input, "image", list(processor.shape), **values)
    model.processors[config.data.input] = processor
    held = Pictures(config.data, held_out(read_card(config.data.card)), processor)
    shown = held.batch(range(min(10, len(held))))

    def samples(model: VAE, place: Path) -> None:
        place.parent.mkdir(parents=True, exist_ok=True)
        reconstructions(model, shown.to(model.step.device)).save(place.with_suffix(".png"))

    finish = prior_fit(model, data, config.seed)
    fit(model, data, replace(config.fit, seed=config.seed), run, samples=samples, resume=resume, finish=finish)


def as_pictures(model: VAE, x: Tensor) -> list[Image.Image]:
    """x (n, c, h, w) -> n pictures."""
    return [model.processors[model.modality].decode(one) for one in x]


@torch.no_grad()
def reconstructions(model: VAE, batch: Batch) -> Image.Image:
    """Three rows: the pictures, the mean of p(x | z) at the mean of their posterior, and as many made from the prior."""
    name = model.modality
    drawn = model.generate(Batch.nothing(batch.size, batch.rows.device), name, generator=torch.Generator().manual_seed(0))
    rows = (batch[name], model.decode(model.encode(batch).mean, name).mean, drawn)
    return picture_grid([as_pictures(model, x) for x in rows])


def traversals(model: VAE, batch: Batch) -> Image.Image:
    """A row for each latent: the first picture with that latent moved from -2 to 2."""
    moved = model.traverse(batch.items(slice(0, 1)), steps=9)[0]  # (k, steps, c, h, w)
    return picture_grid([as_pictures(model, x) for x in moved])


@torch.no_grad()
def evaluate(run: Path, config: Config, split: str) -> dict[str, float]:
    """ELBO and importance-weighted bound on ``split``, in nats an item, and the disentanglement of the codes of the grid."""
    torch.manual_seed(config.seed)
    device = processes.device()
    model = load(run).to(device)
    process = model.processors[model.modality]
    data = Pictures(config.data, split, process)
    count = min(len(data), config.evaluation.limit or len(data))
    elbo, bound = 0.0, 0.0
    for start in tqdm(range(0, count, 64), desc=f"likelihood of {split}", dynamic_ncols=True):
        batch = data.batch(range(start, min(start + 64, count))).to(device)
        elbo += model.elbo(batch).double().sum().item()
        bound += model.log_likelihood(batch, config.evaluation.samples).double().sum().item()
    figures = {"elbo": elbo / count, "log_likelihood": bound / count}
    if config.data.factors:
        codes, factors = codes_and_factors(model, config.data, process)
        figures |= disentanglement_scores(codes, factors, config.seed)
    shown = data.batch(range(0, len(data), -(-len(data) // 10))).to(device)  # spread over the split
    (run / "samples").mkdir(exist_ok=True)
    reconstructions(model, shown).save(run / "samples" / f"{split}_reconstructions.png")
    traversals(model, shown).save(run / "samples" / f"{split}_traversals.png")
    return figures


@torch.no_grad()
def codes_and_factors(model: VAE, data: Data, process: Processor) -> tuple[np.ndarray, np.ndarray]:
    """The posterior means (n, k) of the grid, all of it, and the numbers of the factors' values (n, f)."""
    pictures = Pictures(replace(data, limit=0), data.grid, process)
    codes = []
    for start in tqdm(range(0, len(pictures), 256), desc=f"codes of {data.grid}", dynamic_ncols=True):
        batch = pictures.batch(range(start, min(start + 256, len(pictures)))).to(model.step.device)
        codes.append(model.encode(batch).mean.cpu())
    rows = open_rows(data.card, data.grid, data.factors)
    columns = [np.unique(rows[factor][:], return_inverse=True)[1] for factor in data.factors]
    return torch.cat(codes).numpy(), np.stack(columns, 1)


def report(run: Path, config: Config) -> None:
    """Write ``report.html`` and ``README.md`` from the metrics and pictures that evaluations left in ``run``."""
    card = read_card(config.data.card)
    metrics, name = read_json(run / "metrics.json"), config.model.objective
    table = {split: {name: figures} for split, figures in metrics.items()}
    samples = []
    for split in metrics:
        texts = {
            "reconstructions": "first row: the data; second: reconstructed; third: made from the prior",
            "traversals": "a row for each latent, moved from -2 to 2; the others stay at the first picture's posterior mean",
        }
        for kind, text in texts.items():
            picture = (run / "samples" / f"{split}_{kind}.png").read_bytes()
            samples.append(Sample(picture, {kind: text}, group=split, wide=True))
    title = f"VAE of {card.name}"
    summary = (
        f"Objective {name}, {config.model.latent_dim} latents, {config.fit.steps} steps of {config.fit.batch_size}. "
        f"log-likelihood: the importance-weighted bound of {config.evaluation.samples} draws, a lower bound."
    )
    details = run_details(run)
    write_report(run / "report.html", title, table, samples, details, summary)
    write_model_card(run / "README.md", ModelCard(
        name=f"vae-{card.name}",
        description=f"A VAE of {card.name}, trained with the objective {name}.",
        license="apache-2.0",
        task="unconditional-image-generation",
        data=card.name,
        data_license=card.license,
        table=table,
        command=details["command"],
        picture=f"samples/{next(iter(metrics))}_reconstructions.png",
        picture_text="First row: held-out data; second row: reconstructed; third row: made from the prior",
        intended_use="Research on latent spaces, and pictures like those of the data card.",
        limitations=[
            "It makes what its data card shows and nothing else, blurred as a mean is.",
            "log_likelihood is a lower bound, and of the pixels as the config makes them: compare it at one size only.",
        ],
        tags=["vae", name],
    ))  # fmt: skip


RECIPE = Recipe(
    name="vae",
    config=Config,
    stages={"vae": train_vae},
    main="vae",
    evaluate=evaluate,
    splits=("test", "validation"),
    report=report,
    check=check,
)

if __name__ == "__main__":
    sys.exit(main(["train", "vae", *sys.argv[1:]]))
