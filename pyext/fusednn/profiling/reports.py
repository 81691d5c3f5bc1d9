"""Read what the profilers wrote. A value that a tool does not give is None."""

from __future__ import annotations

import csv
import io
from typing import Any

# Nsight Compute's metric for each of our fields.
METRICS = {
    "time_us": "gpu__time_duration.sum",
    "regs": "launch__registers_per_thread",
    "shared": "launch__shared_mem_per_block",
    "threads": "launch__block_size",
    "blocks": "launch__grid_size",
    "waves": "launch__waves_per_multiprocessor",
    "occupancy_theoretical": "sm__maximum_warps_per_active_cycle_pct",
    "occupancy_achieved": "sm__warps_active.avg.pct_of_peak_sustained_active",
    "sm_active_pct": "sm__cycles_active.avg.pct_of_peak_sustained_elapsed",
    "tensor_active_pct": "sm__pipe_tensor_cycles_active.avg.pct_of_peak_sustained_active",
}
LIMITS = {  # in the order of fusednn.occupancy, which names the first of equals
    "blocks": "launch__occupancy_limit_blocks",
    "warps": "launch__occupancy_limit_warps",
    "registers": "launch__occupancy_limit_registers",
    "shared memory": "launch__occupancy_limit_shared_mem",
}
_TO_US = {"ns": 1e-3, "nsecond": 1e-3, "us": 1.0, "usecond": 1.0, "ms": 1e3, "msecond": 1e3, "s": 1e6, "second": 1e6}


def ncu_kernels(text: str) -> list[dict[str, Any]]:
    """Rows of ``ncu --page raw --csv``: one a launch, with ``kernel`` and the fields of METRICS.

    The first row names the columns, the second gives their units; what the tool says in between starts with ``==``.

    Raises:
        ValueError: there is no such table; the message repeats the tool's own errors.
    """
    rows = _table(text, "Kernel Name")
    if not rows:
        errors = [line for line in text.splitlines() if line.startswith("==ERROR==")]
        raise ValueError("expected Nsight Compute's raw page as CSV, found none" + "".join(f"\n{e}" for e in errors))
    units, launches = (rows[0], rows[1:]) if not rows[0].get("ID", "") else ({}, rows)
    return [_launch(row, units) for row in launches]


def _launch(row: dict[str, str], units: dict[str, str]) -> dict[str, Any]:
    found: dict[str, Any] = {"kernel": row["Kernel Name"]}
    for field, metric in METRICS.items():
        found[field] = _number(row.get(metric))
    if found["time_us"] is not None:
        found["time_us"] *= _TO_US.get(units.get(METRICS["time_us"], "ns"), 1e-3)
    limits = {name: _number(row.get(metric)) for name, metric in LIMITS.items()}
    known = {name: limit for name, limit in limits.items() if limit is not None}
    found["occupancy_limiter"] = min(known, key=lambda name: known[name]) if known else None
    return found


def nsys_kernels(text: str) -> list[dict[str, Any]]:
    """Rows of ``nsys stats --report cuda_gpu_kern_sum --format csv``: kernel, instances, total and mean time in us."""
    return [
        {"kernel": row["Name"], "instances": int(row["Instances"]), "total_us": _us(row["Total Time (ns)"]),
         "mean_us": _us(row["Avg (ns)"])}
        for row in _table(text, "Name")
    ]  # fmt: skip


def nsys_ranges(text: str) -> list[dict[str, Any]]:
    """Rows of ``nsys stats --report nvtx_gpu_proj_sum --format csv``: what each range's work took on the GPU."""
    return [
        {"range": row["Range"].split(":", 1)[-1], "instances": int(row["Range Instances"]),
         "gpu_us": _us(row["Total Proj Time (ns)"]), "host_us": _us(row["Total Range Time (ns)"]),
         "launches": int(row["Total GPU Ops"])}
        for row in _table(text, "Range")
    ]  # fmt: skip


def _table(text: str, column: str) -> list[dict[str, str]]:
    """Rows of the CSV table whose header has a column of this name, among whatever else a tool prints."""
    lines = text.splitlines()
    for start, line in enumerate(lines):
        header = next(csv.reader([line]), [])
        if column in header:
            body = [rest for rest in lines[start:] if rest and not rest.startswith("==")]
            rows = list(csv.DictReader(io.StringIO("\n".join(body))))
            return [row for row in rows if None not in row and None not in row.values()]
    return []


def _number(text: str | None) -> float | None:
    """A figure as Nsight writes it: thousands apart by commas, ``n/a`` or nothing where there is none."""
    try:
        return float(text.replace(",", "")) if text else None
    except ValueError:
        return None


def _us(nanoseconds: str) -> float:
    return float(nanoseconds.replace(",", "")) * 1e-3
