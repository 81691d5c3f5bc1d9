"""Attention over a sequence that is split over ranks: queries stay, keys and values travel round the ring.

Each rank attends from its queries to one rank's keys at a time, by ``scaled_dot_product_attention`` with its
log-sum-exp L_s, and weighs the results: o = sum_s exp(L_s - L) o_s with L = log sum_s exp(L_s). Backward travels once
more: with w = exp(L_s - L), o_s has the gradient w do, and L_s the gradient w do . (o_s - o); the results of one part
are computed again and differentiated by the same function. A rank holds two parts of keys and values at a time, its own
and the next, whatever the number of ranks.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..attention_call import wide
from ..functional import scaled_dot_product_attention
from ..functional.attention_request import DTYPES, Request
from ..reference.attention import default_scale, without_autocast
from .ranks import Exchange, Ranks, ranks_of

LAYOUTS = ("contiguous", "zigzag")


def ring_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    group: Any = None,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    window: tuple[int | None, int | None] | None = None,
    softcap: float | None = None,
    layout: str = "contiguous",
    check_ranks: bool = True,
    backend: str = "auto",
) -> Tensor:
    """Attend within sequences that are split over the ranks of a group; exact, forward and backward.

    Each rank passes its part of queries, keys and values and gets its part of what
    ``fusednn.functional.scaled_dot_product_attention`` gives for the whole. All ranks of the group call it together,
    and all run backward, which is a ring as well. Keys of which nothing is seen are not computed with, and not sent
    further than the window reaches.

    Args:
        query: this rank's queries.
        key: its keys.
        value: its values.
        group: process group; None for all processes.
        is_causal: hide the keys that come after the query, by their positions in the whole sequence.
        scale: factor of the scores; None is 1 / sqrt(E).
        enable_gqa: let groups of consecutive query heads share a key and value head.
        window: ``(left, right)`` in positions of the whole sequence, as ``scaled_dot_product_attention`` has it.
        softcap: likewise.
        layout: which positions lie on which rank, as ``local_positions`` says them. ``contiguous``: rank r has the r-th
            of R parts. ``zigzag``: of 2 R parts rank r has the r-th and the (2 R - 1 - r)-th, so that under
            ``is_causal`` all ranks have equal work; in ``contiguous`` the last has nearly all of it.
        check_ranks: compare sizes and options of all ranks first, by one small message, for which the host waits.
            Where they differ without this check, ranks wait for each other until the group's timeout.
        backend: of each part, as in ``scaled_dot_product_attention``.

    Shape:
        - query: ``[B, N, T / R, E]``; key: ``[B, N, T / R, E]``; value: ``[B, N, T / R, Ev]``; the same on all R ranks.
          With ``enable_gqa`` key and value have numbers of heads that divide N.
        - output: ``[B, N, T / R, Ev]``.

    Returns:
        The output at this rank's positions, in the dtype of ``query``. Each rank's gradients are those of its own
        part, from the losses of all ranks together. No second derivatives.

    Raises:
        RuntimeError: there is no process group.
        TypeError: as ``scaled_dot_product_attention``.
        ValueError: likewise; sizes or options that differ between ranks (on all of them); an unknown layout; a part of
            odd length in ``zigzag``; a process outside of the group.

    Note:
        Parts are merged in fp32 (fp64 for fp64), and gradients of keys and values add up in it as they travel.
        Backward computes each part's forward again. ``attn_mask``, ALiBi, sinks and dropout are not served.

    Example:
        >>> import torch, torch.distributed as dist
        >>> from fusednn.distributed import ring_attention
        >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)  # one process, to show it
        >>> x = torch.randn(1, 4, 6, 8)  # [B, N, T / R, E]
        >>> ring_attention(x, x, x, is_causal=True, window=(3, None)).shape
        torch.Size([1, 4, 6, 8])
        >>> dist.destroy_process_group()

    Sources: Liu, Zaharia and Abbeel 2023, Ring Attention with Blockwise Transformers (arXiv:2310.01889); Brandon et al.
    2023, Striped Attention (arXiv:2311.09431), for the imbalance; the weights are those of Dao et al. 2022,
    FlashAttention.
    """
    ranks = ranks_of(group, "ring_attention")
    request = Request(
        query, key, value, is_causal=is_causal, scale=scale, enable_gqa=enable_gqa, window=window, softcap=softcap,
        backend=backend,
    )  # fmt: skip
    request.autocast()
    request.check()
    query, key, value = request.query, request.key, request.value
    pieces = _pieces(layout)
    for name, x in (("query", query), ("key", key), ("value", value)):
        if x.dim() != 4:
            raise ValueError(f"{name} must have 4 dimensions [B, N, T / R, E], got shape {list(x.shape)}")
    length = query.shape[2]
    if key.shape[2] != length:
        raise ValueError(
            f"query and key must have one length, that of this rank's part, got {length} and {key.shape[2]}"
        )
    if length % pieces:
        raise ValueError(f"layout='zigzag' needs parts of even length, got {length}")
    left, right = request.limits
    right = 0 if is_causal else right
    scale = default_scale(query.shape[-1]) if scale is None else float(scale)
    if check_ranks:
        sizes = {
            f"size {i} of {name}": x.shape[i]
            for name, x in (("query", query), ("key", key), ("value", value))
            for i in range(4)
        }
        limits = {"left": -1 if left is None else left, "right": -1 if right is None else right}
        ranks.agree(
            query.device, **sizes, dtype=DTYPES.index(query.dtype), scale=scale, softcap=softcap or 0.0, **limits,
            layout=pieces,
        )  # fmt: skip
    options = {"scale": scale, "enable_gqa": enable_gqa, "softcap": softcap, "backend": backend}
    return _Ring.apply(query, key, value, Plan(ranks, pieces, length // pieces, left, right, options))


def local_positions(length: int, *, layout: str = "contiguous", group: Any = None) -> Tensor:
    """Which positions of a sequence lie on this rank, in the order in which ``ring_attention`` expects them.

    Args:
        length: of the whole sequence.
        layout: see ``ring_attention``.
        group: process group; None for all processes.

    Returns:
        ``[T / R]`` int64: ``x.index_select(dim, positions)`` is this rank's part of x.

    Raises:
        RuntimeError: there is no process group.
        ValueError: an unknown layout, or a length that does not divide.

    Example:
        >>> import torch.distributed as dist
        >>> from fusednn.distributed import local_positions
        >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        >>> local_positions(4, layout="zigzag")  # rank 0 of 2 would get 0 and 3
        tensor([0, 1, 2, 3])
        >>> dist.destroy_process_group()
    """
    ranks = ranks_of(group, "local_positions")
    pieces = _pieces(layout)
    if length % (ranks.size * pieces):
        raise ValueError(f"layout={layout!r} over {ranks.size} ranks does not divide {length} positions evenly")
    n = length // (ranks.size * pieces)
    return torch.cat([torch.arange(start, start + n) for start in _starts(ranks.rank, ranks.size, pieces, n)])


def _pieces(layout: str) -> int:
    """In how many pieces a rank's positions lie."""
    if layout not in LAYOUTS:
        raise ValueError(f"layout must be one of {', '.join(LAYOUTS)}, got {layout!r}")
    return 1 + LAYOUTS.index(layout)


def _starts(rank: int, size: int, pieces: int, n: int) -> list[int]:
    """Where a rank's pieces of n positions begin."""
    return [rank * n, (2 * size - 1 - rank) * n][:pieces]


class Seen(NamedTuple):
    """What is seen between two pieces.

    Attributes:
        rows: queries that see any of the keys.
        keys: keys that any of them sees.
        window: limits, counted from the first of those rows and the first of those keys.
    """

    rows: slice
    keys: slice
    window: tuple[int | None, int | None]


def seen(distance: int, n: int, left: int | None, right: int | None) -> Seen | None:
    """What is seen between pieces of n positions, of which the queries' begins ``distance`` after the keys'.

    Every row of the result sees a key: its own number among the keys. None: nothing is seen.
    """
    before = 0 if left is None else max(0, distance - left)  # keys that lie too far back for all queries
    after = 0 if right is None else max(0, -distance - right)  # queries that lie too far back for all keys
    length = n - before - after  # one of the two is 0
    if length <= 0:
        return None
    shift = distance - before + after
    return Seen(
        slice(after, after + length),
        slice(before, before + length),
        (None if left is None else left - shift, None if right is None else right + shift),
    )


@functools.cache
def _hops(size: int, pieces: int, n: int, left: int | None, right: int | None) -> int:
    """How far keys travel until no rank sees any of them."""
    for hop in range(size - 1, 0, -1):
        for rank in range(size):
            own, theirs = (_starts(r, size, pieces, n) for r in (rank, (rank - hop) % size))
            if any(seen(i - j, n, left, right) for i, j in itertools.product(own, theirs)):
                return hop
    return 0


class Plan(NamedTuple):
    """One call on one rank.

    Attributes:
        ranks: of the group.
        pieces: in how many pieces a rank's positions lie.
        n: positions of a piece.
        left: keys that a query sees to its left, or None for all.
        right: to its right; 0 is causal.
        options: of ``scaled_dot_product_attention``.
    """

    ranks: Ranks
    pieces: int
    n: int
    left: int | None
    right: int | None
    options: dict[str, Any]

    @property
    def hops(self) -> int:
        """How often keys and values travel."""
        return _hops(self.ranks.size, self.pieces, self.n, self.left, self.right)

    def travel(self, tensors: Sequence[Tensor]) -> Iterator[tuple[int, Sequence[Tensor]]]:
        """This rank's tensors, then those of the ranks before it; the next are under way meanwhile."""
        rank = self.ranks.rank
        for hop in range(self.hops):
            arriving = Exchange(self.ranks, tensors, rank + 1, rank - 1)
            yield hop, tensors
            tensors = arriving.wait()
        yield self.hops, tensors

    def parts(self, hop: int) -> Iterator[Seen]:
        """What this rank's queries see of the keys that came with a hop."""
        ranks, pieces, n = self.ranks, self.pieces, self.n
        own, theirs = (_starts(r, ranks.size, pieces, n) for r in (ranks.rank, (ranks.rank - hop) % ranks.size))
        for (i, start), (j, other) in itertools.product(enumerate(own), enumerate(theirs)):
            part = seen(start - other, n, self.left, self.right)
            if part is not None:
                rows, keys = (slice(x.start + at * n, x.stop + at * n) for x, at in ((part.rows, i), (part.keys, j)))
                yield Seen(rows, keys, part.window)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, part: Seen) -> tuple[Tensor, Tensor]:
        """Output and log-sum-exp of one part."""
        return scaled_dot_product_attention(query, key, value, window=part.window, return_lse=True, **self.options)

    def differentiate(
        self, inputs: Sequence[Tensor], part: Seen, out: Tensor, lse: Tensor, d_out: Tensor
    ) -> tuple[Tensor, ...]:
        """Gradients of one part's inputs, from its rows of the whole's output, log-sum-exp and gradient."""
        query, key, value = (x.detach().requires_grad_() for x in inputs)
        with torch.enable_grad():
            o, part_lse = self.attend(query, key, value, part)
        d_o = (part_lse.detach() - lse).exp_().unsqueeze(-1) * d_out
        d_lse = (d_o * (o.detach() - out)).sum(-1)
        return torch.autograd.grad((o, part_lse), (query, key, value), (d_o.to(o.dtype), d_lse))


class _Ring(torch.autograd.Function):
    """Forward and backward of this module's head."""

    @staticmethod
    def forward(ctx, query: Tensor, key: Tensor, value: Tensor, plan: Plan):
        exact = wide(query.dtype)
        out = query.new_zeros(*query.shape[:3], value.shape[3], dtype=exact)
        lse = query.new_full(query.shape[:3], -math.inf, dtype=exact)
        with without_autocast(query):
            for hop, (k, v) in plan.travel((key, value)):
                for part in plan.parts(hop):
                    rows, keys = part.rows, part.keys
                    o, part_lse = plan.attend(query[:, :, rows], k[:, :, keys], v[:, :, keys], part)
                    share = torch.sigmoid(part_lse - lse[:, :, rows])  # of the part in what is seen so far
                    out[:, :, rows].lerp_(o.to(exact), share.unsqueeze(-1))
                    lse[:, :, rows] = torch.logaddexp(lse[:, :, rows], part_lse)
        out = out.to(query.dtype)
        ctx.plan = plan
        ctx.save_for_backward(query, key, value, out, lse)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, d_out: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        query, key, value, out, lse = ctx.saved_tensors
        plan: Plan = ctx.plan
        ranks, exact = plan.ranks, lse.dtype
        d_query = torch.zeros_like(query, dtype=exact)
        sums: Sequence[Tensor] = ()
        arriving: Exchange | None = None
        with without_autocast(query):
            for hop, (k, v) in plan.travel((key, value)):
                sums = [torch.zeros_like(x, dtype=exact) for x in (k, v)]
                for part in plan.parts(hop):
                    rows, keys = part.rows, part.keys
                    inputs = [query[:, :, rows], k[:, :, keys], v[:, :, keys]]
                    found = plan.differentiate(inputs, part, out[:, :, rows], lse[:, :, rows], d_out[:, :, rows])
                    for total, at, gradient in zip((d_query, *sums), (rows, keys, keys), found, strict=True):
                        total[:, :, at] += gradient
                if arriving is not None:
                    for total, before in zip(sums, arriving.wait(), strict=True):
                        total += before
                if hop < plan.hops:
                    arriving = Exchange(ranks, sums, ranks.rank + 1, ranks.rank - 1)
            if plan.hops:
                sums = Exchange(ranks, sums, ranks.rank - plan.hops, ranks.rank + plan.hops).wait()
        return d_query.to(query.dtype), *(x.to(key.dtype) for x in sums), None
