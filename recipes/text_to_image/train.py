"""Text to image: a discrete VAE encodes pictures as codes, and a causal transformer models texts and codes.

mmgen train text_to_image                                                  # openmoji at 32 pixels, on two CPU cores
mmgen train text_to_image --config mnist                                   # "a handwritten seven"
accelerate launch recipes/text_to_image/train.py --config recipes/text_to_image/gpu.yaml
"""

import sys
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Annotated, Literal

import torch
from PIL import Image

from mmgen.cli import main
from mmgen.data.batch import Batch
from mmgen.data.cards import held_out, read_card
from mmgen.data.image import ImageProcessor
from mmgen.errors import Mistakes
from mmgen.judging.nearest import nearest_in
from mmgen.judging.pictures import PictureConfig, PictureEvaluation, draw_all
from mmgen.judging.shared_space import trained_space
from mmgen.models.discrete_vae import DiscreteVAE
from mmgen.models.text_to_image import TextToImage
from mmgen.models.vae import VAE
from mmgen.ranges import AtLeast
from mmgen.training.config import FitConfig, section, section_of
from mmgen.training.data_sections import PicturesWithTexts
from mmgen.training.prior import prior_fit
from mmgen.training.recipe import Recipe, stage
from mmgen.training.report import tensor_grid
from mmgen.training.result import Result
from mmgen.training.run import Run

SHOWN = 10  # prompts in a grid
OwnCodes = section_of(DiscreteVAE, "shape")  # without arguments determined by data and codes
OwnPrior = section_of(TextToImage, "discrete_vae", "vocabulary", "text_length", "end")


@dataclass
class Data(PicturesWithTexts):
    """A data card of pictures and texts, one or several each.

    Args:
        size: side in pixels.
        channels: 1 for grey pictures, 3 for colour.
    """

    text_length: Annotated[int, AtLeast(2)] = 24
    size: Annotated[int, AtLeast(1)] = 32
    channels: Literal[1, 3] = 3

    @property
    def processor(self) -> ImageProcessor:
        """The processor of pictures, with values from 0 to 1."""
        return ImageProcessor(self.size, self.channels)


@dataclass
class Baseline:
    """A convolutional VAE of the same pictures with the prior "aggregate", a baseline for the Fréchet distance.

    Args:
        latent_dim: size of the latent code.
        width: channels of the first convolution.
        components: Gaussians of the prior; at most one per training picture is used.
    """

    latent_dim: Annotated[int, AtLeast(1)] = 64
    width: Annotated[int, AtLeast(1)] = 32
    components: Annotated[int, AtLeast(1)] = 200


@dataclass
class Evaluation(PictureEvaluation):
    """Settings of generation and evaluation.

    Args:
        guidance: classifier-free guidance scale.
        temperature: sampling temperature.
        top_k: keep the k likeliest codes; 0 all.
        candidates: pictures per returned one for reranking.
        codes_items: training pictures for the use of codes.
    """

    items: Annotated[int, AtLeast(0)] = 1000
    guidance: Annotated[float, AtLeast(0)] = 2.0
    temperature: Annotated[float, AtLeast(0)] = 1.0
    top_k: Annotated[int, AtLeast(0)] = 0
    candidates: Annotated[int, AtLeast(1)] = 8
    codes_items: Annotated[int, AtLeast(1)] = 2000


@dataclass
class Config(PictureConfig):
    """The config of the recipe ``text_to_image``; the reranker reads texts by tokens alone and has the next seed."""

    data: Data = section()
    discrete_vae: OwnCodes = section()
    model: OwnPrior = section()
    baseline: Baseline = section()
    fit_codes: FitConfig = section()
    fit_baseline: FitConfig = section()
    fit: FitConfig = section()
    evaluation: Evaluation = section()

    def check(self, errors: Mistakes) -> None:
        """Check the judges, and that all models can be built."""
        with errors, torch.device("meta"):  # raises for values out of range, without memory
            self.untrained(self.data.vocab_size, end=0)
        super().check(errors)

    def untrained(self, vocabulary: int, end: int) -> TextToImage:
        """The transformer, and in it the discrete VAE, untrained."""
        codes = {**asdict(self.discrete_vae), "shape": self.data.processor.shape}
        return TextToImage(codes, vocabulary, self.data.text_length, end, **asdict(self.model))


@stage(made_by=("data", "discrete_vae"))
def discrete_vae(run: Run, config: Config) -> None:
    """Train the discrete VAE on the pictures."""
    data, processor = config.data, config.data.processor
    model = DiscreteVAE(processor.shape, **asdict(config.discrete_vae))
    model.processors["image"] = processor
    held, words = held_out(read_card(data.card)), data.words()
    for split, limit in (("train", 0), (held, SHOWN)):  # reports errors in texts before training
        data.pairs(split, processor, words, limit)
    shown = data.pairs(held, processor, limit=SHOWN)

    def samples(model: DiscreteVAE) -> Image.Image:
        x = shown.all("image")
        return tensor_grid([x, model.reconstruct(x)])

    run.fit(model, data.pairs("train", processor), config.fit_codes, samples)


@stage(made_by=("data", "discrete_vae", "baseline"))
def baseline(run: Run, config: Config) -> None:
    """Train the convolutional VAE on the pictures."""
    processor, width = config.data.processor, config.baseline.width
    encoder, decoder = {"dim": 256, "width": width}, {"likelihood": config.discrete_vae.likelihood, "width": width}
    decoder |= {} if config.discrete_vae.scale is None else {"scale": config.discrete_vae.scale}
    pictures = config.data.pairs("train", processor)
    components = min(config.baseline.components, len(pictures))
    model = VAE(
        shape=processor.shape,
        latent_dim=config.baseline.latent_dim,
        encoder=encoder,
        decoder=decoder,
        prior="aggregate" if len(pictures) > 1 else "standard",
        prior_settings={"components": components} if len(pictures) > 1 else None,
    )
    model.processors["image"] = processor
    run.fit(model, pictures, config.fit_baseline, finish=prior_fit(model, pictures, config.seed))


@stage()
def prior(run: Run, config: Config) -> None:
    """Train the transformer on texts and codes."""
    vae, data, text = run.load("discrete_vae"), config.data, config.data.words()
    model = config.untrained(text.vocabulary, text.tokenizer.eos_token_id)
    model.take_codes(vae)
    model.processors = {"text": text, "image": vae.processors["image"]}
    shown = data.pairs(held_out(read_card(data.card)), data.processor, text, SHOWN)

    def samples(model: TextToImage) -> Image.Image:
        given = shown.keep("text").batch(range(len(shown))).to(model.step.device)
        made = model.generate(given, "image", n=4, generator=torch.Generator().manual_seed(0))
        return tensor_grid([shown.all("image"), *made.unflatten(0, (-1, 4)).unbind(1)])

    run.fit(model, data.pairs("train", data.processor, text), config.fit, samples)


def evaluate(run: Run, config: Config, split: str) -> Result:
    """Agreement of pictures with their texts, distance to real pictures, and distance to training pictures.

    Systems: ``unguided`` without guidance, ``reranked`` the best of several by a space that reads texts in
    another way than the judge, ``real`` the pictures of the
    split, ``codes`` these reconstructed from their codes, and ``baseline`` draws of the convolutional VAE.
    """
    settings, model = config.evaluation, run.load()
    image, device, codes = model.processors["image"], model.step.device, model.discrete_vae
    data, train = config.data.pairs(split, **model.processors, limit=settings.items), config.data.pairs("train", image)
    judges, draw = config.judges(data, image, "digit_accuracy"), partial(draw_all, model, data, config.seed)
    sampling = {"temperature": settings.temperature, "top_k": settings.top_k}
    guided, real = {**sampling, "guidance": settings.guidance}, data.all("image")
    made = {"text_to_image": draw(**guided)}
    if settings.guidance != 1:
        made["unguided"] = draw(**sampling)
    if config.aligned:
        judge = config.nested()["aligned"]
        reranker = trained_space(replace(judge, model=replace(judge.model, sentences="")), image.size, seed=1)
        made["reranked"] = draw(**guided, candidates=settings.candidates, rerank=partial(model.similarity, reranker))
    shown = [*made.values()]
    made |= {"codes": codes.reconstruct(real), "real": real}
    nothing, generator = Batch.nothing(1, device), torch.Generator().manual_seed(config.seed)
    made["baseline"] = run.load("baseline").generate(nothing, "image", len(data), generator).cpu()
    result = Result("text_to_image", {"text_to_image": f"guidance {settings.guidance:g}"}, judges.about)
    for system, pictures in made.items():
        result[system] = judges.of_texts(pictures) if system != "baseline" else {}
        result[system] |= judges.fidelity(pictures) if system != "real" else {}
    figures = result["text_to_image"]
    figures |= codes.usage(train.all("image", settings.codes_items))
    figures["reconstruction_rmse"] = (made["codes"] - real).square().mean().sqrt().item()
    nats = [model.log_likelihood(batch.to(device)).cpu() for batch in data.batches("log-likelihood of codes")]
    figures["log_likelihood"] = torch.cat(nats).mean().item()
    distance, _, nearest = nearest_in(made["text_to_image"].to(device), train)
    figures["nearest_rmse"] = distance.mean().item()
    result["real"]["nearest_rmse"] = nearest_in(real.to(device), train)[0].mean().item()
    shown += [nearest.cpu(), real]
    chosen = list(range(0, len(data), -(-len(data) // SHOWN)))
    captions = model.generate(Batch({"image": real[chosen].to(device)}), "text", temperature=0.0)
    names = ["guided", *list(made)[1 : len(shown) - 2], "the training picture nearest to the first row", "real"]
    result.words["rows"] = ", ".join(names)
    texts = "\n".join(f"{data.texts[i]} -> {caption}" for i, caption in zip(chosen, captions))
    text = {"rows": result.words["rows"], "text -> the model's caption of the real picture": texts}
    result.show(tensor_grid([x[chosen] for x in shown]), text, wide=True, name="pictures")
    result.show(tensor_grid([x[chosen] for x in (real, made["codes"])]), {"rows": "real, through its codes"}, wide=True)
    return result


SPLITS = ("test", "validation", "test_compositional", "validation_compositional")
RECIPE = Recipe("text_to_image", Config, [discrete_vae, baseline, prior], evaluate, splits=SPLITS)

if __name__ == "__main__":
    sys.exit(main(["train", "text_to_image", *sys.argv[1:]]))
