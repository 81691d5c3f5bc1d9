"""The Triton scan: executed by the interpreter here, and by the GPU where there is one."""

from __future__ import annotations

import os

import pytest
import torch

from fusednn.reference import scan as reference
from fusednn.reference.scan import SCAN_CELLS

triton_scan = pytest.importorskip("fusednn.triton_kernels.scan", exc_type=ImportError)
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICES = [
    pytest.param(
        "cpu", marks=pytest.mark.skipif(not INTERPRETED, reason="Triton was imported without its interpreter")
    ),
    pytest.param("cuda", marks=pytest.mark.gpu),
]


@pytest.fixture
def small_tiles(monkeypatch):
    """The interpreter walks through a scan element by element."""
    if INTERPRETED:
        monkeypatch.setattr(triton_scan, "STEPS", 4)
        monkeypatch.setattr(triton_scan, "UNITS", 4)


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("size, segments", [((1, 1, 1), 1), ((4, 1, 4), 1), ((9, 2, 5), 1), ((11, 1, 5), 3)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", sorted(SCAN_CELLS))
def test_forward_and_backward_agree_with_the_reference(kind, dtype, size, segments, device):
    T, B, H = size
    gates = (3 * torch.randn(T, B, len(SCAN_CELLS[kind].gates) * H, device=device)).to(dtype)
    h0, grad = (torch.randn(*s, device=device).to(dtype) for s in ((B, H), (T, B, H)))
    wide = [t.double().requires_grad_() for t in (gates, h0)]
    truth = reference.scan(*wide, kind)
    y = triton_scan.forward(gates, h0, kind, segments)
    d_gates, d_h0 = triton_scan.backward(grad, gates, y, h0, kind, segments)
    expected = torch.autograd.grad(truth, wide, grad.double())
    allowed = 20 * torch.finfo(dtype).eps
    for got, wanted in zip((y, d_gates, d_h0), (truth, *expected), strict=True):
        assert got.dtype == dtype
        assert (got - wanted).abs().max() <= allowed * wanted.abs().max() + allowed


def test_time_is_cut_only_where_rows_and_units_do_not_fill_a_gpu():
    assert triton_scan.segments_of(100_000, 64, 1024) == 1
    assert triton_scan.segments_of(100_000, 1, 64) == triton_scan.MOST_SEGMENTS
    assert triton_scan.segments_of(10, 1, 64) == 1
