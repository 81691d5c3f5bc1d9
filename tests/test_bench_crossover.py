"""The crossover map: the fitted model finds what times were made of, and its predictions are tried on unseen sizes."""

from __future__ import annotations

import math

import pytest

from bench import crossover
from bench.crossover import HELD_BACK, agrees, crossings, fit, fits, points, work_of
from bench.models.stacks import ENCODER
from bench.query import Cells
from bench.report.crossover_map import crossover_map, crossover_tables

SIZES = [(B, T, d) for B in (1, 8) for T in (16, 64, 256, 1024) for d in (64, HELD_BACK, 256)]
LAUNCH, STEP, RATE = 5e-6, 1e-6, 1e11


def seconds(kind: str, mode: str, size: tuple[int, int, int]) -> float:
    """The model itself, by hand: six launches, a step of every layer that walks, and the work."""
    B, T, d = size
    walks = {"RNN": 12, "LSTM": 3, "GRU": 4}.get(kind, 0)
    steps = walks * {"inference": T, "training": 2 * T, "decode": 1}[mode]
    return 6 * LAUNCH + steps * STEP + work_of(kind, mode, B, T, d) / RATE


def results(change=lambda kind, mode, size, t: t):
    cells = []
    for kind in crossover.KINDS:
        for mode in crossover.MODES:
            for size in SIZES:
                t = change(kind, mode, size, seconds(kind, mode, size))
                info = {"cell": f"{kind} stack", "mode": mode, "B": size[0], "T": size[1], "H": size[2], "launches": 6}
                name = "decode" if mode == "decode" else "sequence"
                cells.append({"fullname": f"bench/bench_crossover.py::test_{name}[x]", "extra_info": info,
                              "stats": {"median": t, "data": [t]}})  # fmt: skip
    return {"benchmarks": cells, "tier": {"name": "crossover"}, "machine_info": {"device": "cpu"}, "series": {}}


@pytest.mark.parametrize("kind", ["LSTM", "RNN", ENCODER])
def test_fit_finds_the_coefficients_that_times_were_made_of(kind):
    found = fit(kind, "inference", points(Cells(results()))[kind, "inference"])
    assert found.launch == pytest.approx(LAUNCH) and found.rate == pytest.approx(RATE)
    assert found.step == (None if kind == ENCODER else pytest.approx(STEP))
    assert found.seen < 1e-6 and found.unseen is not None and found.unseen < 1e-6


def test_sizes_held_back_do_not_reach_the_fit():
    spoilt = results(lambda kind, mode, size, t: 3 * t if size[2] == HELD_BACK else t)
    found = fit("LSTM", "training", points(Cells(spoilt))["LSTM", "training"])
    assert found.rate == pytest.approx(RATE) and found.unseen == pytest.approx(2 / 3)


def test_attention_wins_from_the_length_at_which_times_cross():
    found = {(c.kind, c.mode, c.B): c for c in crossings(points(Cells(results())))}
    one = found["LSTM", "inference", 1]
    at = one.measured.T
    assert at is not None
    faster = {T: seconds("LSTM", "inference", (1, T, HELD_BACK)) < seconds(ENCODER, "inference", (1, T, HELD_BACK))
              for T in (16, 64, 256, 1024)}  # fmt: skip
    assert faster[max(T for T in faster if at > T)] != faster[min(T for T in faster if at < T)]
    assert all(agrees(c) for c in found.values())


def test_where_attention_is_faster_has_a_direction():
    assert str(crossover.where({16.0: 0.5, 64.0: 2.0})) == "from 32"
    assert str(crossover.where({16.0: 2.0, 64.0: 0.5})) == "until 32"
    assert str(crossover.where({16.0: 2.0, 64.0: 3.0})) == "always" and str(crossover.where({1.0: 0.1})) == "never"


def test_a_prediction_that_is_wrong_is_called_wrong():
    slow = results(lambda kind, mode, size, t: 50 * t if kind == "LSTM" and size[2] == HELD_BACK else t)
    found = [c for c in crossings(points(Cells(slow))) if c.kind == "LSTM" and c.mode == "inference"]
    assert found and not any(agrees(c) for c in found)
    title = crossover_tables(Cells(slow))[1].title
    assert f"{sum(map(agrees, crossings(points(Cells(slow)))))} of 24" in title


def test_disturbed_cells_are_left_out():
    given = results()
    given["benchmarks"][0]["extra_info"]["disturbed"] = True
    assert sum(map(len, points(Cells(given)).values())) == len(given["benchmarks"]) - 1


def test_too_few_sizes_have_no_model():
    few = results()
    few["benchmarks"] = [c for c in few["benchmarks"] if c["extra_info"]["T"] == 16 and c["extra_info"]["B"] == 1]
    assert fits(points(Cells(few))) == {} and crossover_tables(Cells(few)) == []
    with pytest.raises(ValueError, match="four sizes, got 2"):
        fit("GRU", "decode", points(Cells(few))["GRU", "decode"])


def test_map_shows_the_fastest_kind_of_each_field_and_how_far_attention_is():
    picture = crossover_map(Cells(results()))
    assert picture is not None and picture.svg.count("inference, B = 1") == 1
    times = {kind: seconds(kind, "decode", (8, 1024, 256)) for kind in crossover.KINDS}
    ratio = times[ENCODER] / min(t for kind, t in times.items() if kind != ENCODER)
    assert f"{ratio:.2g}x" in picture.svg and math.isfinite(ratio)


def test_attention_of_one_token_works_on_all_before_it_and_a_recurrence_does_not():
    assert work_of("LSTM", "decode", 2, 1024, 64) == work_of("LSTM", "decode", 2, 16, 64)
    assert work_of(ENCODER, "decode", 2, 1024, 64) > work_of(ENCODER, "decode", 2, 16, 64)
