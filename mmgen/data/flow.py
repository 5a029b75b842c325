"""Optical flow: the motion from one picture to the next, in pixels right and down."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from mmgen.errors import UserError, check_at_least


@dataclass(frozen=True)
class FlowProcessor:
    """Optical flow (2, size, size), averaged over the area of a pixel and in pixels of the resized picture.

    Args:
        size: side in pixels.

    Raises:
        UserError: the size is below 1, or a flow has another shape or is not finite.

    >>> FlowProcessor(size=2)(np.ones((4, 4, 2)))[:, 0, 0].tolist()
    [0.5, 0.5]
    """

    size: int
    kind: ClassVar[str] = "flow"

    def __post_init__(self) -> None:
        check_at_least("size", self.size, 1)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape (2, h, w) of the tensors."""
        return 2, self.size, self.size

    def __call__(self, value: np.ndarray) -> Tensor:
        """Convert a flow (s, s, 2) to (2, size, size)."""
        flow = np.asarray(value, np.float32)
        if flow.ndim != 3 or flow.shape[2] != 2 or flow.shape[0] != flow.shape[1]:
            raise UserError("flow", got=f"shape {flow.shape}", expected="(s, s, 2)", fix="check the field's name")
        if not np.isfinite(flow).all():
            got = flow[~np.isfinite(flow)][0].item()
            raise UserError("flow", got=got, expected="finite numbers", fix="drop the episode")
        tensor = torch.from_numpy(flow).permute(2, 0, 1)  # (2, s, s)
        if tensor.shape[1] == self.size:
            return tensor.contiguous()
        return torch.nn.functional.adaptive_avg_pool2d(tensor, self.size) * (self.size / tensor.shape[1])

    def decode(self, tensor: Tensor) -> np.ndarray:
        """Convert (2, size, size) to a flow (size, size, 2)."""
        return tensor.detach().float().cpu().permute(1, 2, 0).numpy()
