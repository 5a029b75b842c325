"""Configs: the defaults of a recipe's dataclass, overridden by a YAML file, then by ``key.sub=value`` arguments."""

import copy
import dataclasses
import functools
import inspect
import re
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import yaml
from jsonargparse import ArgumentError, ArgumentParser

from mmgen import processes
from mmgen.errors import Mistakes, UserError, nearest
from mmgen.ranges import AtLeast, Each, Seed, Share, check_ranges, checked, ranges_of
from mmgen.storage import write_whole

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Config = TypeVar("Config", bound="DataclassInstance")
UNIONS = (typing.Union, types.UnionType)
WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", type(None): "null"}
NOTHING: Mapping[str, str] = types.MappingProxyType({})
EXPONENT = re.compile(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+")


@checked
@dataclasses.dataclass
class FitConfig:
    """Settings of `mmgen.training.loop.fit`, with all counts in optimiser steps.

    Args:
        steps: optimiser steps in all.
        batch_size: items per batch and process; a step has batch_size x accumulation x processes items.
        accumulation: batches per step whose gradients are accumulated.
        learning_rate: peak learning rate of AdamW.
        weight_decay: AdamW's decoupled weight decay.
        betas: decay rates of the two moments of AdamW.
        warmup: steps over which the learning rate rises linearly to its peak.
        schedule: learning rate after the warm-up; ``cosine`` and ``linear`` fall to zero at ``steps``.
        clip: largest gradient norm; 0 disables clipping.
        ema: decay of the exponential moving average of weights and real buffers, which is saved and used; 0 for none.
        precision: arithmetic of the forward pass; weights and optimiser state are fp32.
        compile: torch.compile the model.
        seed: seed of data order, dropout and sampling; a recipe sets it to its own ``seed``.
        workers: data-loading processes; 0 loads in this one.
        processes: required number of training processes, checked at start; 0 accepts any.
        log_every: steps between lines of ``metrics.jsonl``.
        sample_every: steps between samples; 0 for none.
        checkpoint_every: steps between checkpoints; the last step always writes one.
        keep: number of newest checkpoints on disk.
        tracker: tracker of accelerate, beside ``metrics.jsonl``.
    """

    steps: Annotated[int, AtLeast(1)] = 1000
    batch_size: Annotated[int, AtLeast(1)] = 32
    accumulation: Annotated[int, AtLeast(1)] = 1
    learning_rate: Annotated[float, AtLeast(0)] = 1e-3
    weight_decay: Annotated[float, AtLeast(0)] = 0.01
    betas: Annotated[tuple[float, float], Each(Share(0.9))] = (0.9, 0.95)
    warmup: Annotated[int, AtLeast(0)] = 20
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    clip: Annotated[float, AtLeast(0)] = 1.0
    ema: Annotated[float, Share(0.999)] = 0.0
    precision: Literal["no", "bf16", "fp16"] = "no"
    compile: bool = False
    seed: Seed = 0
    workers: Annotated[int, AtLeast(0)] = 0
    processes: Annotated[int, AtLeast(0)] = 0
    log_every: Annotated[int, AtLeast(1)] = 10
    sample_every: Annotated[int, AtLeast(0)] = 0
    checkpoint_every: Annotated[int, AtLeast(1)] = 200
    keep: Annotated[int, AtLeast(1)] = 2
    tracker: Literal["tensorboard", "wandb", "none"] = "tensorboard"

    def check(self, path: str, errors: Mistakes) -> None:
        """Check that a recipe leaves the seed to its own key."""
        if self.seed:
            raise UserError(f"{path}.seed", got=self.seed, expected="0", fix=f"set seed={self.seed}, which every stage uses")


def check_machine(config: Any, key: str = "") -> None:
    """Check, before any stage, that this machine supports every `FitConfig` of a config.

    Args:
        config: config of a recipe, or a section of it.
        key: key of the section, for the messages; empty: none.

    Raises:
        UserErrors: every unsupported precision, uninstalled tracker and wrong number of processes, by key.
    """
    from accelerate.utils import is_bf16_available, is_tensorboard_available, is_wandb_available

    from mmgen.modalities.precision import warn_of_emulated_bfloat16  # here, as it imports torch

    kind, running = processes.device().type, processes.join().num_processes
    precisions = {"no": True, "fp16": kind not in ("cpu", "mps"), "bf16": kind == "cpu" or is_bf16_available()}
    trackers = {"none": True, "tensorboard": is_tensorboard_available(), "wandb": is_wandb_available()}
    errors = Mistakes()
    for path, fit in _sections(config, f"{key}." if key else ""):
        if not isinstance(fit, FitConfig):
            continue
        if not precisions[fit.precision]:
            got, other = f"{fit.precision} on a {kind}", next(name for name in ("bf16", "no") if precisions[name])
            expected, fix = "a precision that the device computes in", f"set {path}.precision={other}"
            errors.append(UserError(f"{path}.precision", got=got, expected=expected, fix=fix))
        if fit.precision == "bf16":
            warn_of_emulated_bfloat16("precision=no")  # the same text for all stages is shown once
        if not trackers[fit.tracker]:
            fix = f"pip install {fit.tracker}, or set {path}.tracker=none"
            errors.append(UserError(f"{path}.tracker", got=fit.tracker, expected="an installed package", fix=fix))
        with errors:
            processes.check_processes(f"{path}.processes", fit.processes, running)
    errors.fail()


def check_sections(config: Any, errors: Mistakes) -> None:
    """Call ``check(path, errors)`` of every section of a config with such a method.

    Args:
        config: config of a recipe.
        errors: keeps the mistakes that a section adds or raises, by dotted keys that begin with its ``path``.
    """
    for path, section in _sections(config):
        if hasattr(section, "check"):
            with errors:
                section.check(path, errors)


def _sections(config: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """All sections of a config, nested ones included, with their dotted keys."""
    for field in dataclasses.fields(config):
        value, name = getattr(config, field.name), f"{path}{field.name}"
        if dataclasses.is_dataclass(value):
            yield name, value
            yield from _sections(value, f"{name}.")


def section(**values: Any) -> Any:
    """The default of a section field: its type, built with ``values``.

    >>> from dataclasses import dataclass
    >>> @dataclass
    ... class Config:
    ...     fit: FitConfig = section(steps=5)
    >>> Config().fit.steps
    5
    """
    return dataclasses.field(default=_OfItsType(values))


class _OfItsType:
    """A default that becomes a factory once the class of its field, and so its type, is known."""

    def __init__(self, values: dict[str, Any]) -> None:
        self.values = values

    def __set_name__(self, owner: type, name: str) -> None:
        field = vars(owner)[name]
        field.default = dataclasses.MISSING
        field.default_factory = lambda: typing.get_type_hints(owner)[name](**self.values)


def check_decided(key: str, section: Any, names: Sequence[str], by: str, fix: str = "leave it out") -> None:
    """Check that a section keeps the defaults of model arguments that something else sets.

    Args:
        key: key of the section.
        section: section made by `section_of`.
        names: names of the arguments.
        by: subject and verb of what sets them, for the message.
        fix: advice of the message.

    Raises:
        UserErrors: every argument with another value.
    """
    default, errors = type(section)(), Mistakes()
    for name in names:
        if (value := getattr(section, name)) != getattr(default, name):
            errors.append(UserError(f"{key}.{name}", got=value, expected=f"the default; {by} it", fix=fix))
    errors.fail()


@functools.cache
def section_of(cls: type, *without: str) -> type:
    """The dataclass of the constructor arguments of a model, cached.

    Args:
        cls: class of the model.
        without: arguments determined by the data.

    >>> from mmgen.training.config import section_of
    >>> class Model:
    ...     def __init__(self, width: int = 8) -> None: ...
    >>> section_of(Model)()
    ModelConfig(width=8)
    """
    make = cls.__init__  # type: ignore[misc]
    hints = typing.get_type_hints(make, include_extras=True)
    fields = [
        (name, hints[name], _default(parameter.default))
        for name, parameter in inspect.signature(make).parameters.items()
        if name != "self" and name not in without
    ]
    namespace = {"__doc__": cls.__doc__, "__reduce__": lambda self: (_unpickled, (cls, without, vars(self)))}
    return dataclasses.make_dataclass(f"{cls.__name__}Config", fields, namespace=namespace)


def _unpickled(cls: type, without: tuple[str, ...], values: dict[str, Any]) -> Any:
    """A section of these values; pickle cannot find the class of `section_of` by its name."""
    return section_of(cls, *without)(**values)


def _default(value: Any) -> Any:
    """The default of a field, with a list for a tuple, as read from a file."""
    if isinstance(value, tuple):
        return dataclasses.field(default_factory=lambda: list(value))
    return dataclasses.field(default=value)


def read_yaml(file: Path) -> dict[str, Any]:
    """The mapping in a YAML file; an empty file is an empty mapping.

    Raises:
        UserError: the file cannot be read, or holds something else.
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
    """Parse ``["fit.steps=5", "fit.ema=0.9"]`` to a nested mapping, with YAML values.

    Args:
        arguments: ``key.sub=value`` each.
        cls: dataclass of the config; values of its text settings are taken literally, except quoted ones and ``null``.

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
    """Convert numbers such as 1e-3, which YAML reads as texts without a point, to floats, also in lists and mappings."""
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


def build_config(cls: type[Config], *layers: dict[str, Any], renamed: Mapping[str, str] = NOTHING) -> Config:
    """Override the defaults of a dataclass by mappings, in order.

    Args:
        cls: dataclass of the recipe; nested dataclasses are sections.
        layers: nested mappings, such as those of `read_yaml` and `parse_overrides`.
        renamed: old dotted key -> new one, which the error names.

    Raises:
        UserErrors: all unknown keys (naming the nearest), old keys, and values of a wrong type or out of range at once.

    >>> build_config(FitConfig, {"steps": 5}, {"steps": 7}).steps
    7
    """
    merged: dict[str, Any] = {}
    for layer in layers:
        _merge(merged, layer)
    errors = Mistakes()
    for old, new in renamed.items():
        if _take(merged, old) is not NOTHING:
            errors.append(UserError(f"config key {old}", got="an old key", expected="its new name", fix=f"use {new}"))
    made = _over(cls(), merged, "", errors)
    errors.fail()
    return made


def translate(values: dict[str, Any], renamed: Mapping[str, str]) -> dict[str, Any]:
    """Move the values of the config of an old run to their new keys.

    Args:
        values: nested mapping, such as that of `read_yaml`.
        renamed: old dotted key, of a value or a section -> new one.

    >>> translate({"captioner_fit": {"steps": 5}}, {"captioner_fit": "fit_captioner"})
    {'fit_captioner': {'steps': 5}}
    """
    values = copy.deepcopy(values)
    for old, new in renamed.items():
        if (value := _take(values, old)) is not NOTHING:
            for key in reversed(new.split(".")):
                value = {key: value}
            _merge(values, value)
    return values


def _take(values: dict[str, Any], key: str) -> Any:
    """Pop the value of a dotted key from a nested mapping, with emptied sections; `NOTHING` without it."""
    first, _, rest = key.partition(".")
    if first not in values:
        return NOTHING
    if not rest:
        return values.pop(first)
    value = _take(values[first], rest) if isinstance(values[first], dict) else NOTHING
    if value is not NOTHING and not values[first]:
        del values[first]
    return value


def to_dict(config: Any) -> dict[str, Any]:
    """The config as plain values for YAML."""
    return _plain(dataclasses.asdict(config))


def write_config(config: Any, file: Path) -> None:
    """Write the resolved config as YAML, keys in the order of the dataclass."""
    write_whole(file, yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True))


def _merge(under: dict[str, Any], over: dict[str, Any]) -> None:
    for key, value in over.items():
        if value is None and isinstance(under.get(key), dict):  # `aligned=null` removes a mapping
            del under[key]
        elif isinstance(value, dict) and isinstance(under.get(key), dict):
            _merge(under[key], value)
        else:
            under[key] = value


@functools.cache
def _value_parser(kind: Any) -> ArgumentParser:
    """Make the parser of a single value, as the parser of the whole config would take seconds."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--value", type=kind)
    return parser


def _over(base: Config, values: dict[str, Any], path: str, errors: list[UserError]) -> Config:
    """Copy ``base`` with ``values``, key by key, so that one mistake does not hide the next."""
    kinds, ranged = typing.get_type_hints(type(base)), typing.get_type_hints(type(base), include_extras=True)
    names = [field.name for field in dataclasses.fields(base)]
    made = {}
    for key, value in values.items():
        name, what = f"{path}{key}", f"config key {path}{key}"
        if key not in names:
            errors.append(UserError(what, got="an unknown key", expected="a known one", fix=nearest(str(key), names)))
        elif not dataclasses.is_dataclass(kinds[key]):
            default = getattr(base, key)
            try:
                made[key] = _read(kinds[key], value, default)
                check_ranges(ranged[key], name, made[key])
            except ArgumentError:
                fix = f"write for example {name}={list(default) if isinstance(default, tuple) else default}"
                got = "no value" if value is None else value
                errors.append(UserError(what, got=got, expected=described(ranged[key]), fix=fix))
            except UserError as error:
                errors.append(error)
        elif isinstance(value, dict):
            made[key] = _over(getattr(base, key), value, f"{name}.", errors)
        else:
            errors.append(UserError(what, got=value, expected="a section of keys", fix=f"write {name}.KEY=VALUE"))
    return base if errors else dataclasses.replace(base, **made)


def _read(kind: Any, value: Any, default: Any) -> Any:
    """Convert a value of a YAML file to a type.

    Raises:
        ArgumentError: it does not fit.
    """
    value = "" if value is None and kind is str else value  # `key=` gives an empty text
    if "float" in str(kind) and "str" not in str(kind).replace("dict[str", ""):
        value = float(value) if value in ("inf", "-inf", "nan") else _with_exponents(value)  # ranges name these
    takes_null = kind is Any or type(None) in typing.get_args(kind) or default is None
    if value is None and not takes_null:  # jsonargparse accepts null for every type
        raise ArgumentError(None, "null")
    return _value_parser(kind).parse_object({"value": value}).as_dict()["value"]


def described(kind: Any) -> str:
    """A type in words, with its range.

    >>> described(Annotated[int, AtLeast(1)]), described(list[str] | None)
    ('a whole number >= 1', 'a list of texts or null')
    """
    if ranges := ranges_of(kind):
        words = ", ".join([described(kind.__origin__), *map(str, ranges)])
        return words.replace(", a number", "")
    origin, kinds = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        return f"one of {', '.join(map(str, kinds))}"
    if origin in UNIONS:
        return " or ".join(dict.fromkeys(map(described, kinds)))
    if origin is dict:
        return "a mapping of keys to values"
    if kinds:
        one = described(kinds[0]).removeprefix("a ")
        plural = one.replace("list of", "lists of") if one.startswith("list of") else f"{one}s"
        return f"a list of {len(kinds)} {plural}" if origin is tuple and kinds[1:] != (...,) else f"a list of {plural}"
    return WORDS.get(kind, "a value")


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
