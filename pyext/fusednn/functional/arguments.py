"""What the functions of this package are given, checked before anything asks it for a dtype or a shape."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def check_tensors(**arguments: Any) -> None:
    """Raise TypeError unless each argument is a tensor."""
    for name, value in arguments.items():
        if not isinstance(value, Tensor):
            raise TypeError(f"{name} must be a tensor, got {type(value).__name__}")


def check_number(name: str, value: Any) -> None:
    """Raise TypeError unless a value is a number, or what stands for one in a graph."""
    if not isinstance(value, (int, float, torch.SymInt, torch.SymFloat)):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
