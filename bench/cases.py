"""From a module and its inputs to a `Case`: what is timed, what it is checked against, how much work it is."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bench import layers
from bench.flops import attention, of_mode, recurrent
from bench.measure import Case


def tensors(result: Any) -> list[Tensor]:
    """All tensors of a nested result, in order."""
    if isinstance(result, Tensor):
        return [result]
    if isinstance(result, (tuple, list)):
        return [t for part in result for t in tensors(part)]
    return []


def _inference(module: Callable[..., Any], inputs: Sequence[Tensor]) -> Callable[[], list[Tensor]]:
    def run() -> list[Tensor]:
        with torch.inference_mode():
            return tensors(module(*inputs))

    return run


def _training(
    module: Callable[..., Any], leaves: Sequence[Tensor], inputs: Sequence[Tensor]
) -> Callable[[], list[Tensor]]:
    """Forward and backward of a mean square; returns the output and every gradient."""

    def run() -> list[Tensor]:
        for leaf in leaves:
            leaf.grad = None
        with torch.enable_grad():
            out = tensors(module(*inputs))[0]
            out.square().mean().backward()
        return [out.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None)]

    return run


def runner(module: nn.Module, inputs: Sequence[Tensor], mode: str) -> Callable[[], list[Tensor]]:
    """One run of a module in ``inference`` or ``training``; in training, floating inputs get gradients too."""
    if mode == "inference":
        module.eval()
        return _inference(module, inputs)
    module.train()
    inputs = [i.detach().clone().requires_grad_(i.is_floating_point()) for i in inputs]
    leaves = [*(i for i in inputs if i.requires_grad), *module.parameters()]
    return _training(module, leaves, inputs)


def double(inputs: Sequence[Tensor]) -> list[Tensor]:
    return [i.double() if i.is_floating_point() else i for i in inputs]


def on_threads(run: Callable[[], Any], threads: int) -> Callable[[], Any]:
    """The same run on so many of torch's threads."""

    def counted() -> Any:
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            return run()
        finally:
            torch.set_num_threads(before)

    return counted if threads != torch.get_num_threads() else run


def bytes_read(module: nn.Module, inputs: Sequence[Tensor]) -> int:
    """Inputs and parameters, each once. Of an embedding's table a run reads a few rows, which don't count."""
    tables = {id(m.weight) for m in module.modules() if isinstance(m, nn.Embedding)}
    return sum(t.nbytes for t in (*inputs, *(p for p in module.parameters() if id(p) not in tables)))


def module_case(
    module: nn.Module, twin: nn.Module, inputs: Sequence[Tensor], mode: str, fields: dict[str, Any], **work: Any
) -> Case:
    """Measure ``module``; ``twin`` is torch's own with the same parameters, and its fp64 copy is the truth."""
    layers.probe(module, *inputs)
    run = runner(module, inputs, mode)
    truth = copy.deepcopy(twin).double()
    forward_inputs = [i.detach().requires_grad_(i.is_floating_point() and mode == "training") for i in inputs]
    return Case(
        run=run,
        fields={"mode": mode, "dtype": str(next(module.parameters()).dtype).removeprefix("torch."), **fields},
        results=run,
        torchs=runner(twin, inputs, mode),
        truth=runner(truth, double(inputs), mode),
        forward=(lambda: module(*forward_inputs)) if mode == "training" else None,
        known=[*module.parameters(), *forward_inputs],
        reads=bytes_read(module, inputs),
        **work,
    )


def recurrent_case(
    impl: str, cell: str, *, B: int, T: int, H: int, mode: str, device: torch.device, I: int | None = None,  # noqa: E741
    num_layers: int = 1, bidirectional: bool = False, batch_first: bool = False, dtype: torch.dtype = torch.float32,
) -> Case:  # fmt: skip
    """A recurrent layer over a whole sequence, input projection included."""
    layers.skip_unserved(impl, device)
    inputs = I or H
    options: dict[str, Any] = {"num_layers": num_layers, "batch_first": batch_first}
    if bidirectional:
        options["bidirectional"] = True
    module = layers.recurrent(impl, cell, inputs, H, **options).to(device, dtype)
    twin = layers.recurrent(layers.TORCH, cell, inputs, H, **options).to(device, dtype)
    twin.load_state_dict(module.state_dict())
    x = torch.randn((B, T, inputs) if batch_first else (T, B, inputs), device=device, dtype=dtype)
    work = recurrent(cell, B, T, inputs, H, num_layers, 2 if bidirectional else 1)
    fields = {"impl": impl, "cell": cell + (" bidirectional" if bidirectional else ""), "B": B, "T": T, "H": H}
    return module_case(module, twin, [x], mode, fields, flops=of_mode(work, mode), tokens=B * T)


def attention_case(
    impl: str, *, B: int, T: int, N: int, E: int, mode: str, device: torch.device, causal: bool = False,
    dtype: torch.dtype = torch.float32,
) -> Case:  # fmt: skip
    """Self-attention alone, without projections, on ``[B, N, T, E]``."""
    training = mode == "training"
    qkv = [torch.randn(B, N, T, E, device=device, dtype=dtype, requires_grad=training) for _ in range(3)]
    doubles = [t.detach().double().requires_grad_(training) for t in qkv]

    def of(name: str, given: list[Tensor]) -> Callable[[], list[Tensor]]:
        attend = layers.attention(name, device)

        def run() -> list[Tensor]:
            if not training:
                with torch.inference_mode():
                    return [attend(*given, is_causal=causal)]
            for leaf in given:
                leaf.grad = None
            out = attend(*given, is_causal=causal)
            out.square().mean().backward()
            return [out.detach(), *(leaf.grad for leaf in given if leaf.grad is not None)]

        return run

    run, attend = of(impl, qkv), layers.attention(impl, device)
    layers.probe_attention(attend, *qkv)
    fields = {"impl": impl, "cell": "attention causal" if causal else "attention", "B": B, "T": T, "N": N, "E": E,
              "mode": mode, "dtype": str(dtype).removeprefix("torch.")}  # fmt: skip
    return Case(
        run=run, fields=fields, results=run, torchs=of("sdpa-math", qkv), truth=of("sdpa-math", doubles),
        forward=(lambda: attend(*qkv, is_causal=causal)) if training else None, known=qkv,
        flops=of_mode(attention(B, N, T, T, E, causal), mode), reads=sum(t.nbytes for t in qkv), tokens=B * T,
    )  # fmt: skip
