"""Recurrent layers against torch.nn: forward, and forward with backward, over time and width."""

from __future__ import annotations

import pytest
import torch

from bench import layers
from bench.cases import recurrent_case
from bench.measure import Measure
from bench.tiers import cost, tiers

IMPLS = (layers.OURS, layers.TORCH)


@tiers(T={"smoke": (8,), "standard": (50, 100, 200), "full": (50, 100, 200, 500, 1000)})
@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("cell", layers.CELLS)
@pytest.mark.parametrize("mode", ("inference", "training"))
@cost(1.2)
def test_time(measure: Measure, device: torch.device, mode: str, cell: str, impl: str, T: int) -> None:
    measure.benchmark.group = f"recurrent {cell} {mode}"
    B, H = (2, 16) if measure.tier.name == "smoke" else (8, 256)
    measure(recurrent_case(impl, cell, B=B, T=T, H=H, mode=mode, device=device))


@tiers(H={"standard": (128, 256, 512), "full": (64, 128, 256, 512, 1024)})
@pytest.mark.parametrize("impl", IMPLS)
@cost(1.0)
def test_width(measure: Measure, device: torch.device, impl: str, H: int) -> None:
    """How time grows with the width at fixed length."""
    measure.benchmark.group = "recurrent width"
    measure(recurrent_case(impl, "LSTM", B=8, T=50, H=H, mode="inference", device=device))


@tiers(T={"standard": (50, 200), "full": (10, 50, 100, 200, 500, 1000)})
@pytest.mark.parametrize("impl", IMPLS)
@cost(4.0)
def test_seed_shape(measure: Measure, device: torch.device, impl: str, T: int) -> None:
    """The seeds' shape: LSTM, B = 32, H = 512."""
    measure.benchmark.group = "recurrent seed shape"
    measure(recurrent_case(impl, "LSTM", B=32, T=T, H=512, mode="inference", device=device))


@tiers(
    T={"smoke": (8,), "standard": (200,), "full": (50, 100, 200, 500, 1000)},
    cell={"smoke": layers.SCANS, "standard": ("MinGRU",), "full": layers.SCANS},
)
@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("mode", ("inference", "training"))
@cost(1.0)
def test_scan(measure: Measure, device: torch.device, mode: str, cell: str, impl: str, T: int) -> None:
    """Recurrences without a recurrent product, against their paper's scan in torch operators."""
    measure.benchmark.group = f"recurrent scan {mode}"
    B, H = (2, 16) if measure.tier.name == "smoke" else (8, 256)
    measure(recurrent_case(impl, cell, B=B, T=T, H=H, mode=mode, device=device))


@tiers(T={"standard": (200,), "full": (200, 1000)})
@pytest.mark.parametrize("impl", (*IMPLS, *layers.FLASH_RNN))
@pytest.mark.parametrize("cell", layers.CELLS)
@pytest.mark.parametrize("mode", ("inference", "training"))
@cost(0.1)
def test_half(measure: Measure, device: torch.device, mode: str, cell: str, impl: str, T: int) -> None:
    """In bfloat16 at the seeds' shape, against cuDNN, and FlashRNN, which compiles itself for minutes."""
    measure.benchmark.group = f"recurrent bfloat16 {mode}"
    layers.skip_half_on_cpu(device)
    sizes = {"B": 32, "T": T, "H": 512, "mode": mode, "device": device}
    measure(recurrent_case(impl, cell, dtype=torch.bfloat16, **sizes))
