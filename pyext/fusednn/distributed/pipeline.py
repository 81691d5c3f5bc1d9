"""A recurrent network over ranks: its layers, with the time in chunks, or its time, with batches in flight."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..layers.recurrent import RecurrentLayer
from ..reference.cells import CELLS
from .line import Line
from .ranks import ranks_of

Hidden = Tensor | tuple[Tensor, Tensor]


def pipeline_layers(
    layer: RecurrentLayer, x: Tensor | None, hx: Hidden | None = None, *, chunks: int, group: Any = None
) -> tuple[Tensor, Hidden]:
    """Run a stack of recurrent layers of which each rank has its own, over sequences cut into chunks of time.

    Rank r runs its layers on chunk c while rank r - 1 runs those below on chunk c + 1: with R ranks, C chunks and
    layers of equal cost it takes (C + R - 1) / (C R) of the time of one process. All ranks of the group call it
    together, and all call backward on something that it returned.

    Args:
        layer: this rank's part of the stack, with one direction and any number of layers; what it puts out is as wide
            as what the next rank's takes.
        x: input of the whole stack, on rank 0; None elsewhere.
        hx: initial state of this rank's layers, as ``layer`` takes it; None for zeros.
        chunks: how many; as even as possible.
        group: process group; None for all processes.

    Shape:
        - x: ``[T, B, I]``, or ``[B, T, I]`` with ``batch_first``, which is the same on all ranks.
        - output: ``[T, B, P]`` or ``[B, T, P]`` on the last rank; with T = 0 on others.

    Returns:
        ``(output, state)`` with the state of this rank's layers after the last step: together what the whole stack
        gives in one process. Gradients likewise, to parameters, ``x`` and ``hx``; no second derivatives.

    Raises:
        RuntimeError: there is no process group.
        TypeError: not a recurrent layer of fusednn's, or x missing on rank 0 or given elsewhere.
        ValueError: sizes or chunks that do not fit (on all ranks), a layer that reads the future, or one whose options
            draw anew for each sequence.

    Example:
        >>> import torch, torch.distributed as dist, fusednn
        >>> from fusednn.distributed import pipeline_layers
        >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)  # one process, to show it
        >>> y, state = pipeline_layers(fusednn.GRU(3, 4), torch.randn(6, 2, 3), chunks=3)
        >>> y.shape, state.shape
        (torch.Size([6, 2, 4]), torch.Size([1, 2, 4]))
        >>> dist.destroy_process_group()

    Source: the wavefront of Appleyard, Kocisky and Blunsom 2016, Optimizing Performance of Recurrent Neural Networks on
    GPUs (arXiv:1604.01946), over processes.
    """
    ranks = ranks_of(group, "pipeline_layers")
    like = _check(layer, "pipeline_layers")
    time = 1 if layer.batch_first else 0
    if (x is not None) != (ranks.rank == 0):
        raise TypeError(f"pipeline_layers takes x on rank 0 alone, got {type(x).__name__} on rank {ranks.rank}")
    if x is not None and x.dim() != 3:
        raise ValueError(f"x must have 3 dimensions, got shape {list(x.shape)}")
    size = (0, 0) if x is None else (x.shape[time], x.shape[1 - time])
    given = ranks.gather((chunks, time, layer.input_size, _width(layer), *size), like.device)
    asked, times, inputs, widths, *_ = zip(*given, strict=True)
    steps, batch = map(int, given[0][4:])
    if len(set(asked)) > 1 or len(set(times)) > 1:
        raise ValueError(f"all ranks must have the same chunks and batch_first, got {asked} and {times}")
    if widths[:-1] != inputs[1:]:
        raise ValueError(
            f"each rank's input_size must be the width of the rank before, got {inputs[1:]}, {widths[:-1]}"
        )
    if not 1 <= chunks <= max(steps, 1):
        raise ValueError(f"chunks must be between 1 and T = {steps}, got {chunks}")
    lengths = _evenly(steps, chunks)

    def shapes(width: int) -> list[list[tuple[int, ...]]]:
        return [[(batch, n, width) if time else (n, batch, width)] for n in lengths]

    line = Line(ranks, shapes(layer.input_size), shapes(_width(layer)), like)
    pieces = [None] * chunks if x is None else x.split(lengths, time)
    state, outputs = hx, []
    for piece in pieces:
        y, state = layer(line.arrive()[0] if piece is None else piece, state)
        outputs.append(y if line.last else line.depart(y.detach().narrow(time, 0, 0), y))
    assert state is not None
    y, *states = line.finish(torch.cat(outputs, time), *_tensors(state))
    return y, _hidden(states)


def pipeline_time(
    layer: RecurrentLayer, x: Tensor, hx: Hidden | None = None, *, batches: int = 1, group: Any = None
) -> tuple[Tensor, Hidden]:
    """Run recurrent layers over sequences whose time is split over ranks, each of which waits for the state before it.

    Every rank has all layers, with equal parameters, and its part of the time. A step needs the state before it, so one
    batch of sequences takes as long as in one process, however many ranks there are. With ``batches`` = C of them in
    flight rank r works on batch c while rank r - 1 works on batch c + 1, and R ranks take (C + R - 1) / (C R) of the
    time. What is always divided by R is the memory. All ranks of the group call it together, and all call backward on
    something that it returned.

    Args:
        layer: the whole network, with one direction.
        x: this rank's part of the time: rank 0 has the first, and so on; parts may differ in length.
        hx: initial state, on rank 0; None for zeros.
        batches: parts into which B is cut, as even as possible.
        group: process group; None for all processes.

    Shape:
        - x: ``[T of this rank, B, I]``, or ``[B, T of this rank, I]`` with ``batch_first``; output likewise.

    Returns:
        ``(output, state)`` of this rank's part of the time; on the last rank the state is that after the last step.
        Gradients of ``x`` and ``hx`` are those of the whole; of the parameters each rank has those of its part of the
        time, and their sum over ranks is the whole's. No second derivatives.

    Raises:
        RuntimeError: there is no process group.
        TypeError: not a recurrent layer of fusednn's, or ``hx`` given elsewhere than on rank 0.
        ValueError: sizes or batches that do not fit (on all ranks), a layer that reads the future, or one whose options
            draw anew for each sequence.

    Example:
        >>> import torch, torch.distributed as dist, fusednn
        >>> from fusednn.distributed import pipeline_time
        >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)  # one process, to show it
        >>> y, (h_n, c_n) = pipeline_time(fusednn.LSTM(3, 4), torch.randn(6, 2, 3), batches=2)
        >>> y.shape, c_n.shape
        (torch.Size([6, 2, 4]), torch.Size([1, 2, 4]))
        >>> dist.destroy_process_group()
    """
    ranks = ranks_of(group, "pipeline_time")
    like = _check(layer, "pipeline_time")
    if x.dim() != 3:
        raise ValueError(f"x must have 3 dimensions, got shape {list(x.shape)}")
    if hx is not None and ranks.rank:
        raise TypeError(f"pipeline_time takes hx on rank 0 alone, got one on rank {ranks.rank}")
    across = 0 if layer.batch_first else 1
    batch = x.shape[across]
    ranks.agree(
        like.device,
        batches=batches,
        layers=layer.num_layers,
        width=_width(layer),
        hidden_size=layer.hidden_size,
        B=batch,
    )
    if not 1 <= batches <= max(batch, 1):
        raise ValueError(f"batches must be between 1 and B = {batch}, got {batches}")
    counts = _evenly(batch, batches)
    widths = (_width(layer), layer.hidden_size)[: 1 + CELLS[layer.cell].has_cell_state]
    shapes = [[(layer.num_layers, n, width) for width in widths] for n in counts]
    line = Line(ranks, shapes, shapes, like)
    starts = [None] * batches if hx is None else zip(*(s.split(counts, 1) for s in _tensors(hx)), strict=True)
    outputs, ends = [], []
    for part, start in zip(x.split(counts, across), starts, strict=True):
        if not line.first:
            start = line.arrive()
        y, end = layer(part, None if start is None else _hidden(start))
        outputs.append(y if line.last else line.depart(y, *_tensors(end)))
        ends.append(_tensors(end))
    states = (torch.cat(parts, 1) for parts in zip(*ends, strict=True))
    y, *states = line.finish(torch.cat(outputs, across), *states)
    return y, _hidden(states)


def _check(layer: RecurrentLayer, caller: str) -> Tensor:
    """A tensor of the layer's dtype and device; raises unless the layer can be cut in time."""
    if not isinstance(layer, RecurrentLayer):
        raise TypeError(f"{caller} takes fusednn's RNN, LSTM or GRU, got {type(layer).__name__}")
    if layer.bidirectional:
        raise ValueError(f"{caller} needs a layer with one direction: bidirectional=True reads the future")
    drawn = [name for name in ("recurrent_dropout", "zoneout") if name in layer.options]
    if drawn and layer.training:
        raise ValueError(f"{caller} does not train with {', '.join(drawn)}: each piece of a sequence would draw anew")
    return next(layer.parameters()).detach()


def _evenly(total: int, parts: int) -> list[int]:
    """Sizes as even as can be, the larger ones first."""
    return [total // parts + (i < total % parts) for i in range(parts)]


def _width(layer: RecurrentLayer) -> int:
    """Of the output."""
    return layer.proj_size or layer.hidden_size


def _tensors(state: Hidden) -> tuple[Tensor, ...]:
    return state if isinstance(state, tuple) else (state,)


def _hidden(tensors: Any) -> Hidden:
    """A state as layers have it."""
    return tensors[0] if len(tensors) == 1 else tuple(tensors)
