"""Scripts of recipes: their folders, and importable module names for those anywhere on disk.

Classes of such a module can be pickled by reference: data workers that are spawned instead of forked (on macOS, on Windows,
and from Python 3.14 on) import it by name. Importing ``mmgen.training.scripts.NAME`` first imports this file, whose finder
decodes the path from ``NAME``.
"""

import importlib.machinery
import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from pathlib import Path
from types import ModuleType
from urllib.parse import unquote

from mmgen.errors import UserError, check_one_of

__path__: list[str] = []  # makes this module a package, so that it can have submodules


def recipes_folder() -> Path:
    """The folder of the recipes that come with mmgen: in the installed package, or beside it in a checkout."""
    spec = importlib.util.find_spec("mmgen.recipes")
    if spec is not None and spec.submodule_search_locations:
        return Path(next(iter(spec.submodule_search_locations)))
    return Path(__file__).parents[2] / "recipes"


def recipe_names() -> list[str]:
    """The recipes that ``mmgen train`` knows."""
    return sorted(file.parent.name for file in recipes_folder().glob("*/train.py"))


def recipe_folder(name: str) -> Path:
    """The folder of a recipe, by its name or by a path to a folder of one's own.

    Raises:
        UserError: there is none; the message names the nearest, or the path.
    """
    if (Path(name) / "train.py").is_file():
        return Path(name)
    if Path(name).name != name:  # a path
        raise UserError(name, got="no train.py", expected="a recipe's folder", fix="correct the path, or restore the folder")
    return recipes_folder() / check_one_of("recipe", name, recipe_names())


def module_name(folder: Path, shipped: bool) -> str:
    """The name by which any process imports a recipe: a data worker that was not forked has to find it by the name alone.

    >>> module_name(Path("/tmp/version.2"), shipped=False)
    'mmgen.training.scripts./tmp/version%2E2/train%2Epy'
    """
    if shipped and importlib.util.find_spec("mmgen.recipes") is not None:
        return f"mmgen.recipes.{folder.resolve().name}.train"
    path = (folder / "train.py").resolve().as_posix().replace("%", "%25").replace(".", "%2E")  # a dot separates packages
    return f"{__name__}.{path}"


class ScriptFinder(MetaPathFinder):
    """Finder of the scripts named by `module_name`."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Return the spec of a script, or None for any other module."""
        parent, _, script = name.rpartition(".")
        return importlib.util.spec_from_file_location(name, unquote(script)) if parent == __name__ else None


sys.meta_path.append(ScriptFinder())
