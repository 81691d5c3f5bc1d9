"""Operators that have a kernel forward and backward on some devices, and plain PyTorch on all others."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .native import COMPILED_DEVICES
from .operators import DEVICES, LIBRARY


def kernel_of(device: str) -> str:
    """What such an operator runs on a device, as torch names it: ``compiled``, ``triton`` or ``reference``."""
    if device == "cuda" and torch.version.cuda is not None and importlib.util.find_spec("triton") is not None:
        return "triton"
    return "compiled" if device == "cpu" and "cpu" in COMPILED_DEVICES else "reference"


def register(
    name: str, reference: Callable[..., Tensor], backward: Callable[..., tuple[Tensor, ...]], module: str
) -> None:
    """Decide what runs on which device, and give the operator its gradients.

    Compiled C++ runs on CPU tensors, Triton on CUDA tensors (imported by the first call), the reference elsewhere.
    Gradients of gradients differentiate the reference.

    Args:
        name: of the operator, whose schema and that of ``NAME_backward`` are defined; it returns one tensor.
        reference: the same in plain PyTorch.
        backward: called with the gradient, the operator's arguments as a tuple and its result; gives a gradient for
            each tensor among the arguments, which come first.
        module: of ``triton_kernels``, with functions ``forward`` and ``backward`` for the two operators.
    """
    operator = getattr(torch.ops.fusednn, name)

    class Differentiable(torch.autograd.Function):
        @staticmethod
        def forward(ctx, *arguments):
            with torch._C._AutoDispatchBelowAutograd():
                result = operator(*arguments)
            tensors = [x for x in arguments if isinstance(x, Tensor)]
            ctx.save_for_backward(*tensors, result)
            ctx.others = arguments[len(tensors) :]
            return result

        @staticmethod
        def backward(ctx, grad):  # pyright: ignore[reportIncompatibleMethodOverride]
            *tensors, result = ctx.saved_tensors
            none = (None,) * len(ctx.others)
            if torch.is_grad_enabled():
                views = [x.view_as(x) for x in tensors]
                again = reference(*views, *ctx.others)
                return *torch.autograd.grad(again, views, grad, create_graph=True, allow_unused=True), *none
            return *backward(grad, (*tensors, *ctx.others), result), *none

    def autograd(*arguments):
        if torch.is_grad_enabled() and any(isinstance(x, Tensor) and x.requires_grad for x in arguments):
            return Differentiable.apply(*arguments)
        with torch._C._AutoDispatchBelowAutograd():
            return operator(*arguments)

    def triton(function: str) -> Callable[..., Any]:
        return lambda *arguments: getattr(importlib.import_module(f".triton_kernels.{module}", __package__), function)(
            *arguments
        )

    for device in DEVICES:
        kernel = kernel_of(device.lower())  # the compiled module registers forward and backward by itself
        if kernel == "triton":
            LIBRARY.impl(name, triton("forward"), device)
            LIBRARY.impl(f"{name}_backward", triton("backward"), device)
        elif kernel == "reference":
            LIBRARY.impl(name, reference, device)
            LIBRARY.impl(name, reference, f"Autograd{device}")
            continue
        LIBRARY.impl(name, autograd, f"Autograd{device}")
