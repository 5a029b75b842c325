"""Coherence of generated modalities: the agreement of the labels that judges give them."""

from collections.abc import Mapping

import torch
from torch import Tensor

from mmgen.errors import UserError


def conditional_coherence(judged: Tensor, labels: Tensor) -> float:
    """The share of generated items whose label, according to the judge, is that of the item they were generated from.

    Args:
        judged: (n,) whole numbers, the judge's label of each generated item.
        labels: (n,) whole numbers, the labels of the conditioning items, in the same order.

    Returns:
        The share, from 0 to 1. Errors of the judge lower it: print the judge's accuracy beside it.

    Raises:
        UserError: there is no item, the shapes differ, or they are not whole numbers.

    Source: Shi et al. 2019, arXiv 1911.03393 (cross coherence).

    >>> conditional_coherence(torch.tensor([3, 1, 4, 1]), torch.tensor([3, 1, 4, 7]))
    0.75
    """
    return joint_coherence({"judged": judged, "labels": labels})


def joint_coherence(judged: Mapping[str, Tensor]) -> float:
    """The share of samples whose modalities all get the same label from their judges.

    Args:
        judged: modality -> (n,) whole numbers, its judge's label of each sample; two modalities or more.

    Returns:
        The share, from 0 to 1. Samples that are all alike reach 1, so look at them too.

    Raises:
        UserError: there is no sample or one modality only, the shapes differ, or they are not whole numbers.

    Source: Shi et al. 2019, arXiv 1911.03393 (joint coherence).

    >>> joint_coherence({"image": torch.tensor([7, 2]), "audio": torch.tensor([7, 2]), "text": torch.tensor([7, 0])})
    0.5
    """
    shapes = {name: tuple(labels.shape) for name, labels in judged.items()}
    if len(shapes) < 2:
        got = ", ".join(shapes) or "nothing"
        raise UserError("judged", got=got, expected="two modalities or more", fix="judge another")
    if len(set(shapes.values())) > 1 or len(next(iter(shapes.values()))) != 1 or 0 in next(iter(shapes.values())):
        raise UserError("labels", got=f"shapes {shapes}", expected="(n >= 1,) for all", fix="give one label an item")
    for name, labels in judged.items():
        if labels.is_floating_point() or labels.is_complex():
            raise UserError(name, got=labels.dtype, expected="whole numbers", fix="take the argmax of the judge's logits")
    first, *others = (labels.detach().cpu() for labels in judged.values())
    return float(torch.stack([first == other for other in others]).all(dim=0).double().mean())
