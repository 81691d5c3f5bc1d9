"""What nothing on this machine can go below or above: the cost of starting work, of meeting, and the peaks.

The peaks are those that every other cell of the run is a share of (``pct_peak_flops``, ``pct_peak_bw``): measured here,
in the same run, and never taken from a data sheet.
"""

from __future__ import annotations

import pytest
import torch

from bench import floors, layers
from bench.cases import on_threads
from bench.measure import Case, Measure
from bench.tiers import cost, tiers

CALLS = 1000
EVERY = {"smoke": ("all",), "standard": ("one", "all"), "full": ("one", "all")}


def threads_of(words: str, device: torch.device) -> int:
    """The number of threads that a parameter means; skips where it has no meaning of its own."""
    every = torch.get_num_threads()
    if words == "one" and (device.type != "cpu" or every == 1):
        pytest.skip("counts CPU cores, of which there is one" if device.type == "cpu" else "counts CPU cores")
    return 1 if words == "one" else every


@tiers(calls={"smoke": (CALLS,), "standard": (CALLS,), "full": (CALLS,)})
@cost(0.5)
def test_operator_call(measure: Measure, device: torch.device, calls: int) -> None:
    """One operator on one number: what a step costs that is a call of its own. T is the number of calls."""
    measure.benchmark.group = "floors calls"
    one = torch.ones(1, device=device)
    out = torch.zeros(1, device=device)

    def run() -> list[torch.Tensor]:
        for _ in range(calls):
            torch.add(one, one, out=out)
        return [out]

    two = torch.full((1,), 2.0, device=device)
    fields = {"impl": "torch", "cell": "operator call", "T": calls, "dtype": "float32"}
    measure(Case(run, fields, run, lambda: [two], lambda: [two.double()]))


@tiers(threads=EVERY, dtype={"smoke": ("float32",), "standard": ("float32", "bfloat16"),
                             "full": ("float32", "bfloat16")})  # fmt: skip
@cost(1.0)
def test_matrix_product(measure: Measure, device: torch.device, dtype: str, threads: str) -> None:
    """The library's product of two square matrices: the peak of arithmetic."""
    measure.benchmark.group = "floors peaks"
    if dtype != "float32":
        layers.skip_half_on_cpu(device)
    used = threads_of(threads, device)
    N = 128 if measure.tier.name == "smoke" else 1024 if device.type == "cpu" else 8192
    a, b = (torch.randn(N, N, device=device, dtype=getattr(torch, dtype)) for _ in range(2))
    out = torch.empty_like(a)

    def run() -> list[torch.Tensor]:
        return [torch.mm(a, b, out=out)]

    fields = {"impl": "torch", "cell": "matrix product", "H": N, "dtype": dtype, "threads_torch": used}
    measure(Case(on_threads(run, used), fields, run, run, lambda: [a.double() @ b.double()], flops=2 * N**3,
                 bytes_min=3 * a.nbytes))  # fmt: skip


@tiers(threads=EVERY)
@cost(1.5)
def test_copy(measure: Measure, device: torch.device, threads: str) -> None:
    """A copy too large for any cache: the peak of memory traffic, reading and writing."""
    measure.benchmark.group = "floors peaks"
    used = threads_of(threads, device)
    numbers = 1 << (16 if measure.tier.name == "smoke" else 26 if device.type == "cpu" else 28)
    source = torch.ones(numbers, device=device)
    out = torch.zeros(numbers, device=device)

    def run() -> list[torch.Tensor]:
        return [out.copy_(source)]

    def sample() -> list[torch.Tensor]:
        return [run()[0][:: numbers // 1024]]

    expected = torch.ones(1024, device=device)
    fields = {"impl": "torch", "cell": "copy", "N": numbers, "dtype": "float32", "threads_torch": used}
    measure(Case(on_threads(run, used), fields, sample, lambda: [expected], lambda: [expected.double()],
                 bytes_min=2 * source.nbytes))  # fmt: skip


@cost(2.0)
def test_drivers(measure: Measure, device: torch.device) -> None:
    """bench/drivers: a team and a meeting of threads on a CPU; launches, barriers and trips of data on a GPU."""
    try:
        rows = floors.measured(floors.program(device), torch.get_num_threads())
    except floors.Unavailable as why:
        pytest.skip(str(why))
    measure.fact({"floors": rows}, impl="bench/drivers")
