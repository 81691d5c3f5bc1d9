"""Attention against torch's own, with torch's backend pinned by name."""

from __future__ import annotations

import pytest
import torch

from bench import layers
from bench.flops import attention as attention_flops
from bench.flops import of_mode
from bench.layers import attention
from bench.measure import Case, Measure
from bench.tiers import cost, tiers


def attention_case(
    impl: str, *, B: int, T: int, N: int, E: int, mode: str, device: torch.device, causal: bool = False
) -> Case:
    """Self-attention alone, without projections, on ``[B, N, T, E]``."""
    training = mode == "training"
    qkv = [torch.randn(B, N, T, E, device=device, requires_grad=training) for _ in range(3)]
    doubles = [t.detach().double().requires_grad_(training) for t in qkv]

    def runner(name: str, given: list[torch.Tensor]):
        attend = attention(name, device)

        def run() -> list[torch.Tensor]:
            if not training:
                with torch.inference_mode():
                    return [attend(*given, is_causal=causal)]
            for leaf in given:
                leaf.grad = None
            out = attend(*given, is_causal=causal)
            out.square().mean().backward()
            return [out.detach(), *(leaf.grad for leaf in given if leaf.grad is not None)]

        return run

    run, attend = runner(impl, qkv), attention(impl, device)
    layers.probe_attention(attend, *qkv)
    fields = {"impl": impl, "cell": "attention causal" if causal else "attention", "B": B, "T": T, "N": N, "E": E,
              "mode": mode, "dtype": "float32"}  # fmt: skip
    return Case(
        run=run, fields=fields, results=run, torchs=runner("sdpa-math", qkv), truth=runner("sdpa-math", doubles),
        forward=(lambda: attend(*qkv, is_causal=causal)) if training else None, known=qkv,
        flops=of_mode(attention_flops(B, N, T, T, E, causal), mode), bytes_min=4 * B * N * T * E * 4, tokens=B * T,
    )  # fmt: skip


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
