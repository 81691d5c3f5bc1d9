"""What a call of the recurrent CUDA kernels launches, with which parameters, and the machine code of these kernels."""

from __future__ import annotations

import functools
import hashlib
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from machine_code import FLAGS, ROOT, fingerprint, readable
from sm90.listing import Code, kernels
from sm90.warp import Region
from toolkit import find

BUILD = ROOT / "build/critical_path"
FILES = ("persistent_bfloat16", "step_bfloat16", "gemm")


@dataclass(frozen=True)
class Case:
    """What is walked through: bf16 or fp32, H hidden units, B rows, padded or a packed sequence."""

    rung: str
    cell: str
    dtype: str
    hidden: int
    batch: int
    way: str
    packed: bool = False

    @property
    def label(self) -> str:
        """As a key of the counts."""
        sizes = f"H={self.hidden} B={self.batch}"
        return f"{self.rung} {self.cell} {self.dtype} {sizes} {self.way}" + " packed" * self.packed


@dataclass(frozen=True)
class Launched:
    """A kernel's launch with its parameters; a library GEMM has none."""

    kernel: str
    grid: tuple[int, int, int] = (1, 1, 1)
    threads: int = 0
    shared: int = 0
    cluster: int = 1
    parameters: bytes = b""


@functools.cache
def arguments() -> Path:
    """The program that writes down what the host code launches."""
    sources = [p for p in sorted((ROOT / "csrc/cuda").glob("*.cu"))]
    sources += [*sorted((ROOT / "csrc/emulation").glob("*.cpp")), ROOT / "csrc/cpu/cell_info.cpp",
                *sorted((ROOT / "tools/arguments").glob("*.cpp"))]  # fmt: skip
    mark = hashlib.sha256(b"".join(p.read_bytes() for p in sorted(ROOT.glob("csrc/**/*.[hc]*")) + sources))
    mark.update((ROOT / "tools/arguments/cuda/launch.h").read_bytes())
    program = BUILD / f"arguments-{mark.hexdigest()[:16]}"
    if not program.exists():
        BUILD.mkdir(parents=True, exist_ok=True)
        command = ["g++", "-std=c++20", "-O0", "-w", "-DFUSEDNN_EMULATE", "-Itools/arguments", "-Icsrc", "-x", "c++"]
        subprocess.run([*command, *map(str, sources), "-o", str(program)], cwd=ROOT, check=True)
    return program


@functools.cache
def launched(case: Case, steps: int) -> tuple[list[Launched], list[Region]]:
    """The launches of a call, and the tensors that they may touch."""
    layout = "packed" if case.packed else "padded"
    ask = [case.way, case.rung, case.cell, case.dtype, case.batch, steps, case.hidden, layout]
    done = subprocess.run([str(arguments()), *map(str, ask)], capture_output=True, text=True, check=True)
    launches, regions = [], []
    for line in done.stdout.splitlines():
        kind, name, *rest = line.split("\t")
        if kind == "tensor":
            regions.append(Region(name, int(rest[0]), int(rest[1])))
        elif rest:
            x, y, z = map(int, rest[0].split())
            numbers = [int(text) for text in rest[1:4]]
            launches.append(Launched(name, (x, y, z), numbers[0], numbers[1], numbers[2], bytes.fromhex(rest[4])))
        else:
            launches.append(Launched(name))
    return launches, regions


# ------- machine code


def instructions(listing: str) -> list[str]:
    """All instructions of a listing in their encoding."""
    return re.findall(r"/\* (0x[0-9a-f]{16}) \*/", listing)


@functools.cache
def codes(file: str) -> dict[str, Code]:
    """The kernels of a file by name, compiled with line numbers, which change no instruction."""
    source = ROOT / f"csrc/cuda/{file}.cu"
    kept = BUILD / f"{file}-{fingerprint(source)}.sass"
    if not kept.exists():
        nvcc, nvdisasm = find("nvcc"), find("nvdisasm")
        if nvcc is None or nvdisasm is None:
            sys.exit("critical path not counted: needs nvcc and nvdisasm")
        BUILD.mkdir(parents=True, exist_ok=True)
        listings = []
        for extra in ((), ("-lineinfo",)):
            cubin = kept.with_suffix(".cubin")
            subprocess.run([nvcc, *FLAGS, *extra, "-arch=sm_90a", "-cubin", str(source), "-o", str(cubin)], cwd=ROOT,
                           check=True)  # fmt: skip
            lines = ("-gi",) if extra else ()
            listings.append(subprocess.run([nvdisasm, "-c", "-hex", *lines, str(cubin)], capture_output=True, text=True,
                                           check=True).stdout)  # fmt: skip
            cubin.unlink()
        if instructions(listings[0]) != instructions(listings[1]):
            sys.exit(f"{file}: line numbers change the code")
        kept.write_text(listings[1])
    found = kernels(kept.read_text())
    names = readable(list(found))
    return {names[mangled]: code for mangled, code in found.items()}


@functools.cache
def code_of(kernel: str) -> Code:
    """A kernel's code, from whichever file has it."""
    for file in FILES:
        if kernel in codes(file):
            return codes(file)[kernel]
    sys.exit(f"{kernel} is in none of {', '.join(FILES)}")


_BOUNDS = r"__launch_bounds__\((?:[^()]|\([^()]*\))*\)"
_DEFINITION = re.compile(rf"(?:FUSEDNN_DEVICE|FUSEDNN_HD(?: static)?|{_BOUNDS})\s+[^;{{}}()]*?([~\w]+)\(")


@functools.cache
def functions(path: str) -> list[tuple[int, str]]:
    """The first line and the name of each device function of a file; some names are made unique."""
    text = Path(path).read_text() if path.startswith(str(ROOT)) else ""
    found = []
    for match in _DEFINITION.finditer(text):
        name, file = match[1], Path(path).name
        if name == "multiply":
            name = {"walk.h": "Walk.multiply", "residence.h": "Residence.multiply"}.get(file, name)
        if name == "finish" and file == "residence.h":
            name = "finish_sums"
        found.append((text.count("\n", 0, match.start()) + 1, name))
    return found


@functools.cache
def function_at(path: str, line: int) -> str:
    """The function that a line is in."""
    return next((name for first, name in reversed(functions(path)) if first <= line), "")
