"""Sequences of feature vectors, such as word embeddings or video frames: recurrent or transformer encoder and decoder."""

import torch
from torch import Tensor, nn
from torch.distributions import Independent
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from mmgen.distributions import Likelihood
from mmgen.errors import UserError, check_at_least, check_one_of
from mmgen.modalities.layers.transformer import Block, causal_mask, check_heads, initialise, rotary_angles
from mmgen.modalities.precision import native_bfloat16

NETWORKS = ("gru", "lstm", "transformer")


class SequenceEncoder(nn.Module):
    """Encoder of sequences to the mean of contextual features over the real positions.

    Args:
        size: size of the vector at a position.
        dim: width d of the features.
        network: "gru", "lstm" or "transformer".
        depth: number of layers.
        bidirectional: let positions depend on later ones too.
        heads: number of attention heads of the transformer; d is a multiple of twice this number.
        dropout: dropout rate.

    Raises:
        UserError: the network is unknown, or ``dim`` is not divisible.

    >>> encoder = SequenceEncoder(size=5, dim=16)
    >>> encoder(torch.zeros(2, 7, 5), torch.ones(2, 7, dtype=torch.bool)).shape
    torch.Size([2, 16])
    """

    def __init__(
        self,
        size: int,
        dim: int = 128,
        network: str = "gru",
        depth: int = 1,
        bidirectional: bool = True,
        heads: int = 4,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.dim = dim
        self.embed = nn.Linear(size, dim)
        self.layers = build_layers(network, dim, depth, bidirectional, heads, dropout)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Compute features (b, d) of x (b, t, size), mask (b, t) True at real positions; zeros where there are none."""
        steps = self.steps(x, mask)  # (b, t, d)
        if mask is None:
            return steps.mean(1)
        return steps.sum(1) / mask.sum(1, keepdim=True).clamp(min=1)  # (b, d)

    def steps(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Compute features of every position: x (b, t, size), mask (b, t) -> (b, t, d), zeros at padding."""
        if mask is None:
            return self.layers(self.embed(x), None)
        x = torch.where(mask[..., None], x, 0.0)  # padding may hold anything, even NaN
        return torch.where(mask[..., None], self.layers(self.embed(x), mask), 0.0)


class SequenceDecoder(nn.Module):
    """Non-autoregressive decoder p(x | z) = prod_i p(x_i | z) that reads z and a learned vector for each position.

    Args:
        latent_dim: size of z.
        size: size of the vector at a position.
        length: largest number of positions.
        network: "gru" or "lstm" (a position depends on earlier ones through the hidden state), or "transformer".
        dim: width of the layers.
        depth: number of layers.
        heads: number of attention heads of the transformer; ``dim`` is a multiple of twice this number.
        dropout: dropout rate.
        likelihood: name of a family, see `mmgen.distributions.Likelihood`.
        scale: scale of the likelihood; None: learned.

    Raises:
        UserError: the network is unknown, or ``dim`` is not divisible.

    >>> decoder = SequenceDecoder(4, size=5, length=7, dim=16)
    >>> decoder(torch.zeros(2, 4)).log_prob(torch.zeros(2, 3, 5)).shape
    torch.Size([2])
    """

    def __init__(
        self,
        latent_dim: int,
        size: int,
        length: int,
        network: str = "gru",
        dim: int = 128,
        depth: int = 1,
        heads: int = 4,
        dropout: float = 0.0,
        likelihood: str = "normal",
        scale: float | None = None,
    ) -> None:
        super().__init__()
        self.expand = nn.Linear(latent_dim, dim)
        self.place = nn.Parameter(torch.randn(check_at_least("length", length, 1), dim))
        self.layers = build_layers(network, dim, depth, network == "transformer", heads, dropout)
        self.project = nn.Linear(dim, size)
        self.likelihood = Likelihood(likelihood, event_dims=2, scale=scale)

    def forward(self, z: Tensor) -> "PaddedSequence":
        """Compute p(x | z) of z (..., latent_dim), batch shape (...), event (length, size)."""
        x = self.expand(z.reshape(-1, 1, z.shape[-1])) + self.place  # (n, length, d)
        x = self.project(self.layers(x, None))  # (n, length, size)
        likelihood = self.likelihood(x.reshape(*z.shape[:-1], *x.shape[1:]))
        return PaddedSequence(likelihood.base_dist, 2, validate_args=False)  # padding may hold anything


class PaddedSequence(Independent):
    """Distribution of sequences with independent positions: log p(x | z) is a sum over the real positions.

    The length of a sequence is given, not modelled. Otherwise it is like torch's `Independent` of 2 dimensions: batch shape
    (...), event (length, size).

    >>> from torch.distributions import Normal
    >>> steps = PaddedSequence(Normal(torch.zeros(1, 4, 2), 1.0), 2)
    >>> x = torch.zeros(1, 3, 2)
    >>> bool(2 * steps.log_prob(x[:, :1]) == steps.log_prob(x, torch.tensor([[True, False, True]])))
    True
    """

    def log_prob(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Sum the log-probabilities of the real positions.

        Args:
            x: (..., t, size), t at most ``length``.
            mask: (..., t) bool, True at real positions; None: all are real.

        Returns:
            (...) in nats.

        Raises:
            UserError: t is more than ``length``.
        """
        missing = self.event_shape[0] - x.shape[-2]
        if missing < 0:
            fix = "cut the sequences, or build the decoder with a greater length"
            raise UserError("sequence", got=f"{x.shape[-2]} positions", expected=f"at most {self.event_shape[0]}", fix=fix)
        mask = torch.ones(x.shape[:-1], dtype=torch.bool, device=x.device) if mask is None else mask
        x = nn.functional.pad(torch.where(mask[..., None], x, 0.0), (0, 0, 0, missing))  # (..., length, size)
        mask = nn.functional.pad(mask, (0, missing))  # (..., length)
        return (self.base_dist.log_prob(x).sum(-1) * mask).sum(-1)


def build_layers(
    network: str, dim: int, depth: int, bidirectional: bool, heads: int, dropout: float
) -> "RecurrentLayers | TransformerLayers":
    """Make layers that map (b, t, d) and a mask (b, t) or None to (b, t, d), real positions independent of padding.

    Raises:
        UserError: the network is unknown, there is less than one layer, or ``dim`` is not divisible.
    """
    check_at_least("depth", depth, 1)
    if check_one_of("network", network, NETWORKS) == "transformer":
        return TransformerLayers(dim, depth, bidirectional, heads, dropout)
    return RecurrentLayers(network, dim, depth, bidirectional, dropout)


class RecurrentLayers(nn.Module):
    """GRU or LSTM over the real positions; each of two directions has half of the width."""

    def __init__(self, network: str, dim: int, depth: int, bidirectional: bool, dropout: float) -> None:
        super().__init__()
        if bidirectional and dim % 2:
            raise UserError("dim", got=dim, expected="an even number for two directions", fix=f"set dim={dim + 1}")
        self.dropout = nn.Dropout(dropout)
        between = dropout if depth > 1 else 0.0  # torch warns about dropout with a single layer
        cells = {"gru": nn.GRU, "lstm": nn.LSTM}[network]
        hidden = dim // 2 if bidirectional else dim
        self.cells = cells(dim, hidden, depth, batch_first=True, dropout=between, bidirectional=bidirectional)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Compute features (b, t, d) of x (b, t, d), mask (b, t); undefined at padding."""
        if x.device.type == "cpu" and not native_bfloat16("cpu"):  # oneDNN lacks a bfloat16 LSTM for such processors
            with torch.autocast("cpu", enabled=False):
                return self._read(x.to(self.cells.weight_ih_l0.dtype), mask)
        return self._read(x, mask)

    def _read(self, x: Tensor, mask: Tensor | None) -> Tensor:
        if mask is None:
            return self.dropout(self.cells(x)[0])
        order = (~mask).argsort(stable=True, dim=1)  # (b, t), moves real positions to the front
        x = x.gather(1, order[..., None].expand_as(x))
        lengths = mask.sum(1).clamp(min=1).cpu()  # torch does not accept empty sequences
        packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        x, _ = pad_packed_sequence(self.cells(packed)[0], batch_first=True, total_length=mask.shape[1])
        x = x.gather(1, order.argsort(1)[..., None].expand_as(x))  # restore the order
        return self.dropout(x)


class TransformerLayers(nn.Module):
    """Transformer layers with rotary positions, which count real positions only."""

    def __init__(self, dim: int, depth: int, bidirectional: bool, heads: int, dropout: float) -> None:
        super().__init__()
        check_heads(dim, heads, rotary=True)
        self.bidirectional, self.head_dim = bidirectional, dim // heads
        self.blocks = nn.ModuleList(Block(dim, heads, dropout) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)
        initialise(self, depth)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Compute features (b, t, d) of x (b, t, d), mask (b, t); undefined at padding."""
        t = x.shape[1]
        positions = torch.arange(t, device=x.device)[None]  # (1, t)
        if mask is not None:
            positions = (mask.cumsum(1) - 1).clamp(min=0)  # (b, t)
        attend = None
        if not self.bidirectional:
            attend = causal_mask(mask, 0, t, x.device)
        elif mask is not None:
            itself = torch.eye(
                t, dtype=torch.bool, device=x.device
            )  # padding attends to itself, as a softmax over no keys is NaN
            attend = mask[:, None, None, :] | itself  # (b, 1, t, t)
        angles = rotary_angles(positions, self.head_dim, x.dtype)
        for block in self.blocks:
            x = block(x, attend, causal=not self.bidirectional, angles=angles)  # (b, t, d)
        return self.norm(x)
