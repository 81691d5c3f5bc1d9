"""The backward kernels of attention: deterministic, without atomics; scores are computed again from the LSE.

Three launches: the row term, then dK and dV (a program owns a block of keys and walks the queries of all heads that
share them, summing in the accumulator's precision), then dQ and with it the gradients of mask and slopes (a program
owns a block of queries). Source: Dao 2023, FlashAttention-2, section 3.1.2; the LSE's gradient enters through the row
term.
"""

import triton
import triton.language as tl

from .dropout import kept
from .modifiers import LOG2E, key_range, modify, query_range, soften_gradient, unit
from .sequences import from_row, place, row_terms
from .tiles import add_tile, again, head_of, inner, load_tile, store_tile


@triton.jit(do_not_specialize=["M"])
def row_kernel(
    out, grad_out, grad_lse, delta, out_strides, grad_strides, lse_strides, N, M,
    EV: tl.constexpr, BLOCK_V: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """The row term, rowsum(dO * O) - dLSE, to delta [B, N, M]; grad_lse [B, N, M] may be None."""
    blocks = tl.cdiv(M, BLOCK_M)
    i0 = tl.program_id(0) % blocks * BLOCK_M
    head = tl.program_id(0) // blocks
    b, n = head // N, head % N
    i = i0 + tl.arange(0, BLOCK_M)
    o = load_tile((out, b, n, out_strides, EV, BLOCK_V), i0, M, BLOCK_M, False)
    g = load_tile((grad_out, b, n, grad_strides, EV, BLOCK_V), i0, M, BLOCK_M, False)
    row = tl.sum(o.to(delta.dtype.element_ty) * g.to(delta.dtype.element_ty), 1)
    if grad_lse is not None:
        at = head_of(grad_lse, b, n, lse_strides) + i.to(tl.int64) * lse_strides[2]
        row -= tl.load(at, mask=i < M, other=0.0)
    tl.store(delta + tl.cast(head, tl.int64) * M + i, row, mask=i < M)


@triton.jit
def load_row_terms(lse, delta, i, M):
    """LSE in units of log 2 and row term of queries i; rows that are absent or empty get +inf, so no weight."""
    natural = tl.load(lse + i, mask=i < M, other=float("inf"))
    return tl.where(natural == float("-inf"), float("inf"), natural * LOG2E), tl.load(delta + i, mask=i < M, other=0.0)


@triton.jit
def score_gradient(p, grad_p, delta, softened, softcap):
    """Gradients of the scores after and before the softcap, from weights and their gradients."""
    ds = p * (grad_p - delta)
    if softcap is not None:
        return ds, soften_gradient(ds, softened, softcap)
    else:
        return ds, ds


@triton.jit
def walk_queries(
    dk, dv, dq, key_tile, value_tile, k, v, q, grad_out, lse, delta, j0, rules, start, stop,
    BLOCK_M: tl.constexpr, FOLD: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Add what the queries from start up to stop give to dK and dV of a block of keys. Scores are [keys, queries].

    And what the block gives to their dQ, without the scale, to memory: ``dq`` as for ``add_tile``, or of pointer None.
    The tiles of the keys from j0 on and of their values come with their sources, k and v, for ``again``.
    """
    M = rules[0]
    ROWS: tl.constexpr = key_tile.shape[0]
    j = j0 + tl.arange(0, ROWS)
    # Keys beyond K are zero and reach no row but their own, which is not written; but for dQ, where an infinite weight
    # times zero would be NaN.
    BY_POSITION: tl.constexpr = dq[0] is not None or rules[5][2] is not None or rules[5][3] is not None
    # Products of wide fp32 without TF32: this order needs 140 registers a thread, the other more than there are.
    LATE: tl.constexpr = key_tile.dtype == tl.float32 and PRECISION == "ieee" and key_tile.shape[1] > 128
    for i0 in tl.range(start, stop, BLOCK_M):
        i = i0 + tl.arange(0, BLOCK_M)
        queries = load_tile(q, i0, M, BLOCK_M, UPCAST)
        row_lse, row_delta = load_row_terms(lse, delta, i, M)
        keys = again(key_tile, k, j0, rules[1], PRECISION, UPCAST)
        scores = inner(keys, queries, PRECISION, dk.dtype)
        scores, softened = modify(scores, i[None, :], j[:, None], rules, FOLD, BY_POSITION)
        p = tl.exp2(scores * unit(rules[5], FOLD) - row_lse[None, :])
        g = load_tile(grad_out, i0, M, BLOCK_M, UPCAST)
        weights = p
        if rules[7] is not None:
            keep = kept(rules[7], i, j0, ROWS, True)
            weights = tl.where(keep, p, 0.0)
        if not LATE:
            dv = tl.dot(weights.to(g.dtype), g, dv, input_precision=PRECISION, out_dtype=dv.dtype)
        values = again(value_tile, v, j0, rules[1], PRECISION, UPCAST)
        grad_p = inner(values, g, PRECISION, dk.dtype)
        if rules[7] is not None:
            grad_p = tl.where(keep, grad_p * rules[7][2], 0.0)
        _, ds = score_gradient(p, grad_p, row_delta[None, :], softened, rules[5][1])
        if LATE:
            dv = tl.dot(weights.to(g.dtype), g, dv, input_precision=PRECISION, out_dtype=dv.dtype)
        dk = tl.dot(ds.to(queries.dtype), queries, dk, input_precision=PRECISION, out_dtype=dk.dtype)
        if dq[0] is not None:
            ds = tl.trans(ds.to(keys.dtype))
            part = tl.dot(ds, keys, input_precision=PRECISION, out_dtype=dk.dtype)
            add_tile(dq, part, i0, M, BLOCK_M)
    return dk, dv


@triton.jit(do_not_specialize=["M", "K"])
def key_value_kernel(
    q, k, v, grad_out, mask, slopes, lse, delta, dq, dk, dv,
    q_strides, k_strides, v_strides, grad_out_strides, mask_strides, slopes_strides, dq_strides, dk_strides, dv_strides,
    N, GROUP, M, K, settings, dropout, sequences,
    E: tl.constexpr, EV: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_V: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    FOLD: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Gradients of keys and values, summed over the query heads that share them; arguments as ``forward_kernel``.

    ``dq`` is None, or that of queries before the scale, fp32, to which programs add as they come: its last bits vary.
    """
    blocks = tl.cdiv(K, BLOCK_N)
    j0 = tl.program_id(0) % blocks * BLOCK_N
    shared = tl.program_id(0) // blocks
    number, h = shared // (N // GROUP), shared % (N // GROUP)
    b, q0, k0, M, K, shift = place(sequences, number, M, K, settings[4])
    if sequences is not None:  # noqa: SIM102
        if j0 >= K:
            return
    ACC: tl.constexpr = lse.dtype.element_ty
    k = from_row(k, k0, k_strides, sequences)
    v = from_row(v, k0, v_strides, sequences)
    q = from_row(q, q0, q_strides, sequences)
    grad_out = from_row(grad_out, q0, grad_out_strides, sequences)
    keys = load_tile((k, b, h, k_strides, E, BLOCK_E), j0, K, BLOCK_N, UPCAST)
    values = load_tile((v, b, h, v_strides, EV, BLOCK_V), j0, K, BLOCK_N, UPCAST)
    if dq_strides is not None:
        dq = from_row(dq, q0, dq_strides, sequences)
    first, end = query_range(j0, M, settings, shift, BLOCK_M, BLOCK_N)
    dk_sum = tl.zeros([BLOCK_N, BLOCK_E], ACC)
    dv_sum = tl.zeros([BLOCK_N, BLOCK_V], ACC)
    for n in tl.range(h * GROUP, h * GROUP + GROUP):
        head = number * N + n
        bias, slope = mask, slopes
        if mask is not None:  # absent ones stay constant
            bias = head_of(mask, b, n, mask_strides)
        if slopes is not None:
            slope = tl.load(head_of(slopes, number, n, slopes_strides))
        dk_sum, dv_sum = walk_queries(
            dk_sum, dv_sum,
            (dq, b, n, dq_strides, E, BLOCK_E),
            keys, values,
            (k, b, h, k_strides, E, BLOCK_E),
            (v, b, h, v_strides, EV, BLOCK_V),
            (q, b, n, q_strides, E, BLOCK_E),
            (grad_out, b, n, grad_out_strides, EV, BLOCK_V),
            row_terms(lse, sequences, head, n, M, q0), row_terms(delta, sequences, head, n, M, q0),
            j0,
            (M, K, bias, mask_strides, slope, settings, shift,
             None if dropout is None else (tl.load(dropout[0]), dropout[1], dropout[2], head)),
            first, end, BLOCK_M, FOLD, PRECISION, UPCAST,
        )  # fmt: skip
    if dropout is not None:
        dv_sum *= dropout[2]
    dk = head_of(from_row(dk, k0, dk_strides, sequences), b, h, dk_strides)
    dv = head_of(from_row(dv, k0, dv_strides, sequences), b, h, dv_strides)
    store_tile(dk, dk_sum * settings[0], j0, K, dk_strides, E, BLOCK_N, BLOCK_E)
    store_tile(dv, dv_sum, j0, K, dv_strides, EV, BLOCK_N, BLOCK_V)


@triton.jit
def walk_keys(
    dq, dslope, query_tile, grad_tile, q, grad_out, i0, k, v, row_lse, row_delta, dmask, dmask_strides, i, rules,
    start, stop,
    BLOCK_N: tl.constexpr, FOLD: tl.constexpr, SLOPES: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Add what the key blocks from start up to stop give to dQ of a block of queries; write their dmask.

    The tiles of the queries from i0 on and of their dO come with their sources, q and grad_out, for ``again``.
    """
    M, K = rules[0], rules[1]
    for j0 in tl.range(start, stop, BLOCK_N):
        j = j0 + tl.arange(0, BLOCK_N)
        keys = load_tile(k, j0, K, BLOCK_N, UPCAST)
        queries = again(query_tile, q, i0, M, PRECISION, UPCAST)
        scores = inner(queries, keys, PRECISION, dq.dtype)
        scores, softened = modify(scores, i[:, None], j[None, :], rules, FOLD, True)
        p = tl.exp2(scores * unit(rules[5], FOLD) - row_lse[:, None])
        values = load_tile(v, j0, K, BLOCK_N, UPCAST)
        g = again(grad_tile, grad_out, i0, M, PRECISION, UPCAST)
        grad_p = inner(g, values, PRECISION, dq.dtype)
        if rules[7] is not None:
            grad_p = tl.where(kept(rules[7], i, j0, BLOCK_N, False), grad_p * rules[7][2], 0.0)
        after, before = score_gradient(p, grad_p, row_delta[:, None], softened, rules[5][1])
        if dmask is not None:
            offsets = i.to(tl.int64)[:, None] * dmask_strides[2] + j[None, :]
            tl.store(dmask + offsets, after.to(dmask.dtype.element_ty), mask=(i < M)[:, None] & (j < K)[None, :])
        if SLOPES:
            distance = i[:, None] + rules[6] - j[None, :]
            dslope -= tl.sum(after * tl.abs(distance).to(after.dtype), 1)
        dq = tl.dot(before.to(keys.dtype), keys, dq, input_precision=PRECISION, out_dtype=dq.dtype)
    return dq, dslope


@triton.jit(do_not_specialize=["M", "K"])
def query_kernel(
    q, k, v, grad_out, mask, slopes, lse, delta, dslopes, dq, dmask,
    q_strides, k_strides, v_strides, grad_out_strides, mask_strides, slopes_strides, dq_strides, dmask_strides,
    N, GROUP, M, K, settings, dropout, sequences,
    E: tl.constexpr, EV: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_V: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    FOLD: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Gradients of queries, and where wanted of the mask [B, N, M, K] and of the slopes, one number a program.

    ``dmask`` keeps what it holds where position hides whole blocks. Arguments as ``forward_kernel``.
    """
    blocks = tl.cdiv(M, BLOCK_M)
    i0 = (blocks - 1 - tl.program_id(0) % blocks) * BLOCK_M
    head = tl.program_id(0) // blocks
    number, n = head // N, head % N
    b, q0, k0, M, K, shift = place(sequences, number, M, K, settings[4])
    if sequences is not None:  # noqa: SIM102  (decided when it is compiled, the next when it runs)
        if i0 >= M:
            return
    ACC: tl.constexpr = lse.dtype.element_ty
    SLOPES: tl.constexpr = dslopes is not None
    i = i0 + tl.arange(0, BLOCK_M)
    k = from_row(k, k0, k_strides, sequences)
    v = from_row(v, k0, v_strides, sequences)
    q = from_row(q, q0, q_strides, sequences)
    grad_out = from_row(grad_out, q0, grad_out_strides, sequences)
    queries = load_tile((q, b, n, q_strides, E, BLOCK_E), i0, M, BLOCK_M, UPCAST)
    g = load_tile((grad_out, b, n, grad_out_strides, EV, BLOCK_V), i0, M, BLOCK_M, UPCAST)
    lse = row_terms(lse, sequences, head, n, M, q0)
    delta = row_terms(delta, sequences, head, n, M, q0)
    row_lse, row_delta = load_row_terms(lse, delta, i, M)
    if mask is not None:
        mask = head_of(mask, b, n, mask_strides)
    if slopes is not None:
        slopes = tl.load(head_of(slopes, number, n, slopes_strides))
    if dmask is not None:
        dmask = head_of(dmask, b, n, dmask_strides)
    first, _, last = key_range(i0, M, K, settings, shift, BLOCK_M, BLOCK_N)
    sums = tl.zeros([BLOCK_M, BLOCK_E], ACC)
    dslope = tl.zeros([BLOCK_M], ACC)
    sums, dslope = walk_keys(
        sums, dslope, queries, g,
        (q, b, n, q_strides, E, BLOCK_E),
        (grad_out, b, n, grad_out_strides, EV, BLOCK_V),
        i0,
        (k, b, n // GROUP, k_strides, E, BLOCK_E),
        (v, b, n // GROUP, v_strides, EV, BLOCK_V),
        row_lse, row_delta, dmask, dmask_strides, i,
        (M, K, mask, mask_strides, slopes, settings, shift,
         None if dropout is None else (tl.load(dropout[0]), dropout[1], dropout[2], head)),
        first, last + 1, BLOCK_N, FOLD, SLOPES, PRECISION, UPCAST,
    )  # fmt: skip
    dq = head_of(from_row(dq, q0, dq_strides, sequences), b, n, dq_strides)
    store_tile(dq, sums * settings[0], i0, M, dq_strides, E, BLOCK_M, BLOCK_E)
    if SLOPES:
        tl.store(dslopes + tl.program_id(0), tl.sum(dslope))
