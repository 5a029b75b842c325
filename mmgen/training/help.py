"""Descriptions of config keys, for ``mmgen train RECIPE --help``."""

import dataclasses
import inspect
import json
import re
import textwrap
import typing
from collections.abc import Iterator
from typing import Any

from mmgen.training.config import build_config, described, read_yaml
from mmgen.training.recipe import config_file, load_recipe


def recipe_keys(name: str, config: str = "config") -> str:
    """Describe the config keys of a recipe, with their values in one of its configs.

    Args:
        name: name of a recipe, or a folder with one.
        config: name of a config of the recipe, or a path to one.

    Raises:
        UserError: there is no such recipe or config.
    """
    recipe = load_recipe(name)
    file = config_file(recipe, config)
    keys = describe_keys(build_config(recipe.config, read_yaml(file), renamed=recipe.config.renamed))
    return f"The keys of {name}, given as key=value, with their values in {file.name}:\n\n{keys}"


def describe_keys(config: Any) -> str:
    """Describe every key of a config by value, type, range and meaning, grouped by section.

    Meanings come from ``Args:`` in the docstrings of the dataclasses, or models, of the sections.

    >>> from mmgen.training.config import FitConfig
    >>> print(describe_keys(FitConfig()).partition("\\n  batch_size")[0])
      steps=1000: a whole number >= 1
          optimiser steps in all.
    """
    return "\n".join(_key_lines(config, "", {})).strip("\n")


def _key_lines(config: Any, path: str, seen: dict[type, str]) -> Iterator[str]:
    """Lines of a section and its subsections; a dataclass is explained only at its first path in ``seen``."""
    cls = type(config)
    hints, meanings, first = typing.get_type_hints(cls, include_extras=True), _meanings(cls), seen.setdefault(cls, path)
    sections = []
    for field in dataclasses.fields(cls):
        value, name = getattr(config, field.name), f"{path}{field.name}"
        if dataclasses.is_dataclass(value):
            sections.append((value, name, meanings.get(field.name, "").rstrip(".")))
        elif first == path:
            yield f"  {name}={_as_typed(value)}: {described(hints[field.name])}"
            yield from textwrap.wrap(meanings.get(field.name, ""), 100, initial_indent="      ", subsequent_indent="      ")
        else:
            yield f"  {name}={_as_typed(value)}"
    for value, name, meaning in sections:
        same = f"its keys mean the same as those of {seen[type(value)][:-1]}" if type(value) in seen else None
        yield "\n" + ": ".join(filter(None, [name, "; ".join(filter(None, [meaning, same]))]))
        yield from _key_lines(value, f"{name}.", seen)


def _meanings(cls: type) -> dict[str, str]:
    """Field -> its entry of ``Args:`` in the docstring of a dataclass or one of its bases."""
    meanings: dict[str, str] = {}
    for one in reversed(cls.__mro__):
        arguments = re.split(r"\n(?=\S)", inspect.cleandoc(one.__doc__ or "").partition("\nArgs:\n")[2])[0]
        for names, text in re.findall(r"^ {4}(\w+(?:, \w+)*): (.*(?:\n {5,}.*)*)", arguments, re.MULTILINE):
            meanings |= dict.fromkeys(names.split(", "), " ".join(text.replace("``", "").split()))
    return meanings


def _as_typed(value: Any) -> str:
    """A value as written on the command line."""
    plain = isinstance(value, str) and value.isprintable()
    return value if plain else json.dumps(value, ensure_ascii=False)
