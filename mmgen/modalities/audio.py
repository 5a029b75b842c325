"""Sound as a log-mel spectrogram: convolutions over frequency and time, both ways."""

from torch import Tensor, nn
from torch.distributions import Independent

from mmgen.distributions import Likelihood
from mmgen.modalities.layers.convolution import ConvEncoder, Deconvolution


class AudioEncoder(nn.Module):
    """A log-mel spectrogram read as a picture of one channel.

    Args:
        shape: (mels, frames).
        dim: size d of the features.
        width: channels after the first convolution.

    >>> import torch
    >>> AudioEncoder((32, 20), dim=16)(torch.zeros(2, 32, 20)).shape
    torch.Size([2, 16])
    """

    def __init__(self, shape: tuple[int, int], dim: int = 128, width: int = 32) -> None:
        super().__init__()
        self.dim = dim
        self.convolutions = ConvEncoder((1, *shape), dim, width)

    def forward(self, spectrogram: Tensor) -> Tensor:
        """spectrogram (b, mels, frames) -> (b, d)."""
        return self.convolutions(spectrogram[:, None])


class AudioDecoder(nn.Module):
    """z (..., latent_dim) -> p(spectrogram | z), one event of (mels, frames).

    Args:
        latent_dim: size of z.
        shape: (mels, frames).
        likelihood: name of a family, see `mmgen.distributions.Likelihood`.
        scale: its scale; None learns one.
        width: channels before the last convolution.

    >>> import torch
    >>> AudioDecoder(4, (32, 20))(torch.zeros(2, 4)).event_shape
    torch.Size([32, 20])
    """

    def __init__(
        self,
        latent_dim: int,
        shape: tuple[int, int],
        likelihood: str = "normal",
        scale: float | None = None,
        width: int = 32,
    ) -> None:
        super().__init__()
        self.deconvolution = Deconvolution(latent_dim, (1, *shape), width)
        self.likelihood = Likelihood(likelihood, event_dims=2, scale=scale)

    def forward(self, z: Tensor) -> Independent:
        """z (..., latent_dim) -> p(spectrogram | z)."""
        return self.likelihood(self.deconvolution(z).squeeze(-3))  # (..., mels, frames)
