"""Handwritten digit, spoken digit and word, paired by digit inside each split."""

from collections.abc import Iterator
from typing import Any

from mmgen.data.sources.splits import uniform
from mmgen.errors import UserError


def read(split: str, parts: dict[str, Any], *, seed: int = 0) -> Iterator[dict[str, Any]]:
    """Yield every picture of the split with one recording of the same digit and split.

    Args:
        split: the split, of both parts; items of different splits are never paired.
        parts: the opened cards ``mnist`` and ``free_spoken_digits``.
        seed: seed of the choice of recordings.

    Raises:
        UserError: there is no recording of a digit that a picture shows.
    """
    pictures, recordings = parts["mnist"], parts["free_spoken_digits"]
    by_digit: dict[int, list[int]] = {}
    for i, digit in enumerate(recordings["label"]):
        by_digit.setdefault(digit, []).append(i)
    for row in pictures:
        choices = by_digit.get(row["label"])
        if choices is None:
            fix = "check the recordings with `mmgen data check free_spoken_digits`"
            raise UserError(f"digit in {split}", got=row["label"], expected="a digit that is spoken there", fix=fix)
        # by a hash instead of a random generator: pairs do not change when other rows are added or removed
        spoken = recordings[choices[int(uniform(f"pair {seed} {row['image_id']}") * len(choices))]]
        yield {**row, "audio": spoken["audio"], "speaker": spoken["speaker"], "recording": spoken["recording"]}
