"""Transformer layer of text encoders and the causal transformer: attention, rotary positions, key-value cache."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmgen.errors import UserError, check_at_least


class Cache:
    """Cache of the keys and values of earlier positions; no gradient flows through it.

    Args:
        capacity: largest number of positions, prompt included.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity, self.length = capacity, 0
        self.layers: list[tuple[Tensor, Tensor]] = []
        self.mask: Tensor | None = None  # (b, length), True at real positions; None while all are real

    def extend(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Append keys and values (b, h, t, d/h) to ``layer``, and return all of its (b, h, length + t, d/h)."""
        if layer == len(self.layers):  # allocated at the first write, when shape, dtype and device are known
            shape = (*keys.shape[:2], self.capacity, keys.shape[3])
            self.layers.append((keys.new_empty(shape), values.new_empty(shape)))
        end = self.length + keys.shape[2]
        for stored, new in zip(self.layers[layer], (keys, values)):
            stored[:, :, self.length : end] = new
        return self.layers[layer][0][:, :, :end], self.layers[layer][1][:, :, :end]


class Block(nn.Module):
    """Pre-norm transformer layer: x + attention(norm(x)), then x + mlp(norm(x)).

    Args:
        dim: width d.
        heads: number of attention heads h; d is a multiple of it.
        dropout: dropout rate.
    """

    def __init__(self, dim: int, heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.attention_norm, self.mlp_norm = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.project = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU("tanh"), nn.Linear(4 * dim, dim))

    def forward(
        self,
        x: Tensor,
        attend: Tensor | None,
        causal: bool = False,
        angles: tuple[Tensor, Tensor] | None = None,
        cache: Cache | None = None,
        layer: int = 0,
    ) -> Tensor:
        """Apply the layer.

        Args:
            x: (b, t, d).
            attend: (b or 1, 1, t, s) bool, True where query t may attend to key s; None: everywhere, or to the past if causal.
            causal: attend to the past only; without ``attend`` it uses the fast path of the attention kernel.
            angles: rotary cosines and sines, each (b or 1, 1, t, d/2h).
            cache: cache of earlier positions, extended by these.
            layer: index of this layer in the cache.

        Returns:
            (b, t, d).
        """
        mixed = self.attention(self.attention_norm(x), attend, causal, angles, cache, layer)  # (b, t, d)
        x = x + F.dropout(mixed, self.dropout, self.training)
        return x + F.dropout(self.mlp(self.mlp_norm(x)), self.dropout, self.training)

    def attention(
        self,
        x: Tensor,
        attend: Tensor | None = None,
        causal: bool = False,
        angles: tuple[Tensor, Tensor] | None = None,
        cache: Cache | None = None,
        layer: int = 0,
    ) -> Tensor:
        """Mix normalised positions x (b, t, d) by self-attention, with the arguments of `forward`."""
        b, t, d = x.shape
        qkv = self.qkv(x).reshape(b, t, 3, self.heads, d // self.heads)  # (b, t, 3, h, d/h)
        queries, keys, values = qkv.permute(2, 0, 3, 1, 4)  # (b, h, t, d/h) each
        if angles is not None:
            queries, keys = rotate(queries, *angles), rotate(keys, *angles)
        if cache is not None:
            keys, values = cache.extend(layer, keys, values)  # (b, h, s, d/h)
        dropout = self.dropout if self.training else 0.0
        past_only = causal and attend is None and t > 1  # a single query attends to all earlier keys
        mixed = F.scaled_dot_product_attention(queries, keys, values, attend, dropout, past_only)
        return self.project(mixed.transpose(1, 2).reshape(b, t, d))


def causal_mask(mask: Tensor | None, past: int, new: int, device: torch.device) -> Tensor | None:
    """Causal attention mask (b or 1, 1, new, past + new) of ``new`` queries to ``past + new`` keys, bool.

    Every position may attend to itself, even padding, as a softmax over no keys would be NaN.

    Args:
        mask: (b, past + new) bool, True at real keys; None: all are real.
        past: number of earlier positions.
        new: number of new positions.
        device: device of the mask.

    Returns:
        The mask, or None where the kernel's causal path is equivalent: no padding, and no past or a single query.
    """
    if mask is None and (past == 0 or new == 1):
        return None
    query = torch.arange(past, past + new, device=device)[:, None]  # (new, 1)
    key = torch.arange(past + new, device=device)  # (past + new,)
    if mask is None:
        return (key <= query)[None, None]
    return ((key <= query) & mask[:, None, None, :]) | (key == query)


def rotary_angles(positions: Tensor, head_dim: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosine and sine of position times frequency 10000^(-2 j / head_dim): positions (b, t) -> (b, 1, t, head_dim / 2) each.

    Source: Su et al. 2021, RoFormer, in the half-split layout of Llama.
    """
    exponents = torch.arange(0, head_dim, 2, device=positions.device) / head_dim
    angles = positions[:, None, :, None] * 10000.0**-exponents  # (b, 1, t, head_dim / 2)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Rotate each pair (x_j, x_{j + d/2}) of x (b, h, t, d) by the angle of its position."""
    first, second = x.chunk(2, -1)
    turned = torch.addcmul(first * cosine, second, sine, value=-1), torch.addcmul(second * cosine, first, sine)
    return torch.cat(turned, -1).to(x.dtype)


def check_heads(dim: int, heads: int, rotary: bool = False) -> None:
    """Check that ``dim`` is divisible by ``heads``, for rotary positions by twice ``heads``."""
    check_at_least("heads", heads, 1)
    check_at_least("dim", dim, 1)
    multiple = 2 * heads if rotary else heads
    if dim % multiple:
        raise UserError("dim", got=dim, expected=f"a multiple of {multiple} ({heads} heads)", fix=f"set dim={64 * heads}")


def initialise(module: nn.Module, depth: int) -> None:
    """Initialise like GPT-2: normal with std 0.02, divided by sqrt(2 depth) in layers that write to the residual stream."""
    for name, part in module.named_modules():
        if isinstance(part, nn.Linear | nn.Embedding):
            residual = name.endswith(("project", "mlp.2"))
            nn.init.normal_(part.weight, std=0.02 / math.sqrt(2 * depth) if residual else 0.02)
        if isinstance(part, nn.Linear):
            nn.init.zeros_(part.bias)
