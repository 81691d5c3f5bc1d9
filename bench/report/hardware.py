"""Pictures of how much of the hardware is in use: the roofline, and occupancy."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from matplotlib.figure import Figure

from bench.peaks import peak_gbps, peak_tflops
from bench.query import Cells
from bench.report.style import INK, Picture, colour, disturbed_note, draw, log_axes
from bench.report.tables import number

MARKERS = {"torch.nn": "s", "sdpa-flash": "s", "sdpa-math": "^"}  # fusednn's are circles


def roofline(cells: Cells) -> Picture | None:
    """Speed against arithmetic intensity, under the peaks that this run has measured."""
    tests = ("bench_recurrent.py::test_time", "bench_recurrent.py::test_seed_shape", "bench_attention.py::test_time",
             "bench_decode.py::test_attention")  # fmt: skip
    found = [cell for test in tests for cell in cells.select(test)]
    infos = [i for i in (c["extra_info"] for c in found) if i.get("pct_peak_flops") and i.get("pct_peak_bw")]
    if not infos:
        return None
    roof, slope = peak_tflops(cells, infos[0]), peak_gbps(cells, infos[0])
    assert roof is not None and slope is not None
    ridge = 1e3 * roof / slope

    def plot(figure: Figure) -> None:
        ax = figure.subplots()
        seen: set[str] = set()
        for i in infos:
            kind = i["cell"].split()[0]
            label = f"{kind}, {i['impl']}"
            ax.plot(
                i["flops"] / i["bytes_min"],
                i["tflops"] * 1e3,
                MARKERS.get(i["impl"], "o"),
                color=colour(kind),
                fillstyle="none" if i["mode"] == "training" else "full",
                label=None if label in seen else label,
            )
            seen.add(label)
        intensities = [i["flops"] / i["bytes_min"] for i in infos]
        xs = [min(*intensities, ridge) / 2, ridge, max(*intensities, ridge) * 2]
        ax.plot(xs, [min(roof * 1e3, slope * x) for x in xs], color=INK, lw=1.2)
        words = f"matrix product, {number(roof * 1e3)} GFLOP/s"
        ax.text(ridge, roof * 1.2e3, words, va="bottom", fontsize=8)
        ax.text(xs[0], slope * xs[0] * 0.45, f"copy, {number(slope)} GB/s", fontsize=8)
        log_axes(ax, "FLOP a byte that must move", "GFLOP/s")
        figure.legend(*ax.get_legend_handles_labels(), fontsize=8, loc="outside lower center", ncols=4)

    return draw("roofline", "How much of the machine is used",
                "The line is what a matrix product and a copy reached on this machine in the same run. Filled "
                "inference, hollow forward and backward. Bytes are each weight, input, result and gradient once: what "
                "stays in a cache may lie above the slope. The steps of a recurrence are small products one after the "
                "other, and stay below the roof for that." + disturbed_note(found), plot, (7.6, 4.6))  # fmt: skip


def occupancy_and_speed(cells: Cells) -> Picture | None:
    """Achieved occupancy beside the share of the peak: the one does not make the other."""
    found = [c for c in cells.all if c["extra_info"].get("occupancy_achieved") is not None]
    infos = [c["extra_info"] for c in found if c["extra_info"].get("pct_peak_flops") is not None]
    if not infos:
        return None

    def plot(figure: Figure) -> None:
        ax = figure.subplots()
        for i in infos:
            ax.plot(i["occupancy_achieved"], i["pct_peak_flops"], "o", color=colour(i["impl"]))
            ax.annotate(f"{i['cell']}, {i['impl']}", (i["occupancy_achieved"], i["pct_peak_flops"]), fontsize=7,
                        xytext=(4, 3), textcoords="offset points")  # fmt: skip
        ax.set_xlim(0, 100)
        ax.set_ylim(bottom=0)
        ax.set_xlabel("achieved occupancy, % of a multiprocessor's warps")
        ax.set_ylabel("% of the measured peak FLOP/s")

    return draw("occupancy-throughput", "Occupancy is not speed", "Achieved occupancy by Nsight Compute, a mean over "
                "the launches weighted by time, against the share of the peak of a matrix product in the same run."
                + disturbed_note(found), plot)  # fmt: skip


Shares = dict[str, dict[str, tuple[float, str]]]  # by row, by column: share of the warps, and the limiter


def _shares(rows: Iterable[dict[str, Any]]) -> tuple[Shares, Shares]:
    """The kernels of one step by cell, and those of attention in 16 bits by head size."""
    steps, attention = defaultdict(dict), defaultdict(dict)
    for f in rows:
        fits = f["occupancy"], f["limiter"]
        found = re.fullmatch(r"(step|gemm)_(forward|backward)<(\w+), (\w+), false>", f["kernel"])
        if found and not f["kernel"].endswith(("Float64, false>", "double, false>")):
            rung, way, cell, form = found.groups()
            steps[cell][f"{rung}\n{way}\n{form.lower() if rung == 'step' else 'any dtype'}"] = fits
        found = re.fullmatch(r"attention_(forward|key_value|query)<[bf]*p*16, (\d+)(, causal)?>", f["kernel"])
        if found:
            attention[found[1].replace("_", " and ")][f"E = {found[2]}\n{'causal' if found[3] else ''}"] = fits
    return steps, attention


def _heat(ax: Any, shares: Shares, columns: list[str]) -> None:
    """A cell a kernel, darker the more of the warps are resident."""
    values = [[row.get(column, (math.nan, ""))[0] for column in columns] for row in shares.values()]
    ax.imshow(values, cmap="Blues", vmin=0, vmax=1.6, aspect="auto")
    for y, row in enumerate(shares.values()):
        for x, column in enumerate(columns):
            if column in row:
                text = f"{100 * row[column][0]:.3g} %\n{row[column][1]}"
                ax.text(x, y, text, ha="center", va="center", fontsize=7, color="#1b1f25")
    ax.set_xticks(range(len(columns)), columns, fontsize=8)
    ax.set_yticks(range(len(shares)), list(shares))
    ax.grid(visible=False)


def occupancy(cells: Cells) -> Picture | None:
    """The kernels of one step and of attention on one GPU: the share of its warps that a multiprocessor can hold."""
    facts = cells.facts("bench_occupancy.py::test_theoretical")
    if not facts:
        return None
    gpu = "H200" if "H200" in facts else next(iter(facts))
    rows = [dict(zip(facts[gpu]["columns"], row, strict=True)) for row in facts[gpu]["rows"]]
    panels = [shares for shares in _shares(rows) if shares]
    if not panels:
        return None

    def plot(figure: Figure) -> None:
        axes = figure.subplots(len(panels), 1, squeeze=False, height_ratios=[len(shares) for shares in panels])
        for ax, shares, title in zip(axes[:, 0], panels, ("one step", "attention"), strict=False):
            columns = {column: None for row in shares.values() for column in row}
            _heat(ax, shares, sorted(columns) if shares is panels[0] else list(columns))
            ax.set_title(title)

    return draw("occupancy", "Occupancy of the CUDA and Triton kernels",
                f"Theoretical, on one multiprocessor of an {gpu}, from registers and shared memory of the compiled "
                "code: the share of its warps that can be resident, and what stops one more. Kernels of step hold "
                "their part of the product in registers, those of attention (16 bits) their tiles in shared memory, so "
                "few warps fit: attention keeps the tensor cores busy by what it has in flight, not by many warps. The "
                "table below has every kernel and GPU.", plot, (9.6, 5.8))  # fmt: skip
