"""What is profiled: a layer, a benchmark or a script, as the command line of a process of its own."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

from .workload import KINDS


@dataclass(frozen=True)
class Target:
    """A process to profile.

    Attributes:
        module: what Python runs, or the file of a script.
        arguments: of that.
        marked: whether it says what is `measured`, which is then all that is profiled.
        file: of a script or a benchmark.
    """

    module: str
    arguments: tuple[str, ...]
    marked: bool = False
    file: str | None = None

    @property
    def command(self) -> list[str]:
        """As it is started without a profiler."""
        return [sys.executable, *([] if self.module.endswith(".py") else ["-m"]), self.module, *self.arguments]


def parse_target(words: Sequence[str]) -> Target:
    """Understand a TARGET.

    Args:
        words: a layer and its sizes (``lstm --batch 8 --hidden 512``), a benchmark's id
            (``bench/bench_recurrent.py::test_time[...]``, options of pytest may follow), or a script and its arguments.
            A leading ``python`` is dropped.

    Raises:
        ValueError: it is none of them.
    """
    given = list(words)
    if given and given[0] in ("python", "python3"):
        given = given[1:]
        if given[:1] == ["-m"] and len(given) > 1:
            return Target(given[1], tuple(given[2:]))
    if not given:
        raise ValueError(f"expected what to profile behind --: one of {', '.join(KINDS)}, a benchmark's id or a script")
    first, *rest = given
    file = first.split("::")[0].split("[")[0]
    if first in KINDS:
        return Target("fusednn.profiling.workload", (first, *rest), marked=True)
    if file.endswith(".py") and file.rsplit("/", 1)[-1].startswith("bench_"):
        return Target("pytest", (first, "--bench-profile", *rest), marked=True, file=file)
    if file.endswith(".py"):
        return Target(first, tuple(rest), file=first)
    raise ValueError(
        f"expected a layer ({', '.join(KINDS)}), a benchmark's id (bench/bench_x.py::test_y[...]) or a script (x.py),"
        f" got {first!r}"
    )
