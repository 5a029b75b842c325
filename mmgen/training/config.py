"""Configs are values: a dataclass a recipe, a YAML file over it, ``key.sub=value`` over that."""

import dataclasses
import functools
import inspect
import math
import re
import types
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from jsonargparse import ArgumentError, ArgumentParser

from mmgen import processes
from mmgen.errors import UserError, UserErrors, nearest

Config = TypeVar("Config")
UNIONS = (typing.Union, types.UnionType)
WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", type(None): "null"}
EXPONENT = re.compile(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+")


@dataclasses.dataclass
class FitConfig:
    """How `mmgen.training.loop.fit` trains; everything is counted in optimiser steps.

    Args:
        steps: optimiser steps in all.
        batch_size: items a process reads at once; one step sees batch_size x accumulation x processes items.
        accumulation: batches whose gradients are added before a step.
        learning_rate: peak learning rate of AdamW.
        weight_decay: AdamW's decoupled weight decay.
        betas: AdamW's decay rates of the two moments.
        warmup: steps over which the learning rate rises linearly to its peak.
        schedule: what follows the warm-up: ``cosine`` and ``linear`` fall to zero at ``steps``.
        clip: largest gradient norm; 0 leaves gradients as they are.
        ema: decay of the exponential moving average of the weights, which is what is saved and used; 0 keeps none.
        precision: arithmetic of the forward pass; weights and optimiser state stay in fp32.
        compile: torch.compile the model.
        seed: of the order of the data, dropout and sampling; a recipe sets it to its own ``seed``.
        workers: processes that load data; 0 loads in this one.
        processes: processes that must be running, checked at start; 0 takes what the launcher started.
        log_every: steps between lines of ``metrics.jsonl``.
        sample_every: steps between samples; 0 makes none.
        checkpoint_every: steps between checkpoints; the last step always makes one.
        keep: newest checkpoints that stay on disk.
        tracker: where accelerate sends figures beside ``metrics.jsonl``.
    """

    steps: int = 1000
    batch_size: int = 32
    accumulation: int = 1
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.95)
    warmup: int = 20
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    clip: float = 1.0
    ema: float = 0.0
    precision: Literal["no", "bf16", "fp16"] = "no"
    compile: bool = False
    seed: int = 0
    workers: int = 0
    processes: int = 0
    log_every: int = 10
    sample_every: int = 0
    checkpoint_every: int = 200
    keep: int = 2
    tracker: Literal["tensorboard", "wandb", "none"] = "tensorboard"

    def __post_init__(self) -> None:
        errors = [error for name, low in _LEAST.items() if (error := _out_of_range(name, getattr(self, name), low))]
        if 1 <= self.ema < math.inf:
            errors.append(UserError("ema", got=self.ema, expected="a decay below 1", fix="use 0.999 for example"))
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):  # a NaN fails too
            expected, fix = "two decay rates, each at least 0 and below 1", "use [0.9, 0.95] for example"
            errors.append(UserError("betas", got=repr(list(self.betas)), expected=expected, fix=fix))
        if not 0 <= self.seed < 2**31:
            errors.append(UserError("seed", got=self.seed, expected="0 to 2147483647", fix="use 0 for example"))
        if errors:
            raise errors[0] if len(errors) == 1 else UserErrors(errors)


_LEAST = {"steps": 1, "batch_size": 1, "accumulation": 1, "learning_rate": 0, "weight_decay": 0, "warmup": 0, "clip": 0,
          "ema": 0, "workers": 0, "processes": 0, "log_every": 1, "sample_every": 0, "checkpoint_every": 1,
          "keep": 1}  # fmt: skip


def _out_of_range(name: str, value: float, low: float) -> UserError | None:
    if not low <= value < math.inf:  # a NaN fails too
        return UserError(name, got=value, expected=f"a finite number >= {low}", fix=f"use {low} or more")
    return None


def check_machine(config: Any, key: str = "") -> None:
    """Fail, before any stage, unless this machine can train by every `FitConfig` of a config.

    Args:
        config: a recipe's config, or a section of it.
        key: of the config that holds it, for the messages; empty: none.

    Raises:
        UserErrors: each precision that the device has not, each tracker that is not installed and each wrong number of
            processes, by its key.
    """
    from accelerate.utils import is_bf16_available, is_tensorboard_available, is_wandb_available

    from mmgen.modalities.precision import warn_of_emulated_bfloat16  # here: it imports torch

    kind, running = processes.device().type, processes.join().num_processes
    precisions = {"no": True, "fp16": kind not in ("cpu", "mps"), "bf16": kind == "cpu" or is_bf16_available()}
    trackers = {"none": True, "tensorboard": is_tensorboard_available(), "wandb": is_wandb_available()}
    errors = []
    for path, fit in _fits(config, f"{key}." if key else ""):
        if not precisions[fit.precision]:
            got, other = f"{fit.precision} on a {kind}", next(name for name in ("bf16", "no") if precisions[name])
            expected, fix = "a precision that the device computes in", f"set {path}.precision={other}"
            errors.append(UserError(f"{path}.precision", got=got, expected=expected, fix=fix))
        if fit.precision == "bf16":
            warn_of_emulated_bfloat16("precision=no")  # the same words, so once for all stages
        if not trackers[fit.tracker]:
            fix = f"pip install {fit.tracker}, or set {path}.tracker=none"
            errors.append(UserError(f"{path}.tracker", got=fit.tracker, expected="an installed package", fix=fix))
        try:
            processes.check_processes(f"{path}.processes", fit.processes, running)
        except UserError as error:
            errors.append(error)
    if errors:
        raise errors[0] if len(errors) == 1 else UserErrors(errors)


def _fits(config: Any, path: str = "") -> Iterator[tuple[str, FitConfig]]:
    """The sections of a config that are a `FitConfig`, each with its path."""
    for field in dataclasses.fields(config):
        value, name = getattr(config, field.name), f"{path}{field.name}"
        if isinstance(value, FitConfig):
            yield name, value
        elif dataclasses.is_dataclass(value):
            yield from _fits(value, f"{name}.")


@functools.cache
def section_of(cls: type, *without: str) -> type:
    """A dataclass of the constructor arguments of a model, so that they are written once; always the same one.

    Args:
        cls: the model's class.
        without: arguments that the data settle.

    >>> from mmgen.training.config import section_of
    >>> class Model:
    ...     def __init__(self, width: int = 8) -> None: ...
    >>> section_of(Model)()
    ModelConfig(width=8)
    """
    hints = typing.get_type_hints(cls.__init__)
    fields = [
        (name, hints[name], dataclasses.field(default=parameter.default))
        for name, parameter in inspect.signature(cls.__init__).parameters.items()
        if name != "self" and name not in without
    ]
    return dataclasses.make_dataclass(f"{cls.__name__}Config", fields)


def read_yaml(file: Path) -> dict[str, Any]:
    """The mapping in a YAML file; an empty file is an empty mapping.

    Raises:
        UserError: the file cannot be read or holds something else.
    """
    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(str(file), got=str(error), expected="a YAML file", fix="correct the file or its name") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UserError(str(file), got=values, expected="a mapping of keys to values", fix="write lines `key: value`")
    return values


def parse_overrides(arguments: list[str], cls: type | None = None) -> dict[str, Any]:
    """Turn ``["fit.steps=5", "fit.ema=0.9"]`` into a nested mapping, values read as YAML.

    Args:
        arguments: ``key.sub=value`` each.
        cls: the dataclass that they are for; the values of its text settings are taken as they are written, except quoted
            ones and ``null``.

    Raises:
        UserError: an argument is not of the form ``key=value``.

    >>> parse_overrides(["fit.steps=5", "data.card=mnist"])
    {'fit': {'steps': 5}, 'data': {'card': 'mnist'}}
    """
    values: dict[str, Any] = {}
    for argument in arguments:
        key, equals, text = argument.partition("=")
        if not equals or not key:
            raise UserError("argument", got=argument, expected="key.sub=value", fix="write for example fit.steps=100")
        *parents, last = key.split(".")
        try:
            value = _with_exponents(yaml.safe_load(text))
        except yaml.YAMLError:
            value = text
        quoted = isinstance(value, str) and text[0] in ("'", '"')
        if text not in ("", "null", "~") and not quoted and _is_text(cls, [*parents, last]):
            value = text
        place = values
        for parent in parents:
            place = place.setdefault(parent, {})
            if not isinstance(place, dict):
                fix = "give the section or its keys, not both"
                raise UserError(key, got=argument, expected="one value a key", fix=fix)
        place[last] = value
    return values


def _with_exponents(value: Any) -> Any:
    """Numbers such as 1e-3 as floats, also in lists and mappings: YAML takes them for texts where they have no point."""
    if isinstance(value, dict):
        return {key: _with_exponents(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_with_exponents(item) for item in value]
    return float(value) if isinstance(value, str) and EXPONENT.fullmatch(value) else value


def _is_text(kind: Any, keys: Sequence[str]) -> bool:
    """True if the setting at ``keys`` of a dataclass is a text, one of several texts, or a text or null."""
    for key in keys:
        if dataclasses.is_dataclass(kind):
            kind = typing.get_type_hints(kind).get(key)
        else:
            kind = typing.get_args(kind)[1] if typing.get_origin(kind) is dict else None
    kinds = typing.get_args(kind) or (kind,)
    if typing.get_origin(kind) is Literal:
        return all(isinstance(choice, str) for choice in kinds)
    return str in kinds and set(kinds) <= {str, type(None)} and typing.get_origin(kind) in (None, *UNIONS)


def build_config(cls: type[Config], *layers: dict[str, Any]) -> Config:
    """Lay mappings over the defaults of a dataclass, the last on top.

    Args:
        cls: the recipe's dataclass; nested dataclasses are sections.
        layers: nested mappings, as from `read_yaml` and `parse_overrides`.

    Raises:
        UserErrors: every unknown key (naming the nearest) and every value of a wrong type or out of range, all at once.

    >>> build_config(FitConfig, {"steps": 5}, {"steps": 7}).steps
    7
    """
    merged: dict[str, Any] = {}
    for layer in layers:
        _merge(merged, layer)
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(cls, None)
    errors: list[UserError] = []
    good = _check(cls, merged, "", errors)
    made = _instantiate(cls, parser.parse_object(good).as_dict(), "", errors)
    if errors:
        raise errors[0] if len(errors) == 1 else UserErrors(errors)
    return made


def to_dict(config: Any) -> dict[str, Any]:
    """The config as plain values, ready for YAML."""
    return _plain(dataclasses.asdict(config))


def write_config(config: Any, file: Path) -> None:
    """Write the resolved config as YAML, keys in the order of the dataclass."""
    file.write_text(yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True), encoding="utf-8")


def _merge(under: dict[str, Any], over: dict[str, Any]) -> None:
    for key, value in over.items():
        if value is None and isinstance(under.get(key), dict):  # `aligned=null` takes a mapping out
            del under[key]
        elif isinstance(value, dict) and isinstance(under.get(key), dict):
            _merge(under[key], value)
        else:
            under[key] = value


@functools.cache
def _value_parser(kind: Any) -> ArgumentParser:
    """Of one value: to ask the parser of the whole config for each key takes seconds."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--value", type=kind)
    return parser


def _check(cls: type, values: dict[str, Any], path: str, errors: list[UserError]) -> dict[str, Any]:
    """Collect the mistakes in ``values`` key by key, so that one does not hide the next; returns what has none."""
    good: dict[str, Any] = {}
    hints = typing.get_type_hints(cls)
    fields = {f.name: hints[f.name] for f in dataclasses.fields(cls)}
    for key, value in values.items():
        name = f"{path}{key}"
        if key not in fields:
            fix = nearest(str(key), fields)
            errors.append(UserError(f"config key {name}", got="an unknown key", expected="a known one", fix=fix))
        elif dataclasses.is_dataclass(fields[key]):
            if isinstance(value, dict):
                good[key] = _check(fields[key], value, f"{name}.", errors)
            else:
                fix = f"write {name}.KEY=VALUE"
                errors.append(UserError(f"config key {name}", got=value, expected="a section of keys", fix=fix))
        else:
            value = "" if value is None and fields[key] is str else value  # `key=` is an empty text
            try:
                if "float" in str(fields[key]) and "str" not in str(fields[key]).replace("dict[str", ""):
                    value = _with_exponents(value)
                if value is None and not _takes_null(cls, key, fields[key]):  # jsonargparse takes null for every type
                    raise ArgumentError(None, "null")
                _value_parser(fields[key]).parse_object({"value": value})
                good[key] = value
            except ArgumentError:
                expected = _described(fields[key])
                fix = f"write for example {name}={_example(cls, key)}"
                got = "no value" if value is None else value
                errors.append(UserError(f"config key {name}", got=got, expected=expected, fix=fix))
    return good


def _described(kind: Any) -> str:
    """A type in words."""
    origin, kinds = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        return f"one of {', '.join(map(str, kinds))}"
    if origin in UNIONS:
        return " or ".join(dict.fromkeys(map(_described, kinds)))
    if origin is dict:
        return "a mapping of keys to values"
    if kinds:
        one = _described(kinds[0]).removeprefix("a ")
        plural = one.replace("list of", "lists of") if one.startswith("list of") else f"{one}s"
        return f"a list of {len(kinds)} {plural}" if origin is tuple and kinds[1:] != (...,) else f"a list of {plural}"
    return WORDS.get(kind, "a value")


def _takes_null(cls: type, key: str, kind: Any) -> bool:
    return kind is Any or type(None) in typing.get_args(kind) or _example(cls, key) is None


def _example(cls: type, key: str) -> Any:
    field = next(f for f in dataclasses.fields(cls) if f.name == key)
    value = field.default if field.default is not dataclasses.MISSING else field.default_factory()  # type: ignore[misc]
    return list(value) if isinstance(value, tuple) else value


def _instantiate(cls: type[Config], values: dict[str, Any], path: str, errors: list[UserError]) -> Config | None:
    """Build nested dataclasses, collecting what their own checks say under the path of their section."""
    hints = typing.get_type_hints(cls)
    made = {
        key: _instantiate(hints[key], value, f"{path}{key}.", errors) if dataclasses.is_dataclass(hints[key]) else value
        for key, value in values.items()
    }
    try:
        return cls(**made)
    except UserError as error:
        for one in getattr(error, "errors", [error]):
            errors.append(UserError.from_line(f"{path}{one}"))
        return None


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
