"""Nearest training pictures of generated ones, to detect copies, and variety among pictures of one prompt."""

import csv
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmgen.data.cards import Card, read_card
from mmgen.data.image import ImageProcessor
from mmgen.data.rows import DataSet, open_rows
from mmgen.errors import UserError
from mmgen.judging.features import nearest_pictures
from mmgen.storage import saved
from mmgen.training.report import tensor_grid

AT_ONCE = 1000  # training pictures in memory at once


def picture_column(card: str) -> tuple[Card, str]:
    """A data card and its first column of pictures.

    Raises:
        UserError: there is no such card, or it has no pictures or no training split.
    """
    read = read_card(card)
    column = next((name for name, spec in read.columns.items() if spec["kind"] == "image"), None)
    if column is None or "train" not in read.splits:
        got = f"columns {', '.join(read.columns)} and splits {', '.join(read.splits)}"
        fix = "name the card that the model was trained on"
        raise UserError(f"--nearest {card}", got=got, expected="pictures and a split train", fix=fix)
    return read, column


def nearest_in(x: Tensor, data: DataSet) -> tuple[Tensor, Tensor, Tensor]:
    """The nearest pictures of a data set, which is read in pieces.

    Args:
        x: pictures (n, c, h, w).
        data: pictures of the same units, by the name ``image``.

    Returns:
        Root mean square differences (n,), indices of items (n,), and their pictures (n, c, h, w).
    """
    distance, place = x.new_full((len(x),), torch.inf), torch.zeros(len(x), dtype=torch.long, device=x.device)
    nearest, start = torch.zeros_like(x), 0
    for batch in data.batches("training pictures", AT_ONCE, device=x.device):
        seen = batch["image"]  # (m, c, h, w)
        found, which = nearest_pictures(x, seen)
        better = found < distance
        distance[better], place[better], nearest[better] = found[better], start + which[better], seen[which[better]]
        start += batch.size
    return distance, place, nearest


def write_nearest(made: Sequence[Sequence[str]], processor: ImageProcessor, card: str, out: Path) -> list[dict[str, Any]]:
    """Write ``nearest.png``, with the nearest training pictures below each row of pictures, and ``nearest.csv``.

    Distances are root mean square differences of values from 0 to 1 at the model's size.

    Args:
        made: picture files of each prompt, equally many each.
        processor: processor of the generating model.
        card: data card of its training data.
        out: output folder.

    Returns:
        The rows of ``nearest.csv``: ``file``; the nearest ``training_row`` of the card, its ``distance`` and ``text``; and
        ``variety``, the distance to the nearest of the other pictures of the same prompt, empty where there is none.

    Raises:
        UserError: the card cannot be opened, or has no pictures.
    """
    read, column = picture_column(card)
    preview = replace(processor, mean=0.0, std=1.0)
    drawn = torch.stack([torch.stack([preview(file) for file in files]) for files in made])  # (b, n, c, h, w)
    rows, flat = open_rows(card, "train", [column]), drawn.flatten(0, 1)  # (b n, c, h, w)
    pictures = DataSet(rows, {"image": column}, {"image": preview}, cache=0)
    distance, place, nearest = nearest_in(flat, pictures)
    texts = next((rows[name] for name, spec in read.columns.items() if spec["kind"] == "text"), None)
    lines = [
        {"file": file, "distance": d, "training_row": row, "text": _text(texts, row), "variety": v}
        for file, d, row, v in zip((f for files in made for f in files), distance.tolist(), place.tolist(), _variety(drawn))
    ]
    pairs = [row for both in zip(drawn, nearest.unflatten(0, drawn.shape[:2])) for row in both]
    saved(out / "nearest.png", tensor_grid(pairs).save)
    saved(out / "nearest.csv", partial(_write_table, lines))
    return lines


def _write_table(lines: list[dict[str, Any]], file: Path) -> None:
    with file.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, list(lines[0]))
        writer.writeheader()
        writer.writerows(lines)


def _variety(drawn: Tensor) -> list[float | None]:
    """Distance to the nearest other picture of the prompt: (b, n, c, h, w) -> b n values."""
    if drawn.shape[1] == 1:
        return [None] * len(drawn)
    distances = torch.cdist(drawn.flatten(2), drawn.flatten(2)) / drawn[0, 0].numel() ** 0.5  # (b, n, n)
    distances.diagonal(dim1=1, dim2=2).fill_(torch.inf)
    return distances.min(-1).values.flatten().tolist()


def _text(texts: Any, row: int) -> str:
    value = texts[row] if texts is not None else ""
    return value if isinstance(value, str) else next(iter(value or ()), "")
