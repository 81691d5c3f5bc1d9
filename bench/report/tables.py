"""Tables as rows of text, for the page and as Markdown."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bench.compare import SAME, STATUSES, NotComparable, compare
from bench.progress import time_text
from bench.query import Cells
from bench.stats import median


@dataclass(frozen=True)
class Table:
    """A titled table of strings."""

    name: str
    title: str
    head: tuple[str, ...]
    rows: list[tuple[str, ...]]

    def markdown(self) -> str:
        lines = [self.head, tuple("---" for _ in self.head), *self.rows]
        return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines) + "\n"


def number(value: float | None, digits: int = 3) -> str:
    """A figure with three significant digits; nothing where it was not measured."""
    if value is None:
        return ""
    if value and (abs(value) >= 1e5 or abs(value) < 1e-3):
        return f"{value:.{digits - 1}e}"
    return f"{value:.{digits}g}" if abs(value) < 10**digits - 0.5 else f"{value:,.0f}"


def interval(values: Sequence[float] | None) -> str:
    if not values:
        return ""
    return f"{number(values[0])} to {number(values[1])}"


def verdicts(claims: list[dict[str, Any]]) -> Table:
    rows = [
        (
            str(c["id"]), c["claim"], c["row"], c["rule"] or "", number(c["measured"]), interval(c["interval"]),
            c["verdict"], c["basis"] or c["reason"] or "",
        )
        for c in claims
    ]  # fmt: skip
    head = ("#", "claim", "row", "rule", "measured", "95 % interval", "verdict", "basis, or why not measured")
    return Table("claims", "Claims and verdicts", head, rows)


def timings(cells: Cells) -> list[Table]:
    """One table a group, with the interval of the median and what can be said about trust."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for cell in cells.all:
        groups.setdefault(cell["group"] or "other", []).append(cell)
    tables = []
    for name, members in groups.items():
        rows = []
        for cell in members:
            i, m = cell["extra_info"], median(cell["stats"]["data"])
            size = ", ".join(f"{k} {i[k]}" for k in ("B", "T", "H", "N", "E") if i.get(k) is not None)
            ratio = (
                f"{number(i['ratio'])} ({number(i['ratio_low'])} to {number(i['ratio_high'])})" if i["ratio"] else ""
            )
            rows.append((
                str(i["cell"]), str(i["impl"]), size, time_text(m.value),
                f"{time_text(m.low)} to {time_text(m.high)}", number(i["us_per_step"]),
                number(i["tflops"] * 1e3 if i["tflops"] else None), number(i["launches"]), number(i["saved_mib"]),
                ratio, str(cell["stats"]["rounds"]), number(i["rejected_rounds"]),
                "disturbed" if i["disturbed"] else "",
            ))  # fmt: skip
        head = ("cell", "implementation", "size", "median", "95 % interval", "us a step", "GFLOP/s", "operator calls",
                "MiB saved", "ratio", "rounds", "rejected", "note")  # fmt: skip
        tables.append(drop_empty(Table(name.replace(" ", "-").replace("/", "over"), name, head, rows)))
    return tables


def occupancy(cells: Cells) -> Table:
    """Blocks a multiprocessor, share of its warps and limiter, a row a kernel and a column a GPU."""
    facts = cells.facts("bench_occupancy.py::test_theoretical")
    rows: dict[str, dict[str, str]] = {}
    for gpu, fact in facts.items():
        for row in fact["rows"]:
            f = dict(zip(fact["columns"], row, strict=True))
            text = f"{f['blocks']} x {f['threads']}, {100 * f['occupancy']:.3g} %, {f['limiter']}"
            if f.get("one more"):
                text += f" (one more: {f['one more']})"
            rows.setdefault(f["kernel"], {})[gpu] = text
    body = [(name, *(texts.get(gpu, "") for gpu in facts)) for name, texts in rows.items()]
    return Table("occupancy-by-gpu", "CUDA and Triton kernels by GPU: blocks x threads, share of the warps, limiter",
                 ("kernel", *facts), body)  # fmt: skip


def floors(cells: Cells) -> Table:
    """What this machine cannot go below or above: calls, meetings and launches in us, products and copies a second."""
    rows = []
    for cell in (c for c in cells.all if "bench_floors.py::" in c["fullname"]):
        i = cell["extra_info"]
        figures = (("us_per_step", 1.0, "us a call"), ("tflops", 1e3, "GFLOP/s"), ("gbps", 1.0, "GB/s"))
        field, scale, unit = next((f for f in figures if i.get(f[0]) is not None), figures[0])
        value = None if i.get(field) is None else i[field] * scale
        who = f"{i['dtype']}, {i['threads_torch']} threads" if i["device"] == "cpu" else i["dtype"]
        rows.append((i["cell"], who, number(value), unit, "disturbed" if i["disturbed"] else ""))
    for fact in cells.facts_of("bench_floors.py::test_drivers"):
        for f in fact["floors"]:
            extra = ", ".join(f"{f[name]} {name}" for name in ("threads", "blocks", "cycles") if name in f)
            quartiles = f"quartiles {number(f['low'])} to {number(f['high'])}"
            rows.append((f["floor"].replace("_", " "), extra, number(f["us"]), "us", quartiles))
    return Table("floors", "Floors and peaks of this machine", ("what", "of", "measured", "unit", "note"), rows)


def shares(cells: Cells) -> Table:
    """What each cell reached of the peaks, beside what Nsight Compute counted where there was a GPU."""
    rows = []
    for cell in cells.all:
        i = cell["extra_info"]
        if i.get("pct_peak_flops") is None or "bench_floors.py::" in cell["fullname"]:
            continue
        percents = ("pct_peak_flops", "pct_peak_bw", "occupancy_achieved", "occupancy_theoretical", "sm_active_pct",
                    "tensor_active_pct")  # fmt: skip
        name = cell["fullname"].removeprefix("bench/bench_").replace(".py::test_", " ")
        rows.append((name, number(i["tflops"] * 1e3), *(number(i.get(p)) for p in percents),
                     i.get("occupancy_limiter") or ""))  # fmt: skip
    head = ("cell", "GFLOP/s", "% of peak FLOP/s", "% of peak bandwidth", "occupancy achieved, %", "of at most, %",
            "SM active, %", "tensor cores busy, %", "limited by")  # fmt: skip
    rows.sort(key=lambda row: -float(row[2].replace(",", "")))
    return drop_empty(Table("shares", "Share of this machine's measured peaks", head, rows))


def nsight(results: dict[str, Any]) -> Table:
    """Nsight Compute's launches, a row each."""
    rows = []
    for target, launches in results.get("nsight", {}).items():
        for k in launches:
            figures = (k["time_us"], k["threads"], k["regs"], k["shared"], k["waves"], k["occupancy_achieved"],
                       k["occupancy_theoretical"], k["sm_active_pct"], k["tensor_active_pct"])  # fmt: skip
            name = k["kernel"].removeprefix("void ").split("(")[0]
            rows.append((target.removeprefix("bench/"), name, *map(number, figures), k["occupancy_limiter"] or ""))
    head = ("profiled", "kernel", "us", "threads", "registers", "shared bytes", "waves", "occupancy achieved, %",
            "of at most, %", "SM active, %", "tensor cores busy, %", "limited by")  # fmt: skip
    return Table("nsight", "Launches under Nsight Compute", head, rows)


def passports(cells: Cells) -> list[Table]:
    """What each of Triton's compilers made of each kernel on each architecture."""
    return [
        Table(f"passports-{version}", f"Passports of the Triton kernels, Triton {version}", tuple(fact["columns"]),
              [tuple(str(value) for value in row) for row in fact["rows"]])
        for version, fact in cells.facts("bench_occupancy.py::test_passports").items()
    ]  # fmt: skip


def learning(results: dict[str, Any]) -> Table:
    """What bench_learning.py found: the share of right answers, or bits a byte, by mean and range of the seeds."""
    rows = []
    for name, fact in results["facts"].items():
        if "bench_learning.py::" in name:
            columns = fact.get("accuracy") or fact["bits"]
            columns = list(zip(*columns, strict=True)) if isinstance(columns[0], list) else [columns]
            found = (f"{sum(c) / len(c):.3g} ({min(c):.3g} to {max(c):.3g})" for c in columns)
            rows.append((name.split("::test_")[1], fact["system"], str(len(columns[0])), f"{fact['params']:,}",
                         f"{fact['steps']} x {fact['rows']}", str(fact["rate"]), ", ".join(found)))  # fmt: skip
    head = ("task", "system", "seeds", "parameters", "steps x rows", "rate", "accuracy, or bits a byte: mean (range)")
    return Table("learning", "What small models learn", head, rows)


def comparison(results: dict[str, Any], before: dict[str, Any] | None) -> Table:
    """What differs from a kept run of the same machine and tier: what asks for a look first."""
    head = ("cell", "before", "now", "ratio", "status", "note")
    try:
        found = compare(before, results) if before and before["datetime"] != results["datetime"] else []
    except NotComparable:
        found = []
    tally = Counter(c.status for c in found)
    rows = [
        (c.fullname.removeprefix("bench/"), time_text(c.before.value), time_text(c.after.value) if c.after else "",
         number(c.ratio) if c.after else "", c.status, c.note)
        for c in sorted(found, key=lambda c: (STATUSES.index(c.status), -c.ratio)) if c.status != SAME
    ]  # fmt: skip
    words = ", ".join(f"{n} {status}" for status, n in sorted(tally.items(), key=lambda t: STATUSES.index(t[0])))
    when = before["datetime"][:10] if before else ""
    return Table("comparison", f"Against the kept run of {when}: {words}", head, rows)


def drop_empty(table: Table) -> Table:
    """Leave out columns in which nothing was measured."""
    keep = [k for k in range(len(table.head)) if any(row[k] for row in table.rows)]
    return Table(table.name, table.title, tuple(table.head[k] for k in keep),
                 [tuple(row[k] for k in keep) for row in table.rows])  # fmt: skip


def not_measured(results: dict[str, Any]) -> Table:
    rows = [
        (row["fullname"].removeprefix("bench/"), row["kind"], row["extra_info"].get("skip_reason") or "")
        for row in results["not_measured"]
    ]
    return Table("not-measured", "Cells without a time", ("cell", "kind", "reason"), rows)
