"""What the compiler made of every CUDA kernel, on every architecture: the table that occupancy and the tests read.

``python tools/machine_code.py`` compares registers, shared memory, spills and tensor-core instructions with
``pyext/fusednn/machine_code.json``. A fingerprint of each file in ``csrc/cuda``, with all that it includes, tells what
changed: those are compiled for each architecture, and of the others the quick ones for sm_90a; ``--all`` compiles
everything. A file that changed since its fingerprint fails until ``--write`` brings the table up to date. Threads and
dynamic shared memory are what the host code launches kernels with. Needs nvcc, cuobjdump from the toolkit or from
Triton's wheel, and `make build emulated`; no GPU. ``--none`` compiles nothing and needs none of them.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import hashlib
import itertools
import json
import os
import re
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import toolkit
from sass import products
from toolkit import find

ROOT = Path(__file__).resolve().parent.parent
TABLE = ROOT / "pyext/fusednn/machine_code.json"
ARCHITECTURES = tuple(f"sm_{number}" for number in toolkit.ARCHITECTURES)
FLAGS = ("-std=c++20", "-O3", "--expt-relaxed-constexpr", "-Icsrc")
ALWAYS = ("gemm", "lengths", "ring", "states")  # files that compile in a few seconds, on sm_90a

_INCLUDE = re.compile(r'^#include "(.+)"', re.MULTILINE)
_COMMENT = re.compile(r"\s*//.*|^\s*\n", re.MULTILINE)
_ENTRY = re.compile(r"Compiling entry function '(\S+)'")
_SPILL = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_USED = re.compile(r"Used (\d+) registers(?:.*?(\d+) bytes smem)?")
_FUNCTION = re.compile(r"^\s*Function : (\S+)", re.MULTILINE)


def readable(mangled: list[str]) -> dict[str, str]:
    """``step_forward<Lstm, float>`` for each mangled name."""
    shown = subprocess.run(["c++filt", *mangled], capture_output=True, text=True, check=True).stdout.splitlines()
    short = {}
    for name, text in zip(mangled, shown, strict=True):
        text = re.sub(r"(?:\bfusednn|\bcuda|\bcells|\(anonymous namespace\))::", "", text)
        depth, end = 0, len(text)
        for i, letter in enumerate(text):  # the parameter list starts at the first parenthesis outside <>
            depth += (letter == "<") - (letter == ">")
            if letter == "(" and depth == 0:
                end = i
                break
        short[name] = text[:end].removeprefix("void ")
    return short


def fingerprint(source: Path) -> str:
    """A hash of how a file is compiled, of its text and of all that it includes of csrc; comments do not count."""
    texts: dict[str, str] = {}

    def visit(path: Path) -> None:
        name = path.relative_to(ROOT / "csrc").as_posix()
        if name in texts:
            return
        texts[name] = _COMMENT.sub("", path.read_text(encoding="utf-8"))
        for included in _INCLUDE.findall(texts[name]):
            visit(ROOT / "csrc" / included)

    visit(source)
    whole = json.dumps([FLAGS, ARCHITECTURES, sorted(texts.items())])
    return hashlib.sha256(whole.encode()).hexdigest()[:16]


def fingerprints() -> dict[str, str]:
    """Of every file of CUDA kernels, by its name without the suffix."""
    return {source.stem: fingerprint(source) for source in sorted((ROOT / "csrc/cuda").glob("*.cu"))}


def compile_one(source: Path, architecture: str, folder: Path) -> dict[str, dict]:
    """Facts of each kernel of one file on one architecture, by mangled name."""
    nvcc, cuobjdump = find("nvcc"), find("cuobjdump")
    assert nvcc is not None and cuobjdump is not None
    cubin = folder / f"{source.stem}.{architecture}.cubin"
    command = [nvcc, *FLAGS, f"-arch={architecture}", "-cubin", "-Xptxas", "-v", str(source), "-o", str(cubin)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stderr}")
    facts: dict[str, dict] = {}
    for part in re.split(r"(?=ptxas info\s*: Compiling entry)", done.stderr):
        entry, spill, used = _ENTRY.search(part), _SPILL.search(part), _USED.search(part)
        if entry and spill and used:
            facts[entry[1]] = {
                "registers": int(used[1]),
                "shared": int(used[2] or 0),
                "stack": int(spill[1]),
                "spills": int(spill[2]) + int(spill[3]),
            }
    listing = subprocess.run([cuobjdump, "-sass", str(cubin)], capture_output=True, text=True, check=True).stdout
    pieces = _FUNCTION.split(listing)[1:]
    for name, code in zip(pieces[::2], pieces[1::2], strict=True):
        facts[name]["mma"] = products(code)
    return facts


def launched() -> dict[str, dict[str, int]]:
    """Threads and dynamic shared memory of each kernel, from what every cell, dtype and strategy launches.

    Those of the persistent kernels follow the sizes: the largest block stands for all.
    """
    os.environ["FUSEDNN_EMULATE"] = "1"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from fusednn.kernels import Sizes, launches
        from fusednn.native import COMPILED_DEVICES, MODULE
        from fusednn.plan import COMPILED_DTYPES, STRATEGIES, Request

    assert MODULE is not None and COMPILED_DEVICES
    shapes: dict[str, dict[str, int]] = {}
    sizes = [Sizes(2, 17, hidden, proj) for hidden in (48, 512) for proj in (0, 24)]
    flags = itertools.product((False, True), repeat=3)
    for cell, dtype, (tf32, packed, norm), size in itertools.product(MODULE.cells(), COMPILED_DTYPES, flags, sizes):
        asks = Request(cell["name"], "cpu", dtype, projection=size.proj > 0, hidden=size.hidden, tf32=tf32)
        if size.proj and not cell["cell_state"]:
            continue
        able = (s for s in STRATEGIES if s.cuda and not s.refuse(asks) and not (norm and "layer norm" not in s.options))
        for strategy in (s.name for s in able):
            found = launches(cell["name"], dtype, strategy, size, training=True, tf32=tf32, packed=packed, norm=norm)
            for launch in found or ():
                shape = {"threads": launch.threads, "dynamic": launch.dynamic}
                if launch.threads == 0:
                    continue
                if launch.kernel.startswith("persistent_"):
                    known = shapes.setdefault(launch.kernel, shape)
                    shapes[launch.kernel] = {name: max(known[name], shape[name]) for name in shape}
                elif shapes.setdefault(launch.kernel, shape) != shape:
                    sys.exit(f"{launch.kernel} is launched with {shape} and with {shapes[launch.kernel]}")
    return shapes


def compiler() -> str:
    """The release of nvcc."""
    nvcc = find("nvcc")
    assert nvcc is not None
    version = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout
    release = re.search(r"release (\S+),", version)
    return release[1] if release else version


def measure(jobs: list[tuple[str, str]]) -> dict[str, dict]:
    """Facts of the kernels of some files, each on an architecture: by kernel, the file and what was compiled."""
    kernels: dict[str, dict] = {}
    with tempfile.TemporaryDirectory() as folder, concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        running = {job: pool.submit(compile_one, ROOT / f"csrc/cuda/{job[0]}.cu", job[1], Path(folder)) for job in jobs}
        for (file, architecture), done in running.items():
            facts = done.result()
            names = readable(list(facts)) if facts else {}
            for mangled, fact in facts.items():
                kernels.setdefault(names[mangled], {"file": file})[architecture] = fact
    return kernels


def merged(kept: dict[str, dict], found: dict[str, dict], complete: set[str], shapes: dict) -> dict[str, dict]:
    """The kernels after a run: those of files that were compiled as found, the others as they were."""
    rest = {n: facts for n, facts in kept.items() if facts["file"] not in complete}
    fresh = {n: facts for n, facts in found.items() if facts["file"] in complete}
    whole = {n: {"file": facts["file"], **shapes.get(n, {}), **code(facts)} for n, facts in {**rest, **fresh}.items()}
    return dict(sorted(whole.items()))


def code(facts: dict) -> dict:
    """What of a kernel's row depends on the compiler, by architecture."""
    return {key: fact for key, fact in facts.items() if key.startswith("sm_")}


def text_of(table: dict) -> str:
    """The table as JSON with a line a fact, for readable differences."""
    files = [f"  {json.dumps(name)}: {json.dumps(fact)}" for name, fact in table["files"].items()]
    blocks = []
    for name, facts in table["kernels"].items():
        lines = [f"   {json.dumps(key)}: {json.dumps(fact)}" for key, fact in facts.items()]
        blocks.append(f"  {json.dumps(name)}: {{\n" + ",\n".join(lines) + "\n  }")
    parts = [json.dumps(table["nvcc"]), "{\n" + ",\n".join(files) + "\n }", "{\n" + ",\n".join(blocks) + "\n }"]
    named = zip(("nvcc", "files", "kernels"), parts, strict=True)
    return "{\n" + ",\n".join(f' "{name}": {part}' for name, part in named) + "\n}\n"


def stale(kept: dict, prints: dict[str, str]) -> list[str]:
    """Files whose kernels are not, or no longer, those of the table."""
    return sorted(file for file in kept["files"].keys() | prints.keys() if kept["files"].get(file) != prints.get(file))


def differences(kept: dict, kernels: dict[str, dict], found: dict[str, dict], same: bool) -> list[str]:
    """What the table says otherwise than the rows after this run, and, of what it compiled, than the ``found`` code.

    Code is compared only where the compiler is the ``same``.
    """
    lines = [f"{name}: not in the table" for name in kernels.keys() - kept["kernels"].keys()]
    lines += [f"{name}: in the table, not in the code" for name in kept["kernels"].keys() - kernels.keys()]
    for name in kernels.keys() & kept["kernels"].keys():
        old = kept["kernels"][name]
        facts = {key: fact for key, fact in kernels[name].items() if not key.startswith("sm_")}
        facts |= code(found.get(name, {})) if same else {}
        lines += [f"{name}, {key}: {old.get(key)} in the table, {fact} in the code" for key, fact in facts.items()
                  if fact != old.get(key)]  # fmt: skip
    return sorted(lines)


def faults(kernels: dict[str, dict]) -> list[str]:
    """Kernels that break a rule: launched by something, no spills, tensor cores where the number form has them."""
    lines = []
    for name, facts in kernels.items():
        wants_mma = name.startswith(("step_", "persistent_")) and any(form in name for form in ("Bf16", "Fp16", "Tf32"))
        if "threads" not in facts:
            lines.append(f"{name}: compiled, and nothing launches it")
        for architecture, fact in code(facts).items():
            if fact["spills"]:
                lines.append(f"{name} on {architecture}: {fact['spills']} bytes of spills")
            if bool(fact["mma"]) != wants_mma:
                lines.append(f"{name} on {architecture}: tensor-core instructions {fact['mma'] or 'missing'}")
    return lines


def main() -> None:
    """Compare, or write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--all", action="store_true", help="compile every file, changed or not")
    what.add_argument("--none", action="store_true", help="compile nothing: is the table up to date?")
    parser.add_argument("--write", action="store_true", help="bring the table up to date")
    options = parser.parse_args()
    kept, prints = json.loads(TABLE.read_text()), fingerprints()
    old = [f"{file}.cu: changed since its rows, tools/machine_code.py --write" for file in stale(kept, prints)]
    if options.none:
        sys.exit("\n".join(old) or None)
    missing = [program for program in ("nvcc", "cuobjdump", "c++filt") if find(program) is None]
    if missing:
        sys.exit(f"machine code not checked: {', '.join(missing)} not found")
    version = compiler()
    every, changed, shapes = options.all or (options.write and version != kept["nvcc"]), stale(kept, prints), launched()
    complete = {file for file in kept["files"].keys() | prints.keys() if every or file in changed}
    jobs = [(file, architecture) for file in prints for architecture in ARCHITECTURES
            if file in complete or (file in ALWAYS and architecture == "sm_90a")]  # fmt: skip
    found = measure(jobs)
    kernels = merged(kept["kernels"], found, complete, shapes)
    if options.write:
        kept, old = {"nvcc": version, "files": prints, "kernels": kernels}, []
        TABLE.write_text(text_of(kept))
    wrong = [*old, *differences(kept, kernels, found, version == kept["nvcc"]), *faults(kernels)]
    print(f"machine code: {len(jobs)} of {len(prints) * len(ARCHITECTURES)} compiled, {len(kernels)} kernels,"
          f" nvcc {version}")  # fmt: skip
    if wrong:
        sys.exit("\n".join(wrong))


if __name__ == "__main__":
    main()
