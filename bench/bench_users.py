"""Numbers for users: what a layer gains by cell and size, what it keeps for backward, and whether training with it
comes out the same. ``python -m bench.publish --users`` makes docs/should-i-use-it.md of them.

Ratios are time of torch.nn over time of fusednn, in pairs: above 1, fusednn is faster.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from bench import curves, layers, text
from bench.bench_duel import twin_of
from bench.cases import module_case, recurrent_case
from bench.check import WrongResult, require_right, worst_error
from bench.count import parameter_count
from bench.flops import encoder, of_mode
from bench.measure import Measure
from bench.models.byte_lm import RecurrentLM
from bench.models.factory import Factory
from bench.stats import paired_ratio
from bench.tiers import cost, tiers
from bench.train import BATCH, LENGTH

BASIS = "torch.nn / fusednn"
PIECE = 64  # bytes that a trained model sees as one sequence; torch.nn's RNN and GRU pay by the step


class PiecesLM(RecurrentLM):
    """The byte model, with each window cut into pieces that start from zeros."""

    def forward(self, tokens: Tensor) -> Tensor:
        """[B, T] -> [B, T, 256]."""
        return super().forward(tokens.reshape(-1, PIECE)).unflatten(0, (tokens.shape[0], -1)).flatten(1, 2)


@tiers(
    B={"smoke": (2,), "users": (1, 8, 32)},
    H={"smoke": (16,), "users": (64, 128, 256, 512)},
    cell={"smoke": ("LSTM",), "users": layers.CELLS},
)
@pytest.mark.parametrize("mode", ("inference", "training"))
@cost(2.5)
def test_layer(measure: Measure, device: torch.device, mode: str, cell: str, B: int, H: int) -> None:
    """What a user of the layer gains, from small to large."""
    measure.benchmark.group = f"users {mode}"
    sizes = {"B": B, "T": 8 if measure.tier.name == "smoke" else 100, "H": H, "mode": mode, "device": device}
    theirs, ours = (recurrent_case(impl, cell, **sizes) for impl in (layers.TORCH, layers.OURS))
    measure.pair(theirs, ours, basis=BASIS)


@tiers(H={"users": (64, 256, 512)})
@pytest.mark.parametrize("mode", ("inference", "training"))
@cost(2.5)
def test_encoder_layer(measure: Measure, device: torch.device, mode: str, H: int) -> None:
    """A transformer's encoder layer with 8 heads, most of which is matrix products of the same library."""
    measure.benchmark.group = f"users encoder {mode}"
    B, T = 8, 100
    x, cases = torch.randn(B, T, H, device=device), []
    for impl in (layers.TORCH, layers.OURS):
        module, twin = twin_of(lambda factory: factory.encoder_layer(H, 8, 4 * H), impl, device)
        fields = {"impl": impl, "cell": "encoder layer", "B": B, "T": T, "H": H, "N": 8}
        work = of_mode(encoder(B, T, H, 4 * H, 1), mode)
        cases.append(module_case(module, twin, [x], mode, fields, flops=work, tokens=B * T))
    measure.pair(*cases, basis=BASIS)


@tiers(cell={"smoke": ("GRU",), "users": layers.CELLS})
@cost(130.0)
def test_curve(measure: Measure, device: torch.device, cell: str) -> None:
    """A byte language model, trained on both sides from the same weights on the same bytes; `curves` is the rule."""
    measure.benchmark.group = "users curves"
    try:
        data = text.load()
    except FileNotFoundError as error:
        pytest.skip(str(error))
    smoke = measure.tier.name == "smoke"
    width, steps, seeds = (16, 4, 2) if smoke else (64, measure.tier.lm_steps, measure.tier.seeds)

    def model(factory: Factory) -> PiecesLM:
        return PiecesLM(factory, cell, width)

    ours, theirs = twin_of(model, layers.OURS, device)
    check = module_case(ours, theirs, [torch.randint(256, (4, 64), device=device)], "training", {})
    assert check.results and check.torchs and check.truth
    error = require_right(worst_error(check.results(), check.torchs(), check.truth()))
    runs = measure.once(
        lambda: curves.run(model, data, cell, steps, range(seeds), device),
        impl=layers.OURS, cell=cell, mode="training", dtype="float32", B=BATCH * LENGTH // PIECE, T=PIECE, H=width,
        params=parameter_count(ours), basis=BASIS, other=f"{layers.TORCH} {cell}",
    )  # fmt: skip
    ratio = paired_ratio(*(runs.seconds[side] for side in (layers.TORCH, layers.OURS)))
    measure.info.update(
        max_err=error.max_err, err_budget=error.budget, ratio=ratio.value, ratio_low=ratio.low, ratio_high=ratio.high,
        held_out_bits=sum(bits[-1] for bits in runs.bits[layers.OURS]) / len(runs.bits[layers.OURS]),
        unigram_bits=text.unigram_bits(data.held_out), train_bytes=steps * BATCH * LENGTH,
    )  # fmt: skip
    measure.series.update(runs.as_dict(), text=data.digest)
    if not all(math.isfinite(b) for side in runs.bits.values() for bits in side for b in bits):
        raise WrongResult(f"a byte {cell} diverged: its loss is not finite")
    found = curves.distances(runs.bits)
    if not smoke and not found.within_noise:
        raise WrongResult(f"training differs by more than noise: {found}")
