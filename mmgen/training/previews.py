"""Previews for reports: one picture, with texts, of an item of several modalities."""

from collections.abc import Mapping

from PIL import Image
from torch import Tensor

from mmgen.data.processors import Processor

HEIGHT, GAP = 96, 4  # pixels


def spectrogram_picture(x: Tensor) -> Image.Image:
    """Draw (mels, frames) in [0, 1] as a grey picture, low frequencies at the bottom."""
    return Image.fromarray((x.detach().float().cpu().clamp(0, 1).flip(0) * 255).round().byte().numpy())


def preview(
    processors: Mapping[str, Processor], given: Mapping[str, Tensor], made: Mapping[str, Tensor]
) -> tuple[Image.Image, dict[str, str]]:
    """Pictures of one item side by side, given ones first, sounds as spectrograms; and texts and numbers by label.

    Args:
        processors: modality -> its processor.
        given, made: modality -> given or generated value of the item.

    >>> import torch
    >>> from mmgen.data.image import ImageProcessor
    >>> picture, text = preview({"image": ImageProcessor(8, 1)}, {}, {"image": torch.zeros(1, 8, 8)})
    >>> picture.size, text
    ((96, 96), {'made': 'nothing in words'})
    """
    pictures: list[Image.Image] = []
    text: dict[str, str] = {}
    for label, values in (("made", made), ("given", given)):
        shown = []
        for name, value in values.items():
            processor = processors[name]
            if processor.kind in ("image", "audio"):
                picture = processor.decode(value) if processor.kind == "image" else spectrogram_picture(value)
                size = (round(HEIGHT * picture.width / picture.height), HEIGHT)
                shown.append(picture.convert("RGB").resize(size, Image.Resampling.NEAREST))
            else:
                raw = processor.decode(value)
                text[f"{label} {name}"] = raw if isinstance(raw, str) else ", ".join(f"{number:.2g}" for number in raw[:6])
        pictures = shown + pictures
    return in_a_row(pictures), text or {"made": "nothing in words"}


def in_a_row(pictures: list[Image.Image]) -> Image.Image:
    """Join pictures of one height side by side."""
    sheet = Image.new("RGB", (max(HEIGHT, sum(p.width + GAP for p in pictures) - GAP), HEIGHT), "#5c6773")
    left = 0
    for picture in pictures:
        sheet.paste(picture, (left, 0))
        left += picture.width + GAP
    return sheet
