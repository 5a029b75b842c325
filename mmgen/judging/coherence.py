"""Coherence of generated modalities by judges: whether everything that is made shows the same class."""

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
    """Conditional coherence of every pair "a to b": the share of items whose class the judge of b reads in b made from a.

    Items count that have a label and modality a; one of a class that the judges were not trained on counts as wrong.

    Args:
        model: generates any of its modalities from any other.
        judges: modality -> its judge, all of the same classes.
        data: the items.
        labels: of each item, None for no label.
        generator: of the draws.

    Raises:
        UserError: the judges tell different classes apart.
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
        if not items:  # nothing can be judged from this modality
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
    """Joint coherence: the share of generated items in all of whose modalities the judges read the same class.

    Args:
        model: made the values.
        judges: modality -> its judge.
        made: modality -> its n values.
    """
    return joint_coherence({name: judge.reads(model.processors[name], made[name]) for name, judge in judges.items()})
