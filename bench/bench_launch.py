"""The ladder: the same recurrence as many operator calls a step, one call a step, one call a sequence, and torch's own.

Small on purpose (B = 1, H = 64): what is left when the arithmetic is small is the cost of launching it.
"""

from __future__ import annotations

import pytest
import torch

from bench import layers
from bench.cases import recurrent_case
from bench.measure import Measure
from bench.tiers import cost, tiers


@tiers(T={"smoke": (4, 16), "standard": (10, 50, 100, 200), "full": (10, 25, 50, 100, 200, 500, 1000)})
@pytest.mark.parametrize("rung", layers.rungs())
@pytest.mark.parametrize("cell", layers.CELLS)
@cost(0.7)
def test_ladder(measure: Measure, device: torch.device, cell: str, rung: str, T: int) -> None:
    measure.benchmark.group = f"launch {cell}"
    measure(recurrent_case(rung, cell, B=1, T=T, H=64, mode="inference", device=device))
