"""CMU-MOSI by utterance: text, audio and video features; a fifth of the training videos are the validation split."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmgen.data.sources.columns import check_value
from mmgen.data.sources.files import inside
from mmgen.data.sources.splits import uniform
from mmgen.data.sources.tables import parquet_rows
from mmgen.errors import UserError

WIDTHS = {"text_features": 100, "audio_features": 73, "video_features": 100}


def read(split: str, folder: Path) -> Iterator[dict[str, Any]]:
    """Yield the utterances of one split of ``folder/train.parquet`` and ``folder/test.parquet``, video by video, in order.

    Args:
        split: ``test``, or ``train`` and ``validation``: a fifth of the training videos, by a hash of the video's name.
        folder: folder with the two files.

    Raises:
        UserError: a file is damaged, or a feature has another width or a number that is not finite.
    """
    file = inside(folder, "test.parquet" if split == "test" else "train.parquet")
    for row in parquet_rows(file, str(file)):
        if split != "test" and (uniform(f"cmu_mosi {row.get('video_id')}") < 0.2) != (split == "validation"):
            continue
        for name, width in WIDTHS.items():
            wrong = check_value({"kind": "vector", "shape": [width], "range": [None, None]}, row.get(name))
            if wrong:
                what, fix = f"{file.name}: {name} of utterance {row.get('id')}", "copy the file again, or drop the row"
                raise UserError(what, got=wrong[0], expected=wrong[1], fix=fix)
        yield row
