"""Attention on CPU tensors by the compiled kernel: the calls of its operators from those of ``attention_operators``.

The operators write into tensors that they are given. Every modifier is served; a mask's gradient is not.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .attention_call import Inputs, Options, wide
from .native import COMPILED_DEVICES
from .operators import LIBRARY

ROWS = 0  # queries of a block; 0: what suits the cache

_ARGUMENTS = (
    "Tensor query, Tensor key, Tensor value, Tensor? mask, Tensor? slopes, Tensor? sink, Tensor? starts_q,"
    " Tensor? starts_k, Tensor? seed, float scale, float softcap, int left, int right, bool bottom_right,"
    " float dropout_p, int rows"
)
LIBRARY.define(f"attention_cpu_forward(Tensor(a!) out, Tensor(b!) lse, {_ARGUMENTS}) -> ()")
LIBRARY.define(
    "attention_cpu_backward(Tensor(a!)? d_query, Tensor(b!)? d_key, Tensor(c!)? d_value, Tensor(d!)? d_slopes,"
    f" Tensor(e!)? d_sink, Tensor grad_out, Tensor? grad_lse, {_ARGUMENTS}) -> ()"
)


def available(device: torch.device) -> bool:
    """Whether the kernel exists for tensors of this device."""
    return device.type == "cpu" and "cpu" in COMPILED_DEVICES


def forward(x: Inputs, o: Options, out: Tensor, lse: Tensor) -> None:
    """Compute output and LSE; arguments as of ``blocked_attention.forward``."""
    torch.ops.fusednn.attention_cpu_forward(out, lse, *_tensors(x), *_numbers(o))


def backward(
    grad_out: Tensor, grad_lse: Tensor | None, x: Inputs, o: Options, found: list[Tensor | None]
) -> None:  # fmt: skip
    """Compute the gradients; arguments as of ``blocked_attention.backward``, no gradient of a mask."""
    *heads, _, slopes, sink = found
    exact = wide(x.query.dtype)
    sums = [
        None if total is None else total.new_empty(_sequences(x), x.query.shape[1], dtype=exact)
        for total in (slopes, sink)
    ]
    if grad_lse is not None:
        grad_lse = grad_lse.to(exact).contiguous()
    torch.ops.fusednn.attention_cpu_backward(
        *heads, *sums, _rows(grad_out.to(x.query.dtype)), grad_lse, *_tensors(x), *_numbers(o)
    )
    for total, parts in zip((slopes, sink), sums, strict=True):
        if total is not None and parts is not None:
            total.copy_(parts.sum_to_size(total.shape))


def _sequences(x: Inputs) -> int:
    return x.query.shape[0] if x.starts_q is None else x.starts_q.shape[0] - 1


def _rows(x: Tensor) -> Tensor:
    """With a contiguous last dimension."""
    return x if x.stride(-1) == 1 or x.shape[-1] < 2 else x.contiguous()


def _tensors(x: Inputs) -> Inputs:
    """As the kernel reads them: modifiers in the wide dtype, and with all of their dimensions."""
    exact = wide(x.query.dtype)
    mask, slopes, sink = x.mask, x.slopes, x.sink
    if mask is not None:
        mask = mask if mask.dtype == torch.bool else mask.to(exact)
        mask = mask.expand(*x.query.shape[:3], x.key.shape[2])
    if slopes is not None:
        slopes = slopes.to(exact).expand(_sequences(x), x.query.shape[1]).contiguous()
    if sink is not None:
        sink = sink.to(exact).contiguous()
    starts = (None if t is None else t.to(torch.int32).contiguous() for t in (x.starts_q, x.starts_k))
    return Inputs(_rows(x.query), _rows(x.key), _rows(x.value), mask, slopes, sink, *starts, seed=x.seed)


def _numbers(o: Options) -> tuple[float, float, int, int, bool, float, int]:
    left, right = (-1 if side is None else side for side in (o.left, o.right))
    return o.scale, o.softcap or 0.0, left, right, o.bottom_right, o.dropout_p, ROWS
