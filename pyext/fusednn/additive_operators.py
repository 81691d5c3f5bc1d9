"""The operator ``torch.ops.fusednn.additive_scores``: schema, shapes for tracing, gradients, and what runs where.

Compiled C++ on CPU tensors, Triton on CUDA tensors, the plain PyTorch reference elsewhere. Second-order gradients
differentiate the reference.
"""

from __future__ import annotations

import importlib.util

import torch
from torch import Tensor

from .native import COMPILED_DEVICES
from .operators import LIBRARY
from .reference import additive as reference

LIBRARY.define("additive_scores(Tensor query, Tensor key, Tensor weight) -> Tensor", tags=torch.Tag.pt2_compliant_tag)
LIBRARY.define(
    "additive_scores_backward(Tensor grad, Tensor query, Tensor key, Tensor weight)"
    " -> (Tensor d_query, Tensor d_key, Tensor d_weight)",
    tags=torch.Tag.pt2_compliant_tag,
)


@torch.library.register_fake("fusednn::additive_scores", lib=LIBRARY)
def _(query, key, weight):
    wide = torch.float64 if query.dtype == torch.float64 else torch.float32
    return query.new_empty(query.shape[0], query.shape[1], key.shape[1], dtype=wide)


@torch.library.register_fake("fusednn::additive_scores_backward", lib=LIBRARY)
def _(grad, query, key, weight):
    return tuple(t.new_empty(t.shape) for t in (query, key, weight))


class _Scores(torch.autograd.Function):
    """``additive_scores`` where a kernel does forward and backward."""

    @staticmethod
    def forward(ctx, *inputs: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.save_for_backward(*inputs)
        with torch._C._AutoDispatchBelowAutograd():
            return torch.ops.fusednn.additive_scores(*inputs)

    @staticmethod
    def backward(ctx, grad: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        inputs = ctx.saved_tensors
        if torch.is_grad_enabled():
            views = [t.view_as(t) for t in inputs]
            return torch.autograd.grad(reference.scores(*views), views, grad, create_graph=True, allow_unused=True)
        return torch.ops.fusednn.additive_scores_backward(grad, *inputs)


def _autograd(*inputs: Tensor) -> Tensor:
    if torch.is_grad_enabled() and any(t.requires_grad for t in inputs):
        return _Scores.apply(*inputs)  # pyright: ignore[reportReturnType]
    with torch._C._AutoDispatchBelowAutograd():
        return torch.ops.fusednn.additive_scores(*inputs)


def _register() -> None:
    """Kernels where they exist, the reference on every other device."""
    for device in ("CPU", "CUDA", "XPU", "MPS"):
        if device == "CUDA" and torch.version.cuda is not None and importlib.util.find_spec("triton") is not None:
            from .triton_kernels import additive

            LIBRARY.impl("additive_scores", additive.forward, device)
            LIBRARY.impl("additive_scores_backward", additive.backward, device)
        elif not (device == "CPU" and "cpu" in COMPILED_DEVICES):  # there the compiled module registers them
            LIBRARY.impl("additive_scores", reference.scores, device)
            LIBRARY.impl("additive_scores", reference.scores, f"Autograd{device}")
            continue
        LIBRARY.impl("additive_scores", _autograd, f"Autograd{device}")


_register()
