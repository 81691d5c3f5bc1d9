"""The pictures, each from the cells of a results file. A picture without data is left out.

To add one, write a function from `Cells` to `Picture | None` and put it into `PICTURES`.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

from matplotlib.figure import Figure

from bench.query import Cells
from bench.report.crossover_map import crossover_map
from bench.report.hardware import occupancy, occupancy_and_speed, roofline
from bench.report.style import FAINT, INK, Picture, colour, disturbed_note, draw, log_axes
from bench.stats import crossover, exponent, line_slope, median

Line = dict[float, list[float]]


def group(cells: Iterable[dict[str, Any]], by: str, over: str = "T") -> dict[str, Line]:
    """Rounds by a field's value, then by x."""
    lines: dict[str, Line] = defaultdict(dict)
    for cell in cells:
        info = cell["extra_info"]
        if info.get(over) is not None:
            lines[str(info[by])][float(info[over])] = cell["stats"]["data"]
    return {name: dict(sorted(line.items())) for name, line in lines.items()}


def short(value: float) -> str:
    """A figure for a bar's end."""
    return f"{value:,.0f}" if value >= 10 or value == int(value) else f"{value:.1f}"


def plot_line(ax: Any, name: str, line: Line, scale: float = 1e3, label: str | None = None, **style: Any) -> None:
    """Medians with their intervals."""
    xs = list(line)
    middle = [median(v) for v in line.values()]
    y = [m.value * scale for m in middle]
    errors = [[(m.value - m.low) * scale for m in middle], [(m.high - m.value) * scale for m in middle]]
    ax.errorbar(xs, y, yerr=errors, marker="o", color=colour(name), label=label or name, capsize=2, **style)


def fitted(line: Line, at_least: float = 50) -> str:
    """The exponent of a line as a label."""
    long = {x: v for x, v in line.items() if x >= at_least}
    if len(long) < 2:
        return ""
    return f"  $T^{{{exponent(long).value:.2f}}}$"


def launch_ladder(cells: Cells) -> Picture | None:
    """Operator calls and time a step on each rung, at the longest T."""
    found = [c for c in cells.select("bench_launch.py::test_ladder") if c["extra_info"]["launches"] is not None]
    if not found:
        return None
    longest = max(c["extra_info"]["T"] for c in found)
    shown = [c for c in found if c["extra_info"]["T"] == longest]
    kinds = list(dict.fromkeys(c["extra_info"]["cell"] for c in shown))
    rungs = list(dict.fromkeys(c["extra_info"]["impl"] for c in shown))
    table = {(c["extra_info"]["cell"], c["extra_info"]["impl"]): c["extra_info"] for c in shown}
    word = "operator calls" if cells.device == "cpu" else "kernels"
    panels = [("launches", f"{word} a sequence"), ("us_per_step", "us a step")]
    if any(i.get("gap_fraction") is not None for i in table.values()):
        panels.append(("gap_fraction", "share of time without a kernel"))

    def plot(figure: Figure) -> None:
        axes = figure.subplots(1, len(panels))
        for ax, (field, label) in zip(axes, panels, strict=True):
            for row, rung in enumerate(rungs):
                for k, kind in enumerate(kinds):
                    value = table.get((kind, rung), {}).get(field)
                    if value is None:
                        continue
                    at = k + (row - (len(rungs) - 1) / 2) * 0.8 / len(rungs)
                    bar = ax.bar(at, value, 0.72 / len(rungs), color=colour(rung), label=rung if k == 0 else None)
                    ax.bar_label(bar, fmt=short, fontsize=7, rotation=90, padding=3, color=INK)
            if field != "gap_fraction":
                ax.set_yscale("log")
                ax.set_ylim(top=ax.get_ylim()[1] * 6)
            ax.set_xticks(range(len(kinds)), kinds)
            ax.grid(axis="x", visible=False)
            ax.set_title(label)
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(rungs))

    caption = (f"The same recurrence (B = 1, H = 64, T = {longest}, inference) on every rung of the ladder: {word} "
               "counted, and the time of a step. What shrinks from left to right is the cost of starting work, not "
               "the work." + disturbed_note(shown))  # fmt: skip
    return draw("ladder", "The launch ladder", caption, plot, (7.6, 4.0))


def launches_against_length(cells: Cells) -> Picture | None:
    found = cells.select("bench_launch.py::test_ladder", cell="LSTM")
    lines: dict[str, dict[float, float]] = defaultdict(dict)
    for c in found:
        if c["extra_info"]["launches"] is not None:
            lines[c["extra_info"]["impl"]][float(c["extra_info"]["T"])] = float(c["extra_info"]["launches"])
    lines = {name: dict(sorted(line.items())) for name, line in lines.items() if len(line) > 1}
    if not lines:
        return None

    def plot(figure: Figure) -> None:
        ax = figure.subplots()
        for name, line in lines.items():
            slope = line_slope(list(line), list(line.values()))
            ax.plot(
                list(line), list(line.values()), marker="o", color=colour(name), label=f"{name}: {slope:.3g} a step"
            )
        log_axes(ax, "T", "operator calls", list(next(iter(lines.values()))))
        ax.legend()

    return draw("launches", "Launches against length", "Operator calls of an LSTM against T, with the slope fitted to "
                "each rung. A flat line is a recurrence that does not launch T times.", plot)  # fmt: skip


def ladder_time(cells: Cells) -> Picture | None:
    found = cells.select("bench_launch.py::test_ladder", cell="LSTM")
    return _time_picture("ladder-time", "Ladder: time against length", found, "impl",
                         "LSTM, B = 1, H = 64, inference; the exponent is fitted over T >= 50.")  # fmt: skip


def _time_picture(name: str, title: str, found: list[dict[str, Any]], by: str, caption: str) -> Picture | None:
    lines = {n: line for n, line in group(found, by).items() if len(line) > 1}
    if not lines:
        return None

    def plot(figure: Figure) -> None:
        ax = figure.subplots()
        for n, line in lines.items():
            plot_line(ax, n, line, label=n + fitted(line))
        log_axes(ax, "T", "ms", sorted({x for line in lines.values() for x in line}))
        ax.legend()

    return draw(name, title, caption + disturbed_note(found), plot)


def recurrent_time(cells: Cells) -> Picture | None:
    """Small multiples: a panel a cell, inference and training."""
    found = cells.select("bench_recurrent.py::test_time")
    kinds = list(dict.fromkeys(c["extra_info"]["cell"] for c in found))
    panels = {k: [c for c in found if c["extra_info"]["cell"] == k] for k in kinds}
    xs = sorted({c["extra_info"]["T"] for c in found})
    if len(xs) < 2:
        return None

    def plot(figure: Figure) -> None:
        axes = figure.subplots(1, len(kinds), sharey=True, squeeze=False)[0]
        for ax, kind in zip(axes, kinds, strict=True):
            for mode, line_style in (("inference", "-"), ("training", "--")):
                chosen = [c for c in panels[kind] if c["extra_info"]["mode"] == mode]
                for name, line in group(chosen, "impl").items():
                    plot_line(ax, name, line, label=f"{name}, {mode}{fitted(line)}", linestyle=line_style)
            log_axes(ax, "T", "ms" if ax is axes[0] else "", xs)
            ax.set_title(kind)
            ax.legend(fontsize=7)
        low, high = axes[0].get_ylim()
        axes[0].set_ylim(low, high * 4)

    return draw("recurrent", "Recurrent layers: time against length",
                "B = 8, I = H = 256, fp32; solid inference, dashed forward and backward; medians with 95 % intervals, "
                "exponents fitted over T >= 50." + disturbed_note(found), plot, (9.2, 4.0))  # fmt: skip


def attention_time(cells: Cells) -> Picture | None:
    found = cells.select("bench_attention.py::test_time", mode="inference")
    return _time_picture("attention", "Attention: time against length", found, "impl",
                         "Self-attention alone, B = 1, 8 heads of 64, fp32, inference.")  # fmt: skip


def seed_models(cells: Cells) -> Picture | None:
    found = cells.select("bench_models.py::test_seed_model", impl="fusednn") or cells.select(
        "bench_models.py::test_seed_model", impl="torch.nn"
    )
    for c in found:
        c["extra_info"].setdefault("name", c["extra_info"]["cell"].removeprefix("seed "))
    return _time_picture("seed-models", "The seeds' two models", found, "name",
                         "Embedding 10000 x 512 and projection on both sides; one LSTM of 512 against six encoder "
                         "layers of eight heads; inference, fp32.")  # fmt: skip


def duel(cells: Cells) -> Picture | None:
    """Ratio against T on each basis, with the crossover."""
    found = [*cells.select("bench_duel.py::test_posed", impl="fusednn"),
             *cells.select("bench_duel.py::test_stacks", impl="fusednn")]  # fmt: skip
    found = [c for c in found if c["extra_info"]["ratio"] is not None and "LSTM" in c["extra_info"]["cell"]]
    if len({c["extra_info"]["T"] for c in found}) < 2:
        return None

    def plot(figure: Figure) -> None:
        axes = figure.subplots(1, 2, sharey=True)
        for ax, mode in zip(axes, ("inference", "training"), strict=True):
            ax.axhspan(2, 4, color=FAINT, alpha=0.12, lw=0)
            ax.axhline(1, color=FAINT, lw=1)
            for basis in ("posed", "parameters", "flops"):
                infos = [c["extra_info"] for c in found if c["extra_info"]["basis"] == basis]
                infos = sorted((i for i in infos if i["mode"] == mode), key=lambda i: i["T"])
                if not infos:
                    continue
                xs, y = [i["T"] for i in infos], [i["ratio"] for i in infos]
                errors = [
                    [max(0.0, i["ratio"] - i["ratio_low"]) for i in infos],
                    [max(0.0, i["ratio_high"] - i["ratio"]) for i in infos],
                ]
                at = crossover(dict(zip(map(float, xs), y, strict=True)))
                label = basis + (f", T* = {at:.0f}" if at else "")
                ax.errorbar(xs, y, yerr=errors, marker="o", capsize=2, color=colour(basis), label=label)
            log_axes(ax, "T", "LSTM time / attention time" if mode == "inference" else "",
                     sorted({c["extra_info"]["T"] for c in found}))  # fmt: skip
            ax.set_yticks([0.125, 0.25, 0.5, 1, 2, 4, 8], ["1/8", "1/4", "1/2", "1", "2", "4", "8"])
            ax.minorticks_off()
            ax.set_title(mode)
            ax.legend()

    return draw("duel", "The duel: who is faster, and from where",
                "Paired rounds, fusednn's layers on both sides. Above 1 attention is faster; the band is the claimed "
                "2 to 4. 'posed' is the seeds' own pair, the others hold parameters or arithmetic equal. T* is where "
                "they cross." + disturbed_note(found), plot, (7.6, 4.0))  # fmt: skip


def step_cost(cells: Cells) -> Picture | None:
    """us a step and GFLOP/s by T."""
    found = cells.select("bench_recurrent.py::test_time", mode="inference")
    if len({c["extra_info"]["T"] for c in found}) < 2:
        return None
    names = list(dict.fromkeys((c["extra_info"]["cell"], c["extra_info"]["impl"]) for c in found))

    def plot(figure: Figure) -> None:
        left, right = figure.subplots(1, 2)
        for kind, impl in names:
            infos = sorted((c["extra_info"] for c in found
                            if (c["extra_info"]["cell"], c["extra_info"]["impl"]) == (kind, impl)),
                           key=lambda i: i["T"])  # fmt: skip
            style = {"color": colour(kind), "linestyle": "-" if impl == "fusednn" else ":", "marker": "o"}
            xs = [i["T"] for i in infos]
            left.plot(xs, [i["us_per_step"] for i in infos], label=f"{kind}, {impl}", **style)
            right.plot(xs, [(i["tflops"] or math.nan) * 1e3 for i in infos], **style)
        for ax, title in ((left, "us a step"), (right, "GFLOP/s")):
            ax.set_xlabel("T")
            ax.set_ylim(bottom=0)
            ax.set_title(title)
        figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=3)

    return draw("step", "Cost of a step, and arithmetic speed",
                "Inference, B = 8, I = H = 256, fp32; solid fusednn, dotted torch.nn." + disturbed_note(found),
                plot, (7.6, 4.2))  # fmt: skip


def memory(cells: Cells) -> Picture | None:
    """Bytes kept for backward, and the most in use at once, against T."""
    facts = [*cells.facts_of("bench_memory.py::test_recurrent"), *cells.facts_of("bench_memory.py::test_attention")]
    if not facts:
        return None

    def plot(figure: Figure) -> None:
        left, right = figure.subplots(1, 2)
        for f in facts:
            ours = f["impl"].startswith("fusednn")
            style = {"marker": "o" if ours else "x", "color": colour(f["cell"]),
                     "linestyle": "-" if ours else "--" if f["impl"] == "sdpa-flash" else ":"}  # fmt: skip
            peaks = [min(p) if p else math.nan for p in f["peak_mib"]]
            for ax, values in ((left, f["saved_mib"]), (right, peaks)):
                known = {float(x): [y] for x, y in zip(f["lengths"], values, strict=True) if y > 0}
                label = f"{f['cell']}, {f['impl']}{fitted(known, 0)}"
                ax.plot(f["lengths"], values, label=label, **style)
        for ax, title in ((left, "MiB kept for backward"), (right, "MiB in use at most")):
            log_axes(ax, "T", "", sorted({float(x) for f in facts for x in f["lengths"]}))
            ax.set_title(title)
            ax.legend(fontsize=7)
            low, high = ax.get_ylim()
            ax.set_ylim(low, high * 12)

    caption = (
        "Left: distinct storages that autograd keeps for backward, counted. Right: the most that forward and backward "
        "have in use at once, scratch of kernels included. Weights and inputs are in neither. Recurrent: B = 8, "
        "H = 128; attention: B = 1, 2 heads of 64."
    )
    return draw("memory", "Training memory", caption, plot, (9.2, 4.6))


def gradients(cells: Cells) -> Picture | None:
    """log10 of the gradient's norm against distance."""
    lines = {
        c["extra_info"]["cell"]: cells.series(c).get("log10_norm")
        for c in [
            *cells.select("bench_gradients.py::test_distance"),
            *cells.select("bench_gradients.py::test_attention"),
        ]
    }
    lines = {name: line for name, line in lines.items() if line}
    if not lines:
        return None

    def plot(figure: Figure) -> None:
        ax = figure.subplots()
        for name, line in lines.items():
            ax.plot([v - line[0] for v in line], color=colour(name), label=name)
        ax.set_xlabel("distance k from the last step")
        ax.set_ylabel("decades below the nearest gradient")
        ax.legend(fontsize=8, ncols=2)

    return draw("gradients", "How far gradients reach", "log10 of |dL/dx| at distance k relative to k = 0, mean over "
                "seeds, fp64 so that nothing underflows; networks at initialisation.", plot)  # fmt: skip


def language_models(cells: Cells) -> Picture | None:
    """Loss against seconds and against bytes."""
    found = cells.select("bench_models.py::test_byte_lm", impl="fusednn")
    curves = {c["extra_info"]["cell"]: cells.series(c) for c in found if "bits" in cells.series(c)}
    if not curves:
        return None
    unigram = found[0]["extra_info"]["unigram_bits"]

    def plot(figure: Figure) -> None:
        left, right = figure.subplots(1, 2, sharey=True)
        for name, s in curves.items():
            bits = [math.nan if b is None else b for b in s["bits"]]
            left.plot([b / 1e6 for b in s["bytes"]], bits, color=colour(name), label=f"{name} {bits[-1]:.2f}")
            right.plot(s["seconds"], bits, color=colour(name))
        for ax, label in ((left, "million bytes seen"), (right, "seconds of training")):
            ax.axhline(unigram, color=FAINT, lw=1, ls="--")
            ax.axhline(unigram - 1, color=FAINT, lw=1, ls=":")
            ax.set_xlabel(label)
        left.set_ylabel("held-out bits a byte")
        left.set_ylim(min(min(s["bits"], key=lambda b: b or 9) or 2 for s in curves.values()) - 0.2, unigram + 1)
        right.text(right.get_xlim()[1], unigram, "unigram entropy ", ha="right", va="bottom", fontsize=8, color=FAINT)
        right.text(right.get_xlim()[1], unigram - 1, "one bit less ", ha="right", va="bottom", fontsize=8, color=FAINT)
        left.legend()

    sizes = ", ".join(f"{c['extra_info']['params']:,}" for c in found)
    return draw("language-models", "Byte language models of equal size",
                f"Trained on Python's own standard library ({sizes} parameters; held-out files). Left: what a byte of "
                "text teaches; right: what a second of training does."
                + disturbed_note(found), plot, (7.6, 4.0))  # fmt: skip


PICTURES: tuple[Callable[[Cells], Picture | None], ...] = (
    launch_ladder, launches_against_length, ladder_time, duel, seed_models, recurrent_time, step_cost, attention_time,
    language_models, gradients, memory, roofline, occupancy_and_speed, occupancy, crossover_map,
)  # fmt: skip


def draw_all(cells: Cells) -> list[Picture]:
    return [picture for picture in (make(cells) for make in PICTURES) if picture is not None]
