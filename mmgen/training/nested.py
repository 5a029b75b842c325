"""Configs of other recipes inside a recipe's config: the judges that an evaluation trains, see `RecipeConfig.nested`."""

import dataclasses
import re
import typing
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

from mmgen.errors import UserError, UserErrors
from mmgen.training.config import build_config, translate
from mmgen.training.recipe import RecipeConfig, checked

Config = TypeVar("Config", bound=RecipeConfig)


def nested_config(path: str, cls: type[Config], values: Mapping[str, Any]) -> Config:
    """The checked config of another recipe, with errors that name its keys by their full path.

    Args:
        path: key of the config, such as ``judges.image``.
        cls: dataclass of the config.
        values: nested mapping.

    Raises:
        UserError: an unknown key, a wrong value, or an error of the config's ``check``.
    """
    with keys_below(path, cls):
        return checked(build_config(cls, translate(dict(values), cls.renamed)))


@contextmanager
def keys_below(path: str, cls: type) -> Iterator[None]:
    """A context whose errors name the keys of a nested config by their full path.

    Args:
        path: key of the config.
        cls: dataclass of the config.

    Raises:
        UserError: one was raised inside; ``fit.steps`` becomes ``judges.image.fit.steps``.
    """
    keys = "|".join(map(re.escape, sorted(_keys(cls), key=len, reverse=True)))
    pattern = re.compile(rf"((?<=^config key )|(?<![\w./-])(?=(?:{keys})(?:[.=:]| \()))")
    try:
        yield
    except UserError as error:
        lines = [pattern.sub(f"{path}.", str(one)) for one in getattr(error, "errors", [error])]
        raise UserErrors(map(UserError.from_line, lines)) from error


def _keys(cls: type, path: str = "") -> Iterator[str]:
    types = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        if dataclasses.is_dataclass(types[field.name]):
            yield from _keys(types[field.name], f"{path}{field.name}.")
        else:
            yield f"{path}{field.name}"
