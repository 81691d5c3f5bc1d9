"""Say which path and which kernels an attention call would take; the part of ``explain`` for it."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from . import functional
from .functional.attention import choose_backend, choose_varlen_backend
from .kernels import attention, fits_text, passports
from .layers.attention import MultiheadAttention
from .occupancy import gpu_like
from .triton_kernels import TUNED
from .triton_kernels.configurations import (
    DECODE_FROM,
    HEAD_SIZES,
    WITH_DESCRIPTORS,
    architecture,
    configuration,
    decode_rows,
    one_kernel,
    padded,
    strides_suit,
)


def dense(query: Tensor, key: Tensor, value: Tensor, *inputs: Any, **options: Any) -> str:
    """What a call of ``scaled_dot_product_attention`` would run."""
    path, reason = choose_backend(query, key, value, *inputs, **options)
    lines = [f"attention  {path}", f"why        {reason}"]
    if path == "triton":
        signature = inspect.signature(functional.scaled_dot_product_attention)
        call = signature.bind(query, key, value, *inputs, **options).arguments
        lines += _triton_lines(query, key, value, call)
    return "\n".join(lines)


def of_lengths(*inputs: Any, **options: Any) -> str:
    """What a call of ``varlen_attention`` would run."""
    path, reason = choose_varlen_backend(*inputs, **options)
    return f"attention  {path}\nwhy        {reason}"


def of_layer(layer: MultiheadAttention, *inputs: Any, **options: Any) -> str:
    """What a call of ``MultiheadAttention`` would run; for tensors without data."""
    call = inspect.signature(layer.forward).bind(*inputs, **options)
    call.apply_defaults()
    asked = dict(call.arguments)
    if asked["need_weights"]:
        why = "need_weights=True, the default, asks for the whole score matrix; need_weights=False runs fusednn's"
        return f"attention  torch.nn's own forward\nwhy        {why}"
    given = [asked[name] for name in ("query", "key", "value", "key_padding_mask", "attn_mask", "is_causal")]
    if not layer.is_regular(*given):
        return "attention  torch.nn's own forward\nwhy        nested tensors and mistakes are left to it"
    return dense(*layer.attention_call(*given))


def _triton_lines(query: Tensor, key: Tensor, value: Tensor, call: Mapping[str, Any]) -> list[str]:
    """The passports of the kernels of an attention call, on the GPU that is there, or on an H200."""
    lines = []
    if not query.is_cuda:
        lines.append("kernel     Triton's interpreter: no machine code; an H200 would run:")
    gpu = gpu_like(torch.cuda.get_device_name(query.device)) if query.is_cuda else gpu_like("H200")
    dtype = str(query.dtype).removeprefix("torch.")
    tf32 = bool(torch.backends.cuda.matmul.allow_tf32)
    version, found = passports()
    names = None
    if gpu is not None:
        known = architecture(divmod(int(gpu.capability.replace(".", "")), 10))
        suited = all(map(strides_suit, (query, key, value)))
        size = max(query.shape[-1], value.shape[-1])
        if size <= HEAD_SIZES[-1] and query.dtype != torch.float64:
            hidden = bool(call.get("is_causal")) or call.get("window") is not None
            dropout = call.get("dropout_p", 0.0) > 0.0
            row = one_kernel(known, query.dtype, padded(size), dropout, known in WITH_DESCRIPTORS, not suited)
            single = row is not None and not call.get("deterministic")
            rows = _rows(query, key, known, size, not tf32)
            names = attention(dtype, size, hidden, suited, single, rows, tf32)
        if not suited:
            lines.append("kernel     strides are no multiples of 16 bytes: tiles come by an address a number")
    if gpu is None or names is None or not all(name in found for name in names):
        return [*lines, f"kernel     no passport for {dtype} on this device"]
    for name in names:
        passport = found[name].on(gpu)
        line = f"kernel     {name}"
        if passport is not None:
            line += f": blocks of {passport.threads} threads{fits_text(found[name], gpu)}"
            if passport.in_flight:
                line += f"; {passport.in_flight} of {passport.exponentials} exponentials run under a product"
        lines.append(line)
    if TUNED:
        lines.append("kernel     FUSEDNN_TUNED=1: what tuning chose, if anything, takes the place of these")
    return [*lines, f"passports  Triton {version}, calls without modifiers; forward, then the gradients"]


def _rows(query: Tensor, key: Tensor, known: int, size: int, exact: bool) -> int | None:
    """Rows of the tile that holds all queries of a key head, where the launcher splits the keys; else None."""
    heads = [x.shape[-3] if x.dim() > 2 else 1 for x in (query, key)]
    rows = query.shape[-2] * (heads[0] // max(1, heads[1]))
    if key.shape[-2] < DECODE_FROM:
        return None
    exact = exact and query.dtype == torch.float32
    return decode_rows(rows, configuration("decode", known, query.dtype, padded(size), False, exact=exact))
