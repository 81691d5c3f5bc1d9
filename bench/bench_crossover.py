"""Who wins where? Stacks of equal parameters over batch, length and width, in inference, training and decode.

The map and the fitted model of `bench.crossover` are drawn from these times.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bench import layers
from bench.bench_duel import maker, stack_case, stack_fields, twin_of
from bench.check import WrongResult
from bench.crossover import CROSSOVER, DECODE, KINDS, work_of
from bench.measure import Case, Measure
from bench.models import EncoderStack
from bench.models.stacks import ENCODER
from bench.tiers import cost, tiers

DRAWS = 3
SIZES = {
    "B": {"smoke": (1,), CROSSOVER: (1, 8), "full": (1, 8, 32)},
    "d": {"smoke": (32,), CROSSOVER: (64, 128, 256), "full": (64, 128, 256, 512)},
    "T": {"smoke": (8,), CROSSOVER: (16, 64, 256, 1024), "full": (16, 64, 256, 1024)},
}


@tiers(**SIZES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", ("inference", "training"))
@cost(1.5)
def test_sequence(measure: Measure, device: torch.device, mode: str, kind: str, B: int, d: int, T: int) -> None:
    """A whole sequence at once. A draw on which the check fails is followed by another, on which it must not.

    Twelve layers have many tensors, of which torch's error may be small by luck; and MinGRU's derivative jumps where a
    gate's input is zero, so a number that rounds to the other side of it moves all gradients below.
    """
    measure.benchmark.group = f"crossover {mode}"
    for draw in range(DRAWS):
        torch.manual_seed(draw)
        case = stack_case(layers.OURS, kind, "parameters", torch.randn(B, T, d, device=device), mode)
        case.fields["seed"] = draw
        try:
            measure(case)
        except WrongResult:
            if draw == DRAWS - 1:
                raise
        else:
            return


@tiers(**SIZES)
@pytest.mark.parametrize("kind", KINDS)
@cost(0.6)
def test_decode(measure: Measure, device: torch.device, kind: str, B: int, d: int, T: int) -> None:
    """One token behind T others, by ``step``: a state for recurrences, a cache of keys and values for attention."""
    measure.benchmark.group = f"crossover {DECODE}"
    measure(decode_case(kind, B, T, d, device))


def decode_case(kind: str, B: int, T: int, d: int, device: torch.device) -> Case:
    """``step`` of every layer of a stack; the truth is the last position of torch's whole, causal pass."""
    ours, twin = twin_of(maker(kind, d), layers.OURS, device)
    ours.eval()
    twin.eval()
    x, token = torch.randn(B, T, d, device=device), torch.randn(B, d, device=device)
    parts: list[Any] = list(ours.layers) if isinstance(ours, EncoderStack) else [ours]
    states, seen = [], x
    with torch.inference_mode():
        for part in parts:
            seen, state = part.prefill(seen) if kind == ENCODER else part(seen)
            states.append(state)

    def run() -> list[Tensor]:
        with torch.inference_mode():
            y = token
            for part, state in zip(parts, states, strict=True):
                y = part.step(y, state)[0]
            return [y]

    def expected(dtype: torch.dtype) -> list[Tensor]:
        with torch.inference_mode():
            return [_causal(twin.to(dtype), torch.cat([x, token[:, None]], 1).to(dtype))[:, -1]]

    fields = {**stack_fields(layers.OURS, kind, B, T, d, ours), "mode": DECODE, "dtype": "float32"}
    return Case(run, fields, run, lambda: expected(torch.float32), lambda: expected(torch.float64),
                flops=work_of(kind, DECODE, B, T, d), tokens=B)  # fmt: skip


def _causal(net: nn.Module, x: Tensor) -> Tensor:
    """What each position knows of those before it."""
    if not isinstance(net, EncoderStack):
        return net(x)[0]
    mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1], device=x.device, dtype=x.dtype)
    for layer in net.layers:
        x = layer(x, src_mask=mask, is_causal=True)
    return x
