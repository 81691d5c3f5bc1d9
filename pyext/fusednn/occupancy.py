"""How many blocks of a kernel fit on one multiprocessor of a GPU, and what stops one more.

The rules are those of NVIDIA's occupancy calculator (``cuda_occupancy.h``, CUDA 13), written out for the compute
capabilities that fusednn's kernels are compiled for; a test compares them with that header. Nothing here needs a GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

WARP = 32  # threads
SCHEDULERS = 4  # a multiprocessor's, each with a quarter of the registers
REGISTERS = 64 * 1024  # a multiprocessor's, and the most a block may hold
REGISTER_GRAIN = 256  # registers, given to one warp at a time
SHARED_GRAIN = 128  # bytes
SHARED_RESERVED = 1024  # bytes of each block that the system keeps


@dataclass(frozen=True)
class Capability:
    """Limits of one multiprocessor.

    Attributes:
        warps: resident at once.
        blocks: resident at once.
        shared: bytes of shared memory for all blocks.
        shared_block: bytes that one block may ask for.
    """

    warps: int
    blocks: int
    shared: int
    shared_block: int


CAPABILITIES = {
    "8.0": Capability(64, 32, 164 * 1024, 163 * 1024),
    "8.6": Capability(48, 16, 100 * 1024, 99 * 1024),
    "8.9": Capability(48, 24, 100 * 1024, 99 * 1024),
    "9.0": Capability(64, 32, 228 * 1024, 227 * 1024),
    "10.0": Capability(64, 32, 228 * 1024, 227 * 1024),
    "12.0": Capability(48, 24, 100 * 1024, 99 * 1024),
}


@dataclass(frozen=True)
class Gpu:
    """A GPU by name: its compute capability, its multiprocessors, and the architecture whose machine code it runs."""

    name: str
    capability: str
    multiprocessors: int
    architecture: str


GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu("A100", "8.0", 108, "sm_80"),
        Gpu("A10", "8.6", 72, "sm_80"),
        Gpu("L40S", "8.9", 142, "sm_80"),
        Gpu("RTX 4090", "8.9", 128, "sm_80"),
        Gpu("H100", "9.0", 132, "sm_90a"),
        Gpu("H200", "9.0", 132, "sm_90a"),
        Gpu("B200", "10.0", 148, "sm_100"),
        Gpu("RTX 5090", "12.0", 170, "sm_120"),
    )
}


@dataclass(frozen=True)
class Occupancy:
    """Blocks and warps resident on one multiprocessor, the share of the warps it could hold, and the limiter."""

    blocks: int
    warps: int
    share: float
    limiter: str


def _up(value: int, grain: int) -> int:
    return -(-value // grain) * grain


def occupancy(gpu: Gpu, threads: int, registers: int, shared: int) -> Occupancy:
    """Theoretical occupancy of a kernel.

    Args:
        gpu: one of ``GPUS``.
        threads: of a block.
        registers: of a thread.
        shared: bytes of a block, static and dynamic.

    Returns:
        What is resident on one multiprocessor if the grid is large enough. The limiter is the first of blocks, warps,
        registers and shared memory that allows no further block; 0 blocks mean that the kernel cannot be launched.

    Raises:
        ValueError: a block without threads or of more than 1,024, or negative resources.
    """
    if not 1 <= threads <= 1024 or registers < 0 or shared < 0:
        raise ValueError(
            "expected 1 to 1024 threads and resources of at least 0,"
            f" got {threads} threads, {registers} registers, {shared} bytes"
        )
    limits = CAPABILITIES[gpu.capability]
    warps = _up(threads, WARP) // WARP
    of_warp = _up(registers * WARP, REGISTER_GRAIN)
    of_block = of_warp * _up(warps, SCHEDULERS)
    by_registers = limits.blocks
    if of_warp:
        by_registers = REGISTERS // SCHEDULERS // of_warp * SCHEDULERS // warps if of_block <= REGISTERS else 0
    by_shared = limits.shared // _up(shared + SHARED_RESERVED, SHARED_GRAIN) if shared <= limits.shared_block else 0
    allowed = {
        "blocks": limits.blocks,
        "warps": limits.warps // warps,
        "registers": by_registers,
        "shared memory": by_shared,
    }
    limiter = min(allowed, key=lambda name: allowed[name])
    blocks = allowed[limiter]
    return Occupancy(blocks, blocks * warps, blocks * warps / limits.warps, limiter)


def one_more(gpu: Gpu, threads: int, registers: int, shared: int) -> str:
    """What one more block on a multiprocessor would need of a kernel, with as many threads.

    Args:
        gpu: one of ``GPUS``.
        threads: of a block.
        registers: of a thread.
        shared: bytes of a block, static and dynamic.

    Returns:
        Such as ``registers <= 80``, ``shared <= 57344`` or both; ``fewer threads`` where warps or blocks are what
        limits.

    Raises:
        ValueError: as `occupancy`.

    Example:
        >>> one_more(GPUS["H200"], 256, 96, 0)
        'registers <= 80'
    """
    wanted = occupancy(gpu, threads, registers, shared).blocks + 1

    def most(limit: int, fits: Callable[[int], bool]) -> int | None:
        """The most of one resource that lets in the wanted blocks where the other is no matter."""
        return next((n for n in range(limit, -1, -1) if fits(n)), None)

    fewer = most(registers, lambda n: occupancy(gpu, threads, n, 0).blocks >= wanted)
    grains = most(_up(shared, SHARED_GRAIN) // SHARED_GRAIN,
                  lambda n: occupancy(gpu, threads, 0, min(shared, n * SHARED_GRAIN)).blocks >= wanted)  # fmt: skip
    if fewer is None or grains is None:
        return "fewer threads"
    less = min(shared, grains * SHARED_GRAIN)
    needs = [f"registers <= {fewer}"] * (fewer < registers) + [f"shared <= {less}"] * (less < shared)
    return ", ".join(needs)


def gpu_like(name: str) -> Gpu | None:
    """The GPU that a device name such as ``NVIDIA H200`` or ``NVIDIA A100-SXM4-80GB`` speaks of, or None."""
    words = name.replace("-", " ").split()
    return next((gpu for gpu in GPUS.values() if set(gpu.name.split()) <= set(words)), None)
