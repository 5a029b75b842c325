"""Comparisons of pictures, by features of a packaged network or by pixel values."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from tqdm.auto import tqdm

from mmgen import processes
from mmgen.data.image import ImageProcessor
from mmgen.errors import Mistakes, UserError
from mmgen.metrics.frechet import frechet_distance
from mmgen.modalities.image import PACKAGES, ImageEncoder

AT_ONCE = 50  # pictures encoded together


@torch.no_grad()
def picture_features(backbone: str, processor: ImageProcessor, values: Sequence[Tensor], side: int = 112) -> Tensor:
    """Features of pictures by the packaged weights of ``backbone``.

    Args:
        backbone: a key of `mmgen.modalities.image.PACKAGES`.
        processor: converts ``values`` to pictures.
        values: n tensors (c, h, w).
        side: pixels to which the side of each picture is scaled.

    Returns:
        (n, d) on the CPU.
    """
    device = processes.device()
    encoder = ImageEncoder(backbone, weights="package", frozen=True).to(device)
    transform = ImageProcessor(side, mean=encoder.mean, std=encoder.std)
    parts = []
    for start in tqdm(range(0, len(values), AT_ONCE), desc="features", dynamic_ncols=True):
        pictures = torch.stack([transform(processor.decode(value)) for value in values[start : start + AT_ONCE]])
        parts.append(encoder(pictures.to(device)).cpu())
    return torch.cat(parts)


def check_comparison(path: str, items: int, features: str, errors: Mistakes) -> None:
    """Check settings of a comparison of pictures: at least two items or 0 for all, and a known network or none.

    Args:
        path: key of the section with the keys ``items`` and ``features``, for the messages.
        items: number of items.
        features: a key of `mmgen.modalities.image.PACKAGES`, or empty.
        errors: receives every mistake but the number of items, which is raised.

    Raises:
        UserError: one item.
    """
    errors.check_each(f"{path}.features", [features] if features else [], PACKAGES)
    if items == 1:
        raise UserError(f"{path}.items", got=1, expected="two or more, or 0 for all", fix=f"set {path}.items=200")


def frechet(real: Tensor, made: Tensor) -> float:
    """The Fréchet distance of features, see `mmgen.metrics.frechet.frechet_distance`; NaN for fewer than two rows.

    Args:
        real, made: (n, d) and (m, d), from `picture_features`.

    >>> frechet(torch.ones(1, 3), torch.ones(1, 3))
    nan
    """
    return frechet_distance(real, made) if min(len(real), len(made)) > 1 else math.nan


def nearest_pictures(x: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
    """The root mean square difference of each picture to the nearest of ``seen``, and the index of that.

    Args:
        x: (n, c, h, w).
        seen: (m, c, h, w), on the same scale.

    Returns:
        Distances (n,) on this scale, and indices (n,).

    >>> seen = torch.rand(3, 1, 4, 4)
    >>> [part.tolist() for part in nearest_pictures(seen[1:2], seen)]
    [[0.0], [1]]
    """
    which = torch.cdist(x.flatten(1), seen.flatten(1)).argmin(1)  # (n,); computed by products, inaccurate for small distances
    return (x - seen[which]).square().flatten(1).mean(1).sqrt(), which
