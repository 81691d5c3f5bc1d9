"""One process against two over gloo, one thread each: what splitting the sequence does for attention, and for an RNN.

The ratio is time of one process / time of two: the speed-up.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bench import layers
from bench.fleet import Fleet, fleet
from bench.flops import attention as attention_flops
from bench.flops import of_mode
from bench.flops import recurrent as recurrent_flops
from bench.measure import Case, Measure
from bench.tiers import cost, tiers

RANKS = 2
HIDDEN, BATCH = 256, 16  # of the LSTM; sequences of one batch in flight


@pytest.fixture(scope="module")
def ranks(device: torch.device) -> Iterator[Fleet]:
    """Two processes; started before a cell's watch over foreign load, which then counts them as ours."""
    if device.type != "cpu":
        pytest.skip("counts processes on CPU cores; over several GPUs it was not tried")
    if (os.cpu_count() or 1) < RANKS:
        pytest.skip("this machine has one core")
    if not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
        pytest.skip("torch was built without gloo")
    if layers.fusednn is None:
        pytest.skip(layers.MISSING)
    with fleet(RANKS) as made:
        yield made


def cases(
    ranks: Fleet, name: str, alone: tuple[Any, ...], split: tuple[Any, ...], join: Callable[[list[Tensor]], Tensor],
    expected: Callable[[torch.dtype], list[Tensor]], fields: dict[str, Any], flops: int,
) -> tuple[Case, Case]:  # fmt: skip
    """One process, which is rank 0 with the other asleep, and all ranks; the truth is computed here."""
    from bench import scale

    def side(impl: str, arguments: tuple[Any, ...], on: range) -> Case:
        def results() -> list[Tensor]:
            found = ranks(scale.results, name, *arguments, ranks=on)
            longest = max(found, key=len)  # a rank without input has no gradient of it
            return [join([given[i] for given in found if i < len(given)]) for i in range(len(longest))]

        return Case(
            lambda: ranks(scale.run, name, *arguments, ranks=on), {**fields, "impl": impl, "dtype": "float32"}, results,
            lambda: expected(torch.float32), lambda: expected(torch.float64), flops=flops,
            tokens=fields["B"] * fields["T"],
        )  # fmt: skip

    return side("one process", alone, range(1)), side(f"{RANKS} processes", split, range(RANKS))


def differentiate(function: Callable[..., Tensor], inputs: list[Tensor], mode: str) -> list[Tensor]:
    """Output, and in training the gradients of the sum of squares, as the ranks compute them."""
    leaves = [x.detach().requires_grad_(mode == "training") for x in inputs]
    out = function(*leaves)
    if mode == "training":
        out.square().sum().backward()
    return [out.detach(), *(x.grad for x in leaves if x.grad is not None)]


@tiers(
    T={"standard": (4096,), "full": (1024, 4096)},
    mode={"standard": ("inference",), "full": ("inference", "training")},
    form={
        "standard": ("all contiguous", "causal zigzag"),
        "full": ("all contiguous", "causal contiguous", "causal zigzag"),
    },
)
@cost(2.0)
def test_attention(measure: Measure, ranks: Fleet, device: torch.device, form: str, mode: str, T: int) -> None:
    """The sequence split over ranks: keys and values travel."""
    from bench import scale

    measure.benchmark.group = "scale"
    mask, layout = form.split()
    causal = mask == "causal"
    # Rank by rank the positions, and then where each position went.
    n = T // (2 * RANKS)
    pieces = [[2 * r, 2 * r + 1] if layout == "contiguous" else [r, 2 * RANKS - 1 - r] for r in range(RANKS)]
    order = torch.cat([torch.arange(p * n, (p + 1) * n) for rank in pieces for p in rank])

    def join(parts: list[Tensor]) -> Tensor:
        return parts[0] if len(parts) == 1 else torch.cat(parts, 2)[:, :, order.argsort()]

    def expected(dtype: torch.dtype) -> list[Tensor]:
        attend = layers.attention("sdpa-flash", device)
        inputs = [x.to(dtype) for x in scale.attention_inputs(T)]
        return differentiate(lambda *x: attend(*x, is_causal=causal), inputs, mode)

    fields = {
        "cell": f"attention {form}",
        "B": 1,
        "T": T,
        "N": scale.HEADS,
        "E": scale.HEAD_SIZE,
        "mode": mode,
    }
    work = of_mode(attention_flops(1, scale.HEADS, T, T, scale.HEAD_SIZE, causal), mode)
    alone, split = (T, causal, mode, None), (T, causal, mode, layout)
    measure.pair(
        *cases(ranks, "attention", alone, split, join, expected, fields, work), basis="1 process / 2 processes"
    )


@tiers(
    T={"standard": (150,), "full": (150, 600)},
    mode={"standard": ("inference",), "full": ("inference", "training")},
)
@pytest.mark.parametrize(("split", "pieces"), (("time", 1), ("time", 4), ("layers", 8)))
@cost(2.0)
def test_recurrence(measure: Measure, ranks: Fleet, split: str, pieces: int, mode: str, T: int) -> None:
    """``time``: the sequence split, with one or four batches in flight; ``layers``: a layer a rank, chunks of time."""
    from bench import scale

    measure.benchmark.group = "scale"
    depth = 1 if split == "time" else RANKS
    B = BATCH * pieces if split == "time" else BATCH

    def expected(dtype: torch.dtype) -> list[Tensor]:
        net = nn.LSTM(HIDDEN, HIDDEN, depth).to(dtype)
        for number, layer in enumerate(scale.lstms(HIDDEN, depth)):
            for name, value in layer.state_dict().items():
                getattr(net, name.replace("l0", f"l{number}")).data.copy_(value)
        return differentiate(lambda x: net(x)[0], [scale.lstm_inputs(B, T, HIDDEN).to(dtype)], mode)

    what = f"time, {pieces} in flight" if split == "time" else f"layers, {pieces} chunks"
    fields = {"cell": f"LSTM {what}", "B": B, "T": T, "H": HIDDEN, "mode": mode}
    work = of_mode(recurrent_flops("LSTM", B, T, HIDDEN, HIDDEN, depth), mode)
    alone, cut = ((B, T, HIDDEN, depth, mode, how, pieces) for how in (None, split))
    measure.pair(
        *cases(ranks, "recurrence", alone, cut, torch.cat, expected, fields, work), basis="1 process / 2 processes"
    )
