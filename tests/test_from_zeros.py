"""A layer without initial states or gradients takes a shorter way, which nobody can tell from the other."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import fusednn
from fusednn.native import MODULE
from sequences import Case, initial_states, make_input, make_layer

pytestmark = pytest.mark.skipif(MODULE is None, reason="the shorter way leads to compiled CPU kernels")

CASES = [
    Case(7, 3, 5, 17),
    Case(1, 2, 4, 6),
    Case(130, 2, 3, 20, {"batch_first": True}),
    Case(4, 9, 6, 33, {"bidirectional": True, "bias": False}),
]


def operators(call) -> list[str]:
    """Names of fusednn's operators that a call runs."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        call()
    return [event.name for event in profile.events() if event.name.startswith("fusednn::")]


def same(ours, theirs) -> bool:
    (y, last), (y2, last2) = ours, theirs
    states = [(last, last2)] if isinstance(last, torch.Tensor) else zip(last, last2, strict=True)
    return all(torch.equal(a, b) for a, b in [(y, y2), *states])


@pytest.mark.parametrize("dtype", (torch.float64, torch.float32, torch.bfloat16), ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_bits_are_those_of_zeros_that_are_given(cell, case, dtype):
    layer, x = make_layer(cell, case, dtype), make_input(case, dtype)
    zeros = tuple(torch.zeros_like(state) for state in initial_states(layer, case.B))
    zeros = zeros if len(zeros) > 1 else zeros[0]
    for context in (torch.no_grad(), torch.inference_mode()):
        with context:
            assert same(layer(x), layer(x, zeros))


@pytest.mark.parametrize("bidirectional", (False, True))
def test_a_projection_gives_the_bits_of_zeros_too(bidirectional):
    layer, x = fusednn.LSTM(3, 6, proj_size=4, bidirectional=bidirectional), torch.randn(5, 2, 3)
    zeros = torch.zeros(1 + bidirectional, 2, 4), torch.zeros(1 + bidirectional, 2, 6)
    with torch.no_grad():
        assert same(layer(x), layer(x, zeros))
        assert same(layer(x[:, 0]), layer(x[:, 0], tuple(state[:, 0] for state in zeros)))  # one sequence alone


@pytest.mark.parametrize("layer", (fusednn.GRU(3, 4), fusednn.LSTM(3, 6, proj_size=4)), ids=str)
def test_one_operator_runs(layer):
    x = torch.randn(5, 2, 3)
    with torch.no_grad():
        assert operators(lambda: layer(x)) == ["fusednn::recurrent"]


def test_gradients_take_the_other():
    layer, x = fusednn.LSTM(3, 4).requires_grad_(False), torch.randn(5, 2, 3)
    assert not layer(x)[0].requires_grad
    assert layer(x.requires_grad_())[0].requires_grad


class Seen(TorchDispatchMode):
    """Operators that reach a mode."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.found.append(func)
        return func(*args, **(kwargs or {}))


def test_a_mode_sees_the_operator_that_has_all_arguments():
    layer, x = fusednn.RNN(3, 4), torch.randn(5, 2, 3)
    with torch.no_grad(), Seen() as seen:
        layer(x)
    assert torch.ops.fusednn.recurrent.default in seen.found
    assert torch.ops.fusednn.recurrent.from_zeros not in seen.found


def test_autocast_vmap_and_a_subclass_are_served_as_before():
    layer, x = fusednn.GRU(3, 4), torch.randn(2, 5, 2, 3)
    with torch.no_grad():
        with torch.autocast("cpu", torch.bfloat16):
            assert layer(x[0])[0].dtype == torch.bfloat16
        each = torch.stack([layer(one)[0] for one in x])
        torch.testing.assert_close(torch.func.vmap(lambda one: layer(one)[0])(x), each)
        torch.testing.assert_close(layer(torch.nn.Parameter(x[0]))[0], each[0])


MISTAKES = {
    "dtype": lambda layer, x: layer(x.double()),
    "integers": lambda layer, x: layer(x.long()),
    "width": lambda layer, x: layer(x[..., 1:]),
    "rank": lambda layer, x: layer(x[None]),
    "one axis": lambda layer, x: setattr(layer, "batch_first", True) or layer(x[0, 0]),
    "nested": lambda layer, x: layer(torch.nested.nested_tensor([x[0], x[1]])),
    "no step": lambda layer, x: layer(x[:0]),
    "device": lambda layer, x: layer.to("meta")(x),
    "strategy": lambda layer, x: setattr(layer, "strategy", "none") or layer(x),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_answered_in_the_same_words(mistake):
    said = []
    for grad in (True, False):
        layer, x = fusednn.LSTM(3, 4), torch.ones(5, 2, 3)
        with torch.set_grad_enabled(grad), pytest.raises((RuntimeError, ValueError, TypeError)) as error:
            MISTAKES[mistake](layer, x)
        said.append((error.type, str(error.value)))
    assert said[0] == said[1]


def test_an_empty_batch_gives_an_empty_result():
    layer, x = fusednn.LSTM(3, 4), torch.ones(5, 0, 3)
    with torch.no_grad():
        y, (h, c) = layer(x)
    assert (y.shape, h.shape, c.shape) == ((5, 0, 4), (1, 0, 4), (1, 0, 4))
