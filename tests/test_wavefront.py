"""Layers that `grid` walks together: in the emulation on every machine, and on a GPU where there is one."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import fusednn
from fusednn.kernels import Sizes, launches
from fusednn.plan import WAVEFRONT_ROWS, Request, layer_by_layer
from sequences import Case, everything, make_input, make_layer, retyped
from test_cuda_kernels import DEVICES, check, needs_library

WALKS = ["rnn_tanh", "rnn_relu", "lstm", "gru"]  # one product a step
CASES = [
    Case(3, 1, 5, 35, {"num_layers": 3}),
    Case(1, 9, 5, 16, {"num_layers": 2, "bias": False}),
    Case(17, 9, 3, 17, {"num_layers": 3}, packed=True),
]


class Called(TorchDispatchMode):
    """How often each operator of fusednn runs while it is entered."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "fusednn":
            self.names.append(func._schema.name.removeprefix("fusednn::"))
        return func(*args, **(kwargs or {}))


def operators(run):
    with Called() as called:
        run()
    return called.names


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_layers_together_meet_the_rule(cell, case, dtype, device):
    check(make_layer(cell, case, dtype, strategy="grid"), case, dtype, device)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("cell", WALKS)
def test_three_layers_are_one_operator_forward_and_three_backward(cell, device):
    case = Case(3, 2, 5, 16, {"num_layers": 3})
    layer, x = make_layer(cell, case, torch.float32, strategy="grid").to(device), make_input(case, torch.float32)
    x = x.to(device)
    training = operators(lambda: everything(layer, x))
    assert training == ["recurrent_layers_forward", *["recurrent_backward"] * 3]
    with torch.no_grad():
        assert operators(lambda: layer(x)) == ["recurrent_layers"]


@needs_library
@pytest.mark.parametrize("cell", WALKS)
def test_the_number_of_forward_launches_does_not_depend_on_the_number_of_layers(cell):
    for layers in (1, 2, 4):
        sizes = Sizes(5, 50, 40, layers=layers)
        counted = {training: launches(cell, "bfloat16", "grid", sizes, training) for training in (False, True)}
        assert sum(counted[False].values()) == 2, "one clears the places of the messages"
        assert sum(counted[True].values()) == 2 + 2 * layers, "backward takes one layer after the other"


@needs_library
def test_explain_says_whether_layers_walk_together_and_why_not():
    x = torch.randn(7, 5, 8)

    def text(cls=fusednn.LSTM, x=x, **options):
        return fusednn.explain(cls(8, 40, strategy="grid", **{"num_layers": 2, **options}), x)

    assert "layers     2, all in one launch forward\n" in text()
    assert "launches   inference 2, training 6 (T = 7)" in text()
    assert "1 x persistent_forward<Lstm, Float32>: 3 x 1 x 2 blocks" in text()
    assert "layers     2, one by one: the second direction begins" in text(bidirectional=True)
    assert "layers     2, one by one: there is dropout between them" in text(dropout=0.5)
    assert "layers     2, one by one: there is recompute" in text(recompute=True)
    assert "layers     2, one by one: gru_reset_before has two products" in text(fusednn.GRU, reset_after=False)
    assert "launches   inference 4, training 8" in text(dropout=0.5)
    assert "layers     2, one by one: predicted slower together for more than" in text(x=torch.randn(3, 400, 8))
    assert "layers" not in text(num_layers=1)


@needs_library
def test_layers_whose_weights_do_not_fit_together_go_one_by_one():
    request = Request("lstm", "cpu", "bfloat16", hidden=1024)
    assert layer_by_layer(request, 2) is None
    assert "3 layers of lstm with H = 1024: " in layer_by_layer(request, 3)
    assert f"more than {WAVEFRONT_ROWS} rows" in layer_by_layer(Request("lstm", "cpu", "bfloat16", 17, hidden=1024), 2)


@needs_library
@pytest.mark.parametrize("options", [{"bidirectional": True}, {"dropout": 0.5}, {"recompute": True}], ids=str)
def test_what_cannot_walk_together_goes_layer_by_layer(options):
    layer = fusednn.GRU(4, 16, num_layers=2, strategy="grid", **options)
    assert operators(lambda: layer(torch.randn(2, 2, 4))) == ["recurrent_forward"] * 2


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("cell", WALKS)
def test_the_bits_are_those_of_every_run_and_of_inference(cell, device):
    case = Case(5, 9, 4, 40, {"num_layers": 2})
    layer = make_layer(cell, case, torch.bfloat16, strategy="grid").to(device)
    x = make_input(case, torch.bfloat16).to(device)
    first, again = everything(layer, x), everything(layer, x)
    assert all(torch.equal(first[name], again[name]) for name in first)
    with torch.no_grad():
        assert torch.equal(layer(x)[0], layer(x.requires_grad_())[0])
    assert torch.equal(layer(x)[0], layer.eval()(x)[0])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_the_operators_over_layers_pass_opcheck(cell, device):
    layer = make_layer(cell, Case(4, 3, 5, 6, {"num_layers": 2}), torch.float32).to(device)
    weights = [w.detach().clone().requires_grad_() for i in range(2) for w in layer._weights(i)[:4]]
    x, h0 = (torch.randn(*s, device=device, requires_grad=True) for s in ((12, 5), (2, 3, 6)))
    c0 = torch.randn_like(h0).requires_grad_() if fusednn.reference.cells.CELLS[cell].has_cell_state else None
    torch.library.opcheck(torch.ops.fusednn.recurrent_layers.default, (x, h0, c0, weights, None, cell, "grid"))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("cell", WALKS)
def test_second_order_gradients_are_those_of_the_reference(cell, device):
    case = Case(3, 2, 4, 6, {"num_layers": 2})
    layer = make_layer(cell, case, torch.float32, strategy="grid").to(device)
    x = make_input(case, torch.float32).to(device)

    def second(layer):
        inputs = [x.clone().to(next(layer.parameters()).dtype).requires_grad_(), *layer.parameters()]
        y, _ = layer(inputs[0])
        first = torch.autograd.grad(y.square().sum(), inputs, create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in first), inputs)

    for got, wanted in zip(second(layer), second(retyped(layer, torch.float64, "reference")), strict=True):
        torch.testing.assert_close(got.double(), wanted, rtol=1e-4, atol=1e-4 * wanted.abs().max().item())


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("cell", ["lstm"])
def test_layers_together_compile_without_a_graph_break(cell, device):
    torch._dynamo.reset()
    layer = make_layer(cell, Case(4, 3, 5, 6, {"num_layers": 2}), torch.float32, strategy="grid").to(device)
    x = torch.randn(4, 3, 5, device=device)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x)[0], layer(x)[0])


@pytest.mark.parametrize("device", DEVICES)
def test_layers_together_raise_as_layers_one_by_one_do(device):
    layer = fusednn.LSTM(5, 6, num_layers=2, strategy="grid").to(device)
    layer.weight_hh_l1 = torch.nn.Parameter(layer.weight_hh_l1.bfloat16())
    with pytest.raises(TypeError, match="w_hh must have the dtype"):
        layer(torch.randn(4, 3, 5, device=device))


@pytest.mark.parametrize("device", DEVICES)
def test_an_empty_batch_and_single_steps_walk_together(device):
    layer = fusednn.LSTM(5, 6, num_layers=2, strategy="grid").to(device)
    assert layer(torch.zeros(4, 0, 5, device=device))[0].shape == (4, 0, 6)
    x = torch.randn(3, 2, 5, device=device)
    whole, state = layer(x)[0], None
    for x_t, y_t in zip(x, whole, strict=True):
        got, state = layer.step(x_t, state)
        torch.testing.assert_close(got, y_t)


@pytest.mark.parametrize("device", DEVICES)
def test_autocast_reaches_all_layers(device):
    layer = fusednn.GRU(5, 6, num_layers=2, strategy="grid").to(device)
    with torch.autocast(device, torch.bfloat16):
        y, h_n = layer(torch.randn(4, 3, 5, device=device))
    assert y.dtype == h_n.dtype == torch.bfloat16
