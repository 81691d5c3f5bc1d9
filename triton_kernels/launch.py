"""Attention's kernels on tensors: sizes, strides, grids and the choice of a configuration."""

from __future__ import annotations

import contextvars
from contextlib import nullcontext
from functools import partial
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from ..attention_call import Inputs, Options, wide
from ..reference.philox import limit_of
from . import TUNED, forms, tuned
from . import backward as backward_kernels
from . import decode as decode_kernels
from . import forward as forward_kernels
from .configurations import (
    DECODE_FROM,
    DECODE_KEYS,
    INTERPRETER,
    MERGE_WARPS,
    NARROW_ROW_TERM,
    ROW_TERM,
    WITH_DESCRIPTORS,
    Candidate,
    Configuration,
    architecture,
    configuration,
    decode_rows,
    one_kernel,
    padded,
    strides_suit,
)

# Whether Triton's own functions and ours run in the interpreter: fixed when each module is imported.
INTERPRETED = not isinstance(triton.language.max, triton.JITFunction)

OLDER = tuple(map(int, triton.__version__.split(".")[:2])) < (3, 9)  # what that means: ``configurations.py``
COMPILER: dict[str, Any] = {} if INTERPRETED else {"enable_fp_fusion": True}  # its default changes in Triton 3.10


class Plan(NamedTuple):
    """How a kernel is launched: tiles, whether they come by descriptors, programs a head, one of ``FORMS``."""

    configuration: Configuration
    described: bool
    blocks: int
    form: str = ""


class Call:
    """What the launches of one call share."""

    def __init__(self, inputs: Inputs, options: Options):
        """Expand the optional tensors to the sizes of the call, and put the options into the kernels' terms."""
        query, key, value, mask, slopes, sink, starts_q, starts_k, seed = inputs
        scale, softcap, left, right, bottom_right, p, longest_q, longest_k, *_ = options
        self.B, self.N, self.M, self.E = query.shape
        self.heads, self.K, self.EV = key.shape[1], key.shape[2], value.shape[3]
        by_distance = left is not None or right is not None or slopes is not None
        self.sequences = None
        if starts_q is not None and starts_k is not None:
            self.sequences = (starts_q, starts_k, self.M, self.K)
            self.B, self.M, self.K = starts_q.shape[0] - 1, longest_q, longest_k
        self.group = self.N // max(1, self.heads)
        self.query, self.key, self.value = query, key, value
        sums = wide(query.dtype)
        self.mask = None if mask is None else mask.expand(self.B, self.N, self.M, self.K)
        if self.mask is not None and self.mask.dtype == torch.bool:
            self.mask = self.mask.view(torch.uint8)
        self.slopes = None if slopes is None else slopes.to(sums).expand(self.B, self.N)
        self.sink = None if sink is None else sink.to(sums).contiguous()
        # Alignment is told only where it matters, and never the shift, which grows with a cache: fewer compilations.
        self.options = (scale, softcap, left, right, int(bottom_right and by_distance))
        self.dropout = None
        if p > 0.0:
            self.dropout = (seed, limit_of(p) - 2**31, 1.0 / (1.0 - p) if p < 1.0 else 0.0)
        self.hidden = left is not None or right is not None
        self.size = max(padded(self.E), padded(self.EV))
        modifiers = (softcap, mask, slopes, sink, self.sequences, self.dropout)
        self.plain = scale > 0.0 and all(modifier is None for modifier in modifiers)
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

    def plan(self, name: str, tiles: tuple, candidate: Candidate | None = None) -> Plan:
        """How to launch a kernel.

        Args:
            name: its name in the table.
            tiles: query, key, value and what else it reads in tiles.
            candidate: of the forward pass, in place of the default.
        """
        form = "shifted" if candidate is None else candidate.form
        if INTERPRETED:
            return self.planned(INTERPRETER, name, self.describable(tiles), form)
        known = architecture(torch.cuda.get_device_capability(self.query.device))
        described = known in WITH_DESCRIPTORS and self.describable(tiles)
        chosen = configuration(
            name, known, self.query.dtype, self.size, self.hidden, dropout=self.dropout is not None,
            masked=self.mask is not None, described=described, narrow=not all(map(describable, tiles)),
            exact=exact(self.query), older=OLDER,
        )  # fmt: skip
        return self.planned((candidate and candidate.row) or chosen, name, described, form)

    def plan_of_one_kernel(self, tiles: tuple, candidate: Candidate | None = None) -> Plan | None:
        """How to launch the backward kernel that computes dQ too, or None where two are the better way."""
        if candidate is not None and candidate.form == "two kernels":
            return None
        if INTERPRETED:
            return self.planned(INTERPRETER, "key_value", self.describable(tiles))
        known = architecture(torch.cuda.get_device_capability(self.query.device))
        described = known in WITH_DESCRIPTORS and self.describable(tiles)
        narrow = not all(map(describable, tiles))
        chosen = one_kernel(known, self.query.dtype, self.size, self.dropout is not None, described, narrow)
        chosen = (candidate and candidate.row) or chosen
        return None if chosen is None else self.planned(chosen, "key_value", described)

    def tuned(self, way: str, tiles: tuple) -> Candidate | None:
        """What tuning chose for calls such as this; it measures calls without modifiers, whose tiles are described."""
        if not TUNED or INTERPRETED or not self.plain:
            return None
        known = architecture(torch.cuda.get_device_capability(self.query.device))
        if known in WITH_DESCRIPTORS and not self.describable(tiles):
            return None
        return tuned.chosen(tuned.key(way, self.query, self.size, self.hidden))

    def planned(self, chosen: Configuration, name: str, described: bool, form: str = "") -> Plan:
        """A plan with the blocks of keys or queries that there are."""
        length, rows = (self.K, chosen.BLOCK_N) if name == "key_value" else (self.M, chosen.BLOCK_M)
        return Plan(chosen, described, -(-length // rows), form)

    def describable(self, tiles: tuple) -> bool:
        """Whether descriptors can stand for all tiles; they would read into a sequence's neighbour."""
        return self.sequences is None and self.M > 0 and self.K > 0 and all(describable(x) for x in tiles)

    def run(self, kernel: Any, plan: Plan, heads: int, tiles: tuple, others: tuple, written: tuple) -> None:
        """Launch one program a block of rows of each head.

        Args:
            kernel: the kernel.
            plan: of ``plan``.
            heads: heads a batch row.
            tiles: query, key, value and what else is read in tiles: the kernel's tensors with a size.
            others: what else has no strides or is absent, with mask and slopes first.
            written: tensors [B, N, T, E] that it writes, or their descriptors.
        """
        chosen = plan.configuration
        programs = plan.blocks * self.B * heads
        if not programs:
            return
        strides = [None if plan.described else x.stride() for x in tiles]
        if plan.described:
            blocks = (chosen.BLOCK_M, chosen.BLOCK_N, chosen.BLOCK_N, chosen.BLOCK_M)
            tiles = tuple(descriptor(x, size) for x, size in zip(tiles, blocks, strict=False))
        more: dict[str, Any] = {}
        if plan.form == "persistent":
            programs, more = min(programs, processors(self.query)), {"HEADS": self.B * heads}
        elif plan.form == "specialized":  # describes its queries itself
            tiles, strides = (self.query, *tiles[1:]), [self.query.stride(), *strides[1:]]
        launch = partial(
            kernel[(programs,)],
            *tiles,
            *others,
            *written,
            *strides,
            *(x.stride() if isinstance(x, Tensor) else None for x in (self.mask, self.slopes, *written)),
            *(self.N, self.group, self.M, self.K, self.options, self.dropout, self.sequences),
            BLOCK_M=chosen.BLOCK_M,
            BLOCK_N=chosen.BLOCK_N,
            num_warps=chosen.warps,
            num_stages=chosen.stages,
            **more,
            **self.constants,
            **COMPILER,
        )
        if plan.form == "specialized":
            contextvars.copy_context().run(with_scratch, launch, self.query.device)
        else:
            launch()


def with_scratch(launch: Any, device: torch.device) -> None:
    """Launch a kernel that makes descriptors, in memory from torch; alters its context, which is to be a copy."""
    triton.set_allocator(lambda size, alignment, stream: torch.empty(size, dtype=torch.int8, device=device))
    launch()


def describable(x: Tensor) -> bool:
    """Whether the hardware can describe a tensor [B, N, T, E]: aligned to 16 bytes, the last dimension dense."""
    return x.data_ptr() % 16 == 0 and strides_suit(x)


def descriptor(x: Tensor, rows: int) -> TensorDescriptor:
    """Of blocks [1, 1, rows, padded E]; a dimension of 1 is given the stride of a dense one, since torch's is any."""
    strides = list(x.stride())
    for k in (2, 1, 0):
        if x.shape[k] == 1:
            strides[k] = strides[k + 1] * x.shape[k + 1]
    return TensorDescriptor(x, list(x.shape), strides, [1, 1, rows, padded(x.shape[3])])


def precision(query: Tensor) -> str:
    """TF32 where torch's switch for matrix products allows it."""
    allowed = query.dtype == torch.float32 and query.is_cuda and torch.backends.cuda.matmul.allow_tf32
    return "tf32" if allowed else "ieee"


def exact(query: Tensor) -> bool:
    """Whether products are those of fp32 without TF32."""
    return query.dtype == torch.float32 and precision(query) == "ieee"


def on_device(x: Tensor):
    """Triton launches on the current device: make it the tensor's."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()


def forward(inputs: Inputs, options: Options, out: Tensor, lse: Tensor, candidate: Candidate | None = None) -> None:
    """Compute output and LSE.

    Args:
        inputs: tensors.
        options: options.
        out: written, [B, N, M, Ev].
        lse: written, [B, N, M] contiguous, fp32 (fp64 for fp64).
        candidate: what to try in place of the default; only for calls without sequences.
    """
    call = Call(inputs, options)
    tiles = (call.query, call.key, call.value)
    with on_device(call.query):
        if candidate is None and call.sequences is None and call.K >= DECODE_FROM:
            plan = call.plan("decode", (call.key, call.value))
            rows = decode_rows(call.M * call.group, plan.configuration)
            if rows is not None:
                decode(call, plan, rows, out, lse)
                return
        plan = call.plan("forward", tiles, candidate or call.tuned("forward", tiles))
        if plan.form == "ping-pong":
            ping_pong(call, plan, out, lse)
            return
        kernels = {
            "shifted": forward_kernels.forward_kernel,
            "persistent": forms.persistent_kernel,
            "specialized": forms.specialized_kernel,
        }
        call.run(
            kernels[plan.form], plan, call.N,
            tiles, (call.mask, call.slopes, call.sink, lse), (out,),
        )  # fmt: skip


def ping_pong(call: Call, plan: Plan, out: Tensor, lse: Tensor) -> None:
    """``forward`` by the kernel in Gluon, for calls without modifiers but position.

    Raises:
        ImportError: Triton has no Gluon, or not the one that the kernel is written in.
        ValueError: the kernel cannot compute the call.
    """
    if INTERPRETED:
        raise ValueError("Triton's interpreter cannot run Gluon")
    if not call.plain or not plan.described:
        raise ValueError("the ping-pong kernel needs tiles by descriptors, and no modifiers but position")
    from .ping_pong import ping_pong_kernel, with_layout

    chosen, programs = plan.configuration, plan.blocks * call.B * call.N
    if not programs:
        return
    rows = (chosen.BLOCK_M // 2, chosen.BLOCK_N, chosen.BLOCK_N)
    tiles = [with_layout(descriptor(x, size)) for x, size in zip((call.query, call.key, call.value), rows, strict=True)]
    ping_pong_kernel[(programs,)](
        *tiles, lse, out, out.stride(), call.N, call.group, call.M, call.K, call.options,
        EV=call.EV, BLOCK_M=chosen.BLOCK_M, BLOCK_N=chosen.BLOCK_N, STAGES=chosen.stages,
        num_warps=chosen.warps, num_stages=chosen.stages, **COMPILER,
    )  # fmt: skip


def decode(call: Call, plan: Plan, rows: int, out: Tensor, lse: Tensor) -> None:
    """``forward`` for few queries and many keys, which are split so that the device is full; the parts are merged."""
    heads = call.B * call.heads
    if not heads * call.M:
        return
    splits = max(1, min(processors(call.query) // heads, call.K // DECODE_KEYS))
    part_lse, parts = lse.unsqueeze(3), out.unsqueeze(3)
    if splits > 1:
        part_lse = lse.new_empty(splits, *lse.shape).movedim(0, 3)
        parts = lse.new_empty(splits, *lse.shape, call.EV).movedim(0, 3)  # so that strides do not depend on the splits
    chosen = plan.configuration
    key, value = call.key, call.value
    strides = tuple(None if plan.described else x.stride() for x in (key, value))
    if plan.described:
        key, value = (descriptor(x, chosen.BLOCK_N) for x in (key, value))
    decode_kernels.decode_kernel[(heads * splits,)](
        call.query, key, value, call.mask, call.slopes, call.sink if splits == 1 else None, part_lse, parts,
        call.query.stride(), *strides,
        *(None if x is None else x.stride() for x in (call.mask, call.slopes, part_lse, parts)),
        call.N, call.group, call.M, call.K, call.options, call.dropout, splits,
        ROWS=rows, BLOCK_N=chosen.BLOCK_N, num_warps=chosen.warps, num_stages=chosen.stages,
        **call.constants, **COMPILER,
    )  # fmt: skip
    if splits > 1:
        decode_kernels.merge_kernel[(lse.numel(),)](
            parts, part_lse, call.sink, lse, out, out.stride(), call.B, call.N, call.M, splits,
            EV=call.EV, BLOCK_V=call.constants["BLOCK_V"], BLOCK_S=16, num_warps=MERGE_WARPS, **COMPILER,
        )  # fmt: skip


def processors(x: Tensor) -> int:
    """Multiprocessors of the tensor's device; an H100's where there is none."""
    return torch.cuda.get_device_properties(x.device).multi_processor_count if x.is_cuda else 132


def backward(
    grad_out: Tensor, grad_lse: Tensor | None, inputs: Inputs, options: Options, out: Tensor, lse: Tensor,
    found: list[Tensor | None], candidate: Candidate | None = None,
) -> None:  # fmt: skip
    """Compute the gradients of query, key, value, mask, slopes and sink.

    Args:
        grad_out: gradient of the output.
        grad_lse: of the LSE, or None.
        inputs: as for ``forward``.
        options: likewise.
        out: what ``forward`` gave.
        lse: what ``forward`` gave.
        found: written: six tensors of the sizes of the inputs, None for those not wanted.
        candidate: what to try in place of the default.
    """
    call = Call(inputs, options)
    query, key, value = call.query, call.key, call.value
    dq, dk, dv, dmask, dslopes, dsink = found
    delta = torch.empty_like(lse)
    tiles = (query, key, value, grad_out)
    with on_device(query):
        rows = (ROW_TERM if describable(out) and describable(grad_out) else NARROW_ROW_TERM).BLOCK_M
        programs = -(-lse.shape[2] // rows) * lse.shape[0] * call.N
        if programs:
            backward_kernels.row_kernel[(programs,)](
                out, grad_out, grad_lse, delta,
                out.stride(), grad_out.stride(), None if grad_lse is None else grad_lse.stride(), call.N, lse.shape[2],
                EV=call.EV, BLOCK_V=call.constants["BLOCK_V"], BLOCK_M=rows,
            )  # fmt: skip
        wanted = dk is not None or dv is not None
        one = None
        if wanted and dq is not None and dmask is None and dslopes is None and not options.deterministic:
            one = call.plan_of_one_kernel(tiles, candidate or call.tuned("backward", tiles))
        if wanted:
            dk, dv = (torch.empty_like(x) if d is None else d for d, x in ((dk, key), (dv, value)))
            plan, sums, target = call.plan("key_value", tiles) if one is None else one, None, None
            if one is not None:
                sums = target = torch.zeros_like(query, dtype=lse.dtype, memory_format=torch.contiguous_format)
                if one.described and not INTERPRETED and describable(sums):  # the interpreter's cannot add
                    target = descriptor(sums, one.configuration.BLOCK_M)
            call.run(
                backward_kernels.key_value_kernel, plan, call.heads,
                tiles, (call.mask, call.slopes, lse, delta), (target, dk, dv),
            )  # fmt: skip
            if sums is not None and dq is not None:
                torch.mul(sums, options.scale, out=dq)
        if one is None and (dq is not None or dmask is not None or dslopes is not None):
            dq = torch.empty_like(query) if dq is None else dq
            # Position hides whole blocks, and sequences end: what the kernel leaves as it is.
            ds = None if dmask is None else mask_buffer(dmask, call)
            plan = call.plan("query", tiles)
            parts = None if dslopes is None else lse.new_zeros(call.B, call.N, plan.blocks)
            call.run(
                backward_kernels.query_kernel, plan, call.N,
                tiles, (call.mask, call.slopes, lse, delta, parts), (dq, ds),
            )  # fmt: skip
            if dmask is not None and ds is not dmask:
                dmask.copy_(ds.sum_to_size(dmask.shape))
            if dslopes is not None:
                dslopes.copy_(parts.sum(-1).sum_to_size(dslopes.shape))
    if dsink is not None:  # the sink's share of each row times the row term
        share = torch.where(torch.isneginf(lse), 0.0, torch.exp(call.sink[:, None] - lse))  # [B, N, M]
        dsink.copy_(-(share * delta).sum((0, 2)))


def mask_buffer(dmask: Tensor, call: Call) -> Tensor:
    """Zeros of one number a score: the gradient itself where the mask has every dimension."""
    shape = (call.B, call.N, call.M, call.K)
    return dmask.zero_() if dmask.shape == shape else dmask.new_zeros(shape, dtype=wide(call.query.dtype))
