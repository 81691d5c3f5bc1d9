"""Training of small models on tasks, and the rule that gives every model its learning rate: the one of `RATES` with the
least loss after the same training from a seed that is not measured.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.count import parameter_count
from bench.tasks import IGNORED, Task

RATES = (2e-3, 5e-3, 1e-2)
TUNING = 1000  # the seed on which the rate is chosen; measured are 0, 1, ...


def train(model: nn.Module, task: Task, steps: int, rate: float, rows: int = 32, clip: float = 1.0) -> nn.Module:
    """Adam, its rate falling to zero, gradients clipped to a norm."""
    optimiser = torch.optim.Adam(model.parameters(), rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: min(1.0, (step + 1) / 10) * (1 - step / steps))
    for _ in range(steps):
        inputs, targets = task(rows)
        optimiser.zero_grad()
        _loss(logits_of(model, inputs), targets).backward()
        nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimiser.step()
        schedule.step()
    return model.eval()


def logits_of(model: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
    found = model(*inputs)
    return found[0] if isinstance(found, tuple) else found


def _loss(logits: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED)


@torch.no_grad()
def accuracy(model: nn.Module, task: Task, rows: int = 512) -> float:
    """Share of the targets that count and are the likeliest."""
    inputs, targets = task(rows)
    right = logits_of(model, inputs).argmax(-1) == targets
    return right[targets != IGNORED].double().mean().item()


@torch.no_grad()
def loss(model: nn.Module, task: Task, rows: int = 512) -> float:
    """Cross-entropy on fresh rows; infinite where training diverged."""
    inputs, targets = task(rows)
    found = _loss(logits_of(model, inputs), targets).item()
    return found if math.isfinite(found) else math.inf


def learn(
    make: Callable[[], nn.Module], task: Task, steps: int, seeds: Iterable[int], rows: int = 32,
    judge: Callable[[nn.Module], Any] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Train from each seed at the model's best rate: what ``judge`` says of each (its accuracy), and what was held."""

    def trained(seed: int, rate: float) -> nn.Module:
        torch.manual_seed(seed)
        return train(make(), task, steps, rate, rows)

    losses = [loss(trained(TUNING, rate), task) for rate in RATES]
    rate = RATES[losses.index(min(losses))]
    judge = judge or (lambda model: accuracy(model, task))
    return {"accuracy": [judge(trained(seed, rate)) for seed in seeds], "steps": steps, "rows": rows, "rate": rate,
            "tuning": dict(zip(map(str, RATES), losses, strict=True)), "params": parameter_count(make())}  # fmt: skip
