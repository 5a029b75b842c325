"""The encoder and the decoder of each kind of modality, by name."""

import inspect
from collections.abc import Sequence
from typing import Any

from torch import nn

from mmgen.errors import UserError, check_one_of
from mmgen.modalities.audio import AudioDecoder, AudioEncoder
from mmgen.modalities.convolution import ConvEncoder
from mmgen.modalities.image import BroadcastDecoder, ImageDecoder, ImageEncoder, PixelEncoder
from mmgen.modalities.text import TextDecoder, TextEncoder
from mmgen.modalities.vector import VectorDecoder, VectorEncoder

ENCODERS = {
    "image": ConvEncoder,
    "backbone": ImageEncoder,  # of a picture, where its settings have this key; so the next
    "hidden": PixelEncoder,
    "text": TextEncoder,
    "audio": AudioEncoder,
    "vector": VectorEncoder,
}
KINDS = ("image", "text", "audio", "vector")
DECODERS = {"image": ImageDecoder, "text": TextDecoder, "audio": AudioDecoder, "vector": VectorDecoder}
PICTURES = ("backbone", "hidden")


def build_encoder(kind: str, shape: list[int], settings: dict[str, Any]) -> nn.Module:
    """The encoder of this kind and shape; of an image by its settings: with ``backbone``, with ``hidden``, or convolutions.

    Raises:
        UserError: an unknown kind or setting, or a shape of the wrong length.
    """
    check_one_of("kind", kind, KINDS)
    length = {"image": 3, "audio": 2}.get(kind, 1)
    if len(shape) != length:
        raise UserError("shape", got=shape, expected=f"{length} numbers for {kind}", fix="see the Classifier's documentation")
    encoder = ENCODERS[next((key for key in PICTURES if kind == "image" and key in settings), kind)]
    for key in settings:
        check_one_of(f"encoder.{key}", key, inspect.signature(encoder).parameters)
    if encoder is ImageEncoder:
        return ImageEncoder(**settings)
    return encoder(shape[0] if length == 1 else tuple(shape), **settings)


def decoder_class(kind: str, settings: dict[str, Any]) -> type[nn.Module]:
    """The class of a decoder of this kind with these settings: an image with ``broadcast`` has a `BroadcastDecoder`.

    Raises:
        UserError: an unknown kind.
    """
    check_one_of("kind", kind, DECODERS)
    return BroadcastDecoder if kind == "image" and "broadcast" in settings else DECODERS[kind]


def build_decoder(kind: str, latent_dim: int, shape: Sequence[int], settings: dict[str, Any]) -> nn.Module:
    """The decoder z -> p(x | z) of a modality of this kind and shape.

    Args:
        kind: a key of `DECODERS`.
        latent_dim: size of z.
        shape: image (c, h, w), audio (mels, frames), vector (d,), text (number of tokens in the vocabulary, longest text).
        settings: the decoder's other arguments, see `decoder_class`; a text needs ``stop``.

    Raises:
        UserError: an unknown kind or setting.

    >>> build_decoder("vector", 2, [6], {"scale": 1.0}).layers[-1].out_features
    6
    """
    decoder = decoder_class(kind, settings)
    own = ("latent_dim", "shape", "size", "vocabulary", "length")
    for key in settings:
        check_one_of(f"decoder.{key}", key, [name for name in inspect.signature(decoder).parameters if name not in own])
    values = list(shape) if kind in ("text", "vector") else [tuple(shape)]
    return decoder(latent_dim, *values, **settings)
