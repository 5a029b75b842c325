"""Features of pictures by a packaged network, by which what is generated is compared with what is real."""

from collections.abc import Sequence

import torch
from accelerate import PartialState
from torch import Tensor
from tqdm.auto import tqdm

from mmgen.data.image import ImageProcessor
from mmgen.modalities.image import ImageEncoder

AT_ONCE = 50  # pictures that are read together


@torch.no_grad()
def picture_features(backbone: str, processor: ImageProcessor, values: Sequence[Tensor], side: int = 112) -> Tensor:
    """Features of pictures by the packaged weights of ``backbone``.

    Args:
        backbone: a key of `mmgen.modalities.image.PACKAGES`.
        processor: by which ``values`` become pictures.
        values: n tensors (c, h, w).
        side: to which each picture is enlarged, in pixels.

    Returns:
        (n, d) on the CPU.
    """
    device = PartialState().device
    encoder = ImageEncoder(backbone, weights="package", frozen=True).to(device)
    eye = ImageProcessor(side, mean=encoder.mean, std=encoder.std)
    parts = []
    for start in tqdm(range(0, len(values), AT_ONCE), desc="features", dynamic_ncols=True):
        pictures = torch.stack([eye(processor.decode(value)) for value in values[start : start + AT_ONCE]])
        parts.append(encoder(pictures.to(device)).cpu())
    return torch.cat(parts)
