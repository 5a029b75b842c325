"""Frozen linear layers with weights packed for a few rows, for language models that generate several texts on a CPU."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from mmgen.modalities.precision import native_bfloat16

FEW = range(3, 65)  # float32 rows; one or two are bound by memory bandwidth, and many amortise the packing anyway


@contextmanager
def packed(module: nn.Module) -> Iterator[None]:
    """Speed up frozen linear layers of ``module`` on a CPU up to two times for products of a few rows.

    By default a matrix is packed again for every product, which for a few rows takes longer than the product. Inside this
    context it is packed once. Until the end the weights take twice the memory, three times with gradients, and must not be
    changed. MKL packs float32 for one number of rows, 3 to 64, once a layer gets that number twice; oneDNN packs bfloat16 for
    any number, on processors with native bfloat16. It has no effect where torch was built without these libraries.

    Args:
        module: the module with the layers; outputs and first derivatives are the same up to rounding. Layers that cannot be
            packed are unchanged.

    >>> layer = nn.Linear(4, 3).requires_grad_(False)
    >>> with packed(layer):
    ...     outputs = [layer(torch.ones(3, 4)) for _ in range(3)]
    >>> torch.allclose(outputs[0], outputs[2])
    True
    """
    linear = (part for part in module.modules() if type(part) is nn.Linear)
    layers = [part for part in linear if "forward" not in vars(part) and _packable(part)]  # unless packed already
    for layer in layers:
        layer.forward = KINDS[layer.weight.dtype](layer)  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def _packable(layer: nn.Linear) -> bool:
    weight, kind = layer.weight, KINDS.get(layer.weight.dtype)
    frozen = all(not parameter.requires_grad and parameter.dtype == weight.dtype for parameter in layer.parameters())
    return kind is not None and kind.available() and frozen and weight.device.type == "cpu" and weight.numel() > 0


class _Packed:
    """Product with a layer's packed weights; subclasses define for how many rows, and how, they are packed."""

    def __init__(self, layer: nn.Linear) -> None:
        self.weight, self.bias = layer.weight.detach(), None if layer.bias is None else layer.bias.contiguous()
        self.matrices: dict[bool, Tensor] = {}  # packed weights for the forward product (False) and the gradient (True)

    def __call__(self, x: Tensor) -> Tensor:
        """Compute the layer's output (..., m) of x (..., n)."""
        fits = x.dtype == self.weight.dtype and x.shape[-1] == self.weight.shape[1] and x.numel()
        if not self.asked(x.shape[:-1].numel()) or not fits or torch.is_autocast_enabled("cpu"):
            return F.linear(x, self.weight, self.bias)
        return _Product.apply(x, self) if x.requires_grad and torch.is_grad_enabled() else self.product(x, False)

    @staticmethod
    def available() -> bool:
        """Decide whether this build of torch can pack."""
        raise NotImplementedError

    def asked(self, rows: int) -> bool:
        """Decide whether to use packed weights for a product of this many rows."""
        raise NotImplementedError

    def product(self, x: Tensor, transposed: bool) -> Tensor:
        """Multiply x by the weights and add the bias; or, transposed, map a gradient (..., m) to (..., n)."""
        raise NotImplementedError


class _Float(_Packed):
    rows = 0  # number of rows that the weights are packed for

    @staticmethod
    def available() -> bool:
        return torch.backends.mkl.is_available() and hasattr(torch.ops.mkl, "_mkl_linear")

    def asked(self, rows: int) -> bool:
        if rows in FEW and rows != self.rows:
            self.rows, self.matrices = rows, {}
            return False
        return rows in FEW

    def product(self, x: Tensor, transposed: bool) -> Tensor:
        weight, bias = (self.weight.t(), None) if transposed else (self.weight, self.bias)
        if x.shape[:-1].numel() != self.rows:  # a gradient after a product of another number of rows: packing does not pay
            return F.linear(x, weight, bias)
        if transposed not in self.matrices:
            self.matrices[transposed] = torch.ops.mkl._mkl_reorder_linear_weight(weight.contiguous(), self.rows)
        return torch.ops.mkl._mkl_linear(x.contiguous(), self.matrices[transposed], weight, bias, self.rows)


class _Bfloat16(_Packed):
    @staticmethod
    def available() -> bool:
        return native_bfloat16("cpu")

    def asked(self, rows: int) -> bool:
        return True

    def product(self, x: Tensor, transposed: bool) -> Tensor:
        if transposed not in self.matrices:
            weight = self.weight.t().contiguous() if transposed else self.weight
            self.matrices[transposed] = torch.ops.mkldnn._reorder_linear_weight(weight, None)
        bias = None if transposed else self.bias
        return torch.ops.mkldnn._linear_pointwise(x.contiguous(), self.matrices[transposed], bias, "none", [], "")


KINDS = {torch.float32: _Float, torch.bfloat16: _Bfloat16}


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: _Packed) -> Tensor:
        ctx.layer = layer
        return layer.product(x, False)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return ctx.layer.product(gradient, True), None
