"""Every row of every claim: data that speak for it support it, and the same data turned round contradict it."""

from __future__ import annotations

import copy

import pytest

from bench import results
from bench.claims import ROWS
from bench.fields import record
from bench.verdict import CONTRADICTED, SUPPORTED
from test_bench_learning import FAR, LOST, NEAR, TURNED, order, two
from test_bench_machine import memory_fact
from test_bench_report import MACHINE

IMPLS, CELLS, MODES = ("fusednn", "torch.nn"), ("RNN", "LSTM", "GRU"), ("inference", "training")
RUNGS = ("reference", "loop", "sequence", "torch.nn")


def cell(test, seconds=1.0, series=None, name="x", **fields):
    fields = {"T": 200, "B": 2, "H": 512, "disturbed": False, **fields}
    fullname = f"bench/{test}[{name}]"
    data = [seconds * f for f in (0.9999, 1.0, 1.0001)]
    bench = {"group": "g", "name": name, "fullname": fullname, "extra_info": record(**fields), "stats": {"data": data}}
    return {"kind": "measured", "fullname": fullname, "bench": bench, "series": series or {}}


def power(test, over, p, field=None, **fields):
    """Cells in which time, or a counted field, is x^p."""
    made = []
    for x in (50, 100, 200):
        value = float(x) ** p
        counted = {} if field is None else {field: value}
        made.append(cell(test, 1.0 if field else value, name=str(x), **{**fields, **counted, over: x}))
    return made


def ratio(test, value, **fields):
    near = {"ratio": value, "ratio_low": value * 0.999, "ratio_high": value * 1.001}
    return [cell(test, **{**fields, **near})]


def slope(test, value, series=None, **fields):
    return [cell(test, series=series, slope=value, slope_low=value - 1e-6, slope_high=value + 1e-6, **fields)]


def launches(each, cell_, rung):
    fields = {"cell": cell_, "impl": rung}
    return [cell("bench_launch.py::test_ladder", name=str(T), T=T, launches=int(each * T) + 2, **fields)
            for T in (10, 100)]  # fmt: skip


def used(field, value, model):
    """One of the seeds' models on a GPU, and the peak that its speed is a share of."""
    fields = {"cell": f"seed {model}", "impl": "torch.nn", "dtype": "float32", "occupancy_source": "Nsight Compute"}
    given = {"gap_fraction": 1 - value / 100} if field == "gap_fraction" else {field: value}
    if field == "pct_peak_flops":
        given = {"tflops": value}
    peak = cell("bench_floors.py::test_matrix_product", dtype="float32", tflops=100.0)
    return [cell("bench_models.py::test_seed_model", **fields, **given), peak]


def byte_models(lstm, transformer):
    """Byte models that are one bit below the unigram entropy after so many seconds."""
    return [cell("bench_models.py::test_byte_lm", series={"seconds": [0.0, s * 0.999, s], "bits": [8.0, 5.0, 3.0]},
                 name=kind, cell=kind, impl="fusednn", unigram_bits=4.4)
            for kind, s in (("LSTM", lstm), ("transformer", transformer))]  # fmt: skip


def evidence():
    """(claim, row) -> data for it, data against it."""
    found = {(id, row): (good, bad) for id, row, good, bad in TURNED}
    for system in ("RNN, H = 512", "LSTM, H = 64", "LSTM, H = 64, forget bias 5"):
        found[12, LOST + system] = tuple(two("recall", system, NEAR, far, (5, 200)) for far in (FAR, NEAR))
    for system, good in (("encoder, sinusoidal positions", 0.99), ("decoder, no positions", 0.51)):
        found[22, f"did A come before B? {system}"] = tuple(order(system, a) for a in (good, 1.5 - good))
    for impl in IMPLS:
        for kind in CELLS:
            fields = {"cell": kind, "impl": impl, "mode": "inference"}
            found[1, f"{kind}, {impl}"] = tuple(
                power("bench_recurrent.py::test_time", "T", p, **fields) for p in (1, 2)
            )
        found[1, f"LSTM at the seeds' shape, {impl}"] = tuple(
            power("bench_recurrent.py::test_seed_shape", "T", p, impl=impl) for p in (1, 1.5)
        )
        for test, basis, words, kind in (
            ("test_posed", "posed", "as posed", "seed LSTM"),
            ("test_stacks", "parameters", "equal parameters", "LSTM stack"),
            ("test_stacks", "flops", "equal FLOPs", "LSTM stack"),
        ):
            for mode in MODES:
                fields = {"basis": basis, "mode": mode, "impl": impl, "cell": kind}
                found[2, f"{words}, {mode}, {impl}"] = tuple(
                    ratio(f"bench_duel.py::{test}", r, **fields) for r in (3, 1 / 3)
                )
        found[3, f"seeds' transformer, {impl}"] = tuple(
            power("bench_models.py::test_seed_model", "T", p, cell="seed transformer", impl=impl) for p in (0, 1)
        )
        found[7, f"LSTM, B = 1, {impl}"] = tuple(
            ratio("bench_cores.py::test_one_sequence", r, impl=impl, basis="1 thread / 2 threads") for r in (1, 2)
        )
        found[14, f"largest batch under a fixed budget, {impl}"] = tuple(
            [{"kind": "fact", "fullname": f"bench/bench_duel.py::test_largest_batch[{impl}]",
              "series": {"impl": impl, "batch": {"encoder": n, "LSTM": 10}}}] for n in (30, 10)
        )  # fmt: skip
        found[15, f"training at T = 512, equal parameters, {impl}"] = tuple(
            ratio("bench_duel.py::test_long_training", r, impl=impl) for r in (3.5, 0.3)
        )
        for mode in MODES:
            for H in (64, 256):
                found[21, f"LSTM / GRU, {mode}, H = {H}, {impl}"] = tuple(
                    ratio("bench_duel.py::test_lstm_over_gru", r, mode=mode, H=H, impl=impl) for r in (1.3, 0.7)
                )
    for words, field in (
        ("kernel busy", "gap_fraction"), ("SM active", "sm_active_pct"), ("warps active", "occupancy_achieved"),
        ("share of peak FLOP/s", "pct_peak_flops"),
    ):  # fmt: skip
        for model, good, bad in (("LSTM", 25, 90), ("transformer", 90, 25)):
            found[4, f"{words}, seeds' {model}"] = tuple(used(field, value, model) for value in (good, bad))
    for rung in RUNGS:
        found[5, f"LSTM, {rung}"] = tuple(launches(each, "LSTM", rung) for each in (1, 0))
        for kind in CELLS:
            fields = {"cell": f"{kind} bidirectional", "impl": rung}
            found[19, f"{kind}, {rung}"] = tuple(
                ratio("bench_duel.py::test_both_directions", r, **fields) for r in (2, 1)
            )
    found[5, "every rung: the least slope"] = tuple(
        [*launches(11, "GRU", "reference"), *launches(each, "LSTM", "loop")] for each in (1, 0)
    )
    for rung in ("loop", "torch.nn"):
        found[6, f"gap fraction, LSTM, B = 1, {rung}"] = tuple(
            [cell("bench_launch.py::test_ladder", cell="LSTM", impl=rung, gap_fraction=g)] for g in (0.9, 0.1)
        )
    gradients = "bench_gradients.py::"
    for key, kind, good, bad in (
        ((8, "dL/dx at distance k"), "RNN", -0.2, 0.0),
        ((9, "grows: recurrent norm 1.5"), "RNN norm 1.5", 0.1, -0.1),
        ((9, "grows: recurrent radius 1.5"), "RNN radius 1.5", 0.1, -0.1),
        *(((10, kind), kind, 0.0, -0.2) for kind in ("LSTM", "LSTM forget bias 1", "GRU", "IRNN")),
    ):
        found[key] = tuple(slope(f"{gradients}test_distance", s, cell=kind) for s in (good, bad))
    found[8, "norm of the parameters' gradient"] = tuple(slope(f"{gradients}test_parameters", s) for s in (-0.2, 0.0))
    found[9, "bounded: norm after clipping to 1"] = tuple(slope(f"{gradients}test_clipping", s) for s in (0.99, 5.0))
    found[10, "median of tanh' in the trained byte RNN"] = tuple(
        [cell("bench_models.py::test_byte_lm", series={"tanh_slope": [s] * 16}, cell="RNN")] for s in (0.1, 0.5)
    )
    found[11, "AIC of an exponential less that of a power law"] = tuple(
        slope(f"{gradients}test_attention", s) for s in (30, -30)
    )
    found[11, "slope of log10 |dL/dx|"] = tuple(
        slope(f"{gradients}test_attention", 0.0, series={"slopes": [s] * 5}) for s in (0.0, -0.2)
    )
    for name in ("saved bytes", "peak bytes"):
        for words, test, right, which in (
            *((kind, "test_recurrent", 1, {"cell": kind, "impl": "fusednn"}) for kind in CELLS),
            ("attention, plain", "test_attention", 2, {"impl": "sdpa-math"}),
            ("attention, fused", "test_attention", 2, {"impl": "sdpa-flash"}),
        ):
            found[14, f"{words}: exponent of {name}"] = tuple(
                [memory_fact(test, p, **which)] for p in (right, 3 - right)
            )
    found[15, "what flash gains: transformer by the math composition / by flash"] = tuple(
        ratio("bench_duel.py::test_flash", r, cell="encoder stack by the math backend") for r in (3, 1)
    )
    found[15, "seconds to one bit below unigram, byte LSTM / transformer"] = (byte_models(10, 1), byte_models(1, 10))
    lstm = {"cell": "LSTM", "impl": "fusednn", "mode": "inference"}
    flash = {"impl": "sdpa-flash", "mode": "inference"}
    for row, test, over, good, fields in (
        ("RNN in T", "bench_recurrent.py::test_time", "T", 1, lstm),
        ("RNN in d", "bench_recurrent.py::test_width", "H", 2, lstm),
        ("attention in T", "bench_attention.py::test_time", "T", 2, flash),
        ("attention in d", "bench_attention.py::test_width", "E", 1, flash),
    ):
        found[16, row] = tuple(power(test, over, p, **fields) for p in (good, 3 - good))
    state, token = "state bytes against context", "time a token against context"
    for kind, test, good in (*((kind, "test_recurrent", 0) for kind in CELLS), ("attention", "test_attention", 1)):
        found[17, f"{state}, {kind}"] = tuple(
            power(f"bench_decode.py::{test}", "T", p, field="state_bytes", cell=kind) for p in (good, 1 - good)
        )
    for kind, test, impl, good in (
        ("LSTM", "test_recurrent", "fusednn", 0), ("attention", "test_attention", "fusednn-torch", 1),
    ):  # fmt: skip
        found[17, f"{token}, {kind}"] = tuple(
            power(f"bench_decode.py::{test}", "T", p, cell=kind, impl=impl) for p in (good, 1 - good)
        )
    found[18, "launches with attention / without"] = tuple(
        [dict(r, series={**r["series"], "launches": many if "attention" in r["series"]["system"] else 50})
         for r in next(good for id, _, good, _ in TURNED if id == 18)] for many in (500, 5)
    )  # fmt: skip
    found[20, "share of duel cells that the RNN wins in time"] = tuple(
        ratio("bench_duel.py::test_stacks", r, impl="fusednn") for r in (0.5, 2)
    )
    return found


EVIDENCE = evidence()


def judged(row, rows):
    tier = "learning" if any("bench_learning" in r["fullname"] for r in rows) else "standard"
    machine = {**MACHINE, "device": "cuda" if row.id in (4, 6) else "cpu"}
    found = results.assemble(copy.deepcopy(rows), machine, {"name": tier, "seeds": 3, "lm_steps": 5}, {}, "2026-01-02")
    return next(c for c in found["claims"] if (c["id"], c["row"]) == (row.id, row.row))


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.id} {row.row}")
def test_data_turned_round_turn_the_verdict(row):
    good, bad = EVIDENCE[row.id, row.row]
    assert judged(row, good)["verdict"] == SUPPORTED
    assert judged(row, bad)["verdict"] == CONTRADICTED


def test_every_row_has_a_rule_and_evidence():
    assert set(EVIDENCE) == {(row.id, row.row) for row in ROWS}
    assert all(row.rule is not None for row in ROWS)
