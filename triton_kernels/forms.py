"""Other forms of the forward kernel, which tuning may choose: a persistent grid, and warps with tasks of their own.

Neither is launched by default, since neither was measured (docs/decisions/0009). They serve dense calls; sequences of
different lengths keep ``forward_kernel``. Sources: Shah et al. 2024, FlashAttention-3, section 3.1 (warps that load and
warps that compute); Graham 1969, *Bounds on Multiprocessing Timing Anomalies* (longest first).
"""

import triton
import triton.language as tl

from .dropout import drop
from .forward import attend, serve
from .modifiers import modify, unit
from .softmax import begin, finish, weigh
from .tiles import head_of, inner, load_tile


@triton.jit
def attend_specialized(
    tile, queries, i0, keys, values, i, rules, sink, first, full, last, BLOCK_N: tl.constexpr, FOLD: tl.constexpr,
    PRECISION: tl.constexpr, UPCAST: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """As ``attend``, in one loop whose loads and products are given to warps of their own.

    The compiler divides a single loop, and none that is shifted: every block is compared with its position, and what
    runs under one group's exponentials are the other group's products. Arguments as there; ``queries``, ``i0`` and
    ``full`` are not used.
    """
    m, l, acc = begin(sink, i.shape[0], values[5], ACC)  # noqa: E741
    for j0 in tl.range(first, last + BLOCK_N, BLOCK_N, warp_specialize=True):
        block = load_tile(keys, j0, rules[1], BLOCK_N, UPCAST)
        scores = inner(tile, block, PRECISION, ACC)
        j = j0 + tl.arange(0, BLOCK_N)
        scores, _ = modify(scores, i[:, None], j[None, :], rules, FOLD, True)
        p, m, l, shrink = weigh(scores, m, l, unit(rules[5], FOLD))  # noqa: E741
        p = drop(p, rules[7], i, j0, BLOCK_N)
        block = load_tile(values, j0, rules[1], BLOCK_N, UPCAST)
        acc = tl.dot(p.to(block.dtype), block, acc * shrink[:, None], input_precision=PRECISION, out_dtype=ACC)
    return finish(m, l, acc, rules[7])


@triton.jit(do_not_specialize=["M", "K", "HEADS"])
def persistent_kernel(
    q, k, v, mask, slopes, sink, lse, out,
    q_strides, k_strides, v_strides, mask_strides, slopes_strides, out_strides,
    N, GROUP, M, K, settings, dropout, sequences, HEADS,
    E: tl.constexpr, EV: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_V: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    FOLD: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """``forward_kernel`` with a fixed grid: each program takes blocks of queries at equal distances, the longest first.

    Under a causal mask the last block of queries has the most keys. Blocks of all heads are taken in falling order, so
    that what is left for the end, when programs run out of work one by one, are the short ones.

    Args as there, but ``sequences``, which is None, and ``HEADS``, heads of all batch rows.
    """
    blocks = tl.cdiv(M, BLOCK_M)
    # What a turn has in common with the next is computed anew: registers that keep it spill in the loop over keys.
    for item in tl.range(tl.program_id(0), blocks * HEADS, tl.num_programs(0), num_stages=1, disable_licm=True):
        i0 = (blocks - 1 - item // HEADS) * BLOCK_M
        serve(
            q, k, v, mask, slopes, sink, lse, out,
            q_strides, k_strides, v_strides, mask_strides, slopes_strides, out_strides,
            item % HEADS, i0, N, GROUP, M, K, settings, dropout, sequences,
            E, EV, BLOCK_E, BLOCK_V, BLOCK_M, BLOCK_N, FOLD, PRECISION, UPCAST, attend,
        )  # fmt: skip


@triton.jit(do_not_specialize=["M", "K"])
def specialized_kernel(
    q, k, v, mask, slopes, sink, lse, out,
    q_strides, k_strides, v_strides, mask_strides, slopes_strides, out_strides,
    N, GROUP, M, K, settings, dropout, sequences,
    E: tl.constexpr, EV: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_V: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    FOLD: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """``forward_kernel`` whose warps load or compute: arguments as there.

    Two groups of four warps compute and one loads, so ``num_warps`` must be 4. ``q`` is never a descriptor, but must
    suit one; ``k`` and ``v`` are descriptors. ``sequences`` is None.
    """
    blocks = tl.cdiv(M, BLOCK_M)
    i0 = (blocks - 1 - tl.program_id(0) % blocks) * BLOCK_M
    head = tl.program_id(0) // blocks
    # The tile is divided between two groups of warps; a descriptor that the host made would keep its whole size.
    own = head_of(q, head // N, head % N, q_strides)
    q = tl.make_tensor_descriptor(own, [M, E], [q_strides[2], 1], [BLOCK_M, BLOCK_E])
    serve(
        q, k, v, mask, slopes, sink, lse, out,
        None, k_strides, v_strides, mask_strides, slopes_strides, out_strides,
        head, i0, N, GROUP, M, K, settings, dropout, sequences,
        E, EV, BLOCK_E, BLOCK_V, BLOCK_M, BLOCK_N, FOLD, PRECISION, UPCAST, attend_specialized,
    )  # fmt: skip
