"""The one way to take a measurement: check the result, count, time, record."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from bench import check, clock, count
from bench.fields import record
from bench.gpu_state import GpuState
from bench.load import Judge, Patience, Verdict, Watch
from bench.stats import paired_ratio
from bench.tiers import Tier

MIB = 1 << 20


class Enough(BaseException):
    """Leaves pytest-benchmark's fixed number of rounds early. Not an Exception: nothing went wrong."""


@dataclass
class Case:
    """What is measured.

    ``run`` is one timed execution. ``results``, ``torchs`` and ``truth`` give the tensors to compare: ours, torch's own
    in the same dtype, and the truth in fp64. ``forward`` is the part whose saved tensors count as training memory.
    ``reads`` are the bytes that come in: with those of the results, the least that must move.
    """

    run: Callable[[], Any]
    fields: dict[str, Any]
    results: Callable[[], Sequence[Tensor]] | None = None
    torchs: Callable[[], Sequence[Tensor]] | None = None
    truth: Callable[[], Sequence[Tensor]] | None = None
    forward: Callable[[], Any] | None = None
    known: Sequence[Tensor] = ()
    flops: int | None = None
    bytes_min: int | None = None
    reads: int | None = None
    tokens: int | None = None
    series: dict[str, Any] = field(default_factory=dict)


class Measure:
    """The ``measure`` fixture: call it once a test with a `Case`, or use `pair` for a duel."""

    def __init__(
        self, benchmark: Any, tier: Tier, device: torch.device, patience: Patience | None = None,
        watch: Watch | None = None, gpu: GpuState | None = None,
    ) -> None:  # fmt: skip
        self.benchmark = benchmark
        self.tier = tier
        self.device = device
        self.watch = watch or Watch()
        self.gpu = gpu
        self.patience = patience or Patience(tier.patience)
        self.series: dict[str, Any] = {}
        self.info: dict[str, Any] = {}
        self.is_fact = False
        self._busy: float | None = None

    def __call__(self, case: Case, *, counts: bool = True) -> Verdict:
        """Check, count and time ``case``; returns the rounds that count."""
        self._prepare(case)
        if counts:
            self._count(case)
        verdict = self._time(case.run, self._judge())
        self._fill_times(case, verdict)
        return verdict

    def pair(self, a: Case, b: Case, basis: str) -> None:
        """Time ``a`` and ``b`` in turn, round by round. The recorded times are a's; ``ratio`` is a / b, paired."""
        error = self._checked(b)
        self._prepare(a)
        if error is not None and (self.info["max_err"] is None or error.used > self.info["max_err"]):
            self.series["other_error"] = {"max_err": error.max_err, "err_budget": error.budget}
        self.info.update(self._memory(a))
        self.series["other_memory"] = self._memory(b)
        judge, other = self._judge(2), _Other(b.run, self.device)
        b.run()
        verdict = self._time(a.run, judge, other)
        ratio = paired_ratio(verdict.durations, verdict.hosts)
        self._fill_times(a, verdict, host=False)
        self.info.update(basis=basis, ratio=ratio.value, ratio_low=ratio.low, ratio_high=ratio.high,
                         other=str(b.fields.get("impl")) + " " + str(b.fields.get("cell")))  # fmt: skip
        self.series["other_seconds"] = verdict.hosts

    def once(self, run: Callable[[], Any], **fields: Any) -> Any:
        """Time something that can't be repeated (training). A disturbed run is flagged."""
        self._set(record(device=self.device.type, seed=0, **fields))
        gc.collect()
        clock.settle(self.device)
        self.watch.start()
        result = self.benchmark.pedantic(run, rounds=1)
        foreign = self.watch.read()
        self._set({**self.info, "foreign_cpus": foreign, "rejected_rounds": 0, "clock": clock.clock_name(),
                   "disturbed": foreign > 0.1, "threads_torch": torch.get_num_threads()})  # fmt: skip
        return result

    def fact(self, series: dict[str, Any], **fields: Any) -> None:
        """Record what was computed and not timed."""
        self.series.update(series)
        self._set(record(device=self.device.type, **fields))
        self.is_fact = True

    # ---- the steps

    def _set(self, info: dict[str, Any]) -> None:
        self.info = info
        self.benchmark.extra_info.clear()
        self.benchmark.extra_info.update(info)

    def _judge(self, share: int = 1) -> Judge:
        t = self.tier
        limit = self.patience.limit(t.limit, least=max(t.seconds, t.window) + t.window)
        return Judge(t.rounds, t.seconds * share, limit * share, window=t.window, watch=self.watch, gpu=self.gpu)

    def _checked(self, case: Case) -> check.Error | None:
        if case.results is None or case.torchs is None or case.truth is None:
            return None
        results = case.results()
        if case.reads is not None:
            case.bytes_min = case.reads + sum(t.nbytes for t in results)
        return check.worst_error(results, case.torchs(), case.truth())

    def _prepare(self, case: Case) -> None:
        fields = {"device": self.device.type, "threads_torch": torch.get_num_threads(), "seed": 0, **case.fields}
        error = self._checked(case)
        if error is not None:
            fields.update(max_err=error.max_err, err_budget=error.budget)
        self._set(record(**fields))
        self.series.update(case.series)
        if error is not None:
            check.require_right(error)

    def _count(self, case: Case) -> None:
        launches = count.count_launches(case.run, self.device)
        self._busy = launches.busy
        steps = case.fields.get("T")
        self.info.update(launches=launches.launches, aten_ops=launches.aten_ops, launch_source=launches.source,
                         launches_per_step=launches.launches / steps if steps else None)  # fmt: skip
        self.info.update(self._memory(case))

    def _memory(self, case: Case) -> dict[str, float | None]:
        """What one run keeps for backward, and the allocator's peak."""
        saved = None if case.forward is None else count.SavedBytes(case.known).measure(case.forward)
        peak = count.peak_bytes(case.run, self.device)
        named = {"saved_mib": saved, "peak_mem_mib": peak}
        return {name: None if size is None else size / MIB for name, size in named.items()}

    def _time(self, run: Callable[[], Any], judge: Judge, other: _Other | None = None) -> Verdict:
        run()  # warm: allocator, thread pool, autotuners
        gc.collect()
        device = self.device

        def before() -> None:
            clock.settle(device)
            judge.before()

        def after() -> None:
            lap = clock.Stamp.last
            assert lap is not None
            second = other() if other is not None else lap.host
            if judge.after(lap.primary, second):
                raise Enough

        with contextlib.suppress(Enough):
            self.benchmark.pedantic(run, setup=before, teardown=after, rounds=1_000_000)
        verdict = judge.finish()
        self.patience.charge(judge)
        self.benchmark.stats.stats.data[:] = verdict.durations
        return verdict

    def _fill_times(self, case: Case, verdict: Verdict, host: bool = True) -> None:
        seconds = sorted(verdict.durations)[len(verdict.durations) // 2]
        steps, tokens = case.fields.get("T"), case.tokens
        self.info.update(
            clock=clock.clock_name(),
            l2="warm",  # the same tensors every round
            foreign_cpus=verdict.foreign_cpus,
            rejected_rounds=verdict.rejected_rounds,
            disturbed=verdict.disturbed,
            sm_mhz=verdict.sm_mhz,
            throttle=verdict.throttle,
            us_per_step=seconds / steps * 1e6 if steps else None,
            us_per_token=seconds / tokens * 1e6 if tokens else None,
            tokens_per_s=tokens / seconds if tokens else None,
            flops=case.flops,
            tflops=case.flops / seconds * 1e-12 if case.flops else None,
            bytes_min=case.bytes_min,
            gbps=case.bytes_min / seconds * 1e-9 if case.bytes_min else None,
        )
        if self._busy is not None:
            self.info["gap_fraction"] = 1 - self._busy / seconds
            self.info["launch_us_per_step"] = (seconds - self._busy) / steps * 1e6 if steps else None
        if host and steps and verdict.hosts:
            self.info["host_us_per_step"] = sorted(verdict.hosts)[len(verdict.hosts) // 2] / steps * 1e6
        self._set(self.info)


class _Other:
    """The second of a pair, timed with the same clock right after the first."""

    def __init__(self, run: Callable[[], Any], device: torch.device) -> None:
        self.run, self.device = run, device

    def __call__(self) -> float:
        clock.settle(self.device)
        start = clock.now()
        self.run()
        return clock.now() - start
