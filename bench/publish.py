"""Keep a machine's results: ``python -m bench.publish [build/report]``.

Copies the results file and the pictures to ``bench/results/<device>/`` and writes the README's table and picture
between its markers. ``--users FOLDER`` keeps the results of bench_users.py instead, and writes the tables of
docs/should-i-use-it.md; ``--learning FOLDER`` keeps those of bench_learning.py, from which every later run on the
machine judges the claims on what models learn. ``--check`` writes nothing and fails where README.md or the page differs
from its results.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench import learning_figures as learning
from bench import users
from bench.machine import slug
from bench.progress import time_text
from bench.query import Cells
from bench.report.tables import Table
from bench.results import incomplete, load
from bench.stats import median

ROOT = Path(__file__).parent.parent
RESULTS = Path("bench/results")
LEARNING = "learning.json"
BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"
PICTURES = ("ladder.png", "duel.png", "language-models.png")


def folder_of(results: dict[str, Any]) -> Path:
    """Where this machine's results live, relative to the repository."""
    return RESULTS / slug(results["machine_info"]["device_name"])


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


def replaced(page: str, new: str) -> str:
    """A page with a new block, markers included."""
    if BEGIN not in page or END not in page:
        raise ValueError(f"the page lacks the markers {BEGIN} and {END}")
    before, rest = page.split(BEGIN, 1)
    return before + new + rest.split(END, 1)[1]


def users_page(root: Path = ROOT) -> str:
    """docs/should-i-use-it.md with the tables of the results that are kept."""
    tables = users.text(users.stored(root, RESULTS))
    return replaced((root / users.PAGE).read_text(encoding="utf-8"), f"{BEGIN}\n{tables}{END}")


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


def check_users(root: Path = ROOT) -> str | None:
    """What is wrong with the users' page, or None."""
    if users_page(root) != (root / users.PAGE).read_text(encoding="utf-8"):
        return f"{users.PAGE.as_posix()} differs from its results; run: python -m bench.publish --readme-only"
    return None


def keep(report: Path, name: str, refusal: Callable[[dict[str, Any]], str | None], root: Path = ROOT) -> None:
    """Keep the results of a suite with a tier of its own under a name."""
    results = load(report / "results.json")
    if reason := refusal(results):
        raise SystemExit(f"{(report / 'results.json').as_posix()} is not kept: {reason}")
    target = folder_of(results) / name
    (root / target).parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(report / "results.json", root / target)
    print(f"kept in {target.as_posix()}")


def unlearnt(results: dict[str, Any]) -> str | None:
    """Why results are not a whole run of tier learning, or None."""
    return incomplete(results, learning.TIER, learning.SUITE, learning.TESTS)


def learnt(machine_info: dict[str, Any], root: Path = ROOT) -> dict[str, Any] | None:
    """What tier learning has measured on a machine and was kept, or None."""
    path = root / folder_of({"machine_info": machine_info}) / LEARNING
    return load(path) if path.exists() else None


def write_users_page() -> None:
    (ROOT / users.PAGE).write_text(users_page(), encoding="utf-8")
    print(f"{users.PAGE.as_posix()} written")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.publish", description=__doc__)
    parser.add_argument("report", type=Path, nargs="?", default=Path("build/report"))
    parser.add_argument("--users", type=Path, metavar="FOLDER", help="of a run of bench_users.py in tier users")
    parser.add_argument(
        "--learning", type=Path, metavar="FOLDER", help="of a run of bench_learning.py in tier learning"
    )
    parser.add_argument("--readme-only", action="store_true", help="write the pages from the committed results")
    parser.add_argument("--check", action="store_true")
    given = parser.parse_args(argv)
    if given.check:
        wrong = check() or check_users()
        print(wrong or f"README.md and {users.PAGE.as_posix()} agree with their results")
        return 1 if wrong else 0
    if given.users is not None:
        keep(given.users, users.NAME, users.refusal)
        write_users_page()
        return 0
    if given.learning is not None:
        keep(given.learning, LEARNING, unlearnt)
        return 0
    source = published() if given.readme_only else given.report / "results.json"
    if source is None:
        raise SystemExit("README.md names no results file between its markers")
    results = load(source)
    if not given.readme_only:
        target = ROOT / folder_of(results)
        target.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, target / "results.json")
        for name in PICTURES:
            if (given.report / name).exists():
                shutil.copy(given.report / name, target / name)
        print(f"kept in {folder_of(results).as_posix()}")
    readme = ROOT / "README.md"
    readme.write_text(replaced(readme.read_text(encoding="utf-8"), block(results)), encoding="utf-8")
    print("README.md written")
    if given.readme_only:
        write_users_page()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
