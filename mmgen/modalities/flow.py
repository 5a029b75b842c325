"""Optical flow: a decoder that predicts each pixel's motion from a code and the picture's feature maps."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mmgen.modalities.touch import SLOPE


class Flow(NamedTuple):
    """Predicted flow at increasing resolutions, in pixels of the input picture, and logits that there is motion.

    Args:
        scales: (b, 2, h_i, w_i) each, right and down, coarse to fine, each with twice the resolution of the one before.
        mask_logits: (b, 1, h, w) at the finest resolution.
    """

    scales: list[Tensor]
    mask_logits: Tensor

    @property
    def finest(self) -> Tensor:
        """Finest flow times the probability of motion, (b, 2, h, w)."""
        return self.scales[-1] * self.mask_logits.sigmoid()


class FlowDecoder(nn.Module):
    """Decoder from a code z and a picture's feature maps to the flow to the next picture, at the scale of each map.

    The coarsest scale reads the map with z at every position. Each next scale reads the features and flow of the one before,
    upsampled by two, and the map of its own size.

    Args:
        latent_dim: size k of z.
        map_channels: channels of the feature maps, coarse to fine.
        widths: channels of each scale except the first; surplus entries are ignored.

    Source: Lee et al. 2019, arXiv 1810.10191, section III-B, who use the decoder of FlowNet (Fischer et al. 2015).

    >>> maps = [torch.zeros(3, c, side, side) for c, side in ((16, 2), (8, 4))]
    >>> flow = FlowDecoder(5, [16, 8])(torch.zeros(3, 5), maps)
    >>> [tuple(f.shape) for f in flow.scales], tuple(flow.mask_logits.shape)
    ([(3, 2, 2, 2), (3, 2, 4, 4)], (3, 1, 4, 4))
    """

    def __init__(self, latent_dim: int, map_channels: Sequence[int], widths: Sequence[int] = (64, 32, 32, 32, 32, 32)) -> None:
        super().__init__()
        channels = [latent_dim + map_channels[0]]
        self.enlarge, self.enlarge_flow = nn.ModuleList(), nn.ModuleList()
        for width, of_map in zip(widths, map_channels[1:]):
            up = nn.ConvTranspose2d(channels[-1], width, 4, stride=2, padding=1)
            self.enlarge.append(nn.Sequential(up, nn.LeakyReLU(SLOPE)))
            self.enlarge_flow.append(nn.ConvTranspose2d(2, 2, 4, stride=2, padding=1))
            channels.append(width + of_map + 2)
        self.flows = nn.ModuleList(nn.Conv2d(c, 2, 3, padding=1) for c in channels)
        self.mask = nn.Conv2d(channels[-1], 1, 3, padding=1)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # the memory format of the maps

    def forward(self, z: Tensor, maps: Sequence[Tensor]) -> Flow:
        """Compute the flow at each map's size from z (b, k) and maps (b, c_i, h_i, w_i), coarse to fine, sides doubling."""
        x = torch.cat([z[:, :, None, None].expand(-1, -1, *maps[0].shape[2:]), maps[0]], 1)  # (b, k + c_0, h_0, w_0)
        scales = [self.flows[0](x)]  # (b, 2, h_0, w_0)
        for enlarge, enlarge_flow, predict, of_picture in zip(self.enlarge, self.enlarge_flow, self.flows[1:], maps[1:]):
            x = torch.cat([enlarge(x), of_picture, enlarge_flow(scales[-1])], 1)
            scales.append(predict(x))
        return Flow(scales, self.mask(x))
