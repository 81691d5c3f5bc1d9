"""The package flashrnn (arXiv:2412.07752) behind a layer with torch.nn's parameters.

It needs CUDA, and has not run on a GPU here; on a CPU the layer agreed with torch.nn through the plain backend of
version 1.0.8, gradients included.

The package begins behind the input projection, which is here one product over all steps, so that the work is that of
torch.nn's layers. It is called as its README calls it, and its own copies into its layouts count. Of the translation
only the GRU's costs something: one copy of the recurrent weights a call.

It keeps the whole state in the inputs' dtype, c included. Where that exceeds the budget of `bench.check`, the cell is
recorded as wrong, without a time.
"""

from __future__ import annotations

import importlib
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.flops import GATES

BACKENDS = ("cuda_fused", "cuda")  # one kernel for all steps; a product and a pointwise kernel a step
FUNCTIONS = {"RNN": "elman", "LSTM": "lstm", "GRU": "gru"}


def recurrent_gates(cell: str, weight: Tensor) -> Tensor:
    """Recurrent weights ``[G, heads, H, H]``, one head: in torch's order, but for the GRU's n, which comes first."""
    gates = weight.unflatten(0, (GATES[cell], 1, -1))
    return gates.roll(1, dims=0) if cell == "GRU" else gates


def biases(cell: str, input_bias: Tensor, recurrent_bias: Tensor) -> Tensor:
    """``[G, heads, H]``: both added; the GRU's n keeps its recurrent one, which r gates, in front of all."""
    if cell != "GRU":
        return (input_bias + recurrent_bias).unflatten(0, (GATES[cell], 1, -1))
    rz, n = (input_bias + recurrent_bias).chunk(3)[:2], (recurrent_bias.chunk(3)[2], input_bias.chunk(3)[2])
    return torch.stack([n[0], *rz, n[1]]).unsqueeze(1)


class FlashRNN(nn.Module):
    """One layer, one direction, time first; the state starts from zero."""

    def __init__(
        self, cell: str, input_size: int, hidden_size: int, num_layers: int = 1, batch_first: bool = False, *,
        backend: str,
    ) -> None:  # fmt: skip
        super().__init__()
        if num_layers != 1 or batch_first:
            raise NotImplementedError("flashrnn is behind one layer of [T, B, I]")
        self.cell, self.backend = cell, backend
        rows, bound = GATES[cell] * hidden_size, 1 / math.sqrt(hidden_size)

        def parameter(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(shape).uniform_(-bound, bound))

        self.weight_ih_l0, self.weight_hh_l0 = parameter(rows, input_size), parameter(rows, hidden_size)
        self.bias_ih_l0, self.bias_hh_l0 = parameter(rows), parameter(rows)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | tuple[Tensor, ...]]:
        """From ``[T, B, I]`` to h of all steps, ``[T, B, H]``, and the last state as torch.nn gives it."""
        gates = F.linear(x, self.weight_ih_l0).unflatten(-1, (GATES[self.cell], 1, -1))  # [T, B, G, heads, H]
        states, last = importlib.import_module("flashrnn").flashrnn(
            gates.transpose(0, 1), recurrent_gates(self.cell, self.weight_hh_l0),
            biases(self.cell, self.bias_ih_l0, self.bias_hh_l0), function=FUNCTIONS[self.cell], backend=self.backend,
            dtype=str(x.dtype).removeprefix("torch."),
        )  # fmt: skip
        h, *c = (state.transpose(0, 1).squeeze(2) for state in last.unbind())  # of [S, B, 1, heads, H]
        return states[0, :, :, 0].transpose(0, 1), (h, *c) if c else h  # of [S, B, T, heads, H]
