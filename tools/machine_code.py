"""What the compiler made of every CUDA kernel, on every architecture: the table that occupancy and the tests read.

``python tools/machine_code.py`` compiles ``csrc/cuda`` for each architecture and compares registers, shared memory,
spills and tensor-core instructions with ``pyext/fusednn/machine_code.json``; ``--write`` brings the table up to date.
Threads and dynamic shared memory are what the host code launches them with. Needs nvcc, cuobjdump from the toolkit or
from Triton's wheel, and `make build emulated`; no GPU.
"""

from __future__ import annotations

import argparse
import concurrent.futures
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
        from fusednn.kernels import LIBRARY_GEMM, Sizes, launches
        from fusednn.native import COMPILED_DEVICES, MODULE
        from fusednn.plan import COMPILED_DTYPES, STRATEGIES, Request

    assert MODULE is not None and COMPILED_DEVICES
    shapes: dict[str, dict[str, int]] = {}
    sizes = [Sizes(2, 3, hidden, proj) for hidden in (48, 512) for proj in (0, 24)]
    calls = itertools.product(MODULE.cells(), COMPILED_DTYPES, (False, True), sizes)
    for cell, dtype, tf32, size in calls:
        asks = Request(cell["name"], "cpu", dtype, projection=size.proj > 0, hidden=size.hidden, tf32=tf32)
        if size.proj and not cell["cell_state"]:
            continue
        for strategy in (s.name for s in STRATEGIES if s.cuda and not s.refuse(asks)):
            found = launches(cell["name"], dtype, strategy, size, training=True, tf32=tf32)
            for launch in found or ():
                shape = {"threads": launch.threads, "dynamic": launch.dynamic}
                if launch.kernel == LIBRARY_GEMM:
                    continue
                if launch.kernel.startswith("persistent_"):
                    known = shapes.setdefault(launch.kernel, shape)
                    shapes[launch.kernel] = {name: max(known[name], shape[name]) for name in shape}
                elif shapes.setdefault(launch.kernel, shape) != shape:
                    sys.exit(f"{launch.kernel} is launched with {shape} and with {shapes[launch.kernel]}")
    return shapes


def measure() -> dict:
    """The table of this toolkit."""
    sources = sorted((ROOT / "csrc/cuda").rglob("*.cu"))
    nvcc = find("nvcc")
    assert nvcc is not None
    version = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout
    kernels: dict[str, dict] = {}
    shapes = launched()
    with tempfile.TemporaryDirectory() as folder, concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        jobs = {
            (source, architecture): pool.submit(compile_one, source, architecture, Path(folder))
            for source in sources
            for architecture in ARCHITECTURES
        }
        for (_, architecture), job in jobs.items():
            facts = job.result()
            names = readable(list(facts)) if facts else {}
            for mangled, fact in facts.items():
                kernels.setdefault(names[mangled], {**shapes.get(names[mangled], {})})[architecture] = fact
    release = re.search(r"release (\S+),", version)
    return {"nvcc": release[1] if release else version, "kernels": dict(sorted(kernels.items()))}


def text_of(table: dict) -> str:
    """The table as JSON with a line a fact, for readable differences."""
    blocks = []
    for name, facts in table["kernels"].items():
        lines = [f"   {json.dumps(key)}: {json.dumps(fact)}" for key, fact in facts.items()]
        blocks.append(f"  {json.dumps(name)}: {{\n" + ",\n".join(lines) + "\n  }")
    return f'{{\n "nvcc": {json.dumps(table["nvcc"])},\n "kernels": {{\n' + ",\n".join(blocks) + "\n }\n}\n"


def differences(kept: dict, found: dict) -> list[str]:
    """What the table says otherwise; registers and shared memory only where the compiler is the table's."""
    lines = [f"{name}: not in the table" for name in found["kernels"].keys() - kept["kernels"].keys()]
    lines += [f"{name}: in the table, not in the code" for name in kept["kernels"].keys() - found["kernels"].keys()]
    same = kept["nvcc"] == found["nvcc"]
    for name in found["kernels"].keys() & kept["kernels"].keys():
        for key, fact in found["kernels"][name].items():
            old = kept["kernels"][name].get(key)
            if fact != old and (same or not key.startswith("sm_")):
                lines.append(f"{name}, {key}: {old} in the table, {fact} in the code")
    return sorted(lines)


def faults(table: dict) -> list[str]:
    """Kernels that break a rule: launched by something, no spills, tensor cores where the number form has them."""
    lines = []
    for name, facts in table["kernels"].items():
        wants_mma = name.startswith(("step_", "persistent_")) and any(form in name for form in ("Bf16", "Fp16", "Tf32"))
        if "threads" not in facts:
            lines.append(f"{name}: compiled, and nothing launches it")
        for architecture, fact in facts.items():
            if not architecture.startswith("sm_"):
                continue
            if fact["spills"]:
                lines.append(f"{name} on {architecture}: {fact['spills']} bytes of spills")
            if bool(fact["mma"]) != wants_mma:
                lines.append(f"{name} on {architecture}: tensor-core instructions {fact['mma'] or 'missing'}")
    return lines


def main() -> None:
    """Compare, or write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="bring the table up to date")
    options = parser.parse_args()
    missing = [program for program in ("nvcc", "cuobjdump", "c++filt") if find(program) is None]
    if missing:
        sys.exit(f"machine code not checked: {', '.join(missing)} not found")
    found = measure()
    if options.write:
        TABLE.write_text(text_of(found))
    kept = json.loads(TABLE.read_text())
    wrong = differences(kept, found) + faults(found)
    print(f"machine code: {len(found['kernels'])} kernels for {', '.join(ARCHITECTURES)}, nvcc {found['nvcc']}")
    if wrong:
        sys.exit("\n".join(wrong))


if __name__ == "__main__":
    main()
