"""``pytest bench``: options, tiers, the ``measure`` fixture, progress, the record, and the report at the end."""

from __future__ import annotations

import argparse
import functools
import gc
import math
import os
import time
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import clock, machine, progress
from bench.check import WrongResult
from bench.fields import record
from bench.gpu_state import gpu_state
from bench.lines import Lines, left_over
from bench.load import Patience
from bench.measure import Measure
from bench.profiled import Profiled
from bench.tiers import TIERS, Tier

HERE = Path(__file__).parent


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"expected seconds, got {text}")
    return value


def _device(name: str | None) -> torch.device:
    """The device of this name.

    Raises:
        pytest.UsageError: there is none.
    """
    gpus = [f"cuda:{n}" for n in range(torch.cuda.device_count())]
    known = ["cpu", *(["cuda", *gpus] if gpus else [])]
    name = name or ("cuda" if gpus else "cpu")
    if name not in known:
        raise pytest.UsageError(f"--bench-device: expected one of {', '.join(known)}, got {name}")
    return torch.device(name)


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("bench", "fusednn benchmarks")
    group.addoption("--bench-tier", choices=sorted(TIERS), default="standard", help="how much to measure")
    group.addoption("--bench-device", default=None, help="cpu, cuda, cuda:1 ... (default: cuda where there is one)")
    group.addoption("--bench-out", default="build/report", help="folder of the record and the report")
    group.addoption("--bench-resume", action="store_true", help="keep what an earlier, killed run has measured")
    group.addoption(
        "--bench-seconds", type=_seconds, default=None, metavar="S",
        help="begin no further cell after S seconds; --bench-resume then goes on with the rest",
    )  # fmt: skip
    group.addoption("--bench-no-report", action="store_true", help="write results.json only")
    group.addoption(
        "--bench-profile", action="store_true", help="run for a profiler to look at; time and record nothing"
    )


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "tiers(**values): parameters by tier")
    config.addinivalue_line("markers", "cost(seconds): expected time of a case in the standard tier")
    # A fact is not timed; a test that records nothing at all fails in our own record.
    unused = "ignore:Benchmark fixture was not used:pytest_benchmark.logger.PytestBenchmarkWarning"
    config.addinivalue_line("filterwarnings", unused)
    config.option.benchmark_timer = "bench.clock.now"
    config.option.benchmark_disable_gc = True
    if config.option.verbose == 0:
        config.option.verbose = -1  # the bar replaces pytest's dots
    if config.option.benchmark_disable or getattr(config.option, "numprocesses", None):
        raise pytest.UsageError("the benchmarks are timed, one at a time; --bench-tier smoke runs each in no time")
    device = _device(config.getoption("--bench-device"))
    clock.use(device)
    # On a GPU torch's RNNs would use TF32 and its products would not: unequal work.
    torch.backends.fp32_precision = "ieee"  # type: ignore[attr-defined]
    config.pluginmanager.register(Run(config, device), "fusednn-bench")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    tier = metafunc.config.getoption("--bench-tier")
    for mark in metafunc.definition.iter_markers("tiers"):
        for name, values in mark.kwargs.items():
            chosen = values.get(tier, ())
            ids = [f"{name}{v}" if isinstance(v, (int, float)) else str(v) for v in chosen]
            metafunc.parametrize(name, chosen, ids=ids)


@pytest.fixture(scope="session")
def device(pytestconfig: pytest.Config) -> torch.device:
    return _run(pytestconfig).device


@pytest.fixture(scope="session")
def tier(pytestconfig: pytest.Config) -> Tier:
    return _run(pytestconfig).tier


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def measure(benchmark: Any, tier: Tier, device: torch.device, request: pytest.FixtureRequest) -> Iterator[Measure]:
    kind = Profiled if request.config.getoption("--bench-profile") else Measure
    run = _run(request.config)
    made = kind(benchmark, tier, device, run.patience, gpu=run.gpu)
    request.node.bench_measure = made
    yield made


def _run(config: pytest.Config) -> Run:
    run = config.pluginmanager.get_plugin("fusednn-bench")
    assert isinstance(run, Run)
    return run


class Run:
    """One invocation of the suites."""

    def __init__(self, config: pytest.Config, device: torch.device) -> None:
        self.config = config
        self.device = device
        self.tier: Tier = TIERS[str(config.getoption("--bench-tier"))]
        self.patience = Patience(self.tier.patience)
        self.gpu = gpu_state(device)
        self.out = config.rootpath / str(config.getoption("--bench-out"))
        self.lines: Lines | None = None
        self.bar: progress.Bar | None = None
        self.ends: float | None = None
        self.left: list[str] = []
        self.notes: list[str] = []

    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        # A tier without values leaves pytest's placeholder for an empty parameter set behind: drop it.
        empty = [item for item in items if "NOTSET" in item.name]
        mine = [item for item in items if item not in empty]
        if config.option.collectonly or config.getoption("--bench-profile"):
            items[:] = mine
            return
        key = {"tier": self.tier.name, "device": machine.device_name(self.device), "torch": torch.__version__,
               "threads": torch.get_num_threads(), "commit": self.commit["id"]}  # fmt: skip
        try:
            self.lines = Lines(self.out / "lines.jsonl", bool(config.getoption("--bench-resume")), key)
        except ValueError as error:
            raise pytest.UsageError(str(error)) from error
        resumed = [item for item in mine if item.nodeid in self.lines]
        items[:] = [item for item in mine if item.nodeid not in self.lines]
        if empty or resumed:
            config.hook.pytest_deselected(items=[*empty, *resumed])

    def pytest_runtestloop(self, session: pytest.Session) -> None:
        def cost_of(item: pytest.Item) -> float:
            mark = item.get_closest_marker("cost")
            return float(mark.args[0]) if mark else 1.0

        if not self.config.option.collectonly:
            # Each cell collects garbage before it is timed: 0.2 s where that looks at all of torch, scipy and pytest.
            gc.collect()
            gc.freeze()
            seconds = self.config.getoption("--bench-seconds")
            self.ends = None if seconds is None else time.monotonic() + seconds
            self.bar = progress.Bar({item.nodeid: cost_of(item) for item in session.items})
        if self.lines is not None and session.items:
            try:
                self.lines.begin()
            except OSError as error:
                raise pytest.UsageError(f"--bench-out: {error}") from error

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> bool | None:
        """Leaves a cell to a later shard where the time of this one is over."""
        if self.ends is None or time.monotonic() < self.ends:
            return None
        self.left.append(item.nodeid)
        return True

    def pytest_report_teststatus(self, report: pytest.TestReport) -> tuple[str, str, str] | None:
        if report.when == "call" and report.outcome == "passed" and self.config.option.verbose < 0:
            return "passed", "", ""
        if report.outcome == "skipped" and self.config.option.verbose < 0:
            return "skipped", "", ""
        return None

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[Any]:
        report = yield
        over = report.when == "call" or (report.when == "setup" and report.outcome != "passed")
        if over and self.lines is not None:
            row = self._store(item, call, report)
            if self.bar is not None:
                self.bar.step(item.nodeid, progress.outcome_text(report, row))
        return report

    def _store(self, item: pytest.Item, call: pytest.CallInfo[None], report: pytest.TestReport) -> dict[str, Any]:
        assert self.lines is not None
        measure: Measure | None = getattr(item, "bench_measure", None)
        callspec = getattr(item, "callspec", None)
        bench: dict[str, Any] = {
            "group": None,
            "name": item.name,
            "fullname": item.nodeid,
            "params": dict(callspec.params) if callspec else None,
            "param": callspec.id if callspec else None,
            "extra_info": dict(measure.info) if measure and measure.info else record(device=self.device.type),
            "options": {},
        }
        series = measure.series if measure else {}
        if report.outcome == "passed" and measure is not None and measure.benchmark.stats is not None:
            measure.benchmark.extra_info.update(measure.info)
            return self.lines.add("measured", measure.benchmark.stats.as_dict(include_data=True), series)
        if report.outcome == "passed" and measure is not None and measure.is_fact:
            return self.lines.add("fact", bench, series)
        if report.outcome == "skipped":
            reason = report.longrepr[-1] if isinstance(report.longrepr, tuple) else str(report.longrepr)
            bench["extra_info"]["skip_reason"] = reason.removeprefix("Skipped: ")
            return self.lines.add("skipped", bench, series)
        error = call.excinfo.value if call.excinfo else None
        if isinstance(error, WrongResult):
            bench["extra_info"]["skip_reason"] = f"wrong result: {error}"
            return self.lines.add("wrong", bench, series)
        bench["extra_info"]["skip_reason"] = f"failed: {type(error).__name__}" if error else "recorded nothing"
        return self.lines.add("failed", bench, series)

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        gc.unfreeze()
        if self.bar is not None:
            self.bar.close()
        if self.lines is None or not self.lines.lines:
            return
        from bench.kept import last_run, learnt
        from bench.results import assemble, write

        facts = machine.facts(self.device)
        results = assemble(
            [*self.lines.lines.values(), *map(left_over, self.left)],
            machine_info=facts,
            tier=self.tier.as_dict(),
            commit=self.commit,
            when=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            learnt=learnt(facts, tell=self.notes.append),
        )
        write(results, self.out / "results.json")
        if not self.config.getoption("--bench-no-report"):
            from bench.report import render

            render(results, self.out, last_run(facts, tell=self.notes.append))
        session.config._benchmarksession.quiet = self.config.option.verbose < 0  # type: ignore[attr-defined]

    @functools.cached_property
    def commit(self) -> dict[str, Any]:
        """What was measured, as it stood when the run began."""
        info = self.config.hook.pytest_benchmark_generate_commit_info(config=self.config)
        return {k: info.get(k) for k in ("id", "time", "dirty")}

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        if self.lines is None or not (self.lines.lines or self.left):
            return
        kinds = [row["kind"] for row in self.lines.lines.values()]
        disturbed = sum(1 for r in self.lines.lines.values() if r["bench"]["extra_info"].get("disturbed"))
        text = ", ".join(f"{kinds.count(k)} {k}" for k in dict.fromkeys(kinds))
        terminalreporter.write_line(f"cells: {text}; {disturbed} disturbed by foreign load")
        if self.left:
            terminalreporter.write_line(
                f"{len(self.left)} cells are left: the same command with --bench-resume goes on"
            )
        for note in self.notes:
            terminalreporter.write_line(note)
        page = self.out / ("results.json" if self.config.getoption("--bench-no-report") else "index.html")
        if page.exists():
            terminalreporter.write_line(f"report: {os.path.relpath(page)}")

    @pytest.hookimpl(tryfirst=True)
    def pytest_benchmark_generate_machine_info(self) -> dict[str, Any]:
        return machine.facts(self.device)

    def pytest_benchmark_update_commit_info(self, commit_info: dict[str, Any]) -> None:
        commit_info.pop("project", None)
        commit_info.pop("branch", None)
