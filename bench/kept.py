"""Suites that have a tier of their own: their results, kept beside a machine's others, and the pages made from them."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import learning_figures as learning
from bench import users
from bench.crossover import CROSSOVER
from bench.machine import slug
from bench.query import Cells
from bench.report import crossover_map, stamp
from bench.report.pictures import draw_all
from bench.results import incomplete, load
from bench.schema import problems

ROOT = Path(__file__).parent.parent
RESULTS = Path("bench/results")
BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"
NOTHING = "Not measured yet."


@dataclass(frozen=True)
class Suite:
    """A suite with a tier of its own.

    Attributes:
        name: of its tier; of what is kept, ``<name>.json``; and of publish's option.
        file: of the suite.
        tests: without ``test_``, all of which a whole run has.
        page: where its tables stand, if anywhere.
        section: a machine's part of the page, from its results and the folder they are kept in.
        pictures: of the report, kept with the results.
    """

    name: str
    file: str
    tests: tuple[str, ...]
    page: Path | None = None
    section: Callable[[dict[str, Any], Path], str] | None = None
    pictures: tuple[str, ...] = ()

    @property
    def stored_as(self) -> str:
        return f"{self.name}.json"

    def refusal(self, results: dict[str, Any]) -> str | None:
        """Why results are not a whole run of this suite, or None."""
        return incomplete(results, self.name, self.file, self.tests)

    def stored(self, root: Path = ROOT) -> list[dict[str, Any]]:
        """The results of all machines, by name of their folder."""
        return [load(path) for path in sorted((root / RESULTS).glob(f"*/{self.stored_as}"))]

    def text(self, found: Iterable[dict[str, Any]]) -> str:
        """One section a machine."""
        assert self.section is not None
        return "\n".join(self.section(results, folder_of(results)) for results in found) or f"{NOTHING}\n"

    def paged(self, root: Path = ROOT) -> str:
        """The page with the tables of the results that are kept."""
        assert self.page is not None
        now = (root / self.page).read_text(encoding="utf-8")
        return replaced(now, f"{BEGIN}\n{self.text(self.stored(root))}{END}")

    def check(self, root: Path = ROOT) -> str | None:
        """What is wrong with the page or its pictures, or None."""
        if reason := old_pictures(self.stored_as, self.pictures, root):
            return reason
        if self.page is None or self.paged(root) == (root / self.page).read_text(encoding="utf-8"):
            return None
        return f"{self.page.as_posix()} differs from its results; run: python -m bench.publish --readme-only"

    def write(self, root: Path = ROOT) -> None:
        """Bring the page and its pictures up to date."""
        redraw(self.stored_as, self.pictures, root)
        if self.page is not None:
            (root / self.page).write_text(self.paged(root), encoding="utf-8")
            print(f"{self.page.as_posix()} written")

    def keep(self, report: Path, root: Path = ROOT) -> None:
        """Keep a run's results and pictures, and bring the page up to date; refuses what is not a whole run."""
        results = load(report / "results.json")
        if reason := self.refusal(results) or "; ".join(problems(results)[:5]):
            raise SystemExit(f"{(report / 'results.json').as_posix()} is not kept: {reason}")
        target = folder_of(results) / self.stored_as
        (root / target).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(report / "results.json", root / target)
        print(f"kept in {target.as_posix()}")
        self.write(root)


USERS = Suite("users", "bench_users.py", ("layer", "encoder_layer", "curve"), users.PAGE, users.section)
LEARNING = Suite(learning.TIER, learning.SUITE, learning.TESTS)
MAP = Suite(CROSSOVER, "bench_crossover.py", ("sequence", "decode"), Path("docs/crossover.md"), crossover_map.section,
            (crossover_map.FILE,))  # fmt: skip
SUITES = (USERS, LEARNING, MAP)


def _old(stored_as: str, names: Iterable[str], root: Path) -> dict[Path, list[str]]:
    """Of every machine's results, the pictures that were drawn from others or are not there."""
    sources = sorted((root / RESULTS).glob(f"*/{stored_as}"))
    return {source: [n for n in names if not stamp.is_of(source.parent / n, source)] for source in sources}


def redraw(stored_as: str, names: Iterable[str], root: Path = ROOT) -> None:
    """Draw the pictures of every machine's results that are not of these results."""
    for source, missing in _old(stored_as, names, root).items():
        drawn = {f"{p.name}.png": p.png for p in draw_all(Cells(load(source)))} if missing else {}
        for name in missing:
            if name in drawn:
                stamp.keep(source.parent / name, drawn[name], source)


def old_pictures(stored_as: str, names: Iterable[str], root: Path = ROOT) -> str | None:
    """Which of the pictures were drawn from other results, or None."""
    old = [source.parent / name for source, missing in _old(stored_as, names, root).items() for name in missing]
    words = ", ".join(path.relative_to(root).as_posix() for path in old)
    return f"{words}: not drawn from {stored_as}; run: python -m bench.publish --readme-only" if old else None


def folder_of(results: dict[str, Any]) -> Path:
    """Where this machine's results live, relative to the repository."""
    return RESULTS / slug(results["machine_info"]["device_name"])


Tell = Callable[[str], None]


def last_run(machine_info: dict[str, Any], root: Path = ROOT, tell: Tell = print) -> dict[str, Any] | None:
    """The run of a machine that was kept last, for a report to compare with, or None."""
    return _sound(root / folder_of({"machine_info": machine_info}) / "results.json", tell)


def learnt(machine_info: dict[str, Any], root: Path = ROOT, tell: Tell = print) -> dict[str, Any] | None:
    """What tier learning has measured on a machine and was kept, or None."""
    return _sound(root / folder_of({"machine_info": machine_info}) / LEARNING.stored_as, tell)


def _sound(path: Path, tell: Tell) -> dict[str, Any] | None:
    """Results, where there are any; a damaged file is told, and costs nobody more than itself."""
    try:
        return load(path) if path.exists() else None
    except ValueError as error:
        tell(f"kept results are left out: {error}")
        return None


def replaced(page: str, new: str) -> str:
    """A page with a new block, markers included."""
    if BEGIN not in page or END not in page:
        raise ValueError(f"the page lacks the markers {BEGIN} and {END}")
    before, rest = page.split(BEGIN, 1)
    return before + new + rest.split(END, 1)[1]
