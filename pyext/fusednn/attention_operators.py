"""The attention operators of ``torch.ops.fusednn``: schemas, shapes for tracing, gradients.

``attention_forward`` and ``attention_backward`` run the Triton kernels, on CUDA tensors, and on CPU tensors in Triton's
interpreter; without it they raise RuntimeError there. Gradients of gradients differentiate the reference.

Letters: B batch, N heads, G query heads that share a key head, M queries, K keys, E head size, Ev size of a value.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import triton_kernels
from .operators import LIBRARY
from .reference import attention as reference

_INPUTS = "Tensor query, Tensor key, Tensor value, Tensor? mask, Tensor? slopes, Tensor? sink"
_OPTIONS = "float scale, float? softcap, SymInt? left, SymInt? right, bool bottom_right"
LIBRARY.define(
    f"attention_forward({_INPUTS}, {_OPTIONS}) -> (Tensor out, Tensor lse)", tags=torch.Tag.pt2_compliant_tag
)
LIBRARY.define(
    f"attention_backward(Tensor grad_out, Tensor? grad_lse, {_INPUTS}, Tensor out, Tensor lse, {_OPTIONS},"
    " bool[6] wanted) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    tags=torch.Tag.pt2_compliant_tag,
)


def _like(x: Tensor, *sizes) -> Tensor:
    """An uninitialised [B, N, T, E] whose heads lie outside or inside of time in memory, as those of x do."""
    if x.stride(1) < x.stride(2):
        return x.new_empty(sizes[0], sizes[2], sizes[1], sizes[3]).transpose(1, 2)
    return x.new_empty(sizes)


@torch.library.register_fake("fusednn::attention_forward", lib=LIBRARY)
def _outputs(query, key, value, mask, slopes, sink, scale, softcap, left, right, bottom_right):
    """Output and LSE, uninitialised."""
    exact = torch.float64 if query.dtype == torch.float64 else torch.float32
    return _like(query, *query.shape[:3], value.shape[3]), query.new_empty(query.shape[:3], dtype=exact)


@torch.library.register_fake("fusednn::attention_backward", lib=LIBRARY)
def _gradients(grad_out, grad_lse, query, key, value, mask, slopes, sink, out, lse, *options):
    """Gradients of query, key, value, mask, slopes and sink, uninitialised; without elements where not wanted."""
    *_, wanted = options
    heads = [
        _like(x, *x.shape) if want else x.new_empty(0) for x, want in zip((query, key, value), wanted[:3], strict=True)
    ]
    others = zip((mask, slopes, sink), wanted[3:], strict=True)
    return *heads, *(x.new_empty(x.shape) if want else query.new_empty(0) for x, want in others)


def _kernels(x: Tensor):
    """The module that launches, or RuntimeError where Triton cannot run on the tensor."""
    reason = triton_kernels.unavailable(x.device.type)
    if reason is not None:
        raise RuntimeError(f"torch.ops.fusednn.attention_*: {reason}")
    from .triton_kernels import launch

    return launch


def _forward(query, key, value, mask, slopes, sink, *options):
    launch = _kernels(query)
    out, lse = _outputs(query, key, value, mask, slopes, sink, *options)
    launch.forward(query, key, value, mask, slopes, sink, options, out, lse)
    return out, lse


def _backward(grad_out, grad_lse, query, key, value, mask, slopes, sink, out, lse, *options):
    launch = _kernels(query)
    *options, wanted = options
    found = _gradients(grad_out, grad_lse, query, key, value, mask, slopes, sink, out, lse, wanted)
    launch.backward(
        grad_out, grad_lse, query, key, value, mask, slopes, sink, tuple(options), out, lse,
        [x if want else None for x, want in zip(found, wanted, strict=True)],
    )  # fmt: skip
    return found


class _Attention(torch.autograd.Function):
    """``attention_forward`` with gradients."""

    @staticmethod
    def forward(ctx, *arguments):
        with torch._C._AutoDispatchBelowAutograd():
            out, lse = torch.ops.fusednn.attention_forward(*arguments)
        ctx.save_for_backward(*arguments[:6], out, lse)
        ctx.options = arguments[6:]
        ctx.set_materialize_grads(False)
        return out, lse

    @staticmethod
    def backward(ctx, *grads):  # pyright: ignore[reportIncompatibleMethodOverride]
        *inputs, out, lse = ctx.saved_tensors
        none = (None,) * len(ctx.options)
        if torch.is_grad_enabled():
            return *_differentiable_backward(ctx, inputs, grads), *none
        grad_out, grad_lse = grads
        if grad_out is None:
            grad_out = out.new_zeros(()).expand_as(out)
        wanted = ctx.needs_input_grad[:6]
        found = torch.ops.fusednn.attention_backward(grad_out, grad_lse, *inputs, out, lse, *ctx.options, wanted)
        return *(g if want else None for g, want in zip(found, wanted, strict=True)), *none


def compose(query, key, value, mask, slopes, sink, scale, softcap, left, right, bottom_right):
    """The reference with the operator's arguments."""
    return reference.attention(
        query, key, value, mask, scale=scale, window=(left, right), softcap=softcap, alibi_slopes=slopes, sink=sink,
        causal_alignment="bottom_right" if bottom_right else "top_left", return_lse=True,
    )  # fmt: skip


def _differentiable_backward(ctx, inputs, grads):
    """Gradients that can be differentiated again: autograd through the reference, recomputed from the inputs."""
    # Views, so that each gradient is the partial one even where one input was computed from another.
    views: list[Any] = [None if t is None else t.view_as(t) for t in inputs]
    found: tuple[Any, Any] = compose(*views, *ctx.options)
    wanted = [v for v, needed in zip(views, ctx.needs_input_grad, strict=False) if needed]
    pairs = [(o, g) for o, g in zip(found, grads, strict=True) if g is not None]
    partial = iter(
        torch.autograd.grad([o for o, _ in pairs], wanted, [g for _, g in pairs], create_graph=True, allow_unused=True)
    )
    return [next(partial) if needed else None for needed in ctx.needs_input_grad[:6]]


def _autograd(keyset, *arguments):
    if torch.is_grad_enabled() and any(isinstance(a, Tensor) and a.requires_grad for a in arguments):
        return _Attention.apply(*arguments)
    with torch._C._AutoDispatchBelowAutograd():
        return torch.ops.fusednn.attention_forward.default.redispatch(
            keyset & torch._C._after_autograd_keyset, *arguments
        )


for _device in ("CPU", "CUDA"):
    LIBRARY.impl("attention_forward", _forward, _device)
    LIBRARY.impl("attention_backward", _backward, _device)
    LIBRARY.impl("attention_forward", _autograd, f"Autograd{_device}", with_keyset=True)
