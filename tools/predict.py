"""Predict how fast attention runs on an H200, from what its passports say: the table of ``docs/kernels/attention.md``.

A prediction for a GPU to judge, not a measurement. ``python tools/predict.py`` prints the table; the assumptions are in
the document, under "Predicted speed on an H200".
"""

from __future__ import annotations

from dataclasses import dataclass

from fusednn.kernels import Passport, attention, passport_tables

MULTIPROCESSORS, CLOCK = 132, 1.83e9  # the clock that NVIDIA's 989 TFLOP/s are computed with
TENSOR = 4096  # bf16 FLOP a clock and multiprocessor
EXPONENTIALS = 16  # results a clock and multiprocessor
OPERANDS = 128  # bytes of shared memory a clock and multiprocessor
L2, MEMORY = 5120, 4.8e12  # bytes a clock of the GPU (A100's figure), bytes a second
SUSTAINED = 790 / 990  # what a large bf16 product reaches
MMA_SYNC = 0.63  # of the peak, for products that are no warp-group products
EFFICIENCY = (0.6, 0.8)
TOKENS, WIDTH = 16384, 2048  # one sequence; heads times head size


@dataclass(frozen=True)
class Product:
    """One product of a turn, over queries, keys and E: its columns, whether its left operand is in shared memory."""

    n: int
    shared: bool

    def slowdown(self) -> float:
        """Clocks to read operands over clocks to multiply, of a 64 x n x 16 product, where that is more than one."""
        return max(1.0, (2048 * self.shared + 32 * self.n) / OPERANDS / (self.n * 2048 / TENSOR))


def products(kernel: str, tile: dict[str, int], size: int) -> list[Product]:
    """Of a kernel: scores, and what follows from them."""
    if kernel == "forward":
        return [Product(tile["BLOCK_N"], True), Product(size, False)]
    if kernel == "key_value":
        return 2 * [Product(tile["BLOCK_M"], True)] + 2 * [Product(size, False)]
    return 2 * [Product(tile["BLOCK_N"], True)] + [Product(size, False)]


@dataclass(frozen=True)
class Times:
    """Milliseconds of one kernel's parts, and of the kernel if nothing else took any."""

    tensor: float
    exponentials: float
    l2: float
    memory: float
    bound: float


def times(kernel: str, passport: Passport, size: int, causal: bool) -> Times:
    """Of one kernel over TOKENS tokens."""
    scores = WIDTH / size * TOKENS**2 / (2 if causal else 1)
    tile = passport.configuration
    parts = products(kernel, tile, size)
    flop = 2 * scores * size * len(parts)
    slow = sum(part.slowdown() for part in parts) / len(parts)
    warp_group = passport.products > 0
    peak = MULTIPROCESSORS * TENSOR * CLOCK * (SUSTAINED if warp_group else MMA_SYNC)
    tensor = flop / peak * (slow if warp_group else 1.0)
    own = tile["BLOCK_M"] * tile["BLOCK_N"] / passport.threads  # scores of a thread
    exponentials = scores * passport.exponentials / own / (MULTIPROCESSORS * EXPONENTIALS * CLOCK)
    rows = tile["BLOCK_N"] if kernel == "key_value" else tile["BLOCK_M"]
    l2 = scores / rows * 4 * size / (L2 * CLOCK)  # two tiles of 16 bits for each block of rows
    memory = TOKENS * WIDTH * 2 * (4 if kernel == "forward" else 6) / MEMORY
    share = passport.in_flight / passport.exponentials
    bound = max(tensor, share * exponentials, l2, memory) + (1 - share) * exponentials
    return Times(*(1e3 * value for value in (tensor, exponentials, l2, memory, bound)))


def table() -> str:
    """The predictions as Markdown, for the newest compiler's code."""
    found = list(passport_tables().values())[-1]
    lines = ["| | E | in flight, waits | tensor | exp | L2 | memory | bound | TFLOP/s at the bound | predicted |",
             "|---|---|---|---|---|---|---|---|---|---|"]  # fmt: skip
    for way, kernels in (("forward", ("forward",)), ("backward", ("key_value", "query"))):
        for size in (64, 128, 256):
            for causal in (False, True):
                names = attention("bfloat16", size, causal, True)
                assert names is not None
                by = {name.split("<")[0].removeprefix("attention_"): found[name].code["sm_90"] for name in names}
                each = [times(kernel, by[kernel], size, causal) for kernel in kernels]
                total = [sum(getattr(t, name) for t in each) for name in Times.__dataclass_fields__]
                counted = (4 if way == "forward" else 10) * TOKENS**2 * WIDTH / (2 if causal else 1)  # FLOP, by custom
                speed = counted / total[-1] * 1e-9
                flight = ", ".join(f"{by[k].in_flight}/{by[k].exponentials}, {by[k].waits}" for k in kernels)
                low, high = (round(share * speed, -1) for share in EFFICIENCY)
                cells = (f"{way}{' causal' if causal else ''}", str(size), flight, *(f"{t:.2g}" for t in total),
                         f"{speed:.0f}", f"{low:.0f} to {high:.0f}")  # fmt: skip
                lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
