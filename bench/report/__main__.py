"""Render the report again: ``python -m bench.report build/report/results.json [folder]``."""

from __future__ import annotations

import argparse
from pathlib import Path

from bench.claims import judge_all
from bench.kept import last_run, learnt
from bench.report.page import render
from bench.results import load_given, write


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.report", description=__doc__)
    parser.add_argument("results", type=Path)
    parser.add_argument("out", type=Path, nargs="?", help="default: the folder of the results")
    parser.add_argument("--judge", action="store_true", help="compute the verdicts anew and store them")
    given = parser.parse_args(argv)
    results = load_given(parser, given.results)
    if given.judge:
        results["claims"] = judge_all(results, learnt(results["machine_info"]))
        write(results, given.results)
    print(render(results, given.out or given.results.parent, last_run(results["machine_info"])))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
