"""Splits by a hash of each item: stable when rows are added, and the same on every machine."""

import hashlib


def uniform(key: str) -> float:
    """Hash ``key`` to a number uniform over [0, 1).

    Args:
        key: name of the item, as ``"easy_vqa train-12"``; the data set's name makes data sets independent.

    Returns:
        A number in [0, 1).

    >>> uniform("digits 7") == uniform("digits 7"), 0 <= uniform("digits 8") < 1
    (True, True)
    """
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") / 2**64
