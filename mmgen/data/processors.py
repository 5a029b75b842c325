"""Processors: a raw value becomes a tensor and back; their settings travel with the model."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, ClassVar, Protocol, runtime_checkable

from torch import Tensor

from mmgen.errors import UserError, check_one_of

Source = bytes | str | Path | Mapping[str, Any]  # the content of a file, its path, or a datasets struct {"bytes", "path"}


@runtime_checkable
class Processor(Protocol):
    """A dataclass of settings that turns a raw value into a tensor and back.

    ``kind`` is its key in `mmgen.modalities.kinds.PROCESSORS`. A processor may also have:

    - ``shape`` of its tensors, where all are of one shape;
    - a classmethod ``fit(rows, **settings)`` that sets it up from the training values, and a static ``read(value)`` that
      checks one of them first, so that its error names the row;
    - ``write(value, file)`` of a decoded value, for a kind whose generated values are files;
    - ``save_files(folder)`` of files beside its settings, and a classmethod ``load_files(folder, settings)`` that reads them.
    """

    kind: ClassVar[str]
    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[Any]]]

    def __call__(self, value: Any) -> Tensor:
        """Encode a raw value."""
        ...

    def decode(self, tensor: Tensor) -> Any:
        """Decode a tensor."""
        ...


def save_processors(processors: dict[str, Processor], folder: Path) -> None:
    """Write each processor's settings to ``folder/NAME/processor.json``, with the files it needs beside them."""
    for name, processor in processors.items():
        place = folder / name
        place.mkdir(parents=True, exist_ok=True)
        settings = {f.name: getattr(processor, f.name) for f in dataclasses.fields(processor) if f.init and f.repr}
        (place / "processor.json").write_text(
            json.dumps({"kind": processor.kind, **settings}, indent=2) + "\n", encoding="utf-8"
        )
        if hasattr(processor, "save_files"):
            processor.save_files(place)


def load_processors(folder: Path, classes: Mapping[str, str]) -> dict[str, Processor]:
    """The processors saved in ``folder``, by name.

    Args:
        folder: the folder that `save_processors` wrote.
        classes: kind -> "module:class"; a saved model names no import path.

    Raises:
        UserError: a settings file is damaged or names an unknown kind.
    """
    processors = {}
    for file in sorted(folder.glob("*/processor.json")):
        try:
            settings = json.loads(file.read_text(encoding="utf-8"))
        except json.JSONDecodeError as error:
            fix = "save the model again or download it again"
            raise UserError(str(file), got=str(error), expected="a JSON object", fix=fix) from error
        kind = check_one_of(f"{file}: kind", str(settings.pop("kind", None)), classes)
        cls = resolve_name(classes[kind])
        load = getattr(cls, "load_files", None)
        processors[file.parent.name] = load(file.parent, settings) if load else cls(**settings)
    return processors


def read_bytes(source: Source, kind: str) -> tuple[str, bytes]:
    """The content of a file that holds a picture or a sound, and the name that its errors give it.

    Args:
        source: the bytes themselves, a path, or a struct with "bytes" and "path" as `datasets` stores it.
        kind: what it should hold, for the messages: "image", "audio".

    Returns:
        (name, content).

    Raises:
        UserError: the file is missing, a folder, not readable or empty.

    >>> read_bytes({"bytes": b"abc", "path": "a.png"}, "image")
    ('a.png', b'abc')
    """
    if isinstance(source, Mapping):
        name, content = source.get("path") or f"{kind} bytes", source.get("bytes")
        source = content if content is not None else name
    else:
        name = f"{kind} bytes" if isinstance(source, bytes) else str(source)
    if not isinstance(source, bytes):
        expected = f"an {kind} file"
        try:
            source = Path(source).read_bytes()
        except FileNotFoundError as error:
            raise UserError(name, got="no such file", expected=expected, fix="check the path") from error
        except PermissionError as error:
            fix = f"run `chmod +r {name}`"
            raise UserError(name, got="no permission to read it", expected=expected, fix=fix) from error
        except IsADirectoryError as error:
            raise UserError(name, got="a folder", expected=expected, fix="name a file in it") from error
    if not source:
        raise UserError(name, got="0 bytes", expected=f"an {kind} file", fix="copy or download it again")
    return str(name), source
