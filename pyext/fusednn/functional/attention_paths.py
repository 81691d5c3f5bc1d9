"""The paths that an attention request can take: which one, why, and how each is called."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import attention_operators, cpu_attention, triton_kernels  # noqa: F401  (registers the operators)
from ..attention_call import Inputs, Options
from ..reference import attention as reference
from . import torch_attention
from .attention_request import Request, at_least, heads, is_at_most, leading

MAX_HEAD_SIZE = 256  # of the Triton kernels
FEW_SCORES = 1 << 20  # up to here blocks of PyTorch operations are slower than the whole matrix
FEW_QUERIES, MANY_KEYS = 16, 256  # gradients of so few over so many: the CPU's kernel mostly packs keys


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
        return torch_attention.run(request), None
    if path == "composition":
        return reference.attention(
            request.query, request.key, request.value, request.attn_mask, request.dropout_p, request.is_causal,
            request.scale, window=request.limits, softcap=request.softcap, alibi_slopes=request.alibi_slopes,
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
    lack = torch_attention.lacks(request)
    if lack is None:
        return "torch_sdpa", "torch's scaled_dot_product_attention expresses the request"
    if torch._C._are_functorch_transforms_active():
        if request.starts_q is not None:
            raise ValueError("sequences of different lengths do not run inside transforms of torch.func")
        return "composition", f"{lack}; blocks do not run inside transforms of torch.func"
    if request.starts_q is None and is_at_most(request.scores(), FEW_SCORES) and not _kernel_is_faster(request):
        return "composition", f"{lack}; the scores are few enough for one block"
    return "blocked", lack


def _kernel_is_faster(request: Request) -> bool:
    """Than the whole matrix, where that is small: the CPU's kernel, but for gradients of few queries of heads apart.

    In 16 bits the composition converts its tensors, and is slower there too.
    """
    query, key, value = request.query, request.key, request.value
    if not cpu_attention.available(query.device):
        return False
    differentiated = torch.is_grad_enabled() and any(x.requires_grad for x in (query, key, value))
    many_keys = not is_at_most(key.shape[-2], MANY_KEYS - 1)
    few = is_at_most(query.shape[-2], FEW_QUERIES) and many_keys and heads(query) == heads(key)
    return not (differentiated and few and query.dtype in (torch.float32, torch.float64))


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
        x = at_least(x, len(batch) + 3)
        x = x.expand(*batch, of, *x.shape[-2:])
        return x.flatten(0, -4) if batch else x.unsqueeze(0)

    if mask is not None:
        mask = at_least(mask, len(batch) + 3)
        if len(batch) > 1:
            mask = mask.expand(*batch, *mask.shape[-3:]).flatten(0, -4)
        mask = mask if batch else mask.unsqueeze(0)
    if slopes is not None:
        slopes = slopes.reshape(-1, count)
    seed = None
    if request.dropout_p > 0.0:
        seed = torch.randint(2**63 - 1, (1,), device=query.device)
    left, right = request.limits
    inputs = Inputs(
        four(query, count), four(key, shared[0]), four(value, shared[1]), mask, slopes, request.sink,
        request.starts_q, request.starts_k, seed,
    )  # fmt: skip
    options = Options(
        scale=reference.default_scale(query.shape[-1]) if request.scale is None else float(request.scale),
        softcap=request.softcap,
        left=left,
        right=0 if request.is_causal else right,
        bottom_right=request.causal_alignment == "bottom_right",
        dropout_p=request.dropout_p,
        longest_q=query.shape[-2] if request.longest_q is None else request.longest_q,
        longest_k=key.shape[-2] if request.longest_k is None else request.longest_k,
        deterministic=request.deterministic or torch.are_deterministic_algorithms_enabled(),
        path=path,
    )
    out, lse = torch.ops.fusednn.attention_forward(*inputs, *options)
    return out.reshape(*lead, *out.shape[2:]), lse.reshape(*lead, lse.shape[2])
