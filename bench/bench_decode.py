"""One token at a time: what a step costs, and what it must remember, against the length of the context."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from bench import layers
from bench.cases import tensors
from bench.flops import attention as attention_flops
from bench.flops import linear, recurrent
from bench.measure import Case, Measure
from bench.tiers import cost, tiers

CONTEXTS = {"smoke": (8, 16), "standard": (64, 256, 1024), "full": (64, 256, 1024, 4096)}


@tiers(T=CONTEXTS)
@pytest.mark.parametrize("cell", layers.CELLS)
@cost(0.6)
def test_recurrent(measure: Measure, device: torch.device, cell: str, T: int) -> None:
    """``layer.step`` after a context of T tokens."""
    measure.benchmark.group = "decode"
    B, H = 1, 512
    layer = layers.recurrent(layers.OURS, cell, H, H).to(device).eval()
    twin = getattr(torch.nn, cell)(H, H).to(device)
    twin.load_state_dict(layer.state_dict())
    x, token = torch.randn(T, B, H, device=device), torch.randn(B, H, device=device)
    with torch.inference_mode():
        state = layer(x)[1]

    step: Any = layer.step

    def run() -> list[torch.Tensor]:
        with torch.inference_mode():
            return tensors(step(token, state)[0])

    def expected(dtype: torch.dtype) -> list[torch.Tensor]:
        net = twin.to(dtype)
        with torch.inference_mode():
            start = tuple(s.to(dtype) for s in state) if isinstance(state, tuple) else state.to(dtype)
            return [net(token.to(dtype)[None], start)[0][0]]

    remembered = sum(t.nbytes for t in tensors(state))
    fields = {"impl": layers.OURS, "cell": cell, "B": B, "T": T, "H": H, "mode": "decode", "dtype": "float32",
              "state_bytes": remembered}  # fmt: skip
    measure(Case(run, fields, run, lambda: expected(torch.float32), lambda: expected(torch.float64),
                 flops=recurrent(cell, B, 1, H, H), tokens=B))  # fmt: skip
    measure.info.update(us_per_step=measure.info["us_per_token"], launches_per_step=float(measure.info["launches"]))


@tiers(T=CONTEXTS)
@pytest.mark.parametrize("impl", ("fusednn-torch", "sdpa-math"))
@cost(0.6)
def test_attention(measure: Measure, device: torch.device, impl: str, T: int) -> None:
    """Attention of one token over a cache of T keys and values; projections are not part of it."""
    measure.benchmark.group = "decode"
    B, N, E = 1, 8, 64
    attend = layers.attention(impl, device)
    q = torch.randn(B, N, 1, E, device=device)
    k, v = (torch.randn(B, N, T, E, device=device) for _ in range(2))

    def runner(name: str, dtype: torch.dtype):
        function = layers.attention(name, device)
        given = [t.to(dtype) for t in (q, k, v)]

        def run() -> list[torch.Tensor]:
            with torch.inference_mode():
                return [function(*given)]

        return run

    def run() -> list[torch.Tensor]:
        with torch.inference_mode():
            return [attend(q, k, v)]

    fields = {"impl": impl, "cell": "attention", "B": B, "T": T, "N": N, "E": E, "H": N * E, "mode": "decode",
              "dtype": "float32", "state_bytes": k.nbytes + v.nbytes}  # fmt: skip
    measure(Case(run, fields, run, runner("sdpa-math", torch.float32), runner("sdpa-math", torch.float64),
                 flops=attention_flops(B, N, 1, T, E), bytes_min=k.nbytes + v.nbytes, tokens=B))  # fmt: skip
    measure.info.update(us_per_step=measure.info["us_per_token"], launches_per_step=float(measure.info["launches"]))


@tiers(T=CONTEXTS)
@cost(0.8)
def test_attention_layer(measure: Measure, device: torch.device, T: int) -> None:
    """``layer.step`` of multi-head attention with a cache of T tokens: the recurrent layers' interface and width."""
    measure.benchmark.group = "decode"
    B, N, H = 1, 8, 512
    layer: Any = layers.multihead(layers.OURS, H, N).to(device).eval()
    twin = layers.multihead(layers.TORCH, H, N).to(device).eval()
    twin.load_state_dict(layer.state_dict())
    x = torch.randn(B, T, H, device=device)
    token = torch.randn(B, H, device=device)
    with torch.inference_mode():
        state = layer.prefill(x)[1]

    def run() -> list[torch.Tensor]:
        with torch.inference_mode():
            return [layer.step(token, state)[0]]

    def expected(dtype: torch.dtype) -> list[torch.Tensor]:
        net, whole = twin.to(dtype), torch.cat([x, token[:, None]], 1).to(dtype)
        with torch.inference_mode():
            return [net(whole[:, -1:], whole, whole, need_weights=False)[0][:, 0]]

    fields = {"impl": layers.OURS, "cell": "attention layer", "B": B, "T": T, "N": N, "H": H, "mode": "decode",
              "dtype": "float32", "state_bytes": state.nbytes}  # fmt: skip
    work = attention_flops(B, N, 1, T + 1, H // N) + linear(B, H, 4 * H)
    measure(Case(run, fields, run, lambda: expected(torch.float32), lambda: expected(torch.float64), flops=work,
                 tokens=B))  # fmt: skip
    measure.info.update(us_per_step=measure.info["us_per_token"], launches_per_step=float(measure.info["launches"]))
