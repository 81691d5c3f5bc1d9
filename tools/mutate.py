"""Remove every wait, fence and barrier of the CUDA kernels in turn: the C++ tests must notice each time.

The kernels are judged by `test_recurrent` on their rungs, the exchange of the persistent ones by `test_persistent`,
what is replayed by `test_replay`, the primitives by `test_primitives`, all in the emulation; `tools/mutate.py kernels`
leaves out the primitives, and `tools/mutate.py step` takes the rungs `step` and `gemm` alone, `tools/mutate.py layers`
what stands between layers that walk together, judged by `test_wavefront`. There, and for the ring of `grid`, a mutant
may be a change of the text. Needs `make cpp` before.
Only what a mutant touches is compiled again; each runs under several seeds of the scheduler until one of them fails.
Prints every mutant with its verdict, and exits non-zero where one survives.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BUILT = ROOT / "build/cpp"
SEEDS = (1, 2, 3, 4, 5)
CALLS = re.compile(
    r"\b(?:block_sync|warp_sync|named_sync|named_arrive|dependency_wait|copy_wait<\w+>|copy_commit|fence_gpu|grid_sync"
    r"|cluster_sync|cluster_arrive|cluster_wait|mbarrier_init_fence|mbarrier_expect|mbarrier_arrive"
    r"|emulation::(?:land_stores|acquire|copy_wait|copy_commit|barrier_sync|barrier_arrive|mbarrier_expect|mbarrier_arrive"
    r"|mbarrier_init_fence|cluster_arrive|cluster_wait|dependency_wait))\([^;{}]*\);"
    r"|while \(!?(?:load_acquire|mbarrier_try)\([^;{}]*(?:;|\{\s*\})"
    r"|while \(lost_ &&[^;{}]*;|while \(!arrived\(\) && !lost_\) \{[^{}]*\}"
)
COMPILE = (os.environ.get("CXX", "c++"), "-x", "c++", "-std=c++20", "-O1", "-w", "-DFUSEDNN_EMULATE", "-fopenmp")


@dataclass(frozen=True)
class Mutant:
    """One removed call, or change."""

    path: Path  # in csrc
    line: int
    call: str
    text: str  # of the whole file without it


@dataclass(frozen=True)
class Suite:
    """A test program: the sources that a mutant may change, and the runs that may fail."""

    program: str
    sources: tuple[Path, ...]
    tests: tuple[str, ...]
    strategies: tuple[str, ...] = ("",)


KERNELS = Suite(
    "test_recurrent",
    tuple(p.relative_to(ROOT) for p in sorted((ROOT / "csrc/cuda").glob("*.cu"))),
    ("agrees_with_plain_loops_at_odd_sizes", "every_schedule"),
    ("step", "gemm"),
)
EXCHANGE = Suite("test_persistent", (Path("csrc/tests/test_persistent.cpp"), Path("csrc/cuda/ring.cu")), ("messages",))
PERSISTENT = Suite("test_recurrent", KERNELS.sources, ("every_schedule",), ("cluster", "grid", "block"))
ODD_SIZES = Suite("test_recurrent", KERNELS.sources, KERNELS.tests[:1], ("grid",))
REPLAY = Suite("test_replay", KERNELS.sources, ("replays_give_the_bits_of_single_steps_for",))
LAYERS = Suite("test_wavefront", KERNELS.sources, ("every_schedule", "agree_with_plain_loops"))
NORM = Suite("test_recurrent", KERNELS.sources, ("options_agree",), ("gemm",))
PRIMITIVES = Suite("test_primitives", (Path("csrc/tests/test_primitives.cpp"),), ("",))
SUITES = (KERNELS, EXCHANGE, PERSISTENT, ODD_SIZES, REPLAY, LAYERS, NORM, PRIMITIVES)

_CLEARS = "store_relaxed(mail(n + kRing / 2, channel) + place, absent());"
CHANGES = {  # name: the file in csrc, a text that stands in it once, what takes its place, and who must notice
    "any wait for the layer below": (
        "cuda/exchange.h",
        "come &= has_come(got[b]);",
        "come &= has_come(got[b]) || channel.sender != track;",
        LAYERS,
    ),
    "messages that are kept": ("cuda/geometry.cu", "depth_mask = kept ? ~0u", "depth_mask = kept ? 1u", LAYERS),
    "sums in places of their own": ("cuda/walk.h", "sums(turn_ ^ 1) + z.sums_below", "sums(turn_ ^ 1)", LAYERS),
    "a look at the first word": ("cuda/exchange.h", "word[0] != kAbsent && ", "", EXCHANGE),
    "a look at the second word": ("cuda/exchange.h", "word[1] != kAbsent && ", "", EXCHANGE),
    "a look at the third word": ("cuda/exchange.h", "word[2] != kAbsent && ", "", EXCHANGE),
    "a look at the fourth word": ("cuda/exchange.h", " && word[3] != kAbsent", "", EXCHANGE),
    "another NaN for that of all ones": ("cuda/exchange.h", "word = word < kAbsent ? word : kAbsent - 1", "", EXCHANGE),
    "the receiver's half of the fence": ("cuda/exchange.h", "fence_gpu();", "emulation::land_stores();", EXCHANGE),
    "the sender's half of the fence": ("cuda/exchange.h", "fence_gpu();", "emulation::acquire();", EXCHANGE),
    "clearing": ("cuda/exchange.h", _CLEARS, ";", EXCHANGE),
    "clearing behind all readers": ("cuda/exchange.h", _CLEARS, _CLEARS.replace("+ kRing / 2", "- 1"), EXCHANGE),
    "clearing half a ring ahead": ("cuda/exchange.h", _CLEARS, _CLEARS.replace("+ kRing / 2", "+ 2"), EXCHANGE),
    "words that are absent at first": ("cuda/ring.cu", "sent ? absent() : Bytes16", "Bytes16", EXCHANGE),
    "zeros where no unit sends": ("cuda/ring.cu", "{{0, 0, 0, 0}}", "{{~1u, ~1u, ~1u, ~1u}}", ODD_SIZES),
}


def mutants() -> list[Mutant]:
    """One for each wait, fence and barrier; of a definition's own name there is none."""
    found = []
    for path in sorted((ROOT / "csrc/cuda").rglob("*.*")):
        text = path.read_text()
        for match in CALLS.finditer(text):
            line = text.count("\n", 0, match.start()) + 1
            without = text[: match.start()] + ";" + text[match.end() :]
            found.append(Mutant(path.relative_to(ROOT), line, " ".join(match.group().split()), without))
    for name, (file, old, new, _) in CHANGES.items():
        path = ROOT / "csrc" / file
        text = path.read_text()
        assert text.count(old) == 1, f"{file} has {old!r} {text.count(old)} times"
        line = text.count("\n", 0, text.index(old)) + 1
        found.append(Mutant(path.relative_to(ROOT), line, name, text.replace(old, new)))
    return found


def depends_on(source: Path, path: Path) -> bool:
    """Whether a source is, or includes, a file."""
    command = [*COMPILE, "-Icsrc", "-MM", str(source)]
    listing = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return str(path) in listing.split()


def build(suite: Suite, mutant: Mutant, folder: Path) -> Path:
    """The test program with the mutant in it."""
    shutil.copytree(ROOT / "csrc", folder / "csrc")
    (folder / mutant.path).write_text(mutant.text)
    folders = [BUILT / f"CMakeFiles/{target}.dir" for target in (suite.program, "fusednn_emulated")]
    objects = {p.name.removesuffix(".o"): p for where in folders for p in where.rglob("*.o")}

    def compile_again(source: Path) -> tuple[str, Path]:
        target = folder / f"{source.name}.o"
        command = [*COMPILE, "-Icsrc", "-c", str(source), "-o", str(target)]
        subprocess.run(command, cwd=folder, check=True)
        return source.name, target

    stale = [source for source in suite.sources if depends_on(source, mutant.path)]
    assert stale, f"no source of {suite.program} includes {mutant.path}"
    objects |= dict(map(compile_again, stale))
    program = folder / "test"
    parts = [*map(str, objects.values()), str(BUILT / "libfusednn_cpu.a")]
    subprocess.run([COMPILE[0], *parts, "-fopenmp", "-o", str(program)], check=True)
    return program


def killer(suite: Suite, program: Path) -> str | None:
    """The first run that fails, or None."""
    for seed in SEEDS:
        for test in suite.tests:
            for strategy in suite.strategies:
                environment = {**os.environ, "FUSEDNN_TEST_STRATEGY": strategy, "FUSEDNN_EMULATE_SEED": str(seed)}
                done = subprocess.run([program, test], env=environment, capture_output=True, timeout=600)
                if done.returncode:
                    return " ".join(filter(None, (suite.program, test, strategy, f"seed {seed}")))
    return None


def suite_of(mutant: Mutant) -> Suite:
    """Who must notice."""
    if mutant.call in CHANGES:
        return CHANGES[mutant.call][3]
    if mutant.path.parent.name == "primitives":
        return PRIMITIVES
    if mutant.path.name == "exchange.h":
        return EXCHANGE
    if mutant.path.name == "norm.cu":
        return NORM
    if (
        mutant.path.name == "replay.cu" or "return ;" in mutant.text
    ):  # a recorded step without rows waits and does nothing
        return REPLAY
    return PERSISTENT if mutant.path.name.startswith(("walk", "persistent")) else KERNELS


def judge(mutant: Mutant) -> str | None:
    """What kills it, or None."""
    suite = suite_of(mutant)
    with tempfile.TemporaryDirectory() as folder:
        return killer(suite, build(suite, mutant, Path(folder)))


def main() -> None:
    """Judge every mutant."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", choices=("all", "kernels", "step", "layers"), default="all")
    judges = {"all": SUITES, "kernels": SUITES[:-1], "step": (KERNELS, NORM), "layers": (LAYERS,)}
    asked = judges[parser.parse_args().what]
    every, survivors = [m for m in mutants() if suite_of(m) in asked], 0
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        for mutant, found in zip(every, pool.map(judge, every), strict=True):
            survivors += found is None
            verdict = f"killed by {found}" if found else "SURVIVED"
            print(f"{mutant.path}:{mutant.line} without {mutant.call}: {verdict}", flush=True)
    if survivors:
        sys.exit(f"{survivors} mutants survived")


if __name__ == "__main__":
    main()
