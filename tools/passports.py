"""What Triton's compiler makes of every attention kernel on every architecture: ``pyext/fusednn/passports.json``.

``python tools/passports.py`` compiles each row of ``triton_kernels/configurations.py`` for 16 bits ahead of time,
without a GPU, and compares registers, shared memory, spills, tensor-core instructions and the exponentials that run
under a product with the table; ``--write`` brings the table up to date. Either way it fails on spills, on more shared
memory than a block may have, on products that ptxas serialised, and on too little overlap. The rows for fp32 are not
checked: without TF32 there are no tensor cores, operands live in registers and spill; ``auto`` does not take them.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import io
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ.pop("TRITON_INTERPRET", None)  # before Triton is imported

import torch
import triton
from machine_code import find
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from fusednn.triton_kernels import backward, forward
from fusednn.triton_kernels.configurations import (
    ARCHITECTURES,
    HEAD_SIZES,
    KERNELS,
    WITH_DESCRIPTORS,
    Configuration,
    configuration,
)

TABLE = Path(__file__).resolve().parent.parent / "pyext/fusednn/passports.json"
FUNCTIONS = {
    "forward": forward.forward_kernel,
    "key_value": backward.key_value_kernel,
    "query": backward.query_kernel,
}
# Shared memory that one block may have, in bytes (CUDA C++ Programming Guide, table of compute capabilities).
SHARED = {80: 166912, 90: 232448, 100: 232448, 120: 101376}
# Exponentials between a product's issue and its wait, of those in the loop: the Hopper forward kernel, 16 bits.
OVERLAP = {64: 0.8, 128: 0.8}
SERIALISED = re.compile(r"\bC75\d\d\b")
_MMA = re.compile(r"\b([A-Z0-9]*MMA)\b")
_LABEL = re.compile(r"^\s*(\.L_x_\d+):")
_BRANCH = re.compile(r"\bBRA\b.*?(\.L_x_\d+)")


def signature(
    kernel: str, element: str, size: int, causal: bool, chosen: Configuration, precision: str, descriptors: bool
):
    """Types, constants and alignment of a plain call, causal or not: as the launcher's, with contiguous tensors."""
    absent = {"mask", "slopes", "sink", "dmask", "dslopes", "dropout", "sequences"}
    absent |= {"dq"} if kernel == "key_value" else set()
    constants = {
        "E": size, "EV": size, "BLOCK_E": size, "BLOCK_V": size, "BLOCK_M": chosen.BLOCK_M, "BLOCK_N": chosen.BLOCK_N,
        "FOLD": True, "PRECISION": precision, "UPCAST": False,
    }  # fmt: skip
    tiles = {"q", "k", "v", "grad_out"}
    types: dict = {}
    constexprs: dict = {}
    aligned: dict = {}
    for at, name in enumerate(FUNCTIONS[kernel].arg_names):
        if name in constants:
            types[name], constexprs[(at,)] = "constexpr", constants[name]
        elif name.removesuffix("_strides") in absent:
            types[name], constexprs[(at,)] = "constexpr", None
        elif descriptors and name.removesuffix("_strides") in tiles:
            if name.endswith("_strides"):
                types[name], constexprs[(at,)] = "constexpr", None
            else:
                rows = chosen.BLOCK_M if name in ("q", "grad_out") else chosen.BLOCK_N
                types[name] = f"tensordesc<{element}[1, 1, {rows}, {size}]>"
        elif name == "lse_strides":  # three, and not read
            types[name] = ("i32", "i32", "constexpr")
            constexprs[at, 2] = 1
        elif name.endswith("_strides"):
            types[name] = ("i32", "i32", "i32", "constexpr")
            constexprs[at, 3] = 1
            aligned |= {(at, k): [["tt.divisibility", 16]] for k in range(3)}
        elif name == "settings":  # scale, softcap, left, right, bottom_right
            types[name] = ("fp32", "constexpr", "constexpr", "i32" if causal else "constexpr", "i32")
            constexprs |= {(at, 1): None, (at, 2): None} | ({} if causal else {(at, 3): None})
        elif name in ("N", "GROUP", "M", "K"):
            types[name] = "i32"
        else:
            types[name] = "*fp32" if name in ("lse", "delta") else f"*{element}"
            aligned[(at,)] = [["tt.divisibility", 16]]
    return types, constexprs, aligned


def loops(listing: str) -> list[list[str]]:
    """Instructions of each innermost loop, in order of address."""
    lines, places, found = listing.splitlines(), {}, []
    for at, line in enumerate(lines):
        if label := _LABEL.match(line):
            places[label[1]] = at
        elif (branch := _BRANCH.search(line)) and branch[1] in places:
            found.append((places[branch[1]], at))
    inner = [(a, b) for a, b in found if not any(a <= c and d < b for c, d in found if (c, d) != (a, b))]
    return [lines[a:b] for a, b in inner]


def overlap(loop: list[str]) -> tuple[int, int]:
    """Exponentials that run while a warp-group product is in flight, and all."""
    flying, inside, total = False, 0, 0
    for _ in range(2):  # what was issued at the end of one turn flies at the start of the next
        inside = total = 0
        for line in loop:
            if "HGMMA" in line:
                flying = True
            elif wait := re.search(r"WARPGROUP\.DEPBAR\.LE gsb0, (0x[0-9a-f]+)", line):
                flying = int(wait[1], 16) > 0
            elif "MUFU.EX2" in line:
                total += 1
                inside += flying
    return inside, total


def passport(kernel: str, known: int, dtype: torch.dtype, size: int, causal: bool, precision: str, chosen) -> dict:
    """Compile one kernel and read its machine code."""
    element = {torch.float16: "fp16", torch.float32: "fp32"}[dtype]
    types, constexprs, aligned = signature(kernel, element, size, causal, chosen, precision, known in WITH_DESCRIPTORS)
    source = ASTSource(fn=FUNCTIONS[kernel], signature=types, constexprs=constexprs, attrs=aligned)
    options = {"num_warps": chosen.warps, "num_stages": chosen.stages, "enable_fp_fusion": True}
    log = io.StringIO()
    knobs.nvidia.dump_ptxas_log = True
    knobs.compilation.always_compile = True
    with contextlib.redirect_stdout(log):
        compiled = triton.compile(source, target=GPUTarget("cuda", known, 32), options=options)
    disassembler = find("nvdisasm")
    assert disassembler is not None
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        listing = subprocess.run([disassembler, "-c", file.name], capture_output=True, text=True, check=True).stdout
    said = log.getvalue()
    registers = re.search(r"Used (\d+) registers", said)
    spills = re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", said)
    assert registers is not None and spills is not None, said
    widest = max(loops(listing), key=lambda loop: sum("MUFU.EX2" in line for line in loop), default=[])
    waits = sum("WARPGROUP.DEPBAR" in line for line in widest)
    facts = {
        "configuration": list(chosen),
        "registers": int(registers[1]),
        "shared": compiled.metadata.shared,
        "spills": int(spills[1]) + int(spills[2]),
        "mma": dict(sorted(collections.Counter(_MMA.findall(listing)).items())),
        "exponentials": overlap(widest)[1],
    }
    if known == 90:
        facts["products to waits"] = [sum("HGMMA" in line for line in widest), waits]
        facts["exponentials in flight"] = overlap(widest)[0]
    if SERIALISED.search(said):
        facts["serialised"] = True
    return facts


def jobs(only: str):
    """Every row of the table for 16 bits with its name; ``only`` selects by a regular expression."""
    for kernel in KERNELS:
        for known in ARCHITECTURES:
            for size in HEAD_SIZES:
                for causal in (False, True):
                    name = f"{kernel} sm_{known} fp16 {size}{' causal' if causal else ''}"
                    if re.search(only, name):
                        chosen = configuration(kernel, known, torch.float16, size, causal)
                        yield name, (kernel, known, torch.float16, size, causal, "ieee", chosen)


def faults(table: dict) -> list[str]:
    """Kernels that break a rule."""
    lines = []
    for name, fact in table.items():
        kernel, known, number, size, *_ = name.split()
        limit = SHARED[int(known.removeprefix("sm_"))]
        if fact["spills"]:
            lines.append(f"{name}: {fact['spills']} bytes of spills")
        if fact["shared"] > limit:
            lines.append(f"{name}: {fact['shared']} bytes of shared memory, the device has {limit}")
        if fact.get("serialised"):
            lines.append(f"{name}: ptxas serialised its products")
        if not fact["mma"]:
            lines.append(f"{name}: no tensor-core instruction")
        if (kernel, known, number) == ("forward", "sm_90", "fp16") and int(size) in OVERLAP:
            share = fact["exponentials in flight"] / max(1, fact["exponentials"])
            if share < OVERLAP[int(size)]:
                lines.append(f"{name}: {share:.0%} of the exponentials run under a product")
    return lines


def main() -> None:
    """Compare, or write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="bring the table up to date")
    parser.add_argument("--only", default="", help="regular expression of names, such as 'forward sm_90 fp16 128'")
    options = parser.parse_args()
    kept = json.loads(TABLE.read_text()) if TABLE.exists() else {"triton": triton.__version__, "kernels": {}}
    found = {}
    for name, job in jobs(options.only):
        found[name] = passport(*job)
        print(name, json.dumps(found[name]), flush=True)
    same = kept["triton"] == triton.__version__
    wrong = [f"{n}: {kept['kernels'].get(n)} in the table, {f} in the code" for n, f in found.items()
             if same and f != kept["kernels"].get(n)]  # fmt: skip
    if options.write:
        rows = (kept["kernels"] if options.only else {}) | found
        TABLE.write_text(json.dumps({"triton": triton.__version__, "kernels": rows}, indent=1) + "\n")
        wrong = []
    wrong += faults(found)
    if wrong:
        sys.exit("\n".join(wrong))


if __name__ == "__main__":
    main()
