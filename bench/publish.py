"""Keep a machine's results: ``python -m bench.publish [build/report]``.

Copies the results file to ``bench/results/<device>/``, draws the pictures from it, and writes the README's table and
picture between its markers. ``--users``, ``--learning`` and ``--crossover FOLDER`` keep the results of a suite with a
tier of its own instead (`bench.kept`), and write its page. ``--check`` writes nothing and fails where a page or a
picture differs from its results.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import Any

from bench.kept import BEGIN, END, ROOT, SUITES, folder_of, old_pictures, redraw, replaced
from bench.lines import LEFT
from bench.progress import time_text
from bench.query import Cells
from bench.report.tables import Table
from bench.results import incomplete, load, load_given
from bench.schema import problems
from bench.stats import median

RESULTS_FILE = "results.json"
SHOWN = ("standard", "full")  # tiers
NEEDED = {"bench_launch.py": ("ladder",), "bench_recurrent.py": ("time",), "bench_duel.py": ("posed", "stacks"),
          "bench_models.py": ("byte_lm",)}  # fmt: skip
PICTURES = ("ladder.png", "duel.png", "language-models.png")


def table(results: dict[str, Any]) -> Table:
    """The README's table: the ladder's longest rungs, layers against torch.nn, and the duel."""
    cells = Cells(results)
    rows = []
    found = cells.select("bench_launch.py::test_ladder", cell="LSTM")
    longest = max((c["extra_info"]["T"] for c in found), default=0)
    for cell in (c for c in found if c["extra_info"]["T"] == longest):
        i = cell["extra_info"]
        rows.append(
            (f"LSTM, B = 1, H = 64, T = {longest}, {i['impl']}", *_figure(cell, f"{i['launches']} operator calls"))
        )
    for kind in ("RNN", "LSTM", "GRU"):
        for mode in ("inference", "training"):
            pair = {
                c["extra_info"]["impl"]: c
                for c in cells.select("bench_recurrent.py::test_time", cell=kind, mode=mode, T=200)
            }
            if {"fusednn", "torch.nn"} <= set(pair):
                ours, theirs = (median(pair[k]["stats"]["data"]).value for k in ("fusednn", "torch.nn"))
                what = f"{kind}, B = 8, H = 256, T = 200, {mode}"
                rows.append((what, *_figure(pair["fusednn"], f"torch.nn {time_text(theirs)}: {theirs / ours:.2f}x")))
    for test, words in (("test_posed", "the seeds' LSTM / transformer"), ("test_stacks", "LSTM / encoder")):
        found = cells.select(f"bench_duel.py::{test}", impl="fusednn")
        longest = max((c["extra_info"]["T"] for c in found), default=0)
        for cell in (c for c in found if c["extra_info"]["T"] == longest):
            i = cell["extra_info"]
            if "LSTM" in i["cell"]:
                basis = {"posed": "as posed", "parameters": "equal parameters", "flops": "equal FLOPs"}[i["basis"]]
                note = f"ratio {i['ratio']:.2f} ({i['ratio_low']:.2f} to {i['ratio_high']:.2f})"
                rows.append((f"{words}, {basis}, T = {longest}, {i['mode']}", *_figure(cell, note)))
    for cell in cells.select("bench_models.py::test_byte_lm", impl="fusednn"):
        i = cell["extra_info"]
        note = f"{i['held_out_bits']:.2f} bits a byte (unigram {i['unigram_bits']:.2f})"
        rows.append((f"byte {i['cell']}, {i['params']:,} parameters, training", *_figure(cell, note)))
    return Table("readme", "Measured", ("what", "median", ""), rows)


def _figure(cell: dict[str, Any], note: str) -> tuple[str, str]:
    mark = ", disturbed" if cell["extra_info"].get("disturbed") else ""
    return time_text(median(cell["stats"]["data"]).value), note + mark


def block(results: dict[str, Any]) -> str:
    """Everything between the markers."""
    m, where = results["machine_info"], folder_of(results)
    who = (
        f"{m['device_name']}, {m['cpu_count']} cores, {m['torch_threads']} threads"
        if m["device"] == "cpu"
        else (m["device_name"])
    )
    head = (f"Measured on {who}, torch {m['torch']}, {results['datetime'][:10]}; fp32, medians, every result checked "
            f"against fp64. [All figures]({(where / 'results.json').as_posix()}).")  # fmt: skip
    picture = f"![The launch ladder]({(where / 'ladder.png').as_posix()})"
    return f"{BEGIN}\n{picture}\n\n{head}\n\n{table(results).markdown()}{END}"


def published(root: Path = ROOT) -> Path | None:
    """The results file that the README's block was made from."""
    readme = root / "README.md"
    text = readme.read_text(encoding="utf-8") if readme.exists() else ""
    if BEGIN not in text:
        return None
    inside = text.split(BEGIN, 1)[1].split(END, 1)[0]
    for line in inside.split("(")[1:]:
        target = line.split(")", 1)[0]
        if target.endswith("results.json"):
            return root / target
    return None


def check(root: Path = ROOT) -> str | None:
    """What is wrong with the README's block, or None."""
    source = published(root)
    if source is None:
        return "README.md names no results file between its markers"
    text = (root / "README.md").read_text(encoding="utf-8")
    if replaced(text, block(load(source))) != text:
        return (
            f"README.md differs from {source.relative_to(root).as_posix()}; run: python -m bench.publish --readme-only"
        )
    return None


def refusal(results: dict[str, Any]) -> str | None:
    """Why the README can't show these results, or None."""
    if wrong := problems(results):
        return "; ".join(wrong[:5])
    if any(row["kind"] == LEFT for row in results["not_measured"]):
        return "one shard of a run: --bench-resume goes on"
    tier = results["tier"]["name"]
    if tier not in SHOWN:
        return f"the README shows tier {' or '.join(SHOWN)}, got tier {tier}"
    reasons = (incomplete(results, tier, suite, tests) for suite, tests in NEEDED.items())
    return next((reason for reason in reasons if reason), None)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.publish", description=__doc__)
    parser.add_argument("report", type=Path, nargs="?", default=Path("build/report"))
    for suite in SUITES:
        parser.add_argument(
            f"--{suite.name}", type=Path, metavar="FOLDER", help=f"of a run of {suite.file} in its tier"
        )
    parser.add_argument("--readme-only", action="store_true", help="write the pages from the committed results")
    parser.add_argument("--check", action="store_true")
    given = parser.parse_args(argv)
    if given.check:
        wrong = [
            reason
            for reason in (check(), old_pictures(RESULTS_FILE, PICTURES), *(suite.check() for suite in SUITES))
            if reason
        ]
        print("\n".join(wrong) or "README.md and the pages agree with their results")
        return 1 if wrong else 0
    runs = [(suite, folder) for suite in SUITES if (folder := getattr(given, suite.name))]
    for suite, folder in runs:
        suite.keep(folder)
    if runs:
        return 0
    source = published() if given.readme_only else given.report / "results.json"
    if source is None:
        raise SystemExit("README.md names no results file between its markers")
    results = load_given(parser, source)
    if reason := refusal(results):
        raise SystemExit(f"{source.as_posix()}: {reason}")
    if not given.readme_only:
        target = ROOT / folder_of(results)
        target.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, target / "results.json")
        print(f"kept in {folder_of(results).as_posix()}")
    redraw(RESULTS_FILE, PICTURES)
    readme = ROOT / "README.md"
    readme.write_text(replaced(readme.read_text(encoding="utf-8"), block(results)), encoding="utf-8")
    print("README.md written")
    if given.readme_only:
        for suite in SUITES:
            suite.write()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
