"""Pictures drawn from a text in stages, trained with a re-captioning loss (MirrorGAN).

mmgen train redescription_gan                                             # openmoji at 32 pixels, on one CPU core
mmgen train redescription_gan gan.redescription=0 --out runs/without      # without re-captioning loss
mmgen train redescription_gan --config mnist                              # digits, "a handwritten seven"
accelerate launch recipes/redescription_gan/train.py --config recipes/redescription_gan/gpu.yaml
"""

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor

from mmgen.cli import main
from mmgen.data.batch import Batch
from mmgen.data.cards import held_out, read_card
from mmgen.data.image import ImageProcessor
from mmgen.data.rows import DataSet, spread
from mmgen.errors import Mistakes, UserError
from mmgen.judging.nearest import nearest_in
from mmgen.judging.pictures import PictureConfig, PictureEvaluation, draw_all
from mmgen.models.mirror_gan import MirrorGAN
from mmgen.models.redescriber import Redescriber
from mmgen.training.config import FitConfig, section, section_of
from mmgen.training.data_sections import PicturesWithTexts
from mmgen.training.model_card import contact_sheet
from mmgen.training.recipe import Recipe, stage
from mmgen.training.report import Sample, picture_grid
from mmgen.training.result import Result
from mmgen.training.run import Run

SHOWN = 16  # prompts in the report
DRAWS = 3  # pictures per prompt
OwnGAN = section_of(MirrorGAN, "vocabulary", "length", "redescriber")  # without arguments determined by data and captioner
OwnCaptioner = section_of(Redescriber, "shape", "vocabulary", "length", "stop")


@dataclass
class Data(PicturesWithTexts):
    """A data card of pictures and texts; ``label`` is used only with a ``judge``."""

    label: str = "label"


@dataclass
class Config(PictureConfig):
    """The config of the recipe ``redescription_gan``."""

    renamed: ClassVar = {"data.input": "data.image", "data.length": "data.text_length", "captioner_fit": "fit_captioner"}

    data: Data = section()
    captioner: OwnCaptioner = section()
    fit_captioner: FitConfig = section()
    gan: OwnGAN = section()
    fit: FitConfig = section()
    evaluation: PictureEvaluation = section()

    def check(self, errors: Mistakes) -> None:
        """Check the judges, and that both networks can be built."""
        with errors:
            build(self, self.data.vocab_size)
        super().check(errors)

    @property
    def processor(self) -> ImageProcessor:
        """The processor of pictures, with values from -1 to 1."""
        return ImageProcessor(self.gan.sizes[-1], self.gan.channels, mean=0.5, std=0.5)


def build(config: Config, vocabulary: int) -> tuple[MirrorGAN, Redescriber]:
    """Build both networks; the text encoders of the GAN have the size of the captioner's embeddings."""
    own, size = asdict(config.captioner), config.gan.sizes[-1]
    redescriber = {"redescriber": own if config.gan.redescription else None}
    gan = MirrorGAN(**asdict(config.gan), vocabulary=vocabulary, length=config.data.text_length, **redescriber)
    captioner = Redescriber([config.gan.channels, size, size], vocabulary, config.data.text_length, **own)
    if (width := captioner.decoder.transformer.embed.embedding_dim) != gan.text.dim:
        fix = f"set gan.text.dim={width}"
        raise UserError("gan.text.dim", got=gan.text.dim, expected=f"captioner.decoder.dim, {width}", fix=fix)
    return gan, captioner


def shown_pairs(config: Config, processors: dict[str, Any]) -> DataSet:
    """Held-out pictures and texts to show during training."""
    return config.data.pairs(held_out(read_card(config.data.card)), **processors, limit=SHOWN // 2)


@stage(made_by=("data", "captioner", "gan.sizes", "gan.channels"))
def captioner(run: Run, config: Config) -> None:
    """Train the captioner on the card's training split."""
    processors = {"image": config.processor, "text": config.data.words()}
    _, model = build(config, processors["text"].vocabulary)
    model.processors |= processors
    data = config.data.pairs("train", **processors)
    shown_pairs(config, processors)  # reports errors before training
    run.fit(model, data, config.fit_captioner)


@stage()
def gan(run: Run, config: Config) -> None:
    """Train generator and discriminators on the card's training split, with the captioner frozen."""
    captioner = run.load("captioner")
    torch.manual_seed(config.seed)  # loading changes the state of the generator
    model, _ = build(config, captioner.vocabulary)
    model.processors |= captioner.processors
    model.begin_with_words(captioner.decoder.transformer.embed.weight)
    if model.redescriber is not None:
        model.mirror(captioner)
    data, held = config.data.pairs("train", **model.processors), shown_pairs(config, model.processors)

    def samples(model: MirrorGAN) -> Image.Image:
        parts = (("seen", data, spread(len(data), SHOWN // 2)), ("unseen", held, range(len(held))))
        return contact_sheet(
            [Sample(tile, {label: text}) for label, d, items in parts for tile, text in tiles(model, d, items)]
        )

    run.fit(model, data, config.fit, samples)


def tiles(model: MirrorGAN, data: DataSet, items: Sequence[int], seen: DataSet | None = None) -> list[tuple[Image.Image, str]]:
    """A tile per item with its text: the true picture, then drawn ones; if given, the last is the nearest of ``seen``."""
    batch = data.batch(items).to(model.step.device)
    drawn = model.generate(batch, "image", DRAWS, torch.Generator().manual_seed(0)).unflatten(0, (-1, DRAWS))
    shown = torch.cat([batch["image"][:, None], drawn], 1).cpu()  # (b, 1 + draws, c, h, w)
    if seen is not None:
        shown[:, -1] = nearest_in(shown[:, 1], seen)[2]
    found = []
    for pictures, item in zip(shown, items):
        decoded = [model.processors["image"].decode(x) for x in pictures]
        found.append((picture_grid([decoded[:2], decoded[2:]], side=64), data.texts[item]))
    return found


@torch.no_grad()
def redescription(captioner: Redescriber, data: DataSet, pictures: Tensor) -> float:
    """The mean of -log p(text | picture) by the captioner, nats."""
    total, start = 0.0, 0
    for batch in data.batches("captioning"):
        batch = Batch({**batch.values, "image": pictures[start : start + batch.size]}, batch.masks, batch.present)
        start += batch.size
        total -= captioner.log_likelihood(batch.to(captioner.step.device)).double().sum().item()
    return total / len(data)


def evaluate(run: Run, config: Config, split: str) -> Result:
    """Figures of one drawn picture a prompt, and of the true pictures (``real``) at the same size.

    ``redescription`` is the captioner's -log p(prompt | picture) in nats, part of the training loss; ``nearest_rmse`` is the
    distance to the nearest training picture, for values from 0 to 1; the others are those of `PictureConfig.judges`.
    """
    model = run.load()
    captioner, image = run.load("captioner"), model.processors["image"]
    data = config.data.pairs(split, **model.processors, limit=config.evaluation.items)
    seen = config.data.pairs("train", image)
    judges = config.judges(data, image)
    result = Result("drawn", {"real": "true pictures"}, judges.about)
    for system, pictures in {"drawn": draw_all(model, data, config.seed), "real": data.all("image")}.items():
        result[system] = {"redescription": redescription(captioner, data, pictures)} | judges.of_texts(pictures)
        result[system] |= judges.fidelity(pictures) if system == "drawn" else {}
        result[system]["nearest_rmse"] = nearest_in(pictures, seen)[0].mean().item() / 2  # rescales values from -1 to 1
    group = "the true picture, two drawn, and the training picture nearest to the first"
    for tile, text in tiles(model, data, spread(len(data), SHOWN), seen):
        result.show(tile, {"prompt": text}, group=group)
    return result


SPLITS = ("test", "test_compositional", "validation", "validation_compositional")
RECIPE = Recipe("redescription_gan", Config, [captioner, gan], evaluate, splits=SPLITS)

if __name__ == "__main__":
    sys.exit(main(["train", "redescription_gan", *sys.argv[1:]]))
