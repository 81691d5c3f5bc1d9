"""The numerics rule of the project, and the only table of tolerances.

Rule, per tensor: ``max|x - truth| <= 2 max|torch - truth| + floor * eps(dtype) * max|truth|``, where truth is computed
in fp64 and torch is torch's own operator in the dtype under test.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Tolerance:
    """How far a result may lie from the truth, and why."""

    times_torch: float  # multiples of torch's own error in the same dtype
    floor_eps: float  # multiples of eps(dtype) * max|truth|
    reason: str


TOLERANCES = {
    "rule": Tolerance(
        2.0, 4.0, "architecture: twice torch's own error, and 4 roundings where torch happens to be exact"
    ),
    "rows": Tolerance(
        2.0,
        16.0,
        "on a GPU a weight gradient is one library GEMM over all T * B rows; torch's recurrent layers add T small"
        " ones, whose rounding grows more slowly",
    ),
    "single": Tolerance(
        2.0,
        16.0,
        "a tensor of one element has no worst element: torch's own error in it is one draw, and may be small by luck;"
        " where the element is a sum, its terms may cancel",
    ),
    "fp64": Tolerance(2.0, 16.0, "the truth is in the same precision, so its own rounding counts too"),
    "fp64 gradient": Tolerance(
        2.0, 4096.0, "likewise, after sums of terms that cancel; gradcheck covers fp64 more sharply"
    ),
}


def assert_numerics(
    ours: torch.Tensor, torchs: torch.Tensor, truth: torch.Tensor, what: str = "tensor", row: str = "rule"
) -> None:
    """Fail unless ``ours`` meets the numerics rule. ``truth`` is fp64; ``ours`` and ``torchs`` share a dtype."""
    assert truth.dtype == torch.float64, f"truth of {what} must be float64, got {truth.dtype}"
    assert ours.dtype == torchs.dtype, f"{what}: dtype {ours.dtype}, torch gives {torchs.dtype}"
    assert ours.shape == torchs.shape == truth.shape, f"{what}: {ours.shape}, {torchs.shape}, {truth.shape}"
    if truth.numel() == 0:
        return
    assert torch.isfinite(ours).all(), f"{what}: not finite"
    rule = TOLERANCES["fp64" if ours.dtype == torch.float64 and row in ("rule", "single") else row]
    error = (ours.double() - truth).abs().max().item()
    torch_error = (torchs.double() - truth).abs().max().item()
    budget = rule.times_torch * torch_error + rule.floor_eps * torch.finfo(ours.dtype).eps * truth.abs().max().item()
    assert error <= budget, f"{what}: error {error:.3e} exceeds {budget:.3e} (torch's own {torch_error:.3e})"
