"""VAEs of pictures with eight objectives, evaluated by likelihood and, for known factors, disentanglement.

mmgen train vae                                                            # MNIST, minutes on two CPU cores
mmgen train vae --config factor_shapes model.objective=factor              # or any other of mmgen.models.vae.OBJECTIVES
accelerate launch recipes/vae/train.py --config recipes/vae/gpu.yaml
"""

import sys
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mmgen.cli import main
from mmgen.data.batch import Batch
from mmgen.data.cards import check_column, check_columns, held_out, read_card
from mmgen.data.image import ImageProcessor
from mmgen.data.processors import Processor
from mmgen.data.rows import DataSet, open_rows
from mmgen.errors import Mistakes, UserError
from mmgen.metrics.disentanglement import disentanglement_scores
from mmgen.models.vae import OBJECTIVES, VAE, check_settings
from mmgen.ranges import AtLeast, Each
from mmgen.training.config import FitConfig, section
from mmgen.training.prior import prior_fit
from mmgen.training.recipe import Recipe, RecipeConfig, stage
from mmgen.training.report import picture_grid
from mmgen.training.result import Result
from mmgen.training.run import Run


@dataclass
class Data:
    """A data card of pictures.

    Args:
        card: name or path.
        image: column of pictures.
        split: training split.
        size: side in pixels.
        channels: 1 for grey pictures, 3 for colour.
        binary: threshold pixels at 0.5, so that the Bernoulli likelihood is a probability.
        factors: label columns of the generative factors; none: no disentanglement scores.
        grid: split for the disentanglement scores.
        limit: items of each split; 0 takes all.
    """

    card: str = "mnist"
    image: str = "image"
    split: str = "train"
    size: Annotated[int, AtLeast(1)] = 28
    channels: Literal[1, 3] = 1
    binary: bool = False
    factors: list[str] = field(default_factory=list)
    grid: str = "grid"
    limit: Annotated[int, AtLeast(0)] = 0


@dataclass
class Model:
    """Arguments of `VAE` that the data do not determine.

    Args:
        latent_dim: size of z.
        objective: training loss: vae, beta, annealed, beta_tc, factor, dip_i, dip_ii or wae_mmd.
        settings: objective -> its settings, such as ``{"beta": {"beta": 4.0}}``, also of others; ``beta_tc`` gets its
            ``dataset_size`` from the data.
        prior: standard, mixture, flow, or aggregate or flow_matching (fitted after training).
        prior_settings: settings of the prior.
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
class Config(RecipeConfig):
    """The config of the recipe ``vae``."""

    renamed: ClassVar = {"data.input": "data.image"}

    data: Data = section()
    model: Model = section()
    evaluation: Evaluation = section()
    fit: FitConfig = section()

    def check(self, errors: Mistakes) -> None:
        """Check the columns and the settings of the objectives."""
        own = self.model.objective
        errors.check_each("model.objective", [own], OBJECTIVES)
        for objective in dict.fromkeys([*self.model.settings, *([own] if own in OBJECTIVES else [])]):
            with errors:
                check_settings(objective, settings_of(self, objective, 1), f"model.settings.{objective}")
        data, card = self.data, read_card(self.data.card)
        check_columns(data, "data", errors, {"image": ["image"]})
        errors.check_each("data.split", [data.split], card.splits)
        errors.check_each("data.grid", [data.grid] if data.factors else [], card.splits)
        for factor in data.factors:
            with errors:
                check_column(card, "data.factors", factor, "label")
        if len(data.factors) == 1:
            fix = "name the other factors too"
            raise UserError("data.factors", got=data.factors, expected="two or more, or none", fix=fix)


def pictures(data: Data, split: str, process: Processor) -> DataSet:
    """The pictures of a split as tensors."""
    rows = open_rows(data.card, split, [data.image], limit=data.limit)
    return DataSet(rows, {data.image: data.image}, {data.image: partial(black_and_white, process) if data.binary else process})


def black_and_white(process: Processor, value: Any) -> Tensor:
    """Process a picture and threshold it at 0.5, (c, h, w)."""
    return (process(value) > 0.5).float()


def settings_of(config: Config, objective: str, items: int) -> dict[str, Any]:
    """The settings of an objective, with the size of the training data if needed."""
    return {**({"dataset_size": items} if objective == "beta_tc" else {}), **config.model.settings.get(objective, {})}


@stage()
def vae(run: Run, config: Config) -> None:
    """Train the model on ``config.data.split``."""
    processor = ImageProcessor(size=config.data.size, channels=config.data.channels)
    data = pictures(config.data, config.data.split, processor)
    values = {**asdict(config.model), "settings": settings_of(config, config.model.objective, len(data))}
    model = VAE(config.data.image, "image", list(processor.shape), **values)
    model.processors[config.data.image] = processor
    held = pictures(config.data, held_out(read_card(config.data.card)), processor)
    shown = held.batch(range(min(10, len(held))))
    run.fit(
        model, data, config.fit, samples=lambda model: reconstructions(model, shown.to(model.step.device)),
        finish=prior_fit(model, data, config.seed),
    )  # fmt: skip


def as_pictures(model: VAE, x: Tensor) -> list[Image.Image]:
    """Convert (n, c, h, w) to n pictures."""
    return [model.processors[model.modality].decode(one) for one in x]


@torch.no_grad()
def reconstructions(model: VAE, batch: Batch) -> Image.Image:
    """Draw three rows: pictures, reconstructions from the posterior means, and samples from the prior."""
    name = model.modality
    drawn = model.generate(Batch.nothing(batch.size, batch.rows.device), name, generator=torch.Generator().manual_seed(0))
    rows = (batch[name], model.decode(model.encode(batch).mean, name).mean, drawn)
    return picture_grid([as_pictures(model, x) for x in rows])


def traversals(model: VAE, batch: Batch) -> Image.Image:
    """Draw a row for each latent: the first picture with that latent moved from -2 to 2."""
    moved = model.traverse(batch.items(slice(0, 1)), steps=9)[0]  # (k, steps, c, h, w)
    return picture_grid([as_pictures(model, x) for x in moved])


@torch.no_grad()
def evaluate(run: Run, config: Config, split: str) -> Result:
    """ELBO and importance-weighted bound on ``split``, in nats per item, and disentanglement on the grid."""
    model = run.load()
    data = pictures(config.data, split, model.processors[model.modality])
    count = min(len(data), config.evaluation.limit or len(data))
    elbo, bound = 0.0, 0.0
    for batch in data.batches(f"likelihood of {split}", 64, range(count), model.step.device):
        elbo += model.elbo(batch).double().sum().item()
        bound += model.log_likelihood(batch, config.evaluation.samples).double().sum().item()
    result = Result(config.model.objective)
    result[config.model.objective] = {"elbo": elbo / count, "log_likelihood": bound / count}
    if config.data.factors:
        codes, factors = codes_and_factors(model, config.data)
        result[config.model.objective] |= disentanglement_scores(codes, factors, config.seed)
    shown = data.batch(range(0, len(data), -(-len(data) // 10))).to(model.step.device)  # spread over the split
    rows = "first row: the data; second: reconstructed; third: drawn from the prior"
    result.show(reconstructions(model, shown), {"reconstructions": rows}, wide=True, name="reconstructions")
    rows = "a row for each latent, moved from -2 to 2; the others stay at the posterior mean of the first picture"
    result.show(traversals(model, shown), {"traversals": rows}, wide=True, name="traversals")
    return result


@torch.no_grad()
def codes_and_factors(model: VAE, data: Data) -> tuple[np.ndarray, np.ndarray]:
    """Posterior means (n, k) of the whole grid, and indices of the factor values (n, f)."""
    grid = pictures(replace(data, limit=0), data.grid, model.processors[model.modality])
    batches = grid.batches(f"codes of {data.grid}", 256, device=model.step.device)
    codes = [model.encode(batch).mean.cpu() for batch in batches]
    rows = open_rows(data.card, data.grid, data.factors)
    columns = [np.unique(rows[factor][:], return_inverse=True)[1] for factor in data.factors]
    return torch.cat(codes).numpy(), np.stack(columns, 1)


RECIPE = Recipe("vae", Config, [vae], evaluate)

if __name__ == "__main__":
    sys.exit(main(["train", "vae", *sys.argv[1:]]))
