"""Emoji with their names and coloured shapes with theirs: captions to learn from for questions about either."""

from collections.abc import Iterator
from typing import Any

NAMES = (
    ("red", "green", "blue", "yellow", "brown", "teal", "black", "gray"),
    ("circle", "rectangle", "triangle"),
)


def read(split: str, parts: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the emoji of the split, then its shapes: a picture of easy_vqa with colour and shape, as "red circle".

    They are told by the picture's open questions and their answers ("what color is the circle?", "red"); a picture whose
    questions leave one of them open is left out.

    Args:
        split: the split; both parts have it, and nothing crosses.
        parts: the opened cards ``openmoji`` and ``easy_vqa``.
    """
    for row in parts["openmoji"]:
        yield {**row, "part": "openmoji"}
    questions, known, first = parts["easy_vqa"], {}, {}
    columns = (questions[name] for name in ("question", "answer", "image_id"))
    for i, (question, answer, picture) in enumerate(zip(*columns)):
        first.setdefault(picture, i)
        if question.startswith("what "):
            known.setdefault(picture, set()).update([*question.strip("?").split(), answer])
    for picture, words in known.items():
        caption = [name for names in NAMES for name in names if name in words]
        if len(caption) == len(NAMES):
            yield {"image": questions[first[picture]]["image"], "caption": " ".join(caption), "part": "easy_vqa"}
