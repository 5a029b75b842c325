"""Frozen linear layers with their weights packed for a few rows, as a language model that writes several texts needs them."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from mmgen.modalities.precision import native_bfloat16

FEW = range(3, 65)  # rows of float32; one or two wait for memory and not for MKL, and many hide what packing costs


@contextmanager
def packed(module: nn.Module) -> Iterator[None]:
    """Within it, frozen linear layers of ``module`` on a CPU multiply a few rows at a time up to twice as fast.

    A matrix is laid out anew for every product, which for a few rows takes longer than the product. Here it is done once and
    forgotten at the end. Until then the weights take twice the memory, three times if gradients go through, and must not be
    changed. MKL packs float32 for one number of rows, 3 to 64, as soon as a layer is given it twice; oneDNN packs bfloat16 for
    any, where the processor computes in it. Does nothing where torch was built without them.

    Args:
        module: whose layers; they give the same (..., m) of (..., n), to rounding, and the same first derivatives. All others
            are left alone.

    >>> layer = nn.Linear(4, 3).requires_grad_(False)
    >>> with packed(layer):
    ...     outputs = [layer(torch.ones(3, 4)) for _ in range(3)]
    >>> torch.allclose(outputs[0], outputs[2])
    True
    """
    linear = (part for part in module.modules() if type(part) is nn.Linear)
    layers = [part for part in linear if "forward" not in vars(part) and _packable(part)]  # within it, no second time
    for layer in layers:
        layer.forward = KINDS[layer.weight.dtype](layer)
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
    """A layer's product; subclasses say for which rows it is packed, and how."""

    def __init__(self, layer: nn.Linear) -> None:
        self.weight, self.bias = layer.weight.detach(), None if layer.bias is None else layer.bias.contiguous()
        self.matrices: dict[bool, Tensor] = {}  # packed, of the product forward (False) and of that of the gradient (True)

    def __call__(self, x: Tensor) -> Tensor:
        """x (..., n) -> (..., m)."""
        fits = x.dtype == self.weight.dtype and x.shape[-1] == self.weight.shape[1] and x.numel()
        if not self.asked(x.shape[:-1].numel()) or not fits or torch.is_autocast_enabled("cpu"):
            return F.linear(x, self.weight, self.bias)
        return _Product.apply(x, self) if x.requires_grad and torch.is_grad_enabled() else self.product(x, False)

    def asked(self, rows: int) -> bool:
        """Whether the product of so many rows is one to pack for."""
        raise NotImplementedError

    def product(self, x: Tensor, transposed: bool) -> Tensor:
        """x by the weights, and the bias; or a gradient (..., m) by the weights the other way -> (..., n)."""
        raise NotImplementedError


class _Float(_Packed):
    rows = 0  # that it is packed for

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
        if x.shape[:-1].numel() != self.rows:  # a gradient, after a product of other rows: not worth packing for
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
