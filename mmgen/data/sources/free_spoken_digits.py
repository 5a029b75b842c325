"""The Free Spoken Digit Dataset: recordings 0-4 of each speaker and digit are the test split, 5-9 the validation split."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mmgen.data.sources.digits import WORDS
from mmgen.data.sources.files import inside
from mmgen.data.sources.tables import parquet_rows
from mmgen.errors import UserError

FILE = re.compile(r"(?P<digit>\d)_(?P<speaker>\w+)_(?P<index>\d+)\.wav")
VALIDATION = range(5, 10)


def read_parquet(split: str, folder: Path) -> Iterator[dict[str, Any]]:
    """Yield the recordings of one split of ``folder/train.parquet`` and ``folder/test.parquet``.

    Raises:
        UserError: a file is damaged, or a recording's name is not ``DIGIT_SPEAKER_INDEX.wav``.
    """
    file = inside(folder, "test.parquet" if split == "test" else "train.parquet")
    return _rows(split, parquet_rows(file, str(file)))


def read_hub(split: str, rows: Callable[[str], Iterator[dict[str, Any]]]) -> Iterator[dict[str, Any]]:
    """Yield the recordings of one split of the Hub's data set, whose column ``audio`` keeps the authors' file names.

    Raises:
        UserError: a recording's name is not ``DIGIT_SPEAKER_INDEX.wav``.
    """
    return _rows(split, rows("test" if split == "test" else "train"))


def _rows(split: str, rows: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for row in rows:
        name = Path(row["audio"]["path"] or "").name
        parts = FILE.fullmatch(name)
        if parts is None:  # only the name gives the speaker and the split
            fix = "use a source of the data set that keeps file names"
            raise UserError("recording", got=name or "no name", expected="DIGIT_SPEAKER_INDEX.wav", fix=fix)
        if split != "test" and (int(parts["index"]) in VALIDATION) != (split == "validation"):
            continue
        digit = int(parts["digit"])
        yield {
            "audio": {"bytes": row["audio"]["bytes"], "path": name},
            "label": digit,
            "word": WORDS[digit],
            "speaker": parts["speaker"],
            "recording": name,
        }
