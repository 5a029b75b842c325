"""Multimodal VAEs: picture, word and speech in one latent space, each generated from any others or from nothing.

mmgen train multimodal_vae                                        # digits as picture, word and speech, on two CPU cores
mmgen train multimodal_vae --config openmoji_spoken               # drawings, their names, and the names read aloud
mmgen train multimodal_vae model.objective=mvtcae model.beta=2.5  # any key of the config
accelerate launch recipes/multimodal_vae/train.py --config recipes/multimodal_vae/gpu.yaml
"""

import sys
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any

import torch
from torch import Tensor

from mmgen.cli import main
from mmgen.data.batch import Batch
from mmgen.data.cards import check_columns
from mmgen.data.rows import DataSet, open_rows
from mmgen.errors import Mistakes
from mmgen.judging.classifier import JudgeConfig, judge_config, trained_judge
from mmgen.judging.coherence import coherence_of, pairwise_coherence
from mmgen.judging.features import frechet, picture_features
from mmgen.models.multimodal_vae import OBJECTIVES, MultimodalVAE
from mmgen.ranges import AtLeast
from mmgen.training.config import FitConfig, section, section_of
from mmgen.training.data_sections import Modalities
from mmgen.training.model_card import contact_sheet
from mmgen.training.previews import preview
from mmgen.training.prior import prior_fit
from mmgen.training.recipe import Recipe, RecipeConfig, stage
from mmgen.training.report import Sample
from mmgen.training.result import Result
from mmgen.training.run import Run

AT_ONCE = 250  # items generated together


@dataclass
class Evaluation:
    """Amount of generation and judging.

    Args:
        items: items of the split to generate from, and draws from the prior.
        likelihood_items: first items of the split for the log-likelihood.
        likelihood_samples: draws per item for the log-likelihood.
        features: packaged network for the Fréchet distance; empty: none.
    """

    items: Annotated[int, AtLeast(2)] = 1000
    likelihood_items: Annotated[int, AtLeast(1)] = 100
    likelihood_samples: Annotated[int, AtLeast(1)] = 100
    features: str = "efficientnet_lite0"


@dataclass
class Config(RecipeConfig):
    """The config of the recipe ``multimodal_vae``.

    Args:
        model: ``modalities`` holds settings of encoders and decoders, and weights.
        judges: modality -> config of its judge, see the recipe ``judge``; coherence needs one for every modality.
    """

    data: Modalities = section()
    model: section_of(MultimodalVAE) = section()
    fit: FitConfig = section()
    judges: dict[str, dict[str, Any]] = field(default_factory=dict)
    evaluation: Evaluation = section()

    def check(self, errors: Mistakes) -> None:
        """Check that settings and judges name modalities of the data."""
        errors.check_each("model.modalities", self.model.modalities or (), self.data.modalities)
        errors.check_each("judges", self.judges, self.data.modalities)
        errors.check_each("model.objective", [self.model.objective], OBJECTIVES)
        with errors:
            self.judge_configs()
        if self.judges:
            check_columns(self.data, "data", errors, {"label": []})

    def judge_configs(self) -> dict[str, JudgeConfig]:
        """The config of the judge of each modality."""
        configs, errors = {}, Mistakes()
        for name, values in self.judges.items():
            with errors:
                configs[name] = judge_config(f"judges.{name}", values)
        errors.fail()
        return configs

    def nested(self) -> dict[str, JudgeConfig]:
        """The config of each judge, by its key."""
        return {f"judges.{name}": config for name, config in self.judge_configs().items()}


def build(config: Config) -> MultimodalVAE:
    """Build the model for the data of the config."""
    processors, modalities = config.data.processors(), {}
    for name, processor in processors.items():
        own = dict((config.model.modalities or {}).get(name, {}))
        if processor.kind == "text":
            own["shape"] = [processor.vocabulary, processor.max_length]
            own["decoder"] = {"stop": processor.tokenizer.eos_token_id, **own.get("decoder", {})}
        else:
            own["shape"] = list(processor.shape)
        modalities[name] = {"kind": processor.kind, **own}
    model = MultimodalVAE(**{**asdict(config.model), "modalities": modalities})
    model.processors |= processors
    return model


@stage()
def vae(run: Run, config: Config) -> None:
    """Train on the card's training split."""
    model = build(config)
    data = config.data.items(model.processors, "train", config.data.limit)

    def samples(model: MultimodalVAE) -> Any:
        made = from_prior(model, 16, torch.Generator().manual_seed(config.seed))
        return contact_sheet([Sample(*preview(model.processors, {}, item(made, i))) for i in range(16)])

    run.fit(model, data, config.fit, samples=samples, finish=prior_fit(model, data, config.seed))


def item(values: dict[str, Tensor], i: int) -> dict[str, Tensor]:
    """The values of one item."""
    return {name: value[i] for name, value in values.items()}


def from_prior(model: MultimodalVAE, n: int, generator: torch.Generator) -> dict[str, Tensor]:
    """``n`` items from the prior, all modalities of one from the same z."""
    nothing = Batch.nothing(1, model.step.device)
    parts = [
        model.generate(nothing, ",".join(model.inputs), min(AT_ONCE, n - start), generator) for start in range(0, n, AT_ONCE)
    ]
    return {m: torch.cat([part[m] for part in parts]) for m in model.inputs}


def evaluate(run: Run, config: Config, split: str) -> Result:
    """Coherence, Fréchet distance and log-likelihood on ``split``, with the accuracy of each judge."""
    settings, model, result = config.evaluation, run.load(), Result(config.model.objective)
    data = config.data.items(model.processors, split, settings.items)
    generator = torch.Generator().manual_seed(config.seed)
    made, figures = from_prior(model, len(data), generator), result[config.model.objective]
    result.words["modalities"] = ", ".join(config.data.modalities)
    if config.judges and config.judges.keys() == config.data.modalities.keys():
        labels = open_rows(config.data.card, split, [], [config.data.label], settings.items)[config.data.label][:]
        judges = {name: trained_judge(judge) for name, judge in config.judge_configs().items()}
        pairs = pairwise_coherence(model, judges, data, labels, generator)
        figures["conditional_coherence"] = sum(pairs.values()) / len(pairs)
        figures["joint_coherence"] = coherence_of(model, judges, made)
        for name, judge in judges.items():
            result.about |= judge.about(f"_{name}")
        result.about["judge_disjoint"] = all(judge.split != "train" for judge in judges.values())
        result.texts["coherence"] = "\n".join(f"{pair} {100 * share:.1f} %" for pair, share in pairs.items())
    image = next((name for name in model.inputs if model.processors[name].kind == "image"), None)
    if settings.features and image:
        sets = (list(data.all(image)), list(made[image]))
        real, ours = (picture_features(settings.features, model.processors[image], values) for values in sets)
        figures[f"fid_{settings.features}"] = frechet(real, ours)
    torch.manual_seed(config.seed)  # the same draws whether or not judges were trained just now
    bounds, items = [], range(min(settings.likelihood_items, len(data)))
    for batch in data.batches("log-likelihood", 10, items, model.step.device):
        bounds.append(model.log_likelihood(batch, settings.likelihood_samples).cpu())
    figures["log_likelihood"] = torch.cat(bounds).mean().item()
    show(result, model, data, made)
    return result


def show(result: Result, model: MultimodalVAE, data: DataSet, made: dict[str, Tensor]) -> None:
    """Show items from the prior, four of their sounds, and six items generated from each modality alone."""
    for i in range(min(12, len(data))):
        result.show(*preview(model.processors, {}, item(made, i)), group="from the prior")
    for source in model.inputs:
        items = [i for i in range(len(data)) if data.has(source, i)][:6]
        if not items:
            continue
        given = data.keep(source).batch(items).to(model.step.device)
        found = model.generate(given, ",".join(model.inputs), generator=torch.Generator().manual_seed(0))
        found.pop(source)
        for i in range(given.size):
            result.show(*preview(model.processors, {source: given[source][i]}, item(found, i)), group=f"from {source}")
    for name, processor in model.processors.items():
        if processor.kind == "audio":
            for i in range(min(4, len(data))):
                result.hear(f"{i:02d}_{name}", processor.decode(made[name][i]), processor.rate)


RECIPE = Recipe("multimodal_vae", Config, [vae], evaluate)

if __name__ == "__main__":
    sys.exit(main(["train", "multimodal_vae", *sys.argv[1:]]))
