"""Figures of the claims on what models learn, from the facts of bench_learning.py. Accuracies in points of 100."""

from __future__ import annotations

from typing import Any

import numpy as np

from bench.claim_figures import Figure, Getter
from bench.query import Cells, Unavailable
from bench.stats import exact, mean

SUITE = "bench_learning.py"
TIER = "learning"
TESTS = ("recall", "copy", "agreement", "order", "truncated", "small_text")
POINTS = "points"
Run = dict[str, Any]


def run(cells: Cells, test: str, **fields: Any) -> Run:
    """The one fact of a test with these fields, from the tier that measures it."""
    if cells.tier != TIER:
        raise Unavailable(f"measured by tier {TIER}: make claims")
    for fact in cells.facts(f"{SUITE}::{test}").values():
        if all(fact.get(name) == value for name, value in fields.items()):
            return fact
    raise Unavailable(cells.why_missing(f"{SUITE}::{test}", {}))


def points(found: Run) -> np.ndarray:
    """Accuracies by seed."""
    return 100 * np.asarray(found["accuracy"], dtype=float)


def basis(*runs: Run) -> str:
    """What was held equal, and what not."""
    sizes, rates = ({f"{r[name]:,}" for r in runs} for name in ("params", "rate"))
    seeds = min(len(r.get("accuracy") or r["bits"]) for r in runs)
    length = f"{runs[0]['steps']} steps of {runs[0]['rows']} rows"
    both = f"{' and '.join(sorted(sizes))} parameters, rate {' and '.join(sorted(rates))} chosen on another seed"
    return f"{seeds} seeds, {length}, {both}"


def accuracy(test: str, system: str, **fields: Any) -> Getter:
    def figure(cells: Cells) -> Figure:
        found = run(cells, test, system=system, **fields)
        return Figure(mean(points(found).tolist()), POINTS, basis(found))

    return figure


def lost(test: str, system: str, near: int, far: int) -> Getter:
    """Points lost from the shorter task to the longer, seed by seed."""

    def figure(cells: Cells) -> Figure:
        short, long = (run(cells, test, system=system, T=T) for T in (near, far))
        got = points(short) - points(long)
        return Figure(mean(got.tolist()), POINTS, f"{basis(short, long)}; {points(short).mean():.0f} at T = {near}")

    return figure


def gained(test: str, system: str, over: str, T: int) -> Getter:
    """Points by which a system is ahead of another, seed by seed."""

    def figure(cells: Cells) -> Figure:
        one, other = (run(cells, test, system=name, T=T) for name in (system, over))
        return Figure(mean((points(one) - points(other)).tolist()), POINTS, f"T = {T}, {basis(one, other)}")

    return figure


def launches(system: str, over: str, T: int) -> Getter:
    def figure(cells: Cells) -> Figure:
        one, other = (run(cells, "test_copy", system=name, T=T) for name in (system, over))
        what = "operator calls" if cells.device == "cpu" else "kernels"
        got = exact(one["launches"] / other["launches"])
        return Figure(got, "ratio", f"{what} counted, inference, T = {T}: {one['launches']} and {other['launches']}")

    return figure


def agreement(system: str, least: int, most: int) -> Getter:
    """Accuracy over the distances from ``least`` to ``most``, a mean a seed."""

    def figure(cells: Cells) -> Figure:
        found = run(cells, "test_agreement", system=system)
        chosen = [k for k, d in enumerate(found["distances"]) if least <= d <= most]
        words = ", ".join(str(found["distances"][k]) for k in chosen)
        return Figure(mean(points(found)[:, chosen].mean(1).tolist()), POINTS, f"distance {words}; {basis(found)}")

    return figure


def worst_agreement(system: str) -> Getter:
    """Accuracy at the distance where it is least, seed by seed."""

    def figure(cells: Cells) -> Figure:
        found = run(cells, "test_agreement", system=system)
        return Figure(mean(points(found).min(1).tolist()), POINTS, f"the worst distance; {basis(found)}")

    return figure


def bits_ahead(kind: str, over: str) -> Getter:
    """Bits a byte by which a model's loss is lower than another's, seed by seed."""

    def figure(cells: Cells) -> Figure:
        one, other = (run(cells, "test_small_text", system=name) for name in (kind, over))
        got = np.asarray(other["bits"], dtype=float) - np.asarray(one["bits"], dtype=float)
        return Figure(mean(got.tolist()), "bits a byte", f"each at its best evaluation, {basis(one, other)}")

    return figure
