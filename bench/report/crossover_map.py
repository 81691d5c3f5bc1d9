"""The crossover map: the fastest kind at each batch, length and width; the model of time, and what it predicts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from bench.crossover import HELD_BACK, KINDS, MODES, Points, agrees, crossings, fits, points
from bench.models.stacks import ENCODER
from bench.query import Cells
from bench.report.style import Picture, colour, draw
from bench.report.tables import Table, number

LABEL = {ENCODER: "attention"}
FILE = "crossover.png"


def crossover_map(cells: Cells) -> Picture | None:
    """Panels by mode and batch; a field is a length and a width."""
    measured = points(cells)
    modes = [mode for mode in MODES if (ENCODER, mode) in measured]
    batches = sorted({size[0] for sizes in measured.values() for size in sizes})
    if not modes or len({size for sizes in measured.values() for size in sizes}) < 2:
        return None

    def plot(figure: Figure) -> None:
        axes = figure.subplots(len(batches), len(modes), squeeze=False, sharex=True, sharey=True)
        for row, B in zip(axes, batches, strict=True):
            for ax, mode in zip(row, modes, strict=True):
                _panel(ax, measured, mode, B)
                ax.set_title(f"{mode}, B = {B}")
        for ax in axes[-1]:
            ax.set_xlabel("T")
        for ax in axes[:, 0]:
            ax.set_ylabel("width")
        kinds = [kind for kind in KINDS if any(key[0] == kind for key in measured)]
        marks = [axes[0, 0].plot([], [], "s", color=colour(LABEL.get(k, k)), markersize=9)[0] for k in kinds]
        figure.legend(marks, [LABEL.get(k, k) for k in kinds], loc="outside lower center", ncols=len(kinds))

    caption = (
        "The fastest of five stacks with equal parameters (24 d^2 weights), fp32, fusednn's layers: three LSTM, four "
        "GRU, twelve RNN, twelve MinGRU or two encoder layers. The figure is attention's time over that of the fastest "
        "recurrence: above 1 the recurrence is faster. Decode is one token behind T others."
    )
    return draw("crossover", "Who wins where", caption, plot, (9.2, 1.7 + 1.9 * len(batches)))


def _panel(ax: Any, measured: Points, mode: str, B: int) -> None:
    sizes = sorted(size for size in measured[ENCODER, mode] if size[0] == B)
    lengths, widths = sorted({s[1] for s in sizes}), sorted({s[2] for s in sizes})
    for size in sizes:
        times = {kind: measured[kind, mode][size].seconds for kind in KINDS if size in measured.get((kind, mode), {})}
        rest = {kind: t for kind, t in times.items() if kind != ENCODER}
        if not rest:
            continue
        x, y, winner = lengths.index(size[1]), widths.index(size[2]), min(times, key=lambda kind: times[kind])
        ax.barh(y, 0.96, 0.94, left=x - 0.48, color=colour(LABEL.get(winner, winner)))
        ratio = times[ENCODER] / min(rest.values())
        name = LABEL.get(winner, winner)
        ax.text(x, y, f"{name}\n{ratio:.2g}x", ha="center", va="center", fontsize=7, color="white", weight="bold")
    ax.set_xticks(range(len(lengths)), [str(t) for t in lengths])
    ax.set_yticks(range(len(widths)), [str(d) for d in widths])
    ax.grid(visible=False)


def crossover_tables(cells: Cells) -> list[Table]:
    """The coefficients with their errors, and where attention begins to win, measured and predicted."""
    measured = points(cells)
    head = ("stack", "mode", "us a launch", "us a step", "GFLOP/s", "error at sizes of the fit", "at sizes held back")
    rows = []
    for (kind, mode), fit in sorted(fits(measured).items(), key=lambda item: (MODES.index(item[0][1]), item[0][0])):
        cost = (number(None if c is None else c * 1e6) for c in (fit.launch, fit.step))
        rate = number(None if fit.rate is None else fit.rate * 1e-9)
        rows.append((LABEL.get(kind, kind), mode, *cost, rate, _percent(fit.seen), _percent(fit.unseen)))
    title = f"Time = launches x latency + steps x latency + work / rate; width {HELD_BACK} held back"
    models = Table("crossover-model", title, head, rows)
    found = crossings(measured)
    right = sum(map(agrees, found))
    score = f"{right} of {len(found)} predicted within a factor of 2"
    title = f"Lengths at which attention is faster, width {HELD_BACK}: {score}"
    rows = [(c.kind, c.mode, str(c.B), str(c.measured), str(c.predicted), "yes" if agrees(c) else "no")
            for c in found]  # fmt: skip
    where = Table("crossover-length", title, ("recurrence", "mode", "B", "measured", "predicted", "agree"), rows)
    return [table for table in (models, where) if table.rows]


def section(results: dict[str, Any], folder: Path) -> str:
    """One machine's part of docs/crossover.md."""
    m = results["machine_info"]
    threads = f", {m['cpu_count']} cores, {m['torch_threads']} threads" if m["device"] == "cpu" else ""
    head = f"### {m['device_name']}{threads}\n\ntorch {m['torch']}, {results['datetime'][:10]}, fp32.\n"
    picture = f"![Who wins where](../{(folder / FILE).as_posix()})\n"
    tables = (f"{table.title}:\n\n{table.markdown()}" for table in crossover_tables(Cells(results)))
    return "\n".join([head, picture, *tables])


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.2g} %"
