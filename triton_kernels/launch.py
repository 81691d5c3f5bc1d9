"""Attention's kernels on tensors: sizes, strides, grids and the choice of a configuration."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
import triton
from torch import Tensor

from . import backward as backward_kernels
from . import forward as forward_kernels
from .configurations import INTERPRETER, ROW_TERM, Configuration, architecture, configuration, padded

# Whether Triton's own functions and ours run in the interpreter: fixed when each module is imported.
INTERPRETED = not isinstance(triton.language.max, triton.JITFunction)


def wide(dtype: torch.dtype) -> torch.dtype:
    """The dtype of the accumulators."""
    return torch.float64 if dtype == torch.float64 else torch.float32


class Call:
    """What the launches of one call share."""

    def __init__(self, query: Tensor, key: Tensor, value: Tensor, mask, slopes, sink, options: tuple):
        """Expand the optional tensors to the sizes of the call, and put the options into the kernels' terms."""
        scale, softcap, left, right, bottom_right = options
        self.B, self.N, self.M, self.E = query.shape
        self.heads, self.K, self.EV = key.shape[1], key.shape[2], value.shape[3]
        self.query, self.key, self.value = query, key, value
        exact = wide(query.dtype)
        self.mask = None if mask is None else mask.expand(self.B, self.N, self.M, self.K)
        if self.mask is not None and self.mask.dtype == torch.bool:
            self.mask = self.mask.view(torch.uint8)
        self.slopes = None if slopes is None else slopes.to(exact).expand(self.B, self.N)
        self.sink = None if sink is None else sink.to(exact).contiguous()
        by_distance = left is not None or right is not None or slopes is not None
        shift = self.K - self.M if bottom_right and by_distance else 0  # 0 where it does not matter: fewer compilations
        self.options = (scale, softcap, left, right, shift)
        linear = softcap is None and slopes is None and (mask is None or mask.dtype == torch.bool)
        self.constants = {
            "E": self.E,
            "EV": self.EV,
            "BLOCK_E": padded(self.E),
            "BLOCK_V": padded(self.EV),
            "FOLD": linear and scale > 0.0,
            "PRECISION": precision(query),
            "UPCAST": INTERPRETED and query.dtype == torch.bfloat16,
        }

    def inputs(self) -> tuple:
        """The tensors that every kernel but the row term's reads."""
        return self.query, self.key, self.value, self.mask, self.slopes

    def strides(self, *others: Tensor | None) -> tuple:
        """Strides of ``inputs`` and of further tensors."""
        return tuple(None if x is None else x.stride() for x in (*self.inputs(), *others))

    def sizes(self) -> tuple:
        """N, GROUP, M, K and the options."""
        return self.N, self.N // max(1, self.heads), self.M, self.K, self.options

    def run(self, kernel: Any, name: str, heads: int, length: int, *arguments: Any) -> None:
        """Launch with the table's configuration, one program a block of ``length`` rows of each head."""
        chosen = self.configuration(name)
        rows = chosen.BLOCK_N if name == "key_value" else chosen.BLOCK_M
        programs = -(-length // rows) * self.B * heads
        if programs:
            kernel[(programs,)](
                *arguments,
                BLOCK_M=chosen.BLOCK_M,
                BLOCK_N=chosen.BLOCK_N,
                num_warps=chosen.warps,
                num_stages=chosen.stages,
                **self.constants,
                **({} if INTERPRETED else {"enable_fp_fusion": True}),
            )

    def configuration(self, name: str) -> Configuration:
        """The configuration of a kernel for this call."""
        if INTERPRETED:
            return INTERPRETER
        known = architecture(torch.cuda.get_device_capability(self.query.device))
        return configuration(name, known, self.query.dtype, max(padded(self.E), padded(self.EV)))


def precision(query: Tensor) -> str:
    """TF32 where torch's switch for matrix products allows it."""
    allowed = query.dtype == torch.float32 and query.is_cuda and torch.backends.cuda.matmul.allow_tf32
    return "tf32" if allowed else "ieee"


def on_device(x: Tensor):
    """Triton launches on the current device: make it the tensor's."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()


def forward(
    query: Tensor, key: Tensor, value: Tensor, mask, slopes, sink, options: tuple, out: Tensor, lse: Tensor
) -> None:  # fmt: skip
    """Compute output and LSE.

    Args:
        query: [B, N, M, E], any strides; so for all but the LSE.
        key: [B, N / G, K, E].
        value: [B, N / G, K, Ev].
        mask: bool or float, expands to [B, N, M, K]; or None.
        slopes: expands to [B, N]; or None.
        sink: [N] or None.
        options: scale, softcap, left, right, bottom_right; causal is right = 0.
        out: written, [B, N, M, Ev].
        lse: written, [B, N, M] contiguous, fp32 (fp64 for fp64).
    """
    call = Call(query, key, value, mask, slopes, sink, options)
    with on_device(query):
        call.run(
            forward_kernels.forward_kernel, "forward", call.N, call.M,
            *call.inputs(), call.sink, out, lse, *call.strides(out), *call.sizes(),
        )  # fmt: skip


def backward(
    grad_out: Tensor, grad_lse: Tensor | None, query: Tensor, key: Tensor, value: Tensor, mask, slopes, sink,
    options: tuple, out: Tensor, lse: Tensor, found: list[Tensor | None],
) -> None:  # fmt: skip
    """Compute the gradients of query, key, value, mask, slopes and sink.

    Args:
        grad_out: gradient of the output.
        grad_lse: of the LSE, or None.
        query: as for ``forward``, and so the rest up to options.
        key: see there.
        value: see there.
        mask: see there.
        slopes: see there.
        sink: see there.
        options: see there.
        out: what ``forward`` gave.
        lse: what ``forward`` gave.
        found: written: six tensors of the sizes of the inputs, None for those not wanted.
    """
    call = Call(query, key, value, mask, slopes, sink, options)
    dq, dk, dv, dmask, dslopes, dsink = found
    delta = torch.empty_like(lse)
    with on_device(query):
        programs = -(-call.M // ROW_TERM.BLOCK_M) * call.B * call.N
        if programs:
            backward_kernels.row_kernel[(programs,)](
                out, grad_out, grad_lse, delta,
                out.stride(), grad_out.stride(), None if grad_lse is None else grad_lse.stride(), call.N, call.M,
                EV=call.EV, BLOCK_V=call.constants["BLOCK_V"], BLOCK_M=ROW_TERM.BLOCK_M,
            )  # fmt: skip
        if dk is not None or dv is not None:
            dk, dv = (torch.empty_like(x) if d is None else d for d, x in ((dk, key), (dv, value)))
            call.run(
                backward_kernels.key_value_kernel, "key_value", call.heads, call.K,
                *call.inputs(), grad_out, lse, delta, dk, dv, *call.strides(grad_out, dk, dv), *call.sizes(),
            )  # fmt: skip
        if dq is not None or dmask is not None or dslopes is not None:
            dq = torch.empty_like(query) if dq is None else dq
            # Position hides whole blocks, which the kernel leaves as they are. One gradient a score, and a slope a row.
            ds = None if dmask is None else mask_buffer(dmask, call)
            per_row = None if dslopes is None else torch.empty_like(lse)
            call.run(
                backward_kernels.query_kernel, "query", call.N, call.M,
                *call.inputs(), grad_out, lse, delta, dq, ds, per_row, *call.strides(grad_out, dq, ds), *call.sizes(),
            )  # fmt: skip
            if dmask is not None and ds is not dmask:
                dmask.copy_(ds.sum_to_size(dmask.shape))
            if dslopes is not None:
                dslopes.copy_(per_row.sum(-1).sum_to_size(dslopes.shape))
    if dsink is not None:  # the sink's share of each row times the row term
        share = torch.exp(call.sink[:, None] - lse).masked_fill(torch.isneginf(lse), 0.0)  # [B, N, M]
        dsink.copy_(-(share * delta).sum((0, 2)))


def mask_buffer(dmask: Tensor, call: Call) -> Tensor:
    """Zeros of one number a score: the gradient itself where the mask has every dimension."""
    shape = (call.B, call.N, call.M, call.K)
    return dmask.zero_() if dmask.shape == shape else dmask.new_zeros(shape, dtype=wide(call.query.dtype))
