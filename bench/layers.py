"""What can be measured: every implementation under its name, from one table. Public API only."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from bench.models import flash_rnn
from bench.models.log_scan import LogScan

try:
    import fusednn
    from fusednn import kernels, occupancy
    from fusednn import plan as strategies
except ImportError as error:  # the suites still measure torch, and the record says why the rest is missing
    fusednn = None
    MISSING = f"fusednn is not importable: {type(error).__name__}"
else:
    MISSING = ""

TORCH = "torch.nn"
OURS = "fusednn"
CELLS = ("RNN", "LSTM", "GRU")
SCANS = ("MinGRU", "MinLSTM")
FLASH_RNN = {f"flashrnn-{backend}": backend for backend in flash_rnn.BACKENDS}  # 16 bits only: its float32 is TF32
FLASH_ATTN = "flash-attn"  # 16 bits only
PACKAGES = {**dict.fromkeys(FLASH_RNN, "flashrnn"), FLASH_ATTN: "flash_attn"}


def rungs() -> tuple[str, ...]:
    """The ladder, slowest first, and torch's own layer at the end. A rung added to the plan table appears here."""
    if fusednn is None:
        return ("reference", "loop", "sequence", TORCH)
    return (*(s.name for s in reversed(strategies.STRATEGIES)), TORCH)


def gpus() -> tuple[str, ...]:
    """The GPUs whose occupancy can be computed."""
    return () if fusednn is None else tuple(occupancy.GPUS)


def occupancies(name: str) -> list[tuple[str | int | float, ...]]:
    """Of each kernel on a GPU: name, threads, registers, shared bytes, spills, blocks, warps, share, limiter, and what
    one more block needs."""
    gpu, rows = occupancy.GPUS[name], []
    for kernel in kernels.every():
        code, fits = kernel.on(gpu), kernel.occupancy(gpu)
        if code is not None and fits is not None:
            used = (code.threads, code.registers, code.shared + code.dynamic, code.spills)
            rows.append((kernel.name, *used, fits.blocks, fits.warps, fits.share, fits.limiter,
                         kernel.one_more(gpu)))  # fmt: skip
    return rows


def compilers() -> tuple[str, ...]:
    """The versions of Triton whose machine code is known."""
    return () if fusednn is None else tuple(kernels.passport_tables())


def passports(version: str) -> list[tuple[str | int | float, ...]]:
    """What a version of Triton made of each kernel on each architecture; columns as in the suite."""
    rows = []
    for kernel in kernels.passport_tables()[version].values():
        for known, code in kernel.code.items():
            form = " ".join(f"{key} {value}" for key, value in code.configuration.items())
            rows.append((kernel.name, known, form, code.registers, code.shared, code.spills, sum(code.mma.values()),
                         code.products, code.waits, code.exponentials, code.in_flight, code.seconds))  # fmt: skip
    return rows


def models() -> Any:
    """The module fusednn.models; skips the test where fusednn is missing."""
    if fusednn is None:
        pytest.skip(MISSING)
    return importlib.import_module("fusednn.models")


def recurrent(impl: str, cell: str, inputs: int, width: int, **options: Any) -> nn.Module:
    """A recurrent layer: ``torch.nn``, ``fusednn`` (its automatic choice), a rung of the ladder or flashrnn's by name.

    A scan has no layer in torch.nn: its paper's code in torch operators stands there.

    Skips the test, with the reason, where the implementation can't serve the request.
    """
    if impl == TORCH:
        return LogScan(cell, inputs, width, **options) if cell in SCANS else getattr(nn, cell)(inputs, width, **options)
    if impl in FLASH_RNN:
        if cell == "GRU" and FLASH_RNN[impl] == "cuda_fused":
            pytest.skip("flashrnn has no fused GRU, and would run its other backend")
        return flash_rnn.FlashRNN(cell, inputs, width, backend=FLASH_RNN[impl], **options)
    if fusednn is None:
        pytest.skip(MISSING)
    if cell in SCANS:
        return getattr(fusednn, cell)(inputs, width, **options)
    return getattr(fusednn, cell)(inputs, width, strategy="auto" if impl == OURS else impl, **options)


def encoder_layer(impl: str, d: int, heads: int, ff: int, **options: Any) -> nn.Module:
    """A transformer encoder layer, batch first, without dropout."""
    options = {"batch_first": True, "dropout": 0.0, **options}
    if impl == TORCH:
        return nn.TransformerEncoderLayer(d, heads, ff, **options)
    if fusednn is None or not hasattr(fusednn, "TransformerEncoderLayer"):
        pytest.skip(MISSING or "fusednn has no TransformerEncoderLayer yet")
    return fusednn.TransformerEncoderLayer(d, heads, ff, **options)


def multihead(impl: str, d: int, heads: int) -> nn.Module:
    """Multi-head attention, batch first."""
    if impl == TORCH:
        return nn.MultiheadAttention(d, heads, batch_first=True)
    if fusednn is None:
        pytest.skip(MISSING)
    return fusednn.MultiheadAttention(d, heads, batch_first=True)


def probe(layer: nn.Module, *inputs: Tensor) -> None:
    """Skip, with the layer's own words, where it refuses these inputs."""
    try:
        with torch.no_grad():
            layer(*inputs)
    except (ValueError, NotImplementedError) as error:
        pytest.skip(str(error))


def probe_attention(attend: Callable[..., Tensor], *inputs: Tensor) -> None:
    """Skip where torch's pinned backend takes no such input: fp32 has no flash attention on a GPU."""
    try:
        with torch.no_grad():
            attend(*inputs)
    except RuntimeError as error:
        if "No available kernel" not in str(error):
            raise
        dtype = str(inputs[0].dtype).removeprefix("torch.")
        pytest.skip(f"torch has no such kernel for {dtype} here")


def pinned(backend: SDPBackend, call: Callable[..., Any]) -> Callable[..., Any]:
    """The same call, in which torch's attention has one backend."""

    def on_backend(*given: Any, **options: Any) -> Any:
        with sdpa_kernel(backend):
            return call(*given, **options)

    return on_backend


def _pinned(backend: SDPBackend) -> Callable[..., Tensor]:
    return pinned(backend, nn.functional.scaled_dot_product_attention)


def _ours(backend: str) -> Callable[..., Tensor]:
    def attend(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
        return fusednn.functional.scaled_dot_product_attention(q, k, v, backend=backend, **options)  # type: ignore

    return attend


ATTENTION: dict[str, Callable[..., Tensor]] = {
    "fusednn-torch": _ours("torch"),
    "sdpa-flash": _pinned(SDPBackend.FLASH_ATTENTION),
    "sdpa-math": _pinned(SDPBackend.MATH),
}
CUDA_ONLY: dict[str, Callable[..., Tensor]] = {
    "fusednn-triton": _ours("triton"),
    "sdpa-efficient": _pinned(SDPBackend.EFFICIENT_ATTENTION),
    "sdpa-cudnn": _pinned(SDPBackend.CUDNN_ATTENTION),
}


def skip_half_on_cpu(device: torch.device) -> None:
    """Skip a cell of 16 bits where all others are in float32."""
    if device.type == "cpu":
        pytest.skip("every cell on a CPU is in float32")


def skip_unserved(impl: str, device: torch.device) -> None:
    """Skip what needs a CUDA device or a package that is not here."""
    if impl in (*CUDA_ONLY, *PACKAGES) and device.type != "cuda":
        pytest.skip(f"{impl} needs a CUDA device")
    package = PACKAGES.get(impl)
    if package and importlib.util.find_spec(package) is None:
        pytest.skip(f"the package {package} is not installed")


def _flash_attn(q: Tensor, k: Tensor, v: Tensor, is_causal: bool = False) -> Tensor:
    """Its function takes and gives ``[B, T, N, E]``."""
    function = importlib.import_module("flash_attn").flash_attn_func
    return function(*(t.transpose(1, 2) for t in (q, k, v)), causal=is_causal).transpose(1, 2)


def attention(impl: str, device: torch.device) -> Callable[..., Tensor]:
    """An attention function ``f(q, k, v, is_causal=...)`` on ``[B, N, T, E]``; skips where it can't run."""
    skip_unserved(impl, device)
    if impl.startswith("fusednn") and not hasattr(getattr(fusednn, "functional", None), "scaled_dot_product_attention"):
        pytest.skip(MISSING or "fusednn has no scaled_dot_product_attention yet")
    return {**ATTENTION, **CUDA_ONLY, FLASH_ATTN: _flash_attn}[impl]


def modified(query: Tensor, key: Tensor, value: Tensor, **modifiers: Any) -> Tensor:
    """Our attention with modifiers, by its automatic choice; skips where fusednn is missing."""
    if fusednn is None:
        pytest.skip(MISSING)
    return fusednn.functional.scaled_dot_product_attention(query, key, value, **modifiers)


def packed(*arguments: Any, **modifiers: Any) -> Tensor:
    """Our attention of sequences of different lengths; likewise."""
    if fusednn is None:
        pytest.skip(MISSING)
    return fusednn.functional.varlen_attention(*arguments, **modifiers)
