"""Recurrent layers in ONNX: the standard operators, run by onnxruntime, compute the same."""

from __future__ import annotations

import collections

import pytest
import torch
from torch import nn
from torch.export import Dim

import fusednn
from sequences import states_of

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

CELLS = {
    "rnn_tanh": (fusednn.RNN, {}, "RNN"),
    "rnn_relu": (fusednn.RNN, {"nonlinearity": "relu"}, "RNN"),
    "lstm": (fusednn.LSTM, {}, "LSTM"),
    "gru": (fusednn.GRU, {}, "GRU"),
    "gru_reset_before": (fusednn.GRU, {"reset_after": False}, "GRU"),
}


def exported(model, args, **options):
    return torch.onnx.export(
        model.eval(), args, dynamo=True, verbose=False, custom_translation_table=fusednn.onnx.translations(), **options
    )


def run(program, *inputs):
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [given.name for given in session.get_inputs()]
    return [torch.from_numpy(y) for y in session.run(None, dict(zip(names, (x.numpy() for x in inputs), strict=True)))]


def operators(program):
    return collections.Counter(node.op_type for node in program.model_proto.graph.node)


EACH = {
    "lstm": {"num_layers": 2, "bidirectional": True, "batch_first": True},
    "gru": {"bias": False, "bidirectional": True},
    "gru_reset_before": {},
    "rnn_relu": {"bidirectional": True},
}
MORE = [(name, options) for options in ({}, *EACH.values()) for name in CELLS if EACH.get(name) != options]


ALWAYS = [(name, EACH[name]) for name in ("lstm", "gru_reset_before")]
MORE += [case for case in EACH.items() if case not in ALWAYS]


@pytest.mark.parametrize("name,options", [*ALWAYS, *(pytest.param(*more, marks=pytest.mark.slow) for more in MORE)])
def test_standard_operators_compute_the_same_for_other_lengths_and_batches(name, options):
    layer_class, more, operator = CELLS[name]
    layer = layer_class(3, 4, **more, **options).eval()

    class Flat(nn.Module):
        """Gives states as separate outputs and takes none."""

        def __init__(self):
            super().__init__()
            self.layer = layer

        def forward(self, x):
            y, hidden = self.layer(x)
            return y, *states_of(hidden)

    program = exported(Flat(), (torch.randn(5, 2, 3),), dynamic_shapes=({0: Dim("first"), 1: Dim("second")},))
    found = operators(program)
    assert found[operator] == options.get("num_layers", 1) and not [n for n in found if "fusednn" in n]
    for shape in ((5, 2, 3), (7, 4, 3)):
        x = torch.randn(shape)
        y, hidden = layer(x)
        for a, b in zip(run(program, x), (y, *states_of(hidden)), strict=True):
            torch.testing.assert_close(a, b.detach())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lstm", "gru"])
def test_initial_states(name):
    layer_class, more, _ = CELLS[name]
    layer = layer_class(3, 4, 2, bidirectional=True, **more).eval()
    states = tuple(torch.randn(4, 2, 4) for _ in range(2 if name == "lstm" else 1))
    x, hx = torch.randn(5, 2, 3), states if len(states) == 2 else states[0]
    y, hidden = layer(x, hx)
    for a, b in zip(run(exported(layer, (x, hx)), x, *states), (y, *states_of(hidden)), strict=True):
        torch.testing.assert_close(a, b.detach())


@pytest.mark.parametrize(
    "name", [name if name == "lstm" else pytest.param(name, marks=pytest.mark.slow) for name in CELLS]
)
def test_lengths_are_an_input(name):
    """Other lengths, sizes and states than the example's; the padding is NaN, and one sequence has no step at all."""
    layer_class, more, operator = CELLS[name]
    layer = layer_class(3, 4, 2, bidirectional=True, batch_first=True, **more).eval()

    class Padded(nn.Module):
        """Takes and gives states one by one."""

        def __init__(self):
            super().__init__()
            self.layer = layer

        def forward(self, x, lengths, *states):
            y, hidden = self.layer(x, states if len(states) == 2 else states[0], lengths=lengths)
            return y, *states_of(hidden)

    def given(steps, lengths):
        ends = torch.tensor(lengths)
        x = torch.randn(len(lengths), steps, 3).masked_fill(
            torch.arange(steps)[:, None] >= ends[:, None, None], torch.nan
        )
        return x, ends, *(torch.randn(4, len(lengths), 4) for _ in range(2 if name == "lstm" else 1))

    batch, states = Dim("batch"), ({1: Dim("batch")},) * (2 if name == "lstm" else 1)
    shapes = {"x": {0: batch, 1: Dim("steps")}, "lengths": {0: batch}, "states": states}
    program = exported(Padded(), given(5, [3, 5, 1]), dynamic_shapes=shapes)
    found = operators(program)
    assert found[operator] == 2 and not [n for n in found if "fusednn" in n]
    for inputs in (given(5, [3, 5, 1]), given(7, [2, 7]), given(6, [0, 6, 4, 4])):
        for a, b in zip(run(program, *inputs), Padded()(*inputs), strict=True):
            torch.testing.assert_close(a, b.detach())
    outputs = program.exported_program.module()(*given(5, [3, 5, 1]))  # run by torch it computes the same
    assert not outputs[0][0, 3:].any()


def test_a_converted_model():
    model = nn.Sequential(nn.Linear(3, 4), nn.TransformerEncoderLayer(4, 2, 8, batch_first=True), nn.GRU(4, 5)).eval()
    x = torch.randn(6, 2, 3)
    expected = model(x)
    fusednn.convert(model)
    program = exported(model, (x,))
    assert operators(program)["GRU"] == 1
    for a, b in zip(run(program, x), expected, strict=True):
        torch.testing.assert_close(a, b.detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("cell", [fusednn.RNNCell, fusednn.LSTMCell, fusednn.GRUCell])
def test_cells(cell):
    layer, x = cell(3, 4), torch.randn(2, 3)
    program = exported(layer, (x,))
    assert operators(program)[cell.__name__.removesuffix("Cell")] == 1
    for a, b in zip(run(program, x), states_of(layer(x)), strict=True):
        torch.testing.assert_close(a, b.detach())


def test_what_onnx_cannot_express_is_refused_with_the_reason():
    with pytest.raises(Exception) as error:
        exported(fusednn.LSTM(3, 4, proj_size=2), (torch.randn(5, 2, 3),))
    reasons, cause = [], error.value
    while cause is not None:
        reasons.append(cause)
        cause = cause.__cause__
    assert any(isinstance(reason, ValueError) and "cannot express proj_size" in str(reason) for reason in reasons)


SOMETHING = object()  # in the place of a tensor


@pytest.mark.parametrize(
    "asked,message",
    [
        ({"w_hr": SOMETHING}, "proj_size"),
        ({"batch_sizes": SOMETHING}, "packed input; a padded batch with lengths they can"),
        ({"cell": "mgu"}, "cell mgu"),
        ({"heads": 2}, "heads"),
        ({"mask": SOMETHING}, "recurrent_dropout in training"),
        ({"zoneout_c": 0.1}, "zoneout"),
        ({"norm": SOMETHING}, "layer_norm"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_each_refusal_names_what_was_asked(asked, message):
    names = ("x", "h0", "c0", "w_ih", "w_hh", "b_ih", "b_hh", "w_hr")
    for operator, sizes in (("recurrent", "batch_sizes"), ("recurrent_padded", "lengths")):
        if sizes == "lengths" and "batch_sizes" in asked:
            continue
        translation = fusednn.onnx.translations()[getattr(torch.ops.fusednn, operator).default]
        with pytest.raises(ValueError, match=f"cannot express {message}$"):
            translation(**{**dict.fromkeys((*names, sizes)), "cell": "lstm", "strategy": "auto", **asked})
