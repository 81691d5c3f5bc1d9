"""Questions to a results file: which cells, over what, with which fields. Disturbed cells don't answer."""

from __future__ import annotations

from typing import Any

from bench.stats import Estimate, exact, exponent


class Unavailable(Exception):
    """The figure can't be had from these results; the message says why."""


class Cells:
    """The cells of a results file."""

    def __init__(self, results: dict[str, Any]) -> None:
        self.results = results
        self.tier: str = results["tier"]["name"]
        self.device: str = results["machine_info"]["device"]
        self.all: list[dict[str, Any]] = results["benchmarks"]

    def select(self, test: str, **fields: Any) -> list[dict[str, Any]]:
        """Cells of a test (``bench_duel.py::test_pair``) whose fields have these values, disturbed ones included."""
        found = []
        for cell in self.all:
            if f"{test}[" not in cell["fullname"] and not cell["fullname"].endswith(test):
                continue
            if all(cell["extra_info"].get(name) == value for name, value in fields.items()):
                found.append(cell)
        return found

    def quiet(self, test: str, **fields: Any) -> list[dict[str, Any]]:
        """Undisturbed cells; says why there are none."""
        found = self.select(test, **fields)
        if not found:
            raise Unavailable(self.why_missing(test, fields))
        calm = [cell for cell in found if not cell["extra_info"].get("disturbed")]
        if not calm:
            raise Unavailable(f"foreign load disturbed every cell ({len(found)})")
        return calm

    def why_missing(self, test: str, fields: dict[str, Any]) -> str:
        reasons = {
            row["extra_info"].get("skip_reason")
            for row in self.results.get("not_measured", ())
            if test in row["fullname"] and all(row["extra_info"].get(n) in (v, None) for n, v in fields.items())
        }
        known = sorted(reason for reason in reasons if reason)
        return known[0] if known else f"no such cell in tier {self.tier}"

    def times(self, test: str, over: str, at_least: float = 0, **fields: Any) -> dict[float, list[float]]:
        """Rounds in seconds by the value of a field, at least two points."""
        cells = [c for c in self.quiet(test, **fields) if (c["extra_info"].get(over) or 0) >= at_least]
        points = {float(c["extra_info"][over]): c["stats"]["data"] for c in cells}
        if len(points) < 2:
            raise Unavailable(f"fewer than two undisturbed cells with {over} >= {at_least:g} in tier {self.tier}")
        return dict(sorted(points.items()))

    def counts(self, test: str, over: str, field: str, at_least: float = 0, **fields: Any) -> dict[float, float]:
        """A counted field by the value of another; load doesn't disturb a count."""
        cells = self.select(test, **fields)
        if not cells:
            raise Unavailable(self.why_missing(test, fields))
        points = {
            float(c["extra_info"][over]): float(c["extra_info"][field])
            for c in cells
            if c["extra_info"].get(field) is not None and (c["extra_info"].get(over) or 0) >= at_least
        }
        if len(points) < 2:
            raise Unavailable(f"fewer than two cells with {over} >= {at_least:g} in tier {self.tier}")
        return dict(sorted(points.items()))

    def time_exponent(self, test: str, over: str, at_least: float = 0, **fields: Any) -> Estimate:
        return exponent(self.times(test, over, at_least, **fields))

    def count_exponent(self, test: str, over: str, field: str, at_least: float = 0, **fields: Any) -> Estimate:
        points = self.counts(test, over, field, at_least, **fields)
        if any(value <= 0 for value in points.values()):
            raise Unavailable(f"{field} is zero somewhere, which has no exponent")
        return exact(exponent({x: [y] for x, y in points.items()}).value)

    def ratio(self, test: str, **fields: Any) -> Estimate:
        """The paired ratio of one cell."""
        info = self.quiet(test, **fields)[0]["extra_info"]
        return Estimate(info["ratio"], info["ratio_low"], info["ratio_high"])

    def slope(self, test: str, **fields: Any) -> Estimate:
        """A fitted slope that a cell stored with its interval; computed in fp64, so load doesn't matter."""
        found = self.select(test, **fields)
        if not found:
            raise Unavailable(self.why_missing(test, fields))
        info = found[0]["extra_info"]
        return Estimate(info["slope"], info["slope_low"], info["slope_high"])

    def facts(self, test: str) -> dict[str, dict[str, Any]]:
        """What a test recorded without timing it, by its parameters as pytest writes them."""
        return {
            name.split("[", 1)[1].removesuffix("]"): series
            for name, series in self.results.get("facts", {}).items()
            if f"{test}[" in name
        }

    def facts_of(self, test: str) -> list[dict[str, Any]]:
        """The same of a test with or without parameters, without them."""
        facts = self.results.get("facts", {})
        return [series for name, series in facts.items() if name.split("[", 1)[0].endswith(test)]

    def series(self, cell: dict[str, Any]) -> dict[str, Any]:
        return self.results["series"].get(cell["fullname"], {})
