"""Frozen linear layers with their weights packed for a few rows, as a language model that writes several texts needs them."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

FEW = range(3, 65)  # rows; one or two wait for memory and not for MKL, and many hide what packing costs


@contextmanager
def packed(module: nn.Module) -> Iterator[None]:
    """Within it, frozen float32 linear layers of ``module`` on a CPU multiply 3 to 64 rows at a time up to twice as fast.

    MKL lays a matrix out anew for every product, which for a few rows takes longer than the product. Here it is done once, as
    soon as a layer is given the same number of rows twice, and forgotten at the end. Until then the weights take twice the
    memory, three times if gradients go through, and must not be changed. Does nothing where torch was built without MKL.

    Args:
        module: whose layers; they give the same (..., m) of (..., n), to rounding. All others are left alone.

    >>> layer = nn.Linear(4, 3).requires_grad_(False)
    >>> with packed(layer):
    ...     outputs = [layer(torch.ones(3, 4)) for _ in range(3)]
    >>> torch.allclose(outputs[0], outputs[2])
    True
    """
    layers = []
    if torch.backends.mkl.is_available() and hasattr(torch.ops.mkl, "_mkl_linear"):
        found = (part for part in module.modules() if type(part) is nn.Linear)
        layers = [part for part in found if "forward" not in vars(part) and _frozen(part)]  # within it, no second time
    for layer in layers:
        layer.forward = _Packed(layer)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def _frozen(layer: nn.Linear) -> bool:
    free = any(parameter.requires_grad for parameter in layer.parameters())
    return layer.weight.device.type == "cpu" and layer.weight.dtype == torch.float32 and not free


class _Packed:
    def __init__(self, layer: nn.Linear) -> None:
        self.weight, self.bias, self.rows = layer.weight.detach(), layer.bias, 0
        self.matrices: dict[bool, Tensor] = {}  # packed, of the product forward (False) and of that of the gradient (True)

    def __call__(self, x: Tensor) -> Tensor:
        """x (..., n) -> (..., m)."""
        rows = x.shape[:-1].numel()
        if rows in FEW and rows != self.rows:
            self.rows, self.matrices = rows, {}
        elif rows in FEW and x.shape[-1] == self.weight.shape[1] and not torch.is_autocast_enabled("cpu"):
            return _Product.apply(x, self) if x.requires_grad and torch.is_grad_enabled() else self.product(x, False)
        return F.linear(x, self.weight, self.bias)

    def product(self, x: Tensor, transposed: bool) -> Tensor:
        """x by the weights, and the bias; or a gradient (..., m) by the weights the other way -> (..., n)."""
        weight, bias = (self.weight.t(), None) if transposed else (self.weight, self.bias)
        if x.shape[:-1].numel() != self.rows:  # a gradient, after a product of other rows: not worth packing for
            return F.linear(x, weight, bias)
        if transposed not in self.matrices:
            self.matrices[transposed] = torch.ops.mkl._mkl_reorder_linear_weight(weight.contiguous(), self.rows)
        return torch.ops.mkl._mkl_linear(x.contiguous(), self.matrices[transposed], weight, bias, self.rows)


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: _Packed) -> Tensor:
        ctx.layer = layer
        return layer.product(x, False)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return ctx.layer.product(gradient, True), None
