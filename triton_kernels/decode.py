"""Attention of few queries: the keys of a head are split among programs, whose results are merged by their LSE.

All queries of all heads that share a key head are the rows of one tile, so that keys and values are read once; that is
what such a call costs. Equations: ``docs/kernels/attention.md``, "Merging". Source: Dao et al. 2023, *Flash-Decoding*.
"""

import triton
import triton.language as tl

from .forward import attend
from .modifiers import LOG2E, key_range
from .tiles import head_of


@triton.jit(do_not_specialize=["M", "K", "SPLITS"])
def decode_kernel(
    q, k, v, mask, slopes, sink, lse, out,
    q_strides, k_strides, v_strides, mask_strides, slopes_strides, lse_strides, out_strides,
    N, GROUP, M, K, settings, dropout, SPLITS,
    E: tl.constexpr, EV: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_V: tl.constexpr,
    ROWS: tl.constexpr, BLOCK_N: tl.constexpr,
    FOLD: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Output and LSE of each split, a program each. Arguments as ``forward_kernel``, but for these.

    Args:
        q: never a descriptor.
        sink: only where the keys are not split, else it is left to ``merge_kernel``.
        lse: written, [B, N, M, SPLITS].
        out: written, [B, N, M, SPLITS, EV].
        lse_strides: four.
        out_strides: five.
        SPLITS: programs that share the keys of a head.
        ROWS: GROUP * M or more.
    """
    split = tl.program_id(0) % SPLITS
    shared = tl.program_id(0) // SPLITS
    b, h = shared // (N // GROUP), shared % (N // GROUP)
    shift = (K - M) * settings[4]
    row = tl.arange(0, ROWS)
    there = row < GROUP * M
    i = row % M
    n = h * GROUP + tl.minimum(row // M, GROUP - 1)  # rows that are absent repeat others
    col = tl.arange(0, BLOCK_E)
    at = head_of(q, b, n, q_strides)[:, None] + (i.to(tl.int64) * q_strides[2])[:, None]
    tile = tl.load(at + (col.to(tl.int64) * q_strides[3])[None, :], mask=(col < E)[None, :], other=0.0)
    if UPCAST:
        tile = tile.to(tl.float32)
    if mask is not None:
        mask = head_of(mask, b, n, mask_strides)[:, None]
    if slopes is not None:
        slopes = tl.load(head_of(slopes, b, n, slopes_strides))[:, None]
    if sink is not None:
        sink = tl.load(sink + n)

    first, full, last = key_range(0, M, K, settings, shift, ROWS, BLOCK_N)
    blocks = (last - first) // BLOCK_N + 1
    own = tl.cdiv(blocks, SPLITS) * BLOCK_N
    first += split * own  # beyond the last block, where all is hidden, if there is nothing left
    last = tl.maximum(first, tl.minimum(last, first + own - BLOCK_N))
    full = tl.minimum(last, tl.maximum(first, full))

    # Wide rows of fp32 without TF32 are loaded anew each turn (``again``); "from M - ROWS on" says that all are there.
    AGAIN: tl.constexpr = tile.dtype == tl.float32 and PRECISION == "ieee" and BLOCK_E > 128
    result, natural = attend(
        tile, (at, 0, 0, (0, 0, 0, q_strides[3]), E, BLOCK_E), M - ROWS if AGAIN else None,
        (k, b, h, k_strides, E, BLOCK_E),
        (v, b, h, v_strides, EV, BLOCK_V),
        i,
        (M, K, mask, mask_strides, slopes, settings, shift,
         None if dropout is None else (tl.load(dropout[0]), dropout[1], dropout[2], (b * N + n)[:, None])),
        sink, first, full, last, BLOCK_N, FOLD, PRECISION, UPCAST, lse.dtype.element_ty,
    )  # fmt: skip
    tl.store(head_of(lse, b, n, lse_strides) + i * lse_strides[2] + split * lse_strides[3], natural, mask=there)
    col = tl.arange(0, BLOCK_V)
    at = head_of(out, b, n, out_strides) + i.to(tl.int64) * out_strides[2] + split * out_strides[3]
    at = at[:, None] + (col.to(tl.int64) * out_strides[4])[None, :]
    tl.store(at, result.to(out.dtype.element_ty), mask=there[:, None] & (col < EV)[None, :])


@triton.jit(do_not_specialize=["M", "SPLITS"])
def merge_kernel(
    parts, part_lse, sink, lse, out, out_strides, B, N, M, SPLITS,
    EV: tl.constexpr, BLOCK_V: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """Output and LSE of all keys: one program a query of a head.

    Args:
        parts: outputs of the splits, [SPLITS, B, N, M, EV] contiguous.
        part_lse: theirs, [SPLITS, B, N, M] contiguous.
        sink: [N]; may be None.
        lse: written, [B, N, M] contiguous.
        out: written, [B, N, M, EV].
        out_strides: four.
        B: batch rows.
        N: heads.
        M: queries.
        SPLITS: parts.
        EV: size of a value.
        BLOCK_V: EV padded to a power of two.
        BLOCK_S: parts at once.
    """
    line = tl.program_id(0).to(tl.int64)
    i, n, b = line % M, line // M % N, line // M // N
    ACC: tl.constexpr = lse.dtype.element_ty
    m = tl.full([], float("-inf"), ACC)
    total = tl.zeros([], ACC)
    if sink is not None:
        m = tl.load(sink + n)
        total = tl.where(m == float("-inf"), 0.0, total + 1.0)
    acc = tl.zeros([BLOCK_V], ACC)
    col = tl.arange(0, BLOCK_V)
    for s0 in range(0, SPLITS, BLOCK_S):
        s = s0 + tl.arange(0, BLOCK_S)
        own = s.to(tl.int64) * B * N * M + line
        natural = tl.load(part_lse + own, mask=s < SPLITS, other=float("-inf"))
        at = own[:, None] * EV + col[None, :]
        part = tl.load(parts + at, mask=(s < SPLITS)[:, None] & (col < EV)[None, :], other=0.0)
        grown = tl.maximum(m, tl.max(natural, 0))
        finite = tl.where(grown == float("-inf"), 0.0, grown)
        share = tl.exp2((natural - finite) * LOG2E)
        shrink = tl.exp2((m - finite) * LOG2E)
        acc = acc * shrink + tl.sum(part * share[:, None], 0)
        total = total * shrink + tl.sum(share, 0)
        m = grown
    empty = total == 0.0
    total = tl.where(empty, 1.0, total)
    at = head_of(out, b, n, out_strides) + i * out_strides[2] + col.to(tl.int64) * out_strides[3]
    tl.store(at, (acc / total).to(out.dtype.element_ty), mask=col < EV)
    tl.store(lse + line, tl.where(empty, float("-inf"), m + tl.log2(total) / LOG2E))
