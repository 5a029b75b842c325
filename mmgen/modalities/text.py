"""Text: a transformer encoder of token ids, and an autoregressive transformer decoder p(text | z)."""

from typing import Any

import torch
from torch import Tensor, nn

from mmgen.distributions import AutoregressiveCategorical
from mmgen.modalities.layers.autoregressive import CausalTransformer, sample
from mmgen.modalities.layers.transformer import Block, check_heads, initialise, rotary_angles


class TextEncoder(nn.Module):
    """Bidirectional transformer over token ids.

    Args:
        vocabulary: number of tokens.
        dim: width d of the features.
        depth: number of layers.
        heads: number of attention heads; d is a multiple of twice this number.
        dropout: dropout rate.

    >>> encoder = TextEncoder(vocabulary=10, dim=16, depth=1, heads=2)
    >>> encoder(torch.tensor([[1, 2, 0]]), torch.tensor([[True, True, False]])).shape
    torch.Size([1, 16])
    """

    def __init__(self, vocabulary: int, dim: int = 128, depth: int = 2, heads: int = 4, dropout: float = 0.0) -> None:
        super().__init__()
        check_heads(dim, heads, rotary=True)
        self.dim, self.head_dim = dim, dim // heads
        self.embed = nn.Embedding(vocabulary, dim)
        self.blocks = nn.ModuleList(Block(dim, heads, dropout) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)
        initialise(self, depth)

    def forward(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        """Compute the mean feature (b, d) of the real tokens of ids (b, t), mask (b, t); zeros where there are none."""
        tokens = self.tokens(ids, mask)  # (b, t, d)
        if mask is None:
            return tokens.mean(1)
        real = mask[:, :, None].to(tokens.dtype)  # (b, t, 1)
        return (tokens * real).sum(1) / real.sum(1).clamp(min=1)  # (b, d)

    def tokens(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        """Compute contextual features (b, t, d) of ids (b, t), or embeddings (b, t, d), with a mask (b, t) of real tokens."""
        x = ids if ids.is_floating_point() else self.embed(ids)  # (b, t, d)
        t, attend = ids.shape[1], None
        positions = torch.arange(t, device=ids.device)[None]  # (1, t)
        if mask is not None:
            positions = (mask.cumsum(1) - 1).clamp(min=0)  # (b, t)
            itself = torch.eye(
                t, dtype=torch.bool, device=ids.device
            )  # padding attends to itself, as a softmax over no keys is NaN
            attend = mask[:, None, None, :] | itself  # (b, 1, t, t)
        angles = rotary_angles(positions, self.head_dim, x.dtype)
        for block in self.blocks:
            x = block(x, attend, angles=angles)  # (b, t, d)
        return self.norm(x)


class TextDecoder(nn.Module):
    """Autoregressive decoder p(text | z) = prod_i p(x_i | x_1, ..., x_{i-1}, z); z is projected to the first embedding.

    Args:
        latent_dim: size of z.
        vocabulary: number of tokens.
        length: largest number of tokens of a text, ``stop`` included.
        stop: token that ends a text, the tokenizer's EOS.
        dim: width of the transformer.
        depth: number of layers.
        heads: number of attention heads.
        dropout: dropout rate.

    Attributes:
        likelihood: None, as a sequence of tokens has no likelihood of single numbers.

    >>> decoder = TextDecoder(latent_dim=4, vocabulary=10, length=5, stop=2, dim=16, depth=1, heads=2)
    >>> decoder(torch.zeros(3, 4)).log_prob(torch.tensor([[7, 2]] * 3)).shape
    torch.Size([3])
    """

    likelihood = None

    def __init__(
        self,
        latent_dim: int,
        vocabulary: int,
        length: int,
        stop: int,
        dim: int = 128,
        depth: int = 2,
        heads: int = 4,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.length, self.stop = length, stop
        self.prefix = nn.Linear(latent_dim, dim)
        self.transformer = CausalTransformer(vocabulary, dim, depth, heads, dropout=dropout)

    def forward(self, z: Tensor) -> AutoregressiveCategorical:
        """z (b, latent_dim) -> p(text | z), batch shape (b,)."""
        return AutoregressiveCategorical(z, self._logits, self._sample, length=self.length, stop=self.stop)

    def _logits(self, z: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        prefix = self.prefix(z)[:, None]  # (b, 1, d)
        return self.transformer(ids, prefix, mask)[:, :-1]  # (b, t, v); the last position predicts beyond the text

    def _sample(self, z: Tensor, generator: torch.Generator | None, **options: Any) -> Tensor:
        prompt = self.prefix(z)[:, None]  # (b, 1, d)
        ids = sample(self.transformer, prompt, self.length, stop=self.stop, generator=generator, **options)  # (b, n)
        return nn.functional.pad(ids, (0, self.length - ids.shape[1]))  # (b, length)
