"""Say which kernel would run for a call, and why."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from . import functional, native
from .functional.attention import choose_backend
from .layers.attention import MultiheadAttention
from .layers.cells import RecurrentCell
from .layers.recurrent import RecurrentLayer
from .plan import Plan, Request, plan


def describe(chosen: Plan, steps: int | None = None, calls: int = 1) -> str:
    """A plan as text: the choice, what it costs, and why each other strategy was not taken.

    Args:
        chosen: the plan.
        steps: T, where it is known.
        calls: how many times the strategy runs in one forward (layers, and directions that run apart).
    """
    request = chosen.request
    launches = chosen.strategy.launches
    if steps is not None and (
        count := {"1": 1, "T": steps, "T + 2": steps + 2, "2 T + 2": 2 * steps + 2}.get(launches)
    ):
        launches = f"{calls * count} (T = {steps})"
    lines = [
        f"cell       {request.cell}, {request.dtype} on {request.device}",
        f"strategy   {chosen.strategy.name}: {chosen.strategy.idea}",
        f"why        {chosen.reason}",
        f"calls      {launches}",
    ]
    built = native.MODULE
    if request.device == "cpu" and chosen.strategy.name in ("sequence", "loop") and built is not None:
        info = built.build_info()
        lines.append(f"kernel     {info['isa']}, {torch.get_num_threads()} threads")
    lines += [f"not {name}: {why}" for name, why in chosen.refused]
    return "\n".join(lines)


def _recurrent(layer: RecurrentLayer | RecurrentCell, x: Tensor, hx=None) -> str:
    steps, calls, batch = 1, 1, x.shape[0] if x.dim() == 2 else 1
    if isinstance(layer, RecurrentLayer):
        time = 1 if layer.batch_first and x.dim() == 3 else 0
        steps, batch, calls = x.shape[time], x.shape[1 - time] if x.dim() == 3 else 1, layer.num_layers
    request = Request(
        layer.cell, x.device.type, str(x.dtype).removeprefix("torch."), batch, bool(getattr(layer, "proj_size", 0))
    )
    return describe(plan(request, layer.strategy), steps, calls)


def _attention(*inputs, **options) -> str:
    path, reason = choose_backend(*inputs, **options)
    return f"attention  {path}\nwhy        {reason}"


def explain(target: nn.Module | Callable, *inputs, **options) -> str:
    """Say which kernel a layer or function of fusednn would run for these inputs, and why; nothing is run.

    Args:
        target: a recurrent layer or cell, a model that contains such layers (one entry a layer is given, with the plan
            table's answer), or ``functional.scaled_dot_product_attention``.
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
    if target is functional.scaled_dot_product_attention:
        return _attention(*inputs, **options)
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
    raise TypeError(
        "explain() expects a fusednn layer with its inputs, a model that contains fusednn layers, or"
        f" functional.scaled_dot_product_attention, got {target!r}; fusednn.convert(model) replaces torch.nn layers"
    )


def _module(module: RecurrentLayer | RecurrentCell | MultiheadAttention) -> str:
    parameter = next(module.parameters())
    if isinstance(module, MultiheadAttention):
        return "attention  functional.scaled_dot_product_attention decides at each call; explain that call"
    request = Request(module.cell, parameter.device.type, str(parameter.dtype).removeprefix("torch."))
    return describe(plan(request, module.strategy))
