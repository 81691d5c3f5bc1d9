"""A padded batch of sequences of different lengths, in the layout of a PackedSequence."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor


def check_lengths(lengths: Any, batch: int, steps: int) -> None:
    """Raise unless ``lengths`` are integers ``[B]`` from 0 to T; when compiling their values are not known."""
    if not isinstance(lengths, Tensor) or lengths.dtype not in (torch.int64, torch.int32, torch.int16, torch.uint8):
        got = lengths.dtype if isinstance(lengths, Tensor) else type(lengths).__name__
        raise TypeError(f"lengths must be a tensor of integers, got {got}")
    if lengths.shape != (batch,):
        raise ValueError(f"lengths must have shape [B] = [{batch}], got {list(lengths.shape)}")
    if not torch.compiler.is_compiling():
        outside = lengths[(lengths < 0) | (lengths > steps)]
        if outside.numel():
            raise ValueError(f"lengths must be between 0 and T = {steps}, got {outside[0].item()}")


class Packing(NamedTuple):
    """Where each row of a padded ``[T, B, I]`` stands among the rows that the operator takes.

    While compiling the number of rows must not depend on the lengths. Each sequence then has a companion which runs
    through its padding as a sequence of its own, filled with zeros: 2 B sequences of T * B rows, whatever the lengths.

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
        if torch.compiler.is_compiling():
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
