"""Sentences of product and film reviews with the mean rating of twenty people, from the evaluation of VADER."""

import html
import io
import tarfile
from collections.abc import Iterator
from typing import Any

from mmgen.data.sources.files import Archive
from mmgen.data.sources.splits import uniform
from mmgen.errors import UserError, counted

INNER = "additional_resources/hutto_ICWSM_2014.tar.gz"
TABLES = {"product": "amazonReviewSnippets_GroundTruth.txt", "film": "movieReviewSnippets_GroundTruth.txt"}
MARGIN = 0.5  # ratings from -4 to 4 within this distance of 0 count as neutral


def read(split: str, archive: Archive) -> Iterator[dict[str, Any]]:
    """Yield the sentences of one split that are rated at least `MARGIN` above or below 0, without duplicates.

    Args:
        split: ``train``, ``validation`` or ``test``: eight, one and one of ten reviews, by a hash of the review's number.
        archive: the source archive of vaderSentiment 0.5.

    Raises:
        UserError: the archive lacks the tables, or a line is not a valid row.
    """
    path = archive.path.name
    member = next((name for name in archive.names if name.endswith(INNER)), None)
    if member is None:
        fix = "download the source archive of vaderSentiment 0.5; later ones lack it"
        raise UserError(path, got=f"{counted(len(archive.names), 'file')} without it", expected=INNER, fix=fix)
    seen = set()
    for group, name in TABLES.items():
        for number, line in enumerate(_lines(archive.read(member), name, path), 1):
            try:
                key, rating, text = line.split("\t")
                stars, text = float(rating), " ".join(html.unescape(html.unescape(text)).split())
            except ValueError as error:
                expected, fix = "number, rating and text between tabs", "download the archive again"
                raise UserError(f"{name}, line {number}", got=line, expected=expected, fix=fix) from error
            if abs(stars) < MARGIN or text in seen:
                continue
            seen.add(text)
            u = uniform(f"rated_reviews {group} {key.split('_')[0]}")
            if split == ("train" if u < 0.8 else "validation" if u < 0.9 else "test"):
                yield {"rating": [stars], "text": text, "label": int(stars > 0), "group": group}


def _lines(data: bytes, name: str, path: str) -> list[str]:
    try:
        with tarfile.open(fileobj=io.BytesIO(data)) as inner:
            found = next((member for member in inner if member.isfile() and member.name.endswith(name)), None)
            file = inner.extractfile(found) if found else None
            text = file.read().decode("utf-8-sig") if file else None
    except (tarfile.TarError, EOFError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: {INNER}", got=str(error), expected="a whole archive", fix="download it again") from error
    if text is None:
        raise UserError(f"{path}: {INNER}", got=f"no {name}", expected="its tables", fix="download it again")
    return text.splitlines()
