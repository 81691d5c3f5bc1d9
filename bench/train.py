"""Training of a byte model for a fixed number of steps, with its loss against seconds and against bytes."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from bench.clock import settle
from bench.text import Text

BATCH, LENGTH = 16, 128
RATE = {"RNN": 2e-3, "LSTM": 6e-3, "GRU": 4e-3, "MinGRU": 4e-3, "transformer": 8e-3}
EVALUATIONS = 16
HELD_OUT_WINDOWS = 64


@dataclass
class Curve:
    """Held-out loss in bits a byte against bytes seen and against seconds of training (evaluation not counted)."""

    bytes_seen: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    bits: list[float] = field(default_factory=list)

    @property
    def final(self) -> float:
        return self.bits[-1]


def windows(data: Tensor, starts: Tensor, length: int = LENGTH) -> tuple[Tensor, Tensor]:
    """Inputs and targets ``[len(starts), length]``, the target one byte later."""
    index = starts[:, None] + torch.arange(length + 1, device=data.device)
    rows = data[index]
    return rows[:, :-1], rows[:, 1:]


def bits_per_byte(model: nn.Module, data: Tensor, count: int = HELD_OUT_WINDOWS) -> float:
    """Mean loss over evenly spread windows; each starts without context."""
    starts = torch.linspace(0, data.numel() - LENGTH - 2, count, device=data.device).long()
    x, y = windows(data, starts)
    model.eval()
    with torch.no_grad():
        loss = nn.functional.cross_entropy(model(x).flatten(0, 1).float(), y.flatten())
    model.train()
    return loss.item() / math.log(2)


def train(
    model: nn.Module, text: Text, kind: str, steps: int, device: torch.device, seed: int = 0,
    share: slice = slice(None), rate: float | None = None,
) -> Curve:  # fmt: skip
    """Train with AdamW, a warm-up and a cosine to zero, norms clipped to 1. The same seed gives the same bytes.

    ``share`` is what this process takes of every batch, where the model averages its gradients with those of others.
    ``rate`` is the one of `RATE` unless another is given.
    """
    generator = torch.Generator().manual_seed(seed)
    data = torch.frombuffer(bytearray(text.train), dtype=torch.uint8).long().to(device)
    held = torch.frombuffer(bytearray(text.held_out), dtype=torch.uint8).long().to(device)
    optimiser = torch.optim.AdamW(model.parameters(), lr=rate or RATE[kind], betas=(0.9, 0.95), weight_decay=0.01)
    warm = max(steps // 20, 1)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser,
        lambda s: min((s + 1) / warm, 0.5 * (1 + math.cos(math.pi * min(s / steps, 1.0)))),
    )
    every = max(steps // EVALUATIONS, 5)
    curve, spent = Curve(), 0.0
    model.train()
    for step in range(steps + 1):
        if step % every == 0 or step == steps:
            curve.bytes_seen.append(step * BATCH * LENGTH)
            curve.seconds.append(spent)
            curve.bits.append(bits_per_byte(model, held))
        if step == steps:
            break
        settle(device)
        begun = time.perf_counter()
        starts = torch.randint(data.numel() - LENGTH - 1, (BATCH,), generator=generator)[share].to(device)
        x, y = windows(data, starts)
        optimiser.zero_grad(set_to_none=True)
        nn.functional.cross_entropy(model(x).flatten(0, 1), y.flatten()).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        settle(device)
        spent += time.perf_counter() - begun
    return curve
