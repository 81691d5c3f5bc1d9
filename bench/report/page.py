"""Puts the page together: summary and verdicts first, then the pictures, then every figure."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from bench.query import Cells
from bench.report import pictures, tables
from bench.report.crossover_map import crossover_tables
from bench.report.tables import Table, interval, number
from bench.results import write
from bench.verdict import VERDICTS

HERE = Path(__file__).parent


def headline(cells: Cells) -> list[tuple[str, str, str]]:
    """The few figures that a reader should take away: value, what, how. Disturbed cells give none."""

    def calm(test: str, **fields: Any) -> list[dict[str, Any]]:
        found = [c["extra_info"] for c in cells.select(test, **fields)]
        return sorted((i for i in found if not i["disturbed"]), key=lambda i: i["T"])

    out = []
    rungs = calm("bench_launch.py::test_ladder", cell="LSTM")
    longest = rungs[-1]["T"] if rungs else None
    cost = {i["impl"]: i["us_per_step"] for i in rungs if i["T"] == longest}
    shape = f"LSTM, B = 1, H = 64, T = {longest}"
    for slow, words in (("reference", "from the plain PyTorch loop to one call a sequence"),
                        ("torch.nn", "torch.nn.LSTM's time over ours")):  # fmt: skip
        if {slow, "sequence"} <= set(cost):
            a, b = cost[slow], cost["sequence"]
            out.append((f"{number(a / b, 2)}x", words, f"{shape}: {number(a)} to {number(b)} us a step"))
    posed = calm("bench_duel.py::test_posed", impl="fusednn", mode="inference")
    if posed:
        i = posed[-1]
        out.append((f"{number(i['ratio'])}x", "LSTM time over transformer time, as the seeds pose it",
                    f"inference, B = {i['B']}, T = {i['T']}; the seeds say 2 to 4"))  # fmt: skip
    models = [c["extra_info"] for c in cells.select("bench_models.py::test_byte_lm", impl="fusednn")]
    bits = {i["cell"]: i["held_out_bits"] for i in models if i["held_out_bits"] is not None}
    if bits:
        best = min(bits, key=lambda k: bits[k])
        out.append((f"{bits[best]:.2f}", f"bits a byte: the {best}, best of {len(bits)} models of equal size",
                    ", ".join(f"{k} {v:.2f}" for k, v in bits.items())))  # fmt: skip
    return out


def render(results: dict[str, Any], out: Path, before: dict[str, Any] | None = None) -> Path:
    """Write index.html, the PNGs, the Markdown tables and report.md into ``out``; returns the page.

    ``before`` is a kept run to compare with.
    """
    out.mkdir(parents=True, exist_ok=True)
    cells = Cells(results)
    drawn = pictures.draw_all(cells)
    for picture in drawn:
        (out / f"{picture.name}.png").write_bytes(picture.png)
    claims = tables.verdicts(results["claims"])
    times = tables.timings(cells)
    missing = tables.not_measured(results)
    found = (
        tables.floors(cells), tables.shares(cells), *crossover_tables(cells), tables.learning(results),
        tables.comparison(results, before), tables.nsight(results), tables.occupancy(cells), *tables.passports(cells),
        missing,
    )  # fmt: skip
    others = [table for table in found if table.rows]
    folder = out / "tables"
    folder.mkdir(exist_ok=True)
    for table in (claims, *others, *times):
        (folder / f"{table.name}.md").write_text(table.markdown(), encoding="utf-8")
    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=lambda name: name == "page.html", undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters.update(number=number, interval=interval, slug=lambda text: text.replace(" ", "-").lower())
    infos = [c["extra_info"] for c in cells.all]
    shown = {
        "results": results,
        "machine": results["machine_info"],
        "pictures": [(p, Markup(p.svg)) for p in drawn],
        "headline": headline(cells),
        "counts": {verdict: Counter(c["verdict"] for c in results["claims"])[verdict] for verdict in VERDICTS},
        "claims": grouped(results["claims"]),
        "tables": times + others,
        "missing": missing,
        "disturbed": sum(1 for i in infos if i.get("disturbed")),
        "rejected": sum(i.get("rejected_rounds") or 0 for i in infos),
        "rounds": sum(c["stats"]["rounds"] for c in cells.all),
        "css": Markup((HERE / "page.css").read_text(encoding="utf-8")),
    }
    page = out / "index.html"
    for template, path in (("page.html", page), ("page.md", out / "report.md")):
        path.write_text(environment.get_template(template).render(shown), encoding="utf-8")
    if not (out / "results.json").exists():
        write(results, out / "results.json")
    return page


def grouped(claims: list[dict[str, Any]]) -> list[tuple[int, str, str, list[dict[str, Any]]]]:
    """Rows under their claim: id, text, claimed figure, rows."""
    out: dict[int, tuple[int, str, str, list[dict[str, Any]]]] = {}
    for c in claims:
        out.setdefault(c["id"], (c["id"], c["claim"], c["claimed"], []))[3].append(c)
    return list(out.values())


__all__ = ["Table", "render"]
