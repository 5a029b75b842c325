"""Generation from raw values, for `mmgen.generate` and ``mmgen generate``."""

import typing
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from mmgen import processes
from mmgen.data.batch import Batch, collate
from mmgen.errors import UserError, check_at_least, check_one_of
from mmgen.models.aligned import Aligned
from mmgen.models.base import Model, load

AT_ONCE = 16  # items that the model reads together


def generate(
    model: Model, given: Mapping[str, Any], to: str, n: int = 1, seed: int = 0, part: Any = None, **options: Any
) -> list[list[Any]]:
    """Generate ``n`` results of modality ``to`` for every item; without inputs, from the prior, if the model has one.

    Args:
        model: a trained model with its processors.
        given: modality -> the raw value of one item, or a list with one of each item: a path, a picture, a sentence.
        to: the modality to generate; several joined by commas with a model that generates them together.
        n: results an item.
        seed: of the sampling.
        part: the upper part of a picture, which the model completes for every item.
        options: keyword arguments of the model's ``generate``, such as ``beams=3``.

    Returns:
        For each item its results, as the modality's processor decodes them: strings, PIL pictures, waveforms (t,), lists of
        numbers; of several modalities a dict of these by name.

    Raises:
        UserError: a modality or an option the model does not know, or a number of items that differs.

    >>> from mmgen.data.label import LabelProcessor
    >>> from mmgen.data.vector import VectorProcessor
    >>> from mmgen.models.classifier import Classifier
    >>> model = Classifier("vector", "vector", [2], classes=2, encoder={"hidden": [], "dim": 4})
    >>> model.processors |= {"vector": VectorProcessor([0.0] * 2, [1.0] * 2), "label": LabelProcessor(["red", "green"])}
    >>> made = generate(model, {"vector": ["0.5, 1", "2, 3"]}, "label", n=3)
    >>> [len(results) for results in made], {*made[0], *made[1]} <= {"red", "green"}
    ([3, 3], True)
    """
    check_at_least("--n", n, 1)
    to = ",".join(name.strip() for name in to.split(","))
    items = {name: values if _are_several(values) else [values] for name, values in given.items()}
    counts = {name: len(values) for name, values in items.items()}
    if len(set(counts.values())) > 1:
        fix = "repeat each option as often as the others"
        raise UserError("inputs", got=counts, expected="equally many of each modality", fix=fix)
    if part is not None:
        if not model.defines("upper_part"):
            raise UserError("--from", got=model.name, expected="a model that completes pictures", fix="leave it out")
        if to != "image":
            raise UserError("--from", got=f"--to {to}", expected="--to image", fix="leave --from out")
        if "image" in given:
            raise UserError("--from", got="--image too", expected="one of the two", fix="leave --image out")
        counts["image"] = max(counts.values(), default=1)
    if not counts and not model.from_prior:
        fix = f"add --{model.inputs[0]} VALUE" if model.inputs else "choose another model"
        raise UserError("inputs", got="none", expected="something to start from", fix=fix)
    for name in given:
        check_one_of("input modality", name, model.inputs)
    options = checked_options(model, options, to)
    rows: list[dict[str, torch.Tensor]] = [{} for _ in range(max(counts.values(), default=0))]
    for name, values in items.items():
        for row, value in zip(rows, values):
            row[name] = model.processors[name](value)
    if part is not None:
        upper = model.upper_part(part)
        rows = [{**row, "image": upper} for row in rows]
    device = processes.device()
    if rows:
        size = len(rows) if options.keys() & model.across_items else AT_ONCE
        batches = [collate(rows[i : i + size], model.sequences) for i in range(0, len(rows), size)]
    else:
        batches = [Batch.nothing(1)]
    model, generator = model.to(device), torch.Generator().manual_seed(seed)
    parts = [model.generate(batch.to(device), to, n=n, generator=generator, **options) for batch in batches]
    if isinstance(parts[0], dict):
        made = {name: [_decoded(model, name, value) for some in parts for value in some[name]] for name in parts[0]}
        results = [dict(zip(made, together)) for together in zip(*made.values())]
    else:
        results = [_decoded(model, to, value) for some in parts for value in some]
    return [results[i : i + n] for i in range(0, len(results), n)]


def scorer(model: Model, run: str, to: str) -> Callable[[Tensor, Batch], Tensor]:
    """The similarity of pictures to their texts in a shared space, by which generated pictures are reranked.

    Args:
        model: a `mmgen.models.text_to_image.TextToImage`.
        run: a run of the recipe ``aligned``.
        to: the modality to generate.

    Raises:
        UserError: ``to`` is not a picture, or the run is of another recipe.
    """
    if to != "image":
        raise UserError("rerank", got=f"{run} with --to {to}", expected="an image as --to", fix="leave it out")
    aligned = load(run)
    if not isinstance(aligned, Aligned) or aligned.modality != "image":
        raise UserError("rerank", got=aligned.name, expected="a run of the recipe aligned", fix="train one")
    return partial(model.similarity, aligned)


def checked_options(model: Model, options: Mapping[str, Any], to: str) -> dict[str, Any]:
    """Check the options of the model's ``generate``; ``rerank`` may name a run, replaced by its `scorer`.

    Raises:
        UserError: an option is unknown or of another type.
    """
    for name in options:
        check_one_of(f"option of {model.name}", name, model.generation_options())
    values = dict(options)
    if isinstance(values.get("rerank"), str):
        values["rerank"] = scorer(model, values["rerank"], to)
    check_types(values, typing.get_type_hints(type(model).generate), f"{type(model).__name__}.generate")
    return values


def check_types(values: Mapping[str, Any], types: Mapping[str, type], where: str) -> None:
    """Fail unless each value is of the type under its name; ``where`` is documented for the fix.

    Raises:
        UserError: one is not.
    """
    for name, value in values.items():
        if callable(value):
            continue
        accepted = (int, float) if types[name] is float else types[name]
        if not isinstance(value, accepted) or isinstance(value, bool) != (types[name] is bool):
            fix = f"see the documentation of {where}"
            expected = getattr(types[name], "__name__", str(types[name]))  # a union has no name
            raise UserError(f"option {name}", got=repr(value), expected=expected, fix=fix)


def _decoded(model: Model, to: str, value: Any) -> Any:
    return value if isinstance(value, str) else model.processors[to].decode(value)


def _are_several(values: Any) -> bool:
    """True for a list of values; a list of numbers is one vector."""
    return isinstance(values, list | tuple) and not (values and all(isinstance(value, int | float) for value in values))
