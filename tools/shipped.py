"""The calls whose Triton kernels have passports: a line a family, every row of the tables of configurations.

A kernel needs nothing here but a call that launches it; its name is its function's. Sizes are such that no number but
the constants is one that Triton compiles specially (1, or a multiple of 16).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from fusednn.attention_call import Inputs, Options
from fusednn.triton_kernels import additive, launch, scan
from fusednn.triton_kernels.configurations import (
    ARCHITECTURES,
    CANDIDATES,
    HEAD_SIZES,
    WITH_DESCRIPTORS,
    Candidate,
    candidates,
)

B, N, HEADS, T = 3, 6, 3, 1001
FLAGS = ("COMPOSE", "WEIGHT")  # constants that tell apart the kernels of one call; part of their names
TILES = ("BLOCK_M", "BLOCK_N", "STEPS", "QUERIES", "KEYS", "ROWS", "OTHERS", "UNITS")  # constants: the configuration


SHIPPED = (*ARCHITECTURES, 89)  # an RTX 4090 has rows of sm_120, and code of its own


class Call(NamedTuple):
    """A call to take passports of: what begins its kernels' names, what stands in brackets, and where it runs."""

    family: str
    label: str
    run: Callable[[], object]
    capabilities: tuple[int, ...] = SHIPPED


def short(dtype: torch.dtype) -> str:
    """``fp16`` for float16."""
    return {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32"}[dtype]


def empty(*shape: int, dtype: torch.dtype = torch.float32, skew: int = 0) -> Tensor:
    """A tensor on the GPU; with ``skew`` its rows are that much longer in memory."""
    return torch.empty(*shape[:-1], shape[-1] + skew, dtype=dtype, device="cuda").narrow(-1, 0, shape[-1])


class Attention(NamedTuple):
    """A call of attention, forward and backward."""

    dtype: torch.dtype
    size: int
    causal: bool = False
    tf32: bool = False
    skew: int = 0
    dropout: bool = False
    mask: bool = False
    sequences: bool = False
    queries: int = T
    deterministic: bool = True
    forward: bool = True
    backward: bool = True
    candidate: Candidate | None = None

    def run(self) -> None:
        """Launch."""
        rows, batch = (B * T, 1) if self.sequences else (T, B)
        query, grad, out = (
            empty(batch, N, min(rows, self.queries), self.size, dtype=self.dtype, skew=self.skew) for _ in range(3)
        )
        key, value = (empty(batch, HEADS, rows, self.size, dtype=self.dtype, skew=self.skew) for _ in range(2))
        starts = empty(B + 1, dtype=torch.int32) if self.sequences else None
        seed = empty(1, dtype=torch.int64) if self.dropout else None
        mask = empty(B, 1, 1, T, dtype=torch.bool) if self.mask else None
        inputs = Inputs(query, key, value, mask, starts_q=starts, starts_k=starts, seed=seed)
        options = Options(self.size**-0.5, None, None, 0 if self.causal else None, False, 0.1 if self.dropout else 0.0,
                          T, T, self.deterministic, "triton")  # fmt: skip
        lse = empty(batch, N, query.shape[2])
        torch.backends.cuda.matmul.allow_tf32 = self.tf32
        if self.forward:
            launch.forward(inputs, options, out, lse, self.candidate)
        if self.backward:
            found = [torch.empty_like(x) for x in (query, key, value)]
            launch.backward(grad, None, inputs, options, out, lse, [*found, None, None, None], self.candidate)


NUMBERS = {"fp16": (torch.float16, False), "tf32": (torch.float32, True), "fp32": (torch.float32, False)}


def attention() -> Iterator[Call]:
    """Every row of the table, and what runs where strides suit neither descriptors nor wide loads."""
    half = torch.float16
    for size in HEAD_SIZES:
        for causal, (by, skew) in itertools.product((False, True), (("", 0), (", addresses", 1))):
            label = f"{size}{', causal' if causal else ''}{by}"
            for name, (dtype, tf32) in NUMBERS.items():
                yield Call("attention", f"{name}, {label}", Attention(dtype, size, causal, tf32, skew).run)
            if size == 64 and not skew:
                one = Attention(half, size, causal, deterministic=False, forward=False)
                yield Call("attention", f"fp16, {label}, one kernel", one.run)
        yield Call("attention", f"fp16, {size}, causal, dropout", Attention(half, size, True, dropout=True).run)
        yield Call("attention", f"fp16, {size}, causal, mask",
                   Attention(half, size, True, mask=True, backward=False).run, (90,))  # fmt: skip
        yield Call("attention", f"fp16, {size}, causal, sequences", Attention(half, size, True, sequences=True).run,
                   (80, 90))  # fmt: skip
        for rows, queries, capabilities in (
            (16, 1, SHIPPED), (64, 20, SHIPPED if size == 64 else WITH_DESCRIPTORS),
        ):  # fmt: skip
            few = Attention(half, size, queries=queries, backward=False)
            yield Call("attention", f"fp16, {size}, {rows} rows", few.run, capabilities)
        few = Attention(torch.float32, size, queries=1, backward=False)
        yield Call("attention", f"fp32, {size}, 16 rows", few.run)


def tried() -> Iterator[Call]:
    """What tuning may choose beside the default; rows of two kernels are the default's, and have passports."""
    half = torch.float16
    for (way, _, known, size), causal in itertools.product(CANDIDATES, (False, True)):
        for candidate in candidates(way, known, half, size, causal, launch.OLDER)[1:]:
            call = Attention(half, size, causal, deterministic=False, forward=way == "forward",
                             backward=way == "backward", candidate=candidate)  # fmt: skip
            parts = ["fp16", str(size), *["causal"][: 1 if causal else 0]]
            if candidate.form == "two kernels":
                continue
            if candidate.form in ("shifted", "one kernel"):  # forms that have another row by default, or elsewhere
                parts.append(str(candidate))
            yield Call("attention", ", ".join(parts), call.run, (known,))


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
    yield from tried()
    for dtype in (torch.bfloat16, torch.float32):
        for cell, gates in (("min_gru", 2), ("min_lstm", 3)):
            yield Call("scan", f"{cell}, {short(dtype)}", lambda a=(cell, gates, dtype): scans(*a))
        yield Call("additive", short(dtype), lambda a=dtype: scores(a))
