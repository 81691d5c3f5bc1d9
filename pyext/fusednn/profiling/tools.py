"""The three profilers: the commands that each needs, and the table that comes out."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .ranges import DOMAIN, MEASURED
from .reports import LIMITS, METRICS, ncu_kernels, nsys_kernels, nsys_ranges
from .target import Target

Rows = list[tuple[str, ...]]


@dataclass(frozen=True)
class Asked:
    """What is profiled, into which folder, and of which kernels: a regular expression, and how many launches."""

    target: Target
    out: Path
    kernel: str | None = None
    launches: int = 20


@dataclass(frozen=True)
class Tool:
    """A profiler.

    Attributes:
        needs: of the system, beyond Python.
        commands: to run one after the other; the output of all but the first is what ``tables`` reads.
        tables: from these outputs to tables.
        opens: how to look at the whole report.
    """

    name: str
    needs: str | None
    commands: Callable[[Asked], list[list[str]]]
    tables: Callable[[Asked, list[str]], list[Rows]]
    opens: Callable[[Asked], str]

    def missing(self) -> str | None:
        """What has to be installed first, if anything."""
        if self.needs is None:
            return None
        if shutil.which(self.needs) is None:
            product = {"ncu": "Nsight Compute", "nsys": "Nsight Systems"}[self.needs]
            return f"{self.needs} of {product} is not on PATH; it comes with the CUDA toolkit or from NVIDIA's site"
        if importlib.util.find_spec("nvtx") is None:
            return "the Python package nvtx, which marks what is measured: pip install nvtx"
        return None


def _ncu_commands(asked: Asked) -> list[list[str]]:
    """Every launch is replayed until all counters are read; nodes of graphs count as launches."""
    report = str(asked.out / "ncu")
    metrics = ",".join([*METRICS.values(), *LIMITS.values()])
    measured = ["--nvtx", "--nvtx-include", f"{DOMAIN}@{MEASURED}/"] if asked.target.marked else []
    kernel = ["--kernel-name", f"regex:{asked.kernel}"] if asked.kernel else []
    record = [
        "ncu", "--force-overwrite", "--export", report, "--target-processes", "all", "--graph-profiling", "node",
        "--section", "Occupancy", "--section", "LaunchStats", "--section", "SpeedOfLight", "--metrics", metrics,
        *measured, *kernel, "--launch-count", str(asked.launches), *asked.target.command,
    ]  # fmt: skip
    read = ["ncu", "--import", f"{report}.ncu-rep", "--page", "raw", "--csv", "--print-units", "base"]
    return [record, read]


def _ncu_tables(asked: Asked, outputs: list[str]) -> list[Rows]:
    head = ("kernel", "us", "threads", "registers", "shared", "waves", "occupancy", "of at most", "limited by",
            "SM active", "tensor cores busy")  # fmt: skip
    rows: Rows = [head]
    for k in ncu_kernels(outputs[0]):
        rows.append((
            _short(k["kernel"]), _figure(k["time_us"]), _figure(k["threads"]), _figure(k["regs"]), _figure(k["shared"]),
            _figure(k["waves"]), _percent(k["occupancy_achieved"]), _percent(k["occupancy_theoretical"]),
            k["occupancy_limiter"] or "-", _percent(k["sm_active_pct"]), _percent(k["tensor_active_pct"]),
        ))  # fmt: skip
    return [rows]


def _nsys_commands(asked: Asked) -> list[list[str]]:
    """The time line as it is, without replays; counters are Nsight Compute's."""
    report = str(asked.out / "nsys")
    capture = ["--capture-range", "nvtx", "--nvtx-capture", f"{MEASURED}@{DOMAIN}", "--capture-range-end", "stop"]
    measured = capture if asked.target.marked else []
    record = ["nsys", "profile", "--force-overwrite", "true", "--output", report, "--trace", "cuda,nvtx",
              "--cuda-graph-trace", "node", *measured, *asked.target.command]  # fmt: skip
    stats = ["nsys", "stats", "--force-export", "true", "--format", "csv", "--output", "-"]
    reports = ("cuda_gpu_kern_sum", "nvtx_gpu_proj_sum")
    return [record, *([*stats, "--report", name, f"{report}.nsys-rep"] for name in reports)]


def _nsys_tables(asked: Asked, outputs: list[str]) -> list[Rows]:
    kernels, ranges = nsys_kernels(outputs[0]), nsys_ranges(outputs[1])
    everything = sum(k["total_us"] for k in kernels)
    first: Rows = [("kernel", "launches", "us in all", "us each", "share")]
    for k in kernels:
        each = (_figure(k["total_us"]), _figure(k["mean_us"]), _percent(100 * k["total_us"] / (everything or 1)))
        first.append((_short(k["kernel"]), str(k["instances"]), *each))
    first.append(("all", str(sum(k["instances"] for k in kernels)), _figure(everything), "", ""))
    second: Rows = [("range", "times", "launches", "us on the GPU", "us on the host")]
    second += [(r["range"], str(r["instances"]), str(r["launches"]), _figure(r["gpu_us"]), _figure(r["host_us"]))
               for r in ranges]  # fmt: skip
    return [first, second]


def _torch_commands(asked: Asked) -> list[list[str]]:
    target = asked.target
    part = "measured" if target.marked else "whole"
    recorder = [sys.executable, "-m", "fusednn.profiling.recorder", part, str(asked.out)]
    return [[*recorder, target.module, *target.arguments]]


def _torch_tables(asked: Asked, outputs: list[str]) -> list[Rows]:
    found: list[dict[str, Any]] = json.loads((asked.out / "operators.json").read_text())
    on_gpu = any(row["gpu_us"] for row in found)
    by = "gpu_us" if on_gpu else "self_cpu_us"
    everything = sum(row[by] for row in found) or 1.0
    rows: Rows = [("operator", "calls", "us of its own", *(["us on the GPU"] if on_gpu else []), "us in all", "share")]
    for row in sorted(found, key=lambda r: -r[by])[: asked.launches]:
        gpu = [_figure(row["gpu_us"])] if on_gpu else []
        each = (_figure(row["self_cpu_us"]), *gpu, _figure(row["cpu_us"]), _percent(100 * row[by] / everything))
        rows.append((_short(row["operator"]), str(row["calls"]), *each))
    return [rows]


def _figure(value: float | None) -> str:
    """Three digits, or a dash for what was not measured."""
    if value is None:
        return "-"
    return f"{value:.0f}" if value >= 100 or value == int(value) else f"{value:.3g}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}%"


def _short(name: str) -> str:
    """A kernel's name without its parameters, at most 70 letters."""
    bare = name.removeprefix("void ").split("(")[0] if "(" in name and not name.startswith("(") else name
    return bare if len(bare) <= 70 else bare[:69] + "…"


TOOLS = {
    tool.name: tool
    for tool in (
        Tool("ncu", "ncu", _ncu_commands, _ncu_tables, lambda a: f"ncu-ui {a.out / 'ncu.ncu-rep'}"),
        Tool("nsys", "nsys", _nsys_commands, _nsys_tables, lambda a: f"nsys-ui {a.out / 'nsys.nsys-rep'}"),
        Tool("torch", None, _torch_commands, _torch_tables, lambda a: f"{a.out / 'trace.json'} in ui.perfetto.dev"),
    )
}
