"""Tiles in and out of memory: by addresses of 64 bits and any strides, or by a tensor-memory descriptor."""

import triton
import triton.language as tl


@triton.jit
def head_of(pointer, b, n, strides):
    """Where batch row b, head n begins."""
    return pointer + tl.cast(b, tl.int64) * strides[0] + tl.cast(n, tl.int64) * strides[1]


@triton.jit
def places(pointer, start, end, strides, SIZE: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr):
    """Addresses of a tile of one head whose first row is ``start``, and which of them lie within [end, SIZE]."""
    row = tl.arange(0, ROWS)
    col = tl.arange(0, COLS)
    offsets = row.to(tl.int64)[:, None] * strides[2] + col.to(tl.int64)[None, :] * strides[3]
    inside = (row < end - start)[:, None]
    if SIZE != COLS:
        inside = inside & (col < SIZE)[None, :]
    return pointer + tl.cast(start, tl.int64) * strides[2] + offsets, inside


@triton.jit
def load_tile(source, start, end, ROWS: tl.constexpr, UPCAST: tl.constexpr):
    """Rows start to start + ROWS of one head, zero beyond ``end`` and beyond its size; fp32 if ``UPCAST``.

    Args:
        source: (pointer, b, n, strides, size, padded size) of a tensor [B, N, T, size]; or a descriptor of blocks
            [1, 1, ROWS, padded size], or [ROWS, padded size] of the head, in the pointer's place, and None for strides.
        start: first row.
        end: T.
        ROWS: rows of the tile.
        UPCAST: see above.
    """
    pointer, b, n, strides = source[0], source[1], source[2], source[3]
    SIZE: tl.constexpr = source[4]
    COLS: tl.constexpr = source[5]
    if strides is not None:
        at, inside = places(head_of(pointer, b, n, strides), start, end, strides, SIZE, ROWS, COLS)
        tile = tl.load(at, mask=inside, other=0.0)
    elif len(pointer.block_shape) == 2:
        tile = pointer.load([tl.cast(start, tl.int32), 0])
    else:
        tile = tl.reshape(pointer.load([b, n, tl.cast(start, tl.int32), 0]), [ROWS, COLS])
    if UPCAST:
        tile = tile.to(tl.float32)
    return tile


@triton.jit
def halves(x):
    """The left and the right half of a tile's columns."""
    return tl.split(tl.permute(tl.reshape(x, [x.shape[0], 2, x.shape[1] // 2]), (0, 2, 1)))


@triton.jit
def add_inner(a, b, acc, PRECISION: tl.constexpr):
    """``acc`` and the inner products of the rows of a with the rows of b.

    Products of fp32 without TF32 take whole rows into registers: they are made of those of the halves.
    """
    if a.dtype == tl.float32 and PRECISION == "ieee" and a.shape[1] > 32:
        a0, a1 = halves(a)
        b0, b1 = halves(b)
        return add_inner(a1, b1, add_inner(a0, b0, acc, PRECISION), PRECISION)
    else:
        return tl.dot(a, tl.trans(b), acc, input_precision=PRECISION, out_dtype=acc.dtype)


@triton.jit
def inner(a, b, PRECISION: tl.constexpr, ACC: tl.constexpr):
    """Inner products of the rows of a with the rows of b."""
    return add_inner(a, b, tl.zeros([a.shape[0], b.shape[0]], ACC), PRECISION)


@triton.jit
def again(tile, source, start, end, PRECISION: tl.constexpr, UPCAST: tl.constexpr):
    """A tile that every turn of a loop multiplies, loaded anew where products would keep all of it in registers.

    Those of fp32 without TF32 do, and others where it is wide and comes by addresses. Arguments as for ``load_tile``,
    which gave it; a ``start`` of None keeps it.
    """
    KEPT: tl.constexpr = tile.dtype == tl.float32 and PRECISION == "ieee" and tile.shape[1] > 32
    if start is not None and (KEPT or (source[3] is not None and tile.shape[1] > 128)):
        return load_tile(source, start, end, tile.shape[0], UPCAST)
    else:
        return tile


@triton.jit
def store_tile(pointer, tile, start, end, strides, SIZE: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr):
    """Write what lies within [end, SIZE] of a tile whose first row is ``start``."""
    at, inside = places(pointer, start, end, strides, SIZE, ROWS, COLS)
    tl.store(at, tile.to(pointer.dtype.element_ty), mask=inside)


@triton.jit
def add_tile(target, tile, start, end, ROWS: tl.constexpr):
    """Add a tile to what memory holds, all at once for each number; ``target`` as the source of ``load_tile``."""
    pointer, b, n, strides = target[0], target[1], target[2], target[3]
    SIZE: tl.constexpr = target[4]
    COLS: tl.constexpr = target[5]
    if strides is None:
        pointer.atomic_add([b, n, tl.cast(start, tl.int32), 0], tl.reshape(tile, [1, 1, ROWS, COLS]))
    else:
        at, inside = places(head_of(pointer, b, n, strides), start, end, strides, SIZE, ROWS, COLS)
        tl.atomic_add(at, tile, mask=inside, sem="relaxed")
