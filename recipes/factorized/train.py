"""MFM: a label factor shared by all modalities and a private factor for each, with missing modalities inferred.

mmgen train factorized                                  # sentiment of utterances, read under $MMGEN_DATA/cmu_mosi_utterances
mmgen train factorized --config digits                  # digits as picture, word and speech; factors swapped
accelerate launch recipes/factorized/train.py --config recipes/factorized/gpu.yaml
"""

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from mmgen.cli import main
from mmgen.data.batch import Batch
from mmgen.data.cards import check_column, check_columns, class_names, read_card
from mmgen.data.label import LabelProcessor
from mmgen.data.processors import Processor
from mmgen.data.rows import DataSet, Rows, check_several_classes, open_rows
from mmgen.errors import Mistakes, UserError
from mmgen.judging.classifier import Judge, JudgeConfig, judge_config, trained_judge
from mmgen.metrics.robustness import missing_loss_ratio
from mmgen.modalities.kinds import COLUMNS
from mmgen.models.factorized import Factorized
from mmgen.training.config import FitConfig, check_decided, section, section_of
from mmgen.training.data_sections import Modalities
from mmgen.training.recipe import Recipe, RecipeConfig, stage
from mmgen.training.result import Result
from mmgen.training.run import Run

AT_ONCE = 250  # items evaluated together
GIVEN = ("classes", "class_names", "per_position", "without")  # model arguments determined by data and stages


@dataclass
class Data(Modalities):
    """A data card with several modalities and a label.

    Args:
        sequence: column that groups rows to sequences, such as the utterances of a video: an item is then a sequence, with a
            label per row; empty: an item is a row.
    """

    sequence: str = ""

    def check(self, path: str, errors: Mistakes) -> None:
        """Check the columns of modalities, labels and sequences."""
        card = read_card(self.card)
        with errors:
            self.label = check_column(card, f"{path}.label", self.label, "label")
            check_several_classes(card.name, self.label, class_names(card, self.label))
        if self.sequence:
            check_columns(self, path, errors, {"sequence": ["id", "group"]})
        super().check(path, errors)

    def types(self, settings: Mapping[str, Any]) -> Sequence[str]:
        """The supported column types: in a sequence only vectors, and texts encoded as vectors."""
        return ("vector", *(["text"] if "language_model" in settings else [])) if self.sequence else COLUMNS

    def rows(self, split: str, limit: int = 0) -> Rows:
        """The rows of a split that have a label.

        Raises:
            UserError: an unknown label; a row without any modality; a missing value of a sequence, or of a text for a
                language model.
        """
        needs = [own["column"] for own in self.modalities.values() if self.sequence or "language_model" in own]
        lacking = [column for column in self.columns_of() if column not in needs]
        (needs if self.sequence else lacking).append(self.label)
        return open_rows(self.card, split, needs, lacking, limit).with_any(*self.columns_of()).having(self.label)

    def items(self, processors: Mapping[str, Processor], split: str, limit: int = 0) -> DataSet:
        """The items of a split with a label: rows, which may lack modalities, or sequences of rows."""
        rows = self.rows(split, limit)
        columns = {name: self.column(name, rows) for name in self.modalities}
        found = DataSet(rows, {**columns, "label": self.label}, {name: processors[name] for name in columns})
        return found.grouped(self.sequence) if self.sequence else found


@dataclass
class Config(RecipeConfig):
    """The config of the recipe ``factorized``; the ablations use the same values.

    Args:
        model: ``modalities`` holds settings of encoders and decoders, sizes and weights.
        judge: config of the recipe ``judge`` for pictures with swapped factors; empty: no swaps.
    """

    data: Data = section()
    model: section_of(Factorized) = section()
    fit: FitConfig = section()
    judge: dict[str, Any] = field(default_factory=dict)

    def check(self, errors: Mistakes) -> None:
        """Check that settings name modalities of the data, and that the judge reads one of them."""
        card = read_card(self.data.card)
        errors.check_each("model.modalities", self.model.modalities or (), self.data.modalities)
        with errors:
            check_decided("model", self.model, GIVEN, "the data card and the stages set")
        for judge in self.nested().values():
            column = judge.data.input
            kind = card.columns.get(column, {}).get("kind")
            if kind != "image" or column not in [own.get("column") for own in self.data.modalities.values()]:
                fix = "set judge.data.input to a column of pictures"
                raise UserError("judge.data.input", got=column, expected="a picture among the modalities", fix=fix)

    def nested(self) -> dict[str, JudgeConfig]:
        """The config of the judge, by its key."""
        return {"judge": judge_config("judge", self.judge)} if self.judge else {}


def build(config: Config, without: str) -> Factorized:
    """Build the model, or an ablation, for the data of the config."""
    processors, modalities, data = config.data.processors(), {}, config.data
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


@stage()
def factorized(run: Run, config: Config, without: str = "") -> None:
    """Train the model, or an ablation, on the card's training split."""
    model = build(config, without)
    run.fit(model, config.data.items(model.processors, "train", config.data.limit), config.fit)


def accuracy(model: Factorized, data: DataSet, edit: Callable[[Batch], Batch] = lambda batch: batch) -> float:
    """Accuracy from the modalities that ``edit`` leaves; labels without any count as wrong."""
    right = counted = 0
    for batch in data.batches("", AT_ONCE, device=model.step.device):
        there = batch.masks.get("label", batch.present["label"])  # (b,) or (b, t)
        counted += there.sum().item()
        left = edit(batch.without("label"))
        known = torch.stack([*left.present.values()]).any(0) if left.values else torch.zeros_like(there)  # (b,)
        if known.any():
            found = model.predict(left.items(known)).mode
            right += ((found == batch["label"][known]) & there[known]).sum().item()
    return right / counted


def zero_filled(batch: Batch, name: str, text: bool) -> Batch:
    """The batch with zeros as values of modality ``name``; a text has padding of full length."""
    if name not in batch:  # no item has it
        return batch
    masks = {**batch.masks, name: torch.ones_like(batch.masks[name])} if text else batch.masks
    return Batch({**batch.values, name: torch.zeros_like(batch[name])}, masks, batch.present)


def swaps(model: Factorized, data: DataSet, name: str, judge: Judge) -> dict[str, float]:
    """Judged labels of pictures with one factor swapped with that of the next item of the split.

    With the private factor of the next item: the share that keeps its label. With the label factor of an item of another
    label: the share that takes that label.
    """
    kept, taken = [], []
    for batch in data.batches("", AT_ONCE, device=model.step.device):
        if name not in batch:
            continue
        batch = batch.items(batch.present[name])
        given, own = batch.without("label"), batch["label"]
        theirs = own.roll(-1, 0)
        kept.append(labels_read(judge, model, name, model.generate(given, name, swap="private")) == own)
        taken.append((labels_read(judge, model, name, model.generate(given, name, swap="label")) == theirs)[own != theirs])
    figures = {"swap_private_keeps": torch.cat(kept), "swap_shared_changes": torch.cat(taken)}
    return {key: value.float().mean().item() for key, value in figures.items()}


def labels_read(judge: Judge, model: Factorized, name: str, pictures: Tensor) -> Tensor:
    """The labels of pictures by a judge, as class indices of the model."""
    place = {label: i for i, label in enumerate(model.class_names)} | {str(i): i for i in range(len(model.class_names))}
    numbers = torch.tensor([place.get(label, -1) for label in judge.class_names])
    return numbers[judge.reads(model.processors[name], pictures)].to(pictures.device)


def swap_grid(model: Factorized, data: DataSet, name: str, items: int = 8) -> Image.Image:
    """Draw a grid of pictures with the label factor of the top row and the private factor of the left column."""
    batch = next(batch for batch in data.batches("", AT_ONCE, device=model.step.device) if name in batch)
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
def evaluate(run: Run, config: Config, split: str) -> Result:
    """Accuracy of the model and its ablations, and of the model with each modality missing, inferred or zero."""
    model, result = run.load(), Result("factorized")
    data, figures = config.data.items(model.processors, split), result["factorized"]
    figures["accuracy"] = accuracy(model, data)
    for ablation in ABLATIONS:
        result[ablation.name]["accuracy"] = accuracy(run.load(ablation.name), data)
    inferred, zeros = [], []
    for name in model.inputs:
        zero_fill = partial(zero_filled, name=name, text=model.modalities[name].kind == "text")
        inferred.append(accuracy(model, data, lambda batch, name=name: batch.without(name)))
        zeros.append(accuracy(model, data, zero_fill))
        result[f"no_{name}_inferred"]["accuracy"], result[f"no_{name}_zeros"]["accuracy"] = inferred[-1], zeros[-1]
    ratio = missing_loss_ratio(figures["accuracy"], zeros, inferred)
    if math.isfinite(ratio):  # JSON has no infinity or NaN
        figures["missing_loss_ratio"] = ratio
    for judged in config.nested().values():
        with torch.enable_grad():  # it may have to train first
            judge = trained_judge(judged)
        name = next(name for name, own in config.data.modalities.items() if own["column"] == judged.data.input)
        figures |= swaps(model, data, name, judge)
        result.about |= judge.about()
        text = {"columns": "whose label factor", "rows": "whose private factor"}
        result.show(swap_grid(model, data, name), text, wide=True, name="swaps")
    return result


ABLATIONS = [factorized.named(f"without_{part}", without=part) for part in ("generative", "factorization")]
ABOVE = {"accuracy": [f"accuracy_{stage.name}" for stage in ABLATIONS]}
RECIPE = Recipe("factorized", Config, [factorized, *ABLATIONS], evaluate, main="factorized", above=ABOVE)

if __name__ == "__main__":
    sys.exit(main(["train", "factorized", *sys.argv[1:]]))
