"""Attention in plain PyTorch: the definition of correct, and what runs where no faster kernel can express a request.

One function a modifier, in the order in which the contract applies them: scale, softcap, ALiBi, mask, then a softmax in
which an optional sink takes part. Letters: N heads, M queries, K keys, E head size; ``...`` are batch dimensions.
The derivation, with the gradients, is in ``docs/kernels/attention.md``.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor

from ..attention_call import wide
from . import philox

Window = tuple[int | None, int | None]


def is_autocast_on(device: str) -> bool:
    """Whether autocast is enabled for a device type; the meta device, for one, knows no autocast."""
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)


def without_autocast(x: Tensor) -> AbstractContextManager:
    """Within it operations on the tensor's device keep their dtypes."""
    device = x.device.type
    return torch.autocast(device, enabled=False) if is_autocast_on(device) else nullcontext()


def default_scale(head_size: int) -> float:
    """The scale of a request that names none: 1 / sqrt(E)."""
    return 1.0 / math.sqrt(head_size) if head_size else 1.0


def share_heads(x: Tensor, heads: int) -> Tensor:
    """Give each of N query heads a copy of the key or value head it shares: [..., N / G, K, E] to [..., N, K, E].

    One head is left to broadcasting. Source: Ainslie et al. 2023 (grouped-query attention); consecutive query heads
    share a head, as in torch.
    """
    return x.repeat_interleave(heads // x.shape[-3], dim=-3) if 1 < x.shape[-3] < heads else x


def distances(queries: int, keys: int, alignment: str, device: torch.device) -> Tensor:
    """How far key j lies before query i, i - j: [M, K]. Bottom-right alignment counts i from K - M."""
    first = keys - queries if alignment == "bottom_right" else 0
    i = torch.arange(queries, device=device).unsqueeze(-1) + first  # [M, 1]
    return i - torch.arange(keys, device=device)


def visibility(distance: Tensor, is_causal: bool, window: Window | None) -> Tensor | None:
    """Which keys position alone lets a query see, [M, K] bool; None if all.

    Source: Vaswani et al. 2017 (causal); Beltagy et al. 2020, Longformer (window).
    """
    left, right = window if window is not None else (None, None)
    conditions = []
    if is_causal:
        conditions.append(distance >= 0)
    if left is not None:
        conditions.append(distance <= left)
    if right is not None:
        conditions.append(distance >= -right)
    seen = None
    for condition in conditions:
        seen = condition if seen is None else seen & condition
    return seen


def merge_masks(mask: Tensor | None, visible: Tensor | None) -> Tensor | None:
    """The mask with the keys that position hides hidden too: bool (True is seen) or float (added)."""
    if mask is None or visible is None:
        return visible if mask is None else mask
    return mask & visible if mask.dtype == torch.bool else mask.masked_fill(~visible, -math.inf)


def soften(scores: Tensor, softcap: float) -> Tensor:
    """Bound the scores to (-softcap, softcap). Source: Gemma Team 2024 (Gemma 2), section 2."""
    return softcap * torch.tanh(scores / softcap)


def add_alibi(scores: Tensor, slopes: Tensor, distance: Tensor) -> Tensor:
    """Subtract slope * |i - j|. Source: Press et al. 2022 (ALiBi); slopes [N] or [..., N]."""
    return scores - slopes[..., None, None] * distance.abs()


def apply_mask(scores: Tensor, mask: Tensor) -> Tensor:
    """Hide what a bool mask hides, or add a float mask."""
    if mask.dtype == torch.bool:
        return scores.masked_fill(~mask, -math.inf)
    return scores + mask.to(scores.dtype)


def append_sink(scores: Tensor, sink: Tensor) -> Tensor:
    """One more column, which takes probability and has no value. Source: Xiao et al. 2023; learned as in gpt-oss."""
    column = sink[..., None, None].expand(*scores.shape[:-1], 1)  # [N] to [..., N, M, 1]
    return torch.cat([scores, column], dim=-1)


def softmax(scores: Tensor, keys: int, with_lse: bool) -> tuple[Tensor, Tensor | None]:
    """Weights of the first ``keys`` columns, [..., M, K], and the LSE of all columns, [..., M], where wanted.

    A row of nothing but -inf has weights 0 and LSE -inf, and lets no gradient through.
    """
    empty = (scores == -math.inf).all(-1, keepdim=True)
    scores = scores.masked_fill(empty, 0.0)
    weights = torch.softmax(scores, dim=-1).masked_fill(empty, 0.0)[..., :keys]
    lse = torch.logsumexp(scores, dim=-1).masked_fill(empty.squeeze(-1), -math.inf) if with_lse else None
    return weights, lse


def kept(seed: Tensor, probability: float, heads: Tensor, queries: Tensor, keys: Tensor) -> Tensor:
    """Which weights dropout keeps, the same in every block and on every device; bool.

    Weight (head, i, j) draws word j % 4 of Philox4x32-10 with counter (j // 4, i, head, 0), and is dropped where that
    is below ``probability`` * 2^32.

    Args:
        seed: [1] int64.
        probability: of dropping.
        heads: b * N + n of each row of scores; int64, and so the other two; the three broadcast.
        queries: i.
        keys: j.
    """
    return philox.draw(seed, keys, queries, heads, torch.zeros_like(keys)) >= philox.limit_of(probability)


def drop(weights: Tensor, keep: Tensor, probability: float) -> Tensor:
    """Zero what is not kept, and scale the rest so that the mean stays. Source: Srivastava et al. 2014."""
    return (weights * keep) / (1.0 - probability) if probability < 1.0 else weights * 0.0


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    *,
    window: Window | None = None,
    softcap: float | None = None,
    alibi_slopes: Tensor | None = None,
    sink: Tensor | None = None,
    causal_alignment: str = "top_left",
    return_lse: bool = False,
    seed: Tensor | None = None,
    first_head: int = 0,
) -> tuple[Tensor, Tensor | None]:
    """Attention as the contract defines it, from a score matrix that is held in memory.

    Everything is computed in fp32 (fp64 for fp64 inputs), autocast or not; only the output is rounded to the dtype of
    ``query``. Differentiable to any order in every floating-point argument. Arguments are not checked here.

    Args:
        query: [..., N, M, E]. 2-D tensors are one head.
        key: [..., N / G, K, E]; fewer heads than the query has are shared, where they divide its heads.
        value: [..., N / G, K, Ev].
        attn_mask: bool (True is seen) or float (added), broadcastable to [..., N, M, K].
        dropout_p: probability of dropping an attention weight.
        is_causal: hide keys after the query, in addition to ``attn_mask``.
        scale: factor of the scores; 1 / sqrt(E) if None.
        window: (left, right); None is an unlimited side.
        softcap: bound of the scores.
        alibi_slopes: [N] or [..., N].
        sink: [N].
        causal_alignment: ``top_left`` or ``bottom_right``; that counts queries from K - M, for window and ALiBi too.
        return_lse: compute the LSE.
        seed: [1] int64, from which ``kept`` draws; None draws from torch's generator.
        first_head: number of the first head, for ``kept``.

    Returns:
        output [..., N, M, Ev] in the dtype of ``query``, LSE [..., N, M] in the dtype of the computation, or None.
    """
    dtype = wide(query.dtype)
    with without_autocast(query):
        q, k, v = query.to(dtype), key.to(dtype), value.to(dtype)
        if q.dim() > 2:
            k, v = (x if x.dim() == 2 else share_heads(x, q.shape[-3]) for x in (k, v))
        distance = distances(q.shape[-2], k.shape[-2], causal_alignment, q.device)
        mask = merge_masks(attn_mask, visibility(distance, is_causal, window))

        scores = (q @ k.transpose(-2, -1)) * (default_scale(q.shape[-1]) if scale is None else scale)
        if softcap is not None:
            scores = soften(scores, softcap)
        if alibi_slopes is not None:
            scores = add_alibi(scores, alibi_slopes.to(dtype), distance)
        if mask is not None:
            scores = apply_mask(scores, mask)
        if sink is not None:
            scores = append_sink(scores, sink.to(dtype))
        weights, lse = softmax(scores, k.shape[-2], return_lse)
        if dropout_p > 0.0 and seed is None:
            weights = F.dropout(weights, dropout_p)
        elif seed is not None:
            heads = torch.arange(weights.shape[:-2].numel(), device=q.device).view(*weights.shape[:-2], 1, 1)
            i, j = (torch.arange(size, device=q.device) for size in weights.shape[-2:])
            keep = kept(seed, dropout_p, heads + first_head, i[:, None], j)
            weights = drop(weights, keep, dropout_p)
        out = weights @ v
    return out.to(query.dtype), None if lse is None else lse.expand(out.shape[:-1])
