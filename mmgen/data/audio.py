"""Sound: any file that libsndfile reads becomes a mono waveform, then a log-mel spectrogram, and back."""

from dataclasses import dataclass
from io import BytesIO
from typing import ClassVar

import soundfile
import torch
import torchaudio
from torch import Tensor

from mmgen.data.processors import Source, read_bytes
from mmgen.errors import UserError, check_at_least

FLOOR_DB = -80.0  # quieter than this counts as silence


def read_audio(source: Source, rate: int) -> Tensor:
    """Read a sound file as one channel, resampled.

    Args:
        source: bytes, a path, or a `datasets` struct {"bytes", "path"}.
        rate: samples a second of the result, in Hz.

    Returns:
        (samples,) float32, full scale [-1, 1].

    Raises:
        UserError: missing, unreadable, empty, not a sound, without samples, or with NaN or infinite ones.
    """
    name, content = read_bytes(source, "audio")
    try:
        samples, own_rate = soundfile.read(BytesIO(content), dtype="float32", always_2d=True)  # (t, channels)
    except soundfile.LibsndfileError as error:
        got = f"a file that begins with {content[:12]!r}"
        expected = "a whole audio file such as WAV, FLAC, OGG or MP3"
        raise UserError(name, got=got, expected=expected, fix="check that it is audio") from error
    waveform = torch.from_numpy(samples).mean(1)  # (t,)
    check_waveform(name, waveform)
    return torchaudio.functional.resample(waveform, own_rate, rate)


def check_waveform(name: str, waveform: Tensor) -> None:
    """Raise a UserError for a waveform without samples, of several channels, or with samples that are not finite."""
    if waveform.dim() != 1 or len(waveform) == 0:
        got = f"samples of shape {tuple(waveform.shape)}"
        raise UserError(name, got=got, expected="one channel of at least one sample", fix="check the recording")
    bad = (~waveform.isfinite()).sum().item()
    if bad:
        got = f"{bad} samples that are NaN or infinite"
        raise UserError(name, got=got, expected="finite samples", fix="export the recording again")


@dataclass(frozen=True)
class AudioProcessor:
    """Sound -> log-mel spectrogram (mels, frames) in [0, 1]: 0 is -80 dB or less, 1 is 0 dB, a full-scale sine.

    x = 1 + 10 log10(mel power / power of a full-scale sine) / 80, cut to [0, 1]. Shorter sounds are followed by silence,
    longer ones cut.

    Args:
        rate: samples a second, Hz.
        n_fft: length of a window in samples.
        hop: samples from one frame to the next.
        mels: frequency bands.
        frames: length in frames; (frames - 1) hop / rate is the length in seconds.

    Raises:
        UserError: a setting out of range, or a sound that `read_audio` cannot read.

    >>> AudioProcessor(rate=8000, frames=20)(torch.zeros(4000)).shape
    torch.Size([64, 20])
    """

    rate: int = 16000
    n_fft: int = 512
    hop: int = 160
    mels: int = 64
    frames: int = 100
    kind: ClassVar[str] = "audio"

    def __post_init__(self) -> None:
        for what, low in (("rate", 1), ("n_fft", 16), ("hop", 1), ("mels", 1), ("frames", 2)):
            check_at_least(what, getattr(self, what), low)
        if self.hop > self.n_fft:
            fix = f"set hop={self.n_fft // 4}"
            raise UserError("hop", got=self.hop, expected=f"at most n_fft ({self.n_fft}), or samples are lost", fix=fix)

    @property
    def shape(self) -> tuple[int, int]:
        """(mels, frames) of the tensors."""
        return self.mels, self.frames

    @property
    def samples(self) -> int:
        """Length of the waveform in samples."""
        return (self.frames - 1) * self.hop

    @property
    def seconds(self) -> float:
        """Length of the waveform in seconds."""
        return self.samples / self.rate

    def __call__(self, value: Source | Tensor) -> Tensor:
        """A file, or a waveform (samples,) at ``rate``, -> (mels, frames)."""
        if isinstance(value, Tensor):
            check_waveform("audio", value)
        waveform = value.float() if isinstance(value, Tensor) else read_audio(value, self.rate)
        waveform = torch.nn.functional.pad(waveform[: self.samples], (0, max(0, self.samples - len(waveform))))
        spectrogram = torchaudio.transforms.MelSpectrogram(
            self.rate, self.n_fft, hop_length=self.hop, n_mels=self.mels, power=2.0, pad_mode="constant"
        )
        decibels = 10 * (spectrogram(waveform) / self._full_scale).clamp(min=1e-10).log10()  # (mels, frames)
        return (1 - decibels / FLOOR_DB).clamp(0, 1)

    def decode(self, tensor: Tensor) -> Tensor:
        """(mels, frames) -> waveform (samples,) at ``rate``, its lost phases found by Griffin and Lim's iteration."""
        tensor = tensor.detach().float().cpu().clamp(0, 1)
        mel = 10 ** ((1 - tensor) * FLOOR_DB / 10) * self._full_scale * (tensor > 0)  # (mels, frames)
        bins = self.n_fft // 2 + 1
        to_linear = torchaudio.transforms.InverseMelScale(bins, self.mels, self.rate, driver="gelsd")
        to_waveform = torchaudio.transforms.GriffinLim(
            self.n_fft, hop_length=self.hop, power=2.0, length=self.samples, rand_init=False
        )
        return to_waveform(to_linear(mel)).clamp(-1, 1)

    @property
    def _full_scale(self) -> float:
        return (self.n_fft / 4) ** 2  # a sine of amplitude 1 at a bin's centre: (sum of the Hann window / 2)^2
