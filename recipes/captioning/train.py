"""Captioning: a frozen language model reads a prefix made from a picture, or from a sound.

mmgen train captioning                                                     # openmoji, minutes on two CPU cores
mmgen train captioning --config full fit.steps=2000                        # more steps; any key of the config
accelerate launch recipes/captioning/train.py --config recipes/captioning/gpu.yaml
"""

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from mmgen import processes
from mmgen.cli import main
from mmgen.conditioning.language_model import load_language_model
from mmgen.data.batch import Batch, collate
from mmgen.data.cards import check_column, read_card
from mmgen.data.pairs import texts_of
from mmgen.data.processors import read_bytes
from mmgen.data.rows import open_rows
from mmgen.data.text import tokens_of
from mmgen.errors import UserError
from mmgen.metrics.captioning import caption_scores, cider, tokenize
from mmgen.metrics.retrieval import nearest
from mmgen.models.base import load
from mmgen.models.captioner import Captioner
from mmgen.ranges import AtLeast
from mmgen.storage import read_json
from mmgen.training.config import FitConfig, section, section_of
from mmgen.training.loop import fit
from mmgen.training.model_card import ModelCard, contact_sheet, write_model_card
from mmgen.training.recipe import Recipe, run_details, stage_folder
from mmgen.training.report import Sample, write_report

PREFIXES = 128  # that the language model reads at once in evaluation


@dataclass
class Data:
    """A data card and its columns.

    Args:
        card: name or path.
        input: the column of pictures or sounds.
        text: the column of captions, one or several an item.
        limit: items of each split; 0 takes all.
    """

    card: str = "openmoji"
    input: str = "image"
    text: str = "caption"
    limit: Annotated[int, AtLeast(0)] = 0


@dataclass
class Decoding:
    """Options of `Captioner.generate` in evaluation.

    Args:
        beams: beams of the search; 1 is greedy.
        length_penalty: exponent of the length that a beam's score is divided by.
        max_tokens: most tokens of a caption.
        candidates: captions an item from which the one that most agree on is chosen.
        neighbours: captions of similar training items that are candidates too.
    """

    beams: Annotated[int, AtLeast(1)] = 1
    length_penalty: float = 1.0
    max_tokens: Annotated[int, AtLeast(1)] = 24
    candidates: Annotated[int, AtLeast(1)] = 1
    neighbours: Annotated[int, AtLeast(0)] = 0


@dataclass
class Config:
    """The config of the recipe ``captioning``; the blind baseline trains by the same values.

    Args:
        words: training of the soft words, without the language model.
        fit: training through the language model, which comes after.
    """

    data: Data = section()
    model: section_of(Captioner) = section()
    words: FitConfig = section()
    fit: FitConfig = section()
    decoding: Decoding = section()
    seed: int = 0
    seeds: int = 1


class Captions(Sequence):
    """Pairs of features and one caption: item i of the card with its j-th caption.

    Args:
        model: whose processors and frozen encoder are used.
        data: the card and its columns.
        split: of the card.
        blind: leave the input out.

    Raises:
        UserError: a value that is missing or cannot be read; the message names the card, the split, the row from 0, and the
            column.
    """

    def __init__(self, model: Captioner, data: Data, split: str, blind: bool = False) -> None:
        self.rows, self.text = open_rows(data.card, split, [data.input, data.text], limit=data.limit), data.text
        self.inputs, self.process, self.blind = self.rows[data.input], model.processors[model.modality], blind
        self.references = self.rows[data.text].texts()
        text = model.processors["text"]
        self.pairs: list[tuple[int, Tensor]] = []
        for i, captions in enumerate(self.references):
            with self.rows.at(i, data.text):
                self.pairs += [(i, text(caption)) for caption in captions]
        self.features: dict[str, Tensor] = {}
        self.modality = model.modality
        if not model.trained_encoder:
            self.features = model.all_features(self.inputs, [self.rows.fingerprint, data.input])

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        item, ids = self.pairs[index]
        return {"text": ids} if self.blind else {**self.given(item), "text": ids}

    def given(self, item: int) -> dict[str, Tensor]:
        """What the captioner sees of one item."""
        if self.features:
            return {"features": self.features["features"][item]}
        return {self.modality: self.inputs.read(item, self.process)}

    def check_references(self) -> None:
        """Every item has captions that can be scored.

        Raises:
            UserError: one has none, or one without a word.
        """
        for i, captions in enumerate(self.references):
            if not captions or not all(tokenize(caption) for caption in captions):
                what, expected = self.rows.place(i, self.text), "captions of at least one word each"
                raise UserError(what, got=captions, expected=expected, fix="drop the row, or fill it in")

    def batches(self, size: int = PREFIXES) -> list[Batch]:
        """All items in order, without their captions."""
        items = range(len(self.references))
        return [collate([self.given(i) for i in items[start : start + size]]) for start in items[::size]]


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
    data = Captions(model, config.data, "train", blind)
    if data.features:
        model.words.standardise(data.features["features"])
    folder = stage_folder(RECIPE, run, "blind_words" if blind else "words")
    fit(model, data, replace(config.words, seed=config.seed), folder, resume=resume, phases=("words",))


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
    data = Captions(model, config.data, "train", blind)
    shown = Captions(model, replace(config.data, limit=16), "validation") if shows_samples(config) and not blind else None

    options = {**asdict(config.decoding), "neighbours": 0}  # that are remembered at the end only

    def samples(model: Captioner, place: Path) -> None:
        device = model.words.mean.device
        captions = [c for batch in shown.batches() for c in model.generate(batch.to(device), **options)]
        place.parent.mkdir(parents=True, exist_ok=True)
        write_samples(place.with_suffix(".png"), shown, captions)

    def remember(model: Captioner) -> None:
        device = model.words.mean.device
        rows = range(len(data))
        model.remember(
            collate([data[i] for i in rows[at : at + PREFIXES]], model.sequences).to(device) for at in rows[::PREFIXES]
        )

    folder = stage_folder(RECIPE, run, "blind" if blind else "captioner")
    more = {} if blind else {"finish": remember}  # what sees no picture has no neighbours
    if shown:
        more["samples"] = samples
    fit(model, data, replace(config.fit, seed=config.seed), folder, resume=resume, **more)


def write_samples(file: Path, data: Captions, captions: list[str]) -> None:
    """Draw pictures with their captions; sounds are listed as text."""
    if data.modality == "image":
        pictures = [read_bytes(data.inputs[i], "image")[1] for i in range(len(captions))]
        contact_sheet([Sample(p, {"captioner": c}) for p, c in zip(pictures, captions)]).save(file)
    else:
        file.with_suffix(".txt").write_text("\n".join(captions) + "\n", encoding="utf-8")


@torch.no_grad()
def evaluate(run: Path, config: Config, split: str) -> dict[str, float]:
    """CIDEr, BLEU-4, ROUGE-L and exact match of the captioner and of its two baselines on ``split``."""
    device = processes.device()
    model, blind = (load(f, dtype=config.model.dtype).to(device) for f in (run, run / "stages" / "blind"))
    train_data, data = Captions(model, config.data, "train"), Captions(model, config.data, split)
    data.check_references()
    options = {**asdict(config.decoding), "generator": torch.Generator().manual_seed(config.seed)}
    at_once = max(1, PREFIXES // config.decoding.candidates)
    batches = tqdm(data.batches(at_once), desc=f"captions of {split}", dynamic_ncols=True)
    captions = [caption for batch in batches for caption in model.generate(batch.to(device), **options)]
    unseen = blind.generate(Batch.nothing(1, device), **{**options, "neighbours": 0})
    without = unseen * len(captions)  # every blind item is the same prompt, so one caption serves all

    figures = caption_scores(captions, data.references)
    figures |= {f"{key}_blind": value for key, value in caption_scores(without, data.references).items()}
    features = {"encoder": (train_data.features["pooled"], data.features["pooled"])} if data.features else {}
    features["own"] = tuple(
        torch.cat([model.encode(b.to(device)).mean.flatten(1).cpu() for b in d.batches()]) for d in (train_data, data)
    )
    best: dict[str, float] = {}
    for name, (keys, queries) in features.items():
        neighbours = [train_data.references[i] for i in nearest(queries.float(), keys.float())]
        # every caption of the neighbour stands for the item once; the mean is the baseline's score
        scores = [caption_scores(list(said), data.references) for said in zip(*neighbours)]
        means = {f"{key}_nearest": sum(score[key] for score in scores) / len(scores) for key in scores[0]}
        figures[f"cider_nearest_{name}"] = means["cider_nearest"]
        if means["cider_nearest"] > best.get("cider_nearest", -1.0):
            best, said = means, [n[0] for n in neighbours]
    figures |= best

    file = run / "predictions" / f"{split}.json"
    file.parent.mkdir(exist_ok=True)
    predictions = {"captioner": captions, "blind": without, "nearest": said, "references": data.references,
                   "cider": cider(captions, data.references)[1].tolist()}  # fmt: skip
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
