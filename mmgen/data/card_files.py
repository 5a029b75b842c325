"""Finding data cards by name or path: cards of mmgen, files, and cards inferred from a folder, table or Hub data set."""

import functools
import importlib.util
import logging
import os
import re
from pathlib import Path

import mmgen
from mmgen.data.sources import card_text as written
from mmgen.data.sources import inferred, table_files
from mmgen.data.sources.files import escapes
from mmgen.data.sources.inferred import Inferred
from mmgen.errors import UserError, nearest


def cards_folder() -> Path:
    """Folder of the cards that come with mmgen: the installed ``mmgen.data_cards``, or ``data_cards`` of a checkout."""
    spec = importlib.util.find_spec("mmgen.data_cards")
    if spec is not None and spec.submodule_search_locations:
        return Path(next(iter(spec.submodule_search_locations)))
    return Path(mmgen.__file__).resolve().parent.parent / "data_cards"


def card_names() -> list[str]:
    """Names of the cards that come with mmgen, sorted."""
    return sorted(path.stem for path in cards_folder().glob("*.md"))


def card_text(name_or_path: str | Path) -> str:
    """Text of a card, as read by `read_card`; a template for one of your own."""
    return find_card(name_or_path)[1]


def write_card(name_or_path: str | Path, file: Path | None = None) -> Path:
    """Write a card for data without one.

    Args:
        name_or_path: a folder, a table or a data set of the Hub, as in `read_card`.
        file: path of the card; None: a file of the same name beside the data, or in the current folder for Hub data.

    Returns:
        The path.

    Raises:
        UserError: the file exists, cannot be written, or is not in a folder above the data.
    """
    path = Path(name_or_path).resolve()
    if path.suffix == ".md" or not (_there(path) or _is_hub_name(str(name_or_path))):
        expected = "a folder, a table or a data set of the Hub"
        raise UserError(
            "data init", got=str(name_or_path), expected=expected, fix="check the path; see `mmgen data list` for cards"
        )
    found, source = _find_data(str(name_or_path))
    if file is None:
        file = path.parent / f"{path.stem if path.is_file() else path.name}.md" if _there(path) else Path(f"{found.name}.md")
    if _there(file):
        raise UserError(str(file), got="a file that exists", expected="a new one", fix="move it, or choose another with --out")
    if _there(path):
        source = {"path": os.path.relpath(path, file.resolve().parent)}
        if escapes(source["path"]):
            fix = f"choose a file in {path.parent}"
            raise UserError("--out", got=str(file), expected="a file above or beside the data, whose path it holds", fix=fix)
    try:
        file.write_text(written.card_text(found, source), encoding="utf-8")
    except OSError as error:
        raise UserError(
            str(file), got=str(error), expected="a file that can be written", fix="choose another --out"
        ) from error
    return file


def absolute_card(name_or_path: str, beside: Path | None = None) -> str:
    """Make the path of a card absolute; names of cards and of the Hub are returned unchanged.

    Args:
        name_or_path: as in `read_card`.
        beside: a second folder in which to look for a relative path.

    >>> absolute_card("digits"), absolute_card("user/flowers")
    ('digits', 'user/flowers')
    """
    if name_or_path in card_names():
        return name_or_path
    path = Path(name_or_path).expanduser()
    if beside is not None and not _there(path) and _there(beside / path):
        path = beside / path
    is_name = not _there(path) and (_is_hub_name(name_or_path) or (path.name == name_or_path and not path.suffix))
    return name_or_path if is_name else str(path.resolve())


def find_card(name_or_path: str | Path) -> tuple[str, str, Path | None]:
    """Find a card; return its name, its text, and the root of its paths."""
    given = str(name_or_path)
    if given in card_names():
        return given, (cards_folder() / f"{given}.md").read_text(encoding="utf-8"), None
    path = Path(given).expanduser()
    if path.suffix == ".md":
        try:
            return path.stem, path.read_text(encoding="utf-8-sig"), path.resolve().parent
        except (OSError, UnicodeDecodeError) as error:
            fix = f"give the path of a folder, a table or a .md file, or one of {', '.join(card_names())}"
            raise UserError("data card", got=given, expected=f"a readable file ({error})", fix=fix) from error
    found, source = _find_data(given)
    if "hash" in found.how:
        counts = ", ".join(f"{split} {n}" for split, n in found.counts.items())
        log_once(f"{found.name}: no split is named, so the rows are split {found.how}: {counts}")
    return found.name, written.card_text(found, source), path.resolve().parent if _there(path) else None


def _find_data(given: str) -> tuple[Inferred, dict[str, str]]:
    """Infer the contents of a folder, a table or a Hub data set; return them with the entry of a card's ``sources``."""
    path = Path(given).expanduser()
    if _there(path):
        path = path.resolve()
        return inferred.find(path), {"path": path.name}
    expected = "a card that comes with mmgen, or the path of a folder, a table or a .md file (there is none)"
    if not _is_hub_name(given):
        fix = nearest(given, card_names()) if path.name == given or not path.name else "check the path"
        raise UserError("data card", got=given, expected=expected, fix=fix)
    try:
        return inferred.find_hub(given, None, None), {"hub": given}
    except (OSError, ValueError) as error:
        fix = "check the path or the name; for one config of several write a card with `hub: NAME` and `config: NAME`"
        expected = f"{expected[:-1]}; on the Hub: {' '.join(str(error).split())[:160]})"
        raise UserError("data card", got=given, expected=expected, fix=fix) from error


def _there(path: Path) -> bool:
    """Test whether a path exists.

    Raises:
        UserError: a folder in the path cannot be searched, or its name is too long.
    """
    try:
        return path.exists()
    except OSError as error:
        fix = "check the path, and the permissions of its folders"
        raise UserError(str(path), got=str(error), expected="a path that can be read", fix=fix) from error


def _is_hub_name(given: str) -> bool:
    """Test for a Hub name ``user/data``: there is no such folder ``user``, and no ending of a table or a card."""
    path = Path(given)
    return (
        re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", given) is not None
        and not _there(path.parent)
        and path.suffix not in (".md", *table_files.ENDINGS)
    )


@functools.cache
def log_once(message: str) -> None:
    """Log a decision made for the user, once and by the first of several processes."""
    if int(os.environ.get("RANK", 0)) == 0:
        logging.getLogger("mmgen").warning(message)
