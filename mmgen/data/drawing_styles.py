"""Augmentation of pictures by style: the same drawing as another hand might make it."""

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as transforms

COLOURS = {
    "adjust_brightness": (0.8, 1.2),
    "adjust_contrast": (0.7, 1.3),
    "adjust_saturation": (0.6, 1.4),
    "adjust_hue": (-0.04, 0.04),
}
SCALE, DEGREES, SHIFT = (0.8, 1.2), 8.0, 0.04  # side, rotation either way, and shift either way as a share of the side
LINES = (-1, 0, 1, 2)  # pixels that dark lines lose on each side; -1: they gain one
BLURRED = 0.5  # share of pictures that lose half their resolution


def restyled(pictures: Tensor, generator: torch.Generator) -> Tensor:
    """Vary the colours (of the background too), line width, scale, place and sharpness of each picture at random.

    Args:
        pictures: (b, 3, h, w) on the CPU, from 0 to 1, on a light background.
        generator: source of the random numbers.

    Returns:
        Pictures of the same shape and range.

    >>> restyled(torch.ones(2, 3, 16, 16), torch.Generator().manual_seed(0)).shape
    torch.Size([2, 3, 16, 16])
    """

    def uniform(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=generator))

    made = []
    for picture in pictures:
        thinner = LINES[int(torch.randint(len(LINES), (), generator=generator))]
        if thinner:  # the lightest of the pixels around removes dark lines, the darkest widens them
            sign, side = (1, 2 * thinner + 1) if thinner > 0 else (-1, 3)
            picture = sign * F.max_pool2d(sign * picture[None], side, 1, side // 2)[0]
        for change, (low, high) in COLOURS.items():
            picture = getattr(transforms, change)(picture, uniform(low, high))
        height, width = picture.shape[-2:]
        moved = [round(uniform(-SHIFT, SHIFT) * side) for side in (width, height)]
        picture = transforms.affine(
            picture, uniform(-DEGREES, DEGREES), moved, uniform(*SCALE), [0.0, 0.0], InterpolationMode.BILINEAR, fill=[1.0]
        )
        if uniform(0, 1) < BLURRED:
            half = F.interpolate(picture[None], (max(1, height // 2), max(1, width // 2)), mode="area")
            picture = F.interpolate(half, (height, width), mode="bicubic")[0]
        made.append(picture.clamp(0, 1))
    return torch.stack(made)
