"""The table of modalities: how each is read, encoded, decoded and given on the command line."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any

from mmgen.errors import UserError, check_one_of, counted

if TYPE_CHECKING:  # slow to import: `mmgen --help` reads the table without torch
    from torch import Tensor, nn

    from mmgen.data.processors import Processor
    from mmgen.distributions import Likelihood

OWN = ("latent_dim", "shape", "size", "vocabulary", "length")  # arguments of encoders and decoders that the data settle


@dataclass(frozen=True)
class Kind:
    """One modality. Classes are named as "module:class" and imported at first use.

    Args:
        name: its key everywhere: ``kind`` in configs and of its processor, and the option of ``mmgen generate``.
        axes: meaning of each number of the shape of a value.
        column: type of the data card's columns that it reads.
        processor: raw value <-> tensor, a `mmgen.data.processors.Processor`.
        encoders: tensor -> features; "" is the default, another key is a setting that selects its class.
        decoders: z -> p(x | z), likewise; ``likelihood`` of a decoder is a `mmgen.distributions.Likelihood`, None of tokens.
        form: how a value is written on the command line.
        suffix: ending of the files that hold generated values; "": values are printed.
        tokens: whether a value is a text of token ids, the first axis its vocabulary and the last its greatest length.
    """

    name: str
    axes: tuple[str, ...]
    column: str
    processor: str
    encoders: Mapping[str, str]
    decoders: Mapping[str, str]
    form: str = ""
    suffix: str = ""
    tokens: bool = False


KINDS = {
    kind.name: kind
    for kind in (
        Kind(
            "image",
            axes=("channels", "height", "width"),
            column="image",
            processor="mmgen.data.image:ImageProcessor",
            encoders={
                "": "mmgen.modalities.layers.convolution:ConvEncoder",
                "backbone": "mmgen.modalities.image:ImageEncoder",
                "hidden": "mmgen.modalities.image:PixelEncoder",
            },
            decoders={"": "mmgen.modalities.image:ImageDecoder", "broadcast": "mmgen.modalities.image:BroadcastDecoder"},
            form="a file",
            suffix="png",
        ),
        Kind(
            "text",
            axes=("tokens in the vocabulary", "tokens of the longest text"),
            column="text",
            processor="mmgen.data.text:TextProcessor",
            encoders={"": "mmgen.modalities.text:TextEncoder"},
            decoders={"": "mmgen.modalities.text:TextDecoder"},
            tokens=True,
        ),
        Kind(
            "audio",
            axes=("mel bands", "frames"),
            column="audio",
            processor="mmgen.data.audio:AudioProcessor",
            encoders={"": "mmgen.modalities.audio:AudioEncoder"},
            decoders={"": "mmgen.modalities.audio:AudioDecoder"},
            form="a file",
            suffix="wav",
        ),
        Kind(
            "vector",
            axes=("numbers",),
            column="vector",
            processor="mmgen.data.vector:VectorProcessor",
            encoders={"": "mmgen.modalities.vector:VectorEncoder"},
            decoders={"": "mmgen.modalities.vector:VectorDecoder"},
            form="numbers joined by commas (--vector=-1,0.5) or a .npy, .csv or .json file",
        ),
        Kind(
            "counts",
            axes=("counts",),
            column="vector",
            processor="mmgen.data.counts:CountProcessor",
            encoders={"": "mmgen.modalities.counts:CountEncoder"},
            decoders={"": "mmgen.modalities.counts:CountDecoder"},
            form="whole numbers joined by commas (--counts=1,2,3) or a .npy, .csv or .json file",
        ),
    )
}
#: kind -> class of all processors; a saved model names its processors by these keys only
PROCESSORS = {name: kind.processor for name, kind in KINDS.items()} | {
    "label": "mmgen.data.label:LabelProcessor",
    "depth": "mmgen.data.image:DepthProcessor",
    "flow": "mmgen.data.flow:FlowProcessor",
    "force": "mmgen.data.touch:ForceProcessor",
}
#: types of a card's columns that some modality reads
COLUMNS = tuple(dict.fromkeys(kind.column for kind in KINDS.values()))


def processor_settings(kind: str) -> list[str]:
    """The settings of `fit_processor` for a modality.

    Raises:
        UserError: an unknown kind.

    >>> processor_settings("text"), processor_settings("vector")
    (['vocab_size', 'max_length'], [])
    """
    cls = resolve_name(KINDS[check_one_of("kind", kind, KINDS)].processor)
    return list(inspect.signature(cls.fit).parameters)[1:] if hasattr(cls, "fit") else list(inspect.signature(cls).parameters)


def fit_processor(kind: str, values: Sequence[Any] | Tensor, **settings: Any) -> Processor:
    """The processor of a modality, fitted to its values where it has something to fit: a tokenizer, a mean.

    Args:
        kind: a key of `KINDS`.
        values: those of the training split, None where they are missing; of pictures and sounds none is read.
        settings: see `processor_settings`; without any the tokens of a text are bytes, 32 at most.

    Raises:
        UserError: an unknown kind or setting, or a value that cannot be read; of a `Column`, the message names its row.

    >>> fit_processor("vector", [[1.0], [3.0]])([3.0]).tolist()
    [1.0]
    """
    known = processor_settings(kind)
    for name in settings:
        check_one_of(f"setting of {kind}", name, known)
    cls = resolve_name(KINDS[kind].processor)
    if not hasattr(cls, "fit"):
        return cls(**settings)
    if hasattr(cls, "read") and hasattr(values, "read") and hasattr(values, "missing"):
        rows = (values.read(i, cls.read) for i in (~values.missing).nonzero()[0].tolist())
    else:
        rows = (value for value in values[:] if value is not None)
    return cls.fit(rows, **settings)


def _class(classes: Mapping[str, str], settings: Mapping[str, Any]) -> type[nn.Module]:
    """The class that the settings select."""
    return resolve_name(classes[next((key for key in classes if key and key in settings), "")])


def _built(cls: type[nn.Module], what: str, sizes: Sequence[int], shape: Sequence[int], settings: dict[str, Any]) -> nn.Module:
    """An encoder or decoder with the arguments that the shape settles, and those of the config."""
    parameters = inspect.signature(cls).parameters
    for key in settings:
        check_one_of(f"{what}.{key}", key, [name for name in parameters if name not in OWN])
    own = [tuple(shape)] if "shape" in parameters else list(shape)[: len({*OWN[2:]} & parameters.keys())]
    return cls(*sizes, *own, **settings)


def build_encoder(kind: str, shape: Sequence[int], settings: dict[str, Any]) -> Any:
    """The encoder x -> features (b, dim) of a modality.

    Args:
        kind: a key of `KINDS`.
        shape: of one value, see `Kind.axes`; of a text the vocabulary alone will do.
        settings: the encoder's other arguments; of an image, ``backbone`` or ``hidden`` selects another encoder.

    Raises:
        UserError: an unknown kind or setting, or a shape of the wrong length.

    >>> build_encoder("text", [10], {"dim": 16}).dim
    16
    """
    check_one_of("kind", kind, KINDS)
    axes = KINDS[kind].axes
    if len(shape) != len(axes) and not (KINDS[kind].tokens and len(shape) == 1):
        expected = f"{counted(len(axes), 'number')} for {kind}"
        raise UserError("shape", got=shape, expected=expected, fix=f"give {', '.join(axes)}")
    return _built(_class(KINDS[kind].encoders, settings), "encoder", [], shape, settings)


def decoder_class(kind: str, settings: Mapping[str, Any]) -> type[nn.Module]:
    """The class of a decoder with these settings: of an image, ``broadcast`` selects another.

    Raises:
        UserError: an unknown kind.
    """
    return _class(KINDS[check_one_of("kind", kind, KINDS)].decoders, settings)


def build_decoder(kind: str, latent_dim: int, shape: Sequence[int], settings: dict[str, Any]) -> Any:
    """The decoder z -> p(x | z) of a modality.

    Args:
        kind: a key of `KINDS`.
        latent_dim: size of z.
        shape: of one value, see `Kind.axes`.
        settings: the decoder's other arguments, see `decoder_class`; a text needs ``stop``.

    Raises:
        UserError: an unknown kind or setting.

    >>> build_decoder("vector", 2, [6], {"scale": 1.0}).layers[-1].out_features
    6
    """
    return _built(decoder_class(kind, settings), "decoder", [latent_dim], shape, settings)


def check_name(name: str) -> str:
    """Return the name of a modality if a model can call its parts so.

    Raises:
        UserError: it is no identifier, or one that torch's dictionaries of modules need themselves.
    """
    from torch import nn

    if not name.isidentifier() or hasattr(nn.ModuleDict, name):
        fix = "rename it, as in image or text_1"
        raise UserError("name of a modality", got=name, expected="letters, digits and _, and not keys or items", fix=fix)
    return name


def check_values(name: str, x: Tensor, kind: str, shape: Sequence[int], likelihood: Likelihood | None = None) -> None:
    """Fail unless x (b, ...) can be values of the modality ``name``.

    Args:
        name: for the message.
        x: values of b items.
        kind: a key of `KINDS`, or "sequence", whose positions have the shape.
        shape: of one value, see `Kind.axes`.
        likelihood: of the decoder that they are given to, if any.

    Raises:
        UserError: another shape or type, a number that is not finite, token ids out of the vocabulary or no whole numbers, or
            values without probability under the likelihood.
    """
    fix = "use the model's own processor"
    tokens = kind in KINDS and KINDS[kind].tokens
    if x.is_floating_point() == tokens:
        expected = "token ids, torch.int64" if tokens else "floating point numbers"
        raise UserError(name, got=str(x.dtype), expected=expected, fix=fix)
    if tokens:
        wrong = (x < 0) | (x >= shape[0])
        if wrong.any():
            item, value = wrong.nonzero()[0, 0].item(), x[wrong][0].item()
            raise UserError(f"{name} of item {item}", got=value, expected=f"token ids from 0 to {shape[0] - 1}", fix=fix)
        return
    one = tuple(x.shape[2 if kind == "sequence" else 1 :])
    if one != tuple(shape):
        raise UserError(name, got=f"shape {one}", expected=f"{tuple(shape)}", fix=fix)
    finite = x.isfinite()
    if not finite.all():
        item, value = (~finite).nonzero()[0, 0].item(), x[~finite][0].item()
        fix = "correct the value, or mark the modality as missing"
        raise UserError(f"{name} of item {item}", got=value, expected="finite numbers", fix=fix)
    if likelihood is not None:
        likelihood.check(name, x)
