"""Requests that torch's own operator can serve: whole, sequence by sequence, and window by window.

A window and bottom-right causality need a mask, which is given to torch's operator for some queries at a time, with the
keys that they see: memory grows with T and not with T * T.
"""

from __future__ import annotations

import dataclasses
import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ..attention_call import have_tangents, sequences
from ..reference import attention as reference
from .attention_request import Request, at_least, is_at_most

FEW_PAIRS = 1 << 18  # of query and key: up to here one mask for all is faster
ROWS = (128, 512)  # queries at a time, at least and at most; a window's size between them


def lacks(request: Request) -> str | None:
    """Why torch's operator cannot serve a request as it is defined here, or None."""
    query, key, value, mask = request.query, request.key, request.value, request.attn_mask
    asked = {
        "softcap": request.softcap,
        "alibi_slopes": request.alibi_slopes,
        "sink": request.sink,
        "returned LSE": request.return_lse or None,
    }
    missing = [name for name, given in asked.items() if given is not None]
    if missing:
        return f"torch's scaled_dot_product_attention has no {', '.join(missing)}"
    if query.numel() == 0 or key.numel() == 0 or value.numel() == 0:
        return "a dimension is empty: the result is defined as zero on every device"
    if request.deterministic and query.device.type != "cpu":
        return f"torch's kernels on {query.device.type} promise no deterministic gradients"
    if mask is not None and mask.dtype not in (torch.bool, query.dtype):
        return f"not every kernel of torch adds a {mask.dtype} mask to {query.dtype} inputs"
    if torch.compiler.is_compiling():
        if request.starts_q is not None:
            return "a graph for all lengths cannot take sequences one by one"
        if _by_window(request) and not is_at_most(query.shape[-2] * key.shape[-2], FEW_PAIRS):
            return "a graph for all lengths cannot go window by window"
    if have_tangents((query, key, value, mask)):
        return "torch's fused kernels have no forward-mode derivatives"
    if torch.is_grad_enabled():
        if mask is not None and mask.requires_grad:
            return "the mask requires a gradient, which torch's fused kernels do not all give"
        if query.dtype == torch.float64 and (query.requires_grad or key.requires_grad or value.requires_grad):
            return "fp64 with gradients: torch's fused kernels have no second derivative"
    return None


def run(request: Request) -> Tensor:
    """The output of a request for which ``lacks`` has no objection."""
    if request.starts_q is not None and request.starts_k is not None:
        parts = [
            dataclasses.replace(
                request, starts_q=None, starts_k=None, query=request.query[:, :, q], key=request.key[:, :, k],
                value=request.value[:, :, k],
            )
            for q, k in sequences(request.starts_q, request.starts_k)
        ]  # fmt: skip
        return torch.cat([run(part) for part in parts], dim=2)
    if not _by_window(request):
        return whole(request)
    M, K = request.query.shape[-2], request.key.shape[-2]
    if M * K > FEW_PAIRS:
        return in_windows(request)
    distance = reference.distances(M, K, request.causal_alignment, request.query.device)
    visible = reference.visibility(distance, request.is_causal, request.limits)
    mask = reference.merge_masks(request.attn_mask, visible)
    return whole(dataclasses.replace(request, attn_mask=mask, is_causal=False))


def _by_window(request: Request) -> bool:
    """Whether torch's operator has to be told by a mask what a query sees."""
    return request.window is not None or (
        request.is_causal
        and (
            (request.causal_alignment == "bottom_right" and request.query.shape[-2] != request.key.shape[-2])
            or (request.attn_mask is not None and request.attn_mask.shape[-2] != request.query.shape[-2])
        )
    )


def in_windows(request: Request) -> Tensor:
    """Torch's operator on some queries at a time."""
    M, K = request.query.shape[-2], request.key.shape[-2]
    left, right = request.limits
    right = 0 if request.is_causal else right
    shift = K - M if request.causal_alignment == "bottom_right" else 0
    span = K if left is None or right is None else left + right + 1
    rows = max(ROWS[0], min(ROWS[1], span))
    # Pieces, because each slice's gradient would be a tensor of all keys.
    keys, values = request.key.split(rows, -2), request.value.split(rows, -2)
    sees_a_key = (
        request.attn_mask is None
        and (right is None or shift + right >= 0)
        and (left is None or M - 1 + shift - left < K)
    )
    visible: dict[tuple[int, int, int], Tensor | None] = {}  # most blocks look alike
    found = []
    for i, queries in zip(range(0, M, rows), request.query.split(rows, -2), strict=True):
        end = i + queries.shape[-2]
        first = 0 if left is None else min(K - 1, max(0, i + shift - left)) // rows
        last = len(keys) if right is None else min(len(keys), max(first, (end + shift + right - 1) // rows) + 1)
        seen = slice(first * rows, min(K, last * rows))
        form = (i + shift - seen.start, end - i, seen.stop - seen.start)
        if form not in visible:
            distance = torch.arange(form[0], form[0] + form[1], device=queries.device)[:, None]
            distance = distance - torch.arange(form[2], device=queries.device)
            visible[form] = reference.visibility(distance, False, (left, right))
        mask = request.attn_mask
        if mask is not None:
            mask = mask[..., seen] if mask.shape[-1] > 1 else mask
            mask = mask[..., i:end, :] if mask.shape[-2] > 1 else mask
        part = dataclasses.replace(
            request, query=queries, key=torch.cat(keys[first:last], -2), value=torch.cat(values[first:last], -2),
            is_causal=False, attn_mask=reference.merge_masks(mask, visible[form]),
        )  # fmt: skip
        found.append(whole(part, sees_a_key))
    return torch.cat(found, -2)


def whole(request: Request, sees_a_key: bool = False) -> Tensor:
    """Torch's operator on a request without a window, kept from rows that see nothing unless all rows see a key.

    Its backends have not always agreed on those: they are shown every key, and their output is then replaced by zero,
    which stops their gradients too.
    """
    mask, is_causal = request.attn_mask, request.is_causal
    dims = max(request.query.dim(), request.key.dim(), request.value.dim())
    # Torch's fused kernels take four dimensions; fewer go to its slow path.
    query, key, value = (at_least(x) for x in (request.query, request.key, request.value))
    if is_causal and mask is not None:
        distance = reference.distances(query.shape[-2], key.shape[-2], request.causal_alignment, query.device)
        mask = reference.merge_masks(mask, reference.visibility(distance, True, None))
        is_causal = False
    seen = None
    if mask is not None and not sees_a_key:
        mask = at_least(mask) if mask.dim() != 2 else mask
        if mask.dtype == torch.bool:
            seen = mask.any(-1, keepdim=True)
            mask = mask | ~seen
        else:
            seen = (mask != -math.inf).any(-1, keepdim=True)
            mask = mask.masked_fill(~seen, 0.0)
    out = F.scaled_dot_product_attention(
        query, key, value, mask, request.dropout_p, is_causal, scale=request.scale, enable_gqa=request.enable_gqa
    )
    if seen is not None:
        out = out.masked_fill(~seen, 0.0)
    for _ in range(out.dim() - dims):
        out = out.squeeze(0)
    return out
