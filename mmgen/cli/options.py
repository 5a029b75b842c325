"""Options that several commands share, each declared once."""

import argparse
from pathlib import Path
from typing import Any, TypeAlias

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
SHARED: dict[str, dict[str, Any]] = {
    "--json": {"type": Path, "metavar": "F"},
    "--n": {"type": int, "default": 1},
    "--out": {"type": Path},
    "--seed": {"type": int, "default": 0, "help": "seed of the random generators (default: 0)"},
}
SAVED_MODEL = "a run folder, a saved model or a Hub name"


def shared(parser: argparse.ArgumentParser, name: str, **more: Any) -> None:
    """Add the shared option ``name``, with ``more`` that this command says of it."""
    parser.add_argument(name, **SHARED[name] | more)


def split_dtype(values: list[str]) -> tuple[dict[str, Any], list[str]]:
    """Separate ``dtype=NAME`` from the other options ``key=value``.

    >>> split_dtype(["beams=3", "dtype=fp32"])
    ({'dtype': 'fp32'}, ['beams=3'])
    """
    found = [value.partition("=")[2] for value in values if value.startswith("dtype=")]
    return {"dtype": found[-1]} if found else {}, [value for value in values if not value.startswith("dtype=")]
