"""easy-VQA: questions about one coloured shape, from the installed package."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmgen.data.sources.splits import uniform


def read(split: str) -> Iterator[dict[str, Any]]:
    """Yield one row a question; all questions about a hashed 10 % of the training pictures are the split ``validation``."""
    import easy_vqa

    part = "test" if split == "test" else "train"
    of_part = {
        "train": (easy_vqa.get_train_questions, easy_vqa.get_train_image_paths),
        "test": (easy_vqa.get_test_questions, easy_vqa.get_test_image_paths),
    }
    questions, paths = (read() for read in of_part[part])
    for question, answer, number in zip(*questions):
        image_id = f"{part}-{number}"
        if part == "train" and (uniform(f"easy_vqa {image_id}") < 0.1) != (split == "validation"):
            continue
        picture = {"bytes": Path(paths[number]).read_bytes(), "path": None}
        yield {"image": picture, "question": question, "answer": answer, "image_id": image_id}
