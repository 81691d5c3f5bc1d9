"""Attention as the later transformers bend it: with a bias, relative positions, or a window and global tokens."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..functional import scaled_dot_product_attention
from ..layers.cache import KeyValueCache
from .positions import sinusoidal


class Attention(nn.Module):
    """Multi-head attention to keys and values that were projected before, with any of our modifiers.

    Args:
        width: of the tokens, ``heads`` times E.
        heads: N.
        bias: of the projections.

    Raises:
        ValueError: heads that do not divide the width.
    """

    def __init__(self, width: int, heads: int, bias: bool = True) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"heads must divide width={width}, got {heads}")
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(width, width, bias=bias) for _ in range(4))

    def remember(self, x: Tensor, before: KeyValueCache | None = None) -> KeyValueCache:
        """Keys and values of tokens ``[B, T, width]``, behind those before."""
        return (before or KeyValueCache()).extend(self._split(self.key(x)), self._split(self.value(x)))

    def forward(self, x: Tensor, seen: KeyValueCache, **modifiers: Any) -> Tensor:
        """Attend from ``[B, M, width]`` to what was remembered; the same shape."""
        query = self._split(self.query(x))
        return self._join(scaled_dot_product_attention(query, seen.key, seen.value, **modifiers))

    def _split(self, x: Tensor) -> Tensor:
        """[B, T, N * E] to [B, N, T, E]."""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def _join(self, x: Tensor) -> Tensor:
        return self.out(x.transpose(1, 2).flatten(2))


class RelativeAttention(Attention):
    """Causal attention whose scores depend on distances: ``(q + u) k_j + (q + v) W_r r_{i-j}``.

    Args:
        width: of the tokens.
        heads: N.
        reach: how far a token sees back.

    Source: Dai et al., arXiv:1901.02860, section 3.3.
    """

    def __init__(self, width: int, heads: int, reach: int) -> None:
        super().__init__(width, heads, bias=False)
        self.reach = reach
        self.position = nn.Linear(width, width, bias=False)
        self.content_bias = nn.Parameter(torch.zeros(heads, 1, width // heads))  # u
        self.position_bias = nn.Parameter(torch.zeros(heads, 1, width // heads))  # v
        self.register_buffer("waves", sinusoidal(reach + 1, width), persistent=False)
        self.waves: Tensor

    def forward(self, x: Tensor, seen: KeyValueCache, **modifiers: Any) -> Tensor:
        """Attend from ``[B, M, width]`` to the last M tokens that were remembered and ``reach`` before each."""
        query, M, K = self._split(self.query(x)), x.shape[1], len(seen)
        waves = self.position(self.waves).unflatten(-1, (self.heads, -1)).transpose(0, 1)  # [N, reach + 1, E]
        by_distance = (query + self.position_bias) @ waves.transpose(-2, -1) / query.shape[-1] ** 0.5
        token = torch.arange(K, device=x.device)
        distance = (token[K - M :, None] - token).clamp(0, self.reach)  # others are not seen
        bias = by_distance.gather(-1, distance.expand(*query.shape[:2], M, K))
        return self._join(scaled_dot_product_attention(
            query + self.content_bias, seen.key, seen.value, bias, is_causal=True, window=(self.reach, None),
            causal_alignment="bottom_right", **modifiers,
        ))  # fmt: skip


class WindowedAttention(Attention):
    """Each token sees its neighbours and the global tokens, the first ones; a global token sees all and is seen by all.

    Neighbours and global tokens are two softmaxes, joined by their log-sum-exps: cost and memory are linear in T. All
    tokens share their projections; the paper gives global ones their own.

    Args:
        width: of the tokens.
        heads: N.
        window: how many neighbours are seen on each side.
        global_tokens: how many tokens are global.

    Source: Beltagy, Peters and Cohan, arXiv:2004.05150, section 3.1.
    """

    def __init__(self, width: int, heads: int, window: int, global_tokens: int = 0) -> None:
        super().__init__(width, heads)
        self.window, self.global_tokens = window, global_tokens

    def forward(self, x: Tensor, seen: KeyValueCache, **modifiers: Any) -> Tensor:
        """Attend among tokens ``[B, T, width]``, those that were remembered."""
        q, k, v = self._split(self.query(x)), seen.key, seen.value
        window, G = (self.window, self.window), self.global_tokens
        if not G:
            return self._join(scaled_dot_product_attention(q, k, v, window=window, **modifiers))
        local = (torch.arange(x.shape[1], device=x.device) >= G).unsqueeze(0)  # [1, K]
        near, near_lse = scaled_dot_product_attention(q, k, v, local, window=window, return_lse=True, **modifiers)
        far, far_lse = scaled_dot_product_attention(q, k[:, :, :G], v[:, :, :G], return_lse=True, **modifiers)
        share = (near_lse - far_lse).sigmoid().unsqueeze(-1).to(near.dtype)  # exp(near) / (exp(near) + exp(far))
        whole = scaled_dot_product_attention(q[:, :, :G], k, v, **modifiers)
        return self._join(torch.cat([whole, torch.lerp(far, near, share)[:, :, G:]], 2))


def feed_forward(width: int, inner: int, activation: nn.Module, bias: bool = True) -> nn.Sequential:
    """The network behind attention."""
    return nn.Sequential(nn.Linear(width, inner, bias=bias), activation, nn.Linear(inner, width, bias=bias))
