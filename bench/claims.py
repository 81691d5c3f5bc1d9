"""The seeds' claims and what becomes of them. A table of rows: claim, rule, and where the figure comes from.

A figure is computed from the results file, and the verdict from the figure (`bench.verdict`); a figure that can't be
had gives NOT MEASURED with the reason. To add a row, add a line to `ROWS`. What models learn is measured by a tier of
its own, whose kept results (``make claims``) stand in for what another tier leaves out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from bench import claim_figures as f
from bench import learning_figures as learning
from bench.claim_figures import Figure
from bench.query import Cells, Unavailable
from bench.verdict import Rule, judge

CLAIMS: dict[int, tuple[str, str]] = {
    1: ("RNN time is linear in T", "172.89 ms at T = 1000, 17.56 at 100"),
    2: ("a 6-layer transformer is 2 to 4 times faster at long T", "3.7x at T = 200, 3.0x at 500, 1.9x at 1000"),
    3: ("a transformer's forward time is O(1) in T", "exponent 0"),
    4: ("GPU utilisation: RNN 20-30 %, transformer 80-95 %", "20-30 % against 80-95 %"),
    5: ("an RNN needs T sequential launches, on every implementation", "T launches"),
    6: ("launch latency dominates an RNN", "dominates"),
    7: ("more hardware can't speed up one sequence", "no speed-up"),
    8: ("RNN gradients vanish with T", "2.45 at T = 10, 0.000089 at T = 200"),
    9: ("gradients explode when the recurrent norm is above 1; clipping bounds that, not vanishing", "grows; bounded"),
    10: ("LSTM and GRU reach about 100 steps; identity initialisation helps; tanh' is usually < 0.25", "~100 steps"),
    11: ("attention's gradient path is O(1)", "does not fall exponentially"),
    12: ("a fixed-size state is a bottleneck", "BLEU 30 to 15 beyond 40 tokens"),
    13: ("agreement at a distance: LSTM 85 % to 60 %, transformer 95 %", "85 to 60 %; 95 %"),
    14: ("training memory: linear in T for an RNN, quadratic for attention", "exponents 1 and 2"),
    15: ("training is 3.4x faster with a transformer; it converges 10x faster", "3.4x at T = 512; 10x"),
    16: ("RNN O(T d^2), attention O(T^2 d)", "exponents 1, 2, 2, 1"),
    17: ("decode: constant state for an RNN, growing cache for a transformer", "slopes 0 and 1"),
    18: ("Bahdanau attention removes the bottleneck but stays sequential", "recall up, launches not fewer"),
    19: ("bidirectional costs double", "2x"),
    20: ("RNNs remain useful: low latency, low memory, small data", "somewhere"),
    21: ("GRU is faster than LSTM", "faster"),
    22: ("transformers need positions to know the order", "chance without"),
    23: ("truncated BPTT over k steps learns no dependency longer than k", "chance beyond k"),
}


@dataclass(frozen=True)
class Row:
    """One figure of one claim."""

    id: int
    row: str
    rule: Rule | None
    figure: Callable[[Cells], Figure]


EXACT_1, EXACT_2 = Rule(0.85, 1.15), Rule(1.85, 2.15)
OURS, TORCH = "fusednn", "torch.nn"
LEARNS = Rule(low=90)  # points of accuracy

ROWS: tuple[Row, ...] = (
    *(Row(1, f"{cell}, {impl}", Rule(0.95, 1.10), f.length_exponent(cell, impl))
      for cell in ("RNN", "LSTM", "GRU") for impl in (OURS, TORCH)),
    *(Row(1, f"LSTM at the seeds' shape, {impl}", Rule(0.95, 1.10), f.seed_shape_exponent(impl))
      for impl in (OURS, TORCH)),
    *(Row(2, f"{words}, {mode}, {impl}", Rule(2, 4), f.duel(test, basis, mode, impl))
      for test, basis, words in (("test_posed", "posed", "as posed"),
                                 ("test_stacks", "parameters", "equal parameters"),
                                 ("test_stacks", "flops", "equal FLOPs"))
      for mode in ("inference", "training") for impl in (OURS, TORCH)),
    *(Row(3, f"seeds' transformer, {impl}", Rule(-0.1, 0.1), f.seed_model_exponent("transformer", impl))
      for impl in (OURS, TORCH)),
    *(Row(4, f"{words}, seeds' {model}", rule, f.utilisation(field, model))
      for words, field in (("kernel busy", "gap_fraction"), ("SM active", "sm_active_pct"),
                           ("warps active", "occupancy_achieved"), ("share of peak FLOP/s", "pct_peak_flops"))
      for model, rule in (("LSTM", Rule(20, 30)), ("transformer", Rule(80, 95)))),
    Row(5, "every rung: the least slope", Rule(low=1), f.least_launch_slope()),
    *(Row(5, f"LSTM, {rung}", Rule(low=1), f.launch_slope("LSTM", rung))
      for rung in ("reference", "loop", "sequence", TORCH)),
    *(Row(6, f"gap fraction, LSTM, B = 1, {rung}", Rule(low=0.5, strict=True), f.gap(rung))
      for rung in ("loop", TORCH)),
    *(Row(7, f"LSTM, B = 1, {impl}", Rule(high=1.1), f.core_speedup(impl)) for impl in (OURS, TORCH)),
    Row(8, "dL/dx at distance k", Rule(high=-0.06), f.gradient_slope("RNN")),
    Row(8, "norm of the parameters' gradient", Rule(high=-0.06), f.parameter_slope()),
    Row(9, "grows: recurrent norm 1.5", Rule(low=0, strict=True), f.gradient_slope("RNN norm 1.5")),
    Row(9, "grows: recurrent radius 1.5", Rule(low=0, strict=True), f.gradient_slope("RNN radius 1.5")),
    Row(9, "bounded: norm after clipping to 1", Rule(high=1.000001), f.clipped_norm()),
    Row(9, "slope with clipping less slope without", Rule(-0.01, 0.01), f.clipping_and_slope()),
    *(Row(10, kind, Rule(low=-0.02, strict=True), f.gradient_slope(kind))
      for kind in ("LSTM", "LSTM forget bias 1", "GRU", "IRNN")),
    Row(10, "median of tanh' in the trained byte RNN", Rule(high=0.25, strict=True), f.tanh_median()),
    Row(11, "AIC of an exponential less that of a power law", Rule(low=10), f.attention_path()),
    Row(11, "slope of log10 |dL/dx|", Rule(low=-0.02, strict=True), f.attention_slope()),
    *(Row(12, f"recall of the first token: points lost from T = 5 to 200, {system}", rule,
          learning.lost("test_recall", system, 5, 200))
      for system, rule in (("RNN, H = 64", Rule(low=30)), ("RNN, H = 512", Rule(low=30)),
                           ("LSTM, H = 64", Rule(low=30)), ("LSTM, H = 64, forget bias 5", Rule(low=30)),
                           ("transformer", Rule(high=5)))),
    *(Row(12, f"copy: points lost from 4 to 12 tokens, {system}", rule, learning.lost("test_copy", system, 4, 12))
      for system, rule in (("seq2seq", Rule(low=30)), ("seq2seq with attention", Rule(high=5)))),
    Row(13, "LSTM next to the subject", Rule(80, 90), learning.agreement("LSTM", 1, 1)),
    Row(13, "LSTM at a distance of 10 and more", Rule(55, 65), learning.agreement("LSTM", 10, 1000)),
    Row(13, "transformer, where it is worst", Rule(90, 100), learning.worst_agreement("transformer")),
    *(Row(14, f"{words}: exponent of {name}", rule, f.memory_exponent(test, field, **which))
      for words, rule, test, which in (
          *((cell, EXACT_1, "test_recurrent", {"cell": cell, "impl": OURS}) for cell in ("RNN", "LSTM", "GRU")),
          ("attention, plain", EXACT_2, "test_attention", {"impl": "sdpa-math"}),
          ("attention, fused", EXACT_2, "test_attention", {"impl": "sdpa-flash"}))
      for name, field in (("saved bytes", "saved_mib"), ("peak bytes", "peak_mib"))),
    *(Row(14, f"largest batch under a fixed budget, {impl}", Rule(2, 4), f.largest_batch(impl))
      for impl in (OURS, TORCH)),
    *(Row(15, f"training at T = 512, equal parameters, {impl}", Rule(3, 4), f.long_training(impl))
      for impl in (OURS, TORCH)),
    Row(15, "with Flash Attention: LSTM / transformer", Rule(8, 12), f.flash("LSTM stack")),
    Row(15, "what flash gains: transformer by the math composition / by flash", Rule(2, 4),
        f.flash("encoder stack by the math backend")),
    Row(15, "seconds to one bit below unigram, byte LSTM / transformer", Rule(8, 12), f.convergence("LSTM")),
    Row(16, "RNN in T", EXACT_1, f.length_exponent("LSTM", OURS)),
    Row(16, "RNN in d", EXACT_2, f.width_exponent()),
    Row(16, "attention in T", EXACT_2, f.attention_exponent("test_time", "T")),
    Row(16, "attention in d", EXACT_1, f.attention_exponent("test_width", "E")),
    *(Row(17, f"state bytes against context, {cell}", Rule(-0.01, 0.01), f.state_exponent("test_recurrent", cell))
      for cell in ("RNN", "LSTM", "GRU")),
    Row(17, "state bytes against context, attention", Rule(0.99, 1.01),
        f.state_exponent("test_attention", "attention")),
    Row(17, "time a token against context, LSTM", Rule(-0.1, 0.1), f.decode_exponent("test_recurrent", "LSTM", OURS)),
    Row(17, "time a token against context, attention", Rule(0.9, 1.1),
        f.decode_exponent("test_attention", "attention", "fusednn-torch")),
    Row(18, "copy of 12 tokens: points gained by attention", Rule(low=20),
        learning.gained("test_copy", "seq2seq with attention", "seq2seq", 12)),
    Row(18, "launches with attention / without", Rule(low=1),
        learning.launches("seq2seq with attention", "seq2seq", 12)),
    *(Row(19, f"{cell}, {rung}", Rule(1.8, 2.2), f.both_directions(cell, rung))
      for cell in ("RNN", "LSTM", "GRU") for rung in ("reference", "loop", "sequence", TORCH)),
    Row(20, "share of duel cells that the RNN wins in time", Rule(low=0, strict=True), f.wins()),
    Row(20, "share of duel cells that the RNN wins in memory", Rule(low=0, strict=True), f.wins_memory()),
    Row(20, "loss on 1 % of the text: LSTM below transformer", Rule(low=0, strict=True),
        learning.bits_ahead("LSTM", "transformer")),
    *(Row(21, f"LSTM / GRU, {mode}, H = {H}, {impl}", Rule(low=1, strict=True), f.lstm_over_gru(mode, H, impl))
      for mode in ("inference", "training") for H in (64, 256) for impl in (OURS, TORCH)),
    *(Row(22, f"did A come before B? {system}", rule, learning.accuracy("test_order", system))
      for system, rule in (("encoder, no positions", Rule(45, 55)), ("encoder, learned positions", LEARNS),
                           ("encoder, sinusoidal positions", LEARNS), ("decoder, no positions", Rule(45, 55)))),
    Row(23, "recall at k/2", LEARNS, learning.accuracy("test_truncated", "GRU", k=8, T=4)),
    Row(23, "recall at 2k", Rule(20, 30), learning.accuracy("test_truncated", "GRU", k=8, T=16)),
    Row(23, "recall at 2k, trained through all steps", LEARNS, learning.accuracy("test_truncated", "GRU", k=32, T=16)),
)  # fmt: skip


def _figure(row: Row, sources: Sequence[Cells]) -> tuple[Figure | None, str | None, Cells]:
    """From the first source that has it; the reason why the first of all has not."""
    reasons = []
    for cells in sources:
        try:
            found = row.figure(cells)
            kept = "" if cells is sources[0] else f"; kept {cells.results['datetime'][:10]}"
            return replace(found, basis=found.basis + kept), None, cells
        except Unavailable as why:
            reasons.append(str(why))
    return None, reasons[0], sources[0]


def judge_row(row: Row, *sources: Cells) -> dict[str, Any]:
    """One entry of the results file's ``claims``."""
    text, claimed = CLAIMS[row.id]
    figure, reason, cells = _figure(row, sources)
    estimate = figure.estimate if figure else None
    return {
        "id": row.id,
        "claim": text,
        "row": row.row,
        "claimed": claimed,
        "rule": str(row.rule) if row.rule else None,
        "verdict": judge(estimate, row.rule),
        "measured": estimate.value if estimate else None,
        "interval": estimate.interval if estimate else None,
        "unit": figure.unit if figure else None,
        "device": cells.results["machine_info"]["device_name"],
        "basis": figure.basis if figure else None,
        "reason": reason,
    }


def judge_all(results: dict[str, Any], learnt: dict[str, Any] | None = None) -> list[dict[str, Any]]:
    """Every row of every claim, measured or not. ``learnt`` are kept results of tier learning."""
    sources = [Cells(found) for found in (results, learnt) if found is not None]
    return [judge_row(row, *sources) for row in ROWS]
