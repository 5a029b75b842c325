"""The U-Net of diffusers as a network of (x, t, class); diffusers is imported only when one is made."""

import importlib
import inspect
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from mmgen.errors import UserError, check_one_of, first_line

SETTLED = ("self", "sample_size", "in_channels", "out_channels", "num_class_embeds", "num_train_timesteps")


class UNet(nn.Module):
    """A ``UNet2DModel`` of diffusers: (x, t, class) -> a tensor like x.

    Its time runs from 1000 at noise to 0 at data, as in diffusers.

    Args:
        shape: (c, h, w) of x.
        classes: number of classes; the class of this number stands for none. 0: without classes.
        settings: other arguments of ``UNet2DModel``, such as ``block_out_channels`` and ``layers_per_block``.

    Raises:
        UserError: diffusers is not installed, a setting is unknown or does not fit the others, or h or w cannot be halved
            between the blocks.
    """

    def __init__(self, shape: Sequence[int], classes: int = 0, **settings: Any) -> None:
        super().__init__()
        try:
            unet = importlib.import_module("diffusers").UNet2DModel  # here, as it takes seconds and no other network needs it
        except ImportError as missing:
            expected, fix = "the package diffusers", "pip install 'mmgen[diffusion]'"
            raise UserError("network unet", got=first_line(missing), expected=expected, fix=fix) from missing
        parameters = inspect.signature(unet.__init__).parameters
        for name in settings:
            check_one_of("setting of unet", name, [known for known in parameters if known not in SETTLED])
        channels, *size = shape
        halvings = len(settings.get("block_out_channels", parameters["block_out_channels"].default)) - 1
        if size[0] % 2**halvings or size[1] % 2**halvings:
            got, expected = f"{size[0]} x {size[1]} pixels", f"multiples of {2**halvings} for {halvings + 1} blocks"
            raise UserError("shape", got=got, expected=expected, fix="set fewer block_out_channels and block types")
        own = {"sample_size": tuple(size), "in_channels": channels, "out_channels": channels}
        try:
            self.unet = unet(**own, num_class_embeds=classes + 1 if classes else None, **settings)
        except (TypeError, ValueError) as error:
            fix = "see the documentation of UNet2DModel"
            raise UserError("settings of unet", got=first_line(error), expected="values that fit together", fix=fix) from error

    def forward(self, x: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        """Apply the network: x (b, c, h, w), t (b,) from 0 to 1, label (b,) with classes only -> (b, c, h, w)."""
        return self.unet(x, 1000 * (1 - t), label, return_dict=False)[0]
