"""Transformer over the patches of a picture whose layers are modulated by a time and a class (adaLN-zero, DiT)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmgen.errors import UserError, check_at_least
from mmgen.modalities.layers.transformer import Block, check_heads, initialise

FREQUENCIES = 16


class ModulatedBlock(Block):
    """Pre-norm transformer layer whose norms are shifted and scaled, and whose branches are gated, by a condition c.

    ``x + g_1 attention((1 + s_1) norm(x) + m_1)``, then the same with the mlp; (m, s, g) are linear in silu(c) and start at 0,
    so that the layer starts as the identity.

    Args:
        dim: width d of x and c.
        heads: number of attention heads.

    Source: Peebles and Xie 2022, DiT, arXiv 2212.09748, section 3.2 (adaLN-Zero).

    >>> x = torch.randn(2, 5, 8)
    >>> torch.equal(ModulatedBlock(8, heads=2)(x, torch.randn(2, 8)), x)
    True
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__(dim, heads)
        self.attention_norm, self.mlp_norm = (nn.LayerNorm(dim, elementwise_affine=False) for _ in range(2))
        self.modulation = zero(nn.Linear(dim, 6 * dim))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:  # type: ignore[override]
        """Apply the layer: x (b, t, d), condition (b, d) -> (b, t, d)."""
        moves = self.modulation(F.silu(condition))[:, None].chunk(6, -1)  # (b, 1, d) each
        x = x + moves[2] * self.attention(modulated(self.attention_norm(x), *moves[:2]))
        return x + moves[5] * self.mlp(modulated(self.mlp_norm(x), *moves[3:5]))


class PatchTransformer(nn.Module):
    """Diffusion transformer: (x, t, class) -> a tensor like x, which is 0 before training.

    Args:
        shape: (c, h, w) of x.
        classes: number of classes; the class of this number stands for none. 0: without classes.
        patch: side of the square patches, each a token.
        dim: width d.
        depth: number of layers.
        heads: number of attention heads.

    Raises:
        UserError: a size is out of range, or h or w is no multiple of the patch.

    Source: Peebles and Xie 2022, DiT, arXiv 2212.09748; here positions are learned.

    >>> network = PatchTransformer((1, 8, 8), patch=4, dim=16, depth=1, heads=2)
    >>> network(torch.randn(2, 1, 8, 8), torch.rand(2)).abs().max().item()
    0.0
    """

    def __init__(
        self, shape: Sequence[int], classes: int = 0, patch: int = 4, dim: int = 256, depth: int = 4, heads: int = 4
    ) -> None:
        super().__init__()
        check_heads(dim, heads)
        check_at_least("depth", depth, 1)
        (channels, height, width), self.patch = shape, check_at_least("patch", patch, 1)
        if height % patch or width % patch:
            fix = "set another patch in settings"
            raise UserError("patch", got=patch, expected=f"a divisor of {height} and {width}", fix=fix)
        self.grid = height // patch, width // patch
        self.patches = nn.Conv2d(channels, dim, patch, stride=patch)
        self.positions = nn.Parameter(0.02 * torch.randn(self.grid[0] * self.grid[1], dim))
        self.time = nn.Sequential(nn.Linear(2 * FREQUENCIES, dim), nn.SiLU(), nn.Linear(dim, dim))
        self.classes = nn.Embedding(classes + 1, dim) if classes else None
        self.blocks = nn.ModuleList(ModulatedBlock(dim, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(dim, elementwise_affine=False)
        self.modulation, self.pixels = nn.Linear(dim, 2 * dim), nn.Linear(dim, channels * patch**2)
        initialise(self, depth)
        for name, layer in self.named_modules():
            if name.endswith(("modulation", "pixels")):
                zero(layer)

    def forward(self, x: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        """Apply the network.

        Args:
            x: (b, c, h, w).
            t: (b,) times from 0 to 1.
            label: (b,) int64, with classes only.

        Returns:
            (b, c, h, w).
        """
        condition = self.time(time_features(t))  # (b, d)
        if self.classes is not None:
            condition = condition + self.classes(label)
        tokens = self.patches(x).flatten(2).transpose(1, 2) + self.positions  # (b, t, d)
        for block in self.blocks:
            tokens = block(tokens, condition)
        moves = self.modulation(F.silu(condition))[:, None].chunk(2, -1)  # (b, 1, d) each
        pixels = self.pixels(modulated(self.norm(tokens), *moves))  # (b, t, c p p)
        return F.pixel_shuffle(pixels.transpose(1, 2).unflatten(2, self.grid), self.patch)


def time_features(t: Tensor) -> Tensor:
    """Cosines and sines of a time from 0 to 1, (...) -> (..., 2 `FREQUENCIES`), at most 32 radians as t runs from 0 to 1.

    The thousand radians of DiT, whose time runs to 1000, would give an adaptive solver of the ODE eight times the work.
    """
    angles = t[..., None] * torch.logspace(-1, 1.5, FREQUENCIES, dtype=t.dtype, device=t.device)  # (..., f)
    return torch.cat([angles.cos(), angles.sin()], -1)


def modulated(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """x (b, t, d) scaled by 1 + scale and shifted, (b, 1, d) each."""
    return x * (1 + scale) + shift


def zero(layer: nn.Module) -> nn.Module:
    """Set the parameters of a layer to 0."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer
