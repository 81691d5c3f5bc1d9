"""Additive (Bahdanau) attention."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import additive_operators  # noqa: F401  (registers torch.ops.fusednn.additive_scores)
from ..reference import additive as reference
from .arguments import check_number, check_tensors
from .recurrent import _is_transformed


def additive_attention(
    query: Tensor, key: Tensor, value: Tensor, weight: Tensor, attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Attend by ``softmax over k of w^T tanh(q + k)`` and return the weighted mean of the values.

    Query and key are already projected to a common width. tanh of a pair is computed where it is summed: no tensor
    ``[B, M, K, H]`` exists, forward or backward, and memory is that of the weights. Differentiable to any order.

    Args:
        query: ``[B, M, H]``.
        key: ``[B, K, H]``.
        value: ``[B, K, Ev]``.
        weight: ``[H]``.
        attn_mask: bool, True where a query may attend; broadcasts to ``[B, M, K]``.
        dropout_p: probability of dropping an attention weight.

    Returns:
        ``(output, weights)``, ``[B, M, Ev]`` and ``[B, M, K]`` in the dtype of the query. A row that may attend to
        nothing gives zeros.

    Raises:
        TypeError: something that is no tensor, tensors of different dtype or device, or a mask that is not bool.
        ValueError: shapes that do not fit, or dropout_p outside 0 to 1.

    Source: D. Bahdanau, K. Cho, Y. Bengio, arXiv:1409.0473.

    Example:
        >>> import torch, fusednn
        >>> q, k, v = torch.randn(2, 3, 8), torch.randn(2, 5, 8), torch.randn(2, 5, 4)
        >>> out, weights = fusednn.functional.additive_attention(q, k, v, torch.randn(8))
        >>> out.shape, weights.shape
        (torch.Size([2, 3, 4]), torch.Size([2, 3, 5]))
    """
    _check(query, key, value, weight, attn_mask, dropout_p)
    device = query.device.type
    if device != "meta" and torch.is_autocast_enabled(device) and query.dtype != torch.float64:
        low = torch.get_autocast_dtype(device)
        query, key, value, weight = (t.to(low) for t in (query, key, value, weight))
    if not torch.compiler.is_compiling() and _is_transformed():
        scores = reference.scores(query, key, weight)
    else:
        scores = torch.ops.fusednn.additive_scores(query, key, weight)
    if attn_mask is not None:
        seen = attn_mask.expand(scores.shape)
        scores = scores.masked_fill(~seen, float("-inf"))
        scores = scores.masked_fill(~seen.any(-1, keepdim=True), 0.0)  # an empty row: any weights, and then none
        weights = torch.softmax(scores, -1).masked_fill(~seen, 0.0)
    else:
        weights = torch.softmax(scores, -1)
    weights = weights.to(value.dtype)
    with torch.amp.autocast(device, enabled=False):
        return torch.nn.functional.dropout(weights, dropout_p) @ value, weights


def _check(query, key, value, weight, attn_mask, dropout_p: float) -> None:
    check_tensors(query=query, key=key, value=value, weight=weight)
    for name, tensor in (("key", key), ("value", value), ("weight", weight)):
        if tensor.dtype != query.dtype or tensor.device != query.device:
            raise TypeError(
                f"{name} must have the dtype and device of query ({query.dtype}, {query.device}),"
                f" got {tensor.dtype}, {tensor.device}"
            )
    shapes = [list(t.shape) for t in (query, key, value, weight)]
    if [len(s) for s in shapes] != [3, 3, 3, 1]:
        raise ValueError(f"expected query [B, M, H], key [B, K, H], value [B, K, Ev] and weight [H], got {shapes}")
    (b, m, h), (b_k, k, h_k), (b_v, k_v, _), (h_w,) = shapes
    if (b_k, b_v, h_k, h_w, k_v) != (b, b, h, h, k):
        raise ValueError(f"sizes of query, key, value and weight do not fit: {shapes}")
    if attn_mask is not None:
        check_tensors(attn_mask=attn_mask)
        if attn_mask.dtype != torch.bool:
            raise TypeError(f"attn_mask must be bool, True where a query may attend, got {attn_mask.dtype}")
        try:
            attn_mask.expand(b, m, k)
        except RuntimeError as error:
            raise ValueError(f"attn_mask must broadcast to {[b, m, k]}, got {list(attn_mask.shape)}") from error
    check_number("dropout_p", dropout_p)
    if not 0 <= dropout_p <= 1:
        raise ValueError(f"dropout_p must be between 0 and 1, got {dropout_p}")
