"""The operator ``torch.ops.fusednn.scan``: schema, shapes for tracing, gradients."""

from __future__ import annotations

import torch

from .kernel_operators import register
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


def _backward(grad, arguments, y):
    gates, h0, cell = arguments
    return torch.ops.fusednn.scan_backward(grad, gates, y, h0, cell)


register("scan", reference.scan, _backward, "scan")
