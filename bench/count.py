"""Numbers that don't depend on the clock: operator calls, bytes kept for backward, parameters, peak memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class _Counter(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Any] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls.append(func)
        return func(*args, **(kwargs or {}))


@dataclass(frozen=True)
class Launches:
    """Operator calls of one run. ``launches`` leaves out views, which move no data.

    ``busy`` is for how many seconds a kernel ran on the device; None on a CPU, where work is not queued.
    """

    aten_ops: int
    launches: int
    source: str
    busy: float | None = None


def count_launches(run: Callable[[], Any], device: torch.device) -> Launches:
    """Count what one run of ``run`` starts: kernels on CUDA, operator calls on a CPU."""
    with _Counter() as counter:
        run()
    calls = len(counter.calls)
    work = sum(1 for call in counter.calls if not getattr(call, "is_view", False))
    if device.type != "cuda":
        return Launches(calls, work, "TorchDispatchMode")
    kernels = _cuda_kernels(run)
    return Launches(calls, len(kernels), "torch.profiler", 1e-6 * covered(kernels))


def covered(spans: Iterable[tuple[float, float]]) -> float:
    """The length of the union of spans: kernels that run side by side keep a device busy once."""
    total, reached = 0.0, -math.inf
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total


def _cuda_kernels(run: Callable[[], Any]) -> list[tuple[float, float]]:
    """Start and end of each kernel of one run, in microseconds."""
    from torch._C._autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as p:
        run()
        torch.cuda.synchronize()
    events = p.events() or []
    kernels = (e for e in events if e.device_type == DeviceType.CUDA and not e.name.startswith(("Memcpy", "Memset")))
    return [(e.time_range.start, e.time_range.end) for e in kernels]


@dataclass
class SavedBytes:
    """Adds up the distinct storages that autograd keeps for backward, less those in ``known`` (parameters, inputs)."""

    known: Iterable[Tensor] = ()
    total: int = 0
    _seen: set[int] = field(default_factory=set)
    _alive: list[Tensor] = field(default_factory=list)

    def _pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._seen:
            self._seen.add(storage.data_ptr())
            self._alive.append(tensor.detach())  # a freed address must not be seen again as another tensor
            self.total += storage.nbytes()
        return tensor

    def measure(self, forward: Callable[[], Any]) -> int:
        """Bytes kept by one ``forward``."""
        self._seen = {t.untyped_storage().data_ptr() for t in self.known}
        with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(self._pack, lambda t: t):
            forward()
        self._alive.clear()
        return self.total


def parameter_count(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def peak_bytes(run: Callable[[], Any], device: torch.device) -> int | None:
    """Peak of the CUDA allocator during one run; None on a CPU, where there is no such figure."""
    if device.type != "cuda":
        return None
    torch.cuda.reset_peak_memory_stats(device)
    run()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device)
