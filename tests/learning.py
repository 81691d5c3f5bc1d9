"""Tasks that a sequence model must learn, and the training and judging of one."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

IGNORED = -100  # a target that does not count
TEXT = (
    "A recurrent network reads one word after the other and keeps what it knows in a state of fixed size; attention "
    "keeps every word, and looks back at all of them. "
)
ALPHABET = sorted(set(TEXT))
Task = Callable[[int], tuple[tuple[Tensor, ...], Tensor]]  # rows to inputs and targets


def text(rows: int, length: int = 40) -> tuple[tuple[Tensor, ...], Tensor]:
    """The next character, after ten that say where in the text we are."""
    data = encode(TEXT * 2)
    index = torch.randint(len(TEXT), (rows, 1)) + torch.arange(length + 1)
    found = data[index % len(TEXT)]
    targets = found[:, 1:].clone()
    targets[:, :10] = IGNORED
    return (found[:, :-1],), targets


def encode(characters: str) -> Tensor:
    return torch.tensor([ALPHABET.index(c) for c in characters])


def recall(rows: int, distance: int, symbols: int = 4) -> tuple[tuple[Tensor, ...], Tensor]:
    """The first token, asked for after so many others."""
    tokens = torch.randint(symbols, (rows, distance + 1))
    tokens[:, -1] = symbols  # the question
    targets = torch.full_like(tokens, IGNORED)
    targets[:, -1] = tokens[:, 0]
    return (tokens,), targets


def copy(rows: int, length: int, symbols: int = 8) -> tuple[tuple[Tensor, ...], Tensor]:
    """Source, the target one token late, and the target: the source itself. The last symbol begins."""
    source = torch.randint(symbols, (rows, length))
    late = torch.cat([torch.full((rows, 1), symbols), source[:, :-1]], 1)
    return (source, late), source


def sort(rows: int, length: int = 6, symbols: int = 10) -> tuple[tuple[Tensor, ...], Tensor]:
    """Likewise of different symbols, the target in their order."""
    source = torch.rand(rows, symbols).argsort(1)[:, :length]
    target = source.sort(1).values
    return (source, torch.cat([torch.full((rows, 1), symbols), target[:, :-1]], 1)), target


def train(model: nn.Module, task: Task, steps: int, rate: float, rows: int = 32, clip: float = 1.0) -> nn.Module:
    """Adam, its rate falling to zero, gradients clipped to a norm."""
    optimiser = torch.optim.Adam(model.parameters(), rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: min(1.0, (step + 1) / 10) * (1 - step / steps))
    for _ in range(steps):
        inputs, targets = task(rows)
        optimiser.zero_grad()
        F.cross_entropy(logits_of(model, inputs).flatten(0, 1), targets.flatten(), ignore_index=IGNORED).backward()
        nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimiser.step()
        schedule.step()
    return model.eval()


def logits_of(model: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
    found = model(*inputs)
    return found[0] if isinstance(found, tuple) else found


@torch.no_grad()
def accuracy(model: nn.Module, task: Task, rows: int = 512) -> float:
    """Share of the targets that count and are the likeliest."""
    inputs, targets = task(rows)
    right = logits_of(model, inputs).argmax(-1) == targets
    return right[targets != IGNORED].double().mean().item()
