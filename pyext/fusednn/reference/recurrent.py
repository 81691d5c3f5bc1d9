"""A whole recurrent sequence in plain PyTorch: differentiable to any order, on any device, in any dtype."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .cells import CELLS, Cell
from .options import NORM_EPS, PLAIN, Options, zone


def _track(
    cell: Cell,
    gates: list[Tensor],
    h: Tensor,
    c: Tensor | None,
    w_hh: Tensor,
    b_hh: Tensor | None,
    w_hr: Tensor | None,
    track: int,
    options: Options,
) -> tuple[list[Tensor], Tensor, Tensor | None]:
    """One track over a list of steps, each ``[rows, G * H]``; the first rows of the batch are the active ones."""
    mask = None if options.mask is None else options.mask[track]
    gain = None if options.norm is None else options.norm[track]

    def recurrent(h: Tensor, gates: slice = slice(None)) -> Tensor:
        h = h if mask is None else h * mask[: h.shape[0]]
        shift = None if b_hh is None else b_hh[gates]
        if gain is None:
            return F.linear(h, w_hh[gates], shift)
        product = F.linear(h, w_hh[gates])
        return F.layer_norm(product, product.shape[1:], gain[gates], shift, NORM_EPS)

    outputs = [h] * len(gates)
    for t in reversed(range(len(gates))) if track >= options.heads else range(len(gates)):
        rows = gates[t].shape[0]
        old = (h[:rows],) if c is None else (h[:rows], c[:rows])
        state = cell.step(gates[t], recurrent, old)
        if w_hr is not None:
            state = (F.linear(state[0], w_hr), *state[1:])
        state = zone(options, track, t, old, state)
        outputs[t] = state[0]
        h = torch.cat([outputs[t], h[rows:]]) if rows < h.shape[0] else outputs[t]
        if c is not None:
            c = torch.cat([state[1], c[rows:]]) if rows < c.shape[0] else state[1]
    return outputs, h, c


def with_directions(w_ih: Tensor | None, w_hh: Tensor, *others: Tensor | None) -> list[Any]:
    """Weights and biases with D in front, which the operator takes without it where D is 1."""
    weights = (w_ih, w_hh, *others)
    return list(weights) if w_hh.dim() == 3 else [None if t is None else t.unsqueeze(0) for t in weights]


def recurrent(
    x: Tensor,
    h0: Tensor,
    c0: Tensor | None,
    w_ih: Tensor | None,
    w_hh: Tensor,
    b_ih: Tensor | None,
    b_hh: Tensor | None,
    w_hr: Tensor | None,
    batch_sizes: Tensor | None,
    cell: str,
    options: Options = PLAIN,
) -> tuple[Tensor, Tensor, Tensor]:
    """The definition of the operator ``fusednn::recurrent``; shapes and meaning are given there."""
    definition = CELLS[cell]
    w_ih, w_hh, b_ih, b_hh, w_hr = with_directions(w_ih, w_hh, b_ih, b_hh, w_hr)
    batch, rows = h0.shape[1], x.shape[0]
    sizes = batch_sizes.tolist() if batch_sizes is not None else [batch] * (rows // batch if batch else 0)
    outputs, last_h, last_c = [], [], []
    for d in range(h0.shape[0]):
        if w_ih is None:
            inputs = x.chunk(h0.shape[0], dim=1)[d]
        else:
            inputs = F.linear(x, w_ih[d], None if b_ih is None else b_ih[d])
        gates = list(inputs.split(sizes))
        steps, h, c = _track(
            definition,
            gates,
            h0[d],
            None if c0 is None else c0[d],
            w_hh[d],
            None if b_hh is None else b_hh[d],
            None if w_hr is None else w_hr[d],
            d,
            options,
        )
        outputs.append(torch.cat(steps) if steps else x.new_empty(0, h0.shape[2]))
        last_h.append(h)
        last_c.append(c)
    c_n = x.new_empty(0) if c0 is None else torch.stack(last_c)
    return torch.cat(outputs, dim=1), torch.stack(last_h), c_n
