"""CIFAR-10 from parquet files or from the Hub; a tenth of the training pictures are the validation split."""

from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from mmgen.data.sources.files import inside
from mmgen.data.sources.splits import uniform
from mmgen.data.sources.tables import parquet_rows
from mmgen.errors import UserError

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def read(split: str, folder: Path) -> Iterator[dict[str, Any]]:
    """Yield the pictures of one split of ``folder/train.parquet`` and ``folder/test.parquet``.

    Args:
        split: ``test``, or ``train`` and ``validation``: a tenth of the training pictures, by a hash of the file's name.
        folder: folder with the two files, with columns ``image`` (bytes and path) and ``label`` (0..9).

    Raises:
        UserError: a file is damaged, lacks a column, or has an invalid label.
    """
    part = "test" if split == "test" else "train"
    file = inside(folder, f"{part}.parquet")
    for row in parquet_rows(file, str(file)):
        if not isinstance(row.get("image"), dict) or row.get("label") not in range(len(CLASSES)):
            got, fix = f"label {row.get('label')!r} in columns {', '.join(row)}", "copy the file again"
            raise UserError(str(file), got=got, expected="columns image and label, labels 0..9", fix=fix)
        image_id = f"{part}-{PurePosixPath(row['image']['path']).stem}"
        if _in(split, image_id):
            yield _row(row["image"], row["label"], image_id)


def read_hub(split: str, rows: Callable[[str], Iterator[dict[str, Any]]]) -> Iterator[dict[str, Any]]:
    """Yield the pictures of one split of the Hub's data set, whose columns are ``img`` and ``label``."""
    part = "test" if split == "test" else "train"
    for i, row in enumerate(rows(part)):
        if _in(split, f"{part}-{i}"):
            yield _row(row["img"], row["label"], f"{part}-{i}")


def _in(split: str, image_id: str) -> bool:
    return split == "test" or (uniform(f"cifar10 {image_id}") < 0.1) == (split == "validation")


def _row(image: dict[str, Any], label: int, image_id: str) -> dict[str, Any]:
    picture, word = {"bytes": image["bytes"], "path": None}, CLASSES[label]
    caption = f"a photo of {'an' if word[0] in 'aeiou' else 'a'} {word}"
    return {"image": picture, "label": label, "word": word, "caption": caption, "image_id": image_id}
