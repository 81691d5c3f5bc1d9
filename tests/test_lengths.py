"""Lengths beside PackedSequence: packing, the layer and padding in one call."""

from __future__ import annotations

import pytest
import torch
import torch._dynamo.testing
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import fusednn
from fusednn.native import MODULE
from sequences import Case, initial_states, make_layer, states_of

CASE = Case(6, 5, 3, 4, {"num_layers": 2, "bidirectional": True})
FIRST = Case(6, 5, 3, 4, {"batch_first": True})
LENGTHS = torch.tensor([2, 6, 1, 3, 3])


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()


def padded_input(case, dtype=torch.float64):
    return torch.randn((case.B, case.T, case.I) if case.options.get("batch_first") else (case.T, case.B, case.I),
                       dtype=dtype)  # fmt: skip


def by_packing(layer, x, hx):
    first = layer.batch_first
    packed = pack_padded_sequence(x, LENGTHS, batch_first=first, enforce_sorted=False)
    y, hidden = layer(packed, hx)
    return pad_packed_sequence(y, batch_first=first, total_length=x.shape[1 if first else 0])[0], hidden


def results(call, layer, x, states):
    """Outputs, states and all gradients."""
    x = x.clone().requires_grad_()
    states = tuple(state.clone().requires_grad_() for state in states)
    y, hidden = call(x, states if len(states) == 2 else states[0])
    found = [y, *states_of(hidden)]
    total = sum((t * torch.linspace(0.5, 1.5, t.numel(), dtype=t.dtype).view_as(t)).sum() for t in found)
    return [*found, *torch.autograd.grad(total, [x, *states, *layer.parameters()])]


@pytest.mark.parametrize("case", [CASE, FIRST], ids=str)
@pytest.mark.parametrize("strategy", ["auto", "loop", "reference"])
def test_lengths_are_packing_and_padding(cell, strategy, case):
    layer = make_layer(cell, case, strategy=strategy)
    x, states = padded_input(case), initial_states(layer, case.B)
    expected = results(lambda *call: by_packing(layer, *call), layer, x, states)
    found = results(lambda *call: layer(*call, lengths=LENGTHS), layer, x, states)
    torch.testing.assert_close(found, expected)


@pytest.mark.skipif(MODULE is None, reason="a promise of the compiled CPU kernels")
def test_a_sequence_has_the_same_bits_in_any_batch(cell):
    """In the reverse direction, too, in which it begins after the longer ones."""
    layer, x, lengths = make_layer(cell, Case(7, 4, 3, 33, {"bidirectional": True})), torch.randn(7, 4, 3), [7, 4, 3, 2]
    layer = layer.float()
    with torch.no_grad():
        y, _ = layer(x, lengths=torch.tensor(lengths))
        for b, length in enumerate(lengths):
            assert torch.equal(layer(x[:length, b : b + 1])[0], y[:length, b : b + 1])


@pytest.mark.parametrize("cell", ["lstm", pytest.param("gru_reset_before", marks=pytest.mark.slow)])
def test_compiled_lengths_are_packing_and_padding(cell):
    """The compiled form computes the padding beside the sequences; neither shows."""
    layer = make_layer(cell, CASE)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    x, states = padded_input(CASE), initial_states(layer, CASE.B)
    expected = results(lambda *call: by_packing(layer, *call), layer, x, states)
    torch.testing.assert_close(results(lambda *call: compiled(*call, lengths=LENGTHS), layer, x, states), expected)


@pytest.mark.parametrize("strategy", ["auto", "reference"])
def test_the_function_of_padded_rows_computes_what_the_layer_does(strategy):
    layer = fusednn.GRU(3, 4, dtype=torch.float64)
    x, h0 = padded_input(CASE), torch.randn(1, CASE.B, 4, dtype=torch.float64)
    leaves = list(layer.parameters())

    def gradients(*outputs):
        return [*outputs, *torch.autograd.grad(sum(t.square().sum() for t in outputs), leaves)]

    y, h_n, _ = fusednn.functional.recurrent(
        "gru", x.flatten(0, 1), h0, None, *leaves, strategy=strategy, lengths=LENGTHS
    )  # fmt: skip
    found = gradients(y.view(CASE.T, CASE.B, 4), h_n)
    torch.testing.assert_close(found, gradients(*layer(x, h0, lengths=LENGTHS)))


@pytest.mark.parametrize("options", [{}, {"layer_norm": True}, {"heads": 2}], ids=str)
def test_fake_lengths_give_shapes(options):
    with torch._subclasses.FakeTensorMode():
        y, h_n = fusednn.GRU(3, 4, **options)(torch.randn(6, 5, 3), lengths=torch.tensor([2, 6, 1, 3, 3]))
    assert y.shape == (6, 5, 4) and h_n.shape == (1, 5, 4)


def test_compiled_lengths_do_not_recompile():
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    layer = fusednn.GRU(3, 4)
    compiled = torch.compile(layer, fullgraph=True, backend=counter, dynamic=True)
    for steps, lengths in ((6, [2, 6, 1]), (6, [0, 0, 3]), (9, [9, 9, 9]), (7, [0, 0, 0])):
        x = torch.randn(steps, 3, 3)
        torch.testing.assert_close(compiled(x, lengths=torch.tensor(lengths)), layer(x, lengths=torch.tensor(lengths)))
    assert counter.frame_count == 1


@pytest.mark.parametrize("cell,compiled", [("gru", False), ("lstm", False), ("lstm", True)])
def test_padding_does_not_matter_be_it_nan(cell, compiled):
    layer = make_layer(cell, FIRST)
    call = torch.compile(layer, fullgraph=True, backend="aot_eager") if compiled else layer
    x, states = padded_input(FIRST), initial_states(layer, FIRST.B)
    padding = torch.arange(FIRST.T) >= LENGTHS[:, None]
    poisoned = x.masked_fill(padding.unsqueeze(2), float("nan"))
    run = lambda *call_args: call(*call_args, lengths=LENGTHS)  # noqa: E731
    torch.testing.assert_close(results(run, layer, poisoned, states), results(run, layer, x, states), rtol=0, atol=0)


@pytest.mark.parametrize("strategy", ["auto", "loop", "reference"])
def test_a_sequence_of_no_step_gives_zeros_and_keeps_its_state(cell, strategy):
    """The others compute what they compute without it."""
    layer = make_layer(cell, FIRST, strategy=strategy)
    x, states = padded_input(FIRST), initial_states(layer, FIRST.B)
    lengths, some = torch.tensor([0, 4, 0, 5, 1]), torch.tensor([1, 3, 4])
    y, *last = results(lambda *call: layer(*call, lengths=lengths), layer, x, states)[: 1 + len(states)]
    assert not y[[0, 2]].any()
    for before, after in zip(states, last, strict=True):
        assert torch.equal(after[:, [0, 2]], before[:, [0, 2]])

    def gradients(x, states, lengths):
        y = layer(x, states if len(states) == 2 else states[0], lengths=lengths)[0]
        return torch.autograd.grad(y.square().sum(), list(layer.parameters()))

    alone = gradients(x[some], tuple(state[:, some] for state in states), lengths[some])
    torch.testing.assert_close(gradients(x, states, lengths), alone)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int16, torch.uint8], ids=str)
def test_lengths_of_other_integers(dtype):
    layer, x = fusednn.LSTM(3, 4), torch.randn(6, 5, 3)
    assert torch.equal(layer(x, lengths=LENGTHS.to(dtype))[0], layer(x, lengths=LENGTHS)[0])


def test_an_empty_batch():
    y, h_n = fusednn.GRU(3, 4)(torch.randn(6, 0, 3), lengths=torch.zeros(0, dtype=torch.int64))
    assert y.shape == (6, 0, 4) and h_n.shape == (1, 0, 4)


@pytest.mark.parametrize(
    "error,message,x,lengths",
    [
        (TypeError, "lengths must be a tensor of integers, got list", (6, 2, 3), [1, 2]),
        (TypeError, "lengths must be a tensor of integers, got torch.float32", (6, 2, 3), torch.ones(2)),
        (ValueError, r"lengths must have shape \[B\] = \[2\], got \[3\]", (6, 2, 3), torch.ones(3, dtype=torch.int64)),
        (ValueError, "lengths must be between 0 and T = 6, got 7", (6, 2, 3), torch.tensor([7, 1])),
        (ValueError, "lengths must be between 0 and T = 6, got -1", (6, 2, 3), torch.tensor([2, -1])),
        (ValueError, "lengths are those of a padded batch.*got 2 dimensions", (6, 3), torch.tensor([6])),
    ],
    ids=str,
)
def test_mistakes_say_what_was_expected(error, message, x, lengths):
    with pytest.raises(error, match=message):
        fusednn.GRU(3, 4)(torch.randn(x), lengths=lengths)


def test_the_loop_has_no_padded_rows():
    x, h0, weights = torch.randn(12, 3), torch.zeros(1, 2, 4), [*fusednn.GRU(3, 4).parameters()]
    with pytest.raises(ValueError, match="without batch_sizes, and not for strategy='loop'"):
        fusednn.functional.recurrent("gru", x, h0, None, *weights, strategy="loop", lengths=torch.tensor([6, 2]))


def test_lengths_and_a_packed_sequence_are_one_too_many():
    packed = pack_padded_sequence(torch.randn(6, 2, 3), torch.tensor([6, 2]))
    with pytest.raises(ValueError, match="got a PackedSequence"):
        fusednn.GRU(3, 4)(packed, lengths=torch.tensor([6, 2]))
