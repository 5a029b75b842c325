"""The columns of a data card: what each kind must say about itself, how it is stored, and whether a value keeps to it."""

import io
from pathlib import Path
from typing import Any

from mmgen.errors import UserError, nearest

# kind -> (keys it must have, keys it may have)
KINDS: dict[str, tuple[set[str], set[str]]] = {
    "image": ({"shape", "unit", "range"}, set()),  # encoded bytes; shape (h, w, channels), null where it varies
    "audio": ({"rate", "unit", "range"}, {"channels"}),  # encoded bytes; rate in Hz and channels, null where they vary
    "text": ({"language"}, {"shape"}),  # shape [n]: a list of n texts
    "label": ({"classes"}, set()),  # a whole number below `classes`
    "vector": ({"shape", "unit", "range"}, set()),  # (d,) float32
    "sequence": ({"shape", "unit", "range", "rate"}, set()),  # (t, d) float32, t null where it varies; rate in Hz
    "group": (set(), {"unit"}),  # a name of a group of people or things, for audits; "" where none applies
    "id": (set(), set()),  # a name of the row or of what it was made from
}
EVERYWHERE = {"kind", "description"}


def check_column(name: str, spec: Any) -> list[UserError]:
    """Every mistake in one entry of a card's ``columns``.

    Args:
        name: what the messages call it.
        spec: the entry, as ``{"kind": "label", "classes": 10}``.

    Returns:
        The mistakes; empty when there are none.

    >>> [str(e) for e in check_column("digit", {"kind": "lable", "classes": 10})]
    ["digit.kind: got lable, expected a known kind; did you mean 'label'?"]
    """
    kind = spec.get("kind") if isinstance(spec, dict) else spec
    if not isinstance(spec, dict) or str(kind) not in KINDS:
        return [UserError(f"{name}.kind", got=kind, expected="a known kind", fix=nearest(str(kind), KINDS))]
    required, optional = KINDS[kind]
    known = required | optional | EVERYWHERE
    problems = [
        UserError(f"{name}.{key}", got="nothing", expected=f"what every {kind} column says", fix=f"add {key}")
        for key in sorted(required - spec.keys())
    ]
    for key, value in spec.items():
        if key not in known:
            problems.append(UserError(name, got=key, expected="a known key", fix=nearest(str(key), known)))
        elif key in _VALUES:
            accepted, expected, example = _VALUES[key]
            if not accepted(value):
                problems.append(UserError(f"{name}.{key}", got=value, expected=expected, fix=f"write {key}: {example}"))
    lengths = {"image": 3, "vector": 1, "sequence": 2, "text": 1}
    shape = spec.get("shape")
    if isinstance(shape, list) and len(shape) != lengths.get(kind, len(shape)):
        expected = f"{lengths[kind]} number(s) for kind {kind}"
        problems.append(UserError(f"{name}.shape", got=shape, expected=expected, fix="use null for a size that varies"))
    return problems


def feature(spec: dict[str, Any]) -> Any:
    """How `datasets` stores a column.

    Args:
        spec: a checked entry of ``columns``.

    Returns:
        A feature; pictures and sounds stay ``{"bytes", "path"}``.
    """
    from datasets import Image, List, Value

    kind, shape = spec["kind"], spec.get("shape")
    if kind == "image":
        return Image(decode=False)
    if kind == "audio":  # never datasets.Audio, which decodes only through torchcodec
        return {"bytes": Value("binary"), "path": Value("string")}
    if kind == "label":
        return Value("int64")
    if kind in ("vector", "sequence"):
        value = Value("float32")
        for size in reversed(shape):
            value = List(value, length=-1 if size is None else size)
        return value
    return List(Value("string")) if shape else Value("string")


def check_value(spec: dict[str, Any], value: Any) -> tuple[str, str] | None:
    """Whether a stored value keeps to what its column says.

    Args:
        spec: a checked entry of ``columns``.
        value: the value, as the opened card gives it.

    Returns:
        None, or what was got and what the card says.

    >>> check_value({"kind": "label", "classes": 10}, 12)
    ('12', 'a whole number 0..9')
    """
    kind = spec["kind"]
    if value is None:
        return "nothing", "a value"
    if kind == "image":
        return _check_image(spec, _content(value))
    if kind == "audio":
        return _check_audio(spec, _content(value))
    if kind == "label":
        classes = spec["classes"] if isinstance(spec["classes"], int) else len(spec["classes"])
        return None if 0 <= value < classes else (str(value), f"a whole number 0..{classes - 1}")
    if kind == "text":
        texts = [value] if "shape" not in spec else value
        if "shape" in spec and spec["shape"][0] not in (None, len(texts)):
            return f"{len(texts)} texts", f"{spec['shape'][0]} texts"
        return None if all(text.strip() for text in texts) else ("an empty text", "a text")
    if kind in ("vector", "sequence"):
        import numpy as np

        low, high = spec["range"]
        array = np.asarray(value, dtype=float)  # what is left empty becomes nan
        if array.ndim != len(spec["shape"]) or any(want not in (None, n) for want, n in zip(spec["shape"], array.shape)):
            return f"shape {list(array.shape)}", f"shape {spec['shape']}"
        if not np.isfinite(array).all():
            entry = tuple(np.argwhere(~np.isfinite(array))[0].tolist())
            return f"{array[entry]} at entry {', '.join(map(str, entry))}", "finite numbers"
        if not np.all((array >= (-np.inf if low is None else low)) & (array <= (np.inf if high is None else high))):
            return f"values {array.min():g}..{array.max():g}", f"values {low}..{high}"
    return None


def _content(value: dict[str, Any]) -> bytes | None:
    """The bytes of a file in a cell, or of the one it names."""
    return value["bytes"] if value["bytes"] is not None else Path(value["path"]).read_bytes()


def _check_image(spec: dict[str, Any], data: bytes) -> tuple[str, str] | None:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(data)) as picture:
            shape = [picture.height, picture.width, len(picture.getbands())]
    except (UnidentifiedImageError, OSError, TypeError, Image.DecompressionBombError):
        return "an unreadable picture", "an image file's bytes"
    good = all(want in (None, n) for want, n in zip(spec["shape"], shape))
    return None if good else (f"shape {shape}", f"shape {spec['shape']}")


def _check_audio(spec: dict[str, Any], data: bytes) -> tuple[str, str] | None:
    import soundfile

    try:
        info = soundfile.info(io.BytesIO(data))
    except (soundfile.LibsndfileError, TypeError):
        return "an unreadable sound", "a sound file's bytes"
    want = (spec["rate"], spec.get("channels", 1))
    got = (info.samplerate, info.channels)
    good = all(w in (None, g) for w, g in zip(want, got))
    return None if good else (f"{got[0]} Hz, {got[1]} channel(s)", f"{want[0]} Hz, {want[1]} channel(s)")


def _count(value: Any) -> bool:
    return type(value) is int and value > 0


def _numbers(value: Any) -> bool:
    return isinstance(value, list) and all(type(v) in (int, float) or v is None for v in value)


# key of a column -> (whether a value is accepted, what is expected, an example)
_VALUES = {
    "shape": (
        lambda v: isinstance(v, list) and bool(v) and all(n is None or _count(n) for n in v),
        "a list of whole numbers >= 1 or null",
        "[128, 128, 3]",
    ),
    "range": (lambda v: _numbers(v) and len(v) == 2, "a list [lowest, highest]", "[0, 255]"),
    "rate": (lambda v: v is None or (type(v) in (int, float) and v > 0), "a number of hertz > 0, or null", "24000"),
    "channels": (lambda v: v is None or _count(v), "a whole number >= 1, or null", "1"),
    "classes": (
        lambda v: _count(v) or (isinstance(v, list) and bool(v) and all(isinstance(n, str) for n in v)),
        "a number of classes, or their names",
        "10",
    ),
    "language": (lambda v: isinstance(v, str), "a language code", "en"),
    "unit": (lambda v: isinstance(v, str), "a unit", "amplitude"),
}
