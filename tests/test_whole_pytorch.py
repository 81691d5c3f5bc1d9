"""torch.compile, autocast, inference mode, meta tensors: the layers live in the whole of PyTorch."""

from __future__ import annotations

import pytest
import torch

import fusednn
from sequences import Case, everything, initial_states, make_input, make_layer, retyped, states_of

CASE = Case(5, 3, 4, 6, {"num_layers": 2, "bidirectional": True})


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()


@pytest.mark.parametrize("strategy", ["auto", "loop", "reference"])
def test_compile_without_a_graph_break(cell, strategy):
    layer = make_layer(cell, CASE, torch.float32, strategy=strategy)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    x = make_input(CASE, torch.float32)
    hx = initial_states(layer, CASE.B)
    torch.testing.assert_close(everything_compiled(compiled, layer, x, hx), everything(layer, x, hx))


def everything_compiled(compiled, layer, x, hx):
    class Named(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = layer

        def forward(self, *args):
            return compiled(*args)

        def named_parameters(self, *args, **kwargs):
            return layer.named_parameters()

    return everything(Named(), x, hx)


@pytest.mark.slow
def test_compile_with_inductor(cell):
    layer = make_layer(cell, CASE, torch.float32)
    compiled = torch.compile(layer, fullgraph=True)
    x = make_input(CASE, torch.float32)
    torch.testing.assert_close(compiled(x), layer(x))


def test_compile_does_not_recompile_for_each_length(cell):
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    layer = make_layer(cell, Case(1, 1, 4, 6), torch.float32)
    compiled = torch.compile(layer, fullgraph=True, backend=counter, dynamic=True)
    for steps in (5, 6, 9, 17):
        x = torch.randn(steps, 3, 4)
        torch.testing.assert_close(compiled(x)[0], layer(x)[0])
    assert counter.frame_count == 1


@pytest.mark.parametrize("low", [torch.bfloat16, torch.float16], ids=str)
def test_autocast(cell, low):
    """Outputs have autocast's dtype and the values of a layer in that dtype; gradients come back in fp32."""
    layer = make_layer(cell, CASE, torch.float32)
    x = make_input(CASE, torch.float32).requires_grad_()
    with torch.autocast("cpu", dtype=low):
        y, hidden = layer(x)
    assert y.dtype == low and all(s.dtype == low for s in states_of(hidden))
    y.float().sum().backward()
    assert x.grad is not None and x.grad.dtype == torch.float32 and layer.weight_hh_l0.grad.dtype == torch.float32
    assert torch.equal(y, retyped(layer, low, "auto")(x.detach().to(low))[0])


def test_autocast_leaves_fp64_alone():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (
            fusednn.LSTM(3, 4, dtype=torch.float64)(torch.randn(2, 2, 3, dtype=torch.float64))[0].dtype == torch.float64
        )


def test_inference_mode_and_no_grad_equal_training_forward(cell):
    layer = make_layer(cell, CASE, torch.float32)
    x = make_input(CASE, torch.float32)
    y = layer(x)[0]
    assert y.requires_grad
    with torch.inference_mode():
        assert torch.equal(layer(x)[0], y)
    with torch.no_grad():
        assert torch.equal(layer(x)[0], y) and not layer(x)[0].requires_grad


def test_per_sample_gradients_by_vmap_of_grad(cell):
    layer = make_layer(cell, CASE, torch.float64)
    parameters = dict(layer.named_parameters())
    x = make_input(CASE, torch.float64)

    def loss(parameters, row):  # [T, I]
        return torch.func.functional_call(layer, parameters, (row.unsqueeze(1),))[0].square().sum()

    together = torch.func.vmap(torch.func.grad(loss), (None, 1))(parameters, x)
    for b in range(CASE.B):
        alone = torch.autograd.grad(loss(parameters, x[:, b]), tuple(parameters.values()))
        for name, gradient in zip(parameters, alone, strict=True):
            torch.testing.assert_close(together[name][b], gradient)


def test_forward_mode_differentiation_agrees_with_reverse_mode(cell):
    layer = make_layer(cell, CASE, torch.float64)
    x = make_input(CASE, torch.float64).requires_grad_()
    tangent, weight = torch.randn_like(x), torch.randn(CASE.T, CASE.B, 2 * CASE.H, dtype=torch.float64)
    _, derivative = torch.func.jvp(lambda x: (layer(x)[0] * weight).sum(), (x.detach(),), (tangent,))
    (gradient,) = torch.autograd.grad((layer(x)[0] * weight).sum(), x)
    torch.testing.assert_close(derivative, (gradient * tangent).sum())


def test_meta_device_gives_shapes(cell):
    layer = make_layer(cell, CASE, torch.float32).to("meta")
    y, hidden = layer(torch.empty(5, 3, 4, device="meta"))
    assert y.is_meta and y.shape == (5, 3, 12)
    assert all(s.shape == (4, 3, 6) for s in states_of(hidden))


def test_no_more_is_saved_for_backward_than_torch_saves():
    """Bytes beside the parameters, counted; a promise because memory is why people choose a cell."""

    def saved(layer):
        sizes = {}
        parameters = {p.untyped_storage().data_ptr() for p in layer.parameters()}

        def pack(tensor):
            if tensor.untyped_storage().data_ptr() not in parameters:
                sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            layer(torch.randn(50, 8, 64, requires_grad=True))
        return sum(sizes.values())

    for name in ("RNN", "LSTM", "GRU"):
        torchs = getattr(torch.nn, name)(64, 64)
        assert saved(getattr(fusednn, name)(64, 64)) <= saved(torchs), name
