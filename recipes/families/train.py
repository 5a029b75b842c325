"""The families of generative models side by side: a VAE, a PixelCNN, a Glow, a GAN and flow matching on the same pictures.

mmgen train families                                                       # digits of 8 x 8 pixels, minutes on two CPU cores
mmgen evaluate runs/families --split test                                  # the table: likelihood, quality, speed, features
accelerate launch recipes/families/train.py --config recipes/families/gpu.yaml
"""

import sys
import time
import zlib
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import torch
from PIL import Image
from torch import Tensor

from mmgen.cli import main
from mmgen.data.batch import Batch
from mmgen.data.cards import check_columns
from mmgen.data.image import ImageProcessor
from mmgen.data.rows import DataSet, open_rows, texts_of
from mmgen.errors import Mistakes
from mmgen.inference.probe import probe
from mmgen.judging.features import check_comparison, frechet, picture_features
from mmgen.judging.likelihood import bits_per_dim
from mmgen.judging.perplexity import Reader
from mmgen.metrics.likelihood import independent_bits
from mmgen.metrics.two_sample import classifier_test
from mmgen.models.base import Model
from mmgen.models.flow_matching import FlowMatching
from mmgen.models.gan import GAN
from mmgen.models.glow import Glow, check_size
from mmgen.models.pixel_cnn import PixelCNN
from mmgen.models.vae import VAE
from mmgen.ranges import AtLeast
from mmgen.training.config import FitConfig, section, section_of
from mmgen.training.recipe import Recipe, RecipeConfig, stage
from mmgen.training.report import picture_grid
from mmgen.training.result import Result
from mmgen.training.run import Run
from mmgen.training.run_folder import training_minutes

FAMILIES = ("vae", "pixel_cnn", "glow", "gan", "flow_matching")
LABELS = {"vae": "VAE", "pixel_cnn": "PixelCNN", "glow": "Glow", "gan": "GAN", "flow_matching": "flow matching",
          "independent": "independent pixels", "real": "training pictures",
          "raw": "pixels", "majority": "most frequent class"}  # fmt: skip
TIMED = 100  # pictures of a timed draw
SHOWN = 10  # pictures of a row


@dataclass
class Data:
    """A data card of pictures.

    Args:
        card: name or path.
        image: column of pictures.
        label: column of classes for the probes; empty: no probes.
        text: column of texts for language models.
        size: side in pixels.
        channels: 1 for grey pictures, 3 for colour.
        levels: number of levels of a value, to which pictures are rounded.
        limit: items of each split; 0 takes all.
    """

    card: str = "digits"
    image: str = "image"
    label: str = "label"
    text: str = "caption"
    size: Annotated[int, AtLeast(4)] = 8
    channels: Literal[1, 3] = 1
    levels: Annotated[int, AtLeast(2)] = 256
    limit: Annotated[int, AtLeast(0)] = 0

    def check(self, path: str, errors: Mistakes) -> None:
        """Check the columns."""
        check_columns(self, path, errors, {"image": ["image"]} | ({"label": []} if self.label else {}))

    @property
    def shape(self) -> tuple[int, int, int]:
        """(c, h, w) of a picture."""
        return (self.channels, self.size, self.size)


@dataclass
class Evaluation:
    """Amount of the evaluation.

    Args:
        items: pictures drawn from each family, and pictures of the split beside them; 0: as many as the split has.
        likelihood_items: first pictures of the split for bits per dimension.
        samples: draws for each item of the bounds of the VAE, Glow and flow matching.
        probe_items: most pictures of each split for the probes; 0 takes all.
        features: packaged network for the Fréchet distance and the two-sample test; empty: raw pixels.
        language_models: causal language models whose likelihood of the split's texts is computed, see
            `mmgen.conditioning.language_model.load_language_model`.
    """

    items: Annotated[int, AtLeast(0)] = 0
    likelihood_items: Annotated[int, AtLeast(1)] = 200
    samples: Annotated[int, AtLeast(1)] = 8
    probe_items: Annotated[int, AtLeast(0)] = 5000
    features: str = "efficientnet_lite0"
    language_models: list[str] = field(default_factory=list)

    def check(self, path: str, errors: Mistakes) -> None:
        """Check that there are enough items, and that the network is known."""
        check_comparison(path, self.items, self.features, errors)


@dataclass
class Config(RecipeConfig):
    """The config of the recipe ``families``: arguments of each model that the data do not determine, and its training."""

    data: Data = section()
    vae: section_of(VAE, "modality", "kind", "shape") = section()
    pixel_cnn: section_of(PixelCNN, "shape", "levels") = section()
    glow: section_of(Glow, "shape", "levels") = section()
    gan: section_of(GAN, "shape") = section()
    flow_matching: section_of(FlowMatching, "modality", "kind", "shape", "levels") = section()
    fit_vae: FitConfig = section()
    fit_pixel_cnn: FitConfig = section()
    fit_glow: FitConfig = section()
    fit_gan: FitConfig = section()
    fit_flow_matching: FitConfig = section()
    evaluation: Evaluation = section()

    def check(self, errors: Mistakes) -> None:
        """Check the size for Glow, and the column of texts if it is read."""
        with errors:
            check_size(self.data.shape, self.glow.scales)
        if self.evaluation.language_models:
            check_columns(self.data, "data", errors, {"text": ["text"]})


def pictures(data: Data, split: str, processor: ImageProcessor) -> DataSet:
    """The pictures of a split as tensors."""
    return DataSet(open_rows(data.card, split, [data.image], limit=data.limit), {"image": data.image}, {"image": processor})


def train(run: Run, config: Config, model: Model) -> None:
    """Train the model of a family."""
    processor = ImageProcessor(size=config.data.size, channels=config.data.channels)
    model.processors["image"] = processor
    run.fit(
        model, pictures(config.data, "train", processor), getattr(config, f"fit_{model.name}"),
        samples=lambda model: picture_grid([shown(model, draw(model, SHOWN, config.seed))]),
    )  # fmt: skip


@stage(made_by=("data", "vae"))
def vae(run: Run, config: Config) -> None:
    """Train the VAE: a bound on the likelihood of latent codes."""
    settings = asdict(config.vae)
    decoder = {"likelihood": "discretized_logistic", "levels": config.data.levels, **(settings.pop("decoder") or {})}
    train(run, config, VAE("image", "image", list(config.data.shape), decoder=decoder, **settings))


@stage(made_by=("data", "pixel_cnn"))
def pixel_cnn(run: Run, config: Config) -> None:
    """Train the PixelCNN: the exact likelihood, pixel by pixel."""
    train(run, config, PixelCNN(config.data.shape, config.data.levels, **asdict(config.pixel_cnn)))


@stage(made_by=("data", "glow"))
def glow(run: Run, config: Config) -> None:
    """Train the Glow: an invertible function to noise."""
    train(run, config, Glow(config.data.shape, config.data.levels, **asdict(config.glow)))


@stage(made_by=("data", "gan"))
def gan(run: Run, config: Config) -> None:
    """Train the GAN: a game without a likelihood."""
    train(run, config, GAN(config.data.shape, **asdict(config.gan)))


@stage(made_by=("data", "flow_matching"))
def flow_matching(run: Run, config: Config) -> None:
    """Train flow matching: the velocity from noise to pictures."""
    settings = asdict(config.flow_matching)
    train(run, config, FlowMatching(shape=config.data.shape, levels=config.data.levels, **settings))


def draw(model: Model, n: int, seed: int) -> Tensor:
    """``n`` pictures of a model without any input, (n, c, h, w) on the CPU."""
    generator, device = torch.Generator().manual_seed(seed), model.step.device
    sizes = [min(TIMED, n - start) for start in range(0, n, TIMED)]
    return torch.cat([model.generate(Batch.nothing(1, device), "image", size, generator).cpu() for size in sizes])


def shown(model: Model, x: Tensor) -> list[Image.Image]:
    """Convert (n, c, h, w) to n pictures."""
    return [model.processors["image"].decode(one) for one in x]


def features_of(settings: Evaluation, processor: ImageProcessor, x: Tensor) -> Tensor:
    """Features of pictures (n, c, h, w) for comparisons, (n, d)."""
    return picture_features(settings.features, processor, list(x)) if settings.features else x.flatten(1)


def evaluate(run: Run, config: Config, split: str) -> Result:
    """Likelihood, quality, speed and features of each family on ``split``, and a picture with a row of draws of each."""
    settings, models = config.evaluation, {name: run.load(name) for name in FAMILIES}
    processor = models["vae"].processors["image"]
    data, training = pictures(config.data, split, processor), pictures(config.data, "train", processor)
    items, counted = settings.items or len(data), min(len(data), settings.likelihood_items)
    judged = data.all("image")  # (n, c, h, w)
    real = judged[:items]
    truth = features_of(settings, processor, real)
    kind = settings.features or "pixels"
    result = Result("families", LABELS)

    def compared(x: Tensor) -> dict[str, float]:
        made = features_of(settings, processor, x)
        return {f"fid_{kind}": frechet(truth, made), "two_sample_p": classifier_test(truth, made, seed=config.seed).p}

    rows = [shown(models["vae"], real[:SHOWN])]
    for name, model in models.items():
        figures = result[name]
        if model.defines("log_likelihood"):
            figures["bits_per_dim"] = bits_per_dim(model, data, counted, settings.samples)
        draw(model, 1, config.seed)  # the first call is slower
        began = time.perf_counter()
        draw(model, TIMED, config.seed)
        figures["sample_seconds"] = time.perf_counter() - began
        made = draw(model, len(real), config.seed)
        figures |= compared(made)
        figures["training_minutes"] = training_minutes(run.stage_folder(name), getattr(config, f"fit_{name}"))
        rows.append(shown(model, made[:SHOWN]))
    order = torch.randperm(len(training), generator=torch.Generator().manual_seed(config.seed))[: len(real)]
    seen = training.all("image")
    result["real"] = compared(seen[order])
    result["independent"] = {"bits_per_dim": independent_bits(seen, judged[:counted], config.data.levels)}
    if label := config.data.label:
        folders = {str(run.stage_folder(name)): name for name in FAMILIES if models[name].defines("encode")}
        found = probe(
            [*map(Path, folders)], split, [label], inputs=["image"], features=settings.features, limit=settings.probe_items
        )
        for representation, figures in found.items():
            name = folders.get(representation, representation.split()[0])
            result[name]["probe"], result[name]["probe_nearest"] = figures[f"{label}_linear"], figures[f"{label}_nearest"]
    if settings.language_models:
        texts = texts_of(config.data.card, config.data.text, split)
        written = "\n".join(texts).encode()
        result["zlib"] = {"bits_per_byte": 8 * len(zlib.compress(written, 9)) / len(written)}
        for name in settings.language_models:
            result[name] = {"bits_per_byte": Reader(name).bits_per_byte(texts)}
    titles = ["the split's pictures", *(LABELS[name] for name in models)]
    result.show(picture_grid(rows), {"rows": "; ".join(titles)}, wide=True, name="samples")
    return result


RECIPE = Recipe("families", Config, [vae, pixel_cnn, glow, gan, flow_matching], evaluate)

if __name__ == "__main__":
    sys.exit(main(["train", "families", *sys.argv[1:]]))
