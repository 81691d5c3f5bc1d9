"""The tables of docs/should-i-use-it.md, from every machine's ``bench/results/*/users.json``."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from bench import curves
from bench.layers import CELLS, OURS, TORCH
from bench.query import Cells
from bench.report.tables import Table, number

PAGE = Path("docs/should-i-use-it.md")
MODES = ("inference", "training")
Cell = dict[str, Any]


def section(results: dict[str, Any], folder: Path) -> str:
    """One machine's part of the page."""
    cells, m = Cells(results), results["machine_info"]
    threads = f", {m['cpu_count']} cores, {m['torch_threads']} threads" if m["device"] == "cpu" else ""
    head = f"### {m['device_name']}{threads}\n\ntorch {m['torch']}, {results['datetime'][:10]}, fp32, T = 100.\n"
    layer = cells.select("bench_users.py::test_layer")
    parts = [head]
    for mode in MODES:
        chosen = [c for c in layer if c["extra_info"]["mode"] == mode]
        parts.append(f"Times as fast as torch.nn, {mode}:\n\n{ratios(mode, chosen).markdown()}")
    parts.append(f"MiB kept for backward, fusednn of torch.nn, B = 8:\n\n{memory(cells, layer).markdown()}")
    encoder = cells.select("bench_users.py::test_encoder_layer")
    parts.append(f"A transformer's encoder layer, B = 8, 8 heads, times as fast:\n\n{encoders(encoder).markdown()}")
    tier, trained = results["tier"], cells.select("bench_users.py::test_curve")
    sizes = ", ".join(f"{name} = {trained[0]['extra_info'][name]}" for name in ("B", "T", "H"))
    runs = f"{tier['lm_steps']} steps of a byte language model, {sizes}, {tier['seeds']} seeds; bits a byte:"
    parts.append(f"{runs}\n\n{curve_table(cells, trained).markdown()}")
    if any(c["extra_info"]["disturbed"] for c in cells.all):
        parts.append("\\* other processes ran meanwhile; left out of means and least.\n")
    return "\n".join(parts)


def _ratio(cell: Cell) -> str:
    return number(cell["extra_info"]["ratio"]) + (" \\*" if cell["extra_info"]["disturbed"] else "")


def _summary(cells: Iterable[Cell]) -> tuple[str, str]:
    """Geometric mean and least ratio."""
    quiet = [c["extra_info"]["ratio"] for c in cells if not c["extra_info"]["disturbed"]]
    if not quiet:
        return "", ""
    return number(math.exp(sum(map(math.log, quiet)) / len(quiet))), number(min(quiet))


def _values(cells: Iterable[Cell], field: str) -> list[Any]:
    return sorted({c["extra_info"][field] for c in cells})


def _columns(cells: list[Cell], sizes: list[int], show: Callable[[Cell], str]) -> tuple[str, ...]:
    """One text for each hidden size."""
    by_size = {c["extra_info"]["H"]: show(c) for c in cells}
    return tuple(by_size.get(H, "") for H in sizes)


def ratios(name: str, cells: list[Cell]) -> Table:
    """Cell and batch against hidden size."""
    sizes, rows = _values(cells, "H"), []
    for kind in CELLS:
        for B in _values(cells, "B"):
            row = [c for c in cells if (c["extra_info"]["cell"], c["extra_info"]["B"]) == (kind, B)]
            rows.append((kind, str(B), *_columns(row, sizes, _ratio), *_summary(row)))
    rows.append(("all", "", *("" for _ in sizes), *_summary(cells)))
    head = ("cell", "B", *(f"H = {H}" for H in sizes), "geometric mean", "least")
    return Table(f"users-{name}", name, head, rows)


def memory(cells: Cells, layer: list[Cell]) -> Table:
    """What forward keeps for backward, and on a GPU the allocator's peak of a step."""
    chosen = [c for c in layer if (c["extra_info"]["mode"], c["extra_info"]["B"]) == ("training", 8)]
    sizes, rows = _values(chosen, "H"), []
    for field, words in (("saved_mib", ""), ("peak_mem_mib", ", peak of a step")):

        def both(cell: Cell, field: str = field) -> str:
            other = cells.series(cell)["other_memory"][field]
            return f"{number(other)} of {number(cell['extra_info'][field])}"

        for kind in CELLS:
            row = [c for c in chosen if c["extra_info"]["cell"] == kind and c["extra_info"][field] is not None]
            if row:
                rows.append((kind + words, *_columns(row, sizes, both)))
    return Table("users-memory", "memory", ("cell", *(f"H = {H}" for H in sizes)), rows)


def encoders(cells: list[Cell]) -> Table:
    sizes = _values(cells, "H")
    rows = [(mode, *_columns([c for c in cells if c["extra_info"]["mode"] == mode], sizes, _ratio)) for mode in MODES]
    return Table("users-encoder", "encoder", ("mode", *(f"H = {H}" for H in sizes)), rows)


def curve_table(cells: Cells, trained: list[Cell]) -> Table:
    """Loss at the end, distances of the curves, and the time of training the whole model."""
    rows = []
    for cell in trained:
        i, bits = cell["extra_info"], cells.series(cell)["bits"]
        d = curves.distances(bits)
        last = (sum(seed[-1] for seed in bits[side]) / len(bits[side]) for side in (TORCH, OURS))
        pairs = ((d.largest, d.mean), (d.noise_largest, d.noise_mean), (d.seeds_largest, d.seeds_mean))
        rows.append((i["cell"], *(f"{b:.4f}" for b in last), *(f"{number(a)}, {number(b)}" for a, b in pairs),
                     "same within noise" if d.within_noise else "differs", _ratio(cell)))  # fmt: skip
    head = ("cell", "torch.nn ends at", "fusednn ends at", "apart: largest, mean", "torch.nn under last-bit noise",
            "torch.nn between seeds", "verdict", "training, times as fast")  # fmt: skip
    return Table("users-curves", "curves", head, rows)
