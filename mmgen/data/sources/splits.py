"""Splits fixed by a hash of what is split: stable when rows are added, the same on every machine."""

import hashlib


def uniform(key: str) -> float:
    """A number that depends only on ``key``, spread evenly over [0, 1).

    Args:
        key: what is placed, as ``"easy_vqa train-12"``: the data set's name keeps two data sets independent.

    Returns:
        A number in [0, 1).

    >>> uniform("digits 7") == uniform("digits 7"), 0 <= uniform("digits 8") < 1
    (True, True)
    """
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") / 2**64
