"""Pictures: reads any file that PIL supports as RGB, and converts it to a square normalised tensor and back."""

import warnings
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from mmgen.data.processors import Source, read_bytes
from mmgen.errors import UserError, check_at_least, check_one_of

# larger pictures are rejected by their header, before decoding; about 0.27 GB as RGB
MAX_PIXELS = 89_478_485
EIGHT_BIT_MODES = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "YCbCr")


def read_image(source: Source | Image.Image) -> Image.Image:
    """Read a picture as 8-bit RGB: rotated upright, on white where transparent, grey and palette converted.

    Args:
        source: bytes, a path, a `datasets` struct {"bytes", "path"}, or an open picture.

    Returns:
        The picture in mode RGB.

    Raises:
        UserError: the picture is missing, unreadable, empty, not a picture, cut short, above `MAX_PIXELS`, of several frames,
            CMYK, or of more than 8 bits a channel.

    >>> read_image(Image.new("RGBA", (2, 2), (0, 0, 0, 0))).getpixel((0, 0))
    (255, 255, 255)
    """
    if isinstance(source, Image.Image):
        name, picture = "image", source
        check_header(name, picture)
    else:
        name, content = read_bytes(source, "image")
        picture = open_image(name, content)
        check_header(name, picture)
    try:
        picture = ImageOps.exif_transpose(picture)  # decodes
        if picture.has_transparency_data:
            picture = picture.convert("RGBA")
            picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
        return picture.convert("RGB")
    except Exception as error:  # PIL's decoders raise many kinds of exceptions for damaged files
        raise damaged(name, error) from error


def open_image(name: str, content: bytes) -> Image.Image:
    """Open a picture by reading its header only.

    Raises:
        UserError: it is not a picture, or too large.
    """
    expected = "an image file such as PNG, JPEG, WebP or GIF"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            return Image.open(BytesIO(content))
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        got, fix = str(error).split(" exceeds")[0], "make it smaller"  # without PIL's own limit
        raise UserError(name, got=got, expected=f"at most {MAX_PIXELS} pixels", fix=fix) from error
    except UnidentifiedImageError as error:
        got = f"a file that begins with {content[:12]!r}"
        raise UserError(name, got=got, expected=expected, fix="check that it is an image") from error
    except Exception as error:  # see `read_image`
        raise damaged(name, error) from error


def check_header(name: str, picture: Image.Image) -> None:
    """Check by its header that a picture can be used.

    Raises:
        UserError: see `read_image`.
    """
    width, height = picture.size
    if width * height > MAX_PIXELS:
        raise UserError(name, got=f"{width} x {height} pixels", expected=f"at most {MAX_PIXELS} in all", fix="make it smaller")
    if width == 0 or height == 0:
        raise UserError(name, got=f"{width} x {height} pixels", expected="at least one pixel", fix="use another picture")
    try:
        frames = getattr(picture, "n_frames", 1)
    except Exception as error:  # see `read_image`
        raise damaged(name, error) from error
    if frames > 1 and picture.format != "MPO":  # MPO: a phone's photograph with previews of itself
        raise UserError(name, got=f"an animation of {frames} frames", expected="a single picture", fix="save one frame as PNG")
    if picture.mode == "CMYK":
        raise UserError(name, got="a CMYK picture", expected="RGB, grey or a palette", fix="convert it to RGB")
    raw_modes = [str(tile[3]) for tile in getattr(picture, "tile", [])]  # PIL opens 16-bit RGB in mode RGB
    if picture.mode.startswith("I") or picture.mode == "F" or any(";16" in mode for mode in raw_modes):
        got = f"a picture of 16 bits or more a channel (mode {picture.mode})"
        raise UserError(name, got=got, expected="8 bits", fix="convert it to 8 bits a channel")
    if picture.mode not in EIGHT_BIT_MODES:
        raise UserError(name, got=f"mode {picture.mode}", expected="RGB, grey or a palette", fix="convert it to RGB")


def damaged(name: str, error: Exception) -> UserError:
    """Make the error for a damaged or truncated picture."""
    got = f"a damaged or truncated image ({error})"
    return UserError(name, got=got, expected="a whole one", fix="copy or download it again")


@dataclass(frozen=True)
class ImageProcessor:
    """Square picture tensor (channels, size, size): longer side scaled to ``size``, rest padded, then (x / 255 - mean) / std.

    Args:
        size: side in pixels.
        channels: 3 (RGB) or 1 (grey).
        mean: mean of the values in [0, 1]: one number, or one for each channel.
        std: standard deviation: one number, or one for each channel.
        padding: colour of the padding, "white" or "black".

    Raises:
        UserError: a setting is out of range; or as `read_image`.

    >>> ImageProcessor(size=8)(Image.new("RGB", (4, 2), "black"))[0, :, 0].tolist()
    [1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 1.0]
    """

    size: int
    channels: int = 3
    mean: float | list[float] = 0.0
    std: float | list[float] = 1.0
    padding: str = "white"
    kind: ClassVar[str] = "image"

    def __post_init__(self) -> None:
        check_at_least("size", self.size, 1)
        check_one_of("padding", self.padding, ("white", "black"))
        if self.channels not in (1, 3):
            raise UserError("channels", got=self.channels, expected="1 or 3", fix="set channels=3")
        for what, value in (("mean", self.mean), ("std", self.std)):
            if not isinstance(value, int | float) and len(value) != self.channels:
                expected = f"one number or {self.channels}"
                raise UserError(what, got=list(value), expected=expected, fix=f"give one {what} for each channel")

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape (c, h, w) of the tensors."""
        return self.channels, self.size, self.size

    def __call__(self, value: Source | Image.Image) -> Tensor:
        """Convert a picture to (c, h, w)."""
        return self.standardise(self.pixels(value))

    def pixels(self, value: Source | Image.Image) -> Tensor:
        """Scale and pad a picture to uint8 pixels (c, h, w), the input of `standardise`."""
        picture = read_image(value)
        scale = self.size / max(picture.size)
        size = [max(1, round(side * scale)) for side in picture.size]
        picture = picture.resize(size, Image.Resampling.BICUBIC).convert("RGB" if self.channels == 3 else "L")
        square = Image.new(picture.mode, (self.size, self.size), self.padding)
        square.paste(picture, ((self.size - size[0]) // 2, (self.size - size[1]) // 2))
        pixels = torch.from_numpy(np.array(square)).reshape(self.size, self.size, self.channels)  # (h, w, c)
        return pixels.permute(2, 0, 1)

    def standardise(self, pixels: Tensor) -> Tensor:
        """Normalise pixel values from 0 to 255 (c, h, w)."""
        return (pixels / 255 - self._each(self.mean)) / self._each(self.std)

    def decode(self, tensor: Tensor) -> Image.Image:
        """Convert (c, h, w) to a picture, clipping to black and white."""
        pixels = tensor.detach().float().cpu() * self._each(self.std) + self._each(self.mean)  # (c, h, w)
        pixels = (pixels.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0)  # (h, w, c)
        return Image.fromarray(pixels.squeeze(-1).numpy() if self.channels == 1 else pixels.numpy())

    def write(self, picture: Image.Image, file: Path) -> None:
        """Write a decoded picture."""
        picture.save(file)

    @staticmethod
    def _each(value: float | list[float]) -> Tensor:
        return torch.tensor(value, dtype=torch.float32).reshape(-1, 1, 1)


def upper_part(source: Source, processor: ImageProcessor, shape: tuple[int, ...], cell: int = 1) -> Tensor:
    """The upper rows of a picture, read as those of a whole one, for a model that completes it: (c, h0, w).

    Args:
        source: the upper part, as a file or an open picture.
        processor: of the model.
        shape: (c, h, w) of a whole picture.
        cell: number of rows that the model completes together.

    Raises:
        UserError: its width is not w, or its height no multiple of ``cell`` below h; or as `read_image`.
    """
    (_, height, width), picture = shape, read_image(source)
    if picture.width != width or picture.height >= height or picture.height % cell:
        got = f"{picture.width} x {picture.height} pixels"
        expected = f"{width} wide and a multiple of {cell} below {height} high"
        raise UserError("--from", got=got, expected=expected, fix="cut it to this size")
    whole = Image.new(picture.mode, (width, height))
    whole.paste(picture)
    return processor(whole)[:, : picture.height]


@dataclass(frozen=True)
class DepthProcessor:
    """Depth map (1, size, size) in metres, resampled to the nearest pixel; 0 where it is unknown, not finite or negative.

    Args:
        size: side in pixels.

    Raises:
        UserError: the size is below 1, or a depth map is not square.

    >>> DepthProcessor(size=2)(np.array([[0.5, np.inf], [-1.0, 2.0]])).tolist()
    [[[0.5, 0.0], [0.0, 2.0]]]
    """

    size: int
    kind: ClassVar[str] = "depth"

    def __post_init__(self) -> None:
        check_at_least("size", self.size, 1)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape (1, h, w) of the tensors."""
        return 1, self.size, self.size

    def __call__(self, value: np.ndarray) -> Tensor:
        """Convert a depth map (s, s), m, to (1, size, size), m."""
        depth = np.asarray(value, np.float32)
        if depth.ndim != 2 or depth.shape[0] != depth.shape[1]:
            raise UserError("depth", got=f"shape {depth.shape}", expected="(s, s)", fix="take its only channel, [..., 0]")
        middles = (np.arange(self.size) * 2 + 1) * len(depth) // (2 * self.size)
        depth = depth[np.ix_(middles, middles)]
        return torch.from_numpy(np.where(np.isfinite(depth) & (depth > 0), depth, np.float32(0)))[None]

    def decode(self, tensor: Tensor) -> np.ndarray:
        """Convert (1, size, size) to a depth map (size, size), m."""
        return tensor.detach().float().cpu().squeeze(0).numpy()
