"""Is the result right? A kernel that is wrong gets no time.

The rule, per tensor: ``max|x - truth| <= 2 max|torch - truth| + 4 eps(dtype) max|truth|``, with truth in fp64 and
torch's own operator in the dtype under test as the yardstick.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


class WrongResult(AssertionError):
    """The measured code computes something else than it should."""


@dataclass(frozen=True)
class Error:
    """The error of the tensor that used up most of its budget."""

    max_err: float
    budget: float

    @property
    def ok(self) -> bool:
        return self.max_err <= self.budget  # a NaN fails

    @property
    def used(self) -> float:
        if math.isnan(self.max_err):
            return math.inf
        return self.max_err / self.budget if self.budget > 0 else (math.inf if self.max_err > 0 else 0.0)


def tensor_error(ours: Tensor, torchs: Tensor, truth: Tensor) -> Error:
    """Error and budget of one tensor."""
    if ours.shape != truth.shape or ours.dtype != torchs.dtype:
        raise WrongResult(f"got {tuple(ours.shape)} {ours.dtype}, expected {tuple(truth.shape)} {torchs.dtype}")
    if truth.numel() == 0:
        return Error(0.0, 0.0)
    error = (ours.double() - truth).abs().max().item()
    yardstick = (torchs.double() - truth).abs().max().item()
    return Error(error, 2 * yardstick + 4 * torch.finfo(ours.dtype).eps * truth.abs().max().item())


def worst_error(ours: Sequence[Tensor], torchs: Sequence[Tensor], truth: Sequence[Tensor]) -> Error:
    """The worst tensor of several, by share of its budget used."""
    if not len(ours) == len(torchs) == len(truth):
        raise WrongResult(f"{len(ours)} results, expected {len(truth)}")
    return max((tensor_error(*t) for t in zip(ours, torchs, truth, strict=True)), key=lambda e: e.used)


def require_right(error: Error) -> Error:
    """Raise `WrongResult` where the error exceeds its budget."""
    if not error.ok:
        raise WrongResult(f"error {error.max_err:.3e} exceeds the budget {error.budget:.3e}; no time is recorded")
    return error
