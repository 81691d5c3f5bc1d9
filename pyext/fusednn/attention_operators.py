"""The attention operators of ``torch.ops.fusednn``: schemas, shapes for tracing, gradients.

``attention_forward`` and ``attention_backward`` run what their last argument names: ``triton``, the fused kernels, on
CUDA tensors, and on CPU tensors in Triton's interpreter (RuntimeError without it), or ``blocked``: on CPU tensors the
compiled kernel (but for a mask's gradient), elsewhere, and without a compiler, PyTorch's operations block by block.
Gradients of gradients, and forward-mode AD, differentiate the reference. Arguments: ``attention_call``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import blocked_attention, cpu_attention, triton_kernels
from .attention_call import LEARNED, MASK, Inputs, Options, have_tangents, schema, split, wide
from .operators import LIBRARY
from .reference import attention as reference

_CALL = schema(Inputs, Options)
LIBRARY.define(
    "attention_keep(Tensor seed, float probability, Tensor heads, int first_query, int end_query, int first_key,"
    " int end_key) -> Tensor",
    tags=torch.Tag.pt2_compliant_tag,
)
LIBRARY.define(f"attention_forward({_CALL}) -> (Tensor out, Tensor lse)", tags=torch.Tag.pt2_compliant_tag)
LIBRARY.define(
    f"attention_backward(Tensor grad_out, Tensor? grad_lse, Tensor out, Tensor lse, bool[6] wanted, {_CALL})"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    tags=torch.Tag.pt2_compliant_tag,
)


def _keep(seed, probability, heads, first_query, end_query, first_key, end_key):
    """``reference.kept`` for a block of each of some heads: [heads, queries, keys]."""
    i, j = (torch.arange(*ends, device=heads.device) for ends in ((first_query, end_query), (first_key, end_key)))
    return reference.kept(seed, probability, heads[:, None, None], i[:, None], j)


@torch.library.register_fake("fusednn::attention_keep", lib=LIBRARY)
def _(seed, probability, heads, first_query, end_query, first_key, end_key):
    return heads.new_empty(heads.shape[0], end_query - first_query, end_key - first_key, dtype=torch.bool)


def _like(x: Tensor, *sizes) -> Tensor:
    """An uninitialised [B, N, T, E] whose heads lie outside or inside of time in memory, as those of x do."""
    if x.stride(1) < x.stride(2):
        return x.new_empty(sizes[0], sizes[2], sizes[1], sizes[3]).transpose(1, 2)
    return x.new_empty(sizes)


@torch.library.register_fake("fusednn::attention_forward", lib=LIBRARY)
def _outputs(query, key, value, *others):
    """Output and LSE, uninitialised."""
    return _like(query, *query.shape[:3], value.shape[3]), query.new_empty(query.shape[:3], dtype=wide(query.dtype))


@torch.library.register_fake("fusednn::attention_backward", lib=LIBRARY)
def _gradients(grad_out, grad_lse, out, lse, wanted, query, *others):
    """Gradients of query, key, value, mask, slopes and sink, uninitialised; without elements where not wanted."""
    inputs = (query, *others[: LEARNED - 1])
    heads = [_like(x, *x.shape) if want else x.new_empty(0) for x, want in zip(inputs[:3], wanted[:3], strict=True)]
    modifiers = zip(inputs[3:], wanted[3:], strict=True)
    return *heads, *(x.new_empty(x.shape) if want else query.new_empty(0) for x, want in modifiers)


def _kernels(x: Tensor):
    """The module that launches, or RuntimeError where Triton cannot run on the tensor."""
    reason = triton_kernels.unavailable(x.device.type)
    if reason is not None:
        raise RuntimeError(f"torch.ops.fusednn.attention_*: {reason}")
    from .triton_kernels import launch

    return launch


def _forward(*arguments):
    inputs, options = split(arguments)
    out, lse = _outputs(*inputs)
    if options.path == "triton":
        _kernels(inputs.query).forward(inputs, options, out, lse)
    else:
        with reference.without_autocast(out):
            blocks = cpu_attention if cpu_attention.available(out.device) else blocked_attention
            blocks.forward(inputs, options, out, lse)
    return out, lse


def _backward(grad_out, grad_lse, out, lse, wanted, *arguments):
    inputs, options = split(arguments)
    found = _gradients(grad_out, grad_lse, out, lse, wanted, *inputs)
    asked = [x if want else None for x, want in zip(found, wanted, strict=True)]
    if options.path == "triton":
        _kernels(inputs.query).backward(grad_out, grad_lse, inputs, options, out, lse, asked)
    else:
        with reference.without_autocast(out):
            compiled = cpu_attention.available(out.device) and not wanted[MASK]
            (cpu_attention if compiled else blocked_attention).backward(grad_out, grad_lse, inputs, options, asked)
    return found


class _Attention(torch.autograd.Function):
    """``attention_forward`` with gradients."""

    @staticmethod
    def forward(ctx, *arguments):
        with torch._C._AutoDispatchBelowAutograd():
            out, lse = torch.ops.fusednn.attention_forward(*arguments)
        inputs, ctx.options = split(arguments)
        ctx.save_for_backward(*inputs, out, lse)
        ctx.set_materialize_grads(False)
        return out, lse

    @staticmethod
    def backward(ctx, *grads):  # pyright: ignore[reportIncompatibleMethodOverride]
        *inputs, out, lse = ctx.saved_tensors
        wanted = ctx.needs_input_grad[:LEARNED]
        none = (None,) * (len(ctx.needs_input_grad) - LEARNED)
        if torch.is_grad_enabled() or have_tangents(grads):
            with torch.enable_grad():
                return *_differentiable_backward(inputs, ctx.options, wanted, grads), *none
        grad_out, grad_lse = grads
        if grad_out is None:
            grad_out = out.new_zeros(()).expand_as(out)
        found = torch.ops.fusednn.attention_backward(grad_out, grad_lse, out, lse, wanted, *inputs, *ctx.options)
        return *(g if want else None for g, want in zip(found, wanted, strict=True)), *none


def compose(inputs: Inputs, options: Options) -> tuple[Tensor, Tensor]:
    """The reference with the operator's arguments."""
    parts = []
    for number, queries, keys in blocked_attention.sequences(inputs):
        slopes = inputs.slopes
        if inputs.starts_q is not None and slopes is not None and slopes.shape[0] > 1:
            slopes = slopes[number : number + 1]
        parts.append(
            reference.attention(
                inputs.query[:, :, queries], inputs.key[:, :, keys], inputs.value[:, :, keys], inputs.mask,
                options.dropout_p, scale=options.scale, window=(options.left, options.right), softcap=options.softcap,
                alibi_slopes=slopes, sink=inputs.sink, return_lse=True, seed=inputs.seed,
                causal_alignment="bottom_right" if options.bottom_right else "top_left",
                first_head=number * inputs.query.shape[1],
            )
        )  # fmt: skip
    out, lse = (list(results) for results in zip(*parts, strict=True))
    return torch.cat(out, dim=2), torch.cat(lse, dim=2)


def _differentiable_backward(inputs, options, wanted, grads):
    """Gradients that can be differentiated again: autograd through the reference, recomputed from the inputs."""
    # Views, so that each gradient is the partial one even where one input was computed from another.
    views: list[Any] = [None if t is None else t.view_as(t) for t in inputs]
    found = compose(Inputs(*views), options)
    leaves = [v for v, needed in zip(views, wanted, strict=False) if needed]
    pairs = [(o, g) for o, g in zip(found, grads, strict=True) if g is not None]
    partial = iter(
        torch.autograd.grad([o for o, _ in pairs], leaves, [g for _, g in pairs], create_graph=True, allow_unused=True)
    )
    return [next(partial) if needed else None for needed in wanted]


def _autograd(keyset, *arguments):
    if have_tangents(arguments):
        return compose(*split(arguments))
    if torch.is_grad_enabled() and any(isinstance(a, Tensor) and a.requires_grad for a in arguments):
        return _Attention.apply(*arguments)
    with torch._C._AutoDispatchBelowAutograd():
        return torch.ops.fusednn.attention_forward.default.redispatch(
            keyset & torch._C._after_autograd_keyset, *arguments
        )


LIBRARY.impl("attention_keep", _keep, "CompositeExplicitAutograd")  # compiled on CPU tensors
LIBRARY.impl("attention_forward", _forward, "CompositeExplicitAutograd")
LIBRARY.impl("attention_backward", _backward, "CompositeExplicitAutograd")
LIBRARY.impl("attention_forward", _autograd, "Autograd", with_keyset=True)
