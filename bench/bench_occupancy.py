"""How many blocks of each CUDA kernel one multiprocessor holds, and what stops one more: from the compiled code.

Nothing is timed and no GPU is needed: registers and shared memory come from the table of compiled kernels.
"""

from __future__ import annotations

import pytest

from bench import layers
from bench.measure import Measure
from bench.tiers import cost

COLUMNS = ("kernel", "threads", "registers", "shared bytes", "spills", "blocks", "warps", "occupancy", "limiter")


@pytest.mark.parametrize("gpu", layers.gpus())
@cost(0.05)
def test_theoretical(measure: Measure, gpu: str) -> None:
    measure.fact(
        {"columns": COLUMNS, "rows": layers.occupancies(gpu)}, impl=layers.OURS, occupancy_source="machine code"
    )
