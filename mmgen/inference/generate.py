"""Generation from raw values to text or files, as ``mmgen generate`` does it."""

import typing
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmgen import processes
from mmgen.data.batch import Batch, collate
from mmgen.data.processors import Processor
from mmgen.errors import UserError, check_at_least, check_one_of
from mmgen.modalities.kinds import KINDS
from mmgen.models.aligned import Aligned
from mmgen.models.base import Model, load
from mmgen.storage import saved
from mmgen.training.config import parse_overrides
from mmgen.training.report import picture_grid

AT_ONCE = 16  # items that the model reads together


def generate(model: Model, given: dict[str, list[str]], to: str, n: int = 1, seed: int = 0,
             options: list[str] = (), out: Path | None = None, part: str | None = None) -> list[list[Any]]:  # fmt: skip
    """Make ``n`` results of modality ``to`` for every item; from nothing, of the prior, with a model that has one.

    Args:
        model: a trained model with its processors.
        given: modality -> one raw value an item: a file, or a sentence.
        to: the modality to make; several joined by commas with a model that makes them together.
        n: results an item.
        seed: of the sampling.
        options: ``key=value`` options that the model's ``generate`` takes, as in ``["beams=3"]``.
        out: folder for results that are files; of several pictures it gets a ``grid.png`` too, a row for each item.
        part: a file with the upper part of a picture, which the model completes for every item.

    Returns:
        For each item its results: text as it is, everything else as the path of a file written to ``out``; of several
        modalities a dict of these by name.

    Raises:
        UserError: a modality or an option the model does not know, or a number of items that differs.
    """
    check_at_least("--n", n, 1)
    to = ",".join(name.strip() for name in to.split(","))
    counts = {name: len(values) for name, values in given.items()}
    if len(set(counts.values())) > 1:
        fix = "repeat each option as often as the others"
        raise UserError("inputs", got=counts, expected="as many of each modality", fix=fix)
    if part is not None:
        if not model.defines("upper_part"):
            raise UserError("--from", got=model.name, expected="a model that completes pictures", fix="leave it out")
        if to != "image":
            raise UserError("--from", got=f"--to {to}", expected="--to image", fix="leave --from out")
        if "image" in given:
            raise UserError("--from", got="--image too", expected="one of the two", fix="leave --image out")
        counts["image"] = max(counts.values(), default=1)
    if not counts and not model.from_prior:
        fix = f"add --{model.inputs[0]} VALUE"
        raise UserError("inputs", got="none", expected="something to start from", fix=fix)
    for name in given:
        check_one_of("input modality", name, model.inputs)
    known = model.generation_options()
    values = parse_overrides(list(options))
    for name in values:
        check_one_of(f"option of {model.name}", name, known)
    rows: list[dict[str, torch.Tensor]] = [{} for _ in range(max(counts.values(), default=0))]
    for name, items in given.items():
        for row, value in zip(rows, items):
            row[name] = model.processors[name](value)
    if part is not None:
        upper = model.upper_part(part)
        rows = [{**row, "image": upper} for row in rows]
    if "rerank" in values:
        values["rerank"] = scorer(model, str(values["rerank"]), to)
    check_options(model, values)
    for name in to.split(","):
        if name in model.processors and _suffix(kind := model.processors[name].kind):
            _make_folder(out, kind)
    device = processes.device()
    if rows:
        size = len(rows) if values.keys() & model.across_items else AT_ONCE
        batches = [collate(rows[i : i + size], model.sequences) for i in range(0, len(rows), size)]
    else:
        batches = [Batch.nothing(1)]
    model, generator = model.to(device), torch.Generator().manual_seed(seed)
    parts = [model.generate(batch.to(device), to, n=n, generator=generator, **values) for batch in batches]
    if isinstance(parts[0], dict):
        made = {name: [v for some in parts for v in some[name]] for name in parts[0]}
        each = [[_result(model, name, v, f"{i:04d}_{name}", out) for i, v in enumerate(made[name])] for name in made]
        results = [dict(zip(made, together)) for together in zip(*each)]
    else:
        made = [value for some in parts for value in some]
        results = [_result(model, to, value, f"{i:04d}", out) for i, value in enumerate(made)]
        if len(made) > 1 and out is not None and model.processors[to].kind == "image":
            pictures = [model.processors[to].decode(value) for value in made]
            saved(out / "grid.png", picture_grid([pictures[i : i + n] for i in range(0, len(made), n)]).save)
    return [results[i : i + n] for i in range(0, len(results), n)]


def scorer(model: Model, run: str, to: str) -> Callable[[Tensor, Batch], Tensor]:
    """The similarity of pictures to their texts, by which a model that makes pictures of texts reranks them.

    Args:
        model: a `mmgen.models.text_to_image.TextToImage`.
        run: of the recipe ``aligned``.
        to: the modality to make.

    Raises:
        UserError: a text is to be made, or the run is another one.
    """
    if to != "image":
        raise UserError("rerank", got=f"{run} with a {to} to make", expected="a picture to make", fix="leave it out")
    aligned = load(run)
    if not isinstance(aligned, Aligned) or aligned.modality != "image":
        raise UserError("rerank", got=aligned.name, expected="a run of the recipe aligned", fix="train one")
    return partial(model.similarity, aligned)


def check_options(model: Model, values: dict[str, Any]) -> None:
    """Fail unless each option is of the type that the model's ``generate`` says.

    Raises:
        UserError: one is not.
    """
    check_types(values, typing.get_type_hints(type(model).generate), f"{type(model).__name__}.generate")


def check_types(values: dict[str, Any], types: dict[str, type], where: str) -> None:
    """Fail unless each value is of the type under its name, which the documentation of ``where`` tells.

    Raises:
        UserError: one is not.
    """
    for name, value in values.items():
        if callable(value):
            continue
        accepted = (int, float) if types[name] is float else types[name]
        if not isinstance(value, accepted) or isinstance(value, bool) != (types[name] is bool):
            fix = f"see the documentation of {where}"
            raise UserError(f"option {name}", got=repr(value), expected=types[name].__name__, fix=fix)


def _result(model: Model, to: str, value: Any, stem: str, out: Path | None) -> str:
    return value if isinstance(value, str) else _write(model.processors[to].decode(value), model.processors[to], stem, out)


def _write(value: Any, processor: Processor, stem: str, out: Path | None) -> str:
    suffix = _suffix(processor.kind)
    return saved(out / f"{stem}.{suffix}", lambda place: processor.write(value, place)) if suffix else str(value)


def _suffix(kind: str) -> str:
    """The ending of the files of a kind; "" of one that is printed."""
    return KINDS[kind].suffix if kind in KINDS else ""


def _make_folder(out: Path | None, kind: str) -> None:
    """Before anything is made that would have no place."""
    if out is None:
        raise UserError("--out", got="none", expected=f"a folder for the {kind} files", fix="add --out DIR")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError("--out", got=str(error), expected="a folder that can be written", fix="choose another") from error
