"""Draft of a data card for data without one, for a user to complete."""

import bisect
from typing import Any

import yaml

from mmgen.data.sources.front_matter import SIZES
from mmgen.data.sources.inferred import Inferred

TASKS = {
    ("image", "text"): "image-to-text",
    ("audio", "text"): "automatic-speech-recognition",
    ("image", "label"): "image-classification",
    ("audio", "label"): "audio-classification",
    ("text", "label"): "text-classification",
    ("image",): "unconditional-image-generation",
    ("text",): "text-generation",
}  # fmt: skip


def card_text(found: Inferred, source: dict[str, Any]) -> str:
    """Write a card for inferred data.

    Args:
        found: columns, splits and rows.
        source: the card's entry for their location.

    Returns:
        Front matter and prose, with questions where only the author knows the answer.
    """
    kinds = {spec["kind"] for spec in found.columns.values()}
    rows = sum(found.counts.values())
    front = {
        "pretty_name": found.name,
        "license": "unknown",
        "task_categories": [next((task for needs, task in TASKS.items() if kinds >= set(needs)), "other")],
        "size_categories": [SIZES[bisect.bisect_right([10**n for n in (3, 4, 5, 6, 7, 8, 9, 10)], rows)]],
        "mmgen": {"sources": [{**source, "reader": "inferred"}], "columns": found.columns, "splits": found.counts},
    }
    text = yaml.safe_dump(front, sort_keys=False, allow_unicode=True, default_flow_style=None, width=120)
    return f"""---
{text}---
# {found.name}

## Where the data come from
Read from the files as they are: who made them, when, and how were they chosen?

## Licence
Who holds the rights, and what do they allow? Write the licence above too.

## Not for
What should nobody do with these data, or with a model trained on them?

## Who is under-represented
Which people, places or things are missing or rare?

## Splits
{found.how[0].upper()}{found.how[1:]}: {", ".join(f"{split} {n}" for split, n in found.counts.items())}.
"""
