"""Compiled kernels of fusednn."""

from typing import TypedDict

class BuildInfo(TypedDict):
    compiler: str
    cplusplus: int
    openmp: bool
    isas_compiled: list[str]
    isas_supported: list[str]
    isa: str

class CellInfo(TypedDict):
    name: str
    gates: int
    saved: int
    cell_state: bool
    split: bool
    second_gates: int

class Launch(TypedDict):
    kernel: str  # as in machine_code.json, or "library GEMM"
    grid: tuple[int, int, int]
    threads: int  # of a block; 0 for a library GEMM
    shared: int  # bytes of a block, dynamic
    cluster: int
    programmatic: bool

def build_info() -> BuildInfo:
    """How this module was built, and the CPU instruction set it uses."""

def cells() -> list[CellInfo]:
    """The compiled cells, as the registry in csrc/cells has them."""

def set_isa(name: str) -> None:
    """Use this CPU instruction set from the next call on; "" is the best one. ValueError where the CPU lacks it."""

def load_provider(name: str, path: str) -> None:
    """Load the library of CUDA kernels ("cuda") or of the same kernels on the host ("emulated")."""

def launches(
    provider: str,
    cell: str,
    dtype: str,
    strategy: str,
    batch: int,
    steps: int,
    hidden: int,
    proj: int,
    directions: int,
    heads: int,
    layers: int,
    training: bool,
    tf32: bool,
    packed: bool,
    norm: bool,
) -> list[Launch]:
    """What a sequence would launch, in order, forward and with training backward; nothing runs. proj 0: none."""
