"""What training holds: bytes kept for backward, counted, and the most in use at once, scratch of kernels included."""

from __future__ import annotations

import contextlib
import ctypes
import gc
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.check import require_right, worst_error
from bench.count import SavedBytes
from bench.measure import MIB, Case

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
RESET_PEAK = "5"  # proc(5): VmHWM becomes VmRSS
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
WARM = 2  # runs that only first ones take from: pools, threads, packed weights, blocks that were free before
MOST = 32 << 20  # mallopt(3): where a threshold that adapts stops on 64 bits


def _status(field: str) -> int | None:
    """A field of the kernel's in bytes, or None where there is none."""
    try:
        lines = STATUS.read_text().splitlines()
    except OSError:
        return None
    found = next((line.split()[1] for line in lines if line.startswith(f"{field}:")), None)
    return None if found is None else int(found) * 1024


def peak_growth(run: Callable[[], Any], device: torch.device, times: int = 2) -> list[int] | None:
    """Bytes by which memory in use rose at most during each of some runs above what was in use before; None where a
    system does not tell. ``run`` must leave nothing behind.

    On a CPU these are pages that the process holds, so that memory of compiled kernels counts, which torch does not
    see; good to about 1 MiB.
    """
    once = _on_gpu if device.type == "cuda" else _on_cpu
    with contextlib.nullcontext() if device.type == "cuda" else pages_given_back():
        for _ in range(WARM):
            run()
        found = [once(run, device) for _ in range(times)]
    return None if None in found else [growth for growth in found if growth is not None]


def _on_gpu(run: Callable[[], Any], device: torch.device) -> int:
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    run()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def _on_cpu(run: Callable[[], Any], _: torch.device) -> int | None:
    gc.collect()
    trim()
    before = _status("VmRSS")
    try:
        CLEAR.write_text(RESET_PEAK)
    except OSError:
        return None
    run()
    peak = _status("VmHWM")
    return None if before is None or peak is None else max(0, peak - before)


def trim() -> None:
    """Give free pages back to the system, where the C library is glibc."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


@contextlib.contextmanager
def pages_given_back() -> Iterator[None]:
    """Freed blocks go back to the system at once: else what glibc keeps of them counts beside what comes next.

    Behind it the thresholds are where they end by themselves in a process that has freed large blocks.
    """
    try:
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_THRESHOLD, 1 << 16)
    except (OSError, AttributeError):  # another C library
        yield
        return
    trim()
    try:
        yield
    finally:
        libc.mallopt(M_MMAP_THRESHOLD, MOST)
        libc.mallopt(M_TRIM_THRESHOLD, 2 * MOST)


def require_right_case(case: Case) -> None:
    """The memory of a wrong result is of no interest either."""
    assert case.results and case.torchs and case.truth
    require_right(worst_error(case.results(), case.torchs(), case.truth()))


def against_length(lengths: Sequence[int], make: Callable[[int], Case], device: torch.device) -> dict[str, list[Any]]:
    """MiB by length: kept for backward, and at most in use above inputs and parameters, in each of some runs."""
    saved, peaks = [], []
    for T in lengths:
        case = make(T)
        if lengths[0] == T:
            require_right_case(case)
        assert case.forward is not None
        saved.append(SavedBytes(case.known).measure(case.forward) / MIB)

        def run(case: Case = case) -> None:
            assert case.forward is not None
            result = case.forward()
            (result if isinstance(result, Tensor) else result[0]).square().mean().backward()
            for leaf in case.known:
                leaf.grad = None

        grown = peak_growth(run, device)
        peaks.append(grown and [growth / MIB for growth in grown])
    return {"saved_mib": saved, "peak_mib": peaks}
