"""Mistakes of the first five minutes: each message says what was expected and what came."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_sequence

import fusednn
from fusednn import plan
from fusednn.__main__ import main

X = torch.zeros(5, 2, 4)  # [T, B, I]
LSTM = fusednn.LSTM(4, 8)
SDPA = fusednn.functional.scaled_dot_product_attention

MISTAKES = {
    "dtype": (
        ValueError,
        r"input dtype \(torch.float64\) does not match weight dtype \(torch.float32\)",
        lambda: LSTM(X.double()),
    ),
    "size": (RuntimeError, "Expected 4, got 3", lambda: LSTM(X[..., 1:])),
    "rank": (ValueError, "2D or 3D, got 4D", lambda: LSTM(X[None])),
    "a state for two": (ValueError, r"needs c0, and its layer hx=\(h0, c0\)", lambda: LSTM(X, torch.zeros(1, 2, 8))),
    "batch of the state": (
        RuntimeError,
        r"size \(1, 2, 8\), got \[1, 3, 8\]",
        lambda: LSTM(X, 2 * (torch.zeros(1, 3, 8),)),
    ),
    "weights never loaded": (
        TypeError,
        r"device of x \(torch.float32, cpu\), got torch.float32, meta",
        lambda: fusednn.LSTM(4, 8, device="meta")(X),
    ),
    "a cell never loaded": (TypeError, "cpu.*, got .*meta", lambda: fusednn.GRUCell(4, 8, device="meta")(X[0])),
    "strategy": (
        ValueError,
        "one of auto, sequence, .* got 'sequense'",
        lambda: fusednn.LSTM(4, 8, strategy="sequense"),
    ),
    "convert None": (TypeError, "expects a torch.nn.Module, got NoneType", lambda: fusednn.convert(None)),
    "explain torch.nn": (
        TypeError,
        r"torch.nn.modules.rnn.LSTM; fusednn.convert\(model\)",
        lambda: fusednn.explain(nn.LSTM(4, 8), X),
    ),
    "explain None": (TypeError, "expects a recurrent layer .* got None;", lambda: fusednn.explain(None)),
    "explain another function": (
        TypeError,
        "got fusednn.functional.additive.additive_attention",
        lambda: fusednn.explain(fusednn.functional.additive_attention),
    ),
    "explain no arguments": (
        TypeError,
        "arguments of scaled_dot_product_attention: .*'query'",
        lambda: fusednn.explain(SDPA),
    ),
    "explain a shape": (
        TypeError,
        "input that LSTM would be called with, got tuple",
        lambda: fusednn.explain(LSTM, (5, 2, 4)),
    ),
    "explain four dimensions": (TypeError, "got 4 dimensions", lambda: fusednn.explain(LSTM, X[None])),
    "backend": (ValueError, "one of auto, triton, torch, got 'flash'", lambda: SDPA(X, X, X, backend="flash")),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_message_says_what_was_expected_and_what_came(mistake):
    error, words, make = MISTAKES[mistake]
    with pytest.raises(error, match=words):
        make()


def test_a_cuda_strategy_on_a_cpu_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(plan, "EMULATED", False)
    with pytest.raises(ValueError, match=r"'grid' is impossible .* FUSEDNN_EMULATE=1 set at import"):
        plan.plan(plan.Request("lstm", "cpu"), "grid")


def test_explain_takes_a_packed_sequence():
    packed = pack_sequence([torch.zeros(7, 4), torch.zeros(2, 4)])
    assert "(T = 7)" in fusednn.explain(LSTM, packed)


def test_command_line_knows_the_devices_of_torch(capsys):
    assert main(["explain", "lstm", "--device", "gpu"]) == 2
    assert "gpu" in capsys.readouterr().err
    assert main(["explain", "lstm", "--device", "cuda:0"]) == 0
    assert "on cuda" in capsys.readouterr().out
