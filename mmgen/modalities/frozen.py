"""Frozen means frozen: no gradient for the weights, eval mode for ever."""

from typing import TypeVar

from torch import nn

Network = TypeVar("Network", bound=nn.Module)


def freeze(module: Network, stored: bool = False) -> Network:
    """Freeze ``module`` in place: its weights take no gradient and it stays in eval mode through any ``.train()``.

    Gradients still flow through it to its inputs.

    Args:
        module: what is frozen.
        stored: save its weights with the model it is part of; otherwise that names where they come from.

    Returns:
        The same module.

    >>> frozen = freeze(nn.Dropout())
    >>> nn.Sequential(frozen).train()[0].training
    False
    """
    module.requires_grad_(False).eval()
    for part in module.modules():
        part.train = lambda mode=True, part=part: part
    module.is_frozen = not stored
    return module


def frozen_prefixes(module: nn.Module) -> tuple[str, ...]:
    """The state-dict prefixes of the frozen parts in ``module`` that are not stored with it, as ``("language_model.",)``."""
    return tuple(f"{name}." for name, part in module.named_modules() if getattr(part, "is_frozen", False) and name)
