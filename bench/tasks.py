"""Tasks that small models are trained on. Each draws rows from torch's generator: inputs, and targets of which those at
`IGNORED` do not count. What the other tokens are says nothing of the target, so a guess gets chance.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

IGNORED = -100  # a target that does not count
Batch = tuple[tuple[Tensor, ...], Tensor]
Task = Callable[[int], Batch]  # rows to inputs and targets

SYMBOLS = 4  # of `recall`; the question is one more
COPIED = 8  # symbols of `copy`; the beginning of the target is one more
NOUNS = 8  # of `agreement`, the even ones singular; the question is one more
ORDERED = 6  # tokens of `order`: first A and B, and the question last


def asked(tokens: Tensor, question: int, answers: Tensor) -> Batch:
    """The last token becomes the question, where alone an answer counts."""
    tokens[:, -1] = question
    targets = torch.full_like(tokens, IGNORED)
    targets[:, -1] = answers
    return (tokens,), targets


def recall(rows: int, distance: int, symbols: int = SYMBOLS) -> Batch:
    """The first token, asked for after so many others."""
    tokens = torch.randint(symbols, (rows, distance + 1))
    return asked(tokens, symbols, tokens[:, 0].clone())


def copy(rows: int, length: int, symbols: int = COPIED) -> Batch:
    """Source, the target one token late, and the target: the source itself. The last symbol begins."""
    source = torch.randint(symbols, (rows, length))
    late = torch.cat([torch.full((rows, 1), symbols), source[:, :-1]], 1)
    return (source, late), source


def agreement(rows: int, distances: Sequence[int]) -> Batch:
    """The number of the verb, so far behind its subject, the first noun; the nouns between have numbers of their own.

    All rows of a batch have one distance, drawn from ``distances``.
    """
    distance = distances[int(torch.randint(len(distances), ()))]
    tokens = torch.randint(NOUNS, (rows, distance + 1))
    return asked(tokens, NOUNS, tokens[:, 0] % 2)


def order(rows: int, length: int) -> Batch:
    """Did A come before B, each of which stands once among ``length`` tokens before the question?"""
    tokens = torch.randint(2, ORDERED - 1, (rows, length + 1))
    a, b = torch.rand(rows, length).argsort(1)[:, :2].unbind(1)
    row = torch.arange(rows)
    tokens[row, a], tokens[row, b] = 0, 1
    return asked(tokens, ORDERED - 1, (a < b).long())
