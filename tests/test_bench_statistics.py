"""Exponents, intervals, verdicts, crossover."""

from __future__ import annotations

import math

import numpy as np
import pytest

from bench.stats import Estimate, aic, crossover, exact, exponent, line_slope, mean, median, paired_ratio
from bench.verdict import CONTRADICTED, MIXED, NOT_MEASURED, SUPPORTED, Rule, judge


@pytest.mark.parametrize("power", (0.0, 1.0, 1.5, 2.0))
def test_exponent_is_recovered_with_its_interval(power):
    rng = np.random.default_rng(1)
    points = {t: (3e-4 * t**power * rng.lognormal(0, 0.02, 30)).tolist() for t in (50, 100, 200, 400)}
    got = exponent(points)
    assert got.value == pytest.approx(power, abs=0.02)
    assert got.low < got.value < got.high
    assert got.high - got.low < 0.06


def test_exponent_tells_linear_from_quadratic_where_r2_does_not():
    lengths = [10.0, 50.0, 100.0, 200.0]
    assert exponent({t: [t] for t in lengths}).value == pytest.approx(1)
    assert exponent({t: [t * t] for t in lengths}).value == pytest.approx(2)
    assert np.corrcoef(lengths, np.square(lengths))[0, 1] > 0.95


def test_exponent_refuses_what_has_none():
    with pytest.raises(ValueError, match="two points"):
        exponent({1.0: [1.0]})
    with pytest.raises(ValueError, match="positive"):
        exponent({1.0: [1.0], 2.0: [0.0]})


def test_interval_narrows_with_rounds_and_covers_the_median():
    rng = np.random.default_rng(0)
    covered = 0
    for seed in range(40):
        data = np.random.default_rng(seed).normal(10, 1, 40)
        got = median(data.tolist())
        covered += got.low <= 10 <= got.high
    assert covered >= 34  # 95 % nominal
    few, many = (median(rng.normal(10, 1, n).tolist()) for n in (10, 1000))
    assert many.high - many.low < few.high - few.low


def test_paired_ratio_ignores_what_both_sides_share():
    rng = np.random.default_rng(3)
    drift = rng.lognormal(0, 0.3, 60)
    got = paired_ratio((2 * drift).tolist(), drift.tolist())
    assert got.value == pytest.approx(2)
    assert got.high - got.low < 1e-9
    with pytest.raises(ValueError, match="pairs"):
        paired_ratio([1.0], [1.0, 2.0])


def test_one_round_is_its_own_interval():
    assert median([3.0]) == exact(3.0)
    assert mean([3.0]) == exact(3.0)


@pytest.mark.parametrize(
    ("interval", "rule", "expected"),
    [
        ((2.5, 3.5), Rule(2, 4), SUPPORTED),
        ((2.0, 4.0), Rule(2, 4), SUPPORTED),
        ((1.5, 2.5), Rule(2, 4), MIXED),
        ((3.5, 4.5), Rule(2, 4), MIXED),
        ((1.0, 5.0), Rule(2, 4), MIXED),
        ((0.5, 1.9), Rule(2, 4), CONTRADICTED),
        ((4.1, 9.0), Rule(2, 4), CONTRADICTED),
        ((1.0, 1.0), Rule(low=1), SUPPORTED),
        ((1.0, 1.0), Rule(low=1, strict=True), CONTRADICTED),
        ((0.0, 0.0), Rule(low=1), CONTRADICTED),
        ((0.9, 1.2), Rule(low=1, strict=True), MIXED),
        ((math.nan, 1.0), Rule(2, 4), NOT_MEASURED),
    ],
)
def test_verdict_follows_from_interval_and_rule(interval, rule, expected):
    assert judge(Estimate(sum(interval) / 2, *interval), rule) == expected


def test_nothing_measured_is_not_measured():
    assert judge(None, Rule(2, 4)) == NOT_MEASURED
    assert judge(exact(3), None) == NOT_MEASURED


def test_crossover_lies_between_the_points_around_it():
    assert crossover({10: 4.0, 40: 0.25}) == pytest.approx(20)
    assert crossover({10: 0.25, 40: 4.0, 80: 8.0}) == pytest.approx(20)
    assert crossover({10: 2.0, 40: 3.0}) is None


def test_aic_prefers_the_form_that_made_the_data():
    k = list(range(1, 60))
    noise = np.random.default_rng(0).normal(0, 0.05, len(k))
    exponential = (-0.3 * np.array(k) + noise).tolist()
    power = (-1.0 * np.log(k) + noise).tolist()
    logs = np.log(k).tolist()
    assert aic(k, exponential) < aic(logs, exponential) - 10
    assert aic(logs, power) < aic(k, power) - 10


def test_slope_of_a_line():
    assert line_slope([1, 2, 3], [5, 7, 9]) == pytest.approx(2)


@pytest.mark.parametrize("seed", range(20))
def test_an_interval_holds_its_figure_however_few_the_rounds(seed):
    rng = np.random.default_rng(seed)
    a, b = rng.lognormal(0, 1, (2, 3)).tolist()
    for got in (median(a), mean(a), paired_ratio(a, b), exponent({1.0: a, 2.0: b})):
        assert got.low <= got.value <= got.high
