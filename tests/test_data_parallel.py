"""DDP and FSDP2 with two processes on a CPU give the gradients of one process."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import fusednn
from bench.fleet import fleet

BATCH, PROCESSES = 4, 2


class Model(nn.Module):
    """Every recurrent layer, with initial states, both directions, several layers and lengths; and attention."""

    def __init__(self):
        super().__init__()
        self.rnn = fusednn.RNN(4, 6, batch_first=True)
        self.lstm = fusednn.LSTM(6, 4, 2, bidirectional=True, batch_first=True)
        self.gru = fusednn.GRU(8, 8, batch_first=True, layer_norm=True)
        self.attention = fusednn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True)
        self.cell = fusednn.GRUCell(8, 4)

    def forward(self, x, start, lengths):
        y, _ = self.rnn(x)
        y, _ = self.lstm(y, (start, 2 * start))
        y, last = self.gru(y, lengths=lengths)
        return self.cell(self.attention(y).mean(1) + last[0])


def setting():
    """The model, and what all processes together are given."""
    torch.manual_seed(0)
    model = Model().double()
    x = torch.randn(BATCH, 5, 4, dtype=torch.float64)
    start = torch.randn(4, BATCH, 4, dtype=torch.float64)
    return model, x, start, torch.tensor([5, 2, 3, 1])


def gradients(model, x, start, lengths):
    model(x, start, lengths).square().mean().backward()
    return {name.removeprefix("module."): parameter.grad for name, parameter in model.named_parameters()}


def ddp(model):
    return DistributedDataParallel(model)


def fsdp(model):
    mesh = init_device_mesh("cpu", (PROCESSES,))
    for layer in model.children():
        fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)


WAYS = {"ddp": ddp, "fsdp": fsdp}


def part(way):
    """One of the processes: the gradients of its part of the batch, as all processes have them together."""
    model, x, start, lengths = setting()
    rank = dist.get_rank()
    mine = slice(rank * BATCH // PROCESSES, (rank + 1) * BATCH // PROCESSES)
    found = gradients(WAYS[way](model), x[mine], start[:, mine], lengths[mine])
    return {n: g.full_tensor() if hasattr(g, "full_tensor") else g for n, g in found.items()}


@pytest.fixture(scope="module")
def ranks():
    """The processes."""
    with fleet(PROCESSES) as made:
        yield made


@pytest.mark.parametrize("way", WAYS)
def test_two_processes_give_the_gradients_of_one(way, ranks):
    model, *call = setting()
    expected = gradients(model, *call)
    for found in ranks(part, way):
        assert list(found) == list(expected)
        for name, gradient in expected.items():
            torch.testing.assert_close(found[name], gradient, msg=lambda m, name=name: f"{name}: {m}")
