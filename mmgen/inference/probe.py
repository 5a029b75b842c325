"""Probes of the representations of trained models on a data card (``mmgen probe``)."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmgen import processes
from mmgen.data.cards import Card, check_column, read_card
from mmgen.data.rows import DataSet, Rows, open_rows, spread
from mmgen.errors import UserError, check_at_least, check_one_of
from mmgen.judging.features import picture_features
from mmgen.judging.probe import Items, code_of, linear_accuracy, nearest_accuracy, r_squared
from mmgen.modalities.image import PACKAGES
from mmgen.modalities.kinds import KINDS
from mmgen.models.base import Model, load
from mmgen.training.data_sections import Modalities
from mmgen.training.run_folder import open_run

HELD = 5  # without a split to choose settings on, every HELD-th item of the training split does


@dataclass(frozen=True)
class Encoder:
    """A trained model and the columns that it encodes.

    Args:
        folder: its run folder, as the user wrote it.
        model: the model.
        data: section ``data`` of the run's config.
        columns: input of the model -> column of the data card.
    """

    folder: Path
    model: Model
    data: Any
    columns: Mapping[str, str]

    @property
    def raw(self) -> dict[str, tuple[int, ...]]:
        """The inputs that are numbers of one shape, without texts, with their shapes."""
        processors = {name: self.model.processors[name] for name in self.columns}
        return {name: tuple(p.shape) for name, p in processors.items() if p.kind in KINDS and not KINDS[p.kind].tokens}

    def items(self, rows: Rows) -> DataSet:
        """The inputs of these rows as tensors."""
        own = self.data if isinstance(self.data, Modalities) else None
        values = {name: own.column(name, rows) if own else rows[column] for name, column in self.columns.items()}
        return DataSet(rows, values, {name: self.model.processors[name] for name in self.columns})


def probe(
    folders: Sequence[Path],
    split: str = "test",
    labels: Sequence[str] = (),
    factors: Sequence[str] = (),
    inputs: Sequence[str] = (),
    features: str = "efficientnet_lite0",
    limit: int = 5000,
) -> dict[str, dict[str, float]]:
    """Measure what can be read from the codes of trained models, beside raw values and a packaged encoder.

    Probes learn from codes of the split ``train``; their penalties are chosen on ``validation``, or where that is missing or
    judged, on a fifth of ``train`` that they do not learn from.

    Args:
        folders: run folders, or their ``stages/NAME``, of models that define `encode`, on one data card.
        split: split to judge on.
        labels: columns of classes to read; none: all of the card.
        factors: columns of numbers to read, vectors or numbered classes; none: the vectors that no model encodes.
        inputs: inputs that the models encode; none: all of each.
        features: backbone with packaged weights, see `mmgen.modalities.image.PACKAGES`; "" for none.
        limit: most items of each split, spread over it; 0 takes all.

    Returns:
        Name of a representation -> its size ``numbers``; ``LABEL_linear`` and ``LABEL_nearest``, accuracies of a linear
        classifier and of the nearest training item; ``FACTOR_r2``. ``majority class`` is the most frequent training label.

    Raises:
        UserError: a model without `encode` or of another data card, an unknown name, or nothing to read.
    """
    check_at_least("--limit", limit, 0)
    if features:
        check_one_of("--features", features, PACKAGES)
    encoders = [opened(folder, inputs) for folder in folders]
    card = read_card(encoders[0].data.card)
    for one in encoders:
        if one.data.card != encoders[0].data.card:
            fix = f"probe it separately from {folders[0]}"
            raise UserError(str(one.folder), got=f"the data card {one.data.card}", expected=encoders[0].data.card, fix=fix)
    columns = list(dict.fromkeys(column for one in encoders for column in one.columns.values()))
    labels, factors = targets(card, columns, labels, factors)
    for name in ("train", split):
        check_one_of("--split" if name == split else f"splits of {card.name}", name, card.splits)
    if split == "train":
        raise UserError("--split", got="train", expected="one that probes do not learn from", fix="use test for example")
    parts = divided(encoders[0].data.card, card, split, columns, [*labels, *factors], limit)
    codes = representations(encoders, parts, features)
    found: dict[str, dict[str, float]] = {name: {"numbers": of[0].shape[1]} for name, of in codes.items()}
    for target in (*labels, *factors):
        values = [column_values(rows, target) for rows in parts]  # (n, f) each, NaN where it is missing
        known = [~np.isnan(value).any(1) for value in values]
        for rows, some in zip(parts, known):
            if not some.any():
                fix = "choose another column or split"
                raise UserError(f"{card.name}: {rows.split}: {target}", got="no value", expected="rows that have it", fix=fix)
        for name, of in codes.items():
            learn, choose, judge = (Items(x[some], value[some]) for x, value, some in zip(of, values, known))
            if target in labels:
                learn, choose, judge = (Items(x, y[:, 0].astype(int)) for x, y in (learn, choose, judge))
                found[name][f"{target}_linear"] = linear_accuracy(learn, choose, judge)
                found[name][f"{target}_nearest"] = nearest_accuracy(learn, judge)
            else:
                found[name][f"{target}_r2"] = r_squared(learn, choose, judge)
        if target in labels:
            majority = np.bincount(learn.target).argmax()
            row = found.setdefault("majority class", {"numbers": 0})
            row |= dict.fromkeys((f"{target}_linear", f"{target}_nearest"), float((judge.target == majority).mean()))
    return found


def opened(folder: Path, inputs: Sequence[str]) -> Encoder:
    """Load the model of a run and find the columns that it encodes.

    Raises:
        UserError: not a run, a recipe without a data card, a model without `encode`, or an input without a column.
    """
    recipe, config = open_run(folder.parents[1] if folder.parent.name == "stages" else folder)
    data: Any = getattr(config, "data", None)
    if not hasattr(data, "card"):
        raise UserError(str(folder), got=f"a run of {recipe.name}", expected="a run on a data card", fix="leave it out")
    model = load(folder)
    if not model.defines("encode"):
        got, fix = f"the model {model.name}", "leave it out: it has no representation"
        raise UserError(str(folder), got=got, expected="a model that defines encode", fix=fix)
    names = [check_one_of(f"--input of {folder}", name, model.encoded) for name in inputs] or list(model.encoded)
    card = read_card(data.card)
    return Encoder(folder, model, data, {name: column_of(data, card, name, folder) for name in names})


def column_of(data: Any, card: Card, name: str, folder: Path) -> str:
    """The column of the card that a model reads as its input ``name``: by the config's section ``data``, or of that name.

    Raises:
        UserError: there is none.
    """
    sections = [value[name] for value in vars(data).values() if isinstance(value, Mapping) and name in value]
    named = [own.get("column") if isinstance(own, Mapping) else own for own in sections]
    named += [getattr(data, name, None), name, getattr(data, "input", None)]
    found = next((column for column in named if isinstance(column, str) and column in card.columns), None)
    if found is None:
        got, fix = f"the columns {', '.join(card.columns)}", "name other inputs by --input"
        raise UserError(f"input {name} of {folder}", got=got, expected="a column with its values", fix=fix)
    return found


def targets(card: Card, read: Sequence[str], labels: Sequence[str], factors: Sequence[str]) -> tuple[list[str], list[str]]:
    """The columns of labels and of factors, those given or all of the card.

    Raises:
        UserError: a column is unknown or of another kind, or there is none.
    """
    found = [check_column(card, "--label", name, "label") for name in labels]
    numbers = [check_column(card, "--factor", name, "vector", "label") for name in factors]
    if not (found or numbers):
        kinds = {name: spec["kind"] for name, spec in card.columns.items()}
        found = [name for name, kind in kinds.items() if kind == "label"]
        numbers = [name for name, kind in kinds.items() if kind == "vector" and name not in read]
    if not (found or numbers):
        got, fix = f"the columns {', '.join(card.columns)}", "add a column label to the data and its card"
        raise UserError(f"data card {card.name}", got=got, expected="a column of labels or of numbers to read", fix=fix)
    return found, numbers


def divided(name: str, card: Card, split: str, needs: Sequence[str], reads: Sequence[str], limit: int) -> list[Rows]:
    """The rows to learn from, to choose settings on, and to judge on, which have all inputs."""

    def rows(of: str) -> Rows:
        opened = open_rows(name, of, [], [*needs, *reads]).having(*needs)
        return opened.select(spread(len(opened), limit)) if limit else opened

    learn = rows("train")
    if "validation" in card.splits and split != "validation":
        return [learn, rows("validation"), rows(split)]
    held = [i % HELD == HELD - 1 for i in range(len(learn))]
    own, others = ([i for i, is_held in enumerate(held) if is_held == which] for which in (False, True))
    return [learn.select(own), learn.select(others), rows(split)]


def column_values(rows: Rows, name: str) -> np.ndarray:
    """The values of a column of labels or vectors, (n, f) float64, NaN where they are missing."""
    values = [[value] if isinstance(value, int) else value for value in rows[name][:]]
    size = next((len(value) for value in values if value is not None), 1)
    return np.array([[math.nan] * size if value is None else value for value in values], dtype=float).reshape(-1, size)


def representations(encoders: Sequence[Encoder], parts: Sequence[Rows], features: str) -> dict[str, list[np.ndarray]]:
    """Name -> the codes (n, d) of each part: of every model, of raw values, and of the packaged encoder."""
    found: dict[str, list[np.ndarray]] = {}
    beside: dict[str, list[np.ndarray]] = {}
    for one in encoders:
        found[str(one.folder)] = [encoded(one, rows) for rows in parts]
        for name, shape in one.raw.items():
            size, processor = "x".join(map(str, shape)), one.model.processors[name]
            if f"raw {name} {size}" in beside:
                continue
            values = [list(one.items(rows).keep(name).all(name)) for rows in parts]
            beside[f"raw {name} {size}"] = [torch.stack(some).flatten(1).double().numpy() for some in values]
            if processor.kind == "image" and features:
                beside[f"{features} {size}"] = [picture_features(features, processor, x).double().numpy() for x in values]
    return found | beside


@torch.no_grad()
def encoded(one: Encoder, rows: Rows) -> np.ndarray:
    """The codes of rows, (n, d)."""
    device = processes.device()
    model = one.model.to(device)
    batches = one.items(rows).batches(f"{one.folder}: {rows.split}", device=device)
    codes: list[Tensor] = [code_of(model.encode(batch)).cpu() for batch in batches]
    return torch.cat(codes).double().numpy()
