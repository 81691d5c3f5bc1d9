"""Tiles in and out of memory, and their products; addresses are 64 bits wide, strides are any."""

import triton
import triton.language as tl


@triton.jit
def load_tile(
    pointer, start, end, strides, SIZE: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr, UPCAST: tl.constexpr
):
    """Rows start to start + ROWS of [end, SIZE], zero beyond both; fp32 if ``UPCAST``.  # [ROWS, COLS]."""
    row = tl.arange(0, ROWS)
    col = tl.arange(0, COLS)
    offsets = row.to(tl.int64)[:, None] * strides[2] + col.to(tl.int64)[None, :] * strides[3]
    inside = (row < end - start)[:, None]
    if SIZE != COLS:
        inside = inside & (col < SIZE)[None, :]
    base = pointer + tl.cast(start, tl.int64) * strides[2]
    tile = tl.load(base + offsets, mask=inside, other=0.0)
    if UPCAST:
        tile = tile.to(tl.float32)
    return tile


@triton.jit
def store_tile(pointer, tile, start, end, strides, SIZE: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr):
    """Write what lies within [end, SIZE] of a tile whose first row is ``start``."""
    row = tl.arange(0, ROWS)
    col = tl.arange(0, COLS)
    offsets = row.to(tl.int64)[:, None] * strides[2] + col.to(tl.int64)[None, :] * strides[3]
    inside = (row < end - start)[:, None] & (col < SIZE)[None, :]
    base = pointer + tl.cast(start, tl.int64) * strides[2]
    tl.store(base + offsets, tile.to(pointer.dtype.element_ty), mask=inside)


@triton.jit
def head_of(pointer, b, n, strides):
    """Where batch row b, head n begins; None stays None."""
    if pointer is None:
        return None
    else:
        return pointer + tl.cast(b, tl.int64) * strides[0] + tl.cast(n, tl.int64) * strides[1]


@triton.jit
def slope_of(slopes, b, n, strides):
    """ALiBi slope of a head, or None."""
    if slopes is None:
        return None
    else:
        return tl.load(slopes + b * strides[0] + n * strides[1])
