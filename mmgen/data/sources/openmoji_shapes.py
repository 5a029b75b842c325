"""Captioned emoji and coloured shapes, as training data for questions about both."""

from collections.abc import Iterator
from typing import Any

NAMES = (
    ("red", "green", "blue", "yellow", "brown", "teal", "black", "gray"),
    ("circle", "rectangle", "triangle"),
)


def read(split: str, parts: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the emoji of the split, then the pictures of easy_vqa, captioned with colour and shape, as "red circle".

    Colour and shape come from a picture's open questions and their answers ("what color is the circle?", "red"); pictures
    whose questions do not determine both are left out.

    Args:
        split: the split, of both parts.
        parts: the opened cards ``openmoji`` and ``easy_vqa``.
    """
    for row in parts["openmoji"]:
        yield {**row, "part": "openmoji"}
    questions = parts["easy_vqa"]
    known: dict[Any, set[str]] = {}
    first: dict[Any, int] = {}
    columns = (questions[name] for name in ("question", "answer", "image_id"))
    for i, (question, answer, picture) in enumerate(zip(*columns)):
        first.setdefault(picture, i)
        if question.startswith("what "):
            known.setdefault(picture, set()).update([*question.strip("?").split(), answer])
    for picture, words in known.items():
        caption = [name for names in NAMES for name in names if name in words]
        if len(caption) == len(NAMES):
            yield {"image": questions[first[picture]]["image"], "caption": " ".join(caption), "part": "easy_vqa"}
