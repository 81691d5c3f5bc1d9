"""Additive attention in plain PyTorch: the definition of correct. It holds the tensor [B, M, K, H]."""

from __future__ import annotations

import torch
from torch import Tensor

from ..attention_call import wide


def scores(query: Tensor, key: Tensor, weight: Tensor) -> Tensor:
    """``w^T tanh(q + k)`` for each pair: query ``[B, M, H]``, key ``[B, K, H]``, weight ``[H]``, returns ``[B, M, K]``.

    fp32, or fp64 for fp64. Source: D. Bahdanau, K. Cho, Y. Bengio, arXiv:1409.0473, appendix A.1.2.
    """
    exact = wide(query.dtype)
    pairs = query.to(exact).unsqueeze(2) + key.to(exact).unsqueeze(1)
    return torch.tanh(pairs) @ weight.to(exact)
