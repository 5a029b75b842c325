"""mmgen: multimodal generation. Everything a model says about data is a distribution."""

import importlib
from typing import Any

__version__ = "0.1.0"

# public name -> where it is; imported at first use, so that `import mmgen` costs nothing
_PUBLIC = {
    "Batch": "mmgen.data.batch",
    "collate": "mmgen.data.batch",
    "load": "mmgen.models.base",
    "open_card": "mmgen.data.cards",
}
__all__ = [*_PUBLIC]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'mmgen' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_PUBLIC])
