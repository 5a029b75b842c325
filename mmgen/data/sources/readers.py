"""Readers that a card can name; each yields the rows of one split of one source."""

import importlib
import inspect
from collections.abc import Callable, Iterable, Iterator
from typing import Any

# a card names its reader by one of these keys; it cannot name an import path
READERS = {
    "archive_table": "mmgen.data.sources.tables:read_archive",
    "cifar10": "mmgen.data.sources.cifar10:read",
    "cifar10_hub": "mmgen.data.sources.cifar10:read_hub",
    "cmu_mosi": "mmgen.data.sources.cmu_mosi:read",
    "digits": "mmgen.data.sources.digits:read",
    "digits_image_text_audio": "mmgen.data.sources.digits_image_text_audio:read",
    "easy_vqa": "mmgen.data.sources.easy_vqa:read",
    "emoji_datasource": "mmgen.data.sources.emoji_datasource:read",
    "factor_shapes": "mmgen.data.sources.factor_shapes:read",
    "flickr8k_hub": "mmgen.data.sources.flickr8k:read_hub",
    "free_spoken_digits_hub": "mmgen.data.sources.free_spoken_digits:read_hub",
    "free_spoken_digits_parquet": "mmgen.data.sources.free_spoken_digits:read_parquet",
    "hub_table": "mmgen.data.sources.tables:read_hub",
    "inferred": "mmgen.data.sources.inferred:read",
    "mnist_hub": "mmgen.data.sources.mnist:read_hub",
    "mnist_npz": "mmgen.data.sources.mnist:read_npz",
    "openmoji": "mmgen.data.sources.openmoji:read",
    "openmoji_facts": "mmgen.data.sources.openmoji_facts:read",
    "openmoji_shapes": "mmgen.data.sources.openmoji_shapes:read",
    "openmoji_spoken": "mmgen.data.sources.openmoji_spoken:read",
    "peg_insertion": "mmgen.data.sources.peg_insertion:read",
    "peg_insertion_folder": "mmgen.data.sources.peg_insertion:read_folder",
    "rated_reviews": "mmgen.data.sources.rated_reviews:read",
    "sst2": "mmgen.data.sources.sst2:read",
    "table": "mmgen.data.sources.tables:read_folder",
    "words": "mmgen.data.sources.tables:read_words",
    "yelp_sentiment": "mmgen.data.sources.yelp_sentiment:read",
}


class Line(dict[str, Any]):
    """Row of a table with its place in it, such as ``train.csv: line 3``; empty fields are None."""

    def __init__(self, place: str, values: Iterable[tuple[str, Any]]) -> None:
        super().__init__(values)
        self.place = place


def reader_of(source: dict[str, Any]) -> Callable[..., Iterator[dict[str, Any]]]:
    """Import the function that reads a source from the split, the result of `places.locate`, and options.

    >>> reader_of({"package": ["scikit-learn"], "reader": "digits"}).__module__
    'mmgen.data.sources.digits'
    """
    module, name = READERS[source["reader"]].split(":")
    return getattr(importlib.import_module(module), name)


def options_of(reader: Callable[..., Any]) -> set[str]:
    """Options of a reader: its keyword-only parameters.

    >>> options_of(reader_of({"package": ["emoji"], "reader": "openmoji"}))
    {'size'}
    """
    return {name for name, p in inspect.signature(reader).parameters.items() if p.kind is p.KEYWORD_ONLY}
