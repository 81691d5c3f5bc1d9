"""Recurrence against attention, in pairs: A and B in turn, round by round, on three bases of fairness.

``posed``: the seeds' two models as they are. ``parameters``: stacks with equal parameters. ``flops``: stacks with equal
arithmetic. The ratio is time of the recurrent side / time of the attention side: above 1, attention is faster.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend

from bench import layers
from bench.cases import module_case, recurrent_case
from bench.check import WrongResult
from bench.count import SavedBytes, parameter_count
from bench.flops import encoder, linear, of_mode, recurrent
from bench.measure import Case, Measure
from bench.models import EncoderStack, Factory, SeedLSTM, SeedTransformer, recurrent_stack
from bench.models.seeds import HEADS, LAYERS, VOCABULARY, WIDTH
from bench.models.stacks import ENCODER, equal_flops_ff, stack_flops
from bench.tiers import cost, tiers

IMPLS = (layers.OURS, layers.TORCH)
BUDGET = 1 << 30  # bytes for training


def twin_of(make, impl: str, device: torch.device) -> tuple[nn.Module, nn.Module]:
    """A model of ``impl`` and torch's own with the same parameters."""
    module, twin = make(Factory(impl)).to(device), make(Factory(layers.TORCH)).to(device)
    twin.load_state_dict(module.state_dict())
    return module, twin


def seed_cases(impl: str, B: int, T: int, mode: str, device: torch.device) -> tuple[Case, Case]:
    """The seeds' LSTM and transformer over the same tokens."""
    tokens = torch.randint(VOCABULARY, (B, T), device=device)
    head = linear(B * T, WIDTH, VOCABULARY)
    work = {"LSTM": recurrent("LSTM", B, T, WIDTH, WIDTH), "transformer": encoder(B, T, WIDTH, 4 * WIDTH, LAYERS)}
    made = []
    for name, make in (("LSTM", SeedLSTM), ("transformer", SeedTransformer)):
        module, twin = twin_of(make, impl, device)
        fields = {"impl": impl, "cell": f"seed {name}", "B": B, "T": T, "H": WIDTH, "N": HEADS,
                  "params": parameter_count(module)}  # fmt: skip
        made.append(
            module_case(module, twin, [tokens], mode, fields, flops=of_mode(work[name] + head, mode), tokens=B * T)
        )
    return made[0], made[1]


def maker(kind: str, d: int, ff: int | None = None) -> Callable[[Factory], nn.Module]:
    """Makes a stack of width ``d``: recurrent layers of a cell, or ``encoder`` layers."""
    if kind == ENCODER:
        return lambda f: EncoderStack(f, d, HEADS, ff)
    return lambda f: recurrent_stack(f, kind, d)


def stack_fields(impl: str, kind: str, B: int, T: int, d: int, module: nn.Module) -> dict[str, Any]:
    return {"impl": impl, "cell": f"{kind} stack", "B": B, "T": T, "H": d, "params": parameter_count(module)}


def stack_case(impl: str, kind: str, basis: str, x: torch.Tensor, mode: str) -> Case:
    """One stack over x [B, T, d]."""
    B, T, d = x.shape
    ff = equal_flops_ff(d, T) if basis == "flops" else 4 * d
    module, twin = twin_of(maker(kind, d, ff), impl, x.device)
    work = of_mode(stack_flops(kind, B, T, d, ff), mode)
    return module_case(module, twin, [x], mode, stack_fields(impl, kind, B, T, d, module), flops=work, tokens=B * T)


def stack_cases(
    impl: str, cell: str, basis: str, B: int, T: int, d: int, mode: str, device: torch.device
) -> tuple[Case, Case]:
    """Stacks of width ``d`` with equal parameters, or with equal FLOPs at this T, over the same input."""
    x = torch.randn(B, T, d, device=device)
    return stack_case(impl, cell, basis, x, mode), stack_case(impl, ENCODER, basis, x, mode)


@tiers(T={"standard": (25, 200), "full": (10, 25, 50, 100, 200, 500, 1000)})
@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("mode", ("inference", "training"))
@cost(5.0)
def test_posed(measure: Measure, device: torch.device, mode: str, impl: str, T: int) -> None:
    measure.benchmark.group = f"duel posed {mode}"
    B = 32 if measure.tier.name == "full" else 2
    measure.pair(*seed_cases(impl, B, T, mode, device), basis="posed")


@tiers(
    T={"smoke": (8,), "standard": (16, 200), "full": (10, 50, 100, 200, 500, 1000)},
    cell={"smoke": ("LSTM",), "standard": ("LSTM",), "full": ("LSTM", "GRU", "RNN")},
)
@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("mode", ("inference", "training"))
@pytest.mark.parametrize("basis", ("parameters", "flops"))
@cost(2.0)
def test_stacks(measure: Measure, device: torch.device, basis: str, mode: str, impl: str, cell: str, T: int) -> None:
    measure.benchmark.group = f"duel {basis} {mode}"
    B, d = (2, 32) if measure.tier.name == "smoke" else (2, 256)
    measure.pair(*stack_cases(impl, cell, basis, B, T, d, mode, device), basis=basis)


@tiers(T={"standard": (200,), "full": (50, 200, 1000)}, cell={"standard": ("MinGRU",), "full": layers.SCANS})
@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("mode", ("inference", "training"))
@cost(3.0)
def test_scan_stacks(measure: Measure, device: torch.device, mode: str, impl: str, cell: str, T: int) -> None:
    """The third contender: a recurrence whose steps run in parallel, at equal parameters (and so at equal FLOPs)."""
    measure.benchmark.group = f"duel scan {mode}"
    measure.pair(*stack_cases(impl, cell, "parameters", 2, T, 256, mode, device), basis="parameters")


@tiers(T={"standard": (100,), "full": (100, 500)})
@pytest.mark.parametrize("rung", layers.rungs())
@pytest.mark.parametrize("cell", layers.CELLS)
@cost(1.5)
def test_both_directions(measure: Measure, device: torch.device, cell: str, rung: str, T: int) -> None:
    """Two directions over one."""
    measure.benchmark.group = "duel directions"
    sizes = {"B": 4, "T": T, "H": 128, "mode": "inference", "device": device}
    both, one = (recurrent_case(rung, cell, bidirectional=b, **sizes) for b in (True, False))
    measure.pair(both, one, basis="both directions / one")


@tiers(T={"standard": (100,), "full": (100, 500)})
@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("mode", ("inference", "training"))
@pytest.mark.parametrize("H", (64, 256))
@cost(1.5)
def test_lstm_over_gru(measure: Measure, device: torch.device, H: int, mode: str, impl: str, T: int) -> None:
    measure.benchmark.group = "duel LSTM / GRU"
    sizes = {"B": 4, "T": T, "H": H, "mode": mode, "device": device}
    lstm, gru = (recurrent_case(impl, cell, **sizes) for cell in ("LSTM", "GRU"))
    measure.pair(lstm, gru, basis="LSTM / GRU")


@tiers(T={"standard": (512,), "full": (512,)})
@pytest.mark.parametrize("impl", IMPLS)
@cost(5.0)
def test_long_training(measure: Measure, device: torch.device, impl: str, T: int) -> None:
    """Training at T = 512 at equal parameters, which the seeds put at 3.4 to 1."""
    measure.benchmark.group = "duel parameters training"
    measure.pair(*stack_cases(impl, "LSTM", "parameters", 2, T, 256, "training", device), basis="parameters")


@tiers(T={"standard": (512,), "full": (512,)}, side={"standard": ("LSTM",), "full": ("LSTM", "encoder")})
@cost(3.0)
def test_flash(measure: Measure, device: torch.device, side: str, T: int) -> None:
    """Training of our LSTM, or of torch's encoder by the math backend, over torch's encoder by the flash one."""
    measure.benchmark.group = "duel flash"
    if device.type == "cuda":
        pytest.skip("torch's flash backend takes no fp32 on a GPU")
    lstm = stack_cases(layers.OURS, "LSTM", "parameters", 1, T, 256, "training", device)[0]
    encoder = stack_cases(layers.TORCH, "LSTM", "parameters", 1, T, 256, "training", device)[1]
    measure.pair(lstm if side == "LSTM" else on_backend(encoder, SDPBackend.MATH),
                 on_backend(encoder, SDPBackend.FLASH_ATTENTION), basis="parameters")  # fmt: skip


def on_backend(case: Case, backend: SDPBackend) -> Case:
    """The same case, with torch's attention on one backend."""
    assert case.forward is not None
    run = layers.pinned(backend, case.run)
    words = "math" if backend == SDPBackend.MATH else "flash"
    fields = {**case.fields, "cell": f"{case.fields['cell']} by the {words} backend"}
    return replace(case, run=run, results=run, forward=layers.pinned(backend, case.forward), fields=fields)


@tiers(T={"smoke": (64,), "standard": (512,), "full": (512,)})
@pytest.mark.parametrize("impl", IMPLS)
@cost(0.5)
def test_largest_batch(measure: Measure, device: torch.device, impl: str, T: int) -> None:
    """Sequences that fit into `BUDGET` beside weights, gradients and Adam's moments, by the bytes kept for backward."""
    d = 32 if measure.tier.name == "smoke" else 256
    batch, bytes_each = {}, {}
    for name in ("LSTM", ENCODER):
        module = maker(name, d)(Factory(impl)).to(device)

        def kept(B: int, module: nn.Module = module) -> int:
            x = torch.randn(B, T, d, device=device)
            return SavedBytes([x, *module.parameters()]).measure(lambda: module(x))

        two, three, five = kept(2), kept(3), kept(5)  # a batch of one shares tensors that others copy
        each = three - two
        if abs(five - two - 3 * each) > 0.01 * five:
            raise WrongResult(f"the bytes that the {name} keeps are not linear in the batch: {two}, {three}, {five}")
        fixed = two - 2 * each + 16 * parameter_count(module)  # weight, gradient and two moments of four bytes
        batch[name], bytes_each[name] = (BUDGET - fixed) // each, each
    measure.fact({"impl": impl, "batch": batch, "bytes_each": bytes_each}, impl=impl, T=T, H=d, mode="training",
                 dtype="float32", basis="parameters")  # fmt: skip
