"""Multimodal VAEs: picture, word and speech on one latent space, any of them made from any others or from nothing.

mmgen train multimodal_vae                                        # digits as picture, word and speech, on two CPU cores
mmgen train multimodal_vae --config openmoji_spoken               # drawings, their names, and the names read aloud
mmgen train multimodal_vae model.objective=mvtcae model.beta=2.5  # any key of the config
accelerate launch recipes/multimodal_vae/train.py --config recipes/multimodal_vae/gpu.yaml
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

import soundfile
import torch
from PIL import Image
from torch import Tensor
from tqdm.auto import tqdm

from mmgen import processes
from mmgen.cli import main
from mmgen.data.batch import Batch, collate
from mmgen.data.cards import check_column, read_card
from mmgen.data.columns import SETTINGS, Columns, fit_processor
from mmgen.data.processors import Processor
from mmgen.data.rows import Rows, open_rows
from mmgen.errors import UserError, check_one_of
from mmgen.judging.features import frechet, picture_features
from mmgen.metrics.coherence import conditional_coherence, joint_coherence
from mmgen.modalities.kinds import DECODERS
from mmgen.models.base import load
from mmgen.models.classifier import Classifier
from mmgen.models.multimodal_vae import OBJECTIVES, MultimodalVAE
from mmgen.ranges import AtLeast
from mmgen.storage import read_json
from mmgen.training.config import FitConfig, build_config, section, section_of
from mmgen.training.loop import fit
from mmgen.training.model_card import ModelCard, contact_sheet, write_model_card
from mmgen.training.nested import nested_config
from mmgen.training.prior import prior_fit
from mmgen.training.recipe import Recipe, load_recipe, run_details
from mmgen.training.report import Sample, write_report

AT_ONCE = 250  # items generated together


@dataclass
class Data:
    """A data card and its columns.

    Args:
        card: name or path.
        modalities: modality -> its ``column`` and the settings of its processor.
        label: the column that judges predict.
        limit: training items; 0 takes all.
    """

    card: str = "digits"
    modalities: dict[str, dict[str, Any]] = field(
        default_factory=lambda: {"image": {"column": "image", "size": 8, "channels": 1}, "text": {"column": "word"}}
    )
    label: str = "label"
    limit: Annotated[int, AtLeast(0)] = 0


@dataclass
class Evaluation:
    """Amount of generation and judging.

    Args:
        items: items of the split that are generated from, and as many draws from the prior.
        likelihood_items: items of the split whose log-likelihood is estimated, the first ones.
        likelihood_samples: draws an item of that estimate.
        features: the packaged network of the Fréchet distance; empty: none.
    """

    items: Annotated[int, AtLeast(2)] = 1000
    likelihood_items: Annotated[int, AtLeast(1)] = 100
    likelihood_samples: Annotated[int, AtLeast(1)] = 100
    features: str = "efficientnet_lite0"


@dataclass
class Config:
    """The config of the recipe ``multimodal_vae``.

    Args:
        model: ``modalities`` holds what the data do not say: settings of encoders and decoders, and weights.
        judges: modality -> the config of its judge, see the recipe ``judge``; coherence needs one for every modality.
    """

    data: Data = section()
    model: section_of(MultimodalVAE) = section()
    fit: FitConfig = section()
    judges: dict[str, dict[str, Any]] = field(default_factory=dict)
    evaluation: Evaluation = section()
    seed: int = 0
    seeds: int = 1


def columns_of(processors: dict[str, Processor], data: Data, split: str, limit: int = 0) -> Columns:
    """The modalities of a card's split, any of which may be missing."""
    rows = rows_of(data, split, limit)
    return Columns({name: rows[settings["column"]] for name, settings in data.modalities.items()}, processors)


def rows_of(data: Data, split: str, limit: int = 0) -> Rows:
    """The rows of a split.

    Raises:
        UserError: a row has none of the modalities.
    """
    columns = [settings["column"] for settings in data.modalities.values()]
    return open_rows(data.card, split, [], columns, limit).with_any(*columns)


def nested(config: Config) -> dict[str, Any]:
    """The config of each judge, by the key that holds it."""
    return {(key := f"judges.{name}"): nested_config(key, "judge", values) for name, values in config.judges.items()}


def check(config: Config) -> None:
    """The columns are there and of kinds the model has; settings and judges name modalities of the data."""
    card = read_card(config.data.card)
    modalities = config.data.modalities
    if len(modalities) < 2:
        fix = "add one to data.modalities"
        raise UserError("data.modalities", got=", ".join(modalities) or "none", expected="two or more", fix=fix)
    for name, settings in modalities.items():
        kinds = [name] if name in DECODERS and settings.get("column") not in card.columns else DECODERS
        key = f"data.modalities.{name}.column"
        settings["column"] = check_column(card, key, str(settings.get("column")), *kinds, one_text=True)
        kind = card.columns[settings["column"]]["kind"]
        for key in settings:
            check_one_of(f"data.modalities.{name}.{key}", key, ["column", *SETTINGS[kind]])
    for what, names in (("model.modalities", config.model.modalities or {}), ("judges", config.judges)):
        for name in names:
            check_one_of(what, name, modalities)
    if config.judges:
        config.data.label = check_column(card, "data.label", config.data.label)
    nested(config)
    check_one_of("model.objective", config.model.objective, OBJECTIVES)


def judge_recipe() -> ModuleType:
    """The recipe ``judge``, which trains judges and keeps them."""
    return sys.modules[load_recipe("judge").config.__module__]


def make_processors(data: Data) -> dict[str, Processor]:
    """The processor of each modality, fitted to the training split where it has something to fit."""
    columns, rows = read_card(data.card).columns, rows_of(data, "train", data.limit)
    processors = {}
    for name, settings in data.modalities.items():
        column, own = settings["column"], {key: value for key, value in settings.items() if key != "column"}
        processors[name] = fit_processor(columns[column]["kind"], rows[column], **own)
    return processors


def build(config: Config) -> MultimodalVAE:
    """The model for the config's data."""
    processors, modalities = make_processors(config.data), {}
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


def train(config: Config, run: Path, resume: bool) -> None:
    """Train on the card's training split."""
    torch.manual_seed(config.seed)
    model = build(config)
    data = columns_of(model.processors, config.data, "train", config.data.limit)

    def samples(model: MultimodalVAE, place: Path) -> None:
        place.parent.mkdir(parents=True, exist_ok=True)
        made = from_prior(model, 16, torch.Generator().manual_seed(config.seed))
        contact_sheet([shown(model, made, i) for i in range(16)]).save(place.with_suffix(".png"))

    finish = prior_fit(model, data, config.seed)
    fit(model, data, replace(config.fit, seed=config.seed), run, samples=samples, resume=resume, finish=finish)


def from_prior(model: MultimodalVAE, n: int, generator: torch.Generator) -> dict[str, Tensor]:
    """``n`` items made from nothing, every modality of one from the same z."""
    nothing = Batch.nothing(1, model.step.device)
    parts = [
        model.generate(nothing, ",".join(model.inputs), min(AT_ONCE, n - start), generator) for start in range(0, n, AT_ONCE)
    ]
    return {m: torch.cat([part[m] for part in parts]) for m in model.inputs}


@torch.no_grad()
def labels_of(judge: Classifier, processor: Processor, values: Tensor) -> Tensor:
    """What a judge sees in each value that the model made: numbers of its sorted labels, -1 in an empty text."""
    own, rows = judge.processors[judge.modality], []
    for value in values:
        if processor == own and processor.kind == "audio":  # the same spectrograms: no detour over a waveform
            rows.append({judge.modality: value.cpu()})
            continue
        raw = processor.decode(value)
        rows.append({judge.modality: None if isinstance(raw, str) and not raw.strip() else own(raw)})
    found = torch.full((len(rows),), -1)
    there = torch.tensor([row[judge.modality] is not None for row in rows])
    device = judge.head.weight.device
    for index in there.nonzero().squeeze(1).split(AT_ONCE):
        batch = collate([rows[i] for i in index.tolist()], judge.sequences)
        found[index] = judge.predict(batch.to(device)).mode.cpu()
    return found


def coherence(
    model: MultimodalVAE,
    judges: dict[str, Classifier],
    data: Columns,
    labels: Sequence[Any],
    made: dict[str, Tensor],
    generator: torch.Generator,
) -> tuple[dict[str, float], float]:
    """Conditional coherence of every pair "a to b", and the joint coherence of ``made`` from the prior.

    Of items that have a label and modality a; one of a class that the judges were not trained on counts as wrong.

    Raises:
        UserError: the judges do not tell the same labels.
    """
    names = {name: judge.class_names for name, judge in judges.items()}
    classes = next(iter(names.values()))
    if any(other != classes for other in names.values()):
        raise UserError("judges", got=names, expected="the same labels for all", fix="train them on the same label")
    place = judge_recipe().places(next(iter(judges.values())), labels)
    device, pairs = model.step.device, {}
    for source in model.inputs:
        seen: dict[str, list[Tensor]] = {name: [] for name in model.inputs if name != source}
        items = [i for i in range(len(data)) if data.has(source, i) and place[i] != judge_recipe().UNLABELLED]
        if not items:  # nothing to be judged from this modality
            continue
        truth = place[items]
        for start in tqdm(range(0, len(items), AT_ONCE), desc=f"from {source}", dynamic_ncols=True):
            rows = [{source: data.read(source, i)} for i in items[start : start + AT_ONCE]]
            out = model.generate(collate(rows, model.sequences).to(device), ",".join(model.inputs), generator=generator)
            for name, found in seen.items():
                found.append(labels_of(judges[name], model.processors[name], out[name]))
        pairs |= {f"{source} to {name}": conditional_coherence(torch.cat(found), truth) for name, found in seen.items()}
    joint = joint_coherence({name: labels_of(judge, model.processors[name], made[name]) for name, judge in judges.items()})
    return pairs, joint


def evaluate(run: Path, config: Config, split: str) -> dict[str, float]:
    """Coherence, Fréchet distance and log-likelihood on ``split``, with the accuracy of each judge."""
    settings, device = config.evaluation, processes.device()
    model = load(run).to(device)
    data = columns_of(model.processors, config.data, split, settings.items)
    generator = torch.Generator().manual_seed(config.seed)
    made, figures, pairs = from_prior(model, len(data), generator), {}, {}
    if config.judges and config.judges.keys() == config.data.modalities.keys():
        recipe, column = judge_recipe(), config.data.label
        labels = open_rows(config.data.card, split, [], [column], settings.items)[column][:]
        configs = {name: build_config(recipe.Config, values) for name, values in config.judges.items()}
        judges, accuracy = {}, {}
        for name, one in configs.items():
            judge, accuracy[f"judge_accuracy_{name}"] = recipe.judge(one)
            judges[name] = judge.to(device)
        pairs, joint = coherence(model, judges, data, labels, made, generator)
        figures |= {"conditional_coherence": sum(pairs.values()) / len(pairs), "joint_coherence": joint, **accuracy}
        figures["judge_disjoint"] = all(one.data.split != "train" for one in configs.values())
    image = next((name for name in model.inputs if model.processors[name].kind == "image"), None)
    if settings.features and image:
        sets = ([data.read(image, i) for i in range(len(data)) if data.has(image, i)], list(made[image]))
        real, ours = (picture_features(settings.features, model.processors[image], values) for values in sets)
        figures[f"fid_{settings.features}"] = frechet(real, ours)
    torch.manual_seed(config.seed)  # the bound's draws are the same whether judges were trained just now or before
    bounds = []
    items = range(min(settings.likelihood_items, len(data)))
    for start in tqdm(items[::10], desc="log-likelihood", dynamic_ncols=True):
        batch = collate([data[i] for i in items[start : start + 10]], model.sequences).to(device)
        bounds.append(model.log_likelihood(batch, settings.likelihood_samples).cpu())
    figures["log_likelihood"] = torch.cat(bounds).mean().item()
    write_samples(run, split, model, data, made, pairs)
    return figures


def spectrogram_picture(x: Tensor) -> Image.Image:
    """(mels, frames) in [0, 1] as a grey picture, low frequencies at the bottom."""
    return Image.fromarray((x.detach().float().cpu().clamp(0, 1).flip(0) * 255).round().byte().numpy())


def shown(
    model: MultimodalVAE, made: dict[str, Tensor], item: int, given: dict[str, Tensor] | None = None, **text: str
) -> Sample:
    """Item ``item`` of what was made as one picture with the texts under it; what was ``given`` stands first."""
    pictures: list[Image.Image] = []
    for values in (given or {}, made):
        for name, value in values.items():
            processor = model.processors[name]
            if processor.kind in ("image", "audio"):
                picture = processor.decode(value[item]) if processor.kind == "image" else spectrogram_picture(value[item])
                side = round(96 * picture.width / picture.height)
                pictures.append(picture.convert("RGB").resize((side, 96), Image.Resampling.NEAREST))
            else:
                raw = processor.decode(value[item])
                raw = raw if isinstance(raw, str) else ", ".join(f"{number:.2g}" for number in raw[:6])
                text[f"{'made' if values is made else 'given'} {name}"] = raw
    sheet = Image.new("RGB", (max(96, sum(p.width + 4 for p in pictures) - 4), 96), "#5c6773")
    left = 0
    for picture in pictures:
        sheet.paste(picture, (left, 0))
        left += picture.width + 4
    return Sample(sheet, text or {"made": "nothing in words"})


def write_samples(
    run: Path, split: str, model: MultimodalVAE, data: Columns, made: dict[str, Tensor], pairs: dict[str, float]
) -> None:
    """Write pictures and sounds of ``made``, and what six items give from each of their modalities, for the report."""
    folder, listed = run / "samples", []
    folder.mkdir(exist_ok=True)
    samples = [("from nothing", shown(model, made, i)) for i in range(min(12, len(data)))]
    for source in model.inputs:
        items = [i for i in range(len(data)) if data.has(source, i)][:6]
        if not items:
            continue
        generator = torch.Generator().manual_seed(0)
        batch = collate([{source: data.read(source, i)} for i in items], model.sequences).to(model.step.device)
        out = model.generate(batch, ",".join(model.inputs), generator=generator)
        out.pop(source)
        samples += [(f"from {source}", shown(model, out, i, {source: batch[source]})) for i in range(batch.size)]
    for number, (group, sample) in enumerate(samples):
        file = f"{split}_{number:02d}.png"
        sample.picture().save(folder / file)
        listed.append({"file": file, "text": sample.text, "group": f"{split}: {group}"})
    for name in model.inputs:
        if model.processors[name].kind == "audio":
            for i in range(min(4, len(data))):
                sound = model.processors[name].decode(made[name][i])
                soundfile.write(folder / f"{split}_{i:02d}_{name}.wav", sound.numpy(), model.processors[name].rate)
    place = run / "predictions" / f"{split}.json"
    place.parent.mkdir(exist_ok=True)
    place.write_text(json.dumps({"pairs": pairs, "samples": listed}), encoding="utf-8")


def report(run: Path, config: Config) -> None:
    """Write ``report.html`` and ``README.md`` from the metrics and samples that evaluations left in ``run``."""
    card = read_card(config.data.card)
    metrics = read_json(run / "metrics.json")
    table = {
        split: {config.model.objective: {k: v for k, v in f.items() if k != "judge_disjoint"}} for split, f in metrics.items()
    }
    samples, lines = [], []
    for split in metrics:
        kept = read_json(run / "predictions" / f"{split}.json")
        lines += [f"{split}: {pair} {100 * share:.1f} %" for pair, share in kept["pairs"].items()]
        for one in kept["samples"]:
            samples.append(Sample((run / "samples" / one["file"]).read_bytes(), one["text"], group=one["group"]))
    details, names = run_details(run) | {"pairs": "\n".join(lines)}, ", ".join(config.data.modalities)
    summary = (
        f"{names} of {card.name} on one latent space of {config.model.latent_dim} dimensions. "
        "Pictures are means; a sound is shown as its spectrogram, and four are beside this file in samples/. Coherence is "
        "judged by classifiers trained on other data, whose own accuracy stands beside it."
    )
    write_report(run / "report.html", f"Multimodal VAE of {card.name}", table, samples, details, summary)
    contact_sheet(samples[:16]).save(run / "samples" / "samples.png")
    write_model_card(run / "README.md", ModelCard(
        name=f"multimodal-vae-{card.name}",
        description=f"A multimodal VAE ({config.model.objective}) of {names} of {card.name}.",
        license="apache-2.0",
        task="any-to-any",
        data=card.name,
        data_license=card.license,
        table=table,
        command=details["command"],
        picture="samples/samples.png",
        intended_use="Research on latent spaces that several modalities share.",
        limitations=[
            "It makes what its training data show and nothing else.",
            "Pictures and spectrograms are means over what the decoder holds possible, and look soft.",
            "Who is missing from the data card is missing from what it makes.",
        ],
        tags=["multimodal-vae"],
    ))  # fmt: skip


RECIPE = Recipe(
    name="multimodal_vae",
    config=Config,
    stages={"vae": train},
    main="vae",
    evaluate=evaluate,
    splits=("test", "validation"),
    report=report,
    check=check,
    nested=nested,
)

if __name__ == "__main__":
    sys.exit(main(["train", "multimodal_vae", *sys.argv[1:]]))
