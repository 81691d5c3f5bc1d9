"""The calls whose Triton kernels have passports: a line a family, every row of the tables of configurations.

A kernel needs nothing here but a call that launches it; its name is its function's. Sizes are such that no number but
the constants is one that Triton compiles specially (1, or a multiple of 16).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from fusednn.triton_kernels import additive, launch, scan
from fusednn.triton_kernels.configurations import ARCHITECTURES, HEAD_SIZES, WITH_DESCRIPTORS

B, N, HEADS, T = 3, 6, 3, 1001
FLAGS = ("COMPOSE", "WEIGHT")  # constants that tell apart the kernels of one call; part of their names
TILES = ("BLOCK_M", "BLOCK_N", "STEPS", "QUERIES", "KEYS", "ROWS", "OTHERS", "UNITS")  # constants: the configuration


class Call(NamedTuple):
    """A call to take passports of: what begins its kernels' names, what stands in brackets, and where it runs."""

    family: str
    label: str
    run: Callable[[], object]
    capabilities: tuple[int, ...] = ARCHITECTURES


def short(dtype: torch.dtype) -> str:
    """``fp16`` for float16."""
    return {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32"}[dtype]


def empty(*shape: int, dtype: torch.dtype = torch.float32, skew: int = 0) -> Tensor:
    """A tensor on the GPU; with ``skew`` its rows are that much longer in memory."""
    return torch.empty(*shape[:-1], shape[-1] + skew, dtype=dtype, device="cuda").narrow(-1, 0, shape[-1])


def attend(dtype: torch.dtype, size: int, causal: bool, tf32: bool = False, skew: int = 0) -> None:
    """Attention forward and backward, plain or causal."""
    options = (size**-0.5, None, None, 0 if causal else None, False)
    query, grad, out = (empty(B, N, T, size, dtype=dtype, skew=skew) for _ in range(3))
    key, value = (empty(B, HEADS, T, size, dtype=dtype, skew=skew) for _ in range(2))
    lse, absent = empty(B, N, T), (None, None, None)
    torch.backends.cuda.matmul.allow_tf32 = tf32
    launch.forward(query, key, value, *absent, options, out, lse)
    found = [torch.empty_like(x) for x in (query, key, value)]
    launch.backward(grad, None, query, key, value, *absent, options, out, lse, [*found, *absent])


def attention() -> Iterator[Call]:
    """Every row of the table; in 16 bits also what runs on GPUs with descriptors where strides do not suit them."""
    for dtype, tf32 in ((torch.float16, False), (torch.float32, True)):
        for size in HEAD_SIZES:
            for causal in (False, True):
                label = f"{'tf32' if tf32 else short(dtype)}, {size}{', causal' if causal else ''}"
                yield Call("attention", label, lambda a=(dtype, size, causal, tf32): attend(*a))
                if dtype == torch.float16:
                    yield Call("attention", f"{label}, addresses", lambda a=(dtype, size, causal): attend(*a, skew=1),
                               WITH_DESCRIPTORS)  # fmt: skip


def scans(cell: str, gates: int, dtype: torch.dtype) -> None:
    """A scan of several segments, forward and backward."""
    width = 193
    h0, y = empty(B, width, dtype=dtype), empty(T, B, width, dtype=dtype)
    pre = empty(T, B, gates * width, dtype=dtype)
    scan.forward(pre, h0, cell, 3)
    scan.backward(y, pre, y, h0, cell, 3)


def scores(dtype: torch.dtype) -> None:
    """Scores of additive attention, forward and backward."""
    query, key, weight = empty(B, T, 193, dtype=dtype), empty(B, T + 2, 193, dtype=dtype), empty(193, dtype=dtype)
    additive.backward(additive.forward(query, key, weight), query, key, weight)


def calls() -> Iterator[Call]:
    """All of them."""
    yield from attention()
    for dtype in (torch.bfloat16, torch.float32):
        for cell, gates in (("min_gru", 2), ("min_lstm", 3)):
            yield Call("scan", f"{cell}, {short(dtype)}", lambda a=(cell, gates, dtype): scans(*a))
        yield Call("additive", short(dtype), lambda a=dtype: scores(a))
