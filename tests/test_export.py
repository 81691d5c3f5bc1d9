"""torch.export and AOTInductor: a program saved, loaded and compiled ahead of time computes what the layer does."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.export import Dim
from torch.utils._pytree import tree_leaves

import fusednn
from sequences import Case, initial_states, make_input, make_layer

CASE = Case(5, 3, 4, 6, {"num_layers": 2, "bidirectional": True})


class SelfAttention(nn.Module):
    """One sequence attends to itself."""

    def __init__(self):
        super().__init__()
        self.attention = fusednn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x):
        return self.attention(x, x, x, need_weights=False)[0]


class Decoder(nn.Module):
    """A decoder layer whose memory is its own input."""

    def __init__(self):
        super().__init__()
        self.layer = fusednn.TransformerDecoderLayer(8, 2, 16, batch_first=True)

    def forward(self, x):
        return self.layer(x, x)


ATTENTION = {
    "attention": SelfAttention,
    "encoder": lambda: fusednn.TransformerEncoderLayer(8, 2, 16, batch_first=True),
    "decoder": Decoder,
}


def assert_same(found, expected):
    for a, b in zip(tree_leaves(found), tree_leaves(expected), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("strict", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["", "strict"])
def test_recurrent_programs_take_other_lengths_and_batches(cell, strict):
    layer = make_layer(cell, CASE, torch.float32).eval()
    hx = initial_states(layer, CASE.B)
    hx = hx if len(hx) == 2 else hx[0]
    batch = Dim("batch")
    of_state = {1: batch}
    shapes = {0: Dim("steps"), 1: batch}, (of_state, of_state) if isinstance(hx, tuple) else of_state
    given = make_input(CASE, torch.float32), hx
    program = torch.export.export(layer, given, dynamic_shapes=shapes, strict=strict)
    calls = [n for n in program.graph.nodes if n.target is torch.ops.fusednn.recurrent.default]
    assert len(calls) == CASE.options["num_layers"], "one operator a layer"
    for steps, rows in ((5, 3), (11, 2)):
        states = initial_states(layer, rows)
        call = torch.randn(steps, rows, CASE.I), states if len(states) == 2 else states[0]
        assert_same(program.module()(*call), layer(*call))


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
@pytest.mark.parametrize("layer", [fusednn.GRU, fusednn.LSTM, fusednn.MinGRU])
def test_traced_layers_take_other_lengths_and_batches(layer):
    layer = layer(3, 4, 2).eval()
    traced = torch.jit.trace(layer, (torch.randn(5, 2, 3),))
    for shape in ((5, 2, 3), (11, 4, 3)):
        x = torch.randn(shape)
        assert_same(traced(x), layer(x))


@pytest.mark.parametrize("layer", [fusednn.MinGRU, fusednn.MinLSTM])
def test_scanned_programs_take_other_lengths_and_batches(layer):
    layer = layer(3, 4, 2).eval()
    program = torch.export.export(layer, (torch.randn(5, 2, 3),), dynamic_shapes=({0: Dim("steps"), 1: Dim("rows")},))
    for shape in ((5, 2, 3), (11, 4, 3)):
        x = torch.randn(shape)
        assert_same(program.module()(x), layer(x))


@pytest.mark.parametrize("layer", [fusednn.LSTM, fusednn.MinGRU])
def test_a_program_with_lengths_takes_others(layer):
    layer = layer(3, 4, batch_first=True).eval()
    x, lengths = torch.randn(3, 6, 3), torch.tensor([2, 6, 4])
    program = torch.export.export(layer, (x,), {"lengths": lengths},
                                  dynamic_shapes={"input": {1: Dim("steps")}, "lengths": None})  # fmt: skip
    for steps, lengths in ((6, [6, 0, 1]), (9, [9, 3, 3])):
        x, lengths = torch.randn(3, steps, 3), torch.tensor(lengths)
        assert_same(program.module()(x, lengths=lengths), layer(x, lengths=lengths))


@pytest.mark.parametrize("name", ["attention", "encoder", pytest.param("decoder", marks=pytest.mark.slow)])
def test_attention_programs_take_other_lengths_and_batches(name):
    model = ATTENTION[name]().eval()
    program = torch.export.export(model, (torch.randn(3, 5, 8),), dynamic_shapes=({0: Dim("batch"), 1: Dim("steps")},))
    for shape in ((3, 5, 8), (2, 9, 8)):
        x = torch.randn(shape)
        assert_same(program.module()(x), model(x))


@pytest.mark.parametrize("cell", ["lstm", *(pytest.param(c, marks=pytest.mark.slow) for c in ("gru", "rnn_tanh"))])
def test_a_saved_program_trains(tmp_path, cell):
    """Written to a file and read back, a program computes the same values and gradients."""
    layer, x = make_layer(cell, CASE, torch.float32), make_input(CASE, torch.float32)
    torch.export.save(torch.export.export(layer, (x,)), tmp_path / "layer.pt2")
    loaded = torch.export.load(tmp_path / "layer.pt2").module()
    assert_same(loaded(x), layer(x))
    gradients = [torch.autograd.grad(m(x)[0].square().sum(), list(m.parameters())) for m in (loaded, layer)]
    assert_same(*gradients)


AHEAD = {
    "gru": lambda: fusednn.GRU(3, 8, batch_first=True),
    "lstm": lambda: fusednn.LSTM(3, 4, 2, bidirectional=True, batch_first=True),
    "rnn with options": lambda: fusednn.RNN(3, 8, batch_first=True, zoneout=0.1, heads=2),
    "gru and attention": lambda: nn.Sequential(First(fusednn.GRU(3, 8, batch_first=True)), ATTENTION["encoder"]()),
}


class First(nn.Module):
    """The output of a layer that gives a state too."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x)[0]


@pytest.mark.parametrize("name", ["gru", *(pytest.param(name, marks=pytest.mark.slow) for name in [*AHEAD][1:])])
def test_compiled_ahead_of_time(name, tmp_path):
    model = AHEAD[name]().eval()
    with torch.no_grad():
        program = torch.export.export(model, (torch.randn(2, 5, 3),), dynamic_shapes=({1: Dim("steps", min=2)},))
        path = torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "model.pt2"))
        compiled = torch._inductor.aoti_load_package(path)
        for steps in (5, 12):
            x = torch.randn(2, steps, 3)
            assert_same(compiled(x), model(x))
