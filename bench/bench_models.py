"""Whole models: the seeds' two at their shapes, and four byte-level language models of equal size, trained."""

from __future__ import annotations

import math

import pytest
import torch

from bench import layers, text
from bench.bench_duel import IMPLS, seed_cases, twin_of
from bench.cases import module_case
from bench.check import WrongResult, require_right, worst_error
from bench.count import parameter_count
from bench.measure import Measure
from bench.models import byte_lm
from bench.models.byte_lm import KINDS
from bench.tiers import cost, tiers
from bench.train import BATCH, LENGTH, train


@tiers(
    T={"standard": (10, 50, 200), "full": (10, 50, 100, 200, 500, 1000)},
    model={"standard": ("LSTM", "transformer"), "full": ("LSTM", "transformer")},
)
@pytest.mark.parametrize("impl", IMPLS)
@cost(3.0)
def test_seed_model(measure: Measure, device: torch.device, impl: str, model: str, T: int) -> None:
    measure.benchmark.group = f"models seed {model}"
    B = 32 if measure.tier.name == "full" else 2
    lstm, transformer = seed_cases(impl, B, T, "inference", device)
    measure(lstm if model == "LSTM" else transformer)


@tiers(impl={"smoke": (layers.OURS,), "standard": (layers.OURS,), "full": IMPLS})
@pytest.mark.parametrize("kind", KINDS)
@cost(12.0)
def test_byte_lm(measure: Measure, device: torch.device, kind: str, impl: str) -> None:
    """Trained on the standard library's source files; must end one bit a byte below the unigram entropy."""
    measure.benchmark.group = "models byte lm"
    try:
        data = text.load()
    except FileNotFoundError as error:
        pytest.skip(str(error))
    torch.manual_seed(0)
    model, twin = twin_of(lambda factory: byte_lm(factory, kind), impl, device)
    tokens = torch.randint(256, (4, 64), device=device)
    check = module_case(model, twin, [tokens], "training", {})  # output and every parameter's gradient
    assert check.results and check.torchs and check.truth
    error = require_right(worst_error(check.results(), check.torchs(), check.truth()))
    steps = measure.tier.lm_steps
    curve = measure.once(
        lambda: train(model, data, kind, steps, device),
        impl=impl, cell=kind, mode="training", dtype="float32", B=BATCH, T=LENGTH, params=parameter_count(model),
    )  # fmt: skip
    unigram = text.unigram_bits(data.held_out)
    trained = steps * BATCH * LENGTH
    measure.info.update(
        max_err=error.max_err, err_budget=error.budget, held_out_bits=curve.final, unigram_bits=unigram,
        train_bytes=trained, tokens_per_s=trained / curve.seconds[-1],
    )  # fmt: skip
    measure.series.update(bytes=curve.bytes_seen, seconds=curve.seconds, bits=curve.bits, text=data.digest)
    if hasattr(model, "layer"):
        measure.series["tanh_slope"] = tanh_slopes(model, data, device)
    if not all(map(math.isfinite, curve.bits)):
        raise WrongResult(f"the byte {kind} diverged: its loss is not finite")
    if measure.tier.name != "smoke":
        assert curve.final <= unigram - 1, f"{kind}: {curve.final:.2f} bits a byte, unigram {unigram:.2f}"


def tanh_slopes(model: torch.nn.Module, data: text.Text, device: torch.device) -> list[float]:
    """Medians of tanh' = 1 - h^2 over the states of the trained RNN, one for each of 16 held-out windows."""
    if type(model.layer).__name__ != "RNN":
        return []
    held = torch.frombuffer(bytearray(data.held_out[: 16 * LENGTH]), dtype=torch.uint8).long().to(device)
    with torch.no_grad():
        h, _ = model.layer(model.embedding(held.view(16, LENGTH)))  # type: ignore[operator]
    return (1 - h.square()).flatten(1).median(1).values.tolist()
