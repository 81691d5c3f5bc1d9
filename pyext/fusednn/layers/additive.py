"""Additive attention as a layer."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ..functional import additive_attention
from .inputs import check_input, check_tensor
from .scripting import refuse_script


class AdditiveAttention(nn.Module):
    """Bahdanau's attention: ``softmax over keys of v^T tanh(W q + U k)``.

    Args:
        query_size: width of a query (the decoder's state).
        key_size: width of a key (the encoder's outputs).
        hidden_size: H, the width in which they meet.
        dropout: probability of dropping an attention weight in training.
        device: of the parameters.
        dtype: of the parameters.

    Parameters: ``query_projection.weight`` (W) ``[H, query_size]``, ``key_projection.weight`` (U) ``[H, key_size]``,
    ``weight`` (v) ``[H]``.

    Raises:
        TypeError: a size that is no int.
        ValueError: a size below 1, or dropout outside 0 to 1.

    Source: D. Bahdanau, K. Cho, Y. Bengio, arXiv:1409.0473.

    Example:
        >>> import torch, fusednn
        >>> attention = fusednn.AdditiveAttention(6, 4, 8)
        >>> context, weights = attention(torch.randn(2, 6), torch.randn(2, 5, 4))  # one query a row: a decoder's step
        >>> context.shape, weights.shape
        (torch.Size([2, 4]), torch.Size([2, 5]))
    """

    __prepare_scriptable__ = refuse_script

    def __init__(
        self, query_size: int, key_size: int, hidden_size: int, dropout: float = 0.0,
        device: torch.device | str | None = None, dtype: torch.dtype | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        for name, size in (("query_size", query_size), ("key_size", key_size), ("hidden_size", hidden_size)):
            if not isinstance(size, int):
                raise TypeError(f"{name} must be an int, got {type(size).__name__}")
            if size < 1:
                raise ValueError(f"{name} must be at least 1, got {size}")
        if not 0 <= dropout <= 1:
            raise ValueError(f"dropout must be between 0 and 1, got {dropout}")
        self.dropout = float(dropout)
        self.query_projection = nn.Linear(query_size, hidden_size, bias=False, device=device, dtype=dtype)
        self.key_projection = nn.Linear(key_size, hidden_size, bias=False, device=device, dtype=dtype)
        self.weight = nn.Parameter(torch.empty(hidden_size, device=device, dtype=dtype))
        nn.init.uniform_(self.weight, -1 / math.sqrt(hidden_size), 1 / math.sqrt(hidden_size))

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor | None = None, key_padding_mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Attend from each query over the keys.

        Args:
            query: ``[B, M, query_size]``, or ``[B, query_size]`` for one query a row.
            key: ``[B, K, key_size]``.
            value: ``[B, K, Ev]``; the keys if None.
            key_padding_mask: ``[B, K]``, bool, True where a key is padding, as in ``torch.nn.MultiheadAttention``.

        Returns:
            ``(context, weights)``: ``[B, M, Ev]`` and ``[B, M, K]``, without M for one query a row.

        Raises:
            TypeError: something that is no tensor, dtypes or devices that differ, or a mask that is not bool.
            ValueError: shapes that do not fit.
        """
        widths = self.query_projection.in_features, self.key_projection.in_features
        for name, x, width, shapes, ranks in (
            ("query", query, widths[0], "[B, M, {0}] or [B, {0}]", (2, 3)),
            ("key", key, widths[1], "[B, K, {0}]", (3,)),
        ):
            check_input(self, x, self.weight, name)
            if x.dim() not in ranks or x.shape[-1] != width:
                raise ValueError(f"{name} must be {shapes.format(width)}, got {list(x.shape)}")
        if query.shape[0] != key.shape[0]:
            raise ValueError(f"query and key must have one batch size, got {query.shape[0]} and {key.shape[0]}")
        if value is not None:
            check_input(self, value, self.weight, "value")
            if value.dim() != 3 or value.shape[:2] != key.shape[:2]:
                wanted = f"[B, K, Ev] = [{key.shape[0]}, {key.shape[1]}, Ev]"
                raise ValueError(f"value must be {wanted}, got {list(value.shape)}")
        single = query.dim() == 2
        q = self.query_projection(query.unsqueeze(1) if single else query)
        mask = None
        if key_padding_mask is not None:
            check_tensor(self, key_padding_mask, "key_padding_mask")
            if key_padding_mask.dtype != torch.bool:
                raise TypeError(f"key_padding_mask must be bool, got {key_padding_mask.dtype}")
            if key_padding_mask.shape != key.shape[:2]:
                raise ValueError(
                    f"key_padding_mask must be [B, K] = {list(key.shape[:2])}, got {list(key_padding_mask.shape)}"
                )
            mask = ~key_padding_mask.unsqueeze(1)
        context, weights = additive_attention(
            q, self.key_projection(key), (key if value is None else value).to(q.dtype), self.weight.to(q.dtype), mask,
            self.dropout if self.training else 0.0,
        )  # fmt: skip
        return (context.squeeze(1), weights.squeeze(1)) if single else (context, weights)
