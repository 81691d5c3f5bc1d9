"""``python -m fusednn.profiling.recorder measured|whole OUT MODULE-OR-SCRIPT [ARGUMENTS]``: torch's profiler around it.

What the program says is `measured` is recorded, or the whole of it. ``OUT/operators.json`` gets a row an operator,
``OUT/trace.json`` the time line for chrome://tracing or Perfetto.
"""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from .ranges import record_with


class Recorder:
    """One profile of all that is measured; later parts are left out, as torch cannot add profiles up."""

    def __init__(self) -> None:
        on_gpu = [ProfilerActivity.CUDA] if torch.cuda.is_available() else []
        self.profile = profile(activities=[ProfilerActivity.CPU, *on_gpu])
        self.used = self.running = False

    def start(self) -> None:
        """Record from here, the first time."""
        if not self.used:
            self.used = self.running = True
            self.profile.start()

    def stop(self) -> None:
        """Record no more."""
        if self.running:
            self.running = False
            self.profile.stop()


def rows(recorded: profile) -> list[dict[str, Any]]:
    """A row an operator or kernel: its calls, and microseconds of its own on the processor and on the GPU."""
    return [
        {"operator": event.key, "calls": event.count, "self_cpu_us": event.self_cpu_time_total,
         "cpu_us": event.cpu_time_total, "gpu_us": getattr(event, "self_device_time_total", 0)}
        for event in recorded.key_averages()
    ]  # fmt: skip


def main(whole: bool, out: Path, module: str, arguments: list[str]) -> int:
    """Run the program under the profiler; gives its exit status."""
    recorder, status = Recorder(), 0
    sys.argv = [module, *arguments]
    if whole:
        recorder.start()
    else:
        record_with(recorder)
    try:
        if module.endswith(".py"):
            sys.path[0] = str(Path(module).resolve().parent)
            runpy.run_path(module, run_name="__main__")
        else:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as left:
        status = left.code if isinstance(left.code, int) else int(left.code is not None)
        if isinstance(left.code, str):
            print(left.code, file=sys.stderr)
    finally:
        record_with(None)
        recorder.stop()
    if not recorder.used:
        print(f"fusednn: {module} measured nothing", file=sys.stderr)
        return status or 2
    out.mkdir(parents=True, exist_ok=True)
    (out / "operators.json").write_text(json.dumps(rows(recorder.profile)))
    recorder.profile.export_chrome_trace(str(out / "trace.json"))
    return status


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1] == "whole", Path(sys.argv[2]), sys.argv[3], sys.argv[4:]))
