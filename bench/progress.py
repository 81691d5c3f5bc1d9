"""What you see while it runs: a bar with the time left on a terminal, one plain line a test elsewhere.

Nothing is drawn while a benchmark is being timed: there is no refresh thread.
"""

from __future__ import annotations

import sys
import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn


def clock_text(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def time_text(seconds: float) -> str:
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= scale:
            return f"{seconds / scale:.3g} {unit}"
    return f"{seconds * 1e9:.3g} ns"


class Bar:
    """Counts the work of the planned tests and shows how much is left."""

    def __init__(self, costs: dict[str, float]) -> None:
        self.costs = costs
        self.total = sum(costs.values()) or 1.0
        self.done_cost = 0.0
        self.done = 0
        self.begun = time.monotonic()
        self.console = Console(file=sys.__stdout__, highlight=False)
        self.progress: Progress | None = None
        self.task: TaskID | None = None
        if self.console.is_terminal:
            self.progress = Progress(
                TextColumn("[bold]bench"), BarColumn(bar_width=None), MofNCompleteColumn(),
                TextColumn("{task.fields[left]} left"), TextColumn("[dim]{task.fields[what]}"),
                console=self.console, auto_refresh=False, transient=True,
            )  # fmt: skip
            self.task = self.progress.add_task("bench", total=len(costs), left="?", what="")
            self.progress.start()

    @property
    def left(self) -> float:
        """Seconds left, from the pace so far."""
        if not self.done_cost:
            return self.total
        pace = (time.monotonic() - self.begun) / self.done_cost
        return max(0.0, (self.total - self.done_cost) * pace)

    def step(self, nodeid: str, text: str) -> None:
        """One test is over."""
        self.done += 1
        self.done_cost += self.costs.get(nodeid, 0.0)
        left = clock_text(self.left)
        name = nodeid.rsplit("/", 1)[-1]
        if self.progress is not None and self.task is not None:
            self.progress.update(self.task, advance=1, left=left, what=f"{name} {text}", refresh=True)
        else:
            print(f"[{self.done:3d}/{len(self.costs)}] {name}  {text}  ({left} left)", file=sys.__stdout__, flush=True)

    def close(self) -> None:
        if self.progress is not None:
            self.progress.stop()


def outcome_text(report: Any, line: dict[str, Any] | None) -> str:
    """What one test came to, for the bar."""
    if report.outcome == "failed":
        return "FAILED"
    if line is None or line["kind"] == "skipped":
        return "skipped"
    stats = line["bench"].get("stats")
    if not stats:
        return line["kind"]
    info = line["bench"]["extra_info"]
    text = time_text(stats["median"])
    if info.get("ratio") is not None:
        text += f", ratio {info['ratio']:.2f}"
    if info.get("disturbed"):
        text += ", disturbed"
    return text
