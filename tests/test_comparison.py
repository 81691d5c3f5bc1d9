"""compare: what is timed, what is checked first, and what it refuses; the command line beside it."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_sequence

import fusednn
from fusednn.__main__ import main

QUICK = {"seconds": 0.0}


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_compare_times_copies_and_leaves_the_model_alone():
    model, x = nn.Sequential(nn.Linear(4, 8), nn.GRU(8, 8)), torch.randn(5, 2, 4)
    before, training = copy.deepcopy(model.state_dict()), model.training
    found = fusednn.compare(model, x, **QUICK)
    assert type(model[1]) is nn.GRU and model.training == training
    assert all(torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values(), strict=True))
    assert all(p.grad is None for p in model.parameters())
    assert type(found.replaced.model[1]) is fusednn.GRU
    assert [t.mode for t in found.timings] == ["inference", "training"]
    for t in found.timings:
        assert t.low <= t.ratio <= t.high and t.ratio == pytest.approx(t.theirs / t.ours)
        assert 0 < t.error <= t.allowed


def test_compare_takes_a_converted_model_and_its_strategies():
    layer = fusednn.LSTM(4, 8, strategy="loop")
    found = fusednn.compare(layer, torch.randn(5, 2, 4), **QUICK)
    assert type(layer) is fusednn.LSTM
    assert found.replaced.replaced == {"LSTM": 1} and found.replaced.model.strategy == "loop"


def test_compare_keeps_what_torch_lacks_on_both_sides_and_says_so():
    model = nn.Sequential(fusednn.LSTM(4, 4), fusednn.GRU(4, 4, reset_after=False))
    model[0].register_forward_hook(lambda module, inputs, result: result[0])
    text = str(fusednn.compare(model, torch.randn(5, 2, 4), **QUICK))
    assert "replaced   1 x LSTM" in text and "kept 1: torch.nn has no GRU with reset_after=False" in text


def test_compare_works_where_the_flags_of_torch_are_frozen_and_leaves_them(monkeypatch):
    cudnn = torch.backends.cudnn
    before = cudnn.enabled, cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32, cudnn.fp32_precision
    monkeypatch.setattr(torch.backends, "__allow_nonbracketed_mutation_flag", False)
    fusednn.compare(nn.GRU(3, 5), torch.randn(4, 2, 3), **QUICK)
    assert before == (cudnn.enabled, cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32, cudnn.fp32_precision)


def test_compare_takes_packed_sequences_keywords_and_frozen_models():
    packed = pack_sequence([torch.randn(4, 3), torch.randn(2, 3)])
    found = fusednn.compare(nn.GRU(3, 5).requires_grad_(False), packed, hx=torch.zeros(1, 2, 5), **QUICK)
    assert [t.mode for t in found.timings] == ["inference"]


def test_compare_refuses_a_wrong_result(monkeypatch):
    right = fusednn.GRU.forward
    monkeypatch.setattr(fusednn.GRU, "forward", lambda self, x, hx=None: (right(self, x, hx)[0] * 1.001, x.sum()))
    with pytest.raises(RuntimeError, match="differ from float64 by more than"):
        fusednn.compare(nn.GRU(3, 5), torch.randn(4, 2, 3), **QUICK)


def test_compare_refuses_what_it_cannot_judge():
    with pytest.raises(TypeError, match="expects a torch.nn.Module, got NoneType"):
        fusednn.compare(None)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="with a layer to replace .*LSTM.* got Linear: nothing to replace"):
        fusednn.compare(nn.Linear(2, 2), torch.randn(2, 2))

    class Single(nn.GRU):
        def forward(self, x, hx=None):
            return super().forward(x.float(), hx)

    model = nn.Sequential(nn.RNNCell(3, 5), Single(5, 5))
    with pytest.raises(ValueError, match="copy of the model in float64, which does not run"):
        fusednn.compare(model, torch.randn(4, 3))


def test_command_line_compares_and_says_why(capsys):
    assert main(["compare", "gru", "--batch", "2", "--time", "5", "--hidden", "16", "--layers", "2"]) == 0
    printed = capsys.readouterr().out
    expected = ("B = 2, T = 5, H = 16, float32 on cpu", "checked  ", "inference  torch.nn", "training   torch.nn")
    for words in (*expected, "times as fast", "strategy   ", "not loop:"):
        assert words in printed


def test_command_line_compare_refuses_with_a_reason(capsys):
    assert main(["compare", "transformer", "--strategy", "loop"]) == 2
    assert "rnn, lstm and gru" in capsys.readouterr().err
    assert main(["compare", "lstm", "--device", "gpu"]) == 2
    if not torch.cuda.is_available():
        assert main(["compare", "lstm", "--device", "cuda"]) == 2
        assert "torch sees no such GPU" in capsys.readouterr().err
