"""Foreign load: how much CPU other processes took while we measured.

Under foreign load medians were up to 78 times wrong, so rounds measured under it are thrown away and repeated. The
figure is (busy time of the machine - time of our own processes) / wall time, in CPUs. Ours are this process, its
children, and its ancestors: the shell, make or the editor that shows our progress works for us.

The kernel counts busy time in ticks of 10 ms, so one round of a millisecond can't be judged. Rounds are therefore
collected into windows of at least `WINDOW` seconds, and a window is kept or rejected as a whole. On a GPU a window also
goes where the clock dropped or the driver held it back (`bench.gpu_state`).
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import psutil

from bench.gpu_state import GpuState, Reading

THRESHOLD = 0.1  # CPUs taken by others above which a window is rejected
WINDOW = 0.25  # seconds; ticks are 10 ms, so the figure is good to about 0.05 CPU
KEEP = 50  # rounds of a window that are stored


def machine_busy() -> float:
    """Seconds of CPU time spent on this machine by anyone, time stolen by the hypervisor included."""
    t = psutil.cpu_times()
    parts = ("user", "nice", "system", "irq", "softirq", "steal", "interrupt", "dpc")
    return sum(getattr(t, part, 0.0) for part in parts)


def _family() -> list[psutil.Process]:
    me = psutil.Process()
    try:
        return [*me.parents(), *me.children(recursive=True)]
    except psutil.Error:
        return []


class OwnTime:
    """Seconds of CPU time spent by this process and its family."""

    def __init__(self) -> None:
        self.family = _family()

    def __call__(self) -> float:
        total = time.process_time()
        for process in self.family:
            try:
                used = process.cpu_times()
            except psutil.Error:
                continue
            total += used.user + used.system
        return total


@dataclass
class Watch:
    """Measures foreign load between `start` and `read`. The three sources can be replaced in tests."""

    busy: object = machine_busy
    own: object = field(default_factory=OwnTime)
    wall: object = time.perf_counter
    _at: tuple[float, float, float] = (0.0, 0.0, 0.0)

    def start(self) -> None:
        self._at = (self.busy(), self.own(), self.wall())  # type: ignore[operator]

    @property
    def seconds(self) -> float:
        """Wall time since `start`."""
        return self.wall() - self._at[2]  # type: ignore[operator]

    def read(self) -> float:
        """CPUs that others used since `start`; never negative."""
        busy, own, wall = self.busy(), self.own(), self.wall()  # type: ignore[operator]
        elapsed = max(wall - self._at[2], 1e-9)
        return max(0.0, (busy - self._at[0] - (own - self._at[1])) / elapsed)


@dataclass
class Window:
    """Some consecutive rounds that were judged together."""

    durations: list[float]
    foreign: float
    hosts: list[float] = field(default_factory=list)
    seconds: float = 0.0
    gpu: Reading | None = None


@dataclass
class Judge:
    """Collects rounds into windows, keeps the clean ones, and says when to stop.

    It stops when at least ``rounds`` clean rounds over at least ``seconds`` are in hand, or when ``limit`` seconds have
    passed whatever happened. A cell that never got enough clean rounds falls back on its least disturbed windows and
    is flagged as disturbed: it is recorded, but no verdict rests on it.
    """

    rounds: int
    seconds: float
    limit: float
    threshold: float = THRESHOLD
    window: float = WINDOW
    watch: Watch = field(default_factory=Watch)
    gpu: GpuState | None = None
    kept: list[Window] = field(default_factory=list)
    rejected: list[Window] = field(default_factory=list)
    _pending: list[float] = field(default_factory=list)
    _hosts: list[float] = field(default_factory=list)
    _begun: float | None = None

    def before(self) -> None:
        """Call before a round."""
        if self._begun is None:
            self._begun = self.watch.wall()  # type: ignore[operator]
        if not self._pending:
            self.watch.start()

    def after(self, duration: float, host: float | None = None) -> bool:
        """Call after a round; returns True when measuring is done."""
        self._pending.append(duration)
        self._hosts.append(duration if host is None else host)
        spent = self.watch.wall() - (self._begun or 0.0)  # type: ignore[operator]
        if self.watch.seconds >= self.window:
            self._close()
        if self.clean_rounds >= self.rounds and self.clean_seconds >= self.seconds:
            return True
        if spent < self.limit:
            return False
        # Long rounds: on a quiet machine a few are worth waiting for.
        tried = self.clean_rounds + sum(len(w.durations) for w in self.rejected)
        return self.clean_rounds >= self.least or tried >= 2 * self.least or spent >= 3 * self.limit

    def _close(self) -> None:
        stride = -(-len(self._pending) // KEEP)  # thousands of short rounds say no more than an even sample of them
        reading = self.gpu.read() if self.gpu else None
        window = Window(self._pending[::stride], self.watch.read(), self._hosts[::stride], sum(self._pending), reading)
        held_back = self.gpu is not None and self.gpu.disturbs(reading)
        (self.rejected if window.foreign > self.threshold or held_back else self.kept).append(window)
        self._pending, self._hosts = [], []

    @property
    def least(self) -> int:
        """Clean rounds below which a cell counts as disturbed."""
        return min(self.rounds, 3)

    @property
    def clean_rounds(self) -> int:
        return sum(len(w.durations) for w in self.kept)

    @property
    def clean_seconds(self) -> float:
        return sum(w.seconds for w in self.kept)

    def finish(self) -> Verdict:
        """The rounds that count. Call once, after the last round."""
        if self._pending:
            self._close()
        rejected = sum(len(w.durations) for w in self.rejected)
        chosen, disturbed = list(self.kept), False
        if self.clean_rounds < self.least:
            disturbed = True
            for window in sorted(self.rejected, key=lambda w: w.foreign):
                if sum(len(w.durations) for w in chosen) >= self.least:
                    break
                chosen.append(window)
                rejected -= len(window.durations)
        rounds = [d for w in chosen for d in w.durations]
        weight = sum(w.seconds for w in chosen)
        foreign = sum(w.foreign * w.seconds for w in chosen) / weight if weight else 0.0
        readings = [w.gpu for w in chosen if w.gpu is not None]
        reasons = sorted({reason for r in readings for reason in r.reasons})
        return Verdict(
            rounds, [h for w in chosen for h in w.hosts], foreign, rejected, disturbed,
            sm_mhz=min((r.mhz for r in readings), default=None),
            throttle=(", ".join(reasons) or "none") if readings else None,
        )  # fmt: skip


@dataclass
class Patience:
    """Time that a whole run may spend on repeating rejected rounds, so that a machine which is never quiet still gets
    a report in bounded time. Once it is used up, a cell takes what one short try gives."""

    seconds: float
    spent: float = 0.0

    def limit(self, of_cell: float, least: float) -> float:
        """Seconds that the next cell may take."""
        return of_cell if self.spent < self.seconds else min(of_cell, least)

    def charge(self, judge: Judge) -> None:
        """Note what a finished cell wasted."""
        self.spent += sum(w.seconds for w in judge.rejected)


@dataclass(frozen=True)
class Verdict:
    """What a judge let through. ``sm_mhz`` is the lowest clock of its windows; None without a GPU's readings."""

    durations: list[float]
    hosts: list[float]
    foreign_cpus: float
    rejected_rounds: int
    disturbed: bool
    sm_mhz: int | None = None
    throttle: str | None = None
