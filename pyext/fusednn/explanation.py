"""Say which kernel would run for a call, and why."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from . import attention_explanation, functional, recurrent_explanation
from .kernel_operators import kernel_of
from .layers.additive import AdditiveAttention
from .layers.attention import MultiheadAttention
from .layers.cells import RecurrentCell
from .layers.minimal import MinimalLayer
from .layers.recurrent import RecurrentLayer
from .recurrent_explanation import bound, computed
from .without_data import Call, calls_inside, without_data

KERNELS = {
    "compiled": "compiled C++ for this device, chosen when fusednn is imported",
    "triton": "Triton, compiled at the first call",
    "reference": "plain PyTorch: there is no compiled kernel for this device",
}


def _one_kernel(layer: MinimalLayer | AdditiveAttention) -> str:
    """What a layer runs that has one kernel a device, and no strategies."""
    parameter = next(layer.parameters())
    what = f"scan       {layer.cell}" if isinstance(layer, MinimalLayer) else "attention  additive_scores"
    dtype, device = str(computed(parameter)).removeprefix("torch."), parameter.device.type
    lines = [f"{what}, {dtype} on {device}", f"kernel     {KERNELS[kernel_of(device)]}"]
    if isinstance(layer, MinimalLayer):
        lines.append(f"calls      {layer.num_layers}, whatever the length: the steps need no matrix product in between")
    return "\n".join(lines)


def explain(target: nn.Module | Callable, *inputs: Any, **options: Any) -> str:
    """Say which kernel a layer or function of fusednn would run for these inputs, and why; nothing is run.

    Args:
        target: a layer or cell of fusednn, a model that contains some, ``functional.scaled_dot_product_attention`` or
            ``functional.varlen_attention``.
        *inputs: what the target would be called with. Without them a model gets the plan table's answer for each layer;
            with them the answer for the sizes that each layer would be called with: a copy of the model runs without
            data.
        **options: keyword arguments of the call.

    Returns:
        Text of a few lines: choice, reason, operator calls, and the strategies not taken with the reason of each. Of a
        model, one entry a layer, and what it raised if it does not run without data.

    Raises:
        TypeError: fusednn has nothing to say about the target, or the arguments are not those of the call.
        Exception: what a layer raises for its inputs.

    Example:
        >>> import torch, fusednn
        >>> text = fusednn.explain(fusednn.LSTM(8, 16), torch.randn(5, 2, 8))
        >>> text.splitlines()[0]
        'cell       lstm, float32 on cpu'
    """
    for function, answer in FUNCTIONS.items():
        if target is function:
            bound(function, function.__name__, inputs, options)
            return answer(*inputs, **options)
    if isinstance(target, (RecurrentLayer, RecurrentCell)) and inputs:
        return recurrent_explanation.of_call(target, *inputs, **options)
    if isinstance(target, nn.Module):
        found = {name: module for name, module in target.named_modules() if isinstance(module, EXPLAINED)}
        if found:
            return _model(target, found, (inputs, options))
    got = type(target) if isinstance(target, nn.Module) else target
    name = f"{got.__module__}.{got.__name__}" if hasattr(got, "__name__") else repr(got)
    raise TypeError(
        "explain() expects a layer or cell of fusednn's with its inputs, a model that contains such layers,"
        " functional.scaled_dot_product_attention or functional.varlen_attention with their inputs,"
        f" got {name}; fusednn.convert(model) replaces torch.nn layers"
    )


EXPLAINED = (RecurrentLayer, RecurrentCell, MinimalLayer, MultiheadAttention, AdditiveAttention)
FUNCTIONS = {
    functional.scaled_dot_product_attention: attention_explanation.dense,
    functional.varlen_attention: attention_explanation.of_lengths,
}


def _model(model: nn.Module, found: Mapping[str, nn.Module], call: Call) -> str:
    """One entry a layer."""
    entries = {name: _module(module) for name, module in found.items()}
    notes = []
    if call != ((), {}):
        with without_data(model, call) as (twin, given):
            try:
                calls = calls_inside(twin, given, EXPLAINED)
            except Exception as error:  # of the model's own code, which may need values, or the inputs may not fit
                if list(found) == [""]:
                    raise
                calls, message = {}, f"{type(error).__name__}: {error}".splitlines()[0]
                notes = [f"sizes      not known: without data the model raises {message}"]
            for name, (inputs, options) in calls.items():
                module = twin.get_submodule(name)
                if isinstance(module, MultiheadAttention):
                    entries[name] = attention_explanation.of_layer(module, *inputs, **options)
                elif isinstance(module, (RecurrentLayer, RecurrentCell)):
                    entries[name] = recurrent_explanation.of_call(module, *inputs, **options)
    if list(entries) == [""] and not notes:
        return entries[""]
    return "\n\n".join([*notes, *(f"{name or type(model).__name__}\n{text}" for name, text in entries.items())])


def _module(module: Any) -> str:
    """What is known of a layer without its inputs."""
    if isinstance(module, MultiheadAttention):
        return "attention  functional.scaled_dot_product_attention decides at each call; give explain() its inputs"
    if isinstance(module, (RecurrentLayer, RecurrentCell)):
        return recurrent_explanation.of_layer(module)
    return _one_kernel(module)
