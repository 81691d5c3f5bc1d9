"""Ranks in a line: what one computes goes to the next, item by item, and gradients come back in reverse.

A rank works on an item while the one before it is on the next: a wavefront. Nothing here schedules it. Receiving,
computing and sending are nodes of one autograd graph, made item after item, and autograd takes of the nodes that are
ready the one that was made last: backward runs item after item in reverse, on every rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from .ranks import Ranks

Shapes = Sequence[Sequence[int]]  # of the tensors of one item


class Inbox:
    """Messages of one rank: those of the next item are under way while one is worked on."""

    def __init__(self, ranks: Ranks, source: int, items: Sequence[Shapes], like: Tensor):
        """Start to receive.

        Args:
            ranks: of the group.
            source: who sends.
            items: shapes of each item, in the order in which they come.
            like: a tensor of their dtype and device.
        """
        self.ranks, self.source, self.like = ranks, source, like
        self.items = iter(items)
        self.next = self._expect()

    def _expect(self) -> tuple[list[Any], list[Tensor]]:
        tensors = [self.like.new_empty(tuple(shape)) for shape in next(self.items, ())]
        return [dist.irecv(t, self.ranks.peer(self.source), self.ranks.group) for t in tensors], tensors

    def take(self) -> tuple[Tensor, ...]:
        """The next item."""
        works, tensors = self.next
        self.next = self._expect()
        for work in works:
            work.wait()
        return tuple(tensors)


class Outbox:
    """Messages to one rank, for which nothing waits but ``flush``."""

    def __init__(self, ranks: Ranks, to: int, like: Tensor):
        """Without messages.

        Args:
            ranks: of the group.
            to: who gets them.
            like: a tensor of their dtype.
        """
        self.ranks, self.to, self.dtype = ranks, to, like.dtype
        self.under_way: list[tuple[Any, Tensor]] = []

    def send(self, tensors: Sequence[Tensor]) -> None:
        """Send an item."""
        for t in tensors:
            t = t.detach().to(self.dtype).contiguous()
            self.under_way.append((dist.isend(t, self.ranks.peer(self.to), self.ranks.group), t))

    def flush(self) -> None:
        """Wait until all have been received."""
        for work, _ in self.under_way:
            work.wait()
        self.under_way.clear()


class Line:
    """This rank's place in one call."""

    def __init__(self, ranks: Ranks, incoming: Sequence[Shapes], outgoing: Sequence[Shapes], like: Tensor):
        """Start to receive.

        Args:
            ranks: of the group.
            incoming: shapes of what the rank before sends, item by item; not read on the first rank.
            outgoing: shapes of what goes to the rank after; not read on the last.
            like: a tensor of their dtype and device.
        """
        self.ranks, self.like = ranks, like
        self.first, self.last = ranks.rank == 0, ranks.rank == ranks.size - 1
        self.outgoing = outgoing
        # So that the exchanges join the graph even where nothing else on this rank has a gradient.
        self.anchor = like.new_zeros((), requires_grad=torch.is_grad_enabled())
        self.after = Outbox(ranks, ranks.rank + 1, like)
        self.back = Outbox(ranks, ranks.rank - 1, like)
        self.inbox = None if self.first else Inbox(ranks, ranks.rank - 1, incoming, like)
        self.returning: Inbox | None = None
        self.left = len(incoming)  # items whose gradients have not been sent back

    def arrive(self) -> tuple[Tensor, ...]:
        """The next item of the rank before."""
        return _Arrive.apply(self, self.anchor)

    def depart(self, kept: Tensor, *tensors: Tensor) -> Tensor:
        """Send an item on; ``kept`` comes back, and whoever uses it also waits for the item's gradients."""
        return _Depart.apply(self, self.anchor, kept, *tensors)

    def finish(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Wait until all items have been received; the tensors come back, and any of them brings all gradients."""
        self.after.flush()
        return _Together.apply(*tensors)

    def gradients(self) -> tuple[Tensor, ...]:
        """Of the item before the last one asked for, from the rank after."""
        if self.returning is None:
            self.returning = Inbox(self.ranks, self.ranks.rank + 1, self.outgoing[::-1], self.like)
        return self.returning.take()

    def give_back(self, gradients: Sequence[Tensor]) -> None:
        """Send an item's gradients to the rank before."""
        self.back.send(gradients)
        self.left -= 1
        if self.left == 0:
            self.back.flush()


class _Arrive(torch.autograd.Function):
    @staticmethod
    def forward(ctx, line: Line, anchor: Tensor):
        ctx.line = line
        assert line.inbox is not None
        return line.inbox.take()

    @staticmethod
    @once_differentiable
    def backward(ctx, *gradients):  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.line.give_back(gradients)
        return None, None


class _Depart(torch.autograd.Function):
    @staticmethod
    def forward(ctx, line: Line, anchor: Tensor, kept: Tensor, *tensors: Tensor):
        ctx.line = line
        line.after.send(tensors)
        return kept.view_as(kept)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):  # pyright: ignore[reportIncompatibleMethodOverride]
        return None, None, gradient, *ctx.line.gradients()


class _Together(torch.autograd.Function):
    @staticmethod
    def forward(ctx, *tensors: Tensor):
        return tuple(t.view_as(t) for t in tensors)

    @staticmethod
    def backward(ctx, *gradients):
        return gradients
