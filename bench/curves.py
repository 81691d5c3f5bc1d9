"""Is a loss curve the same within noise? The same model is trained three times from the same weights on the same bytes:
with torch.nn's layer, with fusednn's, and with torch.nn's once more under noise in the last bit: before every step each
weight moves to a neighbouring float, up or down at random. That is what rounding does, which no two kernels share.

Held-out loss, in bits a byte, at the same steps of all runs. The rule is that of the kernels, applied to curves: over
all seeds and steps, ``max|fusednn - torch.nn| <= 2 max|noisy - torch.nn| + 4 eps max|torch.nn|``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

import numpy as np
import torch
from torch import nn

from bench import layers
from bench.models.factory import Factory
from bench.text import Text
from bench.train import train

NOISY = "torch.nn, noisy"
SIDES = (layers.TORCH, layers.OURS, NOISY)
Curves = Mapping[str, Sequence[Sequence[float]]]  # of each side, of each seed, at each evaluation


@dataclass
class Runs:
    """What was trained: bytes seen, bits a byte and seconds of training of each side, a row a seed."""

    bytes: list[int]
    bits: dict[str, list[list[float]]]
    seconds: dict[str, list[float]]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Distances:
    """Distances in bits a byte: between the two layers, under noise alone, and between torch.nn's own seeds."""

    largest: float
    mean: float
    noise_largest: float
    noise_mean: float
    seeds_largest: float
    seeds_mean: float
    allowed: float

    @property
    def within_noise(self) -> bool:
        return self.largest <= self.allowed

    def __str__(self) -> str:
        return f"{self.largest:.2g} bits a byte where {self.allowed:.2g} are allowed"


def distances(bits: Curves) -> Distances:
    """What the curves say."""
    theirs, ours, noisy = (np.asarray(bits[side], dtype=float) for side in SIDES)  # [seeds, evaluations]
    between, noise = np.abs(ours - theirs), np.abs(noisy - theirs)
    seeds = np.stack([np.abs(a - b) for a, b in combinations(theirs, 2)])
    rounding = 4 * torch.finfo(torch.float32).eps * np.abs(theirs).max()
    return Distances(
        between.max(), between.mean(), noise.max(), noise.mean(), seeds.max(), seeds.mean(), 2 * noise.max() + rounding
    )


def add_noise(model: nn.Module, seed: int) -> None:
    """Before every forward call in train mode, move each weight to a neighbouring float, up or down at random."""
    generator = torch.Generator().manual_seed(seed)

    def nudge(module: nn.Module, inputs: Any) -> None:
        if not module.training:
            return
        with torch.no_grad():
            for p in module.parameters():
                up = torch.rand(p.shape, generator=generator) < 0.5
                p.copy_(torch.nextafter(p, torch.where(up, torch.inf, -torch.inf).to(p)))

    model.register_forward_pre_hook(nudge)


def run(
    make: Callable[[Factory], nn.Module], text: Text, cell: str, steps: int, seeds: Sequence[int], device: torch.device
) -> Runs:
    """Train every side from every seed, the sides of a seed one after the other."""
    runs = Runs([], {side: [] for side in SIDES}, {side: [] for side in SIDES})
    for seed in seeds:
        torch.manual_seed(seed)
        start = make(Factory(layers.TORCH)).state_dict()
        for side in SIDES:
            model = make(Factory(layers.OURS if side == layers.OURS else layers.TORCH)).to(device)
            model.load_state_dict(start)
            if side == NOISY:
                add_noise(model, seed)
            curve = train(model, text, cell, steps, device, seed)
            runs.bytes = curve.bytes_seen
            runs.bits[side].append(curve.bits)
            runs.seconds[side].append(curve.seconds[-1])
    return runs
