"""Whether what is generated shows the same thing in every modality, by the labels that a judge gives it."""

from collections.abc import Mapping

import torch
from torch import Tensor


def conditional_coherence(judged: Tensor, labels: Tensor) -> float:
    """The share of generated items in which the judge sees the label of what they were generated from.

    Args:
        judged: (n,) whole numbers, the judge's label of each generated item.
        labels: (n,) the labels of the items given, in the same order.

    Returns:
        The share, from 0 to 1. A judge that errs lowers it: print its own accuracy beside it.

    Raises:
        ValueError: there is no item, the shapes differ, or they are not whole numbers.

    Source: Shi et al. 2019, arXiv 1911.03393 (cross coherence).

    >>> conditional_coherence(torch.tensor([3, 1, 4, 1]), torch.tensor([3, 1, 4, 7]))
    0.75
    """
    return joint_coherence({"judged": judged, "labels": labels})


def joint_coherence(judged: Mapping[str, Tensor]) -> float:
    """The share of samples whose modalities are all judged to show the same label.

    Args:
        judged: modality -> (n,) whole numbers, its judge's label of each sample; two modalities or more.

    Returns:
        The share, from 0 to 1. Samples that are all alike reach 1: look at them too.

    Raises:
        ValueError: there is no sample or one modality only, the shapes differ, or they are not whole numbers.

    Source: Shi et al. 2019, arXiv 1911.03393 (joint coherence).

    >>> joint_coherence({"image": torch.tensor([7, 2]), "audio": torch.tensor([7, 2]), "text": torch.tensor([7, 0])})
    0.5
    """
    shapes = {name: tuple(labels.shape) for name, labels in judged.items()}
    if len(shapes) < 2:
        raise ValueError(f"judged: got {', '.join(shapes) or 'nothing'}, expected two modalities or more; judge another")
    if len(set(shapes.values())) > 1 or len(next(iter(shapes.values()))) != 1 or 0 in next(iter(shapes.values())):
        raise ValueError(f"labels: got shapes {shapes}, expected (n >= 1,) for all; give one label an item")
    for name, labels in judged.items():
        if labels.is_floating_point() or labels.is_complex():
            raise ValueError(f"{name}: got {labels.dtype}, expected whole numbers; take the argmax of the judge's logits")
    first, *others = (labels.detach().cpu() for labels in judged.values())
    return float(torch.stack([first == other for other in others]).all(dim=0).double().mean())
