"""Reports of a run: ``report.html`` and the model card, from its results and the recipe's ``card.md``."""

import math
import re
import shlex
import statistics
import string
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from mmgen.data.cards import read_card
from mmgen.errors import UserError
from mmgen.storage import read_json
from mmgen.training.model_card import ModelCard, contact_sheet, write_model_card
from mmgen.training.report import Figure, Sample, write_report
from mmgen.training.result import read_result

SHOWN = 16  # samples in the picture of the model card
TASK = "other"  # task on the Hub by default


def write_reports(folder: Path, config: Any, prose: Path, runs: Sequence[Path] = ()) -> None:
    """Write ``report.html`` and ``README.md`` of a run, or of a study of several seeds.

    Args:
        folder: the run folder.
        config: config of the run.
        prose: the recipe's ``card.md``: front matter ``name``, ``title``, ``description``, ``task``, ``tags``, ``base_model``,
            ``picture`` and ``evaluated``, then a summary, then sections, with placeholders ``{config.model.words}``,
            ``{data.name}`` and the words of the `Result`.
        runs: runs of a study, whose figures are averaged; samples are those of the first.

    Raises:
        UserError: ``card.md`` names an unknown value.
    """
    table: dict[str, Mapping[str, Mapping[str, Figure]]] = {}
    samples: list[Sample] = []
    texts: dict[str, str] = {}
    words = {"task": TASK}
    runs = runs or [folder]
    for split, figures in read_json(folder / "metrics.json").items():
        saved = [one for run in runs if (one := read_result(run, split))]
        if len(saved) < len(runs):  # evaluated by an earlier version
            table[split] = {"model": figures}
            continue
        table[split] = averaged([one.systems for one in saved])
        words |= saved[0].words
        texts |= {f"{heading} ({split})": text for heading, text in saved[0].texts.items()}
        if saved[0].about:
            texts[f"evaluation on {split}"] = "\n".join(
                f"{key}: {_shown(figures[key])}" for key in saved[0].about if key in figures
            )
        samples += [_grouped(sample, split) for sample in saved[0].samples]
    details = {
        "command": shlex.join(read_json(folder / "run.json")["command"]),
        **texts,
        "config": (folder / "config.yaml").read_text(encoding="utf-8"),
    }
    name = getattr(getattr(config, "data", None), "card", None)
    card = read_card(name) if name else None
    front, summary, body = _prose(prose, {"config": config, "data": card, **words})
    write_report(folder / "report.html", front["title"], table, samples, details, summary)
    if card is None:  # a recipe without a data card has no model card
        return
    base = front.get("base_model")
    write_model_card(folder / "README.md", ModelCard(
        name=front["name"],
        description=front["description"],
        license="apache-2.0",
        task=front["task"],
        data=card.name,
        data_license=card.license,
        table=table,
        command=details["command"],
        picture=_picture(folder, samples),
        picture_text=front.get("picture", ModelCard.picture_text),
        run=runs[0].relative_to(folder).as_posix() if runs != [folder] else "",
        body=body,
        tags=front.get("tags", ()),
        base_model=base if base and "/" in base else None,
        evaluated=front.get("evaluated"),
    ))  # fmt: skip


def averaged(systems: Sequence[Mapping[str, Mapping[str, float]]]) -> Mapping[str, Mapping[str, Figure]]:
    """Mean and standard deviation over seeds of each figure that all have; for one seed the figures.

    >>> averaged([{"model": {"cider": 1.0}}, {"model": {"cider": 2.0}}])
    {'model': {'cider': (1.5, 0.7071067811865476)}}
    """
    if len(systems) == 1:
        return systems[0]
    found: dict[str, dict[str, Figure]] = {}
    for system, figures in systems[0].items():
        for metric in figures:
            if all(metric in one.get(system, {}) for one in systems):
                found.setdefault(system, {})[metric] = mean_and_deviation([float(one[system][metric]) for one in systems])
    return found


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float]:
    """The mean and standard deviation over seeds; NaN where a seed has no finite figure.

    >>> mean_and_deviation([1.0, 3.0]), mean_and_deviation([1.0, math.nan])
    ((2.0, 1.4142135623730951), (nan, nan))
    """
    if not all(map(math.isfinite, values)):
        return math.nan, math.nan
    return statistics.fmean(values), statistics.stdev(values)


def _prose(file: Path, values: Mapping[str, Any]) -> tuple[dict[str, Any], str, str]:
    """Front matter, summary and sections of ``card.md``, with placeholders filled in."""
    name = file.parent.name
    text = file.read_text(encoding="utf-8") if file.is_file() else f"---\ntitle: {name}\n---\n"
    match = re.match(r"---\n(.*?)^---\n(.*)", text, re.DOTALL | re.MULTILINE)
    if match is None:
        fix = "begin the file with --- YAML ---"
        raise UserError(str(file), got=repr(text[:40]), expected="front matter between two lines ---", fix=fix)
    try:
        filled = string.Formatter().vformat(match[2], (), values)
        front = {key: _filled(value, values) for key, value in yaml.safe_load(match[1]).items()}
    except (KeyError, AttributeError, IndexError, ValueError) as error:
        fix = "use {config.KEY}, {data.name} or a word of the Result"
        raise UserError(str(file), got=str(error), expected="placeholders that have a value", fix=fix) from error
    front = {"name": f"{name}-{getattr(values['data'], 'name', '')}", "task": values["task"], **front}
    front.setdefault("description", f"{front['title']}.")
    summary, _, body = filled.partition("\n## ")
    return front, " ".join(summary.split()), f"## {body}" if body else ""


def _filled(value: Any, values: Mapping[str, Any]) -> Any:
    if isinstance(value, list):
        return [_filled(one, values) for one in value]
    return string.Formatter().vformat(value, (), values) if isinstance(value, str) else value


def _grouped(sample: Sample, split: str) -> Sample:
    group = f"{split}: {sample.group}" if sample.group else split
    return Sample(sample.image, sample.text, sample.note, group, sample.wide)


def _picture(folder: Path, samples: Sequence[Sample]) -> str | None:
    """The picture of the model card: the first sample if it is wide, otherwise a grid of the first ones."""
    if not samples:
        return None
    file = folder / "samples" / "samples.png"
    file.parent.mkdir(exist_ok=True)
    sheet = samples[0].picture() if samples[0].wide else contact_sheet(samples[:SHOWN])
    sheet.convert("RGB").save(file)
    return "samples/samples.png"


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
