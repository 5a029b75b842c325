"""Freezing of modules: no gradient for the weights, and permanent eval mode."""

from typing import TypeVar

from torch import nn

Network = TypeVar("Network", bound=nn.Module)


def freeze(module: Network, stored: bool = False) -> Network:
    """Freeze ``module`` in place: its weights get no gradient, and ``.train()`` leaves it in eval mode.

    Gradients still flow through it to its inputs.

    Args:
        module: the module.
        stored: save its weights with the model that contains it; otherwise the model stores only their origin.

    Returns:
        The same module.

    >>> frozen = freeze(nn.Dropout())
    >>> nn.Sequential(frozen).train()[0].training
    False
    """
    module.requires_grad_(False).eval()
    for part in module.modules():
        part.train = lambda mode=True, part=part: part  # type: ignore[method-assign, misc]
    module.is_frozen = not stored  # type: ignore[assignment]
    return module


def frozen_prefixes(module: nn.Module) -> tuple[str, ...]:
    """State-dict prefixes of the frozen parts of ``module`` that are not stored with it, as ``("language_model.",)``."""
    return tuple(f"{name}." for name, part in module.named_modules() if getattr(part, "is_frozen", False) and name)
