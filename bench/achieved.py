"""Join what Nsight Compute counted to the cells of a results file: ``python -m bench.achieved RESULTS FOLDER...``.

A FOLDER is that of ``python -m fusednn profile --tool ncu --out FOLDER -- TARGET``. Where the target is a benchmark's
id, its cell gets the counters: occupancy, busy multiprocessors and busy tensor cores as means over the launches,
weighted by their times; registers, shared memory, grid and limiter of the kernel that took the most time. Every launch
is a row of the report's table, which other targets, a layer and its sizes, get too. Claims are judged and the report
drawn anew.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

from bench.claims import judge_all
from bench.kept import last_run, learnt
from bench.report.page import render
from bench.results import load_given, write
from fusednn.profiling.reports import ncu_kernels

SOURCE = "Nsight Compute"
MEANS = ("occupancy_achieved", "sm_active_pct", "tensor_active_pct")
OF_KERNEL = {"regs": "regs", "shared": "smem", "threads": "threads", "blocks": "grid", "waves": "waves",
             "occupancy_theoretical": "occupancy_theoretical", "occupancy_limiter": "occupancy_limiter"}  # fmt: skip
Launch = dict[str, Any]


def read(folder: Path) -> tuple[str, list[Launch]]:
    """A profile's target and its launches.

    Raises:
        ValueError: the folder holds no profile of Nsight Compute.
    """
    table, target = folder / "ncu-0.csv", folder / "target.json"
    if not table.exists() or not target.exists():
        raise ValueError(f"{folder.as_posix()}: expected ncu-0.csv and target.json, which profile --tool ncu writes")
    return " ".join(json.loads(target.read_text())), ncu_kernels(table.read_text())


def summary(launches: list[Launch]) -> dict[str, Any]:
    """The fields of a cell from its launches; None where a counter is missing from any of them."""
    times = [launch["time_us"] for launch in launches]
    if not launches or None in times:
        return {}
    found: dict[str, Any] = {"occupancy_source": SOURCE}
    for field in MEANS:
        values = [launch[field] for launch in launches]
        weighed = zip(values, times, strict=True)
        found[field] = None if None in values else sum(v * t for v, t in weighed) / sum(times)
    spent: dict[str, float] = defaultdict(float)
    for launch in launches:
        spent[launch["kernel"]] += launch["time_us"]
    longest = next(launch for launch in launches if launch["kernel"] == max(spent, key=lambda k: spent[k]))
    return {**found, **{ours: longest[theirs] for theirs, ours in OF_KERNEL.items()}}


def join(results: dict[str, Any], target: str, launches: list[Launch]) -> bool:
    """Keep a profile in the results; whether a cell of them is what was profiled."""
    results.setdefault("nsight", {})[target] = launches
    mine = [cell for cell in results["benchmarks"] if cell["fullname"] == target.split(" --", 1)[0]]
    for cell in mine:
        cell["extra_info"].update(summary(launches))
    return bool(mine)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.achieved", description=__doc__)
    parser.add_argument("results", type=Path)
    parser.add_argument("folders", type=Path, nargs="+", metavar="FOLDER")
    given = parser.parse_args(argv)
    results = load_given(parser, given.results)
    for folder in given.folders:
        try:
            target, launches = read(folder)
        except ValueError as error:
            print(f"left out: {error}")
            continue
        found = join(results, target, launches)
        print(f"{len(launches)} launches of {target}{'' if found else ': no cell of these results, a table alone'}")
    results["claims"] = judge_all(results, learnt(results["machine_info"]))
    write(results, given.results)
    print(render(results, given.results.parent, last_run(results["machine_info"])))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
