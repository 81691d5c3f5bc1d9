"""What training holds: bytes kept for backward, counted, and the most in use at once, scratch of kernels included.

The most in use is read from the system in a process of its own (``python -m bench.memory`` serves it), whose heap keeps
nothing that was freed: what the heap of a long process keeps counts beside what comes next, and was up to 8 MiB.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.cases import attention_case, recurrent_case
from bench.check import require_right, worst_error
from bench.count import SavedBytes
from bench.measure import MIB, Case

ROOT = Path(__file__).parent.parent
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
RESET_PEAK = "5"  # proc(5): VmHWM becomes VmRSS
HEAP = {"MALLOC_MMAP_THRESHOLD_": "65536"}  # mallopt(3): blocks from here on go back to the system when they are freed
WARM = 2  # runs that take what only first ones take: pools, threads, packed weights
RUNS = 2
CASES: dict[str, Callable[..., Case]] = {"recurrent": recurrent_case, "attention": attention_case}


def _status(field: str) -> int | None:
    """A field of the kernel's in bytes, or None where there is none."""
    try:
        lines = STATUS.read_text().splitlines()
    except OSError:
        return None
    found = next((line.split()[1] for line in lines if line.startswith(f"{field}:")), None)
    return None if found is None else int(found) * 1024


def peak_growth(run: Callable[[], Any], device: torch.device) -> list[int] | None:
    """Bytes by which memory in use rose at most during each of some runs above what was in use before; None where a
    system does not tell. ``run`` must leave nothing behind.

    On a CPU these are pages that the process holds, so that memory of compiled kernels counts, which torch does not
    see; good to about 1 MiB in a process with `HEAP` in its environment.
    """
    once = _on_gpu if device.type == "cuda" else _on_cpu
    for _ in range(WARM):
        run()
    found = [once(run, device) for _ in range(RUNS)]
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
    before = _status("VmRSS")
    try:
        CLEAR.write_text(RESET_PEAK)
    except OSError:
        return None
    run()
    peak = _status("VmHWM")
    return None if before is None or peak is None else max(0, peak - before)


def peaks(kind: str, lengths: Sequence[int], device: torch.device, **sizes: Any) -> list[list[float] | None]:
    """MiB in use at most in forward and backward, by length, above weights and inputs."""
    found: list[list[float] | None] = []
    for T in lengths:
        case = CASES[kind](T=T, mode="training", device=device, **sizes)

        def run(case: Case = case) -> None:
            assert case.forward is not None
            result = case.forward()
            (result if isinstance(result, Tensor) else result[0]).square().mean().backward()
            for leaf in case.known:
                leaf.grad = None

        grown = peak_growth(run, device)
        found.append(None if grown is None else [growth / MIB for growth in grown])
    return found


def saved(kind: str, lengths: Sequence[int], device: torch.device, **sizes: Any) -> list[float]:
    """MiB kept for backward, by length; the shortest is checked, because the memory of a wrong result is of no use."""
    found = []
    for T in lengths:
        case = CASES[kind](T=T, mode="training", device=device, **sizes)
        assert case.forward and case.results and case.torchs and case.truth
        if lengths[0] == T:
            require_right(worst_error(case.results(), case.torchs(), case.truth()))
        found.append(SavedBytes(case.known).measure(case.forward) / MIB)
    return found


class Peaks:
    """`peaks` of a device: on a CPU from a process of its own, which stays until the end of a ``with``."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Peaks:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process is not None:
            self.process.communicate()  # closes what it reads from, and so ends it

    def __call__(self, kind: str, lengths: Sequence[int], **sizes: Any) -> list[list[float] | None]:
        """MiB by length.

        Raises:
            RuntimeError: the process ended; what it said stands above.
        """
        if self.device.type != "cpu":
            return peaks(kind, lengths, self.device, **sizes)
        if self.process is None:
            command = [sys.executable, "-m", "bench.memory", str(torch.get_num_threads())]
            self.process = subprocess.Popen(command, cwd=ROOT, env={**os.environ, **HEAP}, text=True,
                                            stdin=subprocess.PIPE, stdout=subprocess.PIPE)  # fmt: skip
        assert self.process.stdin is not None and self.process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(json.dumps({"kind": kind, "lengths": lengths, **sizes}) + "\n")
            self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise RuntimeError(f"the process that measures memory ended with status {self.process.wait()}")
        return json.loads(answer)


def serve() -> None:
    """Answer requests, a line each, until there are no more."""
    torch.set_num_threads(int(sys.argv[1]))
    for line in sys.stdin:
        print(json.dumps(peaks(device=torch.device("cpu"), **json.loads(line))), flush=True)


if __name__ == "__main__":
    serve()
