"""Recipes of one's own as importable modules: a ``train.py`` anywhere on disk under a name that says where it is.

Classes of such a module can be pickled by reference: data workers that are spawned, not forked (on macOS, Windows and from
Python 3.14 on), import it by its name. Importing ``mmgen.training.scripts.NAME`` imports this file first, whose finder then
reads the path from ``NAME``.
"""

import importlib.machinery
import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from pathlib import Path
from types import ModuleType
from urllib.parse import unquote

__path__: list[str] = []  # which makes it a package, so that it may have submodules


def module_name(file: Path) -> str:
    """The name under which ``importlib.import_module`` imports a script.

    >>> module_name(Path("/tmp/version.2/train.py"))
    'mmgen.training.scripts./tmp/version%2E2/train%2Epy'
    """
    path = file.resolve().as_posix().replace("%", "%25").replace(".", "%2E")  # a dot would separate a package
    return f"{__name__}.{path}"


class ScriptFinder(MetaPathFinder):
    """Finds the scripts that `module_name` names."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """The spec of a script, None for any other module."""
        parent, _, script = name.rpartition(".")
        return importlib.util.spec_from_file_location(name, unquote(script)) if parent == __name__ else None


sys.meta_path.append(ScriptFinder())
