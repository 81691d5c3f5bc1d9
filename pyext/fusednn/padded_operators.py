"""A padded batch of sequences of different lengths: in the layout of a PackedSequence, and as an operator.

``torch.ops.fusednn.recurrent_padded`` takes padded rows and gives them, for formats that have no packed rows, as ONNX.
Its arguments are those of ``recurrent`` with ``lengths`` in place of ``batch_sizes``; it packs, runs that, and pads.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import is_fake

from .operators import LIBRARY
from .reference import recurrent as reference_recurrent
from .reference.options import Options

LIBRARY.define(
    str(torch.ops.fusednn.recurrent.default._schema)
    .removeprefix("fusednn::")
    .replace("recurrent(", "recurrent_padded(")
    .replace("Tensor? batch_sizes", "Tensor lengths"),
    tags=torch.Tag.pt2_compliant_tag,
)


def are_known(lengths: Tensor) -> bool:
    """Whether the values can be read: not while compiling, nor those of a fake tensor."""
    return not (torch.compiler.is_compiling() or is_fake(lengths))


class Packing(NamedTuple):
    """Where each row of a padded ``[T, B, I]`` stands among the rows that the operator takes.

    Where the lengths are not known, while compiling, the number of rows must not depend on them. Each sequence then has
    a companion which runs through its padding as a sequence of its own, filled with zeros: 2 B sequences of T * B rows,
    whatever the lengths.

    Attributes:
        batch_sizes: rows of each step, ``[T]``, on the CPU.
        source: the row of the padded input, ``[T * B, I]``, that each row is; no row twice.
        order: the row of the batch that each sequence starts from, the longest first.
        place: where each row of the batch stands among the sequences, ``[B]``.
        padding: what is padding, ``[T, B, 1]``.
    """

    batch_sizes: Tensor
    source: Tensor
    order: Tensor
    place: Tensor
    padding: Tensor

    @staticmethod
    def of(lengths: Tensor, x: Tensor) -> Packing:
        """For x ``[T, B, I]`` and lengths ``[B]``."""
        steps, batch, _ = x.shape
        ends = lengths.to("cpu", torch.int64)
        time = torch.arange(steps)
        padding = time[:, None] >= ends
        starts = torch.zeros_like(ends)
        rows = steps * batch
        if not are_known(lengths):
            starts, ends = torch.cat([starts, ends]), torch.cat([ends, steps - ends])
        else:
            rows = int(ends.sum())
        longest, sequence = ends.sort(descending=True, stable=True)
        batch_sizes = (longest > time[:, None]).sum(1)
        until = batch_sizes.cumsum(0)
        row = torch.arange(rows)
        step = torch.searchsorted(until, row, right=True)
        which = sequence[row - (until - batch_sizes)[step]]
        order = sequence % batch if batch else sequence
        source = (starts[which] + step) * batch + which % batch if batch else row
        indices = (source, order, sequence.argsort()[:batch], padding.unsqueeze(2))
        return Packing(batch_sizes, *(index.to(x.device) for index in indices))

    def rows(self, x: Tensor) -> Tensor:
        """What the operator takes of x ``[T, B, I]``; padding counts for nothing, be it NaN."""
        return x.masked_fill(self.padding, 0).flatten(0, 1).index_select(0, self.source)

    def padded(self, y: Tensor) -> Tensor:
        """``[T, B, P]`` from the operator's rows, zeros beyond the lengths."""
        steps, batch, _ = self.padding.shape
        whole = y.new_zeros(steps * batch, y.shape[1]).index_copy(0, self.source, y)
        return whole.view(steps, batch, y.shape[1]).masked_fill(self.padding, 0)


def _recurrent_padded(x, h0, c0, w_ih, w_hh, b_ih, b_hh, w_hr, lengths, cell, strategy, *options):
    steps = x.unflatten(0, (-1, h0.shape[1]))  # [T, B, I]
    packing, asked = Packing.of(lengths, steps), Options(*options)
    h0, c0, mask = (None if t is None else t.index_select(1, packing.order) for t in (h0, c0, asked.mask))
    asked = asked._replace(mask=mask)
    packed: tuple[Any, ...] = (packing.rows(steps), h0, c0, w_ih, w_hh, b_ih, b_hh, w_hr, packing.batch_sizes, cell)
    if strategy == "reference":
        y, h_n, c_n = reference_recurrent.recurrent(*packed, options=asked)
    else:
        y, h_n, c_n = torch.ops.fusednn.recurrent(*packed, strategy, *asked)
    h_n, c_n = (t.index_select(1, packing.place) if t.numel() else t for t in (h_n, c_n))
    return packing.padded(y).flatten(0, 1), h_n, c_n


LIBRARY.impl("recurrent_padded", _recurrent_padded, "CompositeImplicitAutograd")
