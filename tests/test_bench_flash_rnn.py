"""FlashRNN as a contender: torch.nn's parameters in its layouts.

A stand-in computes its paper's equations in the layouts that its README gives; the package itself needs a GPU.
"""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
import torch

from bench import check, layers
from bench.cases import recurrent_case

CPU = torch.device("cpu")


def elman(wx, ry, b, states):
    return [torch.tanh(wx[0] + ry[0] + b[0])]


def lstm(wx, ry, b, states):
    i, f, z, o = wx + ry + b
    c = torch.sigmoid(f) * states[1] + torch.sigmoid(i) * torch.tanh(z)
    return [torch.sigmoid(o) * torch.tanh(c), c]


def gru(wx, ry, b, states):
    """Three recurrent gates n, r, z; three of the input r, z, n; four biases, one for each n and both others."""
    r, z = torch.sigmoid(wx[0] + ry[1] + b[1]), torch.sigmoid(wx[1] + ry[2] + b[2])
    return [z * states[0] + (1 - z) * torch.tanh(wx[2] + b[3] + r * (ry[0] + b[0]))]


CELLS = {"elman": (elman, 1), "lstm": (lstm, 2), "gru": (gru, 1)}


def flashrnn(Wx, R, b, states=None, function="lstm", config=None, backend="cuda_fused", dtype="bfloat16"):
    """From Wx [B, T, G, heads, H], R [G, heads, H, previous H] and b [G, heads, H] to states [S, B, T, heads, H]."""
    assert Wx.dtype == R.dtype == b.dtype == getattr(torch, dtype) and config is None and states is None
    assert Wx.shape[2:] == (R.shape[0], 1, R.shape[2]) and R.shape[2] == R.shape[3] and b.shape[1:] == Wx.shape[3:]
    step, count = CELLS[function]
    state, steps = [torch.zeros_like(Wx[:, 0, 0]) for _ in range(count)], []
    for wx in Wx.unbind(1):
        ry = torch.einsum("ghdp,bhp->gbhd", R, state[0])
        state = step(wx.transpose(0, 1), ry, b.unsqueeze(1), state)
        steps.append(torch.stack(state))
    return torch.stack(steps, dim=2), steps[-1].unsqueeze(2)


@pytest.fixture
def installed(monkeypatch):
    """The stand-in is the package, and a CPU does."""
    monkeypatch.setitem(sys.modules, "flashrnn", SimpleNamespace(flashrnn=flashrnn, __spec__=object()))
    monkeypatch.setattr(layers, "skip_unserved", lambda impl, device: None)


SIZES = {"B": 2, "T": 5, "H": 4, "I": 3, "device": CPU}


@pytest.mark.parametrize("mode", ["inference", "training"])
@pytest.mark.parametrize("cell", layers.CELLS)
def test_our_weights_in_its_layouts_give_torchs_results_and_gradients(installed, cell, mode):
    case = recurrent_case("flashrnn-cuda", cell, mode=mode, **SIZES)
    assert case.results and case.torchs and case.truth
    check.require_right(check.worst_error(case.results(), case.torchs(), case.truth()))


def test_what_it_cannot_serve_is_skipped_with_the_reason(monkeypatch, installed):
    with pytest.raises(pytest.skip.Exception, match="no fused GRU"):
        recurrent_case("flashrnn-cuda_fused", "GRU", mode="inference", **SIZES)
    monkeypatch.undo()
    with pytest.raises(pytest.skip.Exception, match="needs a CUDA device"):
        recurrent_case("flashrnn-cuda", "GRU", mode="inference", **SIZES)
    monkeypatch.setattr(layers.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(pytest.skip.Exception, match="flashrnn is not installed"):
        layers.skip_unserved("flashrnn-cuda", torch.device("cuda"))
