"""Columns of a data card: required keys of each kind, storage types, and checks of values."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmgen.errors import UserError, counted, nearest

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

# kind -> (keys it must have, keys it may have)
KINDS: dict[str, tuple[set[str], set[str]]] = {
    "image": ({"shape", "unit", "range"}, set()),  # encoded bytes; shape (h, w, channels), null where it varies
    "audio": ({"rate", "unit", "range"}, {"channels"}),  # encoded bytes; rate in Hz and channels, null where they vary
    "text": ({"language"}, {"shape"}),  # shape [n]: a list of n texts
    "label": ({"classes"}, set()),  # a whole number below `classes`
    "vector": ({"shape", "unit", "range"}, set()),  # (d,) float32
    "sequence": ({"shape", "unit", "range", "rate"}, set()),  # (t, d) float32, t null where it varies; rate in Hz
    "group": (set(), {"unit"}),  # a group of people or things, for audits; "" where none applies
    "id": (set(), set()),  # a name of the row or of its origin
}
EVERYWHERE = {"kind", "description"}
# words that pandas writes for missing values in a CSV, and reads as missing
MISSING_WORDS = ("NaN", "nan", "null", "NULL", "None", "NA", "N/A", "n/a", "<NA>")


def check_column(name: str, spec: Any) -> list[UserError]:
    """List all mistakes in one entry of a card's ``columns``.

    Args:
        name: name of the entry in messages.
        spec: the entry, as ``{"kind": "label", "classes": 10}``.

    Returns:
        The mistakes; empty when there are none.

    >>> [str(e) for e in check_column("digit", {"kind": "lable", "classes": 10})]
    ["digit.kind: got lable, expected a known kind; did you mean 'label'?"]
    """
    kind = str(spec.get("kind") if isinstance(spec, dict) else spec)
    if not isinstance(spec, dict) or kind not in KINDS:
        return [UserError(f"{name}.kind", got=kind, expected="a known kind", fix=nearest(kind, KINDS))]
    required, optional = KINDS[kind]
    known = required | optional | EVERYWHERE
    problems = [
        UserError(f"{name}.{key}", got="nothing", expected=f"a value, as {key} is required for {kind}", fix=f"add {key}")
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
    """The `datasets` feature that stores a column.

    Args:
        spec: a checked entry of ``columns``.

    Returns:
        A feature; pictures and sounds stay ``{"bytes", "path"}``.
    """
    from datasets import Image, List, Value

    kind = spec["kind"]
    if kind == "image":
        return Image(decode=False)
    if kind == "audio":  # never datasets.Audio, which decodes only through torchcodec
        return {"bytes": Value("binary"), "path": Value("string")}
    if kind == "label":
        return Value("int64")
    if kind in ("vector", "sequence"):
        value: Any = Value("float32")
        for size in reversed(spec["shape"]):
            value = List(value, length=-1 if size is None else size)
        return value
    return List(Value("string")) if spec.get("shape") else Value("string")


def not_a_number(value: Any) -> bool:
    """Test a value for the float NaN, which pandas and JSON use for missing values."""
    return isinstance(value, float) and math.isnan(value)


def stored(spec: dict[str, Any], value: Any, what: str = "") -> Any:
    """Convert a reader's value to its stored form: the number of a class, and "" for a missing group or id.

    NaN is missing in every column. In a column of labels, `MISSING_WORDS` are missing too, quoted or not, unless the card has
    a class of that name.

    Args:
        spec: a checked entry of ``columns``.
        value: the reader's value; None for an empty cell.
        what: name of the value in errors; "": its kind.

    Returns:
        The value to store.

    Raises:
        UserError: a label is neither a whole number nor the name of a class; a text is a number or a boolean; or there is a
            list in place of one text, or one text in place of a list.

    >>> stored({"kind": "label", "classes": ["cat", "dog"]}, "dog")
    1
    """
    kind = spec["kind"]
    value = None if not_a_number(value) else value
    if kind in ("group", "id"):
        return "" if value is None else value
    if kind == "text":
        return _stored_text(spec, value, what or kind)
    if kind == "vector" and isinstance(value, str):  # a cell of a CSV
        return _cell_numbers(value, what or kind)
    if kind != "label" or value is None or value == "":
        return None if kind == "label" else value
    names = [] if isinstance(spec["classes"], int) else spec["classes"]
    name = str(value).lower() if isinstance(value, bool) else value
    if name in names:
        return names.index(name)
    if isinstance(value, str) and value in MISSING_WORDS:
        return None
    number = None if isinstance(value, bool) else _whole_number(value)
    if number is not None:
        return number
    expected = f"a class: {', '.join(names[:20])}, or its number" if names else "a whole number"
    fix = nearest(str(value), names) if names else "write the number of its class, or name the card's classes"
    raise UserError(what or kind, got=value, expected=expected, fix=fix)


def _cell_numbers(text: str, what: str) -> list[float]:
    try:
        return [float(number) for number in text.strip().strip("[]()").split(",")]
    except ValueError as error:
        fix = "write it as in 0.5,-1,2, in quotes"
        raise UserError(what, got=repr(text), expected="numbers joined by commas", fix=fix) from error


def _stored_text(spec: dict[str, Any], value: Any, what: str) -> Any:
    several = "shape" in spec
    if isinstance(value, (str if several else list, dict, bytes)):
        expected, fix = ("a list of texts", "[...]") if several else ("one text", "shape: [null] for several")
        raise UserError(what, got=value, expected=expected, fix=f"write {fix}")
    for text in value if isinstance(value, list) else [value]:
        if isinstance(text, int | float) and not not_a_number(text):
            raise UserError(what, got=text, expected="a text", fix="write it as a text, or correct the kind of its column")
    return [None if not_a_number(text) else text for text in value] if isinstance(value, list) else value


def _whole_number(value: Any) -> int | None:
    try:
        return int(float(value)) if float(value).is_integer() else None
    except (TypeError, ValueError, OverflowError):
        return None


def missing_values(column: pa.ChunkedArray) -> np.ndarray:
    """Find missing values of a stored column by its validity bits and lengths, without decoding.

    Args:
        column: a column of an opened card.

    Returns:
        (n,) bool, True for null, a picture or sound without bytes and path, an empty text, and a list with an empty text; an
        empty list is not missing.

    >>> import pyarrow as pa
    >>> missing_values(pa.chunked_array([["a", None, " "]])).tolist()
    [False, True, True]
    """
    import numpy as np

    pieces = [_missing(chunk) for chunk in column.chunks]
    return np.concatenate(pieces) if pieces else np.zeros(0, dtype=bool)


def outside_classes(spec: dict[str, Any], column: pa.ChunkedArray) -> np.ndarray:
    """Find labels outside the range of classes, (n,) bool; False for missing labels.

    >>> import pyarrow as pa
    >>> outside_classes({"kind": "label", "classes": 2}, pa.chunked_array([[1, 2, None, -1]])).tolist()
    [False, True, False, True]
    """
    import pyarrow.compute as pc

    classes = _class_count(spec)
    wrong = pc.or_(pc.less(column, 0), pc.greater_equal(column, classes))
    return wrong.fill_null(False).to_numpy()


def expected_classes(spec: dict[str, Any]) -> str:
    """Describe the valid labels of a column, for messages.

    >>> expected_classes({"kind": "label", "classes": 3})
    'a whole number 0..2'
    """
    return f"a whole number 0..{_class_count(spec) - 1}"


def shown_value(row: dict[str, Any], name: str) -> str:
    """Describe a missing value in an error, with the file name or text that identifies its row in a table.

    >>> shown_value({"image": {"bytes": None, "path": "photos/3.jpg"}, "caption": None}, "caption")
    'nothing beside 3.jpg'
    """
    value = row[name]
    shown = "nothing" if value is None or (isinstance(value, dict) and not any(value.values())) else repr(value)
    others = [other for key, other in row.items() if key != name]
    files = [Path(other["path"]).name for other in others if isinstance(other, dict) and other.get("path")]
    texts = [repr(other[:40]) for other in others if isinstance(other, str) and other.strip()]
    return f"{shown} beside {found[0]}" if (found := files + texts) else shown


def check_value(spec: dict[str, Any], value: Any) -> tuple[str, str] | None:
    """Check a stored value against its column, decoding pictures and sounds.

    Args:
        spec: a checked entry of ``columns``.
        value: the value in the opened card.

    Returns:
        None if it conforms, else descriptions of the value and of what the card says.

    Raises:
        UserError: a picture or a sound cannot be decoded.

    >>> check_value({"kind": "vector", "shape": [2], "range": [0, 1]}, [0.5, 2.0])
    ('values 0.5..2', 'values 0..1')
    """
    kind = spec["kind"]
    if value is None:
        return "nothing", "a value"
    if kind == "image":
        return _check_image(spec, value)
    if kind == "audio":
        return _check_audio(spec, value)
    if kind == "text" and "shape" in spec and spec["shape"][0] not in (None, len(value)):
        return counted(len(value), "text"), counted(spec["shape"][0], "text")
    if kind in ("vector", "sequence"):
        import numpy as np

        low, high = spec["range"]
        array = np.asarray(value, dtype=float)  # None becomes nan
        if array.ndim != len(spec["shape"]) or any(want not in (None, n) for want, n in zip(spec["shape"], array.shape)):
            return f"shape {list(array.shape)}", f"shape {spec['shape']}"
        if not np.isfinite(array).all():
            entry = tuple(np.argwhere(~np.isfinite(array))[0].tolist())
            return f"{array[entry]} at entry {', '.join(map(str, entry))}", "finite numbers"
        if not np.all((array >= (-np.inf if low is None else low)) & (array <= (np.inf if high is None else high))):
            return f"values {array.min():g}..{array.max():g}", f"values {low}..{high}"
    return None


def _class_count(spec: dict[str, Any]) -> int:
    return spec["classes"] if isinstance(spec["classes"], int) else len(spec["classes"])


def _missing(chunk: pa.Array) -> np.ndarray:
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    if pa.types.is_struct(chunk.type):  # a picture or a sound
        parts = [pc.is_null(chunk.field(i)) for i in range(chunk.type.num_fields)]
        empty = parts[0]
        for part in parts[1:]:
            empty = pc.and_(empty, part)
        return pc.or_(pc.is_null(chunk), empty).to_numpy(zero_copy_only=False)
    if pa.types.is_string(chunk.type) or pa.types.is_large_string(chunk.type):
        blank = pc.equal(pc.utf8_length(pc.utf8_trim_whitespace(chunk)), 0)
        return blank.fill_null(True).to_numpy(zero_copy_only=False)
    missing = pc.is_null(chunk).to_numpy(zero_copy_only=False)
    if pa.types.is_list(chunk.type) and pa.types.is_string(chunk.type.value_type):
        rows = pc.list_parent_indices(chunk).to_numpy(zero_copy_only=False)
        bad = np.zeros(len(chunk), dtype=bool)
        bad[rows[_missing(pc.list_flatten(chunk))]] = True
        return missing | bad
    return missing


def _check_image(spec: dict[str, Any], value: dict[str, Any]) -> tuple[str, str] | None:
    from mmgen.data.image import open_image, read_image  # imported late: it imports torch, which `mmgen list` must not
    from mmgen.data.processors import read_bytes

    picture = open_image(*read_bytes(value, "image"))
    shape = [picture.height, picture.width, len(picture.getbands())]
    if not all(want in (None, n) for want, n in zip(spec["shape"], shape)):
        return f"shape {shape}", f"shape {spec['shape']}"
    read_image(value)  # the header is valid, but the pixels may be cut short
    return None


def _check_audio(spec: dict[str, Any], value: dict[str, Any]) -> tuple[str, str] | None:
    from mmgen.data.audio import LOSSY, decode_audio  # imported late: it imports torch
    from mmgen.data.processors import read_bytes

    sound = decode_audio(*read_bytes(value, "audio"))
    want, got = (spec["rate"], spec.get("channels", 1)), (sound.rate, sound.samples.shape[1])
    if not all(w in (None, g) for w, g in zip(want, got)):
        return f"{got[0]} Hz, {got[1]} channel(s)", f"{want[0]} Hz, {want[1]} channel(s)"
    low, high = spec["range"]
    slack = 2.0 if sound.format in LOSSY else 1.0  # decoded samples overshoot the encoded ones
    least, most = float(sound.samples.min()), float(sound.samples.max())
    if (low is not None and least < min(low, slack * low)) or (high is not None and most > max(high, slack * high)):
        return f"samples {least:g}..{most:g}", f"samples {low}..{high}"
    return None


def _count(value: Any) -> bool:
    return type(value) is int and value > 0


def _numbers(value: Any) -> bool:
    return isinstance(value, list) and all(type(v) in (int, float) or v is None for v in value)


# key of a column -> (test of a value, description of valid values, example)
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
