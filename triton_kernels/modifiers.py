"""The modifiers of attention scores, one function each, for the forward and the backward kernels alike.

Order: scale, softcap, ALiBi, mask, position. ``i`` and ``j`` are query and key indices of any two shapes that broadcast
to the tile, so one source serves tiles of queries by keys and of keys by queries. Scores end in units of log 2, where a
weight is ``exp2(score - lse)``. Equations and sources: ``docs/kernels/attention.md``.
"""

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def tanh(x):
    """Hyperbolic tangent without libdevice, which the interpreter lacks.

    Away from zero by exp2; near zero, where that cancels, by the continued fraction of Lambert, whose fifth convergent
    is exact to fp32 below 0.6. fp64 keeps the first form: its absolute error is one rounding.
    """
    e = tl.exp2(tl.abs(x) * (-2.0 * LOG2E))
    far = (1.0 - e) / (1.0 + e)
    far = tl.where(x < 0, -far, far)
    if x.dtype == tl.float64:
        return far
    else:
        y = x * x
        near = x * (945.0 + y * (105.0 + y)) / (945.0 + y * (420.0 + y * 15.0))
        return tl.where(tl.abs(x) < 0.6, near, far)


@triton.jit
def soften(scores, softcap):
    """Bound scores to (-softcap, softcap)."""
    return softcap * tanh(scores / softcap)


@triton.jit
def soften_gradient(grad, softened, softcap):
    """Carry a gradient back through ``soften``, from its result."""
    ratio = softened / softcap
    return grad * (1.0 - ratio * ratio)


@triton.jit
def add_alibi(scores, distance, slope):
    """Take slope * |i - j| off."""
    return scores - slope * tl.abs(distance).to(scores.dtype)


@triton.jit
def apply_mask(scores, mask, i, j, strides, M, K):
    """Hide what a boolean mask (bytes) hides, or add a float mask."""
    offsets = i.to(tl.int64) * strides[2] + j.to(tl.int64) * strides[3]
    inside = (i < M) & (j < K)
    if mask.dtype.scalar.element_ty == tl.uint8:
        return tl.where(tl.load(mask + offsets, mask=inside, other=0) != 0, scores, float("-inf"))
    else:
        return scores + tl.load(mask + offsets, mask=inside, other=0.0).to(scores.dtype)


@triton.jit
def hide_by_position(scores, position, j, K, left, right):
    """Hide keys beyond K, and those outside the window; causal is the window with nothing to the right.

    Bounds are taken for each query, so that a key costs one comparison a side.
    """
    seen = j < K if right is None else j <= tl.minimum(position + right, K - 1)
    if left is not None:
        seen = seen & (j >= position - left)
    return tl.where(seen, scores, float("-inf"))


@triton.jit
def modify(scores, i, j, rules, FOLD: tl.constexpr, BY_POSITION: tl.constexpr):
    """Apply all modifiers to products q . k.

    Args:
        scores: tile of products.
        i: query indices.
        j: key indices.
        rules: (M, K, mask, its strides, slope, settings, shift, draw): pointer to the mask of this head and its ALiBi
            slope, None where absent; settings are (scale, softcap, left, right, bottom_right) likewise; query i stands
            at key i + shift; draw is that of ``kept``.
        FOLD: leave the scale and the change to log 2 to the caller, who multiplies by ``unit``.
        BY_POSITION: whether the tile can hold hidden keys.

    Returns:
        scores in units of log 2 over ``unit``; the scores right after the softcap, which its gradient needs.
    """
    M, K, mask, mask_strides, slope, settings, shift, _ = rules
    scale, softcap, left, right, _ = settings
    softened = scores
    if not FOLD:
        scores = scores * scale
        if softcap is not None:
            scores = soften(scores, softcap)
        softened = scores
        if slope is not None:
            scores = add_alibi(scores, i + shift - j, slope)
    if mask is not None:
        scores = apply_mask(scores, mask, i, j, mask_strides, M, K)
    if not FOLD:
        scores = scores * LOG2E
    if BY_POSITION:
        scores = hide_by_position(scores, i + shift, j, K, left, right)
    return scores, softened


@triton.jit
def unit(settings, FOLD: tl.constexpr):
    """What turns the scores of ``modify`` into units of log 2."""
    if FOLD:
        return settings[0] * LOG2E
    else:
        return 1.0


@triton.jit
def key_range(i0, M, K, settings, shift, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """Key blocks that the queries from i0 on can see.

    Returns:
        first: start of the first block; full: up to there every key of every block is seen by every query;
        last: start of the last block. One block at least, though all of it may be hidden.
    """
    _, _, left, right, _ = settings
    first = 0
    end = K
    full = K
    if right is not None:
        end = tl.minimum(K, tl.minimum(i0 + BLOCK_M, M) + shift + right)
        full = tl.minimum(K, i0 + shift + right + 1)
    if left is not None:
        first = tl.maximum(0, i0 + shift - left) // BLOCK_N * BLOCK_N
        full = first
    last = first + tl.maximum(0, tl.cdiv(end - first, BLOCK_N) - 1) * BLOCK_N
    full = tl.minimum(last, tl.maximum(first, full // BLOCK_N * BLOCK_N))
    return first, full, last


@triton.jit
def query_range(j0, M, settings, shift, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """Queries, from the start of a block to the end of the range, that can see a key of the block at j0."""
    _, _, left, right, _ = settings
    first = 0
    end = M
    if right is not None:
        first = tl.maximum(0, j0 - right - shift) // BLOCK_M * BLOCK_M
    if left is not None:
        end = tl.minimum(M, j0 + BLOCK_N + left - shift)
    return first, end
