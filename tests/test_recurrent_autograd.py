"""Gradients: first and second order, twice, in eval mode, through odd memory layouts; nothing leaks between rows."""

from __future__ import annotations

import pytest
import torch

import fusednn
from sequences import Case, initial_states, make_input, make_layer, retyped, states_of

SMALL = [
    Case(1, 1, 2, 1),
    Case(3, 2, 2, 3),
    Case(4, 2, 3, 2, {"num_layers": 2, "bidirectional": True}),
    Case(4, 3, 2, 3, {"bidirectional": True}, packed=True),
]


def as_function(layer, case):
    """The layer as a function of data, states and parameters, and those values."""
    x = make_input(case)
    data = x.data if case.packed else x
    states = initial_states(layer, case.B)
    names = [name for name, _ in layer.named_parameters()]
    parameters = [p.detach().clone().requires_grad_() for p in layer.parameters()]

    def run(data, *rest):
        states, parameters = rest[: len(states_0)], rest[len(states_0) :]
        inputs = torch.nn.utils.rnn.PackedSequence(data, *x[1:]) if case.packed else data
        start = states if len(states) == 2 else states[0]
        y, hidden = torch.func.functional_call(layer, dict(zip(names, parameters, strict=True)), (inputs, start))
        return (y.data if case.packed else y, *states_of(hidden))

    states_0 = [s.clone().requires_grad_() for s in states]
    return run, (data.clone().requires_grad_(), *states_0, *parameters)


@pytest.mark.parametrize("case", SMALL, ids=str)
def test_first_order_gradients_are_right(cell, case):
    run, inputs = as_function(make_layer(cell, case), case)
    assert torch.autograd.gradcheck(run, inputs, fast_mode=True)


@pytest.mark.parametrize("case", SMALL[1:], ids=str)
def test_second_order_gradients_are_right(cell, case):
    run, inputs = as_function(make_layer(cell, case), case)
    assert torch.autograd.gradgradcheck(run, inputs, fast_mode=True)


def test_projection_gradients_are_right():
    case = Case(3, 2, 2, 4, {"proj_size": 2, "bidirectional": True, "num_layers": 2})
    run, inputs = as_function(make_layer("lstm", case), case)
    assert torch.autograd.gradcheck(run, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(run, inputs, fast_mode=True)


def test_second_order_where_one_input_depends_on_another(cell):
    """h0 computed from x: the recomputed gradient must not count the path through h0 twice."""
    case = Case(3, 2, 3, 3)
    layer = make_layer(cell, case)
    reference = retyped(layer, torch.float64, "reference")
    x = make_input(case).requires_grad_()
    results = []
    for module in (layer, reference):
        states = tuple(x[:1].tanh() * (k + 1) for k in range(len(initial_states(layer, case.B))))
        y, _ = module(x, states if len(states) == 2 else states[0])
        (first,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
        (second,) = torch.autograd.grad(first.square().sum(), x)
        results.append((first.detach(), second))
    torch.testing.assert_close(results[0], results[1], rtol=1e-9, atol=1e-9)


def test_backward_twice_gives_the_same_bits(cell):
    case = Case(7, 3, 4, 9)
    layer = make_layer(cell, case, torch.float32)
    x = make_input(case, torch.float32).requires_grad_()
    loss = layer(x)[0].square().sum()
    first = torch.autograd.grad(loss, [x, *layer.parameters()], retain_graph=True)
    second = torch.autograd.grad(loss, [x, *layer.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_backward_in_eval_mode(cell):
    case = Case(5, 2, 3, 4, {"num_layers": 2, "dropout": 0.5})
    layer = make_layer(cell, case).eval()
    x = make_input(case).requires_grad_()
    layer(x)[0].sum().backward()
    assert x.grad is not None and x.grad.abs().sum() > 0


def test_runs_give_the_same_bits(cell):
    case = Case(40, 9, 17, 65, {"bidirectional": True})
    layer = make_layer(cell, case, torch.float32)
    x = make_input(case, torch.float32).requires_grad_()

    def run():
        y, hidden = layer(x)
        return [y, *states_of(hidden), *torch.autograd.grad(y.square().sum(), [x, *layer.parameters()])]

    first = run()
    for _ in range(5):
        assert all(torch.equal(a, b) for a, b in zip(first, run(), strict=True))


def test_layout_of_input_and_gradient_does_not_matter(cell):
    case = Case(6, 4, 5, 7)
    layer = make_layer(cell, case)
    x = make_input(case)
    spread = torch.stack([x, -x], dim=-1)[..., 0]  # stride 2 in the last dimension
    assert not spread.is_contiguous()
    weight = torch.randn(6, 4, 7, dtype=torch.float64)
    gradients = []
    for inputs, factor in ((x.clone(), weight), (spread, torch.stack([weight, weight], -1)[..., 1])):
        leaf = inputs.requires_grad_()
        y, _ = layer(leaf)
        gradients.append([y.detach(), *torch.autograd.grad(y, [leaf, *layer.parameters()], factor)])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_expanded_gradient(cell):
    case = Case(6, 4, 5, 7)
    layer = make_layer(cell, case)
    x = make_input(case).requires_grad_()
    by_sum = torch.autograd.grad(layer(x)[0].sum(), x)[0]
    one = torch.ones(1, 1, 1, dtype=torch.float64).expand(6, 4, 7)
    torch.testing.assert_close(torch.autograd.grad(layer(x)[0], x, one)[0], by_sum, rtol=1e-12, atol=1e-12)


def test_states_alone_carry_gradients(cell):
    """A loss on the final states, with no gradient of the output, and the other way round."""
    case = Case(5, 3, 2, 6, {"bidirectional": True})
    layer = make_layer(cell, case)
    reference = retyped(layer, torch.float64, "reference")
    x = make_input(case).requires_grad_()
    for pick in range(len(initial_states(layer, 1))):
        ours, truth = (torch.autograd.grad(states_of(m(x)[1])[pick].square().sum(), x)[0] for m in (layer, reference))
        torch.testing.assert_close(ours, truth, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_rows_do_not_reach_each_other(cell, poison):
    case = Case(6, 5, 4, 11, {"bidirectional": True})
    layer = make_layer(cell, case, torch.float32)
    x = make_input(case, torch.float32)
    clean = layer(x)[0]
    x[2, 3] = poison
    y, hidden = layer(x.requires_grad_())
    others = [0, 1, 2, 4]
    assert torch.equal(y[:, others], clean[:, others])
    (gradient,) = torch.autograd.grad(y[:, others].sum(), x)
    assert torch.isfinite(gradient[:, others]).all()


def test_only_what_is_asked_for_gets_a_gradient(cell):
    case = Case(3, 2, 4, 5)
    layer = make_layer(cell, case).requires_grad_(False)
    layer.weight_hh_l0.requires_grad_()
    layer(make_input(case))[0].sum().backward()
    assert layer.weight_hh_l0.grad is not None
    assert layer.weight_ih_l0.grad is None


def test_long_sequences(cell):
    """T beyond 65,535, where cuDNN fails."""
    layer = fusednn.layers.recurrent.layer_of(cell)
    layer = layer[0](2, 3, **layer[1])
    y, hidden = layer(torch.randn(70_000, 1, 2))
    torch.testing.assert_close(y[-1], states_of(hidden)[0][0])
    assert torch.isfinite(y).all()


def saved_bytes(layer, x):
    """Bytes that autograd keeps for backward beside the input and the parameters."""
    own = {t.untyped_storage().data_ptr() for t in (x, *layer.parameters())}
    kept = {}

    def pack(tensor):
        if tensor.layout == torch.strided and tensor.untyped_storage().data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        outputs = layer(x)  # held until the bytes are counted, so that no storage is reused
    assert kept and outputs is not None
    return sum(kept.values())


@pytest.mark.parametrize("layer", [torch.nn.RNN, torch.nn.LSTM, torch.nn.GRU], ids=lambda layer: layer.__name__)
def test_backward_needs_no_more_memory_than_torchs(layer):
    x = torch.randn(20, 8, 64, requires_grad=True)
    assert saved_bytes(getattr(fusednn, layer.__name__)(64, 64), x) <= saved_bytes(layer(64, 64), x)
