"""The kernels for GPUs: what the compiler made of each, and what a sequence launches.

``machine_code.json`` is a table of the CUDA kernels, compared with the compiler's output by ``make machine-code``,
``passports.json`` one of the Triton kernels, compared by ``make passports``; so these questions need neither a GPU nor
a compiler.
"""

from __future__ import annotations

import functools
import importlib.metadata
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from . import native
from .occupancy import Gpu, Occupancy, occupancy, one_more
from .triton_kernels.configurations import HEAD_SIZES

TABLE = Path(__file__).parent / "machine_code.json"
PASSPORTS = Path(__file__).parent / "passports.json"
LIBRARY_GEMM = "library GEMM"


@dataclass(frozen=True, kw_only=True)
class MachineCode:
    """A kernel on one architecture: registers of a thread, bytes of static shared memory, of stack and of spills, how
    many tensor-core instructions of each kind stand in it; threads and bytes of dynamic shared memory of a block.
    """

    registers: int
    shared: int
    stack: int
    spills: int
    mma: dict[str, int]
    threads: int
    dynamic: int = 0


@dataclass(frozen=True, kw_only=True)
class Passport(MachineCode):
    """A Triton kernel on one architecture.

    Attributes:
        configuration: sizes of its tiles, warps, stages of the pipeline of loads.
        products: warp-group products in a turn of the main loop, on Hopper.
        waits: for them, in a turn.
        exponentials: in a turn.
        in_flight: of these, how many run while a product is in flight.
        serialised: whether ptxas made each product wait for the one before.
        seconds: of CPU time that it took to compile.
        fingerprint: a hash over its source and how it is compiled.
        in_turns: of a kernel in Gluon, whether a group of warps hands its turn over right after its products.
    """

    configuration: dict[str, int]
    products: int
    waits: int
    exponentials: int
    in_flight: int
    serialised: bool
    seconds: float
    fingerprint: str
    in_turns: bool | None = None


@dataclass(frozen=True)
class Kernel:
    """A CUDA kernel by name, and its code by architecture."""

    name: str
    code: Mapping[str, MachineCode]

    def on(self, gpu: Gpu) -> MachineCode | None:
        """Its code on a GPU, or None where nothing was compiled for that one."""
        return self.code.get(gpu.architecture)

    def occupancy(self, gpu: Gpu, dynamic: int | None = None, threads: int | None = None) -> Occupancy | None:
        """Theoretical occupancy on a GPU; for a launch with ``dynamic`` bytes and ``threads``, where they are given."""
        code = self.on(gpu)
        if code is None:
            return None
        shared = code.shared + (code.dynamic if dynamic is None else dynamic)
        return occupancy(gpu, code.threads if threads is None else threads, code.registers, shared)

    def one_more(self, gpu: Gpu) -> str:
        """What one more block of it on a multiprocessor would need; nothing where it was not compiled for the GPU."""
        code = self.on(gpu)
        return "" if code is None else one_more(gpu, code.threads, code.registers, code.shared + code.dynamic)


@dataclass(frozen=True)
class TritonKernel(Kernel):
    """A Triton kernel: compiled where it runs, for that very GPU."""

    code: Mapping[str, Passport]

    def on(self, gpu: Gpu) -> Passport | None:
        """Its code on a GPU, or None where it has no passport for that capability."""
        return self.code.get("sm_" + gpu.capability.replace(".", ""))


def fits_text(kernel: Kernel, gpu: Gpu, dynamic: int | None = None, threads: int | None = None) -> str:
    """What a block uses, and how many of them a multiprocessor holds."""
    code, fits = kernel.on(gpu), kernel.occupancy(gpu, dynamic, threads)
    if code is None or fits is None:
        return f"; not compiled for {gpu.name}"
    shared = code.shared + code.dynamic if dynamic is None else dynamic
    return (
        f", {code.registers} registers, {shared / 1024:.3g} KiB; {gpu.name}: {fits.blocks} a multiprocessor,"
        f" {100 * fits.share:.3g}% of its warps, limited by {fits.limiter}"
    )


@functools.cache
def kernels() -> dict[str, Kernel]:
    """Every CUDA kernel by name."""
    table = json.loads(TABLE.read_text(encoding="utf-8"))["kernels"]
    out = {}
    for name, facts in table.items():
        shape = {key: facts[key] for key in ("threads", "dynamic")}
        code = {key: MachineCode(**value, **shape) for key, value in facts.items() if key.startswith("sm_")}
        out[name] = Kernel(name, code)
    return out


@functools.cache
def passport_tables() -> dict[str, dict[str, TritonKernel]]:
    """The Triton kernels by name, by version of Triton, the oldest first."""
    tables = json.loads(PASSPORTS.read_text(encoding="utf-8"))

    def kernel(name: str, facts: dict) -> TritonKernel:
        return TritonKernel(name, {known: Passport(**fact) for known, fact in facts.items() if "error" not in fact})

    return {version: {n: kernel(n, facts) for n, facts in table.items()} for version, table in tables.items()}


def passports() -> tuple[str, dict[str, TritonKernel]]:
    """A version of Triton, the installed one where it has a table and else the newest that has, and its kernels."""
    tables = passport_tables()
    try:
        installed = importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        installed = ""
    version = installed if installed in tables else list(tables)[-1]
    return version, tables[version]


def every() -> list[Kernel]:
    """CUDA kernels, then Triton kernels."""
    return [*kernels().values(), *passports()[1].values()]


def attention(
    dtype: str, size: int, hidden: bool, suited: bool, one_kernel: bool = False, rows: int | None = None,
    tf32: bool = True,
) -> list[str] | None:  # fmt: skip
    """Names of the kernels of an attention call without modifiers, or None where they have no passports.

    Args:
        dtype: ``float16``, ``bfloat16`` (the same code but for the types of its products), ``float32``.
        size: of a head or of a value, the larger.
        hidden: whether a causal mask or a window hides keys.
        suited: whether strides suit descriptors and wide loads.
        one_kernel: whether one kernel computes all gradients.
        rows: of the tile that holds the queries, where they are so few that their keys are split.
        tf32: whether products of float32 may be those of TF32.

    Returns:
        Names of forward (one, or split and merge), row term, and the gradients. A name stands for the head sizes up to
        its own.
    """
    number = {"float16": "fp16", "bfloat16": "fp16", "float32": "tf32" if tf32 else "fp32"}.get(dtype)
    limit = next((limit for limit in HEAD_SIZES if size <= limit), None)
    if number is None or limit is None:
        return None
    by = "" if suited else ", addresses"
    plain, label = f"{number}, {limit}{by}", f"{number}, {limit}{', causal' if hidden else ''}{by}"
    names = [f"attention_forward<{label}>"]
    if rows is not None:
        names = [f"attention_{kernel}<{number}, {limit}, {rows} rows>" for kernel in ("decode", "merge")]
    names.append(f"attention_row<{plain.replace('fp32', 'tf32')}>")  # it has no products: one passport for both
    if one_kernel:
        return [*names, f"attention_key_value<{label}, one kernel>"]
    return [*names, f"attention_key_value<{label}>", f"attention_query<{label}>"]


@dataclass(frozen=True)
class Launch:
    """Blocks of a kernel: the grid, threads and bytes of dynamic shared memory of a block. A library GEMM has none, nor
    the replay of recorded launches, which are told too.

    Attributes:
        cluster: blocks of a cluster.
        cooperative: whether all blocks are resident together.
        resident: clusters, or blocks without, that the GPU holds at once; 0 where nobody asked. In the emulation: an
            H200's.
        replayed: whether it is one of those that a replay makes.
    """

    kernel: str
    grid: tuple[int, int, int]
    threads: int
    dynamic: int
    cluster: int = 1
    cooperative: bool = False
    resident: int = 0
    replayed: bool = False


@dataclass(frozen=True)
class Sizes:
    """Of one layer: B, T, H, the size of h where it is projected (else 0), directions and their heads in one call.

    With several heads H and the size of h are those of one. With ``layers``: of each of those that walk together.
    """

    batch: int
    steps: int
    hidden: int
    proj: int = 0
    directions: int = 1
    heads: int = 1
    layers: int = 1


def launches(
    cell: str, dtype: str, strategy: str, sizes: Sizes, training: bool = False, tf32: bool = False,
    packed: bool = False, norm: bool = False,
) -> Counter[Launch] | None:  # fmt: skip
    """What one layer, or several together, launch: forward, and with ``training`` backward; how often each.

    Asks the host code of the kernels themselves, which walks through the sequence without launching. None where neither
    library of CUDA kernels (for GPUs or for the emulation) is loaded.

    Raises:
        ValueError: the strategy cannot serve the request, and why.
    """
    provider = "cuda" if "cuda" in native.COMPILED_DEVICES else "emulated" if native.EMULATED else None
    if native.MODULE is None or provider is None:
        return None
    found = native.MODULE.launches(
        provider, cell, dtype, strategy, sizes.batch, sizes.steps, sizes.hidden, sizes.proj, sizes.directions,
        sizes.heads, sizes.layers, training, tf32, packed, norm,
    )  # fmt: skip
    fields = ("kernel", "grid", "threads", "shared", "cluster", "cooperative", "resident", "replayed")
    return Counter(Launch(*(each[field] for field in fields)) for each in found)
