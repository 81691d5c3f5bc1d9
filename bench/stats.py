"""Statistics: intervals by bootstrap, exponents by log-log fit, verdicts by interval. R2 appears nowhere: it is 0.995
for a straight line and for a parabola alike."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from scipy import stats as sp

RESAMPLES = 2000
CONFIDENCE = 0.95
TAILS = ((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2)


@dataclass(frozen=True)
class Estimate:
    """A figure with its interval."""

    value: float
    low: float
    high: float

    @property
    def interval(self) -> list[float]:
        return [self.low, self.high]

    def overlaps(self, other: Estimate) -> bool:
        return self.low <= other.high and other.low <= self.high


def around(value: float, low: float, high: float) -> Estimate:
    """An estimate whose interval holds the figure itself: with few rounds a percentile interval may miss it."""
    return Estimate(value, min(low, value), max(high, value))


def exact(value: float) -> Estimate:
    """A counted figure: the interval is the point."""
    return Estimate(value, value, value)


def _rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def median(data: Sequence[float]) -> Estimate:
    """Median with its bootstrap interval (percentile)."""
    return _median(tuple(data))


@cache
def _median(data: tuple[float, ...]) -> Estimate:
    values = np.asarray(data, dtype=float)
    middle = float(np.median(values))
    if values.size < 2 or np.ptp(values) == 0:
        return around(middle, float(values.min()), float(values.max()))
    draws = np.median(_rng().choice(values, (RESAMPLES, values.size)), axis=1)
    low, high = np.quantile(draws, TAILS)
    return around(middle, float(low), float(high))


def mean(data: Sequence[float]) -> Estimate:
    """Mean with its bootstrap interval."""
    values = np.asarray(data, dtype=float)
    middle = float(values.mean())
    if values.size < 2 or np.ptp(values) == 0:
        return around(middle, float(values.min()), float(values.max()))
    got = sp.bootstrap((values,), np.mean, n_resamples=RESAMPLES, confidence_level=CONFIDENCE,
                       method="percentile", vectorized=True, rng=_rng())  # fmt: skip
    return around(middle, float(got.confidence_interval.low), float(got.confidence_interval.high))


def _median_ratio(a: np.ndarray, b: np.ndarray, axis: int = -1) -> np.ndarray:
    return np.median(a, axis=axis) / np.median(b, axis=axis)


def paired_ratio(a: Sequence[float], b: Sequence[float]) -> Estimate:
    """median(a) / median(b) of rounds taken in pairs, with the paired bootstrap interval."""
    x, y = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    if x.shape != y.shape or x.size == 0:
        raise ValueError(f"pairs need as many a as b, got {x.size} and {y.size}")
    value = float(_median_ratio(x, y))
    if x.size < 2 or (np.ptp(x) == 0 and np.ptp(y) == 0):
        pairs = x / y
        return around(value, float(pairs.min()), float(pairs.max()))
    got = sp.bootstrap((x, y), _median_ratio, paired=True, n_resamples=RESAMPLES, confidence_level=CONFIDENCE,
                       method="percentile", vectorized=True, rng=_rng())  # fmt: skip
    return around(value, float(got.confidence_interval.low), float(got.confidence_interval.high))


def _slope(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Least-squares slope of y [..., n] against x [n]."""
    centred = x - x.mean()
    return (y * centred).sum(-1) / (centred * centred).sum()


def line_slope(x: Sequence[float], y: Sequence[float]) -> float:
    """Least-squares slope of y against x."""
    return float(_slope(np.asarray(x, dtype=float), np.asarray(y, dtype=float)))


def exponent(points: Mapping[float, Sequence[float]]) -> Estimate:
    """Exponent p of ``y ~ x^p`` by a log-log fit of the medians; the rounds of each point are resampled."""
    if len(points) < 2:
        raise ValueError("an exponent needs at least two points")
    if any(v <= 0 for rounds in points.values() for v in rounds) or any(x <= 0 for x in points):
        raise ValueError("an exponent needs positive values")
    x = np.log(np.asarray(list(points), dtype=float))
    logs = [np.log(np.asarray(list(rounds), dtype=float)) for rounds in points.values()]
    value = float(_slope(x, np.array([np.median(v) for v in logs])))
    rng = _rng()
    draws = np.stack([np.median(rng.choice(v, (RESAMPLES, v.size)), axis=1) for v in logs], axis=-1)
    low, high = np.quantile(_slope(x, draws), TAILS)
    return around(value, float(low), float(high))


def crossover(ratios: Mapping[float, float]) -> float | None:
    """The x at which a ratio crosses 1, between measured points, by interpolation in log x and log ratio; else None."""
    points = sorted(ratios.items())
    for (x0, r0), (x1, r1) in itertools.pairwise(points):
        if r0 <= 0 or r1 <= 0:
            raise ValueError("ratios are positive")
        if (r0 - 1) * (r1 - 1) <= 0 and r0 != r1:
            share = math.log(r0) / (math.log(r0) - math.log(r1))
            return math.exp(math.log(x0) + share * (math.log(x1) - math.log(x0)))
    return None


def aic(x: Sequence[float], y: Sequence[float]) -> float:
    """Akaike's criterion of a least-squares line y(x), normal errors."""
    xs, ys = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    rest = ys - ys.mean() - _slope(xs, ys) * (xs - xs.mean())
    return xs.size * math.log(max(float((rest**2).mean()), 1e-300)) + 2 * 3
