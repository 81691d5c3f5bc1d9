"""Remove every wait, fence and barrier of the CUDA kernels in turn: the C++ tests of the emulation must notice each time.

Needs `make cpp` before. Only what a mutant touches is compiled again; each runs under several seeds of the scheduler until
one of them fails. Prints every mutant with its verdict, and exits non-zero where one survives.
"""

from __future__ import annotations

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
TESTS = ("agrees_with_plain_loops_at_odd_sizes", "every_schedule")
WAITS = re.compile(
    r"\b(?:block_sync|warp_sync|named_sync|named_arrive|dependency_wait|copy_wait<\w+>|copy_commit|fence_gpu|grid_sync"
    r"|cluster_sync|cluster_arrive|cluster_wait|mbarrier_init_fence|mbarrier_expect|mbarrier_arrive)\([^;{}]*\);"
)
COMPILE = (os.environ.get("CXX", "c++"), "-x", "c++", "-std=c++20", "-O1", "-w", "-DFUSEDNN_EMULATE", "-fopenmp")


@dataclass(frozen=True)
class Mutant:
    """One removed call."""

    file: str
    line: int
    call: str
    text: str  # of the whole file without it


def mutants() -> list[Mutant]:
    """One for each wait, fence and barrier outside the primitives."""
    found = []
    for path in sorted((ROOT / "csrc/cuda").glob("*")):
        if path.suffix not in {".h", ".cu"}:
            continue
        text = path.read_text()
        for match in WAITS.finditer(text):
            line = text.count("\n", 0, match.start()) + 1
            without = text[: match.start()] + ";" + text[match.end() :]
            found.append(Mutant(path.name, line, match.group(), without))
    return found


def depends_on(source: Path, file: str) -> bool:
    """Whether a kernel source is, or includes, a file of csrc/cuda."""
    if source.name == file:
        return True
    listing = subprocess.run(
        [*COMPILE, f"-I{ROOT}/csrc", "-MM", str(source)], capture_output=True, text=True, check=True
    ).stdout
    return f"csrc/cuda/{file}" in listing


def build(mutant: Mutant, folder: Path) -> Path:
    """The test program with the mutant in it."""
    shutil.copytree(ROOT / "csrc", folder / "csrc")
    (folder / "csrc/cuda" / mutant.file).write_text(mutant.text)
    objects = {p.name.removesuffix(".o"): p for p in (BUILT / "CMakeFiles/fusednn_emulated.dir").rglob("*.o")}
    stale = [p for p in sorted((ROOT / "csrc/cuda").glob("*.cu")) if depends_on(p, mutant.file)]

    def compile_again(source: Path) -> tuple[str, Path]:
        target = folder / f"{source.name}.o"
        again = folder / "csrc/cuda" / source.name
        subprocess.run([*COMPILE, f"-I{folder}/csrc", "-c", str(again), "-o", str(target)], check=True)
        return source.name, target

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        objects |= dict(pool.map(compile_again, stale))
    program = folder / "test"
    tests = sorted((BUILT / "CMakeFiles/test_recurrent.dir").rglob("*.o"))
    parts = [*tests, *objects.values(), BUILT / "libfusednn_cpu.a"]
    subprocess.run([COMPILE[0], *map(str, parts), "-fopenmp", "-o", str(program)], check=True)
    return program


def killer(program: Path) -> str | None:
    """The first run that fails, or None."""
    for seed in SEEDS:
        for test in TESTS:
            for strategy in ("step", "gemm"):
                environment = {**os.environ, "FUSEDNN_TEST_STRATEGY": strategy, "FUSEDNN_EMULATE_SEED": str(seed)}
                done = subprocess.run([program, test], env=environment, capture_output=True, timeout=600)
                if done.returncode:
                    return f"{strategy}, seed {seed}, {test}"
    return None


def main() -> None:
    """Judge every mutant."""
    survivors = 0
    for mutant in mutants():
        with tempfile.TemporaryDirectory() as folder:
            found = killer(build(mutant, Path(folder)))
        survivors += found is None
        verdict = f"killed by {found}" if found else "SURVIVED"
        print(f"csrc/cuda/{mutant.file}:{mutant.line} without {mutant.call}: {verdict}", flush=True)
    if survivors:
        sys.exit(f"{survivors} mutants survived")


if __name__ == "__main__":
    main()
