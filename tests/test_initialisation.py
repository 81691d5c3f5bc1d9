"""How parameters start, weight drop, and states cut off their history."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import fusednn
from fusednn.layers.cache import KeyValueCache
from sequences import states_of

LAYERS = [fusednn.RNN, fusednn.LSTM, fusednn.GRU]
layers = pytest.mark.parametrize("layer_class", LAYERS, ids=lambda c: c.__name__)


def blocks(layer):
    """Each gate of each head of each recurrent matrix, [H, P]."""
    for name, weight in layer.named_parameters():
        if name.startswith("weight_hh"):
            yield from weight.split(layer.hidden_size // layer.heads)


@layers
@pytest.mark.parametrize("options", [{}, {"heads": 2, "num_layers": 2, "bidirectional": True}], ids=str)
def test_identity(layer_class, options):
    for block in blocks(layer_class(3, 6, init="identity", **options)):
        assert torch.equal(block, torch.eye(*block.shape))


@layers
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_orthogonal(layer_class, dtype):
    found = list(blocks(layer_class(3, 6, heads=2, bidirectional=True, init="orthogonal", dtype=dtype)))
    assert len({tuple(block.flatten().tolist()) for block in found}) == len(found), "each block is drawn"
    for block in found:
        tolerance = 8 * torch.finfo(dtype).eps
        torch.testing.assert_close(block.T @ block, torch.eye(3, dtype=dtype), rtol=0, atol=tolerance)


def test_orthogonal_columns_with_a_projection():
    for block in blocks(fusednn.LSTM(3, 6, proj_size=2, init="orthogonal")):
        torch.testing.assert_close(block.T @ block, torch.eye(2))


@pytest.mark.parametrize("heads", [1, 2])
def test_forget_bias_is_the_sum_of_the_two_biases(heads):
    layer = fusednn.LSTM(3, 4, 2, bidirectional=True, forget_bias=1.5, heads=heads)
    for name, bias in layer.named_parameters():
        if name.startswith("bias_ih"):
            total = bias + layer.get_parameter(name.replace("ih", "hh"))
            gates = total.view(heads, 4, 4 // heads).transpose(0, 1)
            assert (gates[1] == 1.5).all() and not (gates[[0, 2, 3]] == 1.5).any()


@layers
@pytest.mark.parametrize("init", ["identity", "orthogonal"])
def test_only_the_recurrent_weights_start_otherwise(layer_class, init):
    made = []
    for options in ({}, {"init": init}):
        torch.manual_seed(5)
        made.append(layer_class(3, 4, **options).state_dict())
    for name, plain in made[0].items():
        assert torch.equal(plain, made[1][name]) == (not name.startswith("weight_hh"))


def test_reset_parameters_starts_the_same_way():
    layer = fusednn.LSTM(3, 4, init="identity", forget_bias=1.0)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.fill_(7)
    layer.reset_parameters()
    assert all(torch.equal(block, torch.eye(4)) for block in blocks(layer))
    assert (layer.bias_ih_l0[4:8] == 1).all() and not layer.bias_hh_l0[4:8].any()
    assert layer.weight_ih_l0.abs().max() <= 0.5


def test_the_meta_device_defers_it():
    layer = fusednn.LSTM(3, 4, init="orthogonal", forget_bias=1.0, device="meta").to_empty(device="cpu")
    layer.reset_parameters()
    for block in blocks(layer):
        torch.testing.assert_close(block.T @ block, torch.eye(4))


def test_a_layer_shows_how_it_starts_and_a_copy_keeps_it():
    layer = fusednn.LSTM(3, 4, weight_drop=0.5, init="orthogonal", forget_bias=1)
    assert repr(layer) == "LSTM(3, 4, weight_drop=0.5, init='orthogonal', forget_bias=1)"
    assert repr(copy.deepcopy(layer)) == repr(layer)
    report = fusednn.revert(nn.Sequential(layer, fusednn.GRU(4, 4, init="identity")))
    assert report.replaced == {"GRU": 1} and "weight_drop" in report.kept["0"]


@pytest.mark.parametrize(
    "layer_class,options,message",
    [
        (fusednn.GRU, {"init": "zeros"}, "init must be one of torch, identity, orthogonal, got 'zeros'"),
        (fusednn.GRU, {"forget_bias": 1.0}, "forget_bias=1.0 needs a cell with a forget gate, lstm; got gru"),
        (fusednn.LSTM, {"forget_bias": "1"}, "forget_bias must be a number, got '1'"),
        (fusednn.LSTM, {"forget_bias": 1.0, "bias": False}, "forget_bias=1.0 needs biases, got bias=False"),
        (fusednn.RNN, {"weight_drop": 1.5}, "weight_drop must be a probability between 0 and 1, got 1.5"),
    ],
    ids=str,
)
def test_mistakes_say_what_was_expected(layer_class, options, message):
    with pytest.raises(ValueError, match=message):
        layer_class(3, 4, **options)


@layers
@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True}], ids=str)
def test_weight_drop_runs_on_weights_of_which_one_mask_dropped_some(layer_class, options):
    """The gradient of the raw weight shows the mask: none where an entry was dropped, and the rest is scaled."""
    layer, plain = (layer_class(3, 6, dtype=torch.float64, **options, **more) for more in ({"weight_drop": 0.4}, {}))
    x = torch.randn(7, 2, 3, dtype=torch.float64)
    y = layer(x)[0]
    y.square().sum().backward()
    dropped = {}
    with torch.no_grad():
        for name, weight in layer.named_parameters():
            kept = torch.ones_like(weight)
            if name.startswith("weight_hh"):
                kept = (weight.grad != 0) / 0.6
                dropped[name] = (kept == 0).double().mean().item()
            plain.get_parameter(name).copy_(weight * kept)
    torch.testing.assert_close(plain(x)[0], y)
    assert len(dropped) == (4 if options else 1) and all(0.1 < share < 0.8 for share in dropped.values())


@layers
def test_weight_drop_draws_at_each_call_and_evaluation_does_not(layer_class):
    layer, plain = layer_class(3, 6, weight_drop=0.5), layer_class(3, 6)
    plain.load_state_dict(layer.state_dict())
    x = torch.randn(7, 2, 3)
    assert not torch.equal(layer(x)[0], layer(x)[0])
    assert torch.equal(layer.eval()(x)[0], plain(x)[0])


def test_weight_drop_runs_on_every_strategy_and_compiled():
    layer = fusednn.GRU(3, 6, weight_drop=0.5)
    x, found = torch.randn(7, 2, 3), []
    for strategy in ("sequence", "loop", "reference"):
        layer.strategy = strategy
        torch.manual_seed(3)
        found.append(layer(x)[0])
    layer.strategy = "auto"
    torch.manual_seed(3)
    found.append(torch.compile(layer, fullgraph=True, backend="eager")(x)[0])
    for other in found[1:]:
        torch.testing.assert_close(other, found[0])


@layers
def test_truncated_backpropagation_stops_at_a_detached_state(layer_class):
    """The gradient of the second chunk is that of a sequence which starts from the first one's values."""
    layer = layer_class(3, 4, dtype=torch.float64)
    first, second = torch.randn(2, 5, 2, 3, dtype=torch.float64)
    first.requires_grad_()
    state = layer(first)[1]
    cut = fusednn.detach(state)
    y, _ = layer(second, cut)
    y.sum().backward()
    assert first.grad is None
    values = tuple(s.detach().clone() for s in states_of(state))
    found = [p.grad for p in layer.parameters()]
    y, _ = layer(second, values if len(values) == 2 else values[0])
    assert all(map(torch.equal, found, torch.autograd.grad(y.sum(), list(layer.parameters()))))


def test_detach_keeps_the_structure():
    layer = fusednn.TransformerDecoderLayer(8, 2, 16)
    _, state = layer.prefill(torch.randn(3, 2, 8), memory=torch.randn(4, 2, 8))
    cut, nothing, (key,) = fusednn.detach([state, None, (state.own.key,)])
    assert nothing is None and type(cut) is type(state) and isinstance(cut.own, KeyValueCache)
    assert torch.equal(cut.memory.key, state.memory.key) and torch.equal(key, state.own.key)
    assert state.own.key.requires_grad and not cut.own.key.requires_grad and not key.requires_grad


def test_detach_refuses_what_is_no_state():
    with pytest.raises(TypeError, match="expects tensors and caches.*got dict"):
        fusednn.detach((torch.zeros(1), {}))
