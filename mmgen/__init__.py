"""Multimodal generation: everything a model says about data is a distribution."""

import importlib
from typing import Any

from mmgen.models import MODELS

__version__ = "0.1.0"

# public name -> module; imported at first use, so that `import mmgen` loads no torch. `__init__.pyi` tells type checkers.
_PUBLIC = {
    "Batch": "mmgen.data.batch",
    "Model": "mmgen.models.base",
    "collate": "mmgen.data.batch",
    "generate": "mmgen.inference.generate",
    "load": "mmgen.models.base",
    "open_card": "mmgen.data.cards",
    **{name: module for module, _, name in (place.partition(":") for place in MODELS.values())},
}
__all__ = [*_PUBLIC]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'mmgen' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_PUBLIC])
