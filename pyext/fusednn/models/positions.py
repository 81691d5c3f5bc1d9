"""How a transformer knows where a token stands."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


def sinusoidal(length: int, width: int) -> Tensor:
    """Sines and cosines of geometrically growing wavelengths (Vaswani et al. 2017, section 3.5).  # [length, width]

    Raises:
        ValueError: an odd width.
    """
    if width % 2:
        raise ValueError(f"width must be even, got {width}")
    position = torch.arange(length, dtype=torch.float32)[:, None]
    rate = torch.exp(-math.log(10_000.0) * torch.arange(0, width, 2, dtype=torch.float32) / width)
    angle = position * rate
    return torch.stack([angle.sin(), angle.cos()], -1).flatten(1)


class Positions(nn.Module):
    """A vector for each position, added to the token's.

    Args:
        kind: ``sinusoidal``, fixed; or ``learned``, trained, and started from sines so that neighbours are told apart
            from the first step on.
        longest: how many positions there are.
        width: of the vectors.

    Raises:
        ValueError: another kind, or an odd width.

    Sources: Vaswani et al. 2017, section 3.5; Gehring et al., arXiv:1705.03122 (learned).
    """

    weight: Tensor

    def __init__(self, kind: str, longest: int, width: int) -> None:
        super().__init__()
        table = sinusoidal(longest, width)
        if kind == "learned":
            self.weight = nn.Parameter(table)
        elif kind == "sinusoidal":
            self.register_buffer("weight", table, persistent=False)
        else:
            raise ValueError(f"positions must be 'learned' or 'sinusoidal', got {kind!r}")

    def forward(self, x: Tensor, start: int = 0) -> Tensor:
        """Add the vectors of positions ``start`` and after.  # [B, T, width]

        Raises:
            ValueError: the sequence goes beyond the longest.
        """
        end = start + x.shape[1]
        if end > len(self.weight):
            raise ValueError(f"the model has {len(self.weight)} positions, the sequence {end}")
        return x + self.weight[start:end]


class NoPositions(nn.Module):
    """Leave the tokens as they are: what attention alone knows of order."""

    def forward(self, x: Tensor, start: int = 0) -> Tensor:
        """The same.  # [B, T, width]"""
        return x


def positions(kind: str | None, longest: int, width: int) -> Positions | NoPositions:
    """Positions of a kind; None for none."""
    return NoPositions() if kind is None else Positions(kind, longest, width)


class RelativeBias(nn.Module):
    """A trained number for each head and distance, added to the scores. Far distances share numbers, by logarithm.

    Args:
        heads: N.
        causal: count distances to the left alone, since no others are seen.
        buckets: how many numbers a head has.
        furthest: distances from here on share the last number.

    Raises:
        ValueError: fewer than 4 buckets, or a furthest distance that fits into half of them.

    Source: Raffel et al., arXiv:1910.10683, section 2.1.
    """

    def __init__(self, heads: int, causal: bool, buckets: int = 32, furthest: int = 128) -> None:
        super().__init__()
        if buckets < 4 or furthest <= buckets // 2:
            raise ValueError(f"expected buckets >= 4 and furthest > buckets / 2, got {buckets} and {furthest}")
        self.causal, self.furthest = causal, furthest
        self.weight = nn.Parameter(torch.zeros(heads, buckets))

    def forward(self, M: int, K: int) -> Tensor:
        """For M queries that stand at the last of K keys.  # [N, M, K]"""
        device = self.weight.device
        distance = torch.arange(K - M, K, device=device)[:, None] - torch.arange(K, device=device)
        return self.weight[:, self.bucket(distance)]

    def bucket(self, distance: Tensor) -> Tensor:
        """Index of the number for keys so far to the left (negative: to the right)."""
        buckets, first = self.weight.shape[1], torch.zeros_like(distance)
        if not self.causal:
            buckets //= 2
            first = buckets * (distance < 0)
            distance = distance.abs()
        distance = distance.clamp(min=0)
        exact = buckets // 2  # distances below this have a number of their own
        growth = (distance.clamp(min=exact) / exact).log() / math.log(self.furthest / exact)
        far = exact + (growth * (buckets - exact)).long()
        return first + torch.where(distance < exact, distance, far.clamp(max=buckets - 1))
