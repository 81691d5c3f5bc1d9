"""Three clocks from one run: host (enqueue), wall, and stream.

pytest-benchmark computes ``timer() - timer()`` and takes the float that comes out, so a timer may return any object
with ``__sub__``. A `Stamp` reads the host clock and, on a CUDA device, records an event; the subtraction then yields a
`Lap` with all three figures and returns the primary one: ``stream`` on CUDA, ``wall`` elsewhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from time import perf_counter
from typing import ClassVar

import torch


@dataclass(frozen=True)
class Lap:
    """One timed round, in seconds. ``stream`` is None where there is no stream to time."""

    host: float
    wall: float
    stream: float | None

    @property
    def primary(self) -> float:
        return self.wall if self.stream is None else self.stream


class Stamp:
    """A point in time on the host and, with CUDA, on the current stream."""

    __slots__ = ("after", "before", "event")
    device: ClassVar[torch.device] = torch.device("cpu")
    last: ClassVar[Lap | None] = None

    def __init__(self) -> None:
        self.event = None
        if Stamp.device.type == "cuda":
            self.before = perf_counter()
            self.event = torch.cuda.Event(enable_timing=True)
            self.event.record(torch.cuda.current_stream(Stamp.device))
            self.after = perf_counter()
        else:
            self.before = self.after = perf_counter()

    def __sub__(self, start: Stamp) -> float:
        host = self.before - start.after
        if self.event is None or start.event is None:
            lap = Lap(host, host, None)
        else:
            self.event.synchronize()
            lap = Lap(host, perf_counter() - start.after, start.event.elapsed_time(self.event) * 1e-3)
        Stamp.last = lap
        return lap.primary


def now() -> Stamp:
    """The timer handed to pytest-benchmark (``--benchmark-timer bench.clock.now``)."""
    return Stamp()


def use(device: torch.device) -> None:
    """Take stamps on ``device`` from now on."""
    Stamp.device = device


def clock_name() -> str:
    """Which clock the primary figure comes from."""
    return "stream" if Stamp.device.type == "cuda" else "wall"


def settle(device: torch.device) -> None:
    """Wait until nothing is queued, so that a round starts on an idle device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
