"""Operators over all layers of a recurrent network: forward walks them together, in one launch of ``grid``.

Letters as in ``operators``; L layers of one direction and one head, without options. Weights come layer by layer, w_ih
and w_hh and then b_ih and b_hh where there are biases; those of the first layer are ``[G * H, I]`` and ``[G * H, H]``,
w_ih of the others ``[G * H, H]``. States are ``[L, B, H]``.

``recurrent_layers`` is differentiable to any order: backward takes one layer after the other, each as ``recurrent``
does, and second-order gradients differentiate the reference.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from .operators import LIBRARY, _Recurrent, differentiable_gradients, register_recurrence
from .reference import recurrent as reference_recurrent
from .reference.cells import CELLS
from .reference.options import PLAIN

_ARGUMENTS = "Tensor x, Tensor h0, Tensor? c0, Tensor[] weights, Tensor? batch_sizes, str cell, str strategy"
LIBRARY.define(
    f"recurrent_layers({_ARGUMENTS}) -> (Tensor y, Tensor h_n, Tensor c_n)", tags=torch.Tag.pt2_compliant_tag
)
LIBRARY.define(
    f"recurrent_layers_forward({_ARGUMENTS}, bool save) -> (Tensor y, Tensor h_n, Tensor c_n, Tensor saved)",
    tags=torch.Tag.pt2_compliant_tag,
)


@torch.library.register_fake("fusednn::recurrent_layers", lib=LIBRARY)
def _(x, h0, c0, weights, batch_sizes, cell, strategy):
    y = x.new_empty(x.shape[0], h0.shape[2])
    return y, h0.new_empty(h0.shape), x.new_empty(0) if c0 is None else c0.new_empty(c0.shape)


@torch.library.register_fake("fusednn::recurrent_layers_forward", lib=LIBRARY)
def _(x, h0, c0, weights, batch_sizes, cell, strategy, save):
    layers, rows, units = h0.shape[0], x.shape[0], h0.shape[2]
    values = len(CELLS[cell].saved) * units
    return (
        x.new_empty(layers, rows, units) if save else x.new_empty(rows, units),
        h0.new_empty(h0.shape),
        x.new_empty(0) if c0 is None else c0.new_empty(c0.shape),
        x.new_empty(layers, rows, values) if save and values else x.new_empty(0),
    )


def _layers(weights: Sequence[Any], layers: int) -> Iterator[tuple[Any, ...]]:
    """w_ih, w_hh, b_ih and b_hh of each layer, from values that stand for them."""
    each = len(weights) // layers
    for first in range(0, len(weights), each):
        yield (*weights[first : first + each], *[None] * (4 - each))


def _reference(x, h0, c0, weights, batch_sizes, cell, strategy):
    states = []
    for layer, own in enumerate(_layers(weights, h0.shape[0])):
        part = slice(layer, layer + 1)
        c0_l = None if c0 is None else c0[part]
        tensors: tuple[Any, ...] = (x, h0[part], c0_l, *own, None, batch_sizes)
        x, *state = reference_recurrent.recurrent(*tensors, cell=cell, options=PLAIN)
        states.append(state)
    h_n, c_n = zip(*states, strict=True)
    return x, torch.cat(h_n), torch.cat(c_n)


class _RecurrentLayers(torch.autograd.Function):
    """``recurrent_layers`` where compiled kernels do forward and backward."""

    @staticmethod
    def forward(ctx, x, h0, c0, batch_sizes, cell, strategy, *weights):
        y, h_n, c_n, saved = torch.ops.fusednn.recurrent_layers_forward(
            x, h0, c0, weights, batch_sizes, cell, strategy, True
        )
        ctx.save_for_backward(x, h0, c0, batch_sizes, *weights, y, saved)
        ctx.cell, ctx.strategy = cell, strategy
        ctx.set_materialize_grads(False)
        if c0 is None:
            ctx.mark_non_differentiable(c_n)
        return y[-1], h_n, c_n

    @staticmethod
    def backward(ctx, *grads):  # pyright: ignore[reportIncompatibleMethodOverride]
        x, h0, c0, batch_sizes, *weights, y, saved = ctx.saved_tensors
        if torch.is_grad_enabled():
            return _differentiable_backward(ctx, grads, x, h0, c0, batch_sizes, weights)
        need_x, need_h0, need_c0, _, _, _, *need_weights = ctx.needs_input_grad
        layers = h0.shape[0]
        parts = zip(_layers(weights, layers), _layers(need_weights, layers), strict=True)
        grad_y, grad_h_n, grad_c_n = grads
        d_weights, d_h0, d_c0 = [], [], []
        for layer, (own, need_own) in reversed(list(enumerate(parts))):
            part = slice(layer, layer + 1)
            states = [None if s is None else s[part] for s in (h0, c0, grad_h_n, grad_c_n)]
            grad_y, d_h0_l, d_c0_l, *d_own = _Recurrent.of_layer(
                ctx.cell,
                ctx.strategy,
                (y[layer - 1] if layer else x, *states[:2], *own, None, batch_sizes),
                (y[layer], saved[layer] if saved.numel() else saved, None),
                (grad_y, *states[2:]),
                (layer > 0 or need_x, need_h0, need_c0, *need_own, False),
                PLAIN,
            )
            d_weights = [*d_own[: len(weights) // layers], *d_weights]
            d_h0.append(d_h0_l)
            d_c0.append(d_c0_l)
        return (
            grad_y,
            torch.cat(d_h0[::-1]) if need_h0 else None,
            torch.cat(d_c0[::-1]) if need_c0 else None,
            *(None, None, None),
            *d_weights,
        )


def _differentiable_backward(ctx, grads, x, h0, c0, batch_sizes, weights):
    """Gradients that can be differentiated again: autograd through the reference, recomputed from the inputs."""
    # Views, so that each gradient is the partial one even where one input was computed from another.
    x, h0, c0, *weights = (None if t is None else t.view_as(t) for t in (x, h0, c0, *weights))
    outputs = _reference(x, h0, c0, weights, batch_sizes, ctx.cell, ctx.strategy)
    arguments = (x, h0, c0, None, None, None, *weights)
    return differentiable_gradients(outputs, grads, arguments, ctx.needs_input_grad)


def _autograd(keyset, x, h0, c0, weights, batch_sizes, cell, strategy):
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, h0, c0, *weights)):
        return _RecurrentLayers.apply(x, h0, c0, batch_sizes, cell, strategy, *weights)
    with torch._C._AutoDispatchBelowAutograd():
        return torch.ops.fusednn.recurrent_layers.default.redispatch(
            keyset & torch._C._after_autograd_keyset, x, h0, c0, weights, batch_sizes, cell, strategy
        )


register_recurrence("recurrent_layers", _autograd, _reference)
