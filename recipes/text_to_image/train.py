"""Text to image: a discrete VAE turns pictures into codes, a causal transformer writes text and codes.

mmgen train text_to_image                                                  # openmoji at 32 pixels, on two CPU cores
mmgen train text_to_image --config mnist                                   # "a handwritten seven"
accelerate launch recipes/text_to_image/train.py --config recipes/text_to_image/gpu.yaml
"""

import sys
from dataclasses import asdict, dataclass
from functools import partial
from typing import Annotated, Any, Literal

import torch
from PIL import Image
from torch import Tensor

from mmgen.cli import main
from mmgen.data.batch import Batch
from mmgen.data.cards import held_out, read_card
from mmgen.data.image import ImageProcessor
from mmgen.data.rows import DataSet
from mmgen.judging.features import nearest_pictures
from mmgen.judging.pictures import PictureConfig, PictureEvaluation, PictureJudges
from mmgen.judging.shared_space import trained_space
from mmgen.models.discrete_vae import DiscreteVAE, code_use
from mmgen.models.text_to_image import TextToImage
from mmgen.models.vae import VAE
from mmgen.ranges import AtLeast
from mmgen.training.config import FitConfig, section, section_of
from mmgen.training.data_sections import PicturesWithTexts
from mmgen.training.recipe import Recipe, stage
from mmgen.training.report import tensor_grid
from mmgen.training.result import Result
from mmgen.training.run import Run

AT_ONCE = 100  # pictures that are read together
SHOWN = 10  # prompts in a grid
OwnCodes = section_of(DiscreteVAE, "shape")  # without what the data and the codes settle
OwnPrior = section_of(TextToImage, "discrete_vae", "vocabulary", "text_length", "end")


@dataclass
class Data(PicturesWithTexts):
    """A data card of pictures and texts, one or several each.

    Args:
        size: side in pixels.
        channels: 1 or 3.
    """

    text_length: Annotated[int, AtLeast(2)] = 24
    size: Annotated[int, AtLeast(1)] = 32
    channels: Literal[1, 3] = 3

    @property
    def processor(self) -> ImageProcessor:
        """Pictures from 0 to 1."""
        return ImageProcessor(self.size, self.channels)


@dataclass
class Baseline:
    """A convolutional VAE of the same pictures, whose draws from its prior the Fréchet distance is compared with."""

    latent_dim: Annotated[int, AtLeast(1)] = 64
    width: Annotated[int, AtLeast(1)] = 32


@dataclass
class Evaluation(PictureEvaluation):
    """What is made of a split's texts, and how it is judged.

    Args:
        items, among, features: see `PictureEvaluation`.
        guidance: classifier-free guidance scale of the guided pictures.
        temperature: of the draws.
        top_k: keep the k likeliest codes; 0 all.
        candidates: pictures of which the reranked system keeps one.
        codes_items: training pictures by which the use of codes is counted.
    """

    items: Annotated[int, AtLeast(0)] = 1000
    guidance: Annotated[float, AtLeast(0)] = 2.0
    temperature: Annotated[float, AtLeast(0)] = 1.0
    top_k: Annotated[int, AtLeast(0)] = 0
    candidates: Annotated[int, AtLeast(1)] = 8
    codes_items: Annotated[int, AtLeast(1)] = 2000


@dataclass
class Config(PictureConfig):
    """The config of the recipe ``text_to_image``; the space that reranks is the one of ``aligned`` with the next seed."""

    data: Data = section()
    discrete_vae: OwnCodes = section()
    model: OwnPrior = section()
    baseline: Baseline = section()
    fit_codes: FitConfig = section()
    fit_baseline: FitConfig = section()
    fit: FitConfig = section()
    evaluation: Evaluation = section()

    def check(self) -> None:
        """Check the judges, and that all models can be built."""
        super().check()
        with torch.device("meta"):  # fails now for values out of range, and takes no memory
            prior_of(self, self.data.vocab_size, end=0)

    def codes_arguments(self) -> dict[str, Any]:
        """The arguments of the discrete VAE."""
        return {**asdict(self.discrete_vae), "shape": (self.data.channels, self.data.size, self.data.size)}


def prior_of(config: Config, vocabulary: int, end: int) -> TextToImage:
    """The transformer, and in it the discrete VAE, untrained."""
    return TextToImage(config.codes_arguments(), vocabulary, config.data.text_length, end, **asdict(config.model))


@stage(made_by=("data", "discrete_vae"))
def discrete_vae(run: Run, config: Config) -> None:
    """Train the discrete VAE on the pictures."""
    model, data, processor = DiscreteVAE(**config.codes_arguments()), config.data, config.data.processor
    model.processors["image"] = processor
    held = held_out(read_card(data.card))
    for split, limit in (("train", 0), (held, SHOWN)):  # texts that the prior could not read are reported before training
        data.pairs(split, processor, data.words(), limit)
    shown = data.pairs(held, processor, limit=SHOWN)

    def samples(model: DiscreteVAE) -> Image.Image:
        x = shown.all("image").to(model.step.device)
        return tensor_grid([x, reconstructed(model, x)])

    run.fit(model, data.pairs("train", processor), config.fit_codes, samples)


@stage(made_by=("data", "discrete_vae", "baseline"))
def baseline(run: Run, config: Config) -> None:
    """Train the convolutional VAE on the pictures."""
    processor, width = config.data.processor, config.baseline.width
    settings = {"likelihood": config.discrete_vae.likelihood, "width": width}
    if config.discrete_vae.scale is not None:
        settings["scale"] = config.discrete_vae.scale
    encoder = {"dim": 256, "width": width}
    model = VAE(shape=processor.shape, latent_dim=config.baseline.latent_dim, encoder=encoder, decoder=settings)
    model.processors["image"] = processor
    run.fit(model, config.data.pairs("train", processor), config.fit_baseline)


@stage()
def prior(run: Run, config: Config) -> None:
    """Train the transformer on texts and codes."""
    vae, data, text = run.load("discrete_vae"), config.data, config.data.words()
    model = prior_of(config, text.vocabulary, text.tokenizer.eos_token_id)
    model.take_codes(vae)
    model.processors = {"text": text, "image": vae.processors["image"]}
    shown = data.pairs(held_out(read_card(data.card)), data.processor, text, SHOWN)

    def samples(model: TextToImage) -> Image.Image:
        given = shown.keep("text").batch(range(len(shown))).to(model.step.device)
        made = model.generate(given, "image", n=4, generator=torch.Generator().manual_seed(0))
        return tensor_grid([shown.all("image"), *made.unflatten(0, (-1, 4)).unbind(1)])

    run.fit(model, data.pairs("train", data.processor, text), config.fit, samples)


@torch.no_grad()
def reconstructed(model: DiscreteVAE, x: Tensor) -> Tensor:
    """The mean of p(x | z) at the likeliest codes of x (n, c, h, w)."""
    return model.decode(model.codes(x)).mean.clamp(0, 1)


@torch.no_grad()
def drawn(model: TextToImage, data: DataSet, seed: int, what: str, options: dict[str, Any]) -> Tensor:
    """A picture of each text, (n, c, h, w)."""
    generator, texts = torch.Generator().manual_seed(seed), data.keep("text").batches(what, device=model.step.device)
    return torch.cat([model.generate(given, "image", 1, generator, **options).cpu() for given in texts])


def evaluate(run: Run, config: Config, split: str) -> Result:
    """How well pictures show their text, how near they are to real ones, and whether they are copies.

    ``unguided`` and ``reranked`` are of the same texts without guidance, and of the best of several by another space; ``real``
    are the split's own pictures, ``baseline`` as many draws of the convolutional VAE, ``codes`` the split's pictures through
    their codes.
    """
    settings, model = config.evaluation, run.load()
    image, device, codes = model.processors["image"], model.step.device, model.discrete_vae
    data, train = config.data.pairs(split, **model.processors, limit=settings.items), config.data.pairs("train", image)
    judges = PictureJudges(config, data, image, "digit_accuracy")
    sampling = {"temperature": settings.temperature, "top_k": settings.top_k}
    guided, real = {**sampling, "guidance": settings.guidance}, data.all("image")
    made = {"text_to_image": drawn(model, data, config.seed, "guided pictures", guided)}
    if settings.guidance != 1:
        made["unguided"] = drawn(model, data, config.seed, "unguided pictures", sampling)
    if config.aligned:
        reranker = trained_space(config.nested()["aligned"], image.size, seed=1)
        best = {"candidates": settings.candidates, "rerank": partial(model.similarity, reranker)}
        made["reranked"] = drawn(model, data, config.seed, "pictures to rerank", guided | best)
    shown = [*made.values()]
    made["codes"] = torch.cat([reconstructed(codes, x.to(device)).cpu() for x in real.split(AT_ONCE)])
    made["real"] = real
    generator = torch.Generator().manual_seed(config.seed)
    made["baseline"] = run.load("baseline").generate(Batch.nothing(1, device), "image", len(data), generator).cpu()
    result = Result("text_to_image", {"text_to_image": f"guidance {settings.guidance:g}"}, judges.about)
    for system, pictures in made.items():
        result[system] = judges.of_texts(pictures) if system != "baseline" else {}
        result[system] |= judges.fidelity(pictures) if system != "real" else {}
    figures, seen = result["text_to_image"], train.all("image")
    counted = [codes.codes(x.to(device)).cpu() for x in seen[: settings.codes_items].split(AT_ONCE)]
    figures |= {name: value.item() for name, value in code_use(torch.cat(counted), codes.k).items()}
    figures["reconstruction_rmse"] = (made["codes"] - real).square().mean().sqrt().item()
    nats = [model.log_likelihood(batch.to(device)).cpu() for batch in data.batches("log-likelihood of codes")]
    figures["log_likelihood"] = torch.cat(nats).mean().item()
    for system in ("text_to_image", "real"):
        distance, which = nearest_pictures(made[system].to(device), seen.to(device))
        result[system]["nearest_rmse"] = distance.mean().item()
        if system == "text_to_image":
            shown += [seen[which.cpu()], real]
    chosen = list(range(0, len(data), -(-len(data) // SHOWN)))
    captions = model.generate(Batch({"image": real[chosen].to(device)}), "text", temperature=0.0)
    rows = [*(result.labels.get(name, name) for name in made if name in ("text_to_image", "unguided", "reranked")),
            "the training picture nearest to the first row", "real"]  # fmt: skip
    texts = "\n".join(f"{data.texts[i]} -> {caption}" for i, caption in zip(chosen, captions))
    result.words["rows"] = ", ".join(rows)
    captioned = {"rows": result.words["rows"], "text -> caption that the model gives the real picture": texts}
    result.show(tensor_grid([x[chosen] for x in shown]), captioned, wide=True, name="pictures")
    grid = tensor_grid([real[chosen], made["codes"][chosen]])
    result.show(grid, {"rows": "real, through its codes"}, wide=True, name="codes")
    return result


RECIPE = Recipe(
    "text_to_image",
    Config,
    [discrete_vae, baseline, prior],
    evaluate,
    splits=("test", "validation", "test_compositional", "validation_compositional"),
)

if __name__ == "__main__":
    sys.exit(main(["train", "text_to_image", *sys.argv[1:]]))
