"""Can more cores speed up one sequence? One thread against all of them, in pairs, B = 1."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from bench import layers
from bench.cases import on_threads, recurrent_case
from bench.measure import Measure
from bench.tiers import cost, tiers


@tiers(H={"standard": (512,), "full": (128, 512, 1024)})
@pytest.mark.parametrize("impl", (layers.OURS, layers.TORCH))
@cost(2.0)
def test_one_sequence(measure: Measure, device: torch.device, impl: str, H: int) -> None:
    measure.benchmark.group = "cores"
    if device.type != "cpu":
        pytest.skip("counts CPU cores; on a GPU the number of multiprocessors used is the question")
    every = torch.get_num_threads()
    if every < 2:
        pytest.skip("this machine has one core for torch")
    case = recurrent_case(impl, "LSTM", B=1, T=100, H=H, mode="inference", device=device)
    one = replace(case, run=on_threads(case.run, 1), fields={**case.fields, "threads_torch": 1})
    measure.pair(one, case, basis=f"1 thread / {every} threads")
