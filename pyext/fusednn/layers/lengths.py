"""The lengths beside a padded batch of sequences."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..padded_operators import are_known


def check_padded(input: Tensor) -> None:
    """Raise unless an input that has lengths beside it is a batch."""
    if input.dim() != 3:
        raise ValueError(f"lengths are those of a padded batch, [T, B, I] or [B, T, I]; got {input.dim()} dimensions")


def check_lengths(lengths: Any, batch: int, steps: int) -> None:
    """Raise unless ``lengths`` are integers ``[B]`` from 0 to T, as far as their values are known."""
    if not isinstance(lengths, Tensor) or lengths.dtype not in (torch.int64, torch.int32, torch.int16, torch.uint8):
        got = lengths.dtype if isinstance(lengths, Tensor) else type(lengths).__name__
        raise TypeError(f"lengths must be a tensor of integers, got {got}")
    if lengths.shape != (batch,):
        raise ValueError(f"lengths must have shape [B] = [{batch}], got {list(lengths.shape)}")
    if lengths.is_meta:
        raise ValueError("lengths must have values, got a meta tensor")
    if are_known(lengths):
        outside = lengths[(lengths < 0) | (lengths > steps)]
        if outside.numel():
            raise ValueError(f"lengths must be between 0 and T = {steps}, got {outside[0].item()}")
