"""What share of this machine's peaks a cell reached. The peaks are cells of the same run (bench_floors.py)."""

from __future__ import annotations

from typing import Any

from bench.query import Cells

SUITE = "bench_floors.py"


def peak(cells: Cells, test: str, field: str, **fields: Any) -> float | None:
    """The best undisturbed figure of a floor, or None where this run has none."""
    found = (c["extra_info"] for c in cells.select(f"{SUITE}::{test}", **fields))
    figures = [i[field] for i in found if i.get(field) is not None and not i.get("disturbed")]
    return max(figures, default=None)


def peak_tflops(cells: Cells, info: dict[str, Any]) -> float | None:
    """Of a matrix product in a cell's dtype on its number of threads."""
    return peak(
        cells, "test_matrix_product", "tflops", dtype=info.get("dtype"), threads_torch=info.get("threads_torch")
    )


def peak_gbps(cells: Cells, info: dict[str, Any]) -> float | None:
    """Of a copy on a cell's number of threads."""
    return peak(cells, "test_copy", "gbps", threads_torch=info.get("threads_torch"))


def fill(results: dict[str, Any]) -> None:
    """Set ``pct_peak_flops`` and ``pct_peak_bw`` of every cell that has a speed and a peak."""
    cells = Cells(results)
    for cell in cells.all:
        info = cell["extra_info"]
        for field, speed, of in (
            ("pct_peak_flops", "tflops", peak_tflops),
            ("pct_peak_bw", "gbps", peak_gbps),
        ):
            best = None if info.get(speed) is None else of(cells, info)
            info[field] = None if best is None else 100 * info[speed] / best
