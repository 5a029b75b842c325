"""Questions about OpenMoji drawings that need world knowledge, from the table beside this file."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from mmgen.data.sources import openmoji
from mmgen.data.sources.splits import uniform

# the number below 400 whose hash distributes each template's answers most evenly over the splits, as shots that all have one
# answer would teach that answer; chosen by counting answers, before any model was run
SPLIT = 128


def templates() -> dict[str, dict[str, Any]]:
    """Read the table: template -> its ``question`` and ``answers``, a map answer -> Unicode names of drawings.

    >>> templates()["diet"]["question"], list(templates()["diet"]["answers"])
    ('Does this animal eat meat or plants?', ['meat', 'plants'])
    """
    return yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))


def split_of(base: str) -> str:
    """Split of all questions about a base emoji by a hash: 25 % ``support``, 20 % ``validation``, the rest ``test``."""
    u = uniform(f"openmoji_facts {SPLIT} {base}")
    return "support" if u < 0.25 else "validation" if u < 0.45 else "test"


def read(split: str, *, size: int = 128) -> Iterator[dict[str, Any]]:
    """Yield one row for each question about a drawing of the split ``train`` of `openmoji.read`, drawing by drawing.

    Args:
        split: see `split_of`.
        size: side of the square picture in pixels.
    """
    asked: dict[str, list[dict[str, Any]]] = {}
    for template, entry in templates().items():
        answers = list(entry["answers"])
        for answer, names in entry["answers"].items():
            row = {"question": entry["question"], "answer": answer, "answers": answers, "template": template}
            for name in names:
                asked.setdefault(name, []).append(row)
    for path, drawing in openmoji.drawings("train"):
        questions = asked.get(drawing["caption"].removeprefix("flag: "))
        if questions and split_of(drawing["base"]) == split:
            image = openmoji.draw(path, size)
            for question in questions:
                yield {"image": image, **drawing, **question}
