"""What training must remember, against length: bytes kept for backward, and the most in use at once.

Counted and read from the system, not timed. Lengths are long ones, where what does not grow with T no longer shows.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from bench import layers
from bench.measure import Measure
from bench.memory import Peaks, saved
from bench.tiers import cost, tiers

RECURRENT = {"smoke": ((16, 32),), "standard": ((256, 512, 1024),), "full": ((256, 512, 1024, 2048),)}
ATTENTION = {"smoke": ((32, 64),), "standard": ((1024, 2048, 4096),), "full": ((1024, 2048, 4096, 8192),)}
LAYERS = tuple(f"{cell}, {impl}" for impl in (layers.OURS, layers.TORCH) for cell in layers.CELLS)
MAIN = tuple(name for name in LAYERS if layers.OURS in name or "LSTM" in name)


@pytest.fixture(scope="module")
def peaks(device: torch.device) -> Iterator[Peaks]:
    with Peaks(device) as process:
        yield process


def record(measure: Measure, peaks: Peaks, kind: str, lengths: tuple[int, ...], impl: str, **fields: Any) -> None:
    """One system over its lengths."""
    measure.benchmark.group = "memory"
    asked = {"impl": impl, **{name: value for name, value in fields.items() if kind == "recurrent" or name != "cell"}}
    found = {"saved_mib": saved(kind, lengths, measure.device, **asked), "peak_mib": peaks(kind, lengths, **asked)}
    measure.fact({"lengths": lengths, "impl": impl, **fields, **found}, impl=impl, **fields)


@tiers(lengths=RECURRENT, layer={"smoke": (f"LSTM, {layers.OURS}",), "standard": MAIN, "full": LAYERS})
@cost(1.0)
def test_recurrent(measure: Measure, peaks: Peaks, layer: str, lengths: tuple[int, ...]) -> None:
    cell, impl = layer.split(", ")
    record(measure, peaks, "recurrent", lengths, impl, cell=cell, B=8, H=128)


@tiers(lengths=ATTENTION)
@pytest.mark.parametrize("impl", (*layers.ATTENTION, *layers.CUDA_ONLY))
@cost(1.5)
def test_attention(measure: Measure, peaks: Peaks, impl: str, lengths: tuple[int, ...]) -> None:
    record(measure, peaks, "attention", lengths, impl, cell="attention", B=1, N=2, E=64)
