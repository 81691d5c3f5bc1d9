"""The programs in bench/drivers that measure what lies below a recurrence: launches, barriers, meetings of threads."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parent.parent
SOURCES = ("bench/drivers/cpu_floors.cpp", "csrc/cpu/team.cpp", "csrc/cpu/workspace.cpp")
CPU_PROGRAM = ROOT / "build/floors/cpu_floors"
CUDA_PROGRAM = ROOT / "build/gpu/cuda/floors"  # where bench/gpu_suite.sh builds bench/drivers/floors.cu
TIMEOUT = 120


class Unavailable(Exception):
    """The program can't be had here; the message says why."""


def program(device: torch.device) -> Path:
    """The program of a device, compiled where that takes a moment.

    Raises:
        Unavailable: there is none, and no compiler for it.
    """
    if device.type == "cuda":
        if not CUDA_PROGRAM.exists():
            raise Unavailable("bench/drivers/floors.cu is not built; bench/gpu_suite.sh builds it")
        return CUDA_PROGRAM
    sources = [ROOT / name for name in SOURCES]
    newest = max(path.stat().st_mtime for path in sources)
    if not CPU_PROGRAM.exists() or CPU_PROGRAM.stat().st_mtime < newest:
        compiler = os.environ.get("CXX") or next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)
        if compiler is None:
            raise Unavailable("needs a C++ compiler")
        CPU_PROGRAM.parent.mkdir(parents=True, exist_ok=True)
        flags = ["-std=c++20", "-O2", "-fopenmp", f"-I{ROOT / 'csrc'}"]
        done = subprocess.run([compiler, *flags, *map(str, sources), "-o", str(CPU_PROGRAM)], capture_output=True)
        if done.returncode:
            raise Unavailable("the C++ compiler refuses bench/drivers/cpu_floors.cpp")
    return CPU_PROGRAM


def measured(program: Path, threads: int) -> list[dict[str, Any]]:
    """What a program printed: a floor each, with microseconds and what it belongs to."""
    done = subprocess.run([program, str(threads)] if program == CPU_PROGRAM else [program], capture_output=True,
                          text=True, timeout=TIMEOUT, check=True)  # fmt: skip
    return floors(done.stdout)


def floors(text: str) -> list[dict[str, Any]]:
    """The lines of a program that are floors; its first may name the device."""
    rows = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    return [row for row in rows if "floor" in row]
