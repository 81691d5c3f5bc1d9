"""Tasks that a sequence model must learn, beside those of bench/tasks.py."""

from __future__ import annotations

import torch
from torch import Tensor

from bench.tasks import IGNORED, Batch

TEXT = (
    "A recurrent network reads one word after the other and keeps what it knows in a state of fixed size; attention "
    "keeps every word, and looks back at all of them. "
)
ALPHABET = sorted(set(TEXT))


def text(rows: int, length: int = 40) -> Batch:
    """The next character, after ten that say where in the text we are."""
    data = encode(TEXT * 2)
    index = torch.randint(len(TEXT), (rows, 1)) + torch.arange(length + 1)
    found = data[index % len(TEXT)]
    targets = found[:, 1:].clone()
    targets[:, :10] = IGNORED
    return (found[:, :-1],), targets


def encode(characters: str) -> Tensor:
    return torch.tensor([ALPHABET.index(c) for c in characters])


def sort(rows: int, length: int = 6, symbols: int = 10) -> Batch:
    """As `bench.tasks.copy` of different symbols, the target in their order."""
    source = torch.rand(rows, symbols).argsort(1)[:, :length]
    target = source.sort(1).values
    return (source, torch.cat([torch.full((rows, 1), symbols), target[:, :-1]], 1)), target
