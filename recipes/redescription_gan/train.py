"""Pictures drawn from a text in stages and re-captioned by a captioner that was trained first (MirrorGAN).

mmgen train redescription_gan                                             # openmoji at 32 pixels, on one CPU core
mmgen train redescription_gan gan.redescription=0 --out runs/without      # the same without the captioner's say
mmgen train redescription_gan --config mnist                              # digits, "a handwritten seven"
accelerate launch recipes/redescription_gan/train.py --config recipes/redescription_gan/gpu.yaml
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import torch
from PIL import Image
from torch import Tensor

from mmgen import processes
from mmgen.cli import main
from mmgen.data.batch import Batch
from mmgen.data.cards import check_column, held_out, read_card
from mmgen.data.image import ImageProcessor
from mmgen.data.pairs import Pairs, texts_of
from mmgen.data.processors import Processor
from mmgen.data.text import train_tokenizer
from mmgen.errors import UserError
from mmgen.judging.features import frechet, nearest_pictures, picture_features
from mmgen.models.base import load
from mmgen.models.mirror_gan import MirrorGAN
from mmgen.models.redescriber import Redescriber
from mmgen.ranges import AtLeast
from mmgen.storage import read_json
from mmgen.training.config import FitConfig, build_config, section, section_of
from mmgen.training.loop import fit
from mmgen.training.model_card import ModelCard, contact_sheet, write_model_card
from mmgen.training.nested import nested_config
from mmgen.training.recipe import Recipe, recipe_of, run_details, stage_folder
from mmgen.training.report import Sample, write_report

SHOWN = 16  # prompts in the report
DRAWS = 3  # pictures of each
OwnGAN = section_of(MirrorGAN, "vocabulary", "length", "redescriber")  # without what the data and the captioner settle
OwnCaptioner = section_of(Redescriber, "shape", "vocabulary", "length", "stop")


@dataclass
class Data:
    """A data card and its columns.

    Args:
        card: name or path.
        input: the column of pictures.
        text: the column of their texts, one or several each.
        label: the column that a ``judge`` predicts; read with one only.
        vocab_size: tokens that are trained on the texts.
        length: longest text in tokens.
        limit: items of a split; 0 takes all.
    """

    card: str = "openmoji"
    input: str = "image"
    text: str = "caption"
    label: str = "label"
    vocab_size: Annotated[int, AtLeast(259)] = 1024
    length: Annotated[int, AtLeast(2)] = 32
    limit: Annotated[int, AtLeast(0)] = 0


@dataclass
class Evaluation:
    """Judging of one picture for each of a split's first items.

    Args:
        items: items of the split, two or more; 0 takes all.
        among: texts that R-precision chooses from.
        features: the packaged network of the Fréchet distance; empty: it is left out.
    """

    items: Annotated[int, AtLeast(0)] = 0
    among: Annotated[int, AtLeast(2)] = 100
    features: str = "efficientnet_lite0"


@dataclass
class Config:
    """The config of the recipe ``redescription_gan``.

    Args:
        captioner_fit: training of the captioner.
        fit: training of the GAN.
        judge: config of a classifier of ``data.label``, see the recipe ``judge``; empty: no such figures.
        aligned: config of the space by which R-precision is measured, see the recipe ``aligned``; empty: no such figures.
    """

    data: Data = section()
    captioner: OwnCaptioner = section()
    captioner_fit: FitConfig = section()
    gan: OwnGAN = section()
    fit: FitConfig = section()
    judge: dict[str, Any] = field(default_factory=dict)
    aligned: dict[str, Any] = field(default_factory=dict)
    evaluation: Evaluation = section()
    seed: int = 0
    seeds: int = 1


def pairs(data: Data, split: str, image: ImageProcessor, text: Processor | None = None, limit: int = 0) -> Pairs:
    """The pictures of a split and, with a text processor, their texts, of at most so many rows."""
    limits = [n for n in (limit, data.limit) if n]
    return Pairs(data.card, split, (data.input, data.text), image, text, data.length, min(limits, default=0))


def nested(config: Config) -> dict[str, Any]:
    """The configs of what judges, by the keys that hold them."""
    judge = {"judge": nested_config("judge", "judge", config.judge)} if config.judge else {}
    return judge | ({"aligned": space_config(config)} if config.aligned else {})


def check(config: Config) -> None:
    """The columns are there, both networks can be built, and the configs of what judges are theirs."""
    card = read_card(config.data.card)
    config.data.input = check_column(card, "data.input", config.data.input, "image")
    config.data.text = check_column(card, "data.text", config.data.text, "text")
    if config.evaluation.items == 1:
        raise UserError("evaluation.items", got=1, expected="two or more, or 0 for all", fix="set evaluation.items=200")
    build(config, config.data.vocab_size)
    if config.judge:
        config.data.label = check_column(card, "data.label", config.data.label)
    nested(config)


def space_config(config: Config) -> Any:
    """The config of the space by which R-precision is measured."""
    return recipe_of("aligned").space_config(config.aligned, config.data.card, config.data.input, config.data.text)


def make_processors(config: Config) -> dict[str, Processor]:
    """Pictures from -1 to 1, and tokens trained on the texts of the training split."""
    texts = texts_of(config.data.card, config.data.text, limit=config.data.limit)
    image = ImageProcessor(config.gan.sizes[-1], config.gan.channels, mean=0.5, std=0.5)
    return {"image": image, "text": train_tokenizer(texts, config.data.vocab_size)}


def build(config: Config, vocabulary: int) -> tuple[MirrorGAN, Redescriber]:
    """Both networks, untrained; the text encoders of the one begin with the words of the other, and have their size."""
    own, size = asdict(config.captioner), config.gan.sizes[-1]
    told = {"redescriber": own if config.gan.redescription else None}
    gan = MirrorGAN(**asdict(config.gan), vocabulary=vocabulary, length=config.data.length, **told)
    captioner = Redescriber([config.gan.channels, size, size], vocabulary, config.data.length, **own)
    if (width := captioner.decoder.transformer.embed.embedding_dim) != gan.text.dim:
        fix = f"set gan.text.dim={width}"
        raise UserError("gan.text.dim", got=gan.text.dim, expected=f"captioner.decoder.dim, {width}", fix=fix)
    return gan, captioner


def train_captioner(config: Config, run: Path, resume: bool) -> None:
    """Train the captioner on the card's training split."""
    processors = make_processors(config)
    torch.manual_seed(config.seed)
    _, model = build(config, processors["text"].vocabulary)
    model.processors |= processors
    data = pairs(config.data, "train", **processors)
    pairs(config.data, held_out(read_card(config.data.card)), **processors, limit=SHOWN // 2)  # what the GAN shows later
    folder = stage_folder(RECIPE, run, "captioner")
    fit(model, data, replace(config.captioner_fit, seed=config.seed), folder, resume=resume)


def train_gan(config: Config, run: Path, resume: bool) -> None:
    """Train generator and discriminators on the card's training split, from the captioner's words; it stays frozen."""
    captioner = load(stage_folder(RECIPE, run, "captioner"))
    torch.manual_seed(config.seed)
    model, _ = build(config, captioner.vocabulary)
    model.processors |= captioner.processors
    model.begin_with_words(captioner.decoder.transformer.embed.weight)
    if model.redescriber is not None:
        model.mirror(captioner)
    data = pairs(config.data, "train", **model.processors)
    held = pairs(config.data, held_out(read_card(config.data.card)), **model.processors, limit=SHOWN // 2)
    seen = spread(len(data), SHOWN // 2)

    def samples(model: MirrorGAN, place: Path) -> None:
        place.parent.mkdir(parents=True, exist_ok=True)
        shown = [*sheet(model, data, seen, "seen"), *sheet(model, held, range(min(len(held), SHOWN // 2)), "unseen")]
        contact_sheet([sample for sample, _ in shown]).save(place.with_suffix(".png"))

    fit(model, data, replace(config.fit, seed=config.seed), run, samples=samples, resume=resume)


def spread(n: int, k: int) -> list[int]:
    """At most ``k`` of ``n`` items, from first to last."""
    return torch.linspace(0, n - 1, min(n, k)).long().tolist()


def sheet(
    model: MirrorGAN, data: Pairs, items: Sequence[int], label: str, seen: Tensor | None = None
) -> list[tuple[Sample, str]]:
    """The true picture of each item, two or three drawn from its text, of ``seen`` the nearest to the first; and the text."""
    batch = data.batch(items).to(model.step.device)
    drawn = model.generate(batch, "image", DRAWS, torch.Generator().manual_seed(0)).unflatten(0, (-1, DRAWS))
    shown = torch.cat([batch["image"][:, None], drawn], 1).cpu()  # (b, 1 + draws, c, h, w)
    if seen is not None:
        shown[:, -1] = seen[nearest_pictures(shown[:, 1], seen)[1]]
    found = []
    for pictures, item in zip(shown, items):
        tile = Image.new("RGB", (2 * 64 + 4, 2 * 64 + 4), "#5c6773")
        for place, x in enumerate(pictures):
            one = model.processors["image"].decode(x).convert("RGB").resize((64, 64), Image.Resampling.NEAREST)
            tile.paste(one, (place % 2 * 68, place // 2 * 68))
        found.append((Sample(tile, {label: data.texts[item]}), data.texts[item]))
    return found


@torch.no_grad()
def draw_all(model: MirrorGAN, data: Pairs, seed: int) -> Tensor:
    """A picture of every text, (n, c, h, w)."""
    generator, parts = torch.Generator().manual_seed(seed), []
    for batch in data.batches("drawing"):
        parts.append(model.generate(batch.keep(["text"]).to(model.step.device), "image", generator=generator).cpu())
    return torch.cat(parts)


@torch.no_grad()
def told(captioner: Redescriber, data: Pairs, pictures: Tensor) -> float:
    """The mean of -log p(text | picture) by the captioner, nats."""
    total, start = 0.0, 0
    for batch in data.batches("telling back"):
        batch = Batch({**batch.values, "image": pictures[start : start + batch.size]}, batch.masks, batch.present)
        start += batch.size
        total -= captioner.log_likelihood(batch.to(captioner.step.device)).double().sum().item()
    return total / len(data)


def evaluate(run: Path, config: Config, split: str) -> dict[str, float]:
    """What one picture a prompt of ``split`` is worth, and ``_real`` what the true pictures are, at the same size.

    ``redescription`` is the captioner's -log p(prompt | picture), nats, what training lowers; ``r_precision`` how often the
    prompt is nearest among 100 in the space of ``aligned``; ``fid_NAME`` the Fréchet distance of features;
    ``digit_accuracy``, or ``LABEL_accuracy``, how often a judge sees in the picture what was asked for; ``nearest_rmse`` how
    far the nearest training picture is, of values from 0 to 1.
    """
    settings, device = config.evaluation, processes.device()
    model, captioner = load(run).to(device), load(stage_folder(RECIPE, run, "captioner")).to(device)
    process = model.processors["image"]
    data = pairs(config.data, split, **model.processors, limit=settings.items)
    drawn, real = draw_all(model, data, config.seed), data.all()
    figures: dict[str, float] = {}
    for end, pictures in (("", drawn), ("_real", real)):
        figures[f"redescription{end}"] = told(captioner, data, pictures)
    if config.aligned:
        recipe = recipe_of("aligned")
        space = recipe.judging_space(space_config(config), config.gan.sizes[-1])
        for end, pictures in (("", drawn), ("_real", real)):
            shown = [process.decode(x) for x in pictures]
            figures[f"r_precision{end}"] = recipe.precision(space, shown, data.texts, settings.among)
    if settings.features:
        features = [picture_features(settings.features, process, list(x)) for x in (real, drawn)]
        figures[f"fid_{settings.features}"] = frechet(*features)
    if config.judge:
        figures |= judged(config, split, data, process, drawn, real)
    seen = pairs(config.data, "train", process).all()
    for end, pictures in (("", drawn), ("_real", real)):
        figures[f"nearest_rmse{end}"] = nearest_pictures(pictures, seen)[0].mean().item() / 2  # of values from -1 to 1
    write_samples(run, split, model, data, seen)
    return figures


def judged(config: Config, split: str, data: Pairs, process: ImageProcessor, drawn: Tensor, real: Tensor) -> dict[str, float]:
    """How often a judge sees the label in the picture, and what the judge itself is worth."""
    recipe = recipe_of("judge")
    own = build_config(recipe.Config, config.judge)
    judge, accuracy = recipe.judge(own)
    judge = judge.to(processes.device())
    labels = data.rows[config.data.label]
    truth = recipe.places(judge, [labels[row] for row in data.items])
    name = "digit" if config.data.label == "label" and judge.class_names == [str(i) for i in range(10)] else config.data.label
    figures = {"judge_accuracy": accuracy, "judge_disjoint": own.data.split not in ("train", split)}
    for end, pictures in (("", drawn), ("_real", real)):
        seen = recipe_of("multimodal_vae").labels_of(judge, process, pictures)
        figures[f"{name}_accuracy{end}"] = recipe.agreement(seen, truth)
    return figures


def write_samples(run: Path, split: str, model: MirrorGAN, data: Pairs, seen: Tensor) -> None:
    """Prompts spread over the split with the true picture, what is drawn, and the nearest of training, for the report."""
    folder = run / "samples"
    folder.mkdir(exist_ok=True)
    listed = []
    for number, (sample, text) in enumerate(sheet(model, data, spread(len(data), SHOWN), split, seen)):
        sample.picture().save(folder / f"{split}_{number:02d}.png")
        listed.append(text)
    (folder / f"{split}.json").write_text(json.dumps({"texts": listed}), encoding="utf-8")


def report(run: Path, config: Config) -> None:
    """Write ``report.html`` and ``README.md`` from the metrics and samples that evaluations left in ``run``."""
    card, details, table, samples = read_card(config.data.card), run_details(run), {}, []
    for split, figures in read_json(run / "metrics.json").items():
        real = {key.removesuffix("_real"): value for key, value in figures.items() if key.endswith("_real")}
        table[split] = {"drawn": {k: v for k, v in figures.items() if not k.endswith("_real")}, "true pictures": real}
        for number, text in enumerate(read_json(run / "samples" / f"{split}.json")["texts"]):
            content = (run / "samples" / f"{split}_{number:02d}.png").read_bytes()
            samples.append(
                Sample(
                    content,
                    {"prompt": text},
                    group=f"{split}: the true picture, two drawn, and the nearest of training to the first",
                )
            )
    summary = (
        f"Pictures of {card.name} from their texts, {config.gan.sizes[-1]} pixels, {len(config.gan.sizes)} stages, "
        f"{config.fit.steps} steps, redescription {config.gan.redescription:g}. Of each four: the true picture, two drawn, "
        "and the training picture nearest to the first of them."
    )
    write_report(run / "report.html", f"Text to picture by MirrorGAN: {card.name}", table, samples, details, summary)
    contact_sheet(samples[:SHOWN]).save(run / "samples" / "samples.png")
    write_model_card(run / "README.md", ModelCard(
        name=f"mirror-gan-{card.name}",
        description=f"A generator of pictures like those of {card.name} from a text, trained against discriminators.",
        license="apache-2.0",
        task="text-to-image",
        data=card.name,
        data_license=card.license,
        table=table,
        command=details["command"],
        picture="samples/samples.png",
        picture_text="Of each four: the true picture of the prompt, two drawn, the training picture nearest to the first",
        intended_use="Research on pictures from texts.",
        limitations=[
            "It draws what its data card shows and nothing else; a word that no caption holds means nothing to it.",
            "Of a prompt it may draw nearly the same picture every time.",
            "Who is missing from the data card is missing from what it draws.",
        ],
        tags=["mirror-gan", "text-to-image"],
    ))  # fmt: skip


RECIPE = Recipe(
    name="redescription_gan",
    config=Config,
    stages={"captioner": train_captioner, "gan": train_gan},
    main="gan",
    evaluate=evaluate,
    splits=("test", "test_compositional", "validation", "validation_compositional"),
    report=report,
    check=check,
    nested=nested,
    made_by={"captioner": ("data", "captioner", "gan.sizes", "gan.channels")},
)

if __name__ == "__main__":
    sys.exit(main(["train", "redescription_gan", *sys.argv[1:]]))
