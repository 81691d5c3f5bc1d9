"""Attention with what plain PyTorch has no kernel for: ours against the code that users write, in pairs.

The ratio is time of the plain code / time of fusednn's function: above 1, ours is faster.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from bench import layers
from bench.flops import attention as attention_flops
from bench.flops import of_mode
from bench.measure import Case, Measure
from bench.models import masked_attention as plain
from bench.tiers import cost, tiers

B, N, E, WINDOW = 1, 8, 64, 64

Attend = Callable[..., Tensor]
# Name: the plain code and ours, as functions of query, key, value and one more tensor.
MODIFIERS: dict[str, tuple[Attend, Attend]] = {
    "window": (
        lambda q, k, v, x: plain.windowed(q, k, v, WINDOW),
        lambda q, k, v, x: layers.modified(q, k, v, is_causal=True, window=(WINDOW - 1, None)),
    ),
    "softcap": (
        lambda q, k, v, x: plain.softcapped(q, k, v, 30.0),
        lambda q, k, v, x: layers.modified(q, k, v, is_causal=True, softcap=30.0),
    ),
    "sink": (
        lambda q, k, v, x: plain.with_sink(q, k, v, x),
        lambda q, k, v, x: layers.modified(q, k, v, is_causal=True, sink=x),
    ),
    "alibi": (
        lambda q, k, v, x: plain.with_alibi(q, k, v, x),
        lambda q, k, v, x: layers.modified(q, k, v, is_causal=True, alibi_slopes=x),
    ),
}


def side(impl: str, attend: Attend, truth: Attend, inputs: list[Tensor], mode: str, fields: dict[str, Any]) -> Case:
    """One side of a pair; the truth is the plain code in fp64."""
    training = mode == "training"
    leaves = [t.detach().clone().requires_grad_(training) for t in inputs]
    doubles = [t.detach().double().requires_grad_(training) for t in inputs]

    def runner(function: Attend, given: list[Tensor]):
        def run() -> list[Tensor]:
            if not training:
                with torch.inference_mode():
                    return [function(*given)]
            for leaf in given:
                leaf.grad = None
            out = function(*given)
            out.square().mean().backward()
            return [out.detach(), *(leaf.grad for leaf in given if leaf.grad is not None)]

        return run

    run = runner(attend, leaves)
    return Case(
        run=run, fields={**fields, "impl": impl, "mode": mode}, results=run, torchs=runner(truth, leaves),
        truth=runner(truth, doubles), forward=(lambda: attend(*leaves)) if training else None, known=leaves,
        flops=of_mode(attention_flops(fields["B"], N, fields["T"], fields["T"], E, causal=True), mode),
        tokens=fields["B"] * fields["T"],
    )  # fmt: skip


@tiers(T={"smoke": (16,), "standard": (1024,), "full": (512, 1024, 2048, 4096)})
@pytest.mark.parametrize("name", tuple(MODIFIERS))
@pytest.mark.parametrize("mode", ("inference", "training"))
@cost(1.6)
def test_modifier(measure: Measure, device: torch.device, mode: str, name: str, T: int) -> None:
    measure.benchmark.group = f"attention modifiers {mode}"
    theirs, ours = MODIFIERS[name]
    inputs = [torch.randn(B, N, T, E, device=device) for _ in range(3)] + [torch.rand(N, device=device)]
    fields = {"cell": f"attention {name}", "B": B, "T": T, "N": N, "E": E, "dtype": "float32"}
    measure.pair(
        side("plain PyTorch", theirs, theirs, inputs, mode, fields),
        side(layers.OURS, ours, theirs, inputs, mode, fields), basis="plain code / fusednn",
    )  # fmt: skip


@tiers(T={"smoke": (16,), "standard": (512,), "full": (512, 2048)})
@pytest.mark.parametrize("mode", ("inference", "training"))
@cost(2.0)
def test_lengths(measure: Measure, device: torch.device, mode: str, T: int) -> None:
    """Eight sequences of T/8 to T tokens: padded to T, against one after another without padding."""
    measure.benchmark.group = f"attention modifiers {mode}"
    lengths = torch.arange(1, 9, device=device) * T // 8
    there = torch.arange(T, device=device) < lengths[:, None]
    starts = torch.nn.functional.pad(lengths.cumsum(0), (1, 0)).int()
    inputs = [torch.randn(8, N, T, E, device=device) for _ in range(3)]

    def padless(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """From padded tensors and back, so that both sides return the same; that copying is part of its time."""
        rows = [x.transpose(1, 2)[there] for x in (q, k, v)]
        out = q.new_zeros(8, T, N, E)
        out[there] = layers.packed(*rows, starts, starts, T, T, is_causal=True)
        return out.transpose(1, 2)

    def padded(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return plain.padded(q, k, v, lengths)

    fields = {"cell": "attention lengths", "B": 8, "T": T, "N": N, "E": E, "dtype": "float32"}
    measure.pair(
        side("plain PyTorch", padded, padded, inputs, mode, fields),
        side(layers.OURS, padless, padded, inputs, mode, fields), basis="padded / packed",
    )  # fmt: skip
