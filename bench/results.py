"""The results file: a pytest-benchmark file with our fields, the skipped cells, the series, and the claims."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench import peaks
from bench.claims import judge_all
from bench.lines import DONE, clean

SCHEMA = 1
NEEDED = ("machine_info", "benchmarks", "datetime", "tier", "not_measured", "facts", "series", "claims")


def assemble(
    rows: list[dict[str, Any]],
    machine_info: dict[str, Any],
    tier: dict[str, Any],
    commit: dict[str, Any],
    when: str,
    learnt: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Put the lines of a run together. ``benchmarks`` holds only what was timed, so that other tools can read it.

    ``learnt`` are kept results of tier learning, for the claims that this run leaves out.
    """
    import pytest_benchmark

    measured = [row for row in rows if row["kind"] == "measured"]
    results: dict[str, Any] = {
        "machine_info": machine_info,
        "commit_info": commit,
        "benchmarks": [row["bench"] for row in measured],
        "datetime": when,
        "version": pytest_benchmark.__version__,
        "schema": SCHEMA,
        "tier": tier,
        "not_measured": [
            {
                "fullname": row["fullname"],
                "kind": row["kind"],
                "params": row["bench"].get("params"),
                "extra_info": row["bench"]["extra_info"],
            }
            for row in rows
            if row["kind"] not in DONE
        ],
        "facts": {row["fullname"]: row["series"] for row in rows if row["kind"] == "fact"},
        "series": {row["fullname"]: row["series"] for row in measured if row["series"]},
    }
    peaks.fill(results)
    results["claims"] = judge_all(results, learnt)
    return clean(results)


def incomplete(results: dict[str, Any], tier: str, suite: str, tests: Sequence[str]) -> str | None:
    """Why results are not a whole run of a suite in its tier, or None."""
    if results["tier"]["name"] != tier:
        return f"what is kept comes from --bench-tier {tier}, got tier {results['tier']['name']}"
    failed = [row["fullname"] for row in results["not_measured"] if row["kind"] != "skipped"]
    if failed:
        return f"not measured: {', '.join(failed)}"
    names = [*(cell["fullname"] for cell in results["benchmarks"]), *results["facts"]]
    missing = [test for test in tests if not any(f"{suite}::test_{test}[" in name for name in names)]
    return f"no cells of {', '.join(missing)}; run: pytest bench/{suite} --bench-tier {tier}" if missing else None


def write(results: dict[str, Any], path: Path) -> None:
    """Write atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(results, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    part.replace(path)


def load(path: Path) -> dict[str, Any]:
    """Read a results file.

    Raises:
        ValueError: it is missing, damaged, or not ours.
    """
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path.name} is no results file: {error}") from error
    schema = results.get("schema") if isinstance(results, dict) else None
    if schema != SCHEMA:
        raise ValueError(f"{path.name}: schema {schema!r}, expected {SCHEMA}")
    if lacking := [name for name in NEEDED if name not in results]:
        raise ValueError(f"{path.name} is damaged: it lacks {', '.join(lacking)}")
    return results


def load_given(parser: argparse.ArgumentParser, path: Path) -> dict[str, Any]:
    """Read the results file that a command was given; one that is none ends the command as a wrong argument does."""
    try:
        return load(path)
    except ValueError as error:
        parser.error(str(error))
