"""Do gradients vanish, explode, or arrive? fp64, many seeds, distance by distance."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from bench import gradients as g
from bench import layers
from bench.check import WrongResult
from bench.measure import Measure
from bench.stats import aic, line_slope, mean
from bench.tiers import cost, tiers

DESCENT, DESCENT_RATE = 10, 1e-3  # steps before the slope is taken with and without clipping; norms are about 100


def _slope(measure: Measure, values: list[float], of: str) -> None:
    got = mean(values)
    measure.info.update(slope=got.value, slope_low=got.low, slope_high=got.high, slope_of=of)


def _agrees_with_torch(net: nn.Module, kind: str, T: int) -> tuple[float, float]:
    """Both sides are fp64, so neither is the truth: they must agree to 1e-9 of the largest gradient."""
    twin = g.network(kind, layers.TORCH)
    twin.load_state_dict(net.state_dict())
    ours = g.backward(net, T, torch.Generator().manual_seed(0))[0]
    theirs = g.backward(twin, T, torch.Generator().manual_seed(0))[0]
    error, budget = (ours - theirs).abs().max().item(), 1e-9 * theirs.abs().max().item()
    if not error <= budget:
        raise WrongResult(f"gradients differ from torch's by {error:.3e}, more than {budget:.3e}")
    return error, budget


@tiers(T={"smoke": (25,), "standard": (100,), "full": (200,)})
@pytest.mark.parametrize("kind", g.KINDS)
@cost(1.5)
def test_distance(measure: Measure, kind: str, T: int) -> None:
    """Slope of log10 |dL/dx| against distance; negative is vanishing, positive exploding."""
    measure.benchmark.group = "gradients distance"
    error, budget = _agrees_with_torch(g.network(kind), kind, T)

    def run() -> list[torch.Tensor]:
        out = []
        for seed in range(measure.tier.seeds):
            torch.manual_seed(seed)
            net = g.network(kind)
            out.append(g.by_distance(g.backward(net, T, torch.Generator().manual_seed(seed))[0]))
        return out

    norms = measure.once(run, impl=layers.OURS, cell=kind, T=T, H=g.WIDTH, B=g.BATCH, dtype="float64", mode="training")
    measure.info.update(max_err=error, err_budget=budget)
    _slope(measure, [g.log_slope(n) for n in norms], "log10 |dL/dx| a step of distance")
    stacked = torch.stack(norms).clamp_min(1e-300).log10()
    measure.series["log10_norm"] = stacked.mean(0).tolist()


@tiers(lengths={"smoke": ((10, 25),), "standard": ((10, 25, 50, 100, 200),), "full": ((10, 25, 50, 100, 200),)})
@cost(3.0)
def test_parameters(measure: Measure, lengths: tuple[int, ...]) -> None:
    """The norm of the parameters' gradient against T, which is another question."""
    measure.benchmark.group = "gradients parameters"

    def run() -> list[float]:
        slopes = []
        for seed in range(measure.tier.seeds):
            torch.manual_seed(seed)
            net = g.network("RNN")
            norms = [g.backward(net, T, torch.Generator().manual_seed(seed))[1].log10().item() for T in lengths]
            slopes.append(line_slope(lengths, norms))
        return slopes

    slopes = measure.once(run, impl=layers.OURS, cell="RNN", H=g.WIDTH, B=g.BATCH, dtype="float64", mode="training")
    _slope(measure, slopes, "log10 |dL/dparameters| a step of T")


@tiers(T={"smoke": (25,), "standard": (100,), "full": (200,)})
@cost(1.0)
def test_clipping(measure: Measure, T: int) -> None:
    """The norm after clipping to 1, where it explodes without."""
    measure.benchmark.group = "gradients clipping"

    def run() -> list[float]:
        after = []
        for seed in range(measure.tier.seeds):
            torch.manual_seed(seed)
            net = g.network("RNN radius 1.5")
            g.backward(net, T, torch.Generator().manual_seed(seed))
            nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            grads = [p.grad.norm() for p in net.parameters() if p.grad is not None]
            after.append(torch.stack(grads).norm().item())
        return after

    norms = measure.once(run, impl=layers.OURS, cell="RNN radius 1.5", T=T, H=g.WIDTH, B=g.BATCH, dtype="float64",
                         mode="training")  # fmt: skip
    got = mean(norms)
    measure.info.update(slope=max(norms), slope_low=got.low, slope_high=max(norms), slope_of="norm after clipping to 1")


@tiers(T={"smoke": (25,), "standard": (25,), "full": (100,)})
@cost(1.0)
def test_clipped_training(measure: Measure, T: int) -> None:
    """The slope of log10 |dL/dx| after descent with gradients clipped to 1, less that after as many steps without."""
    measure.benchmark.group = "gradients clipping"
    acted: list[float] = []

    def slope(seed: int, clipped: bool) -> float:
        torch.manual_seed(seed)
        net, draws = g.network("RNN"), torch.Generator().manual_seed(seed)
        optimiser = torch.optim.SGD(net.parameters(), DESCENT_RATE)
        for _ in range(DESCENT):
            norm = g.backward(net, T, draws)[1].item()
            if clipped:
                acted.append(float(norm > 1))
                nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimiser.step()
        return g.log_slope(g.by_distance(g.backward(net, T, draws)[0]))

    def run() -> list[tuple[float, float]]:
        return [(slope(seed, True), slope(seed, False)) for seed in range(measure.tier.seeds)]

    slopes = measure.once(run, impl=layers.OURS, cell="RNN", T=T, H=g.WIDTH, B=g.BATCH, dtype="float64",
                          mode="training")  # fmt: skip
    if not any(acted):
        raise WrongResult("no gradient was large enough to be clipped")
    _slope(measure, [a - b for a, b in slopes], "log10 |dL/dx| a step of distance, clipped less unclipped")
    measure.series.update(slopes=slopes, clipped_share=sum(acted) / len(acted))


@tiers(T={"smoke": (25,), "standard": (100,), "full": (200,)})
@cost(2.0)
def test_attention(measure: Measure, T: int) -> None:
    """dL/dx through one encoder layer: does it fall as a power of the distance or exponentially?"""
    measure.benchmark.group = "gradients attention"
    d = 48

    def run() -> list[torch.Tensor]:
        out = []
        for seed in range(measure.tier.seeds):
            torch.manual_seed(seed)
            net = layers.encoder_layer(layers.OURS, d, 4, 4 * d, dtype=torch.float64)
            x = torch.randn(4, T, d, dtype=torch.float64, requires_grad=True)
            (net(x)[:, -1] * torch.randn(4, d, dtype=torch.float64)).sum().backward()
            assert x.grad is not None
            out.append(g.by_distance(x.grad)[1:])
        return out

    norms = measure.once(run, impl=layers.OURS, cell="attention", T=T, H=d, B=4, dtype="float64", mode="training")
    distance = torch.arange(1, T, dtype=torch.float64)
    gains = [aic(distance.tolist(), n.log().tolist()) - aic(distance.log().tolist(), n.log().tolist()) for n in norms]
    _slope(measure, gains, "AIC of exponential - AIC of power law")
    measure.series["log10_norm"] = torch.stack(norms).log10().mean(0).tolist()
    measure.series["slopes"] = [g.log_slope(n) for n in norms]
