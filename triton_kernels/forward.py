"""The forward kernel of attention: one program a block of queries, keys in blocks, scores never in memory.

The loop is shifted: a turn takes the scores of its block from the turn before and issues the product of the next one.
So its exponentials run while the product of weights and values of the turn before is in flight, and scores are dead by
the time that the next ones are born. Sources: Dao 2023, FlashAttention-2 (blocks and running maximum); Shah et al.
2024, FlashAttention-3, section 3.2 (exponentials under products).
"""

import triton
import triton.language as tl

from .dropout import drop
from .modifiers import key_range, modify, unit
from .sequences import from_row, place, row_terms
from .softmax import begin, finish, weigh
from .tiles import again, head_of, inner, load_tile, store_tile


@triton.jit
def walk(
    scores, m, l, acc, tile, queries, i0, keys, values, i, rules, start, stop,  # noqa: E741
    BLOCK_N: tl.constexpr, FOLD: tl.constexpr, BY_POSITION: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Absorb the key blocks from start up to stop, and leave the products of the block at stop in ``scores``.

    ``tile`` holds the queries from i0 on and comes with its source, ``queries``, for ``again``; None for
    i0 and ``queries`` keeps it. ``keys`` and ``values`` are sources of ``load_tile``; ``rules`` as for ``modify``.
    """
    K = rules[1]
    # Under a causal mask the second walk has a turn or none: a pipeline of loads would only cost registers.
    STAGES: tl.constexpr = 1 if BY_POSITION and rules[5][2] is None else None
    for j0 in tl.range(start, stop, BLOCK_N, num_stages=STAGES):
        j = j0 + tl.arange(0, BLOCK_N)
        scores, _ = modify(scores, i[:, None], j[None, :], rules, FOLD, BY_POSITION)
        p, m, l, shrink = weigh(scores, m, l, unit(rules[5], FOLD))  # noqa: E741
        p = drop(p, rules[7], i, j0, BLOCK_N)
        block = load_tile(keys, j0 + BLOCK_N, K, BLOCK_N, UPCAST)
        rows = again(tile, queries, i0, rules[0], PRECISION, UPCAST)
        scores = inner(rows, block, PRECISION, acc.dtype)
        block = load_tile(values, j0, K, BLOCK_N, UPCAST)
        acc = tl.dot(p.to(block.dtype), block, acc * shrink[:, None], input_precision=PRECISION, out_dtype=acc.dtype)
    return scores, m, l, acc


@triton.jit
def attend(
    tile, queries, i0, keys, values, i, rules, sink, first, full, last, BLOCK_N: tl.constexpr, FOLD: tl.constexpr,
    PRECISION: tl.constexpr, UPCAST: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Output and LSE of a tile of queries over some of the keys.

    Args:
        tile: see ``walk``.
        queries: see there.
        i0: see there.
        keys: see ``load_tile``; so for values.
        values: see there.
        i: query indices.
        rules: see ``modify``.
        sink: its logit, one number or one a query; None for none.
        first: start of the first block of keys.
        full: up to there every key of every block is seen by every query.
        last: start of the last block.
        BLOCK_N: keys a block.
        FOLD: see ``modify``.
        PRECISION: of fp32 products, "ieee" or "tf32".
        UPCAST: compute products in fp32 (the interpreter's bf16 is unusable).
        ACC: dtype of sums.

    Returns:
        output and natural LSE, in the dtype of sums.
    """
    m, l, acc = begin(sink, i.shape[0], values[5], ACC)  # noqa: E741
    block = load_tile(keys, first, rules[1], BLOCK_N, UPCAST)
    scores = inner(tile, block, PRECISION, ACC)
    scores, m, l, acc = walk(  # noqa: E741
        scores, m, l, acc, tile, queries, i0, keys, values, i, rules, first, full,
        BLOCK_N, FOLD, False, PRECISION, UPCAST,
    )  # fmt: skip
    if rules[5][2] is not None or rules[5][3] is not None:
        scores, m, l, acc = walk(  # noqa: E741
            scores, m, l, acc, tile, queries, i0, keys, values, i, rules, full, last,
            BLOCK_N, FOLD, True, PRECISION, UPCAST,
        )  # fmt: skip
    block = load_tile(values, last, rules[1], BLOCK_N, UPCAST)
    j = last + tl.arange(0, BLOCK_N)
    scores, _ = modify(scores, i[:, None], j[None, :], rules, FOLD, True)
    p, m, l, shrink = weigh(scores, m, l, unit(rules[5], FOLD))  # noqa: E741
    p = drop(p, rules[7], i, last, BLOCK_N)
    acc = tl.dot(p.to(block.dtype), block, acc * shrink[:, None], input_precision=PRECISION, out_dtype=ACC)
    return finish(m, l, acc, rules[7])


@triton.jit
def serve(
    q, k, v, mask, slopes, sink, lse, out,
    q_strides, k_strides, v_strides, mask_strides, slopes_strides, out_strides,
    head, i0, N, GROUP, M, K, settings, dropout, sequences,
    E: tl.constexpr, EV: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_V: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    FOLD: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr, ATTEND: tl.constexpr,
):  # fmt: skip
    """Output and LSE of the queries from i0 on of a head, which is b * N + n, by ``attend`` or a function of its kind.

    Other arguments: ``forward_kernel``.
    """
    number, n = head // N, head % N
    b, q0, k0, M, K, shift = place(sequences, number, M, K, settings[4])
    if sequences is not None:  # noqa: SIM102  (decided when it is compiled, the next when it runs)
        if i0 >= M:
            return
    if mask is not None:
        mask = head_of(mask, b, n, mask_strides)
    if slopes is not None:
        slopes = tl.load(head_of(slopes, number, n, slopes_strides))
    if sink is not None:
        sink = tl.load(sink + n)
    k = from_row(k, k0, k_strides, sequences)
    v = from_row(v, k0, v_strides, sequences)
    q = from_row(q, q0, q_strides, sequences)

    i = i0 + tl.arange(0, BLOCK_M)
    first, full, last = key_range(i0, M, K, settings, shift, BLOCK_M, BLOCK_N)
    tile = load_tile((q, b, n, q_strides, E, BLOCK_E), i0, M, BLOCK_M, UPCAST)
    # Tuples are written where they are used: members of a named one become tensors, absent ones too, and one that is
    # annotated as constant cannot hold tensors in Triton 3.6, nor can a tuple in a tuple hold constants. And no
    # function gives them: 3.6 cannot return what is absent, nor 3.9 put it into a tuple.
    result, natural = ATTEND(
        tile, (q, b, n, q_strides, E, BLOCK_E), i0,
        (k, b, n // GROUP, k_strides, E, BLOCK_E),
        (v, b, n // GROUP, v_strides, EV, BLOCK_V),
        i,
        (M, K, mask, mask_strides, slopes, settings, shift,
         None if dropout is None else (tl.load(dropout[0]), dropout[1], dropout[2], head)),
        sink, first, full, last, BLOCK_N, FOLD, PRECISION, UPCAST, lse.dtype.element_ty,
    )  # fmt: skip
    out = head_of(from_row(out, q0, out_strides, sequences), b, n, out_strides)
    store_tile(out, result, i0, M, out_strides, EV, BLOCK_M, BLOCK_V)
    tl.store(row_terms(lse, sequences, head, n, M, q0) + i, natural, mask=i < M)


@triton.jit(do_not_specialize=["M", "K"])  # a growing cache compiles nothing anew
def forward_kernel(
    q, k, v, mask, slopes, sink, lse, out,
    q_strides, k_strides, v_strides, mask_strides, slopes_strides, out_strides,
    N, GROUP, M, K, settings, dropout, sequences,
    E: tl.constexpr, EV: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_V: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    FOLD: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Output and LSE.

    Args:
        q: queries [B, N, M, E], a pointer, or a descriptor where its strides are None; so for k and v.
        k: keys [B, N / GROUP, K, E].
        v: values [B, N / GROUP, K, EV].
        mask: [B, N, M, K], bytes or float; may be None.
        slopes: [B, N] in the accumulator's dtype; may be None.
        sink: [N] likewise.
        lse: written, [B, N, M] contiguous; natural logarithm.
        out: written, [B, N, M, EV].
        q_strides: four strides a tensor, in elements; so for the others (two for slopes).
        k_strides: see there.
        v_strides: see there.
        mask_strides: see there.
        slopes_strides: see there.
        out_strides: see there.
        N: query heads.
        GROUP: query heads that share a key head.
        M: queries, with sequences of the longest.
        K: keys likewise.
        settings: (scale, softcap, left, right, bottom_right), see ``modify`` and ``place``.
        dropout: (pointer to the seed, limit, factor), see ``kept``; None for no dropout.
        sequences: see ``place``; then [1, N, rows, E] stands for [B, N, M, E], and S sequences for B batch rows.
        E: head size.
        EV: size of a value.
        BLOCK_E: E padded to a power of two.
        BLOCK_V: EV likewise.
        BLOCK_M: queries a program.
        BLOCK_N: keys a step.
        FOLD: see ``modify``.
        PRECISION: see ``attend``.
        UPCAST: see there.
    """
    blocks = tl.cdiv(M, BLOCK_M)
    i0 = (blocks - 1 - tl.program_id(0) % blocks) * BLOCK_M  # under a causal mask the longest first
    serve(
        q, k, v, mask, slopes, sink, lse, out,
        q_strides, k_strides, v_strides, mask_strides, slopes_strides, out_strides,
        tl.program_id(0) // blocks, i0, N, GROUP, M, K, settings, dropout, sequences,
        E, EV, BLOCK_E, BLOCK_V, BLOCK_M, BLOCK_N, FOLD, PRECISION, UPCAST, attend,
    )  # fmt: skip
