"""Say which kernel would run for a call, and why."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from . import attention_explanation, functional, native
from .kernels import Sizes, fits_text, kernels, launches
from .layers.attention import MultiheadAttention
from .layers.cells import RecurrentCell
from .layers.recurrent import RecurrentLayer
from .occupancy import gpu_like
from .plan import SHORT, Plan, Request, layer_by_layer, plan


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
    return "\n".join([*lines, *(f"not {name}: {why}" for name, why in chosen.refused)])


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


def _recurrent(layer: RecurrentLayer | RecurrentCell, x: Tensor | PackedSequence, hx=None) -> str:
    layers, directions = getattr(layer, "num_layers", 1), 2 if getattr(layer, "bidirectional", False) else 1
    (steps, batch), x = _steps_and_batch(layer, x), x.data
    dropout = layer.training and getattr(layer, "dropout", 0) > 0
    proj = getattr(layer, "proj_size", 0)
    dtype, heads = str(x.dtype).removeprefix("torch."), getattr(layer, "heads", 1)
    request = Request(layer.cell, x.device.type, dtype, batch, bool(proj), layer.hidden_size // heads, directions,
                      short=steps <= SHORT, options=_options(layer))  # fmt: skip
    sizes = Sizes(batch, steps, layer.hidden_size // heads, proj // heads, directions, heads)
    return describe(plan(request, layer.strategy), sizes, layers, dropout)


def explain(target: nn.Module | Callable, *inputs, **options) -> str:
    """Say which kernel a layer or function of fusednn would run for these inputs, and why; nothing is run.

    Args:
        target: a recurrent layer or cell, a model that contains such layers (one entry a layer is given, with the plan
            table's answer), ``functional.scaled_dot_product_attention`` or ``functional.varlen_attention``.
        *inputs: what the target would be called with; not needed for a model.
        **options: keyword arguments of the call.

    Returns:
        Text of a few lines: choice, reason, operator calls, and the strategies not taken with the reason of each.

    Raises:
        TypeError: fusednn has nothing to say about the target.

    Example:
        >>> import torch, fusednn
        >>> text = fusednn.explain(fusednn.LSTM(8, 16), torch.randn(5, 2, 8))
        >>> text.splitlines()[0]
        'cell       lstm, float32 on cpu'
    """
    if target in (functional.scaled_dot_product_attention, functional.varlen_attention):
        try:
            inspect.signature(target).bind(*inputs, **options)
        except TypeError as error:
            raise TypeError(f"explain() expects the arguments of {target.__name__}: {error}") from error
    if target is functional.scaled_dot_product_attention:
        return attention_explanation.dense(*inputs, **options)
    if target is functional.varlen_attention:
        return attention_explanation.of_lengths(*inputs, **options)
    if isinstance(target, (RecurrentLayer, RecurrentCell)) and inputs:
        return _recurrent(target, *inputs, **options)
    if isinstance(target, nn.Module):
        entries = [
            (name or type(module).__name__, _module(module))
            for name, module in target.named_modules()
            if isinstance(module, (RecurrentLayer, RecurrentCell, MultiheadAttention))
        ]
        if entries:
            return "\n\n".join(f"{name}\n{text}" for name, text in entries)
    got = type(target) if isinstance(target, nn.Module) else target
    name = f"{got.__module__}.{got.__name__}" if hasattr(got, "__name__") else repr(got)
    raise TypeError(
        "explain() expects a recurrent layer or cell of fusednn's with its inputs, a model that contains such layers or"
        " MultiheadAttention, functional.scaled_dot_product_attention or functional.varlen_attention with their inputs,"
        f" got {name}; fusednn.convert(model) replaces torch.nn layers"
    )


def _module(module: RecurrentLayer | RecurrentCell | MultiheadAttention) -> str:
    parameter = next(module.parameters())
    if isinstance(module, MultiheadAttention):
        return "attention  functional.scaled_dot_product_attention decides at each call; explain that call"
    dtype, directions = str(parameter.dtype).removeprefix("torch."), 2 if getattr(module, "bidirectional", False) else 1
    request = Request(
        module.cell, parameter.device.type, dtype, projection=bool(getattr(module, "proj_size", 0)),
        hidden=module.hidden_size // getattr(module, "heads", 1), directions=directions, options=_options(module),
    )  # fmt: skip
    return describe(plan(request, module.strategy))
