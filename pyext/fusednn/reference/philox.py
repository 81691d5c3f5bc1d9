"""Philox4x32-10, random words from a counter.

Source: Salmon et al. 2011, *Parallel random numbers: as easy as 1, 2, 3*.
"""

from __future__ import annotations

import torch
from torch import Tensor


def draw(seed: Tensor, number: Tensor, *counter: Tensor) -> Tensor:
    """Word ``number % 4`` of the counter ``(number // 4, *counter)``, below 2^32.

    Args:
        seed: of one element, whose two halves are the key; int64, as all others are.
        number: with the three counters it broadcasts.
    """
    low = 0xFFFFFFFF
    drawn = [number >> 2, *counter]
    key = [seed & low, (seed >> 32) & low]
    for _ in range(10):  # products wrap around in 64 bits, which leaves their two halves right
        first, second = drawn[0] * 0xD2511F53, drawn[2] * 0xCD9E8D57
        drawn = [
            ((second >> 32) & low) ^ drawn[1] ^ key[0],
            second & low,
            ((first >> 32) & low) ^ drawn[3] ^ key[1],
            first & low,
        ]
        key = [(key[0] + 0x9E3779B9) & low, (key[1] + 0xBB67AE85) & low]
    word, mine = number & 3, drawn[3]
    for k in range(3):
        mine = torch.where(word == k, drawn[k], mine)
    return mine


def limit_of(probability: float) -> int:
    """A word below this is drawn with ``probability``."""
    return min(round(probability * 2**32), 2**32 - 1)
