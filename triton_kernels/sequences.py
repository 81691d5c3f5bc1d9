"""Where the rows of a program lie: in a batch row, or in one of the sequences that lie one after another in one."""

import triton
import triton.language as tl


@triton.jit
def extent(starts, number, rows):
    """First row and length of a sequence; wrong starts are cut to the rows that there are."""
    first = tl.minimum(tl.maximum(tl.load(starts + number), 0), rows)
    stop = tl.minimum(tl.maximum(tl.load(starts + number + 1), first), rows)
    return first, stop - first


@triton.jit
def place(sequences, number, M, K, bottom_right):
    """Sizes of a batch row or sequence.

    Args:
        sequences: None, or (starts of queries, starts of keys, rows of queries, rows of keys).
        number: of the batch row or sequence.
        M: queries of a batch row.
        K: keys of a batch row.
        bottom_right: 1 if the last query stands at the last key, else 0.

    Returns:
        batch row of the tensors, first row of its queries, first row of its keys, M, K, shift of ``modify``.
    """
    if sequences is None:
        return number, 0, 0, M, K, (K - M) * bottom_right
    else:
        starts_q, starts_k, rows_q, rows_k = sequences
        q0, M = extent(starts_q, number, rows_q)
        k0, K = extent(starts_k, number, rows_k)
        return 0, q0, k0, M, K, (K - M) * bottom_right


@triton.jit
def from_row(pointer, first, strides, sequences):
    """A tensor [B, N, T, E] from a row on; the tensor or its descriptor itself where there are no sequences."""
    if sequences is None:
        return pointer
    else:
        return pointer + tl.cast(first, tl.int64) * strides[2]


@triton.jit
def row_terms(pointer, sequences, head, n, M, q0):
    """Where the numbers of a head's queries begin in a contiguous [B, N, M]; head is b * N + n."""
    if sequences is None:
        return pointer + tl.cast(head, tl.int64) * M
    else:
        return pointer + tl.cast(n, tl.int64) * sequences[2] + q0
