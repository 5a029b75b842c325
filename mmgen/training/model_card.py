"""Model cards of runs, ``README.md`` in the format of the Hub, and their pictures."""

import math
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData
from PIL import Image, ImageDraw, ImageFont

from mmgen import __version__
from mmgen.data.card_files import card_names
from mmgen.errors import UserError, counted
from mmgen.training.report import LABELS, Sample, Table, grid

PACKAGES = ("torch", "transformers", "accelerate", "datasets", "timm")


@dataclass(frozen=True)
class ModelCard:
    """The content of a model card.

    Args:
        name: name of the model, its title on the Hub.
        description: one sentence.
        license: Hub identifier of the licence of the weights, such as ``apache-2.0``, or ``other``.
        task: pipeline tag of the Hub, such as ``image-to-text``.
        data: name of the data card, or of a table such as ``my.csv``.
        data_license: identifier of the licence of the data.
        table: split -> system -> metric -> figure or (mean, sd); the model itself is the first system.
        command: exact training command.
        picture: path of a picture relative to the card, such as ``samples/test.png``; None: no picture.
        body: Markdown of the sections after the figures: use, known bias and limitations.
        tags: further tags of the Hub.
        base_model: Hub name of a frozen model inside, if any.
        picture_text: caption of the picture.
        run: path of the model to load relative to the card, such as ``seed_0`` in a study; empty: this folder.
        evaluated: name of the data card of the figures; None: ``data``.
    """

    name: str
    description: str
    license: str
    task: str
    data: str
    data_license: str
    table: Table
    command: str
    picture: str | None
    body: str
    tags: Sequence[str] = ()
    base_model: str | None = None
    picture_text: str = "Samples"
    run: str = ""
    evaluated: str | None = None


def write_model_card(path: str | Path, card: ModelCard) -> None:
    """Write ``card`` as Markdown with the Hub's YAML front matter.

    Args:
        path: output file, ``RUN/README.md``, replaced if it exists.
        card: content.

    Raises:
        UserError: the path of the picture is absolute or leaves the run folder.

    Source: Mitchell et al. 2019, Model cards for model reporting, arXiv 1810.03993.
    """
    if card.picture and (Path(card.picture).is_absolute() or ".." in Path(card.picture).parts):
        expected = "a path inside the run folder"
        raise UserError("model card: picture", got=card.picture, expected=expected, fix="use samples/NAME.png")
    picture = f"![{card.picture_text}]({card.picture})\n\n" if card.picture else ""
    results = _results(card)
    front = ModelCardData(
        model_name=card.name if results else None,  # a name without results is an empty model-index
        base_model=card.base_model,
        library_name="mmgen",
        license=card.license,
        pipeline_tag=card.task,
        tags=["mmgen", *card.tags],
        datasets=[card.data] if card.data in card_names() else None,
        eval_results=results or None,
    ).to_yaml()
    data = f"Card `{card.data}`, licence {card.data_license}."
    if card.data in card_names():
        data += f" `mmgen data show {card.data}` prints where it comes from, its\nsplits and whom it under-represents."
    packages = [f"mmgen {__version__}", f"Python {platform.python_version()}", *(f"{p} {version(p)}" for p in PACKAGES)]
    text = f"""---
{front}
---

# {card.name}

{card.description}

{picture}## Figures

{_markdown(card.table)}

{card.body.strip()}

## Load

```python
import mmgen

model = mmgen.load("{Path("RUN", card.run)}")  # RUN is this folder
```

## Data

{data}

## Training

```sh
{card.command}
```

{", ".join(packages)}.
"""
    Path(path).write_text(text, encoding="utf-8")


def contact_sheet(samples: Sequence[Sample], columns: int = 4) -> Image.Image:
    """Draw pictures in a grid, with the texts of each under it.

    Args:
        samples: one or more, in row order.
        columns: pictures per row, at least 1.

    Returns:
        An RGB picture, 208 pixels per column.

    Raises:
        UserError: there is no sample or no column.

    >>> contact_sheet([Sample(Image.new("RGB", (8, 8)), {"captioner": "a cat"})] * 3, columns=2).width
    416
    """
    if not samples or columns < 1:
        got = f"{counted(len(samples), 'sample')}, {counted(columns, 'column')}"
        raise UserError("contact sheet", got=got, expected="one or more of both", fix="generate samples first")
    text, label = (ImageFont.load_default(size) for size in (14, 11))
    tiles = [_tile(sample, text, label) for sample in samples]
    rows = [tiles[i : i + columns] for i in range(0, len(tiles), columns)]
    heights = [max(tile.height for tile in row) for row in rows]
    sheet = Image.new("RGB", (_WIDTH * min(columns, len(tiles)), sum(heights)), "white")
    for i, row in enumerate(rows):
        for j, tile in enumerate(row):
            sheet.paste(tile, (_WIDTH * j, sum(heights[:i])))
    return sheet


_WIDTH, _MARGIN = 208, 8


def _tile(sample: Sample, text: Any, label: Any) -> Image.Image:
    side = _WIDTH - 2 * _MARGIN
    lines = []
    for name, value in sample.text.items():
        lines += [(name, label, "#5c6773", 20), *((line, text, "black", 18) for line in _wrap(value, text, side))]
    tile = Image.new("RGB", (_WIDTH, _WIDTH + 2 * _MARGIN + sum(height for *_, height in lines)), "white")
    picture = sample.picture().convert("RGBA")
    scale = side / max(picture.size)
    resample = Image.Resampling.NEAREST if scale > 4 else Image.Resampling.LANCZOS  # keeps the pixels of tiny pictures
    picture = picture.resize([max(1, round(scale * length)) for length in picture.size], resample)
    tile.paste(picture, ((_WIDTH - picture.width) // 2, (_WIDTH - picture.height) // 2), picture)
    draw, y = ImageDraw.Draw(tile), _WIDTH
    for line, font, colour, height in lines:
        y += height
        draw.text((_MARGIN, y), line, fill=colour, font=font, anchor="ls")  # at the baseline
    return tile


def _wrap(text: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    """The lines of ``text``, each at most ``width`` pixels; a longer word is cut."""
    lines = []
    for paragraph in text.splitlines():
        line = ""
        for word in paragraph.split():
            if line and font.getlength(f"{line} {word}") > width:
                lines.append(line)
                line = ""
            line = f"{line} {word}".strip()
            while font.getlength(line) > width:
                fits = max(n for n in range(1, len(line)) if n == 1 or font.getlength(line[:n]) <= width)
                lines.append(line[:fits])
                line = line[fits:]
        lines.append(line)
    return lines


def _results(card: ModelCard) -> list[EvalResult]:
    """The figures of the first system for the model-index of the Hub."""
    results = []
    for split, systems in card.table.items():
        for metric, figure in next(iter(systems.values()), {}).items():
            value = figure[0] if isinstance(figure, tuple) else figure
            if not math.isfinite(value):  # the Hub accepts only finite numbers
                continue
            results.append(
                EvalResult(
                    task_type=card.task,
                    dataset_type=card.evaluated or card.data,
                    dataset_name=card.evaluated or card.data,
                    dataset_split=split,
                    metric_type=metric,
                    metric_name=LABELS.get(metric, metric),
                    metric_value=value,
                )
            )
    return results


def _markdown(table: Table) -> str:
    first, heads, rows = grid(table)
    lines = [["split", first, *heads], ["---", "---", *["---:"] * len(heads)]]
    lines += [[split, name, *cells] for split, some in rows.items() for name, cells in some]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
