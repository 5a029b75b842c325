"""Importing of user recipes: a module name for a ``train.py`` anywhere on disk, which encodes its path.

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

__path__: list[str] = []  # makes this module a package, so that it can have submodules


def module_name(file: Path) -> str:
    """Module name under which ``importlib.import_module`` imports a script.

    >>> module_name(Path("/tmp/version.2/train.py"))
    'mmgen.training.scripts./tmp/version%2E2/train%2Epy'
    """
    path = file.resolve().as_posix().replace("%", "%25").replace(".", "%2E")  # a dot would separate a package
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
