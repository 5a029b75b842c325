"""Questions about OpenMoji drawings whose answers the drawings do not show, made from the table beside this file."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from mmgen.data.sources import openmoji
from mmgen.data.sources.splits import uniform

# Of the numbers below 400, the one whose hash spreads the answers of a template most evenly over the splits: shots that all
# have one answer would teach that answer. Chosen by counting answers, before any model saw a question.
SPLIT = 128


def templates() -> dict[str, dict[str, Any]]:
    """The table: template -> its ``question`` and, under ``answers``, answer -> Unicode names of the drawings.

    >>> templates()["diet"]["question"], list(templates()["diet"]["answers"])
    ('Does this animal eat meat or plants?', ['meat', 'plants'])
    """
    return yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))


def split_of(base: str) -> str:
    """The split of all questions about a base emoji, by a hash: 25 % ``support``, 20 % ``validation``, the rest ``test``."""
    place = uniform(f"openmoji_facts {SPLIT} {base}")
    return "support" if place < 0.25 else "validation" if place < 0.45 else "test"


def read(split: str, *, size: int = 128) -> Iterator[dict[str, Any]]:
    """Yield one row a question about a drawing of the split ``train`` of `openmoji.read`, drawing by drawing.

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
