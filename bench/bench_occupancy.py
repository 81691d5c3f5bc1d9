"""How many blocks of each kernel one multiprocessor holds, and what stops one more: from the compiled code.

Nothing is timed and no GPU is needed: registers and shared memory come from the tables of compiled kernels, CUDA and
Triton. Of the Triton kernels, which are compiled where they run, the whole passport is recorded.
"""

from __future__ import annotations

import pytest

from bench import layers
from bench.measure import Measure
from bench.tiers import cost

COLUMNS = ("kernel", "threads", "registers", "shared bytes", "spills", "blocks", "warps", "occupancy", "limiter",
           "one more")  # fmt: skip
PASSPORT = (
    "kernel", "architecture", "configuration", "registers", "shared bytes", "spills", "mma", "products", "waits",
    "exponentials", "in flight", "seconds to compile",
)  # fmt: skip


@pytest.mark.parametrize("gpu", layers.gpus())
@cost(0.05)
def test_theoretical(measure: Measure, gpu: str) -> None:
    measure.fact(
        {"columns": COLUMNS, "rows": layers.occupancies(gpu)}, impl=layers.OURS, occupancy_source="machine code"
    )


@pytest.mark.parametrize("triton", layers.compilers())
@cost(0.05)
def test_passports(measure: Measure, triton: str) -> None:
    measure.fact(
        {"columns": PASSPORT, "rows": layers.passports(triton)}, impl=layers.OURS, occupancy_source="machine code"
    )
