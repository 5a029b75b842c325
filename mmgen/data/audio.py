"""Sound: decodes WAV, FLAC, OGG, MP3 and similar files to a mono waveform, and converts it to log-mel and back."""

import re
from dataclasses import dataclass
from fractions import Fraction
from io import BytesIO
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np
import soundfile
import torch
import torchaudio
from torch import Tensor

from mmgen.data.processors import Source, read_bytes
from mmgen.errors import UserError, check_at_least, counted

FLOOR_DB = -80.0  # lower levels count as silence
LOUDEST = 4.0  # 12 dB above full scale; larger samples must be in another unit
LOSSY = ("MP3", "OGG")  # formats of libsndfile
# containers in which a truncated file can be detected; half a file of others, such as MAT5 or NIST, reads as a shorter sound
CONTAINERS = ("WAV", "WAVEX", "AIFF", "AU", "CAF", "FLAC", "HTK", "MP3", "OGG", "RF64", "W64")
RATES = (1_000, 384_000)  # Hz; the header of a damaged file may state any rate
LARGEST_FILTER = 1 << 22  # product of the two reduced rates: coefficients of the resampling filter
STREAM = 0x7FFF0000  # bytes; a header written before its data states this length or more


class Sound(NamedTuple):
    """A decoded sound: samples (t, channels) float32 as stored, sample rate in Hz, and file format."""

    samples: np.ndarray
    rate: int
    format: str


def decode_audio(name: str, content: bytes) -> Sound:
    """Decode a whole sound file.

    Args:
        name: name of the file in errors.
        content: the file's bytes.

    Returns:
        The sound, of at least one sample.

    Raises:
        UserError: it is not a sound, is damaged, cut short or without samples, in a container other than `CONTAINERS`, of a
            rate outside `RATES`, or has NaN or infinite samples.
    """
    form = ""
    try:
        with soundfile.SoundFile(_Content(content)) as file:
            rate, form, stated, log = file.samplerate, file.format, file.frames, file.extra_info
            _check_header(name, form, rate)
            samples = file.read(dtype="float32", always_2d=True)  # (t, channels)
    except UserError:
        raise
    except (soundfile.SoundFileError, RuntimeError, ValueError, MemoryError) as error:
        got = f"a damaged sound ({error})" if form else f"a file that begins with {content[:12]!r}"
        expected, fix = "a whole audio file such as WAV, FLAC, OGG or MP3", "check that it is audio, or copy it again"
        raise UserError(name, got=got, expected=expected, fix=fix) from error
    if len(samples) == 0:
        raise UserError(name, got="no samples", expected="at least one", fix="check the recording")
    frame = (1152 if rate > 24000 else 576) if form == "MP3" else 0  # encoders differ by one frame
    if missing := _cut(content, form, log, stated, len(samples), frame):
        raise UserError(name, got=f"a sound cut short ({missing})", expected="a whole one", fix="copy or download it again")
    if bad := int((~np.isfinite(samples)).sum()):
        got = counted(bad, "NaN or infinite sample")
        raise UserError(name, got=got, expected="finite samples", fix="export the recording again")
    return Sound(samples, rate, form)


def _check_header(name: str, form: str, rate: int) -> None:
    """Check that a container and a sample rate are supported."""
    if form not in CONTAINERS:
        got, expected = f"a {form} file", f"one of {', '.join(CONTAINERS)}"
        raise UserError(name, got=got, expected=expected, fix="convert it to WAV or FLAC")
    if not RATES[0] <= rate <= RATES[1]:
        got, expected = f"{rate} Hz", f"{RATES[0]} to {RATES[1]} Hz"
        raise UserError(name, got=got, expected=expected, fix="correct its header, or copy it again")


class _Content(BytesIO):
    """A file's bytes that clips seeks to before the start, which libsndfile tries in damaged files."""

    def seek(self, offset: int, whence: int = 0) -> int:
        return super().seek(max(offset, 0) if whence == 0 else offset, whence)


def _cut(content: bytes, form: str, log: str, frames: int, read: int, slack: int) -> str:
    """Describe how a file is truncated, "" if it is not; up to ``slack`` samples may be missing.

    Of formats that state their length in bytes, libsndfile reads the bytes there are and notes the difference in its log. The
    header of a stream, whose length was unknown, states the largest number.
    """
    if frames - read > slack:
        return f"{read} of {counted(frames, 'sample')}"
    for stated, there in re.findall(r"^\W*(?:data|SSND|Data Size|riff)\s*: (\d+) \(should be (\d+)\)", log, re.MULTILINE):
        if int(there) < int(stated) < STREAM:
            return f"{there} of {stated} bytes"
    for there, stated in re.findall(r"frame count (\d+) does not match value from 'ds64' chunk of (\d+)", log):
        if int(there) < int(stated):
            return f"{there} of {counted(stated, 'sample')}"
    if form == "OGG":
        page = content.rfind(b"OggS")
        table = content[page + 27 :][: content[page + 26] if len(content) > page + 26 else 0]  # lengths of its segments
        if len(content) < page + 27 + len(table) + sum(table) or not content[page + 5] & 4:
            return "its last page is not whole"
    return ""


def read_audio(source: Source, rate: int) -> Tensor:
    """Read a sound file as one channel at a given sample rate.

    Args:
        source: bytes, a path, or a `datasets` struct {"bytes", "path"}.
        rate: sample rate of the result, Hz.

    Returns:
        (samples,) float32, full scale [-1, 1].

    Raises:
        UserError: the file is missing, unreadable or empty, as `decode_audio`, or has samples far beyond full scale.
    """
    name, content = read_bytes(source, "audio")
    sound = decode_audio(name, content)
    if (peak := float(np.abs(sound.samples).max())) > LOUDEST:
        got, fix = f"samples up to {peak:g}", "divide them by their full scale, such as 32768, and save it again"
        raise UserError(name, got=got, expected="full scale [-1, 1]", fix=fix)
    waveform = torch.from_numpy(sound.samples).mean(1)  # (t,)
    return torchaudio.functional.resample(waveform, *_near_rates(sound.rate, rate))


def _near_rates(old: int, new: int) -> tuple[int, int]:
    """Reduced rates with the ratio ``old / new``, to within 0.05 % where the exact ratio would need too large a filter.

    >>> _near_rates(44100, 16000), _near_rates(44101, 16000)
    ((441, 160), (1855, 673))
    """
    ratio = Fraction(min(old, new), max(old, new))
    if ratio.numerator * ratio.denominator > LARGEST_FILTER:
        ratio = ratio.limit_denominator(max(2048, 4 * max(old, new) // min(old, new)))
    small, large = ratio.numerator, ratio.denominator
    return (large, small) if old > new else (small, large)


def check_waveform(name: str, waveform: Tensor) -> None:
    """Check that a waveform has one channel and at least one sample, and that all samples are finite."""
    if waveform.dim() != 1 or len(waveform) == 0:
        got = f"samples of shape {tuple(waveform.shape)}"
        raise UserError(name, got=got, expected="one channel of at least one sample", fix="check the recording")
    bad = int((~waveform.isfinite()).sum())
    if bad:
        got = counted(bad, "NaN or infinite sample")
        raise UserError(name, got=got, expected="finite samples", fix="export the recording again")


@dataclass(frozen=True)
class AudioProcessor:
    """Log-mel spectrogram (mels, frames) of a sound, scaled to [0, 1]: 0 is -80 dB or less, 1 is 0 dB, a full-scale sine.

    x = 1 + 10 log10(mel power / power of a full-scale sine) / 80, clipped to [0, 1]. Shorter sounds are padded with silence,
    longer ones truncated.

    Args:
        rate: sample rate, Hz.
        n_fft: window length in samples.
        hop: hop length in samples.
        mels: number of mel bands.
        frames: number of frames; (frames - 1) hop / rate is the length in seconds.

    Raises:
        UserError: a setting is out of range, or `read_audio` cannot read the sound.

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
        """Shape (mels, frames) of the tensors."""
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
        """Convert a file, or a waveform (samples,) at ``rate``, to (mels, frames)."""
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
        """Convert (mels, frames) to a waveform (samples,) at ``rate``, with phases estimated by the Griffin-Lim algorithm."""
        tensor = tensor.detach().float().cpu().clamp(0, 1)
        mel = 10 ** ((1 - tensor) * FLOOR_DB / 10) * self._full_scale * (tensor > 0)  # (mels, frames)
        bins = self.n_fft // 2 + 1
        to_linear = torchaudio.transforms.InverseMelScale(bins, self.mels, self.rate, driver="gelsd")
        to_waveform = torchaudio.transforms.GriffinLim(
            self.n_fft, hop_length=self.hop, power=2.0, length=self.samples, rand_init=False
        )
        return to_waveform(to_linear(mel)).clamp(-1, 1)

    def write(self, waveform: Tensor, file: Path) -> None:
        """Write a decoded waveform."""
        soundfile.write(file, waveform.cpu().numpy(), self.rate)

    @property
    def _full_scale(self) -> float:
        return (self.n_fft / 4) ** 2  # a sine of amplitude 1 at a bin's centre: (sum of the Hann window / 2)^2
