"""Coherence of generated modalities: the agreement of their classes according to judges."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mmgen.data.label import UNLABELLED
from mmgen.data.rows import DataSet
from mmgen.errors import UserError
from mmgen.judging.classifier import Judge
from mmgen.metrics.coherence import conditional_coherence, joint_coherence
from mmgen.models.base import Model

AT_ONCE = 250  # items generated together


def pairwise_coherence(
    model: Model, judges: Mapping[str, Judge], data: DataSet, labels: Sequence[Any], generator: torch.Generator
) -> dict[str, float]:
    """Conditional coherence of every pair "a to b": the share of items whose class is recognised in b generated from a.

    Items with a label and modality a count; those of classes unknown to the judges count as wrong.

    Args:
        model: generates any of its modalities from any other.
        judges: modality -> judge, all of the same classes.
        data: items with the modalities.
        labels: label of each item, or None.
        generator: makes the draws reproducible.

    Raises:
        UserError: the judges have different classes.
    """
    names = {name: judge.class_names for name, judge in judges.items()}
    first = next(iter(judges.values()))
    if any(other != first.class_names for other in names.values()):
        raise UserError("judges", got=names, expected="the same labels for all", fix="train them on the same label")
    place = first.classes_of(labels)
    pairs: dict[str, float] = {}
    for source in model.inputs:
        found: dict[str, list[Tensor]] = {name: [] for name in model.inputs if name != source}
        items = [i for i in range(len(data)) if data.has(source, i) and place[i] != UNLABELLED]
        if not items:  # no labelled item has this modality
            continue
        for given in data.keep(source).batches(f"from {source}", AT_ONCE, items, model.step.device):
            made = model.generate(given, ",".join(model.inputs), generator=generator)
            for name, parts in found.items():
                parts.append(judges[name].reads(model.processors[name], made[name]))
        pairs |= {
            f"{source} to {name}": conditional_coherence(torch.cat(parts), place[items]) for name, parts in found.items()
        }
    return pairs


def coherence_of(model: Model, judges: Mapping[str, Judge], made: Mapping[str, Tensor]) -> float:
    """Joint coherence: the share of generated items whose modalities all show the same class to the judges.

    Args:
        model: generating model.
        judges: modality -> judge.
        made: modality -> n generated values.
    """
    return joint_coherence({name: judge.reads(model.processors[name], made[name]) for name, judge in judges.items()})
