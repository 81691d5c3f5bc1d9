"""Attention in blocks of queries, of PyTorch's operations: exact, with memory that grows with T and not with T * T.

For devices without a fused kernel, and requests that torch's own operator cannot express. A block of queries meets all
keys it sees at once; keys that position hides from the whole block are not touched. Backward computes the weights
again. Equations and their names: ``docs/kernels/attention.md``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from . import attention_call
from .attention_call import Inputs, Options, wide
from .reference import attention as reference

SCORES = 1 << 18  # of a block: 1 MiB in fp32, what a core's second-level cache holds
ROWS = (32, 128)  # of a block, at least and at most


class Block(NamedTuple):
    """Part of the scores.

    Attributes:
        batch: batch rows.
        shared: key heads.
        heads: their query heads.
        queries: queries.
        keys: the keys that any of the queries sees.
        distance: how far key j lies before query i, [queries, keys], for ALiBi; or None.
        hidden: pairs that position hides, [queries, keys]; None if none.
    """

    batch: slice
    shared: slice
    heads: slice
    queries: slice
    keys: slice
    distance: Tensor | None
    hidden: Tensor | None

    @property
    def rows(self) -> tuple[slice, slice, slice]:
        """Where it lies in a tensor [B, N, M, *]."""
        return self.batch, self.heads, self.queries


class Sequences:
    """Batch rows of one length, their modifiers, and their blocks."""

    def __init__(self, x: Inputs, o: Options, number: int, queries: slice, keys: slice):
        """Views of the sequences.

        Args:
            x: the call's tensors.
            o: its options.
            number: of the first sequence.
            queries: rows of theirs.
            keys: likewise.
        """
        self.x, self.o, self.exact = x, o, wide(x.query.dtype)
        self.query = x.query[:, :, queries]
        self.key, self.value = (t[:, :, keys].to(self.exact) for t in (x.key, x.value))
        (self.B, self.N, self.M, _), (_, self.H, self.K, _) = self.query.shape, self.key.shape
        self.G = self.N // max(1, self.H)
        self.first_head = number * self.N
        self.shift = self.K - self.M if o.bottom_right else 0
        self.mask = None if x.mask is None else x.mask.expand(self.B, self.N, self.M, self.K)
        own = slopes(x, number)
        self.slopes = None if own is None else own.to(self.exact).expand(self.B, self.N)
        self.sink = None if x.sink is None else x.sink.to(self.exact)

    def blocks(self) -> Iterator[Block]:
        """All blocks. Wide enough for a matrix product, small enough for the cache."""
        left, right = self.o.left, self.o.right
        span = self.K if left is None or right is None else min(self.K, left + right + ROWS[0])
        rows = min(self.M, max(ROWS[0], min(ROWS[1], SCORES // max(1, self.G * span))))
        of_head = max(1, self.G * rows * span)
        heads = min(self.H, max(1, SCORES // of_head))
        batch = min(self.B, max(1, SCORES // (of_head * heads))) if heads == self.H else 1
        for i in range(0, self.M, max(1, rows)):
            queries = slice(i, min(self.M, i + rows))
            first = 0 if left is None else min(self.K, max(0, i + self.shift - left))
            last = self.K if right is None else min(self.K, max(first, queries.stop + self.shift + right))
            keys = slice(first, last)
            positions = self.positions(queries, keys)
            for b in range(0, self.B, max(1, batch)):
                for h in range(0, self.H, max(1, heads)):
                    shared = slice(h, min(self.H, h + heads))
                    of_query = slice(h * self.G, shared.stop * self.G)
                    yield Block(slice(b, min(self.B, b + batch)), shared, of_query, queries, keys, *positions)

    def positions(self, queries: slice, keys: slice) -> tuple[Tensor | None, Tensor | None]:
        """Distances for ALiBi, and which pairs position hides; None where nothing needs them."""
        left, right = self.o.left, self.o.right
        first, last = queries.start + self.shift, queries.stop - 1 + self.shift
        cut = (left is not None and keys.start < last - left) or (right is not None and keys.stop - 1 > first + right)
        if not cut and self.slopes is None:
            return None, None
        i = torch.arange(queries.start, queries.stop, device=self.query.device) + self.shift
        distance = i[:, None] - torch.arange(keys.start, keys.stop, device=self.query.device)
        seen = reference.visibility(distance, False, (left, right)) if cut else None
        return distance, None if seen is None else seen.logical_not_()

    def grouped(self, x: Tensor, at: Block) -> Tensor:
        """A block of [B, N, M, *] as rows of its key heads: [b, h, G * rows, *]."""
        return x[at.batch, at.heads, at.queries].to(self.exact).unflatten(1, (-1, self.G)).flatten(2, 3)

    def ungrouped(self, x: Tensor) -> Tensor:
        """Back to [b, n, rows, *]."""
        return x.unflatten(2, (self.G, -1)).flatten(1, 2)

    def scores(self, at: Block, queries: Tensor) -> tuple[Tensor, Tensor]:
        """Modified scores, and the scores after the softcap, [b, n, rows, keys]; one tensor where they are the same."""
        s = softened = self.ungrouped(queries @ self.key[at.batch, at.shared, at.keys].mT)
        if self.o.softcap is not None:
            s = softened = reference.soften(s, self.o.softcap)
        if self.slopes is not None and at.distance is not None:
            s = reference.add_alibi(s, self.slopes[at.batch, at.heads], at.distance)
        if self.mask is not None:
            s = reference.apply_mask(s, self.mask[(*at.rows, at.keys)])
        if at.hidden is not None:
            s = s.masked_fill(at.hidden, -torch.inf)
        return s, softened

    def weigh(self, at: Block, s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Exponentials of scores less the maximum of their row; that maximum; and their sum, with the sink.

        A row that sees nothing has the maximum 0, and the sum 0.
        """
        top = s.amax(-1, keepdim=True) if s.shape[-1] else s.new_full((*s.shape[:-1], 1), -torch.inf)
        sink = None if self.sink is None else self.sink[at.heads, None, None]
        if sink is not None:
            top = torch.maximum(top, sink)
        top = top.masked_fill_(top == -torch.inf, 0.0)
        e = (s - top).exp_()
        total = e.sum(-1, keepdim=True)
        if sink is not None:
            total += (sink - top).exp_()
        return e, top, total

    def kept(self, at: Block) -> Tensor:
        """Which weights dropout keeps: [b, n, rows, keys]."""
        assert self.x.seed is not None
        b, n = (torch.arange(part.start, part.stop, device=self.query.device) for part in (at.batch, at.heads))
        heads = (self.first_head + b[:, None] * self.N + n).flatten()
        keep = torch.ops.fusednn.attention_keep(
            self.x.seed, self.o.dropout_p, heads, at.queries.start, at.queries.stop, at.keys.start, at.keys.stop
        )
        return keep.unflatten(0, (b.shape[0], n.shape[0]))


def sequences(x: Inputs) -> Iterator[tuple[int, slice, slice]]:
    """Number, rows of queries and rows of keys of what is one batch of equal lengths."""
    if x.starts_q is None or x.starts_k is None:
        yield 0, slice(0, x.query.shape[2]), slice(0, x.key.shape[2])
        return
    for number, (queries, keys) in enumerate(attention_call.sequences(x.starts_q, x.starts_k)):
        yield number, queries, keys


def slopes(x: Inputs, number: int) -> Tensor | None:
    """ALiBi's slopes of a sequence by its number, [1, N]; without sequences those of all batch rows."""
    if x.slopes is None or x.starts_q is None or x.slopes.shape[0] == 1:
        return x.slopes
    return x.slopes[number : number + 1]


def forward(x: Inputs, o: Options, out: Tensor, lse: Tensor) -> None:
    """Compute output and LSE.

    Args:
        x: tensors.
        o: options.
        out: written, [B, N, M, Ev].
        lse: written, [B, N, M], of the ``wide`` dtype.
    """
    for number, queries, keys in sequences(x):
        part = Sequences(x, o, number, queries, keys)
        out_part, lse_part = out[:, :, queries], lse[:, :, queries]
        for at in part.blocks():
            s, _ = part.scores(at, part.grouped(part.query, at) * o.scale)
            weights, top, total = part.weigh(at, s)
            if o.dropout_p > 0.0:
                weights = reference.drop(weights, part.kept(at), o.dropout_p)
            weights = weights.unflatten(1, (-1, part.G)).flatten(2, 3)
            result = part.ungrouped(weights @ part.value[at.batch, at.shared, at.keys])
            out_part[at.rows] = result / total.masked_fill(total == 0.0, 1.0)
            lse_part[at.rows] = (top + total.log()).squeeze(-1)


def backward(
    grad_out: Tensor, grad_lse: Tensor | None, x: Inputs, o: Options, found: list[Tensor | None]
) -> None:  # fmt: skip
    """Compute the gradients of query, key, value, mask, slopes and sink.

    Args:
        grad_out: gradient of the output.
        grad_lse: of the LSE, or None.
        x: tensors.
        o: options.
        found: written: a tensor of the size of each input, None for those not wanted.
    """
    exact = wide(x.query.dtype)
    sums = [None if t is None else torch.zeros(t.shape, dtype=exact, device=t.device) for t in found]
    dq, dk, dv, dmask, dslopes, dsink = sums
    for number, queries, keys in sequences(x):
        part = Sequences(x, o, number, queries, keys)
        own = number if dslopes is not None and dslopes.shape[0] > 1 and x.starts_q is not None else 0
        for at in part.blocks():
            across = (at.batch, at.shared, slice(keys.start + at.keys.start, keys.start + at.keys.stop))
            q = part.grouped(part.query, at) * o.scale
            s, softened = part.scores(at, q)
            # Weights from the LSE would be off by |LSE| roundings.
            p, top, total = part.weigh(at, s)
            p /= total.masked_fill(total == 0.0, 1.0)
            g_out = part.grouped(grad_out[:, :, queries], at)
            g = part.ungrouped(g_out @ part.value[at.batch, at.shared, at.keys].mT)
            dropped = p
            if o.dropout_p > 0.0:
                keep = part.kept(at)
                dropped, g = (reference.drop(t, keep, o.dropout_p) for t in (p, g))
            if dv is not None:
                dv[across] += dropped.unflatten(1, (-1, part.G)).flatten(2, 3).mT @ g_out
            delta = (p * g).sum(-1, keepdim=True)
            if grad_lse is not None:
                delta -= grad_lse[:, :, queries][at.rows].unsqueeze(-1)
            ds = (g - delta).mul_(p)
            if dmask is not None:
                place = tuple(
                    slice(None) if size == 1 else k for size, k in zip(dmask.shape, (*at.rows, at.keys), strict=True)
                )
                dmask[place] += ds.sum_to_size(dmask[place].shape)
            if dslopes is not None and at.distance is not None:
                place = (at.batch if dslopes.shape[0] == part.B > 1 else slice(own, own + 1), at.heads)
                dslopes[place] -= (ds * at.distance.abs()).sum((-2, -1)).sum_to_size(dslopes[place].shape)
            if dsink is not None:
                assert part.sink is not None
                share = (part.sink[at.heads, None, None] - top).exp_() / total
                dsink[at.heads] -= (share * delta).sum((0, 2, 3))
            if o.softcap is not None:
                ds = torch.addcmul(ds, ds, softened.square(), value=-1.0 / o.softcap**2)
            ds = ds.unflatten(1, (-1, part.G)).flatten(2, 3)
            if dq is not None:
                dq[:, :, queries][at.rows] = part.ungrouped(ds @ part.key[at.batch, at.shared, at.keys]) * o.scale
            if dk is not None:
                dk[across] += ds.mT @ q
    for total, wanted in zip(sums, found, strict=True):
        if wanted is not None and total is not None:
            wanted.copy_(total)
