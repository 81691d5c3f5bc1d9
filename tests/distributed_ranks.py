"""What the ranks do in the tests of ``fusednn.distributed``; arguments and results travel between processes."""

from __future__ import annotations

import os

import torch
import torch.distributed as dist
from torch import Tensor

from bench import text, train
from bench.train_distributed import curve
from fusednn.distributed import local_positions, pipeline_layers, pipeline_time, ring_attention


def ring(x: dict[str, Tensor], weight: Tensor, options: dict) -> dict[str, Tensor]:
    """This rank's positions, its output, and its gradients of the sum of all outputs times ``weight``."""
    at = local_positions(weight.shape[2], layout=options["layout"])
    parts = {name: t.detach().index_select(2, at).requires_grad_() for name, t in x.items()}
    out = ring_attention(**parts, **options)
    out.backward(weight.index_select(2, at).to(out.dtype))
    gradients = {name: t.grad for name, t in parts.items()}
    return {"positions": at, "output": out.detach(), **gradients}


def kept_for_backward(length: int) -> tuple[int, int]:
    """Numbers that autograd keeps of one call, and those of its inputs, output and log-sum-exp."""
    sizes = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (sizes.append(t.numel()), t)[1], lambda t: t):
        x = torch.randn(1, 2, length, 4, requires_grad=True)
        ring_attention(x, x, x)
    return sum(sizes), 4 * x.numel() + 2 * length


def refused(call: str) -> str:
    """How a call is refused on this rank."""
    rank = dist.get_rank()
    x = torch.randn(1, 2, 4 + rank, 4)
    calls = {
        "lengths": lambda: ring_attention(x, x, x),
        "causality": lambda: ring_attention(x[:, :, :4], x[:, :, :4], x[:, :, :4], is_causal=rank == 0),
        "odd": lambda: ring_attention(x[:, :, :3], x[:, :, :3], x[:, :, :3], layout="zigzag"),
        "positions": lambda: local_positions(6, layout="zigzag"),
    }
    try:
        calls[call]()
    except ValueError as error:
        return str(error)
    return "not refused"


def refused_recurrence(layer: torch.nn.Module, call: str) -> str:
    """How a call is refused on this rank."""
    rank = dist.get_rank()
    x = torch.randn(4, 2 + rank, layer.input_size)
    calls = {
        "layers": lambda: pipeline_layers(layer, None if rank else x, chunks=2),
        "chunks": lambda: pipeline_layers(layer, None if rank else x, chunks=5),
        "batch": lambda: pipeline_time(layer, x),
        "batches": lambda: pipeline_time(layer, x[:, :2], batches=3),
    }
    try:
        calls[call]()
    except (TypeError, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    return "not refused"


def _gradients(loss: Tensor, layer: torch.nn.Module, x: Tensor | None, hx: tuple[Tensor, ...]) -> dict[str, Tensor]:
    loss.backward()
    found = {name: p.grad for name, p in layer.named_parameters()}
    found |= {} if x is None else {"x": x.grad}
    return found | {f"{name}_0": s.grad for name, s in zip("hc", hx, strict=False)}


def _leaf(x: Tensor) -> Tensor:
    return x.detach().clone().requires_grad_()


def _state(tensors: tuple[Tensor, ...]):
    return tensors if len(tensors) > 1 else tensors[0]


def _tensors(state) -> tuple[Tensor, ...]:
    return state if isinstance(state, tuple) else (state,)


def layers(stack: list, x: Tensor, hx: tuple[Tensor, ...], weights: list[Tensor], chunks: int) -> dict[str, Tensor]:
    """Output, states and gradients of this rank's layer; the losses of all ranks add up to that of the whole."""
    rank = dist.get_rank()
    layer = stack[rank]
    mine = _leaf(x) if rank == 0 else None
    start = tuple(_leaf(s[rank : rank + 1]) for s in hx)
    y, state = pipeline_layers(layer, mine, _state(start), chunks=chunks)
    of_y, *of_states = weights
    loss = sum((s * w[rank : rank + 1]).sum() for s, w in zip(_tensors(state), of_states, strict=True))
    if rank == dist.get_world_size() - 1:
        loss = loss + (y * of_y).sum()
    results = dict(zip(("output", "h_n", "c_n"), (y, *_tensors(state)), strict=False))
    return {n: t.detach() for n, t in results.items()} | _gradients(loss, layer, mine, start)


def time(layer, x: Tensor, hx: tuple[Tensor, ...], weights: list[Tensor], cuts: tuple, batches: int) -> dict:
    """Likewise of this rank's part of the time, which is cut where ``cuts`` says."""
    rank = dist.get_rank()
    at = 1 if layer.batch_first else 0
    mine = _leaf(x.tensor_split(cuts, at)[rank])
    start = tuple(_leaf(s) for s in hx) if rank == 0 else ()
    y, state = pipeline_time(layer, mine, _state(start) if start else None, batches=batches)
    of_y, *of_states = weights
    loss = (y * of_y.tensor_split(cuts, at)[rank]).sum()
    if rank == dist.get_world_size() - 1:
        loss = loss + sum((s * w).sum() for s, w in zip(_tensors(state), of_states, strict=True))
    results = dict(zip(("output", "h_n", "c_n"), (y, *_tensors(state)), strict=False))
    return {n: t.detach() for n, t in results.items()} | _gradients(loss, layer, mine, start)


def state_alone(layer, x: Tensor) -> Tensor:
    """Gradient of the input where the loss reads the last state only, on the last rank, and elsewhere nothing."""
    mine = _leaf(x.tensor_split(2)[dist.get_rank()])
    y, state = pipeline_time(layer, mine)
    (y if dist.get_rank() == 0 else state).sum().mul(float(dist.get_rank())).backward()
    return mine.grad


def losses(kind: str, parallel: str) -> list[float]:
    """Held-out bits a byte of a byte model while it trains."""
    train.BATCH = 4
    return curve(kind, "fusednn", parallel, 5, text.load(50_000, 5_000), torch.device("cpu")).bits


def raises_on(rank: int) -> None:
    """Raise on one rank while others wait for it."""
    if dist.get_rank() == rank:
        raise ValueError("rank raised on purpose")
    dist.barrier()


def dies() -> None:
    """End without a word."""
    os._exit(3)
