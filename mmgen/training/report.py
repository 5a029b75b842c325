"""Reports as one self-contained HTML file with figures, pictures and captions."""

from __future__ import annotations

import io
import math
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw, ImageFont

from mmgen.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

# split -> system -> metric -> figure, or (mean, standard deviation over seeds)
Figure = float | tuple[float, float]
Table = Mapping[str, Mapping[str, Mapping[str, Figure]]]

# metric -> its name in tables; by default its key
LABELS = {
    "cider": "CIDEr (0-10)",
    "bleu4": "BLEU-4 (0-100)",
    "rouge_l": "ROUGE-L (0-1)",
    "exact_match": "exact match (0-1)",
    "bits_per_dim": "bits per dimension",
    "elbo": "ELBO (nats)",
    "log_likelihood": "log-likelihood (nats)",
    "betavae_score": "BetaVAE score (0-1)",
    "factorvae_score": "FactorVAE score (0-1)",
    "mig": "MIG (0-1)",
    "modularity": "modularity (0-1)",
    "dci": "DCI (0-1)",
    "sap": "SAP (0-1)",
}
WIDE = 8  # most metrics as columns; more become rows
_NONE = "\N{EN DASH}"
_GAP = 4  # pixels between the pictures of a grid
_RAISED = 0.3  # least log ratio of a coloured word: a third likelier


@dataclass(frozen=True)
class Sample:
    """One picture with its texts.

    Args:
        image: encoded bytes (PNG, JPEG, ...; shown as they are) or a PIL picture (shown as PNG).
        text: label -> text in order, that of the model first; several references are lines of one text.
        note: short note under the picture, such as ``CIDEr 4.2``.
        group: heading, shared by consecutive samples of one group.
        wide: give the picture the width of the page, for a grid of many.
    """

    image: bytes | Image.Image
    text: Mapping[str, str]
    note: str = ""
    group: str = ""
    wide: bool = False

    def picture(self) -> Image.Image:
        """The picture, decoded."""
        return Image.open(io.BytesIO(self.image)) if isinstance(self.image, bytes) else self.image

    def encoded(self) -> tuple[bytes, str]:
        """Content and suffix of an image file; bytes in a format of browsers are unchanged."""
        picture = self.picture()
        if isinstance(self.image, bytes) and picture.format in Image.MIME:
            return self.image, picture.format.lower()
        buffer = io.BytesIO()
        picture.save(buffer, format="PNG")
        return buffer.getvalue(), "png"


def metrics_of(table: Table) -> list[str]:
    """The metrics of ``table`` without repetitions, in order of appearance.

    >>> metrics_of({"test": {"captioner": {"cider": 4.6, "bleu4": 30.0}, "blind": {"cider": 0.3}}})
    ['cider', 'bleu4']
    """
    return list(dict.fromkeys(m for systems in table.values() for figures in systems.values() for m in figures))


def cell(table: Table, split: str, system: str, metric: str) -> str:
    """One figure as text, with decimals for three digits of the largest of its metric; a dash if missing.

    >>> cell({"test": {"captioner": {"cider": 4.6}, "blind": {"cider": 0.3}}}, "test", "captioner", "cider")
    '4.60'
    """
    column = [figures[metric] for systems in table.values() for figures in systems.values() if metric in figures]
    means = [abs(f[0] if isinstance(f, tuple) else f) for f in column]
    largest = max((m for m in means if math.isfinite(m)), default=0.0)
    decimals = 1 if largest >= 10 else 2 if largest > 1 else 3
    figure = table[split].get(system, {}).get(metric)
    if figure is None:
        return _NONE
    values = [f"{v:.{decimals}f}" for v in (figure if isinstance(figure, tuple) else (figure,)) if math.isfinite(v)]
    return " ±\N{NO-BREAK SPACE}".join(values) or _NONE


def write_report(
    path: str | Path,
    title: str,
    table: Table,
    samples: Sequence[Sample],
    details: Mapping[str, str],
    summary: str = "",
) -> None:
    """Write a self-contained HTML page of figures, pictures with captions, and details of the run.

    Pictures are embedded, there is no script, and a content security policy forbids loading anything.

    Args:
        path: output file, replaced if it exists.
        title: title of the page.
        table: split -> system -> metric -> figure or (mean, sd); the model itself is the first system.
        samples: samples in order.
        details: heading -> text of a collapsed section: command, config, versions.
        summary: one or two sentences under the title: model, data and baselines.

    Raises:
        PIL.UnidentifiedImageError: a sample is no picture.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     cards = [Sample(Image.new("RGB", (8, 8)), {"captioner": "a cat", "reference": "a dog"})]
    ...     scores = {"test": {"captioner": {"cider": 0.5}}}
    ...     write_report(f"{folder}/report.html", "Captions", scores, cards, {"command": "mmgen train captioning"})
    ...     Path(folder, "report.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    True
    """
    _write_page(path, title, f"{_figures(table)}\n{_cards(samples)}", details, summary)


@dataclass(frozen=True)
class WrittenText:
    """A text with the log ratio by which steering raised each word.

    Args:
        label: name of its source.
        prompt: beginning of the text.
        words: each word after the prompt, and its log ratio; 0: not raised.
        note: short note under the text.
    """

    label: str
    prompt: str
    words: Sequence[tuple[str, float]]
    note: str = ""


def write_texts(
    path: str | Path, title: str, texts: Sequence[Sequence[WrittenText]], details: Mapping[str, str], summary: str = ""
) -> None:
    """Write a self-contained HTML page of texts side by side, with raised words in colour.

    Args:
        path, title, details, summary: see `write_report`.
        texts: rows of texts, side by side.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     text = WrittenText("steered", "The", [(" moon", 1.5), (" is", 0.0)])
    ...     write_texts(f"{folder}/texts.html", "Steering", [[text]], {"command": "mmgen steer"})
    ...     ' moon</mark> is' in Path(folder, "texts.html").read_text(encoding="utf-8")
    True
    """
    rows = "\n".join(f'<section class="texts">{"".join(map(_text, row))}</section>' for row in texts)
    _write_page(path, title, rows, details, summary)


def _text(text: WrittenText) -> str:
    words = "".join(
        f'<mark style="--raised: {min(100, 25 * raised):.0f}%" title="{raised:+.2f}">{escape(word)}</mark>'
        if raised >= _RAISED
        else escape(word)
        for word, raised in text.words
    )
    note = f'<p class="note">{escape(text.note)}</p>' if text.note else ""
    return f"<article><h3>{escape(text.label)}</h3><p><b>{escape(text.prompt)}</b>{words}</p>{note}</article>"


def _write_page(path: str | Path, title: str, main: str, details: Mapping[str, str], summary: str) -> None:
    folds = "".join(
        f"<details><summary>{escape(heading)}</summary><pre>{escape(text)}</pre></details>\n"
        for heading, text in details.items()
    )
    page = f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{escape(title)}</title>
<style>{_STYLE}</style>
</head>
<body>
<header><h1>{escape(title)}</h1>{f"<p>{escape(summary)}</p>" if summary else ""}</header>
<main>
{main}
{folds}</main>
</body>
</html>
"""
    Path(path).write_text(page, encoding="utf-8")


def picture_grid(rows: Sequence[Sequence[Image.Image]], side: int = 48) -> Image.Image:
    """Arrange pictures of one size in a grid, with small ones enlarged.

    Args:
        rows: rows of pictures, equally long.
        side: least length of the longer side of each, in pixels.

    Raises:
        UserError: there is no picture, or rows differ in length.

    >>> picture_grid([[Image.new("L", (8, 8))] * 3] * 2).size
    (152, 100)
    """
    lengths = sorted({len(row) for row in rows})
    if len(lengths) != 1 or lengths == [0]:
        expected = "rows of equally many pictures, one or more"
        raise UserError("picture grid", got=f"rows of {lengths}", expected=expected, fix="generate samples first")
    scale = max(1, -(-side // max(rows[0][0].size)))
    width, height = (scale * length for length in rows[0][0].size)
    grid = Image.new("RGB", (lengths[0] * (width + _GAP) - _GAP, len(rows) * (height + _GAP) - _GAP), "#808080")
    for i, row in enumerate(rows):
        for j, picture in enumerate(row):
            grid.paste(picture.resize((width, height), Image.Resampling.NEAREST), (j * (width + _GAP), i * (height + _GAP)))
    return grid


def tensor_grid(rows: Sequence[Tensor]) -> Image.Image:
    """`picture_grid` of rows of pictures (n, c, h, w) in [0, 1].

    >>> import torch
    >>> tensor_grid([torch.zeros(3, 1, 8, 8)] * 2).size
    (152, 100)
    """
    from mmgen.data.image import ImageProcessor  # it imports torch

    return picture_grid([[ImageProcessor(x.shape[-1], x.shape[0]).decode(x) for x in row] for row in rows])


def scatter(points: Mapping[str, tuple[float, float]], x: str, y: str, size: tuple[int, int] = (640, 400)) -> Image.Image:
    """Plot named points, x on a logarithmic axis.

    Args:
        points: name -> (x, y), x above 0.
        x, y: names of the axes.
        size: width and height in pixels.

    Raises:
        UserError: no points, or one whose x is not above 0.

    >>> scatter({"pplm": (9.0, 0.5), "gedi": (70.0, 0.8)}, "tokens/s", "success").size
    (640, 400)
    """
    wrong = [name for name, (place, _) in points.items() if not place > 0]
    if wrong or not points:
        got = f"{wrong[0]} at {points[wrong[0]][0]}" if wrong else "no points"
        raise UserError("scatter", got=got, expected="points with x above 0", fix="leave it out")
    picture = Image.new("RGB", size, "white")
    pen, font, edge = ImageDraw.Draw(picture), ImageFont.load_default(14), 56
    logs = {name: math.log10(place) for name, (place, _) in points.items()}
    low, high = min(logs.values()) - 0.15, max(logs.values()) + 0.3
    heights = [height for _, height in points.values()]
    room = 0.1 * (max(heights) - min(heights)) or 0.1
    bottom, top = min(heights) - room, max(heights) + room

    def place(log: float, height: float) -> tuple[float, float]:
        across, up = (log - low) / (high - low), (height - bottom) / (top - bottom)
        return edge + across * (size[0] - edge - 16), size[1] - edge - up * (size[1] - edge - 16)

    pen.line([place(low, top), place(low, bottom), place(high, bottom)], fill="#5c6773")
    for i in range(5):
        height = bottom + (top - bottom) * i / 4
        pen.text((4, place(low, height)[1] - 8), f"{height:.3g}", fill="#5c6773", font=font)
        log = low + (high - low) * i / 4
        pen.text((place(log, bottom)[0] - 12, size[1] - edge + 6), f"{10**log:.3g}", fill="#5c6773", font=font)
    pen.text((size[0] / 2 - 40, size[1] - 24), x, fill="#1b1f24", font=font)
    pen.text((edge + 8, 4), y, fill="#1b1f24", font=font)
    for name, (_, height) in points.items():
        across, down = place(logs[name], height)
        pen.ellipse((across - 4, down - 4, across + 4, down + 4), fill="#0b5cad")
        pen.text((across + 8, down - 8), name, fill="#1b1f24", font=font)
    return picture


def grid(table: Table) -> tuple[str, list[str], dict[str, list[tuple[str, list[str]]]]]:
    """Figures as rows of cells, a row for each system, or for each metric if these are more than `WIDE`.

    Returns:
        The head of the first column, those of the others, and split -> rows of (head, cells).

    >>> grid({"test": {"captioner": {"cider": 4.6}, "blind": {"cider": 0.3}}})
    ('system', ['CIDEr (0-10)'], {'test': [('captioner', ['4.60']), ('blind', ['0.30'])]})
    """
    metrics = metrics_of(table)
    names = {metric: LABELS.get(metric, metric) for metric in metrics}
    if len(metrics) <= WIDE:
        rows = {split: [(s, [cell(table, split, s, m) for m in metrics]) for s in table[split]] for split in table}
        return "system", [*names.values()], rows
    systems = list(dict.fromkeys(system for split in table for system in table[split]))
    rows = {
        split: [(names[m], [cell(table, split, s, m) for s in systems]) for m in metrics_of({split: table[split]})]
        for split in table
    }
    return "metric", systems, rows


def _figures(table: Table) -> str:
    if not table:
        return ""
    first, heads, rows = grid(table)
    head = "".join(f'<th scope="col">{escape(name).replace(" (", "<br>(")}</th>' for name in heads)
    bodies = []
    for split, lines in rows.items():
        body = [f'<tr><th class="split" scope="rowgroup" colspan="{len(heads) + 1}">{escape(split)}</th></tr>']
        for name, cells in lines:
            body.append(f'<tr><th scope="row">{escape(name)}</th>{"".join(f"<td>{one}</td>" for one in cells)}</tr>')
        bodies.append(f"<tbody>{''.join(body)}</tbody>")
    kind = "" if first == "system" else ' class="metrics"'
    head = f'<thead><tr><th scope="col">{first}</th>{head}</tr></thead>'
    return f'<section class="figures"><table{kind}>{head}{"".join(bodies)}</table></section>'


def _cards(samples: Sequence[Sample]) -> str:
    parts: list[str] = []
    group = None
    for sample in samples:
        if sample.group != group:
            parts.append("</section>" if parts else "")
            parts.append(f"<h2>{escape(sample.group)}</h2>" if sample.group else "")
            parts.append('<section class="cards">')
            group = sample.group
        parts.append(_card(sample))
    return "\n".join([*parts, "</section>"]) if parts else ""


def _card(sample: Sample) -> str:
    picture, (data, suffix) = sample.picture(), sample.encoded()
    mime = Image.MIME[suffix.upper()]
    alt = sample.text.get("reference", next(iter(sample.text.values()), "picture"))
    size = f'width="{picture.width}" height="{picture.height}"'
    lines = "".join(f"<dt>{escape(label)}</dt><dd>{escape(text) or '&nbsp;'}</dd>" for label, text in sample.text.items())
    note = f'<p class="note">{escape(sample.note)}</p>' if sample.note else ""
    source = f"data:{mime};base64,{b64encode(data).decode()}"
    kind = ' class="wide"' if sample.wide else ""
    return f'<article{kind}><div><img src="{source}" alt="{escape(alt)}" {size}>{note}</div><dl>{lines}</dl></article>'


_STYLE = """
:root { color-scheme: light dark;
  --page: #f6f7f9; --card: #fff; --ink: #1b1f24; --soft: #5c6773; --line: #dde2e8; --mark: #0b5cad; }
@media (prefers-color-scheme: dark) {
  :root { --page: #14171b; --card: #1d2127; --ink: #e8ebef; --soft: #9ba6b2; --line: #323942; --mark: #7cb7ff; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 76rem; padding: 1.5rem 1rem 4rem; background: var(--page); color: var(--ink);
  font: 16px/1.45 system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", sans-serif; }
h1 { margin: 0; font-size: 1.7rem; line-height: 1.2; overflow-wrap: anywhere; }
h2 { margin: 2.2rem 0 .8rem; font-size: 1.15rem; }
header p { margin: .5rem 0 0; max-width: 50rem; color: var(--soft); white-space: pre-line; }
.figures { margin: 1.5rem 0 0; overflow-x: auto; background: var(--card); border: 1px solid var(--line); border-radius: 10px; }
table { width: 100%; border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .5rem .9rem; text-align: right; white-space: nowrap; }
th:first-child { text-align: left; }
thead th { color: var(--soft); font-size: .85rem; font-weight: 500; vertical-align: bottom; }
tbody th { font-weight: 400; }
tbody tr + tr { border-top: 1px solid var(--line); }
tbody th.split { padding-top: 1rem; font-size: .85rem; font-weight: 600; border-top: 1px solid var(--line); }
table:not(.metrics) tbody tr:nth-child(2) { font-weight: 600; }
table:not(.metrics) tbody tr:nth-child(2) th { color: var(--mark); font-weight: 600; }
@media (max-width: 36rem) {
  table { font-size: .85rem; }
  thead th { font-size: .75rem; }
  th, td { padding: .45rem .35rem; }
  th:first-child { padding-left: .7rem; }
  th:last-child, td:last-child { padding-right: .7rem; }
  td { white-space: normal; }
}
.cards { display: grid; gap: .9rem; margin-top: 1.5rem;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 22rem), 1fr)); }
h2 + .cards { margin-top: 0; }
article { display: grid; grid-template-columns: minmax(6rem, 36%) 1fr; gap: .9rem; padding: .8rem; align-items: start;
  background: var(--card); border: 1px solid var(--line); border-radius: 10px; }
img { width: 100%; height: auto; border-radius: 6px; background: #fff; }
.wide { grid-column: 1 / -1; grid-template-columns: 1fr; }
.wide img { width: auto; max-width: 100%; }
.note { margin: .4rem 0 0; text-align: center; font-size: .8rem; color: var(--soft); font-variant-numeric: tabular-nums; }
dl { margin: 0; min-width: 0; }
dt { margin-top: .5rem; font-size: .75rem; color: var(--soft); }
dd { margin: 0; font-size: .92rem; white-space: pre-line; overflow-wrap: anywhere; }
dt:first-of-type { margin-top: 0; color: var(--mark); }
dd:first-of-type { font-size: 1.05rem; font-weight: 600; line-height: 1.3; }
.texts { display: grid; gap: .9rem; margin-top: .9rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 22rem), 1fr)); }
.texts article { display: block; }
.texts p { margin: .4rem 0 0; white-space: pre-line; overflow-wrap: anywhere; }
.texts .note { text-align: left; }
h3 { margin: 0; font-size: .75rem; font-weight: 500; color: var(--soft); }
mark { color: inherit; border-radius: 3px; background: color-mix(in srgb, #f5a623 var(--raised), transparent); }
details { margin-top: 1rem; background: var(--card); border: 1px solid var(--line); border-radius: 10px; }
.cards + details { margin-top: 2.2rem; }
summary { padding: .7rem .9rem; cursor: pointer; font-weight: 600; }
pre { margin: 0; padding: 0 .9rem .9rem; overflow-x: auto; font: .85rem/1.5 ui-monospace, Menlo, Consolas, monospace; }
"""
