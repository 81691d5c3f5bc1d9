"""Position signals of a transformer."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


def sinusoidal(length: int, width: int) -> Tensor:
    """Sines and cosines of geometrically growing wavelengths (Vaswani et al. 2017, section 3.5).  # [length, width]"""
    if width % 2:
        raise ValueError(f"width must be even, got {width}")
    position = torch.arange(length, dtype=torch.float32)[:, None]
    rate = torch.exp(-math.log(10_000.0) * torch.arange(0, width, 2, dtype=torch.float32) / width)
    out = torch.empty(length, width)
    out[:, 0::2] = torch.sin(position * rate)
    out[:, 1::2] = torch.cos(position * rate)
    return out


class LearnedPositions(nn.Module):
    """A trained vector for each position, started from sines so that neighbours are told apart from the first step."""

    def __init__(self, length: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(sinusoidal(length, width))

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, width] -> [B, T, width]."""
        return x + self.weight[: x.shape[1]]
