"""Sequences of feature vectors, such as embedded words or frames of a face: recurrent or transformer layers, both ways."""

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
    """The mean of the features of the real positions, each in the light of the others.

    Args:
        size: numbers a position.
        dim: width d of the features.
        network: "gru", "lstm" or "transformer".
        depth: number of layers.
        bidirectional: whether a position sees those after it.
        heads: attention heads of the transformer; d is a multiple of twice their number.
        dropout: share of activations dropped in training.

    Raises:
        UserError: an unknown network, or a dim that does not divide.

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
        """x (b, t, size), mask (b, t) True at real positions -> (b, d); zeros where there are none."""
        steps = self.steps(x, mask)  # (b, t, d)
        if mask is None:
            return steps.mean(1)
        return steps.sum(1) / mask.sum(1, keepdim=True).clamp(min=1)  # (b, d)

    def steps(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """The features of every position: x (b, t, size), mask (b, t) -> (b, t, d), zeros at padding."""
        if mask is None:
            return self.layers(self.embed(x), None)
        x = torch.where(mask[..., None], x, 0.0)  # whatever the padding holds, NaN included
        return torch.where(mask[..., None], self.layers(self.embed(x), mask), 0.0)


class SequenceDecoder(nn.Module):
    """p(x | z) = prod_i p(x_i | z): every position reads z and where it is, none reads x.

    Args:
        latent_dim: size of z.
        size: numbers a position.
        length: longest sequence.
        network: "gru" or "lstm" (a position depends on those before it through the hidden state), or "transformer".
        dim: width of the layers.
        depth: number of layers.
        heads: attention heads of the transformer; ``dim`` is a multiple of twice their number.
        dropout: share of activations dropped in training.
        likelihood: name of a family, see `mmgen.distributions.Likelihood`.
        scale: its scale; None learns one.

    Raises:
        UserError: an unknown network, or a dim that does not divide.

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
        """z (..., latent_dim) -> p(x | z), batch shape (...), event (length, size)."""
        x = self.expand(z.reshape(-1, 1, z.shape[-1])) + self.place  # (n, length, d)
        x = self.project(self.layers(x, None))  # (n, length, size)
        likelihood = self.likelihood(x.reshape(*z.shape[:-1], *x.shape[1:]))
        return PaddedSequence(likelihood.base_dist, 2, validate_args=False)  # padding may hold anything


class PaddedSequence(Independent):
    """Independent positions, of which a sequence may fill some: log p(x | z) = sum over its real positions.

    How many they are is given, not modelled: no probability is spent on the length.

    Like torch's `Independent` of 2 dimensions: batch shape (...), event (length, size).

    >>> from torch.distributions import Normal
    >>> steps = PaddedSequence(Normal(torch.zeros(1, 4, 2), 1.0), 2)
    >>> x = torch.zeros(1, 3, 2)
    >>> bool(2 * steps.log_prob(x[:, :1]) == steps.log_prob(x, torch.tensor([[True, False, True]])))
    True
    """

    def log_prob(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """The sum over real positions.

        Args:
            x: (..., t, size), t at most ``length``.
            mask: (..., t) bool, True at real positions; None where all t are.

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
    """The layers of this name: (b, t, d) and mask (b, t) or None -> (b, t, d), padding read by no real position.

    Raises:
        UserError: an unknown network, less than one layer, or a dim that does not divide.
    """
    check_at_least("depth", depth, 1)
    if check_one_of("network", network, NETWORKS) == "transformer":
        return TransformerLayers(dim, depth, bidirectional, heads, dropout)
    return RecurrentLayers(network, dim, depth, bidirectional, dropout)


class RecurrentLayers(nn.Module):
    """A GRU or LSTM over the real positions; with two directions, half of the width for each."""

    def __init__(self, network: str, dim: int, depth: int, bidirectional: bool, dropout: float) -> None:
        super().__init__()
        if bidirectional and dim % 2:
            raise UserError("dim", got=dim, expected="an even number for two directions", fix=f"set dim={dim + 1}")
        self.dropout = nn.Dropout(dropout)
        between = dropout if depth > 1 else 0.0  # torch warns of a dropout between layers where there is one
        cells = {"gru": nn.GRU, "lstm": nn.LSTM}[network]
        hidden = dim // 2 if bidirectional else dim
        self.cells = cells(dim, hidden, depth, batch_first=True, dropout=between, bidirectional=bidirectional)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """x (b, t, d), mask (b, t) -> (b, t, d), without meaning at padding."""
        if x.device.type == "cpu" and not native_bfloat16("cpu"):  # oneDNN has no bfloat16 LSTM for such a processor
            with torch.autocast("cpu", enabled=False):
                return self._read(x.to(self.cells.weight_ih_l0.dtype), mask)
        return self._read(x, mask)

    def _read(self, x: Tensor, mask: Tensor | None) -> Tensor:
        if mask is None:
            return self.dropout(self.cells(x)[0])
        order = (~mask).argsort(stable=True, dim=1)  # (b, t) real positions first, wherever the padding is
        x = x.gather(1, order[..., None].expand_as(x))
        lengths = mask.sum(1).clamp(min=1).cpu()  # torch takes no empty sequence
        packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        x, _ = pad_packed_sequence(self.cells(packed)[0], batch_first=True, total_length=mask.shape[1])
        x = x.gather(1, order.argsort(1)[..., None].expand_as(x))  # back to where they were
        return self.dropout(x)


class TransformerLayers(nn.Module):
    """Transformer layers with rotary positions counted over the real ones."""

    def __init__(self, dim: int, depth: int, bidirectional: bool, heads: int, dropout: float) -> None:
        super().__init__()
        check_heads(dim, heads, rotary=True)
        self.bidirectional, self.head_dim = bidirectional, dim // heads
        self.blocks = nn.ModuleList(Block(dim, heads, dropout) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)
        initialise(self, depth)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """x (b, t, d), mask (b, t) -> (b, t, d), without meaning at padding."""
        t = x.shape[1]
        positions = torch.arange(t, device=x.device)[None]  # (1, t)
        if mask is not None:
            positions = (mask.cumsum(1) - 1).clamp(min=0)  # (b, t)
        attend = None
        if not self.bidirectional:
            attend = causal_mask(mask, 0, t, x.device)
        elif mask is not None:
            itself = torch.eye(t, dtype=torch.bool, device=x.device)  # padding sees itself: no softmax over nothing
            attend = mask[:, None, None, :] | itself  # (b, 1, t, t)
        angles = rotary_angles(positions, self.head_dim, x.dtype)
        for block in self.blocks:
            x = block(x, attend, causal=not self.bidirectional, angles=angles)  # (b, t, d)
        return self.norm(x)
