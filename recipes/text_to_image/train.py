"""Text to image: a discrete VAE turns pictures into codes, a causal transformer writes text and codes.

mmgen train text_to_image                                                  # openmoji at 32 pixels, on two CPU cores
mmgen train text_to_image --config mnist                                   # "a handwritten seven"
accelerate launch recipes/text_to_image/train.py --config recipes/text_to_image/gpu.yaml
"""

import sys
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from mmgen import processes
from mmgen.cli import main
from mmgen.data.batch import Batch, collate
from mmgen.data.cards import check_column, held_out, read_card
from mmgen.data.image import ImageProcessor
from mmgen.data.pairs import Pairs, texts_of
from mmgen.data.processors import Processor
from mmgen.data.text import TextProcessor, train_tokenizer
from mmgen.errors import UserError, check_one_of
from mmgen.judging.features import frechet, nearest_pictures, picture_features
from mmgen.modalities.image import PACKAGES
from mmgen.models.base import load
from mmgen.models.discrete_vae import DiscreteVAE, code_use
from mmgen.models.text_to_image import TextToImage
from mmgen.models.vae import VAE
from mmgen.ranges import AtLeast
from mmgen.storage import read_json
from mmgen.training.config import FitConfig, build_config, section, section_of
from mmgen.training.loop import fit
from mmgen.training.model_card import ModelCard, write_model_card
from mmgen.training.nested import nested_config
from mmgen.training.recipe import Recipe, recipe_of, run_details, stage_folder
from mmgen.training.report import Sample, tensor_grid, write_report

AT_ONCE = 100  # pictures that are made or read together
SHOWN = 10  # prompts in a grid


@dataclass
class Data:
    """A data card of pictures and texts, one or several each.

    Args:
        card: name or path.
        image: the column of pictures.
        text: the column of texts.
        label: the column of what a picture shows, which a judge predicts; empty: none.
        size: side in pixels.
        channels: 1 or 3.
        tokenizer: of transformers, a folder or a Hub name, that has an end of text; empty: one trained on the training texts.
        vocab_size: most tokens of that one.
        text_length: most tokens of a text, its end included.
        limit: items of each split; 0 takes all.
    """

    card: str = "openmoji"
    image: str = "image"
    text: str = "caption"
    label: str = ""
    size: Annotated[int, AtLeast(1)] = 32
    channels: Literal[1, 3] = 3
    tokenizer: str = ""
    vocab_size: Annotated[int, AtLeast(259)] = 1024
    text_length: Annotated[int, AtLeast(2)] = 24
    limit: Annotated[int, AtLeast(0)] = 0


@dataclass
class Baseline:
    """A convolutional VAE of the same pictures, whose draws from its prior the Fréchet distance is compared with.

    Args:
        latent_dim: size of its latent code.
        width: channels of its first convolution.
    """

    latent_dim: Annotated[int, AtLeast(1)] = 64
    width: Annotated[int, AtLeast(1)] = 32


@dataclass
class Evaluation:
    """Pictures generated from a split's texts, and their judging.

    Args:
        items: texts of the split, two or more; 0 takes all.
        guidance: scale of the guided arms.
        temperature: temperature of the draws.
        top_k: keep the k likeliest codes; 0 all.
        candidates: pictures of which the reranked arm keeps one.
        among: texts that R-precision chooses from.
        features: the packaged network of the Fréchet distance; empty: none.
        codes_items: training pictures by which the use of codes is counted.
    """

    items: Annotated[int, AtLeast(0)] = 1000
    guidance: Annotated[float, AtLeast(0)] = 2.0
    temperature: Annotated[float, AtLeast(0)] = 1.0
    top_k: Annotated[int, AtLeast(0)] = 0
    candidates: Annotated[int, AtLeast(1)] = 8
    among: Annotated[int, AtLeast(2)] = 100
    features: str = "efficientnet_lite0"
    codes_items: Annotated[int, AtLeast(1)] = 2000


@dataclass
class Config:
    """The config of the recipe ``text_to_image``.

    Args:
        fit_codes: training of the discrete VAE.
        fit_baseline: training of the baseline.
        fit: training of the transformer.
        judge: config of a classifier of ``data.label``, see the recipe ``judge``; empty: no such figures.
        aligned: config of the space by which R-precision is measured, see the recipe ``aligned``; the one that reranks is
            trained with the next seed. Empty: no such figures.
    """

    data: Data = section()
    discrete_vae: section_of(DiscreteVAE, "shape") = section()
    model: section_of(TextToImage, "discrete_vae", "vocabulary", "text_length", "end") = section()
    baseline: Baseline = section()
    fit_codes: FitConfig = section()
    fit_baseline: FitConfig = section()
    fit: FitConfig = section()
    judge: dict[str, Any] = field(default_factory=dict)
    aligned: dict[str, Any] = field(default_factory=dict)
    evaluation: Evaluation = section()
    seed: int = 0
    seeds: int = 1


def pairs(data: Data, split: str, image: ImageProcessor, text: Processor | None = None, limit: int = 0) -> Pairs:
    """The pictures of a split and, with a text processor, their texts, of at most so many rows."""
    limits = [n for n in (limit, data.limit) if n]
    return Pairs(data.card, split, (data.image, data.text), image, text, data.text_length, min(limits, default=0))


def nested(config: Config) -> dict[str, Any]:
    """The configs of what judges, by the keys that hold them."""
    judge = {"judge": nested_config("judge", "judge", config.judge)} if config.judge else {}
    return judge | ({"aligned": space_config(config)} if config.aligned else {})


def check(config: Config) -> None:
    """The columns are there and of their kinds, and the judges' configs are theirs."""
    card, evaluation = read_card(config.data.card), config.evaluation
    config.data.image = check_column(card, "data.image", config.data.image, "image")
    config.data.text = check_column(card, "data.text", config.data.text, "text")
    if config.data.label:
        config.data.label = check_column(card, "data.label", config.data.label)
    if evaluation.items == 1:
        raise UserError("evaluation.items", got=1, expected="two or more, or 0 for all", fix="set evaluation.items=200")
    if config.judge and not config.data.label:
        raise UserError("judge", got="no data.label", expected="the column that it looks for", fix="set data.label=label")
    nested(config)
    with torch.device("meta"):  # fails now for values out of range, and takes no memory
        build(config, config.data.vocab_size, end=0)
    if evaluation.features:
        check_one_of("evaluation.features", evaluation.features, PACKAGES)


def space_config(config: Config) -> Any:
    """The config of the space by which R-precision is measured."""
    return recipe_of("aligned").space_config(config.aligned, config.data.card, config.data.image, config.data.text)


def codes_arguments(config: Config) -> dict[str, Any]:
    """The arguments of the discrete VAE."""
    data = config.data
    return {**asdict(config.discrete_vae), "shape": (data.channels, data.size, data.size)}


def build(config: Config, vocabulary: int, end: int) -> TextToImage:
    """The transformer, and in it the discrete VAE, untrained."""
    return TextToImage(codes_arguments(config), vocabulary, config.data.text_length, end, **asdict(config.model))


def image_processor(data: Data) -> ImageProcessor:
    """Pictures from 0 to 1."""
    return ImageProcessor(data.size, data.channels)


def words(data: Data) -> TextProcessor:
    """The tokenizer of that name, or one trained on the texts of the training split."""
    if data.tokenizer:
        return TextProcessor.from_pretrained(data.tokenizer)
    return train_tokenizer(texts_of(data.card, data.text, limit=data.limit), data.vocab_size)


def train_codes(config: Config, run: Path, resume: bool) -> None:
    """Train the discrete VAE on the pictures."""
    torch.manual_seed(config.seed)
    model, processor = DiscreteVAE(**codes_arguments(config)), image_processor(config.data)
    model.processors["image"] = processor
    held = held_out(read_card(config.data.card))
    for split, limit in (("train", 0), (held, SHOWN)):  # texts that the prior could not read are reported before training
        pairs(config.data, split, processor, words(config.data), limit=limit)
    shown = pairs(config.data, held, processor, limit=SHOWN)

    def samples(model: DiscreteVAE, place: Path) -> None:
        place.parent.mkdir(parents=True, exist_ok=True)
        x = shown.all().to(model.step.device)
        tensor_grid([x, reconstructed(model, x)]).save(place.with_suffix(".png"))

    folder = stage_folder(RECIPE, run, "discrete_vae")
    fit(model, pairs(config.data, "train", processor), replace(config.fit_codes, seed=config.seed), folder, samples, resume)


def train_baseline(config: Config, run: Path, resume: bool) -> None:
    """Train the convolutional VAE on the pictures."""
    torch.manual_seed(config.seed)
    processor, settings = (
        image_processor(config.data),
        {"likelihood": config.discrete_vae.likelihood, "width": config.baseline.width},
    )
    if config.discrete_vae.scale is not None:
        settings["scale"] = config.discrete_vae.scale
    model = VAE(shape=processor.shape, latent_dim=config.baseline.latent_dim,
                encoder={"dim": 256, "width": config.baseline.width}, decoder=settings)  # fmt: skip
    model.processors["image"] = processor
    folder = stage_folder(RECIPE, run, "baseline")
    fit(model, pairs(config.data, "train", processor), replace(config.fit_baseline, seed=config.seed), folder, resume=resume)


def train_prior(config: Config, run: Path, resume: bool) -> None:
    """Train the transformer on texts and codes."""
    torch.manual_seed(config.seed)
    vae, data = load(stage_folder(RECIPE, run, "discrete_vae")), config.data
    text = words(data)
    model = build(config, text.vocabulary, text.tokenizer.eos_token_id)
    model.take_codes(vae)
    model.processors = {"text": text, "image": vae.processors["image"]}
    shown = pairs(data, held_out(read_card(data.card)), vae.processors["image"], text, limit=SHOWN)

    def samples(model: TextToImage, place: Path) -> None:
        place.parent.mkdir(parents=True, exist_ok=True)
        given = collate([{"text": ids} for ids in shown.ids], ["text"]).to(model.step.device)
        made = model.generate(given, "image", n=4, generator=torch.Generator().manual_seed(0))
        tensor_grid([shown.all(), *made.unflatten(0, (-1, 4)).unbind(1)]).save(place.with_suffix(".png"))

    fit(
        model,
        pairs(data, "train", vae.processors["image"], text),
        replace(config.fit, seed=config.seed),
        run,
        samples,
        resume,
    )


@torch.no_grad()
def reconstructed(model: DiscreteVAE, x: Tensor) -> Tensor:
    """The mean of p(x | z) at the likeliest codes of x (n, c, h, w)."""
    return model.decode(model.codes(x)).mean.clamp(0, 1)


class Judges:
    """What looks at pictures of texts: a classifier of what they show, and a space that they share with their texts."""

    def __init__(self, config: Config, model: TextToImage, data: Pairs, split: str) -> None:
        self.config, self.model, self.data = config, model, data
        self.accuracy: dict[str, float] = {}
        self.classifier = self.space = self.reranker = None
        if config.judge:
            recipe = recipe_of("judge")
            values = build_config(recipe.Config, config.judge)
            judge, accuracy = recipe.judge(values)
            self.classifier, labels = judge.to(processes.device()), data.rows[config.data.label]
            self.truth = recipe.places(judge, [labels[row] for row in data.items])
            self.accuracy = {"judge_accuracy": accuracy, "judge_disjoint": values.data.split not in ("train", split)}
        if config.aligned:
            space, values = recipe_of("aligned").judging_space, space_config(config)
            self.space, self.reranker = (space(values, config.data.size, more) for more in (0, 1))

    def __call__(self, made: Tensor, name: str) -> dict[str, float]:
        """The figures of pictures (n, c, h, w), one for each text of the data in order, under names that end in ``name``."""
        figures, image = {}, self.model.processors["image"]
        if self.classifier is not None:
            seen = recipe_of("multimodal_vae").labels_of(self.classifier, image, made)
            figures[f"digit_accuracy{name}"] = recipe_of("judge").agreement(seen, self.truth)
        if self.space is not None:
            shown = [image.decode(x) for x in made]
            figures[f"r_precision{name}"] = recipe_of("aligned").precision(
                self.space, shown, self.data.texts, self.config.evaluation.among
            )
        return figures


def arms(config: Config) -> dict[str, str]:
    """What is drawn of a split's texts: the ending of its figures -> how the report calls it."""
    guidance = config.evaluation.guidance
    found = {"": f"guidance {guidance:g}"} | ({"_unguided": "without guidance"} if guidance != 1 else {})
    return found | ({"_reranked": "reranked"} if config.aligned else {})


def evaluate(run: Path, config: Config, split: str) -> dict[str, float]:
    """How well pictures show their text, how near they are to real ones, and whether they are copies.

    ``_unguided`` and ``_reranked`` are of the same texts without guidance, where there was one, and of the best of several by
    another space.
    ``_real`` are the figures of the split's own pictures, ``_baseline`` those of as many draws of the convolutional VAE,
    ``_codes`` of the split's pictures through their codes.
    """
    torch.manual_seed(config.seed)
    device, settings = processes.device(), config.evaluation
    model = load(run).to(device)
    image, text = model.processors["image"], model.processors["text"]
    data, train_data = pairs(config.data, split, image, text, settings.items), pairs(config.data, "train", image)
    judges, real = Judges(config, model, data, split), data.all()
    sampling = {"temperature": settings.temperature, "top_k": settings.top_k}
    guided = {**sampling, "guidance": settings.guidance}
    made, figures = {}, dict(judges.accuracy)
    for name, how in arms(config).items():
        if name == "_reranked":
            made[name] = reranked(model, judges.reranker, data, config, guided)
            continue
        options, generator = sampling if name == "_unguided" else guided, torch.Generator().manual_seed(config.seed)
        texts = (batch.keep(["text"]).to(device) for batch in data.batches(f"pictures {how}"))
        made[name] = torch.cat([model.generate(each, "image", 1, generator, **options).cpu() for each in texts])
    codes = model.discrete_vae
    made["_codes"] = torch.cat([reconstructed(codes, x.to(device)).cpu() for x in real.split(AT_ONCE)])
    for name, x in {**made, "_real": real}.items():
        figures |= judges(x, name)
    made["_baseline"] = load(stage_folder(RECIPE, run, "baseline")).to(device).generate(
        Batch.nothing(1, device), "image", len(data), torch.Generator().manual_seed(config.seed)).cpu()  # fmt: skip
    if settings.features:
        features = {name: picture_features(settings.features, image, list(x)) for name, x in {**made, "_real": real}.items()}
        for name in made:
            figures[f"fid_{settings.features}{name}"] = frechet(features["_real"], features[name])
    counted = torch.cat([codes.codes(x.to(device)).cpu() for x in train_data.all(settings.codes_items).split(AT_ONCE)])
    figures |= {name: value.item() for name, value in code_use(counted, codes.k).items()}
    figures["reconstruction_rmse"] = (made["_codes"] - real).square().mean().sqrt().item()
    nats = [model.log_likelihood(batch.to(device)).cpu() for batch in data.batches("log-likelihood of codes")]
    figures["log_likelihood"] = torch.cat(nats).mean().item()
    seen = train_data.all().to(device)
    near = {name: nearest_pictures(x.to(device), seen) for name, x in (("", made[""]), ("_real", real))}
    for name, (distance, _) in near.items():
        figures[f"nearest_rmse{name}"] = distance.mean().item()
    folder = run / "samples"
    folder.mkdir(exist_ok=True)
    chosen = list(range(0, len(data), -(-len(data) // SHOWN)))
    rows = [x[chosen] for x in [*(made[name] for name in arms(config)), seen[near[""][1]].cpu(), real]]
    tensor_grid(rows).save(folder / f"{split}_pictures.png")
    tensor_grid([real[chosen], made["_codes"][chosen]]).save(folder / f"{split}_codes.png")
    captions = model.generate(Batch({"image": real[chosen].to(device)}), "text", temperature=0.0)
    lines = [f"{data.texts[i]} -> {caption}" for i, caption in zip(chosen, captions)]
    (folder / f"{split}_texts.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return figures


@torch.no_grad()
def reranked(model: TextToImage, space: Any, data: Pairs, config: Config, sampling: dict[str, Any]) -> Tensor:
    """Of several pictures of each text the one nearest to it in ``space``, (n, c, h, w)."""
    generator, kept, m = torch.Generator().manual_seed(config.seed), [], config.evaluation.candidates
    for batch in data.batches("pictures to rerank"):
        given = batch.keep(["text"]).to(model.step.device)
        drawn = model.generate(given, "image", m, generator, **sampling)  # (b m, c, h, w)
        best = model.similarity(space, drawn, given).reshape(-1, m).argmax(1)  # (b,)
        kept.append(drawn.unflatten(0, (-1, m))[torch.arange(len(best)), best].cpu())
    return torch.cat(kept)


def report(run: Path, config: Config) -> None:
    """Write ``report.html`` and ``README.md`` from the metrics and pictures that evaluations left in ``run``."""
    card, metrics = read_card(config.data.card), read_json(run / "metrics.json")
    table = {s: {"text_to_image": {k: v for k, v in f.items() if k != "judge_disjoint"}} for s, f in metrics.items()}
    samples = []
    what = [*arms(config).values(), "the training picture nearest to the first", "real"]
    for split in metrics:
        lines = (run / "samples" / f"{split}_texts.txt").read_text(encoding="utf-8")
        texts = {"rows": ", ".join(what), "text -> what the model says of the real picture": lines}
        samples.append(Sample((run / "samples" / f"{split}_pictures.png").read_bytes(), texts, group=split, wide=True))
        rows = {"rows": "real, through its codes"}
        samples.append(Sample((run / "samples" / f"{split}_codes.png").read_bytes(), rows, group=split, wide=True))
    details, title = run_details(run), f"Text to image of {card.name}"
    codes = config.discrete_vae
    summary = (
        f"{config.data.size} pixels as {(config.data.size // 2**codes.halvings) ** 2} of {codes.codes} codes "
        f"({codes.quantizer}), written after the text by a transformer of width {config.model.dim}."
    )
    write_report(run / "report.html", title, table, samples, details, summary)
    write_model_card(run / "README.md", ModelCard(
        name=f"text-to-image-{card.name}",
        description=f"Pictures of texts, by a discrete VAE and an autoregressive prior, trained on {card.name}.",
        license="apache-2.0",
        task="text-to-image",
        data=card.name,
        data_license=card.license,
        table=table,
        command=details["command"],
        picture=f"samples/{next(iter(metrics))}_pictures.png",
        picture_text=f"Rows: {', '.join(what)}",
        intended_use="Research on text to image, and pictures like those of the data card.",
        limitations=[
            "It draws what its training data show and nothing else; a word it never saw means nothing to it.",
            "It can repeat a training picture: the nearest one stands beside its own.",
            "Who is missing from the data card is missing from what it draws.",
        ],
        tags=["text-to-image", "discrete-vae"],
    ))  # fmt: skip


RECIPE = Recipe(
    name="text_to_image",
    config=Config,
    stages={"discrete_vae": train_codes, "baseline": train_baseline, "prior": train_prior},
    main="prior",
    evaluate=evaluate,
    splits=("test", "validation", "test_compositional", "validation_compositional"),
    report=report,
    check=check,
    nested=nested,
    made_by={"discrete_vae": ("data", "discrete_vae"), "baseline": ("data", "discrete_vae", "baseline")},
)

if __name__ == "__main__":
    sys.exit(main(["train", "text_to_image", *sys.argv[1:]]))
