"""What one call of the attention operators is given, by name.

Letters: B batch, N heads, G query heads that share a key head, M queries, K keys, E head size, Ev size of a value.
With sequences of different lengths B is 1, M and K count the rows of all sequences, which lie one after another, and S
is their number; indices i and j then begin anew in each.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from typing import Any, NamedTuple, get_type_hints

import torch
from torch import Tensor
from torch.autograd import forward_ad


class Inputs(NamedTuple):
    """Tensors of a call.

    Attributes:
        query: [B, N, M, E], any strides; so for key and value.
        key: [B, N / G, K, E].
        value: [B, N / G, K, Ev].
        mask: bool (True is seen) or float (added), expands to [B, N, M, K]; not with sequences.
        slopes: ALiBi's, expand to [B, N], or [S, N].
        sink: one more logit, [N].
        starts_q: where sequences begin among the queries, and where the last one ends: [S + 1] int32.
        starts_k: likewise among the keys.
        seed: of dropout, [1] int64.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | None = None
    slopes: Tensor | None = None
    sink: Tensor | None = None
    starts_q: Tensor | None = None
    starts_k: Tensor | None = None
    seed: Tensor | None = None


LEARNED = 6  # the first of them, which have gradients
MASK = Inputs._fields.index("mask")


class Options(NamedTuple):
    """Numbers of a call.

    Attributes:
        scale: factor of the scores.
        softcap: their bound, or None.
        left: keys that a query sees to its left, or None for all.
        right: to its right; 0 is causal.
        bottom_right: the last query stands at the last key, not the first at the first.
        dropout_p: probability of dropping a weight; more than 0 needs a seed.
        longest_q: queries of the longest sequence; M without sequences.
        longest_k: keys likewise.
        deterministic: whether gradients must repeat bit for bit.
        path: ``triton``, the fused kernels, or ``blocked``, the CPU's kernel, or PyTorch's operations block by block.
    """

    scale: float
    softcap: float | None
    left: int | None
    right: int | None
    bottom_right: bool
    dropout_p: float
    longest_q: int
    longest_k: int
    deterministic: bool
    path: str


def sequences(starts_q: Tensor, starts_k: Tensor) -> list[tuple[slice, slice]]:
    """Rows of queries and rows of keys of each sequence."""
    ends = zip(pairwise(starts_q.tolist()), pairwise(starts_k.tolist()), strict=True)
    return [(slice(*q), slice(*k)) for q, k in ends]


# How torch's schemas spell the types above.
SPELLED = {
    Tensor: "Tensor",
    Tensor | None: "Tensor?",
    float: "float",
    float | None: "float?",
    int: "SymInt",
    int | None: "SymInt?",
    bool: "bool",
    str: "str",
}


def schema(*parts: type) -> str:
    """The operator's arguments, from the fields of ``Inputs`` and ``Options``."""
    return ", ".join(f"{SPELLED[kind]} {name}" for part in parts for name, kind in get_type_hints(part).items())


def split(arguments: tuple) -> tuple[Inputs, Options]:
    """The operator's flat arguments by name."""
    count = len(Inputs._fields)
    return Inputs(*arguments[:count]), Options(*arguments[count:])


def wide(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which sums over keys and queries are taken, and of the LSE."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def have_tangents(values: Iterable[Any]) -> bool:
    """Whether forward-mode AD differentiates with respect to any of the tensors among them."""
    if forward_ad._current_level < 0:
        return False
    return any(isinstance(x, Tensor) and forward_ad.unpack_dual(x).tangent is not None for x in values)
