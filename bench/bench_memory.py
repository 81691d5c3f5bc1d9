"""What training must remember, against length: bytes kept for backward, and the most in use at once.

Counted and read from the system, not timed. Lengths are long ones, where what does not grow with T no longer shows.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from bench import layers
from bench.cases import attention_case, recurrent_case
from bench.measure import Case, Measure
from bench.memory import against_length
from bench.tiers import cost, tiers

RECURRENT = {"smoke": ((16, 32),), "standard": ((256, 512, 1024),), "full": ((256, 512, 1024, 2048),)}
ATTENTION = {"smoke": ((32, 64),), "standard": ((1024, 2048, 4096),), "full": ((1024, 2048, 4096, 8192),)}
LAYERS = tuple(f"{cell}, {impl}" for impl in (layers.OURS, layers.TORCH) for cell in layers.CELLS)
MAIN = tuple(name for name in LAYERS if layers.OURS in name or "LSTM" in name)


@tiers(lengths=RECURRENT, layer={"smoke": (f"LSTM, {layers.OURS}",), "standard": MAIN, "full": LAYERS})
@cost(1.0)
def test_recurrent(measure: Measure, device: torch.device, layer: str, lengths: tuple[int, ...]) -> None:
    measure.benchmark.group = "memory"
    cell, impl = layer.split(", ")
    sizes: dict[str, Any] = {"B": 8, "H": 128}

    def make(T: int) -> Case:
        return recurrent_case(impl, cell, T=T, mode="training", device=device, **sizes)

    found = against_length(lengths, make, device)
    measure.fact({"lengths": lengths, "cell": cell, "impl": impl, **sizes, **found}, impl=impl, cell=cell, **sizes)


@tiers(lengths=ATTENTION)
@pytest.mark.parametrize("impl", (*layers.ATTENTION, *layers.CUDA_ONLY))
@cost(1.5)
def test_attention(measure: Measure, device: torch.device, impl: str, lengths: tuple[int, ...]) -> None:
    measure.benchmark.group = "memory"
    sizes: dict[str, Any] = {"B": 1, "N": 2, "E": 64}

    def make(T: int) -> Case:
        return attention_case(impl, T=T, mode="training", device=device, **sizes)

    found = against_length(lengths, make, device)
    measure.fact({"lengths": lengths, "cell": "attention", "impl": impl, **sizes, **found},
                 impl=impl, cell="attention", **sizes)  # fmt: skip
