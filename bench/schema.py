"""What a results file must be: keys, types, ranges, and figures that don't contradict one another."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from datetime import datetime
from typing import Any

from bench.fields import FIELDS, FLAGS, TEXTS
from bench.lines import DONE, KINDS, LEFT
from bench.results import SCHEMA
from bench.verdict import NOT_MEASURED, VERDICTS

TOP = {"machine_info": dict, "commit_info": dict, "benchmarks": list, "datetime": str, "version": str, "schema": int,
       "tier": dict, "not_measured": list, "facts": dict, "series": dict, "claims": list}  # fmt: skip
MACHINE = ("device", "device_name", "cpu_count", "torch", "torch_threads", "python", "system", "fusednn")
CLAIM = (
    "id",
    "claim",
    "row",
    "claimed",
    "rule",
    "verdict",
    "measured",
    "interval",
    "unit",
    "device",
    "basis",
    "reason",
)
SHARES = ("occupancy_theoretical", "occupancy_achieved", "sm_active_pct", "tensor_active_pct")  # percent
PERSONAL = re.compile(r"/home/|/root/|/Users/|/work/|/tmp/")


def problems(results: dict[str, Any]) -> list[str]:
    """Everything that is wrong with a results file; an older one may lack fields that were added since."""
    found = [f"{key}: expected {kind.__name__}" for key, kind in TOP.items() if not isinstance(results.get(key), kind)]
    if found:
        return found
    if results["schema"] != SCHEMA:
        found.append(f"schema: expected {SCHEMA}, got {results['schema']}")
    found += [f"machine_info: no {name}" for name in MACHINE if results["machine_info"].get(name) is None]
    try:
        datetime.fromisoformat(results["datetime"])
    except ValueError:
        found.append(f"datetime: {results['datetime']!r}")
    names = [cell.get("fullname") for cell in results["benchmarks"]]
    found += [f"{name}: twice" for name in {n for n in names if names.count(n) > 1}]
    for cell in results["benchmarks"]:
        found += [f"{cell.get('fullname')}: {wrong}" for wrong in _cell(cell)]
    for row in results["not_measured"]:
        if row["kind"] not in (*KINDS, LEFT) or row["kind"] in DONE:
            found.append(f"{row['fullname']}: kind {row['kind']!r}")
        if not row["extra_info"].get("skip_reason"):
            found.append(f"{row['fullname']}: not measured, and no reason")
    for claim in results["claims"]:
        found += [f"claim {claim.get('id')}, {claim.get('row')}: {wrong}" for wrong in _claim(claim)]
    if PERSONAL.search(json.dumps(results)):
        found.append("a path of somebody's machine")
    return found


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _cell(cell: dict[str, Any]) -> Iterator[str]:
    times, info = cell["stats"]["data"], cell["extra_info"]
    if not times or not all(_number(t) and t > 0 for t in times):
        yield "rounds that are no times"
    for name, value in info.items():
        kind = "text" if name in TEXTS else "flag" if name in FLAGS else "number"
        right = {"text": isinstance(value, str), "flag": isinstance(value, bool), "number": _number(value)}[kind]
        if name not in FIELDS:
            yield f"{name} is not a field"
        elif value is not None and not right:
            yield f"{name}: expected a {kind}, got {value!r}"
        elif name in SHARES and value is not None and not 0 <= value <= 100:
            yield f"{name}: {value} %"
    if info.get("max_err") is not None and not info["max_err"] <= info["err_budget"]:
        yield "a time in spite of a wrong result"
    for name in ("ratio", "slope"):
        low, value, high = (info.get(key) for key in (f"{name}_low", name, f"{name}_high"))
        if value is not None and not low <= value <= high:
            yield f"{name} {value} outside {low} to {high}"


def _claim(claim: dict[str, Any]) -> Iterator[str]:
    missing = [name for name in CLAIM if name not in claim]
    if missing:
        yield f"no {', '.join(missing)}"
        return
    if claim["verdict"] not in VERDICTS:
        yield f"verdict {claim['verdict']!r}"
    if (claim["verdict"] == NOT_MEASURED) != (claim["measured"] is None):
        yield f"{claim['verdict']} with the figure {claim['measured']}"
    if claim["measured"] is None:
        if not claim["reason"]:
            yield "not measured, and no reason"
    elif not claim["interval"][0] <= claim["measured"] <= claim["interval"][1]:
        yield f"{claim['measured']} outside its interval {claim['interval']}"
