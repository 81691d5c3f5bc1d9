"""Scores of additive attention in Triton, ``s[b, m, k] = sum over h of w[h] tanh(q[b, m, h] + k[b, k, h])``.

tanh of a pair is computed in registers where it is summed, forward and again backward; no tensor [B, M, K, H] exists.
Sums are fp32 (fp64 for fp64) and have a fixed order.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

QUERIES, KEYS, UNITS, WARPS = 16, 16, 16, 8  # a tile of pairs


@triton.jit
def _tanh(x):
    e = tl.exp(-2.0 * tl.abs(x))  # never overflows
    t = (1.0 - e) / (1.0 + e)
    return tl.where(x < 0, -t, t)


@triton.jit
def _rows(pointer, first, count, hidden, h, ROWS: tl.constexpr, ACC: tl.constexpr):
    """Rows from ``first`` on of a [count, H], the units h; zero beyond either."""
    row = first + tl.arange(0, ROWS)
    at = row.to(tl.int64)[:, None] * hidden + h[None, :]
    return tl.load(pointer + at, (row < count)[:, None] & (h < hidden)[None, :], other=0.0).to(ACC)


@triton.jit
def _forward_kernel(
    query, key, weight, scores, queries, keys, hidden,
    QUERIES: tl.constexpr, KEYS: tl.constexpr, UNITS: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """One tile of scores."""
    k0, m0, b = tl.program_id(0) * KEYS, tl.program_id(1) * QUERIES, tl.program_id(2).to(tl.int64)
    total = tl.zeros([QUERIES, KEYS], ACC)
    for h0 in range(0, hidden, UNITS):
        h = h0 + tl.arange(0, UNITS)
        q = _rows(query + b * queries * hidden, m0, queries, hidden, h, QUERIES, ACC)
        k = _rows(key + b * keys * hidden, k0, keys, hidden, h, KEYS, ACC)
        w = tl.load(weight + h, h < hidden, other=0.0).to(ACC)
        total += tl.sum(_tanh(q[:, None, :] + k[None, :, :]) * w[None, None, :], 2)
    m, k = m0 + tl.arange(0, QUERIES), k0 + tl.arange(0, KEYS)
    at = (b * queries + m.to(tl.int64))[:, None] * keys + k[None, :]
    tl.store(scores + at, total, (m < queries)[:, None] & (k < keys)[None, :])


@triton.jit
def _backward_kernel(
    grad, mine, across, weight, d_mine, d_weight, rows, others, hidden, row_step, other_step,
    ROWS: tl.constexpr, OTHERS: tl.constexpr, UNITS: tl.constexpr, ACC: tl.constexpr, WEIGHT: tl.constexpr,
):  # fmt: skip
    """Gradients of some units of a tile of rows (queries, or keys), over all others; with WEIGHT a partial sum of w's.

    ``grad`` [rows, others] of a batch row lies with distances row_step and other_step.
    """
    h = tl.program_id(0) * UNITS + tl.arange(0, UNITS)
    r0, b = tl.program_id(1) * ROWS, tl.program_id(2).to(tl.int64)
    r = r0 + tl.arange(0, ROWS)
    own = _rows(mine + b * rows * hidden, r0, rows, hidden, h, ROWS, ACC)
    w = tl.load(weight + h, h < hidden, other=0.0).to(ACC)
    total = tl.zeros([ROWS, UNITS], ACC)
    of_weight = tl.zeros([UNITS], ACC)
    for o0 in range(0, others, OTHERS):
        o = o0 + tl.arange(0, OTHERS)
        other = _rows(across + b * others * hidden, o0, others, hidden, h, OTHERS, ACC)
        at = b * rows * others + r.to(tl.int64)[:, None] * row_step + o.to(tl.int64)[None, :] * other_step
        g = tl.load(grad + at, (r < rows)[:, None] & (o < others)[None, :], other=0.0)
        t = _tanh(own[:, None, :] + other[None, :, :])
        total += tl.sum(g[:, :, None] * (1.0 - t * t), 1)
        if WEIGHT:
            of_weight += tl.sum(tl.sum(g[:, :, None] * t, 1), 0)
    at = (b * rows + r.to(tl.int64))[:, None] * hidden + h[None, :]
    kind = d_mine.dtype.element_ty
    tl.store(d_mine + at, (total * w[None, :]).to(kind), (r < rows)[:, None] & (h < hidden)[None, :])
    if WEIGHT:
        tl.store(d_weight + (b * tl.num_programs(1) + tl.program_id(1)) * hidden + h, of_weight, h < hidden)


def _device(x: Tensor):
    return torch.cuda.device(x.device) if x.is_cuda else torch.no_grad()


def _wide(x: Tensor):
    return (torch.float64, tl.float64) if x.dtype == torch.float64 else (torch.float32, tl.float32)


def forward(query: Tensor, key: Tensor, weight: Tensor) -> Tensor:
    """Scores ``[B, M, K]`` from query ``[B, M, H]``, key ``[B, K, H]`` and weight ``[H]``."""
    query, key, weight = query.contiguous(), key.contiguous(), weight.contiguous()
    (batch, queries, hidden), keys = query.shape, key.shape[1]
    dtype, acc = _wide(query)
    scores = query.new_empty(batch, queries, keys, dtype=dtype)
    if scores.numel():
        grid = (triton.cdiv(keys, KEYS), triton.cdiv(queries, QUERIES), batch)
        with _device(query):
            _forward_kernel[grid](
                query, key, weight, scores, queries, keys, hidden,
                QUERIES=QUERIES, KEYS=KEYS, UNITS=UNITS, ACC=acc, num_warps=WARPS, enable_fp_fusion=True,
            )  # fmt: skip
    return scores


def backward(grad: Tensor, query: Tensor, key: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and weight from that of the scores."""
    grad, query, key, weight = (t.contiguous() for t in (grad, query, key, weight))
    (batch, queries, hidden), keys = query.shape, key.shape[1]
    dtype, acc = _wide(query)
    tiles = triton.cdiv(queries, QUERIES)
    partial = query.new_zeros(batch * tiles, hidden, dtype=dtype)
    d_query, d_key = torch.empty_like(query), torch.empty_like(key)
    with _device(query):
        for own, other, out, size, sizes, steps in (
            (query, key, d_query, QUERIES, (queries, keys), (keys, 1)),
            (key, query, d_key, KEYS, (keys, queries), (1, keys)),
        ):
            if out.numel():
                _backward_kernel[(triton.cdiv(hidden, UNITS), triton.cdiv(sizes[0], size), batch)](
                    grad, own, other, weight, out, partial, *sizes, hidden, *steps,
                    ROWS=size, OTHERS=QUERIES + KEYS - size, UNITS=UNITS, ACC=acc, WEIGHT=own is query,
                    num_warps=WARPS, enable_fp_fusion=True,
                )  # fmt: skip
    return d_query, d_key, partial.sum(0).to(weight.dtype)
