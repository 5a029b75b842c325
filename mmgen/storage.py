"""Files that outlive a command: the cache folder, writes that are whole or not at all, JSON, and fingerprints of weights."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import importlib.util
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmgen.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor, nn  # slow to import: `mmgen list` reads data cards without torch

# errors of a folder that cannot be read or written; any other has nothing to do with the cache
REFUSALS = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.ENOTDIR, errno.EEXIST, errno.ENOENT,
            errno.EIO, errno.ELOOP, errno.ENAMETOOLONG}  # fmt: skip


def cache_folder() -> Path:
    """The folder for everything that can be computed again: ``$MMGEN_CACHE``, or ``~/.cache/mmgen``; it need not exist."""
    return Path(os.environ.get("MMGEN_CACHE") or "~/.cache/mmgen").expanduser()


def package_folder(name: str) -> Path | None:
    """The folder of an installed package, found without importing it; None if there is no such package."""
    spec = importlib.util.find_spec(name)
    return next((Path(place) for place in (spec.submodule_search_locations or ())), None) if spec else None


@contextlib.contextmanager
def cache_written(place: Path) -> Iterator[None]:
    """A context whose system errors name ``place`` and the fix when the cache cannot be read or written.

    Raises:
        UserError: no permission, no space, a file where a folder should be, or a path that cannot be created.
    """
    try:
        yield
    except OSError as error:
        cache, at = cache_folder(), Path(error.filename or place)  # a full disk names no file
        if error.errno not in REFUSALS or not (at.is_relative_to(cache) or cache.is_relative_to(at)):
            raise
        fix = "change its permissions, or " if error.errno in (errno.EACCES, errno.EPERM) else ""
        fix += "set MMGEN_CACHE to a folder with space that you may write to"
        raise UserError("cache", got=str(error), expected=f"to read and write {place}", fix=fix) from error


@contextlib.contextmanager
def filled_whole(folder: Path) -> Iterator[Path]:
    """A new folder to fill, renamed to ``folder`` once it is full: neither a kill nor another process leaves half of it.

    Raises:
        UserError: it cannot be written, see `cache_written`.
    """
    partial = folder.with_name(f".partial-{folder.name}-{os.getpid()}")
    with cache_written(folder):
        partial.mkdir(parents=True, exist_ok=True)
        try:
            yield partial
        except BaseException:  # Ctrl-C too
            shutil.rmtree(partial, ignore_errors=True)
            raise
        try:
            partial.rename(folder)
        except OSError:
            shutil.rmtree(partial)
            if not folder.is_dir():  # otherwise another process finished first
                raise


def saved(file: Path, save: Callable[[Path], Any]) -> str:
    """Write a result with ``save(file)`` and return its path.

    Raises:
        UserError: the file cannot be written.
    """
    try:
        save(file)
    except (OSError, RuntimeError) as error:  # soundfile's errors are RuntimeErrors
        expected, fix = "a file that can be written", "choose another --out"
        raise UserError(str(file), got=str(error), expected=expected, fix=fix) from error
    return str(file)


def read_json(file: Path, expected: str = "a JSON object", fix: str = "remove it and run again") -> dict[str, Any]:
    """The JSON object in a file.

    Args:
        file: its path.
        expected, fix: for the error message.

    Raises:
        UserError: it is missing, cut short or holds something else.
    """
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(str(file), got=str(error), expected=expected, fix=fix) from error
    if not isinstance(values, dict):
        raise UserError(str(file), got=values, expected=expected, fix=fix)
    return values


def write_json(file: Path, values: Any, indent: int | None = 2) -> None:
    """Write a JSON file whole or not at all."""
    write_whole(file, json.dumps(values, indent=indent) + "\n")


def write_whole(file: Path, text: str) -> None:
    """Write a text file whole or not at all: a kill leaves the file as it was."""
    partial = file.with_suffix(".partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(file)


def digest(of: str) -> Tensor:
    """A `fingerprint` as a tensor that is saved with the weights that depend on it: (32,) uint8, of "" (0,)."""
    import torch

    return torch.tensor(list(bytes.fromhex(of)), dtype=torch.uint8)


def check_digest(what: str, saved: Tensor | None, own: Tensor, part: str, fix: str, module: nn.Module | None = None) -> None:
    """Check that saved weights belong to a frozen part of this model.

    Args:
        what: the frozen part and the file of the weights.
        saved: its digest in the file; None where the file has none.
        own: the digest of the part at hand.
        part: kind of weights in the message, such as "embeddings"; may be empty.
        fix: the advice.
        module: the part as loaded, whose own weights older runs saved the digest of.

    Raises:
        UserError: the part is another one.
    """
    texts = [bytes(d.tolist()).hex() for d in (own, own if saved is None else saved)]
    if texts[0] == texts[1] or (module is not None and texts[0] and texts[1] == fingerprint(module)):
        return
    got, wanted = (f"{part} {text[:12] or 'of its own'}".strip() for text in texts)
    raise UserError(what, got=got, expected=wanted, fix=fix)


def fingerprint(module: nn.Module) -> str:
    """SHA-256 of a module's weights with their names and shapes: the key under which its features are cached.

    >>> from torch import nn
    >>> fingerprint(nn.Linear(2, 2)) == fingerprint(nn.Linear(2, 2))
    False
    """
    import torch

    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
