"""A verdict is a function of an interval and a rule; nobody writes one by hand."""

from __future__ import annotations

import math
from dataclasses import dataclass

from bench.stats import Estimate

SUPPORTED, CONTRADICTED, MIXED, NOT_MEASURED = "SUPPORTED", "CONTRADICTED", "MIXED", "NOT MEASURED"
VERDICTS = (SUPPORTED, CONTRADICTED, MIXED, NOT_MEASURED)


@dataclass(frozen=True)
class Rule:
    """The band of figures that support a claim. Open ends are infinite; ``strict`` leaves the ends themselves out."""

    low: float = -math.inf
    high: float = math.inf
    strict: bool = False

    def __str__(self) -> str:
        less, more = ("<", ">") if self.strict else ("<=", ">=")
        if self.low == -math.inf:
            return f"{less} {self.high:g}"
        if self.high == math.inf:
            return f"{more} {self.low:g}"
        return f"{self.low:g} to {self.high:g}"

    def holds(self, value: float) -> bool:
        if self.strict:
            return self.low < value < self.high
        return self.low <= value <= self.high


def judge(measured: Estimate | None, rule: Rule | None) -> str:
    """Inside the rule: SUPPORTED; wholly outside: CONTRADICTED; overlap: MIXED; nothing measured: NOT MEASURED."""
    if measured is None or rule is None:
        return NOT_MEASURED
    if any(math.isnan(v) for v in (measured.value, measured.low, measured.high)):
        return NOT_MEASURED
    if rule.holds(measured.low) and rule.holds(measured.high):
        return SUPPORTED
    outside_below = measured.high < rule.low or (rule.strict and measured.high <= rule.low)
    outside_above = measured.low > rule.high or (rule.strict and measured.low >= rule.high)
    return CONTRADICTED if outside_below or outside_above else MIXED
