"""The clock, the judge of foreign load, and the check that comes before any time."""

from __future__ import annotations

import io
import math
import sys

import pytest
import torch

import numerics
from bench import check, clock, count, load, progress
from bench.fields import FIELDS, record


class FakeWatch(load.Watch):
    """Time that a test moves by hand."""

    def __init__(self):
        self.now = self.used_by_all = self.used_by_us = 0.0
        super().__init__(busy=lambda: self.used_by_all, own=lambda: self.used_by_us, wall=lambda: self.now)

    def round(self, seconds, foreign=0.0):
        self.now += seconds
        self.used_by_us += seconds
        self.used_by_all += seconds * (1 + foreign)


def run(judge, watch, foreign_of_round, seconds=0.1, most=1000):
    for n in range(most):
        judge.before()
        watch.round(seconds, foreign_of_round(n))
        if judge.after(seconds):
            break
    return judge.finish()


def test_quiet_rounds_are_kept_and_measuring_stops_when_there_are_enough():
    watch = FakeWatch()
    got = run(load.Judge(rounds=6, seconds=0.5, limit=60, watch=watch), watch, lambda n: 0.0)
    assert len(got.durations) == 6
    assert (got.rejected_rounds, got.disturbed) == (0, False)
    assert got.foreign_cpus == pytest.approx(0)


def test_disturbed_rounds_are_rejected_counted_and_repeated():
    watch = FakeWatch()
    got = run(load.Judge(rounds=6, seconds=0.5, limit=60, watch=watch), watch, lambda n: 1.0 if n < 9 else 0.0)
    assert got.rejected_rounds == 9
    assert len(got.durations) == 6
    assert not got.disturbed
    assert got.foreign_cpus <= load.THRESHOLD


def test_a_cell_that_stays_disturbed_ends_flagged_within_its_limit():
    watch = FakeWatch()
    got = run(load.Judge(rounds=6, seconds=0.5, limit=3, watch=watch), watch, lambda n: 0.5 + 0.01 * n)
    assert watch.now == pytest.approx(3, abs=0.2)
    assert got.disturbed
    assert 3 <= len(got.durations) <= 4
    assert got.rejected_rounds > 20
    assert got.foreign_cpus == pytest.approx(0.51, abs=0.03)  # the least disturbed window


def test_a_little_foreign_load_is_tolerated():
    watch = FakeWatch()
    assert not run(load.Judge(rounds=3, seconds=0, limit=9, watch=watch), watch, lambda n: 0.09).disturbed
    watch = FakeWatch()
    assert run(load.Judge(rounds=3, seconds=0, limit=9, watch=watch), watch, lambda n: 0.2).disturbed


def test_short_rounds_are_sampled_not_hoarded():
    watch = FakeWatch()
    got = run(load.Judge(rounds=6, seconds=0.25, limit=9, watch=watch), watch, lambda n: 0.0, seconds=1e-4, most=10**5)
    assert load.KEEP / 2 <= len(got.durations) <= load.KEEP
    assert got.durations[0] == pytest.approx(1e-4)


def test_real_clock_of_the_machine_counts_our_own_work_as_ours():
    watch = load.Watch()
    watch.start()
    x = torch.randn(256, 256)
    while watch.seconds < 0.2:
        x = torch.tanh(x @ x)
    assert 0 <= watch.read() <= 256


def test_stamp_subtracts_to_the_seconds_between(monkeypatch):
    times = iter([10.0, 12.5])
    monkeypatch.setattr(clock, "perf_counter", lambda: next(times))
    clock.use(torch.device("cpu"))
    start = clock.now()
    assert clock.now() - start == 2.5
    assert clock.Stamp.last == clock.Lap(2.5, 2.5, None)
    assert clock.clock_name() == "wall"


def test_stream_clock_leads_where_there_is_one():
    assert clock.Lap(host=0.1, wall=0.5, stream=0.4).primary == 0.4
    assert clock.Lap(host=0.5, wall=0.5, stream=None).primary == 0.5


def test_rule_is_the_projects_rule():
    rule = numerics.TOLERANCES["rule"]
    truth = torch.tensor([1.0, -3.0], dtype=torch.float64)
    torchs = (truth + 1e-3).float()
    error = check.tensor_error(truth.float(), torchs, truth)
    yardstick = (torchs.double() - truth).abs().max().item()
    assert error.budget == pytest.approx(
        rule.times_torch * yardstick + rule.floor_eps * torch.finfo(torch.float32).eps * 3.0
    )


@pytest.mark.parametrize("wrong", (0.01, math.nan, math.inf))
def test_wrong_results_are_refused(wrong):
    truth = torch.ones(4, dtype=torch.float64)
    ours = truth.float().clone()
    check.require_right(check.tensor_error(ours, truth.float(), truth))
    ours[2] += wrong
    with pytest.raises(check.WrongResult):
        check.require_right(check.worst_error([truth.float(), ours], [truth.float()] * 2, [truth] * 2))


def test_wrong_shapes_and_dtypes_are_refused():
    truth = torch.ones(4, dtype=torch.float64)
    with pytest.raises(check.WrongResult):
        check.tensor_error(torch.ones(5), torch.ones(4), truth)
    with pytest.raises(check.WrongResult):
        check.tensor_error(torch.ones(4, dtype=torch.float16), torch.ones(4), truth)
    with pytest.raises(check.WrongResult):
        check.worst_error([], [torch.ones(4)], [truth])


def test_operator_calls_are_counted_and_views_are_told_apart():
    x = torch.randn(3, 4)
    got = count.count_launches(lambda: (x.t() @ x).tanh().view(-1), torch.device("cpu"))
    assert (got.aten_ops, got.launches) == (4, 2)


def test_saved_bytes_leave_out_what_is_known_and_count_a_storage_once():
    w = torch.randn(8, 8, requires_grad=True)
    x = torch.randn(4, 8)
    got = count.SavedBytes([w, x]).measure(lambda: torch.tanh(x @ w).square().sum())
    assert got == 4 * 8 * 4  # tanh's output, which square saves as well


def test_record_is_flat_complete_and_null_where_unknown():
    got = record(impl="x", B=3)
    assert tuple(got) == FIELDS
    assert got["B"] == 3
    assert got["tflops"] is None
    with pytest.raises(ValueError, match="not a field"):
        record(colour="red")
    with pytest.raises(ValueError, match="flat"):
        record(B=[1, 2])


def test_a_run_on_a_machine_that_is_never_quiet_loses_patience():
    patience = load.Patience(seconds=2.0)
    took = []
    for _ in range(6):
        watch = FakeWatch()
        judge = load.Judge(rounds=5, seconds=0, limit=patience.limit(1.0, least=0.3), watch=watch)
        run(judge, watch, lambda n: 1.0)
        patience.charge(judge)
        took.append(watch.now)
    assert took[0] == pytest.approx(1.0, abs=0.11)
    assert took[-1] == pytest.approx(0.6, abs=0.11)  # twice the three rounds that a cell needs
    quiet = FakeWatch()
    assert not run(load.Judge(3, 0, patience.limit(9.0, least=0.6), watch=quiet), quiet, lambda n: 0.0).disturbed


def test_long_rounds_on_a_quiet_machine_get_their_three():
    watch = FakeWatch()
    got = run(load.Judge(rounds=7, seconds=0, limit=3, watch=watch), watch, lambda n: 0.0, seconds=2.5)
    assert (len(got.durations), got.disturbed) == (3, False)
    watch = FakeWatch()
    got = run(load.Judge(rounds=7, seconds=0, limit=3, watch=watch), watch, lambda n: 1.0, seconds=2.5)
    assert got.disturbed
    assert watch.now <= 10


def test_time_left_follows_the_pace_so_far(monkeypatch):
    now, said = [100.0], io.StringIO()
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(sys, "__stdout__", said)
    bar = progress.Bar({"bench/bench_a.py::test_x": 1.0, "bench/bench_a.py::test_y": 30.0})
    assert bar.left == 31.0  # as planned
    now[0] += 2.0  # twice as long as planned
    bar.step("bench/bench_a.py::test_x", "3 ms")
    assert bar.left == 60.0
    assert said.getvalue() == "[  1/2] bench_a.py::test_x  3 ms  (1:00 left)\n"
    bar.step("bench/bench_a.py::test_y", "skipped")
    assert bar.left == 0.0
