"""Attention with modifiers as a user of plain PyTorch writes it: the whole matrix of scores, or torch's operator with a
whole mask. The baseline of the modifiers of ``fusednn.functional.scaled_dot_product_attention``."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def causal_mask(T: int, window: int | None, device: torch.device) -> Tensor:
    """[T, T] bool: the past, or the last ``window`` tokens of it."""
    seen = torch.ones(T, T, dtype=torch.bool, device=device).tril()
    return seen if window is None else seen.triu(1 - window)


def windowed(q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
    """Torch's operator with a mask."""
    return F.scaled_dot_product_attention(q, k, v, causal_mask(q.shape[-2], window, q.device))


def softcapped(q: Tensor, k: Tensor, v: Tensor, softcap: float) -> Tensor:
    """Gemma 2's causal attention."""
    scores = softcap * torch.tanh(q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1]) / softcap)
    return torch.softmax(scores.masked_fill(~causal_mask(q.shape[-2], None, q.device), -math.inf), -1) @ v


def with_sink(q: Tensor, k: Tensor, v: Tensor, sink: Tensor) -> Tensor:
    """The causal attention of gpt-oss."""
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
    scores = scores.masked_fill(~causal_mask(q.shape[-2], None, q.device), -math.inf)
    column = sink[:, None, None].expand(*scores.shape[:-1], 1)
    return torch.softmax(torch.cat([scores, column], -1), -1)[..., :-1] @ v


def with_alibi(q: Tensor, k: Tensor, v: Tensor, slopes: Tensor) -> Tensor:
    """Torch's operator with a float mask of distances."""
    T = q.shape[-2]
    i = torch.arange(T, device=q.device)
    bias = -slopes[:, None, None] * (i[:, None] - i).abs()
    bias = bias.masked_fill(~causal_mask(T, None, q.device), -math.inf)
    return F.scaled_dot_product_attention(q, k, v, bias.to(q.dtype))


def padded(q: Tensor, k: Tensor, v: Tensor, lengths: Tensor) -> Tensor:
    """Torch's operator on padded sequences, causal, with the padding hidden; padding is zero in the result."""
    T = q.shape[-2]
    there = torch.arange(T, device=q.device) < lengths[:, None]
    out = F.scaled_dot_product_attention(q, k, v, causal_mask(T, None, q.device) & there[:, None, None])
    return out * there[:, None, :, None]
