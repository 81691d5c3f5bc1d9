"""Numbers that don't depend on the clock: operator calls, bytes kept for backward, parameters, peak memory."""

from __future__ import annotations

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
    """Operator calls of one run. ``launches`` leaves out views, which move no data."""

    aten_ops: int
    launches: int
    source: str


def count_launches(run: Callable[[], Any], device: torch.device) -> Launches:
    """Count what one run of ``run`` starts: kernels on CUDA, operator calls on a CPU."""
    with _Counter() as counter:
        run()
    calls = len(counter.calls)
    work = sum(1 for call in counter.calls if not getattr(call, "is_view", False))
    if device.type != "cuda":
        return Launches(calls, work, "TorchDispatchMode")
    return Launches(calls, _cuda_kernels(run), "torch.profiler")


def _cuda_kernels(run: Callable[[], Any]) -> int:
    from torch._C._autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as p:
        run()
        torch.cuda.synchronize()
    events = p.events() or []
    return sum(1 for e in events if e.device_type == DeviceType.CUDA and not e.name.startswith(("Memcpy", "Memset")))


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
