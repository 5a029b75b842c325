"""Optical flow: where each pixel of a picture goes, predicted from a code and the picture's feature maps."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mmgen.modalities.touch import SLOPE


class Flow(NamedTuple):
    """A predicted flow at rising resolution, in pixels of the picture that was read, and where it is believed to be any.

    Args:
        scales: (b, 2, h_i, w_i) each, coarse to fine, each twice as fine as the one before: right and down.
        mask_logits: (b, 1, h, w) of the finest.
    """

    scales: list[Tensor]
    mask_logits: Tensor

    @property
    def finest(self) -> Tensor:
        """The finest flow, where the mask holds it probable that there is any: (b, 2, h, w)."""
        return self.scales[-1] * self.mask_logits.sigmoid()


class FlowDecoder(nn.Module):
    """A code z and the feature maps of a picture -> the flow to the next picture, at as many scales as there are maps.

    At the coarsest, z stands at every place beside the map. Each next scale reads the one before, twice enlarged, with its
    flow, and the map of its own size.

    Args:
        latent_dim: size k of z.
        map_channels: of the feature maps, coarse to fine.
        widths: channels of each scale but the first, for as many.

    Source: Lee et al. 2019, arXiv 1810.10191, section III-B, whose decoder is FlowNet's (Fischer et al. 2015).

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
        self.to(memory_format=torch.channels_last)  # as the maps are

    def forward(self, z: Tensor, maps: Sequence[Tensor]) -> Flow:
        """z (b, k), maps (b, c_i, h_i, w_i), coarse to fine, each of twice the side -> the flow at each of their sizes."""
        x = torch.cat([z[:, :, None, None].expand(-1, -1, *maps[0].shape[2:]), maps[0]], 1)  # (b, k + c_0, h_0, w_0)
        scales = [self.flows[0](x)]  # (b, 2, h_0, w_0)
        for enlarge, enlarge_flow, predict, of_picture in zip(self.enlarge, self.enlarge_flow, self.flows[1:], maps[1:]):
            x = torch.cat([enlarge(x), of_picture, enlarge_flow(scales[-1])], 1)
            scales.append(predict(x))
        return Flow(scales, self.mask(x))
