"""The layers stand in for torch.nn's: construction, state_dict, input forms, errors, copies."""

from __future__ import annotations

import copy
import inspect
import pickle
import re

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

import fusednn
from sequences import states_of

PAIRS = [(nn.RNN, fusednn.RNN), (nn.LSTM, fusednn.LSTM), (nn.GRU, fusednn.GRU)]
CELL_PAIRS = [(nn.RNNCell, fusednn.RNNCell), (nn.LSTMCell, fusednn.LSTMCell), (nn.GRUCell, fusednn.GRUCell)]
pairs = pytest.mark.parametrize("theirs,ours", PAIRS, ids=lambda c: c.__name__)
cell_pairs = pytest.mark.parametrize("theirs,ours", CELL_PAIRS, ids=lambda c: c.__name__)

CONSTRUCTIONS = [
    ((4, 6), {}),
    ((4, 6, 2), {"bias": False}),
    ((4, 6), {"num_layers": 3, "batch_first": True, "dropout": 0.2, "bidirectional": True}),
    ((4, 6), {"dtype": torch.float64, "device": "meta"}),
    ((0, 6), {}),
    ((4, 0), {}),
    ((4, 6, 0), {}),
    ((4.0, 6), {}),
    ((4, 6.0), {}),
    ((4, 6), {"dropout": 2.0, "num_layers": 2}),
    ((4, 6), {"bias": 1}),
    ((4, 6), {"batch_first": "no"}),
    ((4, 6), {"proj_size": 3}),
    ((4, 6), {"proj_size": 6}),
    ((4, 6), {"proj_size": -1}),
    ((4,), {}),
    ((4, 6), {"unknown": 1}),
    ((4, 6), {"nonlinearity": "sigmoid"}),
]


def outcome(make):
    """What a call gives: a value, or the type of what it raises."""
    try:
        return make()
    except Exception as error:
        return type(error)


@pairs
@pytest.mark.parametrize("args,kwargs", CONSTRUCTIONS, ids=str)
def test_construction_gives_the_same_layer_or_the_same_error(theirs, ours, args, kwargs):
    results = []
    for make in (theirs, ours):
        torch.manual_seed(3)
        results.append(outcome(lambda make=make: make(*args, **kwargs)))
    if isinstance(results[0], type):
        assert results[1] is results[0]
    else:
        assert repr(results[1]) == repr(results[0])
        expected, got = results[0].state_dict(), results[1].state_dict()
        assert list(expected) == list(got)
        for name, tensor in expected.items():
            assert (tensor.shape, tensor.dtype, tensor.device) == (got[name].shape, got[name].dtype, got[name].device)
            assert tensor.is_meta or torch.equal(tensor, got[name]), "same seed, same initial values"


def test_rnn_takes_nonlinearity_in_torchs_place():
    assert fusednn.RNN(3, 4, 1, "relu").cell == "rnn_relu"


@pairs
def test_state_dict_both_ways(theirs, ours):
    for source, target in ((theirs, ours), (ours, theirs)):
        a, b = source(3, 5, 2, bidirectional=True), target(3, 5, 2, bidirectional=True)
        assert not b.load_state_dict(a.state_dict()).missing_keys
        x = torch.randn(4, 2, 3)
        torch.testing.assert_close(a(x)[0], b(x)[0])


@pairs
@pytest.mark.parametrize("batch_first", [False, True])
def test_unbatched_input(theirs, ours, batch_first):
    a, b = (c(3, 5, 2, bidirectional=True, batch_first=batch_first) for c in (theirs, ours))
    b.load_state_dict(a.state_dict())
    x = torch.randn(6, 3)
    state = states_of(a(x)[1])
    for hx in (None, state if len(state) == 2 else state[0]):
        (y1, s1), (y2, s2) = a(x, hx), b(x, hx)
        assert y1.shape == y2.shape
        torch.testing.assert_close(y1, y2)
        torch.testing.assert_close(s1, s2)


@pairs
@pytest.mark.parametrize("sort", [True, False])
def test_packed_sequences(theirs, ours, sort):
    a, b = (c(3, 5, 2, bidirectional=True) for c in (theirs, ours))
    b.load_state_dict(a.state_dict())
    lengths = [6, 6, 3, 1] if sort else [3, 6, 1, 6]
    x = pack_padded_sequence(torch.randn(6, 4, 3), torch.tensor(lengths), enforce_sorted=sort)
    state = states_of(a(x)[1])
    for hx in (None, state if len(state) == 2 else state[0]):
        (y1, s1), (y2, s2) = a(x, hx), b(x, hx)
        assert torch.equal(y1.batch_sizes, y2.batch_sizes)
        assert y1.unsorted_indices is y2.unsorted_indices or torch.equal(y1.unsorted_indices, y2.unsorted_indices)
        torch.testing.assert_close(y1.data, y2.data)
        torch.testing.assert_close(s1, s2)


@pairs
def test_dropout_between_layers(theirs, ours):
    layers = [c(3, 5, 3, dropout=0.5) for c in (theirs, ours)]
    layers[1].load_state_dict(layers[0].state_dict())
    x = torch.randn(4, 2, 3)
    for layer in layers:
        assert not torch.equal(layer(x)[0], layer(x)[0]), "random in training"
        layer.eval()
    torch.testing.assert_close(layers[0](x)[0], layers[1](x)[0])
    always = ours(3, 5, 2, dropout=1.0)
    no_input = ours(5, 5)
    no_input.load_state_dict({k.replace("l1", "l0"): v for k, v in always.state_dict().items() if "l1" in k})
    torch.testing.assert_close(always(x)[0], no_input(torch.zeros(4, 2, 5))[0])


BAD_CALLS = {
    "1-D input": lambda m: m(torch.randn(3)),
    "4-D input": lambda m: m(torch.randn(2, 2, 2, 3)),
    "wrong input size": lambda m: m(torch.randn(5, 2, 4)),
    "wrong dtype": lambda m: m(torch.randn(5, 2, 3, dtype=torch.float64)),
    "empty sequence": lambda m: m(torch.randn(0, 2, 3)),
    "2-D state for batched input": lambda m: m(torch.randn(5, 2, 3), states(m, (2, 5))),
    "3-D state for unbatched input": lambda m: m(torch.randn(5, 3), states(m, (1, 1, 5))),
    "wrong batch of the state": lambda m: m(torch.randn(5, 2, 3), states(m, (1, 3, 5))),
    "wrong size of the state": lambda m: m(torch.randn(5, 2, 3), states(m, (1, 2, 6))),
    "packed data of a wrong size": lambda m: m(pack_padded_sequence(torch.randn(4, 2, 4), torch.tensor([4, 2]))),
    "batch of zero": lambda m: m(torch.randn(5, 0, 3))[0].shape,
}


def states(module, shape):
    tensor = torch.zeros(shape)
    return (tensor, tensor) if "LSTM" in type(module).__name__ else tensor


@pairs
@pytest.mark.parametrize("what", BAD_CALLS)
def test_bad_calls_raise_what_torch_raises(theirs, ours, what):
    expected, got = (outcome(lambda c=c: BAD_CALLS[what](c(3, 5))) for c in (theirs, ours))
    assert got == expected


def test_errors_say_what_was_expected_and_what_came():
    with pytest.raises(RuntimeError, match=re.escape("Expected hidden size (1, 2, 5), got [1, 3, 5]")):
        fusednn.GRU(3, 5)(torch.randn(4, 2, 3), torch.zeros(1, 3, 5))
    with pytest.raises(ValueError, match="float64.*float32"):
        fusednn.LSTM(3, 5)(torch.randn(4, 2, 3, dtype=torch.float64))
    with pytest.raises(ValueError, match="strategy must be one of auto.*got 'fast'"):
        fusednn.LSTM(3, 5, strategy="fast")


@pairs
def test_copies_compute_the_same(theirs, ours):
    layer = ours(3, 5, 2, strategy="loop")
    x = torch.randn(4, 2, 3)
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert type(twin) is ours and twin.strategy == "loop"
        assert torch.equal(twin(x)[0], layer(x)[0])
        with torch.no_grad():
            twin.weight_hh_l0.zero_()
        assert not torch.equal(twin(x)[0], layer(x)[0]), "a copy owns its parameters"


@pairs
def test_parameters_replaced_by_assignment_are_used(theirs, ours):
    layer = ours(3, 5)
    x = torch.randn(4, 2, 3)
    before = layer(x)[0]
    layer.weight_hh_l0 = nn.Parameter(torch.zeros_like(layer.weight_hh_l0))
    assert not torch.equal(layer(x)[0], before)


@pairs
def test_forward_takes_torchs_keywords(theirs, ours):
    expected = list(inspect.signature(theirs.forward).parameters)
    *found, last = inspect.signature(ours.forward).parameters.values()
    assert [p.name for p in found] == expected and (last.name, last.kind) == ("lengths", last.KEYWORD_ONLY)


@pairs
def test_step_by_step_equals_the_sequence(theirs, ours):
    layer = ours(3, 5, 2)
    x = torch.randn(7, 2, 3)
    whole, final = layer(x)
    state, outputs = None, []
    for x_t in x:
        y_t, state = layer.step(x_t, state)
        outputs.append(y_t)
    torch.testing.assert_close(torch.stack(outputs), whole)
    torch.testing.assert_close(state, final)


@pairs
def test_step_refuses_what_it_cannot_do(theirs, ours):
    with pytest.raises(ValueError, match="one direction"):
        ours(3, 5, bidirectional=True).step(torch.randn(2, 3))
    with pytest.raises(ValueError, match=re.escape("[B, 3], got [4, 2, 3]")):
        ours(3, 5).step(torch.randn(4, 2, 3))


@cell_pairs
@pytest.mark.parametrize("batch", [None, 0, 1, 5])
def test_cells_equal_torchs(theirs, ours, batch):
    a, b = theirs(3, 5), ours(3, 5)
    b.load_state_dict(a.state_dict())
    x = torch.randn(3) if batch is None else torch.randn(batch, 3)
    shape = (5,) if batch is None else (batch, 5)
    state = tuple(torch.randn(shape) for _ in range(2))
    for hx in (None, state if "LSTM" in ours.__name__ else state[0]):
        torch.testing.assert_close(b(x, hx), a(x, hx))


@cell_pairs
def test_cells_raise_what_torch_raises(theirs, ours):
    calls = [
        lambda m: m(torch.randn(2, 2, 3)),
        lambda m: m(torch.randn(2, 4)),
        lambda m: m(torch.randn(2, 3), states(m, (3, 5))),
        lambda m: m(torch.randn(2, 3), states(m, (2, 6))),
        lambda m: m(torch.randn(2, 3), states(m, (2, 2, 5))),
    ]
    for call in calls:
        expected, got = (outcome(lambda c=c, call=call: call(c(3, 5))) for c in (theirs, ours))
        assert got == expected
    for args, kwargs in (((3, 5), {"bias": False}), ((3,), {}), ((3, 5), {"device": "meta"})):
        expected, got = (outcome(lambda c=c, a=args, k=kwargs: repr(c(*a, **k))) for c in (theirs, ours))
        assert got == expected


def test_reset_before_shows_and_differs():
    torch.manual_seed(1)
    after, before = fusednn.GRU(3, 5), fusednn.GRU(3, 5, reset_after=False)
    before.load_state_dict(after.state_dict())
    assert repr(before) == "GRU(3, 5, reset_after=False)"
    x = torch.randn(4, 2, 3)
    assert not torch.allclose(after(x)[0], before(x)[0])
    cell = fusednn.GRUCell(3, 5, reset_after=False)
    cell.load_state_dict({k.removesuffix("_l0"): v for k, v in before.state_dict().items()})
    torch.testing.assert_close(cell(x[0]), before(x[:1])[1][0])
