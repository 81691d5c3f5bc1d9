"""The forward kernel in Gluon: one warp loads, two groups of four warps compute in turns.

Each group has half of a block's queries. It issues products only in its turn, and hands the turn over once they are
issued: the exponentials of one group run while the tensor cores have the products of the other. Keys and values come
through rings of buffers in shared memory. Blocks are numbered in the order in which they are read: from the end, where
position hides keys. A barrier is waited for by the parity of a phase: ``wait`` returns if the phase that was completed
last has it, and lets parity 1 pass before there was one.

Reached by tuning alone (docs/decisions/0009); ``tests/gluon_threads.py`` executes this source on a CPU. Source: Shah et
al. 2024, FlashAttention-3, section 3.1.
"""

from typing import Any

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from .forward import weigh
from .modifiers import LOG2E, hide_by_position, key_range, unit
from .tiles import head_of

async_load = tma.async_load if hasattr(tma, "async_load") else tma.async_copy_global_to_shared  # as Triton 3.6 calls it

WARPS = gl.constexpr([4, 1])  # of the second group and of the loader; the first group's are the launch's
REGISTERS = gl.constexpr([240, 24])  # likewise; the first group has what is left, 240


def with_layout(described: Any) -> TensorDescriptor:
    """Triton's descriptor of a tensor of 16 bits, with how Gluon is to lay its blocks into shared memory."""
    shape = described.block_shape
    layout = gl.NVMMASharedLayout.get_default_for(shape, gl.float16)
    return TensorDescriptor(described.base, described.shape, described.strides, shape, layout)


@gluon.jit
def loaded(t, STAGES: gl.constexpr):
    """Parity of the phase that ends when block t of keys or values has come into its buffer."""
    return t // STAGES & 1


@gluon.jit
def freed(t, STAGES: gl.constexpr):
    """Parity of the phase that ends when both groups have read what was in the buffer before block t."""
    return loaded(t, STAGES) ^ 1


@gluon.jit
def given(turn, SIDE: gl.constexpr):
    """Parity of the phase that ends when the other group hands this one its turn; group 0 has turn 0 from the start."""
    return (turn + SIDE + 1) & 1


@gluon.jit
def make_ring(block, STAGES: gl.constexpr):
    """Buffers for blocks of a descriptor, and barriers a buffer: its block has come, both groups have read it."""
    tiles = gl.allocate_shared_memory(
        block.dtype, [STAGES, 1, 1, block.block_type.shape[2], block.block_type.shape[3]], block.layout
    )
    ready = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    free = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for at in gl.static_range(STAGES):
        mbarrier.init(ready.index(at), 1)
        mbarrier.init(free.index(at), 2)
    return tiles, ready, free


@gluon.jit
def fetch(block, b, n, start, t, ring, STAGES: gl.constexpr):
    """Load block t, whose first row is ``start``, once its buffer is free."""
    tiles, ready, free = ring
    at = t % STAGES
    mbarrier.wait(free.index(at), freed(t, STAGES))
    mbarrier.expect(ready.index(at), block.block_type.nbytes)
    async_load(block, [b, n, start, 0], ready.index(at), tiles.index(at))


@gluon.jit
def load(
    q, k, v, b, n, key_head, i0, last, blocks, tiles, come, keys, values, ROWS: gl.constexpr, BLOCK_N: gl.constexpr,
    STAGES: gl.constexpr,
):  # fmt: skip
    """Load the queries of both groups, then keys and values in the order in which they are read."""
    mbarrier.expect(come, 2 * q.block_type.nbytes)
    async_load(q, [b, n, i0, 0], come, tiles.index(0))
    async_load(q, [b, n, i0 + ROWS, 0], come, tiles.index(1))
    fetch(k, b, key_head, last, 0, keys, STAGES)
    for t in range(1, blocks):
        fetch(k, b, key_head, last - t * BLOCK_N, t, keys, STAGES)
        fetch(v, b, key_head, last - (t - 1) * BLOCK_N, t - 1, values, STAGES)
    fetch(v, b, key_head, last - (blocks - 1) * BLOCK_N, blocks - 1, values, STAGES)


@gluon.jit
def take(ring, t, STAGES: gl.constexpr):
    """Block t in shared memory, [rows, size], once it has come."""
    tiles, ready, _ = ring
    mbarrier.wait(ready.index(t % STAGES), loaded(t, STAGES))
    return tiles.index(t % STAGES).reshape([tiles.shape[3], tiles.shape[4]])


@gluon.jit
def release(ring, t, STAGES: gl.constexpr):
    """Say that this group has read block t. The compiler lets the group's warps meet before."""
    mbarrier.arrive(ring[2].index(t % STAGES))


@gluon.jit
def multiply_keys(tile, key, LAYOUT: gl.constexpr):
    """Issue the products of queries and a block of keys."""
    nothing = gl.full([tile.shape[0], key.shape[0]], 0.0, gl.float32, LAYOUT)
    return warpgroup_mma(tile, key.permute((1, 0)), nothing, use_acc=False, is_async=True)


@gluon.jit
def weigh_block(scores, m, l, position, j0, K, settings, LAYOUT: gl.constexpr, BY_POSITION: gl.constexpr):  # noqa: E741
    """``weigh`` of the products with the keys from j0 on, some of which position may hide."""
    if BY_POSITION:
        j = j0 + gl.arange(0, scores.shape[1], gl.SliceLayout(0, LAYOUT))
        scores = hide_by_position(scores, position[:, None], j[None, :], K, settings[2], settings[3])
    return weigh(scores, m, l, unit(settings, True))


@gluon.jit
def walk(
    p, m, l, acc, tile, keys, values, turns, position, last, start, stop, K, settings,  # noqa: E741
    SIDE: gl.constexpr, BLOCK_N: gl.constexpr, STAGES: gl.constexpr, LAYOUT: gl.constexpr, SUMS: gl.constexpr,
    BY_POSITION: gl.constexpr,
):  # fmt: skip
    """Absorb the blocks from start up to stop; ``p`` holds the weights of the block before, whose values are due."""
    for t in range(start, stop):
        key = take(keys, t, STAGES)
        value = take(values, t - 1, STAGES)
        mbarrier.wait(turns.index(SIDE), given(t, SIDE))
        scores = multiply_keys(tile, key, LAYOUT)
        acc = warpgroup_mma(p, value, acc, is_async=True)
        mbarrier.arrive(turns.index(1 - SIDE))
        scores = warpgroup_mma_wait(1, deps=(scores,))
        release(keys, t, STAGES)
        w, m, l, shrink = weigh_block(  # noqa: E741
            scores, m, l, position, last - t * BLOCK_N, K, settings, LAYOUT, BY_POSITION
        )
        acc, p = warpgroup_mma_wait(0, deps=(acc, p))
        release(values, t - 1, STAGES)
        acc = acc * gl.convert_layout(shrink, gl.SliceLayout(1, SUMS))[:, None]
        p = gl.convert_layout(w.to(value.dtype), gl.DotOperandLayout(0, SUMS, 2))
    return p, m, l, acc


@gluon.jit
def attend(
    tiles, come, keys, values, turns, lse, out, out_strides, i0, shift, last, hidden, blocks, M, K, settings,
    SIDE: gl.constexpr, EV: gl.constexpr, BLOCK_N: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    """Output and LSE of one group's queries, from i0 on.

    Args:
        tiles: buffers for the queries of both groups.
        come: barrier of their load.
        keys: see ``make_ring``; so for values.
        values: see there.
        turns: barrier a group, which the other one hands over.
        lse: of the head, written.
        out: likewise.
        out_strides: see ``ping_pong_kernel``.
        i0: first query.
        shift: query i stands at key i + shift.
        last: start of the last block of keys, which is number 0.
        hidden: from that block on every key is seen by every query.
        blocks: how many there are, one at least.
        M: queries.
        K: keys.
        settings: see ``ping_pong_kernel``.
        SIDE: 0 for the group that begins, 1 for the other.
        EV: size of a value.
        BLOCK_N: keys a step.
        STAGES: buffers of keys, and of values.
    """
    ROWS: gl.constexpr = tiles.shape[3]
    BLOCK_V: gl.constexpr = values[0].shape[4]
    LAYOUT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BLOCK_N, 16])
    SUMS: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BLOCK_V, 16])
    i = i0 + gl.arange(0, ROWS, gl.SliceLayout(1, LAYOUT))
    m = gl.full([ROWS], float("-inf"), gl.float32, gl.SliceLayout(1, LAYOUT))
    l = gl.full([ROWS], 0.0, gl.float32, gl.SliceLayout(1, LAYOUT))  # noqa: E741
    acc = gl.full([ROWS, BLOCK_V], 0.0, gl.float32, SUMS)

    mbarrier.wait(come, 0)
    tile = tiles.index(SIDE).reshape([ROWS, tiles.shape[4]])
    key = take(keys, 0, STAGES)
    mbarrier.wait(turns.index(SIDE), given(0, SIDE))
    scores = multiply_keys(tile, key, LAYOUT)
    mbarrier.arrive(turns.index(1 - SIDE))
    scores = warpgroup_mma_wait(0, deps=(scores,))
    release(keys, 0, STAGES)
    w, m, l, _ = weigh_block(scores, m, l, i + shift, last, K, settings, LAYOUT, True)  # noqa: E741
    p = gl.convert_layout(w.to(key.dtype), gl.DotOperandLayout(0, SUMS, 2))
    if settings[2] is not None or settings[3] is not None:
        p, m, l, acc = walk(  # noqa: E741
            p, m, l, acc, tile, keys, values, turns, i + shift, last, 1, hidden, K, settings,
            SIDE, BLOCK_N, STAGES, LAYOUT, SUMS, True,
        )  # fmt: skip
    if settings[2] is None:  # else all are hidden from some
        p, m, l, acc = walk(  # noqa: E741
            p, m, l, acc, tile, keys, values, turns, i + shift, last, hidden, blocks, K, settings,
            SIDE, BLOCK_N, STAGES, LAYOUT, SUMS, False,
        )  # fmt: skip
    value = take(values, blocks - 1, STAGES)
    mbarrier.wait(turns.index(SIDE), given(blocks, SIDE))
    acc = warpgroup_mma(p, value, acc, is_async=True)
    mbarrier.arrive(turns.index(1 - SIDE))
    acc, p = warpgroup_mma_wait(0, deps=(acc, p))

    empty = l == 0.0
    total = gl.where(empty, 1.0, l)
    gl.store(lse + i, gl.where(empty, float("-inf"), (m + gl.log2(total)) / LOG2E), mask=i < M)
    acc = acc / gl.convert_layout(total, gl.SliceLayout(1, SUMS))[:, None]
    WIDE: gl.constexpr = gl.BlockedLayout([1, 8], [256 // BLOCK_V, BLOCK_V // 8], [4, 1], [1, 0])  # 16 bytes a thread
    result = gl.convert_layout(acc.to(key.dtype), WIDE)
    row = i0 + gl.arange(0, ROWS, gl.SliceLayout(1, WIDE))
    column = gl.arange(0, BLOCK_V, gl.SliceLayout(0, WIDE))
    at = row.to(gl.int64)[:, None] * out_strides[2] + column.to(gl.int64)[None, :] * out_strides[3]
    gl.store(out + at, result, mask=(row < M)[:, None] & (column < EV)[None, :])


@gluon.jit(do_not_specialize=["M", "K"])  # as ``forward_kernel``
def ping_pong_kernel(
    q, k, v, lse, out, out_strides, N, GROUP, M, K, settings,
    EV: gl.constexpr, BLOCK_M: gl.constexpr, BLOCK_N: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    """Output and LSE, of calls without modifiers but mask by position.

    Args:
        q: queries [B, N, M, E], a descriptor of blocks [1, 1, BLOCK_M / 2, padded E].
        k: keys [B, N / GROUP, K, E], a descriptor of blocks [1, 1, BLOCK_N, padded E].
        v: values [B, N / GROUP, K, EV], likewise.
        lse: written, fp32 [B, N, M] contiguous; natural logarithm.
        out: written, [B, N, M, EV].
        out_strides: four, in elements.
        N: query heads.
        GROUP: query heads that share a key head.
        M: queries.
        K: keys.
        settings: (scale, softcap, left, right, bottom_right), see ``modify``; softcap is None.
        EV: size of a value.
        BLOCK_M: queries a program, 128.
        BLOCK_N: keys a step.
        STAGES: buffers of keys, and of values.
    """
    programs = gl.cdiv(M, BLOCK_M)
    i0 = (programs - 1 - gl.program_id(0) % programs) * BLOCK_M  # under a causal mask the longest first
    head = gl.program_id(0) // programs
    b, n = head // N, head % N
    shift = (K - M) * settings[4]
    first, full, last = key_range(i0, M, K, settings, shift, BLOCK_M, BLOCK_N)
    hidden = (last - full) // BLOCK_N + 1
    blocks = (last - first) // BLOCK_N + 1
    out = head_of(out, b, n, out_strides)
    lse = lse + gl.cast(head, gl.int64) * M

    ROWS: gl.constexpr = BLOCK_M // 2
    tiles = gl.allocate_shared_memory(q.dtype, [2, 1, 1, ROWS, q.block_type.shape[3]], q.layout)
    come = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    turns = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    mbarrier.init(come, 1)
    mbarrier.init(turns.index(0), 1)
    mbarrier.init(turns.index(1), 1)
    keys, values = make_ring(k, STAGES), make_ring(v, STAGES)
    fence_async_shared()  # loads arrive on barriers too
    gl.warp_specialize(
        [
            (attend, (tiles, come, keys, values, turns, lse, out, out_strides, i0, shift, last, hidden, blocks,
                      M, K, settings, 0, EV, BLOCK_N, STAGES)),
            (attend, (tiles, come, keys, values, turns, lse, out, out_strides, i0 + ROWS, shift, last, hidden, blocks,
                      M, K, settings, 1, EV, BLOCK_N, STAGES)),
            (load, (q, k, v, b, n, n // GROUP, i0, last, blocks, tiles, come, keys, values, ROWS, BLOCK_N, STAGES)),
        ],
        WARPS, REGISTERS,
    )  # fmt: skip
