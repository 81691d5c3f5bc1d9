"""Say what a recurrent layer would run, and why; the part of ``explain`` for it."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from . import native
from .kernels import Sizes, fits_text, kernels, launches
from .layers.cells import RecurrentCell
from .layers.recurrent import RecurrentLayer
from .occupancy import gpu_like
from .plan import SHORT, Plan, Request, layer_by_layer, plan
from .reference.attention import is_autocast_on


def describe(chosen: Plan, sizes: Sizes | None = None, layers: int = 1, dropout: bool = False) -> str:
    """A plan as text: the choice, what it costs, and why each other strategy was not taken.

    Args:
        chosen: the plan.
        sizes: of one layer, where they are known.
        layers: how many layers there are.
        dropout: whether something stands between them.
    """
    request, walk = chosen.request, []
    if chosen.strategy.name == "grid" and sizes is not None and layers > 1:
        reason = layer_by_layer(request, layers, dropout)
        walk = [f"layers     {layers}, {'all in one launch forward' if reason is None else f'one by one: {reason}'}"]
        if reason is None:
            sizes, layers = dataclasses.replace(sizes, layers=layers), 1
    lines = [
        f"cell       {request.cell}, {request.dtype} on {request.device}",
        *([f"options    {', '.join(request.options)}"] if request.options else []),
        f"strategy   {chosen.strategy.name}: {chosen.strategy.idea}",
        f"why        {chosen.reason}",
        *walk,
        *(_cuda_lines(chosen, sizes, layers) if chosen.strategy.cuda else _host_lines(chosen, sizes, layers)),
    ]
    reasons: dict[str, list[str]] = {}
    for name, why in chosen.refused:
        reasons.setdefault(why, []).append(name)
    return "\n".join([*lines, *(f"not {', '.join(names)}: {why}" for why, names in reasons.items())])


def _host_lines(chosen: Plan, sizes: Sizes | None, layers: int) -> list[str]:
    """Operator calls, and the kernel where one is compiled."""
    calls = chosen.strategy.launches
    if sizes is not None and (count := {"1": 1, "T": sizes.steps}.get(calls)):
        calls = f"{layers * count} (T = {sizes.steps})"
    lines = [f"calls      {calls}"]
    if chosen.request.device == "cpu" and chosen.strategy.name != "reference" and native.MODULE is not None:
        lines.append(f"kernel     {native.MODULE.build_info()['isa']}, {torch.get_num_threads()} threads")
    return lines


def _cuda_lines(chosen: Plan, sizes: Sizes | None, layers: int) -> list[str]:
    """Launches, and for each kernel what holds it back on the GPU that is there, or on an H200."""
    if sizes is None:
        return [f"launches   {chosen.strategy.launches} a layer"]
    ask = (chosen.request.cell, chosen.request.dtype, chosen.strategy.name, sizes)
    found = {mode: launches(*ask, training=mode == "training") for mode in ("inference", "training")}
    calls = {mode: sum(n for launch, n in counted.items() if not launch.replayed) for mode, counted in found.items()
             if counted is not None}  # fmt: skip
    count = ", ".join(f"{mode} {layers * n}" for mode, n in calls.items())
    lines = [f"launches   {count} (T = {sizes.steps})"]
    here = torch.cuda.get_device_name() if chosen.request.device == "cuda" and torch.cuda.is_available() else "H200"
    gpu = gpu_like(here)
    for launch, times in (found["training"] or {}).items():
        if launch.threads == 0:
            lines.append(f"kernel     {layers * times} x {launch.kernel}")
            continue
        grid = " x ".join(map(str, launch.grid))
        line = f"kernel     {layers * times} x {launch.kernel}: {grid} blocks of {launch.threads} threads"
        if launch.replayed:
            line += ", in replays"
        if launch.cluster > 1:
            line += f" in clusters of {launch.cluster}, {launch.resident} at once"
        if launch.cooperative:
            line += f", all resident together, as {launch.resident} can be"
        if gpu is not None:
            line += fits_text(kernels()[launch.kernel], gpu, launch.dynamic, launch.threads)
        lines.append(line)
    return lines


def _options(layer: RecurrentLayer | RecurrentCell) -> tuple[str, ...]:
    return layer.option_names if isinstance(layer, RecurrentLayer) else ()


def _steps_and_batch(layer: RecurrentLayer | RecurrentCell, x: Tensor | PackedSequence) -> tuple[int, int]:
    if isinstance(x, PackedSequence):
        return len(x.batch_sizes), int(x.batch_sizes[0])
    if not isinstance(x, Tensor) or x.dim() not in (1, 2, 3):
        got = f"{x.dim()} dimensions" if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(f"explain() expects the input that {type(layer).__name__} would be called with, got {got}")
    if isinstance(layer, RecurrentCell):
        return 1, x.shape[0] if x.dim() == 2 else 1
    time = 1 if layer.batch_first and x.dim() == 3 else 0
    return x.shape[time], x.shape[1 - time] if x.dim() == 3 else 1


def of_call(layer: RecurrentLayer | RecurrentCell, *inputs: Any, **options: Any) -> str:
    """What a call of a layer or cell would run.

    Raises:
        TypeError: the arguments are not those of the call.
        ValueError: an input that the layer would refuse.
    """
    x = bound(layer.forward, type(layer).__name__, inputs, options)["input"]
    layers, directions = getattr(layer, "num_layers", 1), 2 if getattr(layer, "bidirectional", False) else 1
    steps, batch = _steps_and_batch(layer, x)
    x = x.data
    weight = next(layer.parameters())
    if x.shape[-1] != layer.input_size or (x.dtype != weight.dtype and not is_autocast_on(x.device.type)):
        wanted = f"width {layer.input_size} and {weight.dtype}"
        raise ValueError(f"{type(layer).__name__} takes inputs of {wanted}, got {x.shape[-1]} and {x.dtype}")
    dropout = layer.training and getattr(layer, "dropout", 0) > 0
    proj = getattr(layer, "proj_size", 0)
    dtype, heads = str(computed(x)).removeprefix("torch."), getattr(layer, "heads", 1)
    request = Request(layer.cell, x.device.type, dtype, batch, bool(proj), layer.hidden_size // heads, directions,
                      short=steps <= SHORT, options=_options(layer))  # fmt: skip
    sizes = Sizes(batch, steps, layer.hidden_size // heads, proj // heads, directions, heads)
    return describe(plan(request, layer.strategy), sizes, layers, dropout)


def of_layer(layer: RecurrentLayer | RecurrentCell) -> str:
    """The plan table's answer for a layer or cell, whatever its inputs."""
    parameter = next(layer.parameters())
    directions = 2 if getattr(layer, "bidirectional", False) else 1
    dtype = str(computed(parameter)).removeprefix("torch.")
    request = Request(
        layer.cell, parameter.device.type, dtype, projection=bool(getattr(layer, "proj_size", 0)),
        hidden=layer.hidden_size // getattr(layer, "heads", 1), directions=directions, options=_options(layer),
    )  # fmt: skip
    return describe(plan(request, layer.strategy))


def computed(x: Tensor) -> torch.dtype:
    """The dtype that a layer computes in."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if is_autocast_on(device) and x.dtype != torch.float64 else x.dtype


def bound(function: Callable, name: str, inputs: tuple, options: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a call by their names."""
    try:
        return inspect.signature(function).bind(*inputs, **options).arguments
    except TypeError as error:
        raise TypeError(f"explain() expects the arguments of {name}: {error}") from error
