"""Reading lines from the user; printing tables and messages; JSON files of results."""

import json
import math
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmgen.errors import UserError


def complain(*messages: object) -> None:
    """Print each message on its own line of stderr."""
    print("\n".join(f"mmgen: {message}" for message in messages), file=sys.stderr)


def print_table(first: str, second: str, rows: dict[str, Any]) -> None:
    """Print names and values in two columns, below their headings."""
    width = max(len(name) for name in [first, *rows]) + 2
    print(f"{first:<{width}}{second}".rstrip())
    for name, value in rows.items():
        print(f"  {name:<{width}}{value}".rstrip())


def print_results(results: list[list[Any]]) -> None:
    """Print the results of each item, one a line, after the item's number where there are several."""
    for number, item in enumerate(results):
        for result in item:
            shown = "\t".join(result.values()) if isinstance(result, dict) else result
            print(f"{number}\t{shown}" if len(results) > 1 else shown)


def lines() -> Iterator[str]:
    """Lines typed or piped in, without a byte order mark at the start."""
    try:
        yield input("> " if sys.stdin.isatty() else "").removeprefix("\ufeff")
        while True:
            yield input("> " if sys.stdin.isatty() else "")
    except EOFError:
        return


def check_file(file: Path) -> None:
    """Fail before the result is computed if it could not be written.

    Raises:
        UserError: its folder does not exist, it is a folder itself, or permission is missing.
    """
    fix = "choose another"
    if not file.parent.is_dir():
        raise UserError(str(file), got=f"no folder {file.parent}", expected="a file that can be written", fix=fix)
    if file.is_dir() or not os.access(file if file.exists() else file.parent, os.W_OK):
        got = "a folder" if file.is_dir() else "no permission"
        raise UserError(str(file), got=got, expected="a file that can be written", fix=fix)


def write_json(file: Path | None, value: Any) -> None:
    """Write ``value`` to the file of ``--json``, if there is one.

    Raises:
        UserError: it cannot be written.
    """
    if file is None:
        return
    try:
        file.write_text(json.dumps(_finite(value), indent=2, allow_nan=False) + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(str(file), got=str(error), expected="a file that can be written", fix="choose another") from error


def _finite(value: Any) -> Any:
    """Replace infinity and NaN, which JSON lacks, by null: log p of an empty text is -inf."""
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
