"""Sound as a log-mel spectrogram: convolutional encoder and decoder over frequency and time."""

from torch import Tensor, nn
from torch.distributions import Independent

from mmgen.distributions import Likelihood
from mmgen.modalities.layers.convolution import ConvEncoder, Deconvolution


class AudioEncoder(nn.Module):
    """Convolutional encoder of a log-mel spectrogram, treated as a picture of one channel.

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
        """Compute features (b, d) of a spectrogram (b, mels, frames)."""
        return self.convolutions(spectrogram[:, None])


class AudioDecoder(nn.Module):
    """Deconvolution decoder p(spectrogram | z), event (mels, frames).

    Args:
        latent_dim: size of z.
        shape: (mels, frames).
        likelihood: name of a family, see `mmgen.distributions.Likelihood`.
        scale: scale of the likelihood; None: learned.
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
        """Compute p(spectrogram | z) of z (..., latent_dim)."""
        return self.likelihood(self.deconvolution(z).squeeze(-3))  # (..., mels, frames)
