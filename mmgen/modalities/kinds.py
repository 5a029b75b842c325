"""The encoder and the decoder of each kind of modality, by name."""

import inspect
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from mmgen.errors import UserError, check_one_of, counted
from mmgen.modalities.audio import AudioDecoder, AudioEncoder
from mmgen.modalities.image import BroadcastDecoder, ImageDecoder, ImageEncoder, PixelEncoder
from mmgen.modalities.layers.convolution import ConvEncoder
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
OWN = ("latent_dim", "shape", "size", "vocabulary", "length")  # arguments that the data settle


def build_encoder(kind: str, shape: list[int], settings: dict[str, Any]) -> nn.Module:
    """The encoder of this kind and shape; of an image by its settings: with ``backbone``, with ``hidden``, or convolutions.

    Raises:
        UserError: an unknown kind or setting, or a shape of the wrong length.
    """
    check_one_of("kind", kind, KINDS)
    length = {"image": 3, "audio": 2}.get(kind, 1)
    if len(shape) != length:
        raise UserError(
            "shape",
            got=shape,
            expected=f"{counted(length, 'number')} for {kind}",
            fix="see the documentation of build_decoder",
        )
    encoder = ENCODERS[next((key for key in PICTURES if kind == "image" and key in settings), kind)]
    for key in settings:
        known = [name for name in inspect.signature(encoder).parameters if name not in OWN]
        check_one_of(f"encoder.{key}", key, known)
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
    for key in settings:
        known = [name for name in inspect.signature(decoder).parameters if name not in OWN]
        check_one_of(f"decoder.{key}", key, known)
    values = list(shape) if kind in ("text", "vector") else [tuple(shape)]
    return decoder(latent_dim, *values, **settings)


def check_name(name: str) -> str:
    """Return the name of a modality if a model can call its parts so.

    Raises:
        UserError: it is no identifier, or one that torch's dictionaries of modules need themselves.
    """
    if not name.isidentifier() or hasattr(nn.ModuleDict, name):
        fix = "rename it, as in image or text_1"
        raise UserError("name of a modality", got=name, expected="letters, digits and _, and not keys or items", fix=fix)
    return name


def check_values(name: str, x: Tensor, kind: str, shape: Sequence[int], family: str = "normal") -> None:
    """Fail unless x (b, ...) can be values of the modality ``name``.

    Args:
        name: for the message.
        x: values of b items.
        kind: a key of `DECODERS`, or "sequence", whose positions have the shape.
        shape: of one value, see `build_decoder`.
        family: of the likelihood that they are given to.

    Raises:
        UserError: another shape or type, a number that is not finite, token ids out of the vocabulary or no whole numbers, or
            values without probability under the likelihood.
    """
    fix = "use the model's own processor"
    if x.is_floating_point() == (kind == "text"):
        expected = "token ids, torch.int64" if kind == "text" else "floating point numbers"
        raise UserError(name, got=str(x.dtype), expected=expected, fix=fix)
    if kind == "text":
        low, high, expected = 0, shape[0] - 1, f"token ids from 0 to {shape[0] - 1}"
    else:
        one = tuple(x.shape[2 if kind == "sequence" else 1 :])
        if one != tuple(shape):
            raise UserError(name, got=f"shape {one}", expected=f"{tuple(shape)}", fix=fix)
        finite = x.isfinite()
        if not finite.all():
            item, value = (~finite).nonzero()[0, 0].item(), x[~finite][0].item()
            fix = "mend the value, or mark the modality as missing"
            raise UserError(f"{name} of item {item}", got=value, expected="finite numbers", fix=fix)
        if "bernoulli" not in family:
            return
        low, high, expected = 0, 1, f"0 to 1 for the likelihood {family}"
        fix = 'scale it, or set the likelihood "normal"'
    wrong = (x < low) | (x > high)
    if wrong.any():
        item, value = wrong.nonzero()[0, 0].item(), x[wrong][0].item()
        raise UserError(f"{name} of item {item}", got=value, expected=expected, fix=fix)
