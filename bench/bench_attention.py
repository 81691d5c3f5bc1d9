"""Attention against torch's own, with torch's backend pinned by name."""

from __future__ import annotations

import pytest
import torch

from bench import layers
from bench.cases import attention_case
from bench.measure import Measure
from bench.tiers import cost, tiers


@tiers(T={"smoke": (16,), "standard": (128, 256, 512, 1024), "full": (128, 256, 512, 1024, 2048, 4096)})
@pytest.mark.parametrize("impl", (*layers.ATTENTION, *layers.CUDA_ONLY))
@pytest.mark.parametrize("mode", ("inference", "training"))
@cost(1.0)
def test_time(measure: Measure, device: torch.device, mode: str, impl: str, T: int) -> None:
    measure.benchmark.group = f"attention {mode}"
    measure(attention_case(impl, B=1, T=T, N=8, E=64, mode=mode, device=device))


@tiers(T={"standard": (256, 1024), "full": (256, 1024, 4096)})
@pytest.mark.parametrize("impl", (*layers.ATTENTION, *layers.CUDA_ONLY))
@cost(0.7)
def test_causal(measure: Measure, device: torch.device, impl: str, T: int) -> None:
    measure.benchmark.group = "attention causal"
    measure(attention_case(impl, B=1, T=T, N=8, E=64, mode="inference", device=device, causal=True))


@tiers(E={"standard": (32, 64, 128), "full": (16, 32, 64, 128, 256)})
@pytest.mark.parametrize("impl", tuple(layers.ATTENTION))
@cost(0.7)
def test_width(measure: Measure, device: torch.device, impl: str, E: int) -> None:
    """How time grows with the head size at fixed length."""
    measure.benchmark.group = "attention width"
    measure(attention_case(impl, B=1, T=1024, N=8, E=E, mode="inference", device=device))


@tiers(T={"standard": (4096,), "full": (1024, 4096, 16384)})
@pytest.mark.parametrize("impl", (*layers.ATTENTION, *layers.CUDA_ONLY, layers.FLASH_ATTN))
@pytest.mark.parametrize("mode", ("inference", "training"))
@cost(0.1)
def test_half(measure: Measure, device: torch.device, mode: str, impl: str, T: int) -> None:
    """In bfloat16, which the fastest kernels of a GPU are for."""
    measure.benchmark.group = f"attention bfloat16 {mode}"
    layers.skip_half_on_cpu(device)
    sizes = {"B": 1, "T": T, "N": 16, "E": 64, "mode": mode, "device": device}
    measure(attention_case(impl, dtype=torch.bfloat16, **sizes))
