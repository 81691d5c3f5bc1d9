"""What training must remember, against length: bytes kept for backward, and the most in use at once.

Counted and read from the system, not timed. Lengths are long ones, where what does not grow with T no longer shows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from bench import layers
from bench.bench_attention import attention_case
from bench.cases import recurrent_case
from bench.check import require_right, worst_error
from bench.count import SavedBytes
from bench.measure import MIB, Case, Measure
from bench.resident import peak_growth
from bench.tiers import cost, tiers

RECURRENT = {"smoke": ((16, 32),), "standard": ((256, 512, 1024),), "full": ((256, 512, 1024, 2048),)}
ATTENTION = {"smoke": ((32, 64),), "standard": ((1024, 2048, 4096),), "full": ((1024, 2048, 4096, 8192),)}
LAYERS = tuple(f"{cell}, {impl}" for impl in (layers.OURS, layers.TORCH) for cell in layers.CELLS)
MAIN = tuple(name for name in LAYERS if layers.OURS in name or "LSTM" in name)


def require_right_case(case: Case) -> None:
    """The memory of a wrong result is of no interest either."""
    assert case.results and case.torchs and case.truth
    require_right(worst_error(case.results(), case.torchs(), case.truth()))


def memory(
    lengths: Sequence[int], make: Callable[[int], Case], device: torch.device
) -> dict[str, list[Any]]:
    """MiB by length: kept for backward, and at most in use above inputs and parameters, in each of some runs."""
    saved, peaks = [], []
    for T in lengths:
        case = make(T)
        if T == lengths[0]:
            require_right_case(case)
        assert case.forward is not None
        saved.append(SavedBytes(case.known).measure(case.forward) / MIB)

        def run(case: Case = case) -> None:
            assert case.forward is not None
            result = case.forward()
            (result if isinstance(result, Tensor) else result[0]).square().mean().backward()
            for leaf in case.known:
                leaf.grad = None

        grown = peak_growth(run, device)
        peaks.append(grown and [growth / MIB for growth in grown])
    return {"saved_mib": saved, "peak_mib": peaks}


@tiers(lengths=RECURRENT, layer={"smoke": (f"LSTM, {layers.OURS}",), "standard": MAIN, "full": LAYERS})
@cost(1.0)
def test_recurrent(measure: Measure, device: torch.device, layer: str, lengths: tuple[int, ...]) -> None:
    measure.benchmark.group = "memory"
    cell, impl = layer.split(", ")
    sizes: dict[str, Any] = {"B": 8, "H": 128}

    def make(T: int) -> Case:
        return recurrent_case(impl, cell, T=T, mode="training", device=device, **sizes)

    found = memory(lengths, make, device)
    measure.fact({"lengths": lengths, "cell": cell, "impl": impl, **sizes, **found}, impl=impl, cell=cell, **sizes)


@tiers(lengths=ATTENTION)
@pytest.mark.parametrize("impl", (*layers.ATTENTION, *layers.CUDA_ONLY))
@cost(1.5)
def test_attention(measure: Measure, device: torch.device, impl: str, lengths: tuple[int, ...]) -> None:
    measure.benchmark.group = "memory"
    sizes: dict[str, Any] = {"B": 1, "N": 2, "E": 64}

    def make(T: int) -> Case:
        return attention_case(impl, T=T, mode="training", device=device, **sizes)

    found = memory(lengths, make, device)
    measure.fact({"lengths": lengths, "cell": "attention", "impl": impl, **sizes, **found},
                 impl=impl, cell="attention", **sizes)  # fmt: skip
