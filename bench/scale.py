"""What one process and several do in ``bench_scale.py``: attention by the ring, an LSTM with time or layers split.

These run in the ranks of a `bench.fleet.Fleet`. Inputs and parameters come from a seed and are made on every rank.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import Tensor

import fusednn
from fusednn.distributed import local_positions, pipeline_layers, pipeline_time, ring_attention
from fusednn.functional import scaled_dot_product_attention

HEADS, HEAD_SIZE = 1, 64
Results = list[Tensor]  # output, and in training the gradient of each input; this rank's part of the time


def attention_inputs(T: int) -> list[Tensor]:
    """Query, key and value, [1, N, T, E]."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(1, HEADS, T, HEAD_SIZE, generator=generator) for _ in range(3)]


def lstms(H: int, layers: int) -> list[fusednn.LSTM]:
    """A stack, layer by layer."""
    torch.manual_seed(0)
    return [fusednn.LSTM(H, H) for _ in range(layers)]


def lstm_inputs(B: int, T: int, H: int) -> Tensor:
    """[T, B, H]."""
    return torch.randn(T, B, H, generator=torch.Generator().manual_seed(1))


def _runner(function: Callable[..., Tensor], inputs: list[Tensor], mode: str) -> Callable[[], Results]:
    """Forward, and in training the gradients of the sum of squares."""
    training = mode == "training"
    for x in inputs:
        x.requires_grad_(training)

    def run() -> Results:
        for x in inputs:
            x.grad = None
        with nullcontext() if training else torch.no_grad():
            out = function(*inputs)
        if training:
            out.square().sum().backward()
        return [out.detach(), *(x.grad for x in inputs if x.grad is not None)]

    return run


@functools.cache
def attention(T: int, causal: bool, mode: str, layout: str | None) -> Callable[[], Results]:
    """Attention in one process, or by the ring in a layout."""
    inputs = attention_inputs(T)
    if layout is None:
        return _runner(lambda *x: scaled_dot_product_attention(*x, is_causal=causal), inputs, mode)
    positions = local_positions(T, layout=layout)
    parts = [x.index_select(2, positions) for x in inputs]
    return _runner(lambda *x: ring_attention(*x, is_causal=causal, layout=layout), parts, mode)


@functools.cache
def recurrence(B: int, T: int, H: int, layers: int, mode: str, split: str | None, pieces: int) -> Callable[[], Results]:
    """An LSTM in one process, or with its ``time`` split in ``pieces`` batches, or its ``layers`` in chunks."""
    stack, x = lstms(H, layers), lstm_inputs(B, T, H)

    def whole(x: Tensor) -> Tensor:
        for layer in stack:
            x = layer(x)[0]
        return x

    if split is None:
        return _runner(whole, [x], mode)
    rank, size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    if split == "time":
        part = x.tensor_split(size)[rank].clone()
        return _runner(lambda x: pipeline_time(stack[0], x, batches=pieces)[0], [part], mode)
    layer = stack[rank]
    return _runner(lambda *x: pipeline_layers(layer, *(x or (None,)), chunks=pieces)[0], [] if rank else [x], mode)


WORK: dict[str, Callable[..., Callable[[], Results]]] = {"attention": attention, "recurrence": recurrence}


def run(name: str, *arguments: object) -> None:
    """One timed execution."""
    WORK[name](*arguments)()


def results(name: str, *arguments: object) -> Results:
    """What an execution gives on this rank."""
    return WORK[name](*arguments)()
