"""The operator ``torch.ops.fusednn.scan``: schema, shapes for tracing, gradients, and what runs on which device.

Compiled C++ on CPU tensors, Triton on CUDA tensors, the plain PyTorch reference elsewhere. Second-order gradients
differentiate the reference.
"""

from __future__ import annotations

import importlib.util

import torch
from torch import Tensor

from .native import COMPILED_DEVICES
from .operators import LIBRARY
from .reference import scan as reference

LIBRARY.define("scan(Tensor gates, Tensor h0, str cell) -> Tensor", tags=torch.Tag.pt2_compliant_tag)
LIBRARY.define(
    "scan_backward(Tensor grad_y, Tensor gates, Tensor y, Tensor h0, str cell) -> (Tensor d_gates, Tensor d_h0)",
    tags=torch.Tag.pt2_compliant_tag,
)


@torch.library.register_fake("fusednn::scan", lib=LIBRARY)
def _(gates, h0, cell):
    return gates.new_empty(gates.shape[0], *h0.shape)


@torch.library.register_fake("fusednn::scan_backward", lib=LIBRARY)
def _(grad_y, gates, y, h0, cell):
    return gates.new_empty(gates.shape), gates.new_empty(h0.shape)


class _Scan(torch.autograd.Function):
    """``scan`` where a kernel does forward and backward."""

    @staticmethod
    def forward(ctx, *args):
        gates, h0, cell = args
        with torch._C._AutoDispatchBelowAutograd():
            y = torch.ops.fusednn.scan(gates, h0, cell)
        ctx.save_for_backward(gates, h0, y)
        ctx.cell = cell
        return y

    @staticmethod
    def backward(ctx, grad_y: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        gates, h0, y = ctx.saved_tensors
        if torch.is_grad_enabled():
            gates, h0 = gates.view_as(gates), h0.view_as(h0)
            out = reference.scan(gates, h0, ctx.cell)
            return *torch.autograd.grad(out, (gates, h0), grad_y, create_graph=True, allow_unused=True), None
        d_gates, d_h0 = torch.ops.fusednn.scan_backward(grad_y, gates, y, h0, ctx.cell)
        return d_gates, d_h0, None


def _autograd(gates: Tensor, h0: Tensor, cell: str) -> Tensor:
    if torch.is_grad_enabled() and (gates.requires_grad or h0.requires_grad):
        return _Scan.apply(gates, h0, cell)  # pyright: ignore[reportReturnType]
    with torch._C._AutoDispatchBelowAutograd():
        return torch.ops.fusednn.scan(gates, h0, cell)


def _register() -> None:
    """Kernels where they exist, the reference on every other device."""
    for device in ("CPU", "CUDA", "XPU", "MPS"):
        if device == "CUDA" and torch.version.cuda is not None and importlib.util.find_spec("triton") is not None:
            from .triton_kernels import scan as triton_scan

            LIBRARY.impl("scan", triton_scan.forward, device)
            LIBRARY.impl("scan_backward", triton_scan.backward, device)
        elif device == "CPU" and "cpu" in COMPILED_DEVICES:
            pass  # registered by the compiled module
        else:
            LIBRARY.impl("scan", reference.scan, device)
            LIBRARY.impl("scan", reference.scan, f"Autograd{device}")
            continue
        LIBRARY.impl("scan", _autograd, f"Autograd{device}")


_register()
