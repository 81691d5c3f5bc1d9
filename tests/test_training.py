"""Ways to train: gradient penalties, activation checkpointing, deterministic mode, without real tensors."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils.rnn import pack_sequence
from torch.utils.checkpoint import checkpoint

import fusednn


class Sequence(nn.Module):
    """The output of a layer that gives a state too."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x)[0]


class SelfAttention(nn.Module):
    """One sequence attends to itself."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x, x, x, need_weights=False)[0]


MODELS = {
    "RNN": lambda: Sequence(nn.RNN(4, 6, 2, batch_first=True)),
    "LSTM": lambda: Sequence(nn.LSTM(4, 3, 2, bidirectional=True, batch_first=True)),
    "GRU": lambda: Sequence(nn.GRU(4, 6, bidirectional=True, batch_first=True)),
    "attention": lambda: SelfAttention(nn.MultiheadAttention(4, 2, batch_first=True)),
    "encoder": lambda: nn.TransformerEncoderLayer(4, 2, 8, 0.0, batch_first=True),
}
models = pytest.mark.parametrize("name", MODELS)


def make(name, dtype=torch.float64):
    """torch's model, and ours with its parameters."""
    theirs = MODELS[name]()
    if dtype != torch.float32:
        theirs.to(dtype)
    return theirs, fusednn.convert(copy.deepcopy(theirs)).model


@models
def test_a_gradient_penalty_trains_a_critic_as_torchs_layers_do(name):
    """Gulrajani et al. 2017, equation 3: the norm of the critic's gradient is driven to 1."""
    x = torch.randn(4, 5, 4, dtype=torch.float64)

    def penalties(model):
        head = nn.Parameter(torch.linspace(-1, 1, 60, dtype=torch.float64))
        optimizer = torch.optim.Adam([*model.parameters(), head], 0.03)
        for _ in range(30):
            points = x.clone().requires_grad_()
            y = model(points).flatten(1)
            (slope,) = torch.autograd.grad((y @ head[: y.shape[1]]).sum(), points, create_graph=True)
            penalty = (slope.flatten(1).norm(dim=1) - 1).square().mean()
            optimizer.zero_grad()
            penalty.backward()
            optimizer.step()
            yield penalty.item()

    theirs, ours = make(name)
    with sdpa_kernel(SDPBackend.MATH):  # torch's attention has second-order gradients there alone
        expected = list(penalties(theirs))
    found = list(penalties(ours))
    assert found[-1] < 0.5 * found[0], "the penalty falls"
    assert found == pytest.approx(expected, rel=1e-6)


@models
@pytest.mark.parametrize("reentrant", [False, True], ids=["", "reentrant"])
def test_activation_checkpointing_gives_the_same_gradients(name, reentrant):
    _, model = make(name)
    x = torch.randn(2, 5, 4, dtype=torch.float64, requires_grad=True)
    wanted = [x, *model.parameters()]
    found = []
    for y in (model(x), checkpoint(model, x, use_reentrant=reentrant)):
        y.square().sum().backward()
        found.append([t.grad for t in wanted])
        for t in wanted:
            t.grad = None
    torch.testing.assert_close(*found)


def test_checkpointing_draws_the_same_dropout_again():
    model = Sequence(fusednn.LSTM(4, 6, 2, dropout=0.3, recurrent_dropout=0.3, zoneout=0.2, weight_drop=0.3))
    x = torch.randn(5, 2, 4)
    found = []
    for run in (model, lambda x: checkpoint(model, x, use_reentrant=False)):
        torch.manual_seed(11)
        y = run(x)
        found.append([y, *torch.autograd.grad(y.square().sum(), list(model.parameters()))])
    assert all(map(torch.equal, *found))


@models
def test_deterministic_mode_runs_and_repeats(name):
    _, model = make(name, torch.float32)
    x = torch.randn(2, 5, 4)
    torch.use_deterministic_algorithms(True)
    try:
        found = [torch.autograd.grad(model(x).square().sum(), list(model.parameters())) for _ in range(2)]
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(map(torch.equal, *found))


def test_deterministic_mode_takes_sequences_of_different_lengths():
    layer = fusednn.GRU(4, 6, bidirectional=True)
    sequences = [torch.randn(n, 4) for n in (3, 5, 2)]
    padded = nn.utils.rnn.pad_sequence(sequences)
    torch.use_deterministic_algorithms(True)
    try:
        packed = layer(pack_sequence(sequences, enforce_sorted=False))[1]
        beside = layer(padded, lengths=torch.tensor([3, 5, 2]))[1]
        found = [torch.autograd.grad(h.square().sum(), list(layer.parameters())) for h in (packed, beside)]
    finally:
        torch.use_deterministic_algorithms(False)
    torch.testing.assert_close(*found)


@models
def test_fake_tensors_give_shapes_of_outputs_and_gradients(name):
    with FakeTensorMode():
        theirs, ours = MODELS[name](), fusednn.convert(MODELS[name]()).model
        x = torch.randn(2, 5, 4)
        expected, found = theirs(x), ours(x)
        found.sum().backward()
    assert isinstance(found, FakeTensor) and found.shape == expected.shape and found.dtype == expected.dtype
    for parameter in ours.parameters():
        assert parameter.grad is not None and parameter.grad.shape == parameter.shape


@models
def test_per_sample_gradients_by_vmap_of_grad(name):
    _, model = make(name)
    x, parameters = torch.randn(3, 5, 4, dtype=torch.float64), dict(model.named_parameters())

    def loss(parameters, row):
        return torch.func.functional_call(model, parameters, (row.unsqueeze(0),)).square().sum()

    together = torch.func.vmap(torch.func.grad(loss), (None, 0))(parameters, x)
    for b, row in enumerate(x):
        alone = torch.autograd.grad(loss(parameters, row), tuple(parameters.values()))
        for gradient, key in zip(alone, parameters, strict=True):
            torch.testing.assert_close(together[key][b], gradient)


@pytest.mark.parametrize("name", ["RNN", "LSTM", "GRU"])
def test_an_output_that_was_written_to_stops_backward(name):
    """It is kept for backward; torch's RNN and GRU keep another copy on CPUs."""
    y, _ = getattr(fusednn, name)(3, 4)(torch.randn(5, 2, 3))
    y += 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()
