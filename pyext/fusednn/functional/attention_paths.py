"""The paths that an attention request can take: which one, why, and how each is called."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import attention_operators, triton_kernels  # noqa: F401  (registers the operators)
from ..reference import attention as reference
from .attention_request import Request, heads, leading

MAX_HEAD_SIZE = 256  # of the Triton kernels


def choose(request: Request) -> tuple[str, str]:
    """``triton``, ``torch_sdpa``, ``blocked`` or ``composition``, and why.

    Args:
        request: checked.

    Raises:
        ValueError: ``backend="triton"`` cannot serve the request.
    """
    if request.backend == "triton" or (request.backend == "auto" and request.query.device.type == "cuda"):
        refusal = _triton_refusal(request)
        if refusal is None and request.backend == "auto" and request.query.dtype == torch.float32:
            refusal = "the kernels are tuned for 16 bits; backend='triton' runs them in fp32"
        if refusal is None:
            return "triton", "the fused kernel can serve the request"
        if request.backend == "triton":
            raise ValueError(f"backend='triton' cannot serve this request: {refusal}")
        path, reason = _choose_torch(request)
        return path, f"{reason}; not triton: {refusal}"
    return _choose_torch(request)


def run(request: Request, path: str) -> tuple[Tensor, Tensor | None]:
    """Output, and LSE where the path has it.

    Args:
        request: checked.
        path: what ``choose`` named.
    """
    if path == "torch_sdpa":
        return _torch_sdpa(request), None
    if path == "composition":
        return reference.attention(
            request.query, request.key, request.value, request.attn_mask, request.dropout_p, request.is_causal,
            request.scale, window=_limits(request), softcap=request.softcap, alibi_slopes=request.alibi_slopes,
            sink=request.sink, causal_alignment=request.causal_alignment, return_lse=request.return_lse,
        )  # fmt: skip
    return _operator(request, path)


def _triton_refusal(request: Request) -> str | None:
    """Why the Triton kernels cannot serve a request that is right in itself, or None."""
    query, key, value = request.query, request.key, request.value
    unavailable = triton_kernels.unavailable(query.device.type)
    if unavailable is not None:
        return unavailable
    if query.is_cuda and torch.cuda.get_device_capability(query.device) < (8, 0):
        return "the kernels need compute capability 8.0 or newer"
    if query.is_cuda and query.dtype == torch.float64:
        return "fp64 runs in the interpreter only, for checks of gradients"
    size = max(query.shape[-1], value.shape[-1])
    if size > MAX_HEAD_SIZE:
        return f"the kernels serve head sizes up to {MAX_HEAD_SIZE}, got {size}"
    if heads(key) != heads(value) and 1 not in (heads(key), heads(value)):
        return f"key and value must share heads alike, got {heads(key)} and {heads(value)} heads"
    if torch._C._are_functorch_transforms_active():
        return "the kernels do not run inside transforms of torch.func"
    return None


def _choose_torch(request: Request) -> tuple[str, str]:
    """The path among PyTorch's operations, and why."""
    lack = _torch_lacks(request)
    if lack is None:
        return "torch_sdpa", "torch's scaled_dot_product_attention expresses the request"
    if torch._C._are_functorch_transforms_active():
        if request.starts_q is not None:
            raise ValueError("sequences of different lengths do not run inside transforms of torch.func")
        return "composition", f"{lack}; blocks do not run inside transforms of torch.func"
    return "blocked", lack


def _torch_lacks(request: Request) -> str | None:
    """Why torch's operator cannot serve a request as it is defined here, or None."""
    query, key, value, mask = request.query, request.key, request.value, request.attn_mask
    asked = {
        "softcap": request.softcap,
        "alibi_slopes": request.alibi_slopes,
        "sink": request.sink,
        "returned LSE": request.return_lse or None,
        "window": request.window,
        "sequences of different lengths": request.starts_q,
    }
    missing = [name for name, given in asked.items() if given is not None]
    if missing:
        return f"torch's scaled_dot_product_attention has no {', '.join(missing)}"
    if query.numel() == 0 or key.numel() == 0 or value.numel() == 0:
        return "a dimension is empty: the result is defined as zero on every device"
    if request.deterministic and query.device.type != "cpu":
        return f"torch's kernels on {query.device.type} promise no deterministic gradients"
    if request.is_causal:
        if request.causal_alignment == "bottom_right" and query.shape[-2] != key.shape[-2]:
            return "torch's scaled_dot_product_attention has no bottom-right causal mask without a matrix"
        if mask is not None and mask.shape[-2] != query.shape[-2]:
            return "causal beside a mask of keys would need a matrix"
    if mask is not None and mask.dtype not in (torch.bool, query.dtype):
        return f"not every kernel of torch adds a {mask.dtype} mask to {query.dtype} inputs"
    if torch.is_grad_enabled():
        if mask is not None and mask.requires_grad:
            return "the mask requires a gradient, which torch's fused kernels do not all give"
        if query.dtype == torch.float64 and (query.requires_grad or key.requires_grad or value.requires_grad):
            return "fp64 with gradients: torch's fused kernels have no second derivative"
    return None


def _limits(request: Request) -> tuple[int | None, int | None] | None:
    return None if request.window is None else (request.window[0], request.window[1])


def _operator(request: Request, path: str) -> tuple[Tensor, Tensor]:
    """Our operator, on views [B, N, T, E]: batch dimensions become one, shared heads stay shared."""
    query, key, value, mask, slopes = (
        request.query, request.key, request.value, request.attn_mask, request.alibi_slopes
    )  # fmt: skip
    lead = leading(query, key, value, request.enable_gqa)
    *batch, count = lead or (1,)
    shared = [heads(key), heads(value)]
    if shared[0] != shared[1]:
        if 1 not in shared:  # each of its own groups: bring them together
            key, value = (x.repeat_interleave(count // heads(x), -3) for x in (key, value))
        shared = [count, count]

    def four(x: Tensor, of: int) -> Tensor:
        x = _at_least(x, len(batch) + 3)
        x = x.expand(*batch, of, *x.shape[-2:])
        return x.flatten(0, -4) if batch else x.unsqueeze(0)

    if mask is not None:
        mask = _at_least(mask, len(batch) + 3)
        if len(batch) > 1:
            mask = mask.expand(*batch, *mask.shape[-3:]).flatten(0, -4)
        mask = mask if batch else mask.unsqueeze(0)
    if slopes is not None:
        slopes = slopes.reshape(-1, count)
    seed = None
    if request.dropout_p > 0.0:
        seed = torch.randint(2**63 - 1, (1,), device=query.device)
    left, right = _limits(request) or (None, None)
    if request.is_causal:
        right = 0
    out, lse = torch.ops.fusednn.attention_forward(
        four(query, count), four(key, shared[0]), four(value, shared[1]), mask, slopes, request.sink,
        request.starts_q, request.starts_k, seed,
        reference.default_scale(query.shape[-1]) if request.scale is None else float(request.scale),
        request.softcap, left, right, request.causal_alignment == "bottom_right", request.dropout_p,
        query.shape[-2] if request.longest_q is None else request.longest_q,
        key.shape[-2] if request.longest_k is None else request.longest_k,
        request.deterministic or torch.are_deterministic_algorithms_enabled(), path,
    )  # fmt: skip
    return out.reshape(*lead, *out.shape[2:]), lse.reshape(*lead, lse.shape[2])


def _torch_sdpa(request: Request) -> Tensor:
    """Torch's operator, kept from rows that see nothing: its backends have not always agreed on those.

    Such rows are shown every key, and their output is then replaced by zero, which stops their gradients too.
    """
    mask, is_causal = request.attn_mask, request.is_causal
    dims = max(request.query.dim(), request.key.dim(), request.value.dim())
    # Torch's fused kernels take four dimensions; fewer go to its slow path.
    query, key, value = (_at_least(x) for x in (request.query, request.key, request.value))
    if is_causal and mask is not None:
        distance = reference.distances(query.shape[-2], key.shape[-2], request.causal_alignment, query.device)
        mask = reference.merge_masks(mask, reference.visibility(distance, True, None))
        is_causal = False
    seen = None
    if mask is not None:
        mask = _at_least(mask) if mask.dim() != 2 else mask
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


def _at_least(x: Tensor, dims: int = 4) -> Tensor:
    """Leading dimensions of 1 until there are ``dims``."""
    for _ in range(dims - x.dim()):
        x = x.unsqueeze(0)
    return x
