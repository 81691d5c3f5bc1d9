"""Linear gated recurrences by an associative scan in Triton, forward and backward.

``h_t = a_t h_{t-1} + b_t``: two steps compose to ``(a2 a1, a2 b1 + b2)``, and composition is associative (G. Blelloch,
"Prefix sums and their applications", 1990). A program owns some units of one row of the batch and a segment of time. It
takes a tile of steps at a time, scans inside the tile, and carries h to the next. Where rows and units are too few to
fill the GPU, time is cut into several segments: a first launch composes each segment to one (a, b), and a second one
starts each segment from what those before it give. Gates come from pre-activations inside the kernels; sums and h are
fp32 (fp64 for fp64).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

STEPS, UNITS, WARPS = 32, 32, 8  # a tile: steps by units; with four warps it does not fit into registers everywhere
ENOUGH_PROGRAMS = 512  # a few for each multiprocessor of a large GPU
MOST_SEGMENTS = 64


@triton.jit
def _sigmoid(x):
    e = tl.exp(-tl.abs(x))  # never overflows
    return tl.where(x < 0, e, 1.0) / (1.0 + e)


@triton.jit
def _positive(x):
    return tl.where(x < 0, _sigmoid(x), x + 0.5)


@triton.jit
def _positive_backward(x, d):
    s = _sigmoid(x)
    return tl.where(x < 0, d * s * (1.0 - s), d)


@triton.jit
def _shares(f, i):
    """The sigmoids of f and i, divided by their sum; a common power of e is taken out first."""
    low_f, low_i = tl.minimum(f, 0.0), tl.minimum(i, 0.0)
    high = tl.maximum(low_f, low_i)
    weight_f = tl.exp(low_f - high) * _sigmoid(tl.abs(f))
    weight_i = tl.exp(low_i - high) * _sigmoid(tl.abs(i))
    one = 1.0 / (weight_f + weight_i)
    return weight_f * one, weight_i * one


@triton.jit
def _load(at, mask, ACC: tl.constexpr):
    return tl.load(at, mask, other=0.0).to(ACC)


@triton.jit
def _kept(gates, at, width, mask, CELL: tl.constexpr, ACC: tl.constexpr):
    """The a of a tile; 1 where there is no step."""
    first = _load(gates + at, mask, ACC)
    if CELL == "min_gru":
        a = _sigmoid(-first)
    else:
        a, _ = _shares(first, _load(gates + at + width, mask, ACC))
    return tl.where(mask, a, 1.0)


@triton.jit
def _coefficients(gates, at, width, mask, CELL: tl.constexpr, ACC: tl.constexpr):
    """The a and b of a tile; 1 and 0 where there is no step."""
    if CELL == "min_gru":
        z = _load(gates + at, mask, ACC)
        a, b = _sigmoid(-z), _sigmoid(z) * _positive(_load(gates + at + width, mask, ACC))
    else:
        a, i = _shares(_load(gates + at, mask, ACC), _load(gates + at + width, mask, ACC))
        b = i * _positive(_load(gates + at + 2 * width, mask, ACC))
    return tl.where(mask, a, 1.0), tl.where(mask, b, 0.0)


@triton.jit
def _compose(a1, b1, a2, b2):
    return a2 * a1, a2 * b1 + b2


@triton.jit
def _row(tile, row, STEPS: tl.constexpr):
    """One row of a tile of STEPS rows."""
    return tl.sum(tl.where(tl.arange(0, STEPS)[:, None] == row, tile, 0.0), 0)


@triton.jit
def _forward_kernel(
    gates, h0, composed, y, steps, batch, width, length,
    CELL: tl.constexpr, G: tl.constexpr, COMPOSE: tl.constexpr, ACC: tl.constexpr, STEPS: tl.constexpr,
    UNITS: tl.constexpr,
):  # fmt: skip
    """One segment of ``length`` steps: its states, or with COMPOSE its one (a, b) in ``composed`` [2, S, B, H]."""
    segment, b = tl.program_id(2).to(tl.int64), tl.program_id(1).to(tl.int64)
    u = tl.program_id(0) * UNITS + tl.arange(0, UNITS)
    real = u < width
    per_segment = batch * width
    segments = tl.num_programs(2)
    whole_a = tl.full([UNITS], 1.0, ACC)
    if COMPOSE:
        h = tl.zeros([UNITS], ACC)
    else:
        h = _load(h0 + b * width + u, real, ACC)
        for s in range(0, segment):
            at = s * per_segment + b * width + u
            a_s = tl.load(composed + at, real, other=1.0)
            h = a_s * h + tl.load(composed + segments * per_segment + at, real, other=0.0)
    start = segment * length
    for t0 in range(start, min(start + length, steps), STEPS):
        t = t0 + tl.arange(0, STEPS)
        mask = ((t < min(start + length, steps)) & (t >= 0))[:, None] & real[None, :]
        row = t[:, None] * batch + b
        a, v = _coefficients(gates, row * (G * width) + u[None, :], width, mask, CELL, ACC)
        a, v = tl.associative_scan((a, v), 0, _compose)
        tile = a * h[None, :] + v
        if COMPOSE:
            whole_a *= _row(a, STEPS - 1, STEPS)
        else:
            tl.store(y + row * width + u[None, :], tile.to(y.dtype.element_ty), mask)
        h = _row(tile, STEPS - 1, STEPS)
    if COMPOSE:
        at = segment * per_segment + b * width + u
        tl.store(composed + at, whole_a, real)
        tl.store(composed + segments * per_segment + at, h, real)


@triton.jit
def _backward_kernel(
    grad_y, gates, y, h0, composed, d_gates, d_h0, steps, batch, width, length,
    CELL: tl.constexpr, G: tl.constexpr, COMPOSE: tl.constexpr, ACC: tl.constexpr, STEPS: tl.constexpr,
    UNITS: tl.constexpr,
):  # fmt: skip
    """The scan of ``g_t = dy_t + a_{t+1} g_{t+1}``, segments and tiles from the last to the first."""
    segment, b = tl.program_id(2).to(tl.int64), tl.program_id(1).to(tl.int64)
    u = tl.program_id(0) * UNITS + tl.arange(0, UNITS)
    real = u < width
    per_segment = batch * width
    segments = tl.num_programs(2)
    whole_a = tl.full([UNITS], 1.0, ACC)
    g = tl.zeros([UNITS], ACC)
    if not COMPOSE:
        for back in range(0, segments - 1 - segment):
            at = (segments - 1 - back) * per_segment + b * width + u
            g = tl.load(composed + at, real, other=1.0) * g
            g += tl.load(composed + segments * per_segment + at, real, other=0.0)
    start = segment * length
    end = min(start + length, steps)
    tiles = tl.cdiv(end - start, STEPS)
    for k in range(0, tiles):
        t = start + (tiles - 1 - k) * STEPS + tl.arange(0, STEPS)
        mask = (t < end)[:, None] & real[None, :]
        follows = ((t + 1 < steps) & (t < end))[:, None] & real[None, :]
        row = t[:, None] * batch + b
        at_gates = row * (G * width) + u[None, :]
        a_next = _kept(gates, at_gates + batch * G * width, width, follows, CELL, ACC)
        dy = _load(grad_y + row * width + u[None, :], mask, ACC)
        a, v = tl.associative_scan((a_next, dy), 0, _compose, reverse=True)
        tile = a * g[None, :] + v
        g = _row(tile, 0, STEPS)
        if COMPOSE:
            whole_a *= _row(a, 0, STEPS)
        else:
            earlier = tl.where(t[:, None] > 0, row - batch, 0)
            h_prev = _load(y + earlier * width + u[None, :], mask & (t > 0)[:, None], ACC)
            start_h = _load(h0 + b * width + u, real, ACC)
            h_prev = tl.where((t == 0)[:, None], start_h[None, :], h_prev)
            _store_gates(d_gates, gates, at_gates, width, mask, h_prev, tile, CELL, ACC)
    if COMPOSE:
        at = segment * per_segment + b * width + u
        tl.store(composed + at, whole_a, real)
        tl.store(composed + segments * per_segment + at, g, real)
    elif segment == 0:
        first = tl.arange(0, 1)[:, None] + b
        a_0 = _kept(gates, first * (G * width) + u[None, :], width, real[None, :], CELL, ACC)
        tl.store(d_h0 + b * width + u, (tl.sum(a_0, 0) * g).to(d_h0.dtype.element_ty), real)


@triton.jit
def _store_gates(d_gates, gates, at, width, mask, h_prev, g, CELL: tl.constexpr, ACC: tl.constexpr):
    """Gradients of the pre-activations from those of h."""
    kind = d_gates.dtype.element_ty
    x0, x1 = _load(gates + at, mask, ACC), _load(gates + at + width, mask, ACC)
    if CELL == "min_gru":
        z = _sigmoid(x0)
        tl.store(d_gates + at, (g * (_positive(x1) - h_prev) * z * _sigmoid(-x0)).to(kind), mask)
        tl.store(d_gates + at + width, _positive_backward(x1, g * z).to(kind), mask)
    else:
        x2 = _load(gates + at + 2 * width, mask, ACC)
        f, i = _shares(x0, x1)
        d = g * (h_prev - _positive(x2)) * f * i
        tl.store(d_gates + at, (d * _sigmoid(-x0)).to(kind), mask)
        tl.store(d_gates + at + width, (-d * _sigmoid(-x1)).to(kind), mask)
        tl.store(d_gates + at + 2 * width, _positive_backward(x2, g * i).to(kind), mask)


def segments_of(steps: int, batch: int, width: int) -> int:
    """Into how many parts time is cut: one where rows and units alone fill a GPU."""
    programs = batch * triton.cdiv(width, UNITS)
    useful = max(1, triton.cdiv(steps, 4 * STEPS))  # a segment of less than four tiles is not worth a second launch
    return max(1, min(MOST_SEGMENTS, useful, ENOUGH_PROGRAMS // max(programs, 1)))


def _constants(gates: Tensor, cell: str) -> dict:
    acc = tl.float64 if gates.dtype == torch.float64 else tl.float32
    return {"CELL": cell, "G": 2 if cell == "min_gru" else 3, "ACC": acc, "STEPS": STEPS, "UNITS": UNITS,
            "num_warps": WARPS, "enable_fp_fusion": True}  # fmt: skip


def _run(kernel, tensors, gates: Tensor, h0: Tensor, cell: str, segments: int | None) -> None:
    """Launch once, or compose the segments first; ``tensors(composed)`` are the kernel's tensors."""
    steps, (batch, width) = gates.shape[0], h0.shape
    segments = segments_of(steps, batch, width) if segments is None else segments
    length = triton.cdiv(steps, segments)
    acc = torch.float64 if gates.dtype == torch.float64 else torch.float32
    composed = gates.new_empty(2, segments, batch, width, dtype=acc) if segments > 1 else gates
    grid = (triton.cdiv(width, UNITS), batch, segments)
    with torch.cuda.device(gates.device) if gates.is_cuda else torch.no_grad():
        for compose in (True, False) if segments > 1 else (False,):
            kernel[grid](*tensors(composed), steps, batch, width, length, COMPOSE=compose, **_constants(gates, cell))


def forward(gates: Tensor, h0: Tensor, cell: str, segments: int | None = None) -> Tensor:
    """States ``[T, B, H]`` from gates ``[T, B, G * H]`` and h0 ``[B, H]``; segments of time by default as they fit."""
    gates, h0 = gates.contiguous(), h0.contiguous()
    y = gates.new_empty(gates.shape[0], *h0.shape)
    if y.numel():
        _run(_forward_kernel, lambda composed: (gates, h0, composed, y), gates, h0, cell, segments)
    return y


def backward(
    grad_y: Tensor, gates: Tensor, y: Tensor, h0: Tensor, cell: str, segments: int | None = None
) -> tuple[Tensor, Tensor]:
    """Gradients of gates and h0 from that of the states."""
    gates, h0, y, grad_y = (t.contiguous() for t in (gates, h0, y, grad_y))
    d_gates, d_h0 = torch.empty_like(gates), torch.zeros_like(h0)
    if y.numel():
        tensors = (grad_y, gates, y, h0)
        _run(_backward_kernel, lambda composed: (*tensors, composed, d_gates, d_h0), gates, h0, cell, segments)
    return d_gates, d_h0
