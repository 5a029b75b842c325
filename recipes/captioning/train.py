"""Captioning: a frozen language model reads a prefix made from a picture, or from a sound.

mmgen train captioning                                                     # openmoji, minutes on two CPU cores
mmgen train captioning --config full fit.steps=2000                        # more steps; any key of the config
accelerate launch recipes/captioning/train.py --config recipes/captioning/gpu.yaml
"""

import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from mmgen import processes
from mmgen.cli import main
from mmgen.conditioning.language_model import load_language_model
from mmgen.data.batch import Batch
from mmgen.data.cards import check_column, read_card
from mmgen.data.processors import read_bytes
from mmgen.data.rows import DataSet, Rows, open_rows, texts_of
from mmgen.data.text import tokens_of
from mmgen.errors import UserError
from mmgen.metrics.captioning import caption_scores, cider, tokenize
from mmgen.metrics.retrieval import nearest
from mmgen.models.base import load
from mmgen.models.captioner import Captioner
from mmgen.storage import read_json
from mmgen.training.config import FitConfig, section_of
from mmgen.training.loop import fit
from mmgen.training.model_card import ModelCard, contact_sheet, write_model_card
from mmgen.training.recipe import Recipe, run_details, stage_folder
from mmgen.training.report import Sample, write_report

PREFIXES = 128  # that the language model reads at once in evaluation


@dataclass
class Data:
    """A data card and its columns; a text column may hold several captions an item. ``limit`` 0 takes all."""

    card: str = "openmoji"
    input: str = "image"
    text: str = "caption"
    limit: int = 0


@dataclass
class Decoding:
    """How captions are made in evaluation; the keys are those of `Captioner.generate`."""

    beams: int = 1
    length_penalty: float = 1.0
    max_tokens: int = 24
    candidates: int = 1
    neighbours: int = 0


@dataclass
class Config:
    """The config of the recipe ``captioning``: ``words`` trains without the language model, ``fit`` then through it.

    The blind baseline trains by the same two.
    """

    data: Data = field(default_factory=Data)
    model: section_of(Captioner) = field(default_factory=section_of(Captioner))
    words: FitConfig = field(default_factory=FitConfig)
    fit: FitConfig = field(default_factory=FitConfig)
    decoding: Decoding = field(default_factory=Decoding)
    seed: int = 0
    seeds: int = 1


def captions(model: Captioner, data: Data, split: str) -> DataSet:
    """Inputs, or their features by a frozen encoder, with one caption each: item i of the card with its j-th caption."""
    rows = open_rows(data.card, split, [data.input, data.text], limit=data.limit)
    given = {model.modality: data.input}
    if not model.trained_encoder:
        given = model.all_features(rows[data.input], [rows.fingerprint, data.input])
    return DataSet(rows, {**given, "text": data.text}, model.processors, each="text").without("pooled")


def check_references(rows: Rows, column: str) -> None:
    """Fail unless every item has captions that can be scored.

    Raises:
        UserError: one has none, or one without a word.
    """
    for i, texts in enumerate(rows[column].texts()):
        if not texts or not all(tokenize(text) for text in texts):
            expected, fix = "captions of at least one word each", "drop the row, or fill it in"
            raise UserError(rows.place(i, column), got=texts, expected=expected, fix=fix)


def check(config: Config) -> None:
    """The columns are there, and of the kind that the captioner reads."""
    card = read_card(config.data.card)
    config.data.input = check_column(card, "data.input", config.data.input, config.model.modality)
    config.data.text = check_column(card, "data.text", config.data.text, "text")


def shows_samples(config: Config) -> bool:
    """Whether captions of validation pictures are written while the captioner trains."""
    return config.fit.sample_every > 0 and "validation" in read_card(config.data.card).splits


def caption_vocabulary(config: Config) -> list[int]:
    """The tokens of the training captions: all that soft words can be made of."""
    _, tokenizer = load_language_model(config.model.language_model, config.model.dtype)
    captions = texts_of(config.data.card, config.data.text, limit=config.data.limit)
    return sorted({token for ids in tokens_of(tokenizer, captions, add_special_tokens=False)["input_ids"] for token in ids})


def train_words(config: Config, run: Path, resume: bool, blind: bool = False) -> None:
    """Teach the prefix to name the caption's tokens, without the language model's forward pass."""
    values, data = asdict(config.model), config.data
    for split in ("train", *(["validation"] if shows_samples(config) else [])):  # mistakes are reported before training
        open_rows(data.card, split, [data.input, data.text], limit=data.limit)
    torch.manual_seed(config.seed)
    model = Captioner(**{**values, "vocabulary": values["vocabulary"] or caption_vocabulary(config)})
    if blind:  # what nothing reads has no gradient
        model.encoder.requires_grad_(False)
    data = captions(model, config.data, "train")
    if not model.trained_encoder:
        model.words.standardise(data.values["features"])
    folder = stage_folder(RECIPE, run, "blind_words" if blind else "words")
    fit(
        model,
        data.keep("text") if blind else data,
        replace(config.words, seed=config.seed),
        folder,
        resume=resume,
        phases=("words",),
    )


def train(
    config: Config,
    run: Path,
    resume: bool,
    blind: bool = False,
    reader: Callable[[Config, Captioner], Captioner] = lambda config, model: model,
) -> None:
    """Train the captioner through the frozen language model, or the same without its pictures.

    ``reader(config, model)`` is what is trained, made from the model whose soft words were.
    """
    model = reader(config, load(stage_folder(RECIPE, run, "blind_words" if blind else "words"), dtype=config.model.dtype))
    if blind:
        model.encoder.requires_grad_(False)
    data = captions(model, config.data, "train")
    shown = captions(model, replace(config.data, limit=16), "validation") if shows_samples(config) and not blind else None

    options = {**asdict(config.decoding), "neighbours": 0}  # that are remembered at the end only

    def samples(model: Captioner, place: Path) -> None:
        device = model.words.mean.device
        batches = shown.without("text").batches(size=PREFIXES, device=device)
        made = [caption for batch in batches for caption in model.generate(batch, **options)]
        place.parent.mkdir(parents=True, exist_ok=True)
        write_samples(place.with_suffix(".png"), config, shown.rows, made)

    def remember(model: Captioner) -> None:
        model.remember(data.batches(size=PREFIXES, device=model.words.mean.device))

    folder = stage_folder(RECIPE, run, "blind" if blind else "captioner")
    more = {} if blind else {"finish": remember}  # what sees no picture has no neighbours
    if shown:
        more["samples"] = samples
    seen = data.keep("text") if blind else data
    fit(model, seen, replace(config.fit, seed=config.seed), folder, resume=resume, **more)


def write_samples(file: Path, config: Config, rows: Rows, captions: list[str]) -> None:
    """Draw pictures with their captions; sounds are listed as text."""
    if config.model.modality == "image":
        pictures = [read_bytes(rows[config.data.input][i], "image")[1] for i in range(len(captions))]
        contact_sheet([Sample(p, {"captioner": c}) for p, c in zip(pictures, captions)]).save(file)
    else:
        file.with_suffix(".txt").write_text("\n".join(captions) + "\n", encoding="utf-8")


@torch.no_grad()
def evaluate(run: Path, config: Config, split: str) -> dict[str, float]:
    """CIDEr, BLEU-4, ROUGE-L and exact match of the captioner and of its two baselines on ``split``."""
    device = processes.device()
    model, blind = (load(f, dtype=config.model.dtype).to(device) for f in (run, run / "stages" / "blind"))
    train_data, data = captions(model, config.data, "train"), captions(model, config.data, split)
    check_references(data.rows, config.data.text)
    train_references, references = (d.rows[config.data.text].texts() for d in (train_data, data))
    options = {**asdict(config.decoding), "generator": torch.Generator().manual_seed(config.seed)}
    at_once = max(1, PREFIXES // config.decoding.candidates)
    batches = data.without("text").batches(f"captions of {split}", at_once, device=device)
    made = [caption for batch in batches for caption in model.generate(batch, **options)]
    nothing = model.words.mean[None]
    unseen = blind.generate(
        Batch({"features": nothing}, present={"features": torch.tensor([False], device=device)}),
        **{**options, "neighbours": 0},
    )
    without = unseen * len(made)  # every blind item is the same prompt, so one caption serves all

    figures = caption_scores(made, references)
    figures |= {f"{key}_blind": value for key, value in caption_scores(without, references).items()}
    features = {} if model.trained_encoder else {"encoder": (train_data.values["pooled"], data.values["pooled"])}
    features["own"] = tuple(
        torch.cat([model.encode(batch).flatten(1).cpu() for batch in d.without("text").batches("", PREFIXES, device=device)])
        for d in (train_data, data)
    )
    best: dict[str, float] = {}
    for name, (keys, queries) in features.items():
        neighbours = [train_references[i] for i in nearest(queries.float(), keys.float())]
        # every caption of the neighbour stands for the item once; the mean is the baseline's score
        scores = [caption_scores(list(said), references) for said in zip(*neighbours)]
        means = {f"{key}_nearest": sum(score[key] for score in scores) / len(scores) for key in scores[0]}
        figures[f"cider_nearest_{name}"] = means["cider_nearest"]
        if means["cider_nearest"] > best.get("cider_nearest", -1.0):
            best, said = means, [n[0] for n in neighbours]
    figures |= best

    file = run / "predictions" / f"{split}.json"
    file.parent.mkdir(exist_ok=True)
    predictions = {"captioner": made, "blind": without, "nearest": said, "references": references,
                   "cider": cider(made, references)[1].tolist()}  # fmt: skip
    file.write_text(json.dumps(predictions), encoding="utf-8")
    return figures


def report(run: Path, config: Config, recipe: str = "captioning", reads: str = "reads", tag: str = "prefix-tuning") -> None:
    """Write ``report.html`` and ``README.md`` from the metrics and predictions that evaluations left in ``run``.

    Args:
        run, config: of a recipe whose `evaluate` this is.
        recipe: its name.
        reads: what the language model does with the soft words.
        tag: of the model card, the field's name for it.
    """
    card = read_card(config.data.card)
    metrics = read_json(run / "metrics.json")
    table: dict[str, dict[str, dict[str, float]]] = {}
    samples: list[Sample] = []
    details = run_details(run)
    pictures = config.model.modality == "image"
    for split, figures in metrics.items():
        said = json.loads((run / "predictions" / f"{split}.json").read_text(encoding="utf-8"))
        names = {"captioner": "", "blind": "_blind", "nearest": "_nearest"}
        keys = ("cider", "bleu4", "rouge_l", "exact_match")
        table[split] = {name: {key: figures[key + end] for key in keys} for name, end in names.items()}
        if pictures:
            samples += split_samples(config, split, said)
        else:  # a page shows no sounds
            lines = (f"{c} (reference: {' | '.join(r)})" for c, r in zip(said["captioner"], said["references"]))
            details[f"captions of {split}"] = "\n".join(lines)
    encoder = config.model.encoder if pictures else "an audio encoder"
    summary = (
        f"{config.model.language_model}, frozen, {reads} {config.model.words} soft words made from {card.name} by "
        f"{encoder}. blind: the same training without the {config.model.modality}. nearest: the caption of the "
        "training item nearest by cosine."
    )
    write_report(run / "report.html", f"Captions of {card.name}", table, samples, details, summary)
    if samples:
        (run / "samples").mkdir(exist_ok=True)
        contact_sheet(samples[:16]).save(run / "samples" / "captions.png")
    write_model_card(run / "README.md", ModelCard(
        name=f"{recipe}-{card.name}",
        description=f"Captions for {card.name} by a frozen {config.model.language_model} that {reads} soft words.",
        license="apache-2.0",
        task="image-to-text" if pictures else "automatic-speech-recognition",
        data=card.name,
        data_license=card.license,
        table=table,
        command=details["command"],
        picture="samples/captions.png" if samples else None,
        intended_use="Research on conditions of frozen language models, and captions of pictures like those of the data card.",
        limitations=[
            "It names what the data card's captions name and nothing else; a photograph given to a model of drawings gets the "
            "name of a drawing.",
            "It repeats the card's wording for skin tone, gender and age, right or wrong: do not use it to describe people.",
            "The frozen language model brings the biases of its own training text.",
        ],
        tags=[f"{config.model.modality}-captioning", tag],
        base_model=config.model.language_model if "/" in config.model.language_model else None,
    ))  # fmt: skip


def split_samples(config: Config, split: str, said: dict[str, Any], count: int = 24) -> list[Sample]:
    """``count`` items spread over the split by a fixed stride, each with what every system said."""
    pictures = open_rows(config.data.card, split, [config.data.input], limit=config.data.limit)[config.data.input]
    samples = []
    for i in range(0, len(pictures), max(1, len(pictures) // count)):
        text = {name: said[name][i] for name in ("captioner", "blind", "nearest")}
        text["reference"] = "\n".join(said["references"][i])
        picture = read_bytes(pictures[i], "image")[1]
        samples.append(Sample(picture, text, f"CIDEr {said['cider'][i]:.1f}", split))
    return samples[:count]


RECIPE = Recipe(
    name="captioning",
    config=Config,
    stages={
        "words": train_words,
        "captioner": train,
        "blind_words": partial(train_words, blind=True),
        "blind": partial(train, blind=True),
    },
    main="captioner",
    evaluate=evaluate,
    splits=("test", "test_compositional", "validation", "validation_compositional"),
    report=report,
    check=check,
    above={"cider": ("cider_blind", "cider_nearest")},
)

if __name__ == "__main__":
    sys.exit(main(["train", "captioning", *sys.argv[1:]]))
