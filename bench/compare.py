"""Compare two results files: ``python -m bench.compare BEFORE AFTER``.

Counted fields must be equal. A time is SAME, FAST, SLOW or AMBIGUOUS by the 95 % intervals of the medians: disjoint
intervals decide (SLOW or FAST, where the ratio also leaves the tolerance), overlapping intervals are SAME where the
ratio is known to within the tolerance, and AMBIGUOUS where it isn't, or where foreign load disturbed either side. Files
from two different devices, numbers of threads or tiers are not compared. A cell that was timed and is now refused as
wrong, or fails, is WRONG. The exit status is 1 where something is WRONG or SLOW or a counted field changed, 2 where the
files can't be compared.
"""

from __future__ import annotations

import argparse
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.lines import FAULTS
from bench.progress import time_text
from bench.results import load
from bench.stats import Estimate, median

SAME, FAST, SLOW, AMBIGUOUS, CHANGED, WRONG = "SAME", "FAST", "SLOW", "AMBIGUOUS", "CHANGED", "WRONG"
STATUSES = (WRONG, CHANGED, SLOW, AMBIGUOUS, FAST, SAME)  # what asks for a look comes first
FAILING = (WRONG, CHANGED, SLOW)
COUNTED = (
    "launches",
    "aten_ops",
    "saved_mib",
    "state_bytes",
    "regs",
    "smem",
    "spills",
    "occupancy_theoretical",
    "params",
)
TOLERANCE = 0.10  # a ratio within 1 +- this is not a difference that anyone acts on


class NotComparable(ValueError):
    """The two files don't measure the same thing."""


@dataclass(frozen=True)
class Comparison:
    """What became of one cell."""

    fullname: str
    status: str
    before: Estimate
    after: Estimate | None
    note: str = ""

    @property
    def ratio(self) -> float:
        return self.after.value / self.before.value if self.after else math.nan


def judge_times(before: Estimate, after: Estimate, tolerance: float = TOLERANCE) -> str:
    """The status of one pair of medians."""
    low, high = after.low / before.high, after.high / before.low
    if not before.overlaps(after):
        ratio = after.value / before.value
        if abs(ratio - 1) > tolerance:
            return SLOW if ratio > 1 else FAST
    if 1 / (1 + tolerance) <= low and high <= 1 + tolerance:
        return SAME
    return AMBIGUOUS


def compare_cells(before: dict[str, Any], after: dict[str, Any], tolerance: float = TOLERANCE) -> Comparison:
    """Counted fields first, then time."""
    a, b = before["extra_info"], after["extra_info"]
    times = median(before["stats"]["data"]), median(after["stats"]["data"])
    changed = [f"{f} {a[f]} -> {b[f]}" for f in COUNTED if a.get(f) is not None and a.get(f) != b.get(f)]
    if changed:
        return Comparison(after["fullname"], CHANGED, *times, note=", ".join(changed))
    if a.get("disturbed") or b.get("disturbed"):
        return Comparison(after["fullname"], AMBIGUOUS, *times, note="disturbed by foreign load")
    return Comparison(after["fullname"], judge_times(*times, tolerance), *times)


def compare(before: dict[str, Any], after: dict[str, Any], tolerance: float = TOLERANCE) -> list[Comparison]:
    """Every cell that was timed before, and is now timed or at fault."""
    devices = [r["machine_info"]["device_name"] for r in (before, after)]
    if devices[0] != devices[1]:
        raise NotComparable(f"different devices: {devices[0]!r} and {devices[1]!r}")
    threads = [r["machine_info"]["torch_threads"] for r in (before, after)]
    if threads[0] != threads[1]:
        raise NotComparable(f"different numbers of threads: {threads[0]} and {threads[1]}")
    tiers = [r["tier"]["name"] for r in (before, after)]
    if tiers[0] != tiers[1]:
        raise NotComparable(f"different tiers, whose shapes differ: {tiers[0]} and {tiers[1]}")
    old = {cell["fullname"]: cell for cell in before["benchmarks"]}
    pairs = [(old[c["fullname"]], c) for c in after["benchmarks"] if c["fullname"] in old]
    faults = [row for row in after["not_measured"] if row["kind"] in FAULTS and row["fullname"] in old]
    if not pairs and not faults:
        raise NotComparable("no cell is in both files")
    return [*(_fault(old[row["fullname"]], row) for row in faults), *(compare_cells(*p, tolerance) for p in pairs)]


def _fault(before: dict[str, Any], row: dict[str, Any]) -> Comparison:
    return Comparison(row["fullname"], WRONG, median(before["stats"]["data"]), None, row["extra_info"]["skip_reason"])


def _share(text: str) -> float:
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"expected a positive number, got {text}")
    return value


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.compare", description=__doc__)
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--tolerance", type=_share, default=TOLERANCE, help="default: %(default)s")
    given = parser.parse_args(argv)
    console = Console(highlight=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = 200  # a file or a pipe: a row a line
    try:
        found = compare(load(given.before), load(given.after), given.tolerance)
    except ValueError as error:
        console.print(f"not comparable: {error}")
        return 2
    table = Table(box=None)
    for head in ("cell", "before", "after", "ratio", "", "note"):
        table.add_column(head, overflow="fold")
    for c in sorted(found, key=lambda c: (c.status != WRONG, -c.ratio)):
        now, ratio = (time_text(c.after.value), f"{c.ratio:.2f}") if c.after else ("", "")
        table.add_row(c.fullname.removeprefix("bench/").replace("[", "\\["), time_text(c.before.value), now, ratio,
                      c.status, c.note)  # fmt: skip
    console.print(table)
    tally = {s: sum(1 for c in found if c.status == s) for s in reversed(STATUSES)}
    console.print(", ".join(f"{n} {s}" for s, n in tally.items()))
    return 1 if any(tally[status] for status in FAILING) else 0


if __name__ == "__main__":
    raise SystemExit(main())
