"""The CUDA kernels: what the compiler made of each, and what a sequence launches.

``machine_code.json`` is a table of the compiled kernels, compared with the compiler's output by ``make machine-code``,
so these questions need neither a GPU nor a CUDA toolkit.
"""

from __future__ import annotations

import functools
import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from . import native
from .occupancy import Gpu, Occupancy, occupancy

TABLE = Path(__file__).parent / "machine_code.json"
LIBRARY_GEMM = "library GEMM"


@dataclass(frozen=True)
class MachineCode:
    """A kernel on one architecture: registers of a thread, bytes of static shared memory, of stack and of spills, and
    how many tensor-core instructions of each kind stand in it.
    """

    registers: int
    shared: int
    stack: int
    spills: int
    mma: dict[str, int]


@dataclass(frozen=True)
class Kernel:
    """A kernel by name, the threads and bytes of dynamic shared memory of its blocks, and its code by architecture."""

    name: str
    threads: int
    dynamic: int
    code: dict[str, MachineCode]

    def occupancy(self, gpu: Gpu, dynamic: int | None = None) -> Occupancy:
        """Theoretical occupancy on a GPU; for a launch with ``dynamic`` bytes, where that is given."""
        code = self.code[gpu.architecture]
        return occupancy(
            gpu, self.threads, code.registers, code.shared + (self.dynamic if dynamic is None else dynamic)
        )


@functools.cache
def kernels() -> dict[str, Kernel]:
    """Every CUDA kernel by name."""
    table = json.loads(TABLE.read_text(encoding="utf-8"))["kernels"]
    out = {}
    for name, facts in table.items():
        code = {key: MachineCode(**value) for key, value in facts.items() if key.startswith("sm_")}
        out[name] = Kernel(name, facts["threads"], facts["dynamic"], code)
    return out


@dataclass(frozen=True)
class Launch:
    """Blocks of a kernel: the grid, threads and bytes of dynamic shared memory of a block. A library GEMM has none."""

    kernel: str
    grid: tuple[int, int, int]
    threads: int
    dynamic: int


@dataclass(frozen=True)
class Sizes:
    """Of one layer: B, T, H, the size of h where it is projected (else 0), directions in one call."""

    batch: int
    steps: int
    hidden: int
    proj: int = 0
    directions: int = 1


def launches(
    cell: str, dtype: str, strategy: str, sizes: Sizes, training: bool = False, tf32: bool = False
) -> Counter[Launch] | None:
    """What one layer launches for a sequence, forward and with ``training`` backward, how often each.

    Asks the host code of the kernels themselves, which walks through the sequence without launching. None where neither
    library of CUDA kernels (for GPUs or for the emulation) is loaded.
    """
    provider = "cuda" if "cuda" in native.COMPILED_DEVICES else "emulated" if native.EMULATED else None
    if native.MODULE is None or provider is None:
        return None
    found = native.MODULE.launches(
        provider, cell, dtype, strategy, sizes.batch, sizes.steps, sizes.hidden, sizes.proj, sizes.directions, training,
        tf32,
    )  # fmt: skip
    return Counter(Launch(each["kernel"], each["grid"], each["threads"], each["shared"]) for each in found)
