"""Instructions and bytes on the path of a step of the recurrent CUDA kernels, and the time that follows: a prediction.

``python tools/critical_path.py --write`` brings ``docs/kernels/critical_path.json`` and the tables of
``docs/kernels/critical_path.md`` up to date; without it they are compared. The kernels are compiled for sm_90a with
line numbers, which must not change an instruction. The host code of the kernels, built with ``tools/arguments``, writes
down what it launches them with; then each warp of a block walks through the machine code (``sm90/warp.py``), for
several numbers of steps: what one more step adds is the path of a step. So nothing is divided among rungs by hand: what
a rung does not execute is not in its trace. Line numbers tell the parts of a step apart. Needs nvcc and nvdisasm, no
GPU. Listings are kept in ``build/critical_path`` until their source changes; ``--none`` only asks whether the counts
are those of these sources.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import functools
import json
import os
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import replace

import numpy as np
from machine_code import ROOT, fingerprint
from sm90 import timeline
from sm90.semantics import steps_of
from sm90.timeline import CLOCK, LATENCY, Event
from sm90.warp import Block, Region, Unfit, Warp
from step_code import FILES, Case, Launched, code_of, codes, function_at, launched

from fusednn.reference.cells import CELLS

COUNTS = ROOT / "docs/kernels/critical_path.json"
PAGE = ROOT / "docs/kernels/critical_path.md"
STEPS = (2, 4, 6)  # of a sequence: all of its steps but the first and the last are alike
LAPS = (35, 42, 49)  # of `grid`, whose messages go around a ring (ring.h): one step in seven has a fence

LAUNCH, REPLAYED = 2.0, 1.3  # us from launch to launch, plain and of a graph's node [design: published]
L2_RATE, SHARED_RATE = 5.5e12, 128 * CLOCK  # bytes a second, of the GPU and of a multiprocessor

# The parts of a step, by the functions that an instruction was inlined from; the first part that names one has it.
PARTS = {
    "receive": {"receive", "fetch", "await", "await_next"},
    "product": {"multiply_kept", "add_rest", "add", "Residence.multiply", "run", "run_of", "finish_sums"},
    "send": {"send", "deliver"},
    "inputs": {"inputs"},
    "sums": {"gather", "BlockProduct", "Walk.multiply"},
    "write": {"writer", "write_last"},
    "gates": {
        "step",
        "first",
        "second",
        "last",
        "arrive",
        "put_gates",
        "forward",
        "backward",
        "put",
        "leave",
        "read",
        "finish",
    },
}
KINDS = {
    "HMMA": {"HMMA"},
    "float": {"FADD", "FMUL", "FFMA", "FSEL", "FSETP", "FMNMX", "F2FP", "FCHK"},
    "MUFU": {"MUFU", "F2F", "I2F", "F2I"},
    "SHFL": {"SHFL"},
    "BAR": {"BAR", "SYNCS", "WARPSYNC", "VOTE", "UCGABAR_ARV", "UCGABAR_WAIT"},
    "MEMBAR": {"MEMBAR", "ERRBAR", "CGAERRBAR", "CCTL", "FENCE", "DEPBAR", "LDGDEPBAR"},
    "branch": {"BRA", "BSSY", "BSYNC", "BREAK", "EXIT", "NOP", "YIELD"},
}


def cases() -> list[Case]:
    """All rows of the tables."""
    sizes = [("block", 64), ("cluster", 512), ("grid", 768), ("grid", 1024), ("grid", 2048)]
    wanted = [
        (rung, hidden, batch, way)
        for way, batch in (("forward", 1), ("forward", 16), ("backward", 16))
        for rung, hidden in sizes
        if (hidden, way) != (2048, "backward")
    ]  # its weights do not fit
    wanted += [(rung, hidden, 16, way) for hidden in (512, 1024) for way in ("forward", "backward")
               for rung in ("step", "graph", "gemm")]  # fmt: skip
    rows = [Case(rung, "lstm", "bfloat16", hidden, batch, way) for rung, hidden, batch, way in wanted]
    others = [("block", 64), ("cluster", 512), ("grid", 1024)], [(rung, 512) for rung in ("step", "graph", "gemm")]
    rows += [Case(rung, "lstm", "bfloat16", hidden, 16, way, packed=True) for way in ("forward", "backward")
             for rung, hidden in sizes if hidden < 2048]  # fmt: skip
    return rows + [Case(rung, cell, "bfloat16", hidden, batch, way) for cell in ("gru", "rnn_tanh")
                   for batch, sizes in zip((1, 16), others, strict=True) for rung, hidden in sizes
                   for way in ("forward", "backward")]  # fmt: skip


@functools.cache
def part_of(places: tuple[tuple[str, int], ...]) -> str:
    """The part of a step that an instruction serves; "loop" where none of its places tells."""
    names = {function_at(path, line) for path, line in places}
    return next((part for part, known in PARTS.items() if names & known), "loop")


def kind_of(event: Event) -> str:
    """The class that an instruction is counted in."""
    name = event.instruction.name[0]
    if event.off:
        return "off"
    if event.access is not None:
        store = name.startswith(("ST", "SYNCS"))
        if event.access.where in ("shared", "local", "peers"):
            return {"shared": "STS" if store else "LDS", "local": "local", "peers": "ST.async"}[event.access.where]
        return "STG" if store else "LDG"
    return next((kind for kind, names in KINDS.items() if name in names), "integer")


# ------- the walk


@functools.cache
def steps_cached(kernel: str) -> list:
    """What the instructions of a kernel do."""
    return steps_of(code_of(kernel))


def walk(launch: Launched, regions: list[Region], warp: int) -> list[Event]:
    """What a warp of the first block executes."""
    special = {"SR_CTAID.X": 0, "SR_CTAID.Y": 0, "SR_CTAID.Z": 0, "SR_CgaCtaId": 0, "SR_SWINHI": 0x3_0000}
    code = code_of(launch.kernel)
    block = Block(code, launch.parameters, regions, launch.threads, launch.grid, special)
    walker = Warp(block, warp)
    walker.walk(steps_cached(launch.kernel))
    return [Event(code.instructions[at], walker.accesses.get(n), n in walker.off) for n, at in enumerate(walker.trace)]


def is_receive(event: Event) -> bool:
    """Whether an instruction looks for a message."""
    return (not event.off and "PHASECHK" in event.instruction.name) or is_piece(event, "LDG")


def is_piece(event: Event, name: str) -> bool:
    """A load or store of a piece of a message of `grid`; what clears one is among the stores."""
    parts = event.instruction.name
    return not event.off and parts[0] == name and "STRONG" in parts and "GPU" in parts and "128" in parts


def messages(warps: list[list[Event]], rung: str) -> list[list[Event]]:
    """The same events; those that wait for a message and those that send it are numbered."""
    if rung == "block":
        return warps
    out, counts = [], []
    for events in warps:
        waits, fresh, numbered = 0, True, []
        for event in events:
            if is_receive(event) and (fresh or rung == "cluster"):
                event, waits, fresh = replace(event, receives=waits), waits + 1, False
            fresh = fresh or event.instruction.name[0] == "BAR"
            numbered.append(event)
        out.append(numbered)
        counts.append(waits)
    total = max(counts)
    for events in out:
        places = [n for n, event in enumerate(events)
                  if (event.instruction.name[0] == "STAS" and not event.off) or is_piece(event, "STG")]  # fmt: skip
        if len(places) % total:
            raise Unfit(f"{len(places)} sends for {total} messages")
        for k, n in enumerate(places):
            events[n] = replace(events[n], sends=k // (len(places) // total))
    return out


def tally(events: Iterable[Event]) -> Counter:
    """Instructions by part and class, and bytes by where they go."""
    found: Counter = Counter()
    for event in events:
        found["part", part_of(event.instruction.places)] += 1
        found["kind", kind_of(event)] += 1
        found["all", ""] += 1
        if event.access is not None:
            store = "to" if event.instruction.name[0].startswith("ST") else "from"
            found["bytes", f"{store} {event.access.where}"] += event.access.bytes
    return found


def share(more: Counter, less: Counter, steps: int, uniform: bool) -> Counter:
    """What each of some steps adds; on average, rounded, where they are not uniform."""
    added = Counter({key: more[key] - less[key] for key in more.keys() | less.keys()})
    if uniform and any(value % steps for value in added.values()):
        raise Unfit(f"steps differ: {dict(added)}")
    return Counter({key: round(value / steps) for key, value in added.items() if value})


def traces(case: Case, steps: int, like: list[int]) -> list[list[Event]]:
    """Of all warps of a block of a persistent kernel. ``like``: of each the one that executes the same, where known."""
    launches, regions = launched(case, steps)
    launch = next(each for each in launches if each.kernel.startswith("persistent_"))
    # Messages of `grid` lie in the workspace: any word but the absent one lets a wait end
    words = [Region(r.name, r.start, r.size, word=0x7FFFFFFF) if r.name == "workspace" else r for r in regions]
    told = [*lengths_of(case, steps, launches), *words]  # the first that has an address counts
    own = like or list(range(launch.threads // 32))
    walked = {warp: walk(launch, told, warp) for warp in set(own)}
    return messages([walked[warp] for warp in own], case.rung)


def lengths_of(case: Case, steps: int, launches: list[Launched]) -> list[Region]:
    """What a kernel in front wrote down of a packed sequence, whose rows have all steps: the work is that of padded."""
    if not case.packed:
        return []
    writes = next(each for each in launches if each.kernel.startswith("lengths_kernel"))
    lengths, offsets = np.full(case.batch, steps, np.int32), np.arange(steps + 1, dtype=np.int64) * case.batch
    at = np.frombuffer(writes.parameters[-16:], np.uint64)
    found = ("lengths", at[0], lengths), ("offsets", at[1], offsets)
    return [Region(name, int(start), content.nbytes, content.tobytes()) for name, start, content in found]


def alike(warps: list[list[Event]]) -> list[int]:
    """Of each warp the first one that executes the same."""
    return [next(v for v in range(w + 1) if warps[v] == warps[w]) for w in range(len(warps))]


def persistent(case: Case) -> dict:
    """Counts and cycles of a step of `block`, `cluster` and `grid`."""
    lengths, uniform = (LAPS, False) if case.rung == "grid" else (STEPS, True)
    runs = [traces(case, lengths[0], [])]
    runs += [traces(case, steps, alike(runs[0])) for steps in lengths[1:]]
    tallies = [[tally(events) for events in run] for run in runs]
    apart = lengths[1] - lengths[0]
    warps = [share(*pair, apart, uniform) for pair in zip(tallies[1], tallies[0], strict=True)]
    if warps != [share(*pair, apart, uniform) for pair in zip(tallies[2], tallies[1], strict=True)]:
        raise Unfit(f"{case.label}: later steps differ from earlier ones")
    remote = LATENCY["flag"] if case.rung == "grid" else LATENCY["remote"]
    blocks = [timeline.Block(run, remote) for run in runs[1:]]
    fewer, more = (block.run() for block in blocks)
    exchange = {"block": 0.0, "cluster": 0.1, "grid": 0.3}[case.rung]
    row = facts(warps, (more - fewer) / apart / CLOCK * 1e6, exchange)
    before, after = (spent(block, longest(warps), 0) for block in blocks)
    return {**row, "cycles": {part: round((after[part] - before[part]) / apart) for part in row["parts"]}}


def spent(block: timeline.Block, warp: int, first: int) -> dict[str, float]:
    """Cycles of a warp by part, from one of its events on; waiting counts where it ends."""
    found: dict[str, float] = defaultdict(float)
    starts = block.starts[warp]
    for n in range(max(first, 1), len(starts)):
        found[part_of(block.warps[warp][n].instruction.places)] += starts[n] - starts[n - 1]
    return found


def longest(warps: list[Counter]) -> int:
    """The warp with the most instructions."""
    return max(range(len(warps)), key=lambda warp: warps[warp]["all", ""])


def from_memory(case: Case, launch: Launched) -> Region:
    """The step that a recorded launch reads from memory: `step` has it among its parameters."""
    given = 24  # behind cell and sizes
    plain = [each for each in launched(Case("step", *case_key(case)), 64)[0] if each.kernel == launch.kernel]
    content = plain[1].parameters[given:-8]
    return Region("step", int.from_bytes(launch.parameters[-8:], "little"), len(content), content)


def case_key(case: Case) -> tuple:
    """All but the rung."""
    return case.cell, case.dtype, case.hidden, case.batch, case.way


def stepwise(case: Case) -> dict:
    """Counts and cycles of the kernel of a step of `step`, `graph` and `gemm`."""
    launches, regions = launched(case, 64)
    prefix = "gemm_" if case.rung == "gemm" else "step_"
    launch = [each for each in launches if each.kernel.startswith(prefix)][1]
    if case.rung == "graph":
        regions = [*regions, from_memory(case, launch)]
    warps = [walk(launch, regions, warp) for warp in range(launch.threads // 32)]
    early = [before_wait(events) for events in warps]
    block = timeline.Block(warps, 0)
    cycles = block.run() - (timeline.Block(early, 0).run() if all(early) else 0)
    blocks = launch.grid[0] * launch.grid[1] * launch.grid[2]
    tallies = [tally(events) for events in warps]
    if case.rung == "gemm":  # the library reads them once
        weights = len(CELLS[case.cell].gates) * case.hidden**2 * (2 if case.dtype == "bfloat16" else 4)
    else:
        places = ("from w_hh",) if case.way == "forward" else ("from workspace",)
        weights = blocks * sum(t["bytes", place] for t in tallies for place in places)
    exchange = {"step": LAUNCH, "graph": REPLAYED, "gemm": 2 * LAUNCH}[case.rung]
    body = max(cycles / CLOCK, weights / L2_RATE) if case.rung != "gemm" else cycles / CLOCK + weights / L2_RATE
    row = facts(tallies, exchange + body * 1e6, exchange, weights / L2_RATE * 1e6)
    most = longest(tallies)
    return {**row, "cycles": {part: round(n) for part, n in spent(block, most, len(early[most])).items()}}


def before_wait(events: list[Event]) -> list[Event]:
    """What a warp executes while the launch in front may still run."""
    waits = [n for n, event in enumerate(events) if event.instruction.name[0] == "ACQBULK"]
    return events[: waits[0]] if waits else []


def facts(warps: list[Counter], time: float, exchange: float, rate: float = 0.0) -> dict:
    """A row of the counts: the warp with the most instructions, and bytes of the whole block."""
    most = warps[longest(warps)]
    products = [sum(w["kind", "HMMA"] * 4 + w["part", "product"] * (w["kind", "HMMA"] == 0) for w in warps[k :: 4])
                for k in range(4)]  # fmt: skip
    busy = max(products) / CLOCK * 1e6
    moved: Counter = Counter()
    for counted in warps:
        moved.update({key[1]: n for key, n in counted.items() if key[0] == "bytes"})
    return {
        "warps": len(warps),
        "instructions": most["all", ""],
        "block": sum(counted["all", ""] for counted in warps),
        "parts": {key[1]: n for key, n in sorted(most.items()) if key[0] == "part"},
        "kinds": {key[1]: n for key, n in sorted(most.items()) if key[0] == "kind"},
        "bytes": dict(sorted(moved.items())),
        "us": round(time, 2),
        "floor_us": round(exchange + max(busy, rate), 2),
    }


def count(case: Case) -> dict:
    """A row of the counts."""
    return (stepwise if case.rung in ("step", "graph", "gemm") else persistent)(case)


# ------- what is kept and printed


def marks() -> dict[str, str]:
    """Fingerprints of what the counts were made from: the kernels, and how they are laid out."""
    return {file: fingerprint(ROOT / f"csrc/cuda/{file}.cu") for file in (*FILES, "geometry")}


def tables(rows: dict[str, dict]) -> str:
    """The counts as Markdown."""
    parts = ("inputs", "receive", "product", "sums", "gates", "send", "write", "loop")
    kinds = ("HMMA", "LDS", "STS", "LDG", "STG", "ST.async", "local", "SHFL", "MUFU", "BAR", "MEMBAR", "branch",
             "float", "integer", "off")  # fmt: skip
    head = ("instructions, predicted cycles", "warps", *parts, "instructions", "predicted us", "floor us")
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for label, row in rows.items():
        shown = [f"{n}, {row['cycles'].get(part, 0)}" if (n := row["parts"].get(part)) else "-" for part in parts]
        times = f"{row['us']:.2f}", f"{row['floor_us']:.2f}"
        lines.append("| " + " | ".join((label, str(row["warps"]), *shown, str(row["instructions"]), *times)) + " |")
    lines += ["", "| | " + " | ".join(kinds) + " | bytes of a block |", "|---" * (len(kinds) + 2) + "|"]
    for label, row in rows.items():
        moved = ", ".join(f"{name} {n}" for name, n in row["bytes"].items())
        lines.append(f"| {label} | " + " | ".join(str(row["kinds"].get(kind, 0)) for kind in kinds) + f" | {moved} |")
    return "\n".join(lines)


def page_with(rows: dict[str, dict]) -> str:
    """The page, with these tables in place of its own."""
    head, _, rest = PAGE.read_text(encoding="utf-8").partition("<!-- tables -->\n")
    return f"{head}<!-- tables -->\n{tables(rows)}\n<!-- end -->{rest.partition('<!-- end -->')[2]}"


def main() -> None:
    """Compare, or write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--write", action="store_true", help="bring the counts and the page up to date")
    what.add_argument("--none", action="store_true", help="count nothing: are the counts those of these sources?")
    parser.add_argument("--only", default="", help="print the rows whose label this expression matches, and stop")
    options = parser.parse_args()
    if options.only:
        found = {case.label: count(case) for case in cases() if re.search(options.only, case.label)}
        return print(tables(found))
    kept = json.loads(COUNTS.read_text())
    if options.none or not options.write:
        old = [file for file, mark in marks().items() if kept["files"].get(file) != mark]
        if options.none or old:
            return sys.exit(f"changed since they were counted: {', '.join(old)}" if old else None)
    for file in FILES:
        codes(file)  # compiled before the work is shared out
    with concurrent.futures.ProcessPoolExecutor(os.cpu_count()) as pool:
        rows = dict(zip((case.label for case in cases()), pool.map(count, cases()), strict=True))
    if options.write:
        COUNTS.write_text(json.dumps({"files": marks(), "rows": rows}, indent=1) + "\n")
        PAGE.write_text(page_with(rows), encoding="utf-8")
    elif rows != kept["rows"]:
        sys.exit("other counts: " + ", ".join(label for label in rows if rows[label] != kept["rows"].get(label)))


if __name__ == "__main__":
    main()
