"""Every recurrent cell as one plain PyTorch function: the definition of correct, and the registry of cells.

A cell is a function ``step(x, recurrent, state) -> state``:

* ``x`` is the input part of the gates' pre-activations, ``W_ih x_t + b_ih``, shape ``[B, G * H]``;
* ``recurrent(h)`` is the recurrent part, ``W_hh h + b_hh``, shape ``[B, G * H]``; ``recurrent(h, gates=slice)`` gives
  that of some gates only;
* ``state`` is ``(h,)`` or ``(h, c)``, each ``[B, H]``.

The same constants stand in ``csrc/cells``; a test compares the two.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

State = tuple[Tensor, ...]
Step = Callable[[Tensor, Callable[..., Tensor], State], State]


@dataclass(frozen=True)
class Cell:
    """What the rest of the project has to know of a cell.

    Attributes:
        name: the name that operators, the plan table and the benchmarks use.
        gates: the gates in the order of the weights' rows, one letter each.
        saved: the values that a compiled forward saves per unit for backward.
        step: the definition, in plain PyTorch.
        has_cell_state: whether the state is ``(h, c)`` rather than ``(h,)``.
        split: whether the gradient of the recurrent part differs from that of the input part.
        late: for a cell with a second recurrent product, the gates that take part in it.
        late_input: for such a cell, the second product's input from the saved values and the state before the step.
    """

    name: str
    gates: str
    saved: tuple[str, ...]
    step: Step
    has_cell_state: bool = False
    split: bool = False
    late: str = ""
    late_input: Callable[[dict[str, Tensor], Tensor], Tensor] | None = None


CELLS: dict[str, Cell] = {}


def cell(name: str, gates: str, saved: str = "", **properties) -> Callable[[Step], Step]:
    """Register the decorated step function as cell ``name``; ``saved`` lists names separated by spaces."""

    def register(step: Step) -> Step:
        CELLS[name] = Cell(name, gates, tuple(saved.split()), step, **properties)
        return step

    return register


@cell("rnn_tanh", gates="h")
def rnn_tanh(x, recurrent, state):
    """Elman 1990, with tanh."""
    (h,) = state
    return (torch.tanh(x + recurrent(h)),)


@cell("rnn_relu", gates="h")
def rnn_relu(x, recurrent, state):
    """Elman 1990, with relu."""
    (h,) = state
    return (torch.relu(x + recurrent(h)),)


@cell("lstm", gates="ifgo", saved="i f g o c", has_cell_state=True)
def lstm(x, recurrent, state):
    """Hochreiter and Schmidhuber 1997 with the forget gate of Gers et al. 2000; torch's gate order."""
    h, c = state
    i, f, g, o = (x + recurrent(h)).chunk(4, dim=1)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c


@cell("gru", gates="rzn", saved="r z n q", split=True)
def gru(x, recurrent, state):
    """Cho et al. 2014 in torch's form: reset applied after the recurrent product q of the new gate."""
    (h,) = state
    (x_r, x_z, x_n), (q_r, q_z, q_n) = x.chunk(3, dim=1), recurrent(h).chunk(3, dim=1)
    r, z = torch.sigmoid(x_r + q_r), torch.sigmoid(x_z + q_z)
    n = torch.tanh(x_n + r * q_n)
    return ((1 - z) * n + z * h,)


@cell(
    "gru_reset_before",
    gates="rzn",
    saved="r z n",
    late="n",
    late_input=lambda saved, h: saved["r"] * h,
)
def gru_reset_before(x, recurrent, state):
    """Cho et al. 2014 as printed in most texts: reset applied to h before the recurrent product; z weighs n."""
    (h,) = state
    units = h.shape[1]
    r, z = torch.sigmoid(x[:, : 2 * units] + recurrent(h, slice(0, 2 * units))).chunk(2, dim=1)
    n = torch.tanh(x[:, 2 * units :] + recurrent(r * h, slice(2 * units, 3 * units)))
    return ((1 - z) * h + z * n,)
