"""The measured part of a benchmark for a profiler to look at: checked, warmed up, run a few times, not timed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from bench import clock
from bench.load import Verdict
from bench.measure import Case, Measure
from fusednn.profiling import measured

RUNS = 3


class Profiled(Measure):
    """The ``measure`` fixture under ``--bench-profile``. Nothing is recorded: a profiler makes times wrong."""

    def __call__(self, case: Case, *, counts: bool = True) -> Verdict:
        """Run the case where profilers look; there are no rounds."""
        self._prepare(case)
        self._show(case.run)
        return Verdict([], [], 0.0, 0, False)

    def pair(self, a: Case, b: Case, basis: str) -> None:
        """Both, one after the other."""
        self._prepare(a)
        self._checked(b)
        self._show(a.run, b.run)

    def once(self, run: Callable[[], Any], **fields: Any) -> Any:
        """What can't be repeated is not warmed up either."""
        with measured():
            return run()

    def _show(self, *runs: Callable[[], Any]) -> None:
        for run in runs:
            run()
        clock.settle(self.device)
        with measured():
            for run in runs:
                for _ in range(RUNS):
                    run()
            clock.settle(self.device)
