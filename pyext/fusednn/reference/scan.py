"""Linear recurrences whose gates see the input alone, in plain PyTorch: the definition of correct.

``h_t = a_t h_{t-1} + b_t`` with a and b from the pre-activations of step t. Source: L. Feng et al., "Were RNNs All We
Needed?", arXiv:2410.01201; without logarithms of h, because ``1 - sigmoid(x) = sigmoid(-x)`` loses nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class ScanCell:
    """A cell: its gates in the order of the rows of the weights, and a and b from their pre-activations."""

    gates: tuple[str, ...]
    coefficients: Callable[..., tuple[Tensor, Tensor]]


def positive(x: Tensor) -> Tensor:
    """The candidate's activation: x + 1/2 from 0 on, sigmoid(x) below."""
    return torch.where(x >= 0, x + 0.5, torch.sigmoid(x))


def _min_gru(z: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    return torch.sigmoid(-z), torch.sigmoid(z) * positive(h)


def _min_lstm(f: Tensor, i: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    share = F.logsigmoid(f) - F.logsigmoid(i)  # f and i are divided by their sum
    return torch.sigmoid(share), torch.sigmoid(-share) * positive(h)


SCAN_CELLS = {"min_gru": ScanCell(("z", "h"), _min_gru), "min_lstm": ScanCell(("f", "i", "h"), _min_lstm)}


def scan(gates: Tensor, h0: Tensor, cell: str) -> Tensor:
    """All states of a sequence: gates ``[T, B, G * H]``, h0 ``[B, H]``, returns ``[T, B, H]``."""
    definition = SCAN_CELLS[cell]
    a, b = definition.coefficients(*gates.chunk(len(definition.gates), dim=2))
    states, h = [], h0
    for a_t, b_t in zip(a, b, strict=True):
        h = a_t * h + b_t
        states.append(h)
    return torch.stack(states) if states else gates.new_empty(0, *h0.shape)
