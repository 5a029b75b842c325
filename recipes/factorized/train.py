"""MFM: a label factor that all modalities share, and a private factor for each; missing modalities are inferred.

mmgen train factorized                                  # sentiment of utterances, read under $MMGEN_DATA/cmu_mosi_utterances
mmgen train factorized --config digits                  # digits as picture, word and speech; factors swapped
accelerate launch recipes/factorized/train.py --config recipes/factorized/gpu.yaml
"""

import inspect
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

import torch
from PIL import Image
from torch import Tensor

from mmgen import processes
from mmgen.cli import main
from mmgen.conditioning.language_model import load_language_model
from mmgen.conditioning.representations import representation
from mmgen.data.batch import Batch, collate
from mmgen.data.cards import check_column, class_names, read_card
from mmgen.data.columns import SETTINGS, Columns, fit_processor
from mmgen.data.label import LabelProcessor
from mmgen.data.processors import Processor
from mmgen.data.rows import Rows, check_several_classes, open_rows
from mmgen.errors import UserError, check_one_of
from mmgen.metrics.robustness import missing_loss_ratio
from mmgen.modalities.features import cached_features
from mmgen.models.base import load
from mmgen.models.classifier import Classifier
from mmgen.models.factorized import Factorized
from mmgen.ranges import AtLeast
from mmgen.storage import fingerprint, read_json
from mmgen.training.config import FitConfig, build_config, section, section_of
from mmgen.training.loop import fit
from mmgen.training.nested import nested_config
from mmgen.training.recipe import Recipe, load_recipe, run_details, stage_folder
from mmgen.training.report import write_report

AT_ONCE = 250  # items read together in evaluation
READER = ("language_model", "layers")  # settings of a text that is read as a vector
GIVEN = ("classes", "class_names", "per_position", "without")  # what the data and the stages decide


@dataclass
class Data:
    """A data card and its columns.

    Args:
        card: name or path.
        modalities: modality -> its ``column`` and the settings of its processor. A text with a ``language_model`` is read as
            a vector: its representation after that frozen model's ``layers``.
        label: the column of labels.
        sequence: the column that groups rows into sequences, such as the utterances of a video: an item is then a whole
            sequence with a label for each row; empty: each row is an item.
        limit: training rows; 0 takes all.
    """

    card: str = "digits"
    modalities: dict[str, dict[str, Any]] = field(
        default_factory=lambda: {"image": {"column": "image", "size": 8, "channels": 1}, "text": {"column": "word"}}
    )
    label: str = "label"
    sequence: str = ""
    limit: Annotated[int, AtLeast(0)] = 0


@dataclass
class Config:
    """The config of the recipe ``factorized``; the ablations train by the same values.

    Args:
        model: ``modalities`` holds what the data do not say: settings of encoders and decoders, sizes and weights.
        judge: config of the recipe ``judge`` for the pictures whose factors are swapped; empty: none are swapped.
    """

    data: Data = section()
    model: section_of(Factorized) = section()
    fit: FitConfig = section()
    judge: dict[str, Any] = field(default_factory=dict)
    seed: int = 0
    seeds: int = 1


class Items(Sequence):
    """The items of a card's split that have a label: a row each, which may lack modalities, or the rows of a sequence."""

    def __init__(self, model: Factorized, data: Data, split: str, limit: int = 0) -> None:
        rows, self.model = rows_of(data, split, limit), model
        self.columns = Columns({name: column_of(data, name, rows) for name in data.modalities}, model.processors)
        self.labels, self.sequence = rows[data.label][:], data.sequence
        groups: dict[Any, list[int]] = {}
        for i, name in enumerate(rows[data.sequence] if data.sequence else range(len(rows))):
            groups.setdefault(name, []).append(i)
        self.groups = list(groups.values())

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        rows = self.groups[index]
        item = {name: [self.columns.read(name, row) for row in rows] for name in self.columns.values}
        item["label"] = [torch.tensor(self.labels[row]) for row in rows]
        return {name: torch.stack(values) if self.sequence else values[0] for name, values in item.items()}

    def batches(self) -> Iterator[Batch]:
        """All items in order."""
        for start in range(0, len(self), AT_ONCE):
            rows = [self[i] for i in range(start, min(start + AT_ONCE, len(self)))]
            yield collate(rows, self.model.sequences).to(processes.device())


def nested(config: Config) -> dict[str, Any]:
    """The config of the judge, by the key that holds it."""
    return {"judge": nested_config("judge", "judge", config.judge)} if config.judge else {}


def check(config: Config) -> None:
    """The columns are there and of kinds the model has; settings name modalities of the data."""
    card, data = read_card(config.data.card), config.data
    data.label = check_column(card, "data.label", data.label, "label")
    check_several_classes(card.name, data.label, class_names(card, data.label))
    if data.sequence:
        data.sequence = check_column(card, "data.sequence", data.sequence, "id", "group")
    if len(data.modalities) < 2:
        fix = "add one to data.modalities"
        raise UserError("data.modalities", got=", ".join(data.modalities) or "none", expected="two or more", fix=fix)
    for name, settings in data.modalities.items():
        what = f"data.modalities.{name}"
        kinds = ["vector", *(["text"] if "language_model" in settings else [])] if data.sequence else SETTINGS
        if name in kinds and settings.get("column") not in card.columns:  # another column of the same kind will do
            kinds = [name]
        settings["column"] = check_column(card, f"{what}.column", str(settings.get("column")), *kinds, one_text=True)
        for key in settings:
            kind = card.columns[settings["column"]]["kind"]
            check_one_of(f"{what}.{key}", key, ["column", *SETTINGS[kind], *(READER if kind == "text" else ())])
    for name in config.model.modalities or {}:
        check_one_of("model.modalities", name, data.modalities)
    for name in GIVEN:
        value, default = getattr(config.model, name), inspect.signature(Factorized).parameters[name].default
        if value != default:
            fix = "leave it out"
            raise UserError(f"model.{name}", got=value, expected="what the data card and the stages decide", fix=fix)
    for judge in nested(config).values():
        pictures = [name for name, settings in data.modalities.items() if settings["column"] == judge.data.input]
        if not pictures or card.columns[judge.data.input]["kind"] != "image":
            fix = "set judge.data.input to a column of pictures"
            raise UserError("judge.data.input", got=judge.data.input, expected="a picture among the modalities", fix=fix)


def judge_recipe() -> ModuleType:
    """The recipe ``judge``, which trains judges and keeps them."""
    return sys.modules[load_recipe("judge").config.__module__]


def rows_of(data: Data, split: str, limit: int = 0) -> Rows:
    """The rows of a split that have a label.

    Raises:
        UserError: a label is none of the card's classes; a row has none of the modalities; a value is missing of a sequence,
            or of a text that a language model reads.
    """
    columns = [settings["column"] for settings in data.modalities.values()]
    needs = [own["column"] for own in data.modalities.values() if data.sequence or "language_model" in own]
    lacking = [own["column"] for own in data.modalities.values() if own["column"] not in needs]
    (needs if data.sequence else lacking).append(data.label)
    return open_rows(data.card, split, needs, lacking, limit).with_any(*columns).having(data.label)


def column_of(data: Data, name: str, rows: Rows) -> Sequence:
    """The values of a modality; of a text with a language model, its representations, made once and cached."""
    settings = data.modalities[name]
    values, reader = rows[settings["column"]], settings.get("language_model")
    if not reader:
        return values
    model, tokenizer = load_language_model(reader)
    layers = settings.get("layers", [model.config.num_hidden_layers // 2])
    key = {"weights": fingerprint(model), "layers": layers, "data": [rows.fingerprint, settings["column"]]}

    def read(text: str) -> Tensor:  # a language model knows few words in capitals
        return representation(model, tokenizer, text.lower() if text.isupper() else text, layers)

    return cached_features(lambda x: {"features": x}, values, read, key)["features"]


def make_processors(data: Data) -> dict[str, Processor]:
    """The processor of each modality, fitted to the training split where it has something to fit."""
    columns, rows, processors = read_card(data.card).columns, rows_of(data, "train", data.limit), {}
    for name, settings in data.modalities.items():
        kind = "vector" if "language_model" in settings else columns[settings["column"]]["kind"]
        own = {key: value for key, value in settings.items() if key not in ("column", *READER)}
        processors[name] = fit_processor(kind, column_of(data, name, rows), **own)
    return processors


def build(config: Config, without: str) -> Factorized:
    """The model, or an ablation of it, for the config's data."""
    processors, modalities, data = make_processors(config.data), {}, config.data
    for name, processor in processors.items():
        own = dict((config.model.modalities or {}).get(name, {}))
        kind, shape = processor.kind, [] if processor.kind == "text" else list(processor.shape)
        if kind == "text":
            shape, stop = [processor.vocabulary], processor.tokenizer.eos_token_id
            own["decoder"] = {"stop": stop, "length": processor.max_length, **own.get("decoder", {})}
        modalities[name] = {"kind": "sequence" if data.sequence else kind, "shape": shape, **own}
    names = class_names(read_card(data.card), data.label)
    given = {"modalities": modalities, "classes": len(names), "class_names": names, "without": without}
    model = Factorized(**{**asdict(config.model), **given, "per_position": bool(data.sequence)})
    model.processors |= {**processors, "label": LabelProcessor(names)}
    return model


def train(config: Config, run: Path, resume: bool, without: str = "") -> None:
    """Train the model, or an ablation of it, on the card's training split."""
    torch.manual_seed(config.seed)
    model = build(config, without)
    folder = stage_folder(RECIPE, run, f"without_{without}" if without else "factorized")
    fit(
        model,
        Items(model, config.data, "train", config.data.limit),
        replace(config.fit, seed=config.seed),
        folder,
        resume=resume,
    )


def accuracy(model: Factorized, data: Items, edit: Callable[[Batch], Batch] = lambda batch: batch) -> float:
    """The share of labels that are the likeliest by what ``edit`` leaves of the modalities; where nothing is left, none is."""
    right = counted = 0
    for batch in data.batches():
        there = batch.masks.get("label", batch.present["label"])  # (b,) or (b, t)
        counted += there.sum().item()
        left = edit(batch.without("label"))
        known = torch.stack([*left.present.values()]).any(0) if left.values else torch.zeros_like(there)  # (b,)
        if known.any():
            found = model.predict(left.items(known)).mode
            right += ((found == batch["label"][known]) & there[known]).sum().item()
    return right / counted


def zero_filled(batch: Batch, name: str, text: bool) -> Batch:
    """The batch with zeros for modality ``name``, as if they were measured; of a text not even the length is kept."""
    if name not in batch:  # nobody has it
        return batch
    masks = {**batch.masks, name: torch.ones_like(batch.masks[name])} if text else batch.masks
    return Batch({**batch.values, name: torch.zeros_like(batch[name])}, masks, batch.present)


def swaps(model: Factorized, data: Items, name: str, judge: Classifier) -> dict[str, float]:
    """What a judge reads in pictures made with one factor of the next item, in the split's order.

    With its private factor: how many keep their own label; with its label factor, another one's: how many take that.
    """
    kept, taken = [], []
    for batch in data.batches():
        if name not in batch:
            continue
        batch = batch.items(batch.present[name])
        given, own = batch.without("label"), batch["label"]
        theirs = own.roll(-1, 0)
        kept.append(read_by(judge, model, name, model.generate(given, name, swap="private")) == own)
        taken.append((read_by(judge, model, name, model.generate(given, name, swap="label")) == theirs)[own != theirs])
    figures = {"swap_private_keeps": torch.cat(kept), "swap_shared_changes": torch.cat(taken)}
    return {key: value.float().mean().item() for key, value in figures.items()}


def read_by(judge: Classifier, model: Factorized, name: str, pictures: Tensor) -> Tensor:
    """The labels a judge reads in pictures the model made, as the model counts them."""
    own = judge.processors[judge.modality]
    values = torch.stack([own(model.processors[name].decode(picture)) for picture in pictures]).to(pictures.device)
    place = {label: i for i, label in enumerate(model.class_names)} | {str(i): i for i in range(len(model.class_names))}
    numbers = torch.tensor([place.get(label, -1) for label in judge.class_names], device=pictures.device)
    return numbers[judge.predict(Batch({judge.modality: values})).mode]


def swap_grid(model: Factorized, data: Items, name: str, items: int = 8) -> Image.Image:
    """Pictures with the label factor of the item above them and the private factor of the item at their left."""
    batch = next(batch for batch in data.batches() if name in batch)
    batch = batch.items(batch.present[name]).items(slice(0, items))
    factors, n = model.encode(batch.without("label")).mean, batch.size
    factors = {"label": factors["label"].repeat(n, 1), name: factors[name].repeat_interleave(n, 0)}  # (n n, k)
    made = model.decode(factors, name).mean
    decode, side = model.processors[name].decode, 48
    sheet = Image.new("RGB", (side * (n + 1), side * (n + 1)), "#5c6773")
    cells = [((i + 1, 0), batch[name][i]) for i in range(n)] + [((0, i + 1), batch[name][i]) for i in range(n)]
    cells += [((i % n + 1, i // n + 1), picture) for i, picture in enumerate(made)]
    for (column, row), picture in cells:
        tile = decode(picture).convert("RGB").resize((side - 2, side - 2), Image.Resampling.NEAREST)
        sheet.paste(tile, (column * side, row * side))
    return sheet


@torch.no_grad()
def evaluate(run: Path, config: Config, split: str) -> dict[str, float]:
    """Accuracy of the model and its ablations, and of the model with each modality missing, inferred or zero."""
    device = processes.device()
    model = load(run).to(device)
    data = Items(model, config.data, split)
    figures = {"accuracy": accuracy(model, data)}
    for part in ("generative", "factorization"):
        name = f"without_{part}"
        figures[f"accuracy_{name}"] = accuracy(load(stage_folder(RECIPE, run, name)).to(device), data)
    inferred = [accuracy(model, data, lambda batch, name=name: batch.without(name)) for name in model.inputs]
    zeros = [
        accuracy(model, data, partial(zero_filled, name=name, text=model.modalities[name].kind == "text"))
        for name in model.inputs
    ]
    ratio = missing_loss_ratio(figures["accuracy"], zeros, inferred)
    if math.isfinite(ratio):  # JSON has no word for a loss too small to divide by
        figures["missing_loss_ratio"] = ratio
    for name, by_inference, by_zeros in zip(model.inputs, inferred, zeros):
        figures |= {f"accuracy_no_{name}_inferred": by_inference, f"accuracy_no_{name}_zeros": by_zeros}
    if config.judge:
        judged = build_config(judge_recipe().Config, config.judge)
        with torch.enable_grad():  # it may have to be trained first
            judge, figures["judge_accuracy"] = judge_recipe().judge(judged)
        name = next(name for name, settings in config.data.modalities.items() if settings["column"] == judged.data.input)
        figures |= swaps(model, data, name, judge.to(device))
        figures["judge_disjoint"] = judged.data.split != "train"
        (run / "samples").mkdir(exist_ok=True)
        swap_grid(model, data, name).save(run / "samples" / f"swaps_{split}.png")
    return figures


def report(run: Path, config: Config) -> None:
    """Write ``report.html`` and ``README.md`` from the metrics that evaluations left in ``run``."""
    card = read_card(config.data.card)
    table, details = {}, run_details(run)
    lines = [f"# Label and private factors of {card.name}", "", "```sh", details["command"], "```", ""]
    for split, figures in read_json(run / "metrics.json").items():
        systems = {"factorized": {k: v for k, v in figures.items() if not k.startswith("accuracy_")}}
        for key, value in figures.items():
            if key.startswith("accuracy_"):
                systems[key.removeprefix("accuracy_").replace("_", " ")] = {"accuracy": value}
        table[split] = systems
        lines += [f"## {split}", "", "| figure | |", "| --- | ---: |", *(f"| {k} | {v:.3f} |" for k, v in figures.items()), ""]
        if (run / "samples" / f"swaps_{split}.png").is_file():
            lines += [f"![Columns: whose label factor; rows: whose private factor](samples/swaps_{split}.png)", ""]
    (run / "README.md").write_text("\n".join(lines), encoding="utf-8")
    summary = (
        "without generative: the same network without private factors and reconstruction. without factorization: one factor "
        "for everything. no NAME: that modality missing, its codes inferred from the others, or zeros in its place."
    )
    write_report(run / "report.html", f"Factors of {card.name}", table, [], details, summary)


RECIPE = Recipe(
    name="factorized",
    config=Config,
    stages={
        "factorized": train,
        "without_generative": partial(train, without="generative"),
        "without_factorization": partial(train, without="factorization"),
    },
    main="factorized",
    evaluate=evaluate,
    splits=("test", "validation"),
    report=report,
    check=check,
    nested=nested,
    above={"accuracy": ("accuracy_without_generative", "accuracy_without_factorization")},
)

if __name__ == "__main__":
    sys.exit(main(["train", "factorized", *sys.argv[1:]]))
