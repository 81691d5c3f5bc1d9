"""Dropout of attention weights: which ones are kept follows from the seed and their place, so nothing is stored.

The definition, bit for bit, is ``kept`` in ``pyext/fusednn/reference/attention.py``.
"""

import triton
import triton.language as tl


@triton.jit
def kept(draw, i, j0, BLOCK_N: tl.constexpr, KEYS_FIRST: tl.constexpr):
    """Which weights of queries i and of BLOCK_N keys from j0 on stay; a tile [queries, keys], or turned.

    One call of Philox yields the words of four neighbouring keys: it runs on a quarter of the tile, and the four
    answers, which are bits by then, are laid side by side.

    Args:
        draw: (seed, limit, factor, head). The seed has 64 bits; the kernels read it from memory, so that no host waits
            for it and a captured graph draws anew. Words below the limit are dropped; it comes less 2^31, so that it is
            an int32 whatever the probability. The factor is what kept weights are multiplied by; head is b * N + n.
        i: query indices, [queries].
        j0: first key, a multiple of 4.
        BLOCK_N: keys.
        KEYS_FIRST: give a tile [keys, queries].
    """
    seed, limit, _, head = draw
    quarter = j0 // 4 + tl.arange(0, BLOCK_N // 4)
    if KEYS_FIRST:
        w0, w1, w2, w3 = tl.philox(seed, quarter[:, None], i[None, :], head, 0)
    else:
        w0, w1, w2, w3 = tl.philox(seed, quarter[None, :], i[:, None], head, 0)
    even = tl.join(at_least(w0, limit), at_least(w2, limit))
    answers = tl.join(even, tl.join(at_least(w1, limit), at_least(w3, limit)))  # [.., .., 2, 2]: 2 x + y is the word
    if KEYS_FIRST:
        return tl.reshape(tl.permute(answers, (0, 2, 3, 1)), [BLOCK_N, i.shape[0]])
    else:
        return tl.reshape(answers, [i.shape[0], BLOCK_N])


@triton.jit
def at_least(word, limit):
    """Compare an unsigned word with a limit that is less by 2^31."""
    return (word ^ 0x80000000).to(tl.int32, bitcast=True) >= limit


@triton.jit
def drop(weights, draw, i, j0, BLOCK_N: tl.constexpr):
    """Zero the weights [queries, keys] that are not kept, without scaling the others; None drops nothing."""
    if draw is None:
        return weights
    else:
        return tl.where(kept(draw, i, j0, BLOCK_N, False), weights, 0.0)
