"""Tables as rows of text, for the page and as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

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
            rows.setdefault(f["kernel"], {})[gpu] = text
    body = [(name, *(texts.get(gpu, "") for gpu in facts)) for name, texts in rows.items()]
    return Table("occupancy-by-gpu", "CUDA and Triton kernels by GPU: blocks x threads, share of the warps, limiter",
                 ("kernel", *facts), body)  # fmt: skip


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
