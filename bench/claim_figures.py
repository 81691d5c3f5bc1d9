"""Where each claim's figure comes from: functions from the cells of a results file to an estimate with its basis."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from bench.query import Cells, Unavailable
from bench.stats import Estimate, exact, exponent, line_slope, mean, median

LONG = 50  # exponents in T are fitted from here on: below, fixed costs show


@dataclass(frozen=True)
class Figure:
    """A measured figure, what it is a figure of, and what was held equal."""

    estimate: Estimate
    unit: str
    basis: str


Getter = Callable[[Cells], Figure]


def _t_range(cells: Cells, test: str, **fields: Any) -> str:
    found = sorted({c["extra_info"]["T"] for c in cells.select(test, **fields)})
    return f"T = {', '.join(str(t) for t in found)}"


def length_exponent(cell: str, impl: str) -> Getter:
    def figure(cells: Cells) -> Figure:
        test = "bench_recurrent.py::test_time"
        fields: dict[str, Any] = {"cell": cell, "impl": impl, "mode": "inference"}
        got = cells.time_exponent(test, "T", LONG, **fields)
        return Figure(got, "exponent", f"inference, fp32, B = 8, H = 256, {_t_range(cells, test, **fields)}")

    return figure


def seed_shape_exponent(impl: str) -> Getter:
    def figure(cells: Cells) -> Figure:
        test = "bench_recurrent.py::test_seed_shape"
        got = cells.time_exponent(test, "T", LONG, impl=impl)
        return Figure(got, "exponent", f"inference, fp32, B = 32, H = 512, {_t_range(cells, test, impl=impl)}")

    return figure


def seed_model_exponent(model: str, impl: str) -> Getter:
    def figure(cells: Cells) -> Figure:
        test = "bench_models.py::test_seed_model"
        fields: dict[str, Any] = {"cell": f"seed {model}", "impl": impl}
        got = cells.time_exponent(test, "T", **fields)
        return Figure(got, "exponent", f"inference, fp32, as posed, {_t_range(cells, test, **fields)}")

    return figure


def width_exponent() -> Getter:
    def figure(cells: Cells) -> Figure:
        got = cells.time_exponent("bench_recurrent.py::test_width", "H", impl="fusednn")
        return Figure(got, "exponent", "LSTM, inference, fp32, B = 8, T = 50, I = H")

    return figure


def attention_exponent(test: str, over: str, mode: str = "inference") -> Getter:
    def figure(cells: Cells) -> Figure:
        got = cells.time_exponent(f"bench_attention.py::{test}", over, impl="sdpa-flash", mode=mode)
        return Figure(got, "exponent", "attention alone, flash backend, fp32, B = 1, N = 8")

    return figure


def duel(test: str, basis: str, mode: str, impl: str) -> Getter:
    """Ratio recurrent / attention at the shortest T of at least 200, from where on the seeds claim it."""

    def figure(cells: Cells) -> Figure:
        fields = {"basis": basis, "mode": mode, "impl": impl}
        found = [c for c in cells.quiet(f"bench_duel.py::{test}", **fields) if c["extra_info"]["T"] >= 200]
        found = [c for c in found if c["extra_info"]["cell"] in ("seed LSTM", "LSTM stack")]
        if not found:
            raise Unavailable(f"no undisturbed cell with T >= 200 in tier {cells.tier}")
        info = min((c["extra_info"] for c in found), key=lambda i: i["T"])
        got = Estimate(info["ratio"], info["ratio_low"], info["ratio_high"])
        return Figure(got, "LSTM / transformer", f"paired, fp32, B = {info['B']}, T = {info['T']}")

    return figure


def long_training(impl: str) -> Getter:
    def figure(cells: Cells) -> Figure:
        got = cells.ratio("bench_duel.py::test_long_training", impl=impl)
        return Figure(got, "LSTM / transformer", "paired, forward and backward, fp32, B = 2, T = 512, d = 256")

    return figure


def launch_slope(cell: str, rung: str) -> Getter:
    def figure(cells: Cells) -> Figure:
        points = cells.counts("bench_launch.py::test_ladder", "T", "launches", cell=cell, impl=rung)
        slope = exact(round(line_slope(list(points), list(points.values())), 9))
        what = "operator calls" if cells.device == "cpu" else "kernels"
        return Figure(slope, f"{what} a step", f"{what} counted, inference")

    return figure


def least_launch_slope() -> Getter:
    def figure(cells: Cells) -> Figure:
        found = cells.select("bench_launch.py::test_ladder")
        if not found:
            raise Unavailable(f"no such cell in tier {cells.tier}")
        pairs = sorted({(c["extra_info"]["cell"], c["extra_info"]["impl"]) for c in found})
        figures = [launch_slope(*pair)(cells) for pair in pairs]
        least = min(figures, key=lambda g: g.estimate.value)
        return Figure(least.estimate, least.unit, f"the least of {len(figures)} rungs and cells, counted")

    return figure


def core_speedup(impl: str) -> Getter:
    def figure(cells: Cells) -> Figure:
        got = cells.ratio("bench_cores.py::test_one_sequence", impl=impl, H=512)
        low, value, high = (max(1.0, v) for v in (got.low, got.value, got.high))  # the best count may be one
        basis = cells.quiet("bench_cores.py::test_one_sequence", impl=impl, H=512)[0]["extra_info"]["basis"]
        return Figure(Estimate(value, low, high), "one core / best", f"paired, {basis}, T = 100, H = 512")

    return figure


def gradient_slope(kind: str) -> Getter:
    def figure(cells: Cells) -> Figure:
        got = cells.slope("bench_gradients.py::test_distance", cell=kind)
        return Figure(got, "decades a step", f"fp64, {cells.results['tier']['seeds']} seeds, I = 10, H = 50, B = 16")

    return figure


def parameter_slope() -> Getter:
    def figure(cells: Cells) -> Figure:
        got = cells.slope("bench_gradients.py::test_parameters")
        return Figure(got, "decades a step", f"fp64, {cells.results['tier']['seeds']} seeds, I = 10, H = 50, B = 16")

    return figure


def clipped_norm() -> Getter:
    def figure(cells: Cells) -> Figure:
        got = cells.slope("bench_gradients.py::test_clipping")
        return Figure(got, "norm", "the largest of all seeds, recurrent radius 1.5, fp64")

    return figure


def clipping_and_slope() -> Getter:
    def figure(cells: Cells) -> Figure:
        test = "bench_gradients.py::test_clipped_training"
        got = cells.slope(test)
        share = cells.series(cells.select(test)[0])["clipped_share"]
        words = f"RNN after 10 steps of descent, {100 * share:.0f} % of them clipped to 1"
        return Figure(got, "decades a step", f"{words}; fp64, {cells.results['tier']['seeds']} seeds")

    return figure


def attention_path() -> Getter:
    def figure(cells: Cells) -> Figure:
        got = cells.slope("bench_gradients.py::test_attention")
        return Figure(got, "AIC", "one encoder layer at initialisation, fp64")

    return figure


def attention_slope() -> Getter:
    def figure(cells: Cells) -> Figure:
        found = cells.select("bench_gradients.py::test_attention")
        slopes = cells.series(found[0]).get("slopes") if found else None
        if not slopes:
            raise Unavailable(f"no such cell in tier {cells.tier}")
        return Figure(
            mean(slopes), "decades a step", "one encoder layer at initialisation, fp64; the rule is claim 10's"
        )

    return figure


def tanh_median() -> Getter:
    def figure(cells: Cells) -> Figure:
        found = cells.select("bench_models.py::test_byte_lm", cell="RNN")
        slopes = cells.series(found[0]).get("tanh_slope") if found else None
        if not slopes:
            raise Unavailable("the byte RNN was not trained")
        return Figure(median(slopes), "tanh'", "states of the trained byte RNN on held-out text")

    return figure


def memory_exponent(test: str, field: str, **which: Any) -> Getter:
    """Of ``saved_mib`` or ``peak_mib`` in T, from the one system of bench_memory.py with these fields."""

    def figure(cells: Cells) -> Figure:
        name = f"bench_memory.py::{test}"
        facts = (f for f in cells.facts(name).values() if all(f[k] == v for k, v in which.items()))
        found = next(facts, None)
        if found is None:
            raise Unavailable(cells.why_missing(name, {}))
        if None in found[field]:
            raise Unavailable("this system does not tell the most memory that was in use")
        counted = field == "saved_mib"
        runs = ([v] if counted else v for v in found[field])
        points = dict(zip(map(float, found["lengths"]), runs, strict=True))
        if any(v <= 0 for values in points.values() for v in values):
            raise Unavailable(f"too little memory to tell in tier {cells.tier}")
        got = exponent(points)
        what = "bytes kept for backward, counted" if counted else "most in use above weights and input, two runs"
        return Figure(got, "exponent", f"training, {what}, T = {', '.join(str(T) for T in found['lengths'])}")

    return figure


def _longest(cells: Cells, test: str, **fields: Any) -> dict[str, Any]:
    """The undisturbed cell of the greatest T."""
    return max(cells.quiet(test, **fields), key=lambda c: c["extra_info"]["T"])


def gap(rung: str) -> Getter:
    """Share of a sequence's time in which no kernel runs."""

    def figure(cells: Cells) -> Figure:
        if cells.device == "cpu":
            raise Unavailable("needs a GPU: the gap is between stream and device time")
        cell = _longest(cells, "bench_launch.py::test_ladder", cell="LSTM", impl=rung)
        i = cell["extra_info"]
        return Figure(_gap(cell), "share of time", f"B = {i['B']}, H = {i['H']}, T = {i['T']}, kernels by CUPTI")

    return figure


def _gap(cell: dict[str, Any]) -> Estimate:
    """With the interval of the median of the rounds."""
    share, times = cell["extra_info"].get("gap_fraction"), median(cell["stats"]["data"])
    if share is None:
        raise Unavailable("the profiler gave no times of kernels")
    busy = (1 - share) * times.value
    return Estimate(share, 1 - busy / times.low, 1 - busy / times.high)


def utilisation(field: str, model: str) -> Getter:
    """Percent of a GPU that one of the seeds' models, of torch.nn, keeps in use."""

    def figure(cells: Cells) -> Figure:
        if cells.device == "cpu":
            raise Unavailable("needs a GPU and its counters")
        cell = _longest(cells, "bench_models.py::test_seed_model", cell=f"seed {model}", impl="torch.nn")
        i = cell["extra_info"]
        basis = f"inference, B = {i['B']}, T = {i['T']}"
        if field == "gap_fraction":
            idle = _gap(cell)
            busy = Estimate(100 * (1 - idle.value), 100 * (1 - idle.high), 100 * (1 - idle.low))
            return Figure(busy, "%", f"{basis}, time in which a kernel ran")
        if i.get(field) is None:
            raise Unavailable("not measured: bench/gpu_suite.sh has a shard for Nsight Compute and one for the floors")
        source = "share of the matrix product's" if field == "pct_peak_flops" else i["occupancy_source"]
        return Figure(exact(i[field]), "%", f"{basis}, {source}")

    return figure


def largest_batch(impl: str) -> Getter:
    def figure(cells: Cells) -> Figure:
        test = "bench_duel.py::test_largest_batch"
        batch = next((f["batch"] for f in cells.facts(test).values() if f["impl"] == impl), None)
        if batch is None:
            raise Unavailable(cells.why_missing(test, {"impl": impl}))
        sizes = f"{batch['encoder']} against {batch['LSTM']} sequences"
        words = f"{sizes} in 1 GiB, T = 512, d = 256, equal parameters, bytes kept for backward, counted"
        return Figure(exact(batch["encoder"] / batch["LSTM"]), "transformer / LSTM", words)

    return figure


def flash(side: str) -> Getter:
    def figure(cells: Cells) -> Figure:
        got = cells.ratio("bench_duel.py::test_flash", cell=side)
        return Figure(got, f"{side} / flash", "paired, forward and backward, fp32, B = 1, T = 512, d = 256")

    return figure


def _seconds_to(cells: Cells, kind: str) -> tuple[float, float]:
    """Seconds at the last evaluation above the threshold and the first one below."""
    found = cells.quiet("bench_models.py::test_byte_lm", cell=kind, impl="fusednn")
    series, aim = cells.series(found[0]), found[0]["extra_info"]["unigram_bits"] - 1
    for before, after, bits in zip(series["seconds"], series["seconds"][1:], series["bits"][1:], strict=False):
        if bits is not None and bits <= aim:
            return before, after
    raise Unavailable(f"the byte {kind} did not get one bit below the unigram entropy in tier {cells.tier}")


def convergence(cell: str) -> Getter:
    def figure(cells: Cells) -> Figure:
        (a_low, a_high), (b_low, b_high) = _seconds_to(cells, cell), _seconds_to(cells, "transformer")
        if b_low <= 0:
            raise Unavailable("the transformer crossed before its first evaluation")
        value = (a_low + a_high) / (b_low + b_high)
        got = Estimate(value, a_low / b_high, a_high / b_low)
        return Figure(got, "seconds / seconds", "one seed, equal parameters; interval from the evaluations around")

    return figure


def state_exponent(test: str, cell: str) -> Getter:
    def figure(cells: Cells) -> Figure:
        got = cells.count_exponent(f"bench_decode.py::{test}", "T", "state_bytes", cell=cell)
        return Figure(got, "exponent", "bytes of the state, counted")

    return figure


def decode_exponent(test: str, cell: str, impl: str) -> Getter:
    def figure(cells: Cells) -> Figure:
        got = cells.time_exponent(f"bench_decode.py::{test}", "T", cell=cell, impl=impl)
        return Figure(got, "exponent", "one token, fp32, B = 1, width 512")

    return figure


def both_directions(cell: str, rung: str) -> Getter:
    def figure(cells: Cells) -> Figure:
        got = cells.ratio("bench_duel.py::test_both_directions", cell=f"{cell} bidirectional", impl=rung)
        return Figure(got, "two / one", "paired, inference, fp32, B = 4, T = 100, H = 128")

    return figure


def lstm_over_gru(mode: str, H: int, impl: str) -> Getter:
    def figure(cells: Cells) -> Figure:
        got = cells.ratio("bench_duel.py::test_lstm_over_gru", mode=mode, H=H, impl=impl)
        return Figure(got, "LSTM / GRU", "paired, fp32, B = 4, T = 100, equal width")

    return figure


def wins() -> Getter:
    """Share of the stack duels that the recurrent side wins; undecided cells widen the interval."""

    def figure(cells: Cells) -> Figure:
        found = [c["extra_info"] for c in cells.quiet("bench_duel.py::test_stacks", impl="fusednn")]
        sure = sum(1 for i in found if i["ratio_high"] < 1)
        maybe = sum(1 for i in found if i["ratio_low"] <= 1 <= i["ratio_high"])
        won = sum(1 for i in found if i["ratio"] < 1)
        n = len(found)
        got = Estimate(won / n, sure / n, (sure + maybe) / n)
        return Figure(got, "share", f"{n} pairs: equal parameters and equal FLOPs, inference and training")

    return figure


def wins_memory() -> Getter:
    """Share of the stack duels in training in which the recurrent side keeps fewer bytes for backward."""

    def figure(cells: Cells) -> Figure:
        test = "bench_duel.py::test_stacks"
        found = cells.select(test, impl="fusednn", mode="training")
        if not found:
            raise Unavailable(cells.why_missing(test, {"impl": "fusednn", "mode": "training"}))
        if any("other_memory" not in cells.series(c) for c in found):
            raise Unavailable("these results are of a version that did not keep the other side's memory")
        won = [c["extra_info"]["saved_mib"] < cells.series(c)["other_memory"]["saved_mib"] for c in found]
        words = f"{len(won)} pairs: equal parameters and equal FLOPs, training, bytes kept for backward, counted"
        return Figure(exact(sum(won) / len(won)), "share", words)

    return figure
