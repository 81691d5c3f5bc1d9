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


def integers(*shapes):
    return [torch.zeros(shape, dtype=torch.int64) for shape in shapes]


MISTAKES = {
    "dtype": (
        ValueError,
        r"input dtype \(torch.float64\) does not match weight dtype \(torch.float32\)",
        lambda: LSTM(X.double()),
    ),
    "size": (RuntimeError, "Expected 4, got 3", lambda: LSTM(X[..., 1:])),
    "rank": (ValueError, "2D or 3D, got 4D", lambda: LSTM(X[None])),
    "a state for two": (TypeError, r"hx=\(h0, c0\), two .* got Tensor", lambda: LSTM(X, torch.zeros(1, 2, 8))),
    "batch of the state": (
        RuntimeError,
        r"size \(1, 2, 8\), got \[1, 3, 8\]",
        lambda: LSTM(X, 2 * (torch.zeros(1, 3, 8),)),
    ),
    "weights never loaded": (
        RuntimeError,
        "input tensor at cpu and parameter tensor at meta",
        lambda: fusednn.LSTM(4, 8, device="meta")(X),
    ),
    "a cell never loaded": (
        RuntimeError,
        "input tensor at cpu and parameter tensor at meta",
        lambda: fusednn.GRUCell(4, 8, device="meta")(X[0]),
    ),
    "dtype of a cell": (
        RuntimeError,
        "input must have the dtype of the weights, torch.float32, got torch.float64",
        lambda: fusednn.GRUCell(4, 8)(X[0].double()),
    ),
    "dtype of the state": (
        RuntimeError,
        "dtype of the input, torch.float32, got torch.float64",
        lambda: fusednn.GRU(4, 8)(X, torch.zeros(1, 2, 8).double()),
    ),
    "device of the state": (
        RuntimeError,
        "device of the input, cpu, got meta",
        lambda: fusednn.GRU(4, 8)(X, torch.zeros(1, 2, 8, device="meta")),
    ),
    "a cell's state without a batch": (
        RuntimeError,
        "2D as the input is, got 1D",
        lambda: fusednn.GRUCell(4, 8)(X[0], torch.zeros(8)),
    ),
    "a nested tensor": (
        RuntimeError,
        "a padded batch with lengths=, got a nested tensor",
        lambda: fusednn.GRU(4, 8)(torch.nested.nested_tensor([X[:, 0], X[1:, 1]], layout=torch.jagged)),
    ),
    "a sequence for a step": (ValueError, r"\[B, 4\], got \[5, 2, 4\]", lambda: LSTM.step(X)),
    "a width for a step": (ValueError, r"\[B, 4\], got \[2, 3\]", lambda: LSTM.step(X[0, :, 1:])),
    "a number for a step": (
        TypeError,
        "GRU expects x_t to be a tensor, got float",
        lambda: fusednn.GRU(4, 8).step(1.0),
    ),
    "reset_after": (ValueError, "True or False, got 'no'", lambda: fusednn.GRU(4, 8, reset_after="no")),
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
    "explain None": (TypeError, "expects a layer or cell .* got None;", lambda: fusednn.explain(None)),
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
    "keyword": (
        TypeError,
        "'bidirectinal'; did you mean 'bidirectional'",
        lambda: fusednn.GRU(4, 8, bidirectinal=True),
    ),
    "an array": (TypeError, "LSTM expects a tensor or a PackedSequence, got ndarray", lambda: LSTM(X.numpy())),
    "two states for one": (
        TypeError,
        r"GRU expects hx=h0, one tensor, or None for zeros, got \(Tensor, Tensor\)",
        lambda: fusednn.GRU(4, 8)(X, 2 * (torch.zeros(1, 2, 8),)),
    ),
    "states of nothing": (
        TypeError,
        r"hx=\(h0, c0\), two .* got \(NoneType, NoneType\)",
        lambda: LSTM(X, (None, None)),
    ),
    "lengths in the place of two states": (TypeError, "by name: lengths=", lambda: LSTM(X, torch.tensor([5, 2]))),
    "lengths in the place of the state": (
        RuntimeError,
        "by name: lengths=",
        lambda: fusednn.GRU(4, 8)(X, torch.tensor([5, 2])),
    ),
    "one state for a cell": (
        RuntimeError,
        r"expects hx=\(h, c\), got a tensor",
        lambda: fusednn.LSTMCell(4, 8)(X[0], torch.zeros(2, 8)),
    ),
    "dtype of MinGRU": (TypeError, "float32, got input of torch.float64", lambda: fusednn.MinGRU(4, 8)(X.double())),
    "unbatched state of MinGRU": (
        ValueError,
        r"expects hx \[1, 8\], got \[8\]",
        lambda: fusednn.MinGRU(4, 8)(X[:, 0], torch.zeros(8)),
    ),
    "width of a query": (
        ValueError,
        r"query must be \[B, M, 4\] or \[B, 4\], got \[5, 2, 3\]",
        lambda: fusednn.AdditiveAttention(4, 4, 8)(X[..., 1:], X),
    ),
    "padding of other sizes": (
        ValueError,
        r"key_padding_mask must be \[B, K\] = \[5, 2\], got \[2, 5\]",
        lambda: fusednn.AdditiveAttention(4, 4, 8)(X, X, key_padding_mask=torch.zeros(2, 5, dtype=torch.bool)),
    ),
    "keys without a batch": (
        ValueError,
        r"key must be \[B, K, 4\], got \[2, 4\]",
        lambda: fusednn.AdditiveAttention(4, 4, 8)(X[0], X[0]),
    ),
    "two batches": (
        ValueError,
        "one batch size, got 5 and 4",
        lambda: fusednn.AdditiveAttention(4, 4, 8)(X, X[1:]),
    ),
    "values of another length": (
        ValueError,
        r"value must be \[B, K, Ev\] = \[5, 2, Ev\], got \[5, 1, 4\]",
        lambda: fusednn.AdditiveAttention(4, 4, 8)(X, X, X[:, 1:]),
    ),
    "nowhere to meet": (
        ValueError,
        "hidden_size must be at least 1, got 0",
        lambda: fusednn.AdditiveAttention(4, 4, 0),
    ),
    "dtype of a state of MinGRU": (
        TypeError,
        "float32, got hx of torch.float64",
        lambda: fusednn.MinGRU(4, 8)(X, torch.zeros(1, 2, 8).double()),
    ),
    "a state of MinLSTM for two": (
        TypeError,
        r"one tensor, .* got \(Tensor, Tensor\)",
        lambda: fusednn.MinLSTM(4, 8)(X, 2 * (torch.zeros(1, 2, 8),)),
    ),
    "memory as a state": (
        TypeError,
        "got Tensor; memory= is the argument behind it",
        lambda: fusednn.TransformerDecoderLayer(4, 2).step(X[0], X),
    ),
    "dtype of a token": (
        TypeError,
        "weights of torch.float32, got tokens of torch.float64",
        lambda: fusednn.MultiheadAttention(4, 2).step(X[0].double()),
    ),
    "nothing to recall": (
        TypeError,
        r"what remember\(\) gave, got NoneType",
        lambda: fusednn.MultiheadAttention(4, 2).recall(X, None),
    ),
    "a list of steps": (
        TypeError,
        "x must be a tensor, got list",
        lambda: fusednn.functional.recurrent("rnn_tanh", [X], X[:1], None, X[0], X[0]),
    ),
    "whole numbers": (
        TypeError,
        "x must be of a floating-point dtype, got torch.int64",
        lambda: fusednn.functional.recurrent(
            "rnn_tanh", *integers((10, 4), (1, 2, 8)), None, *integers((8, 4), (8, 8))
        ),
    ),
    "a list of gates": (
        TypeError,
        "gates must be a tensor, got list",
        lambda: fusednn.functional.scan("min_gru", [X], X[0]),
    ),
    "softcap by name": (TypeError, "softcap must be a number, got str", lambda: SDPA(X, X, X, softcap="30")),
    "a tensor as a cache": (
        TypeError,
        "what the call before returned, or None, got Tensor",
        lambda: fusednn.TransformerEncoderLayer(4, 2).step(X[0], torch.zeros(2, 4)),
    ),
    "convert a class": (TypeError, "got the class LSTM, of which", lambda: fusednn.convert(nn.LSTM)),
    "compare a class": (TypeError, "got the class GRU, of which", lambda: fusednn.compare(nn.GRU, X)),
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


def test_states_may_come_as_a_list():
    states = [torch.randn(1, 2, 8) for _ in range(2)]
    assert torch.equal(LSTM(X, states)[0], LSTM(X, tuple(states))[0])


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_a_scripted_layer_is_kept_with_the_reason():
    report = fusednn.convert(torch.jit.script(nn.Sequential(nn.LSTM(4, 8))))
    assert not report.replaced and "convert the model before torch.jit.script" in report.kept["0"]


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
@pytest.mark.parametrize(
    "layer",
    [
        LSTM,
        fusednn.GRUCell(4, 8),
        fusednn.MinGRU(4, 8),
        fusednn.AdditiveAttention(4, 4, 8),
        fusednn.TransformerDecoderLayer(4, 2),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_a_layer_that_is_scripted_says_what_else_there_is(layer):
    with pytest.raises(RuntimeError, match=r"fusednn's .*: torch.jit.trace, torch.export and torch.compile"):
        torch.jit.script(nn.Sequential(layer))


def test_parts_that_few_use_are_imported_on_demand():
    assert fusednn.models.AWDLSTM.__module__ == "fusednn.models.awd"
    with pytest.raises(AttributeError, match="module 'fusednn' has no attribute 'modles'"):
        fusednn.modles  # noqa: B018


def test_explain_takes_a_packed_sequence():
    packed = pack_sequence([torch.zeros(7, 4), torch.zeros(2, 4)])
    assert "(T = 7)" in fusednn.explain(LSTM, packed)


def test_command_line_knows_the_devices_of_torch(capsys):
    assert main(["explain", "lstm", "--device", "gpu"]) == 2
    assert "gpu" in capsys.readouterr().err
    assert main(["explain", "lstm", "--device", "cuda:0"]) == 0
    assert "on cuda" in capsys.readouterr().out
