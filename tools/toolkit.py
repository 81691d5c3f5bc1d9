"""Where the programs of a CUDA toolkit are, and the architectures that the CUDA kernels are compiled for."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sysconfig
from pathlib import Path

ARCHITECTURES = ("80", "90a", "100", "120")


def toolkit() -> Path | None:
    """The folder of a CUDA toolkit, one with both ``bin/nvcc`` and ``include/cuda_runtime_api.h``, or None."""
    wheels = sorted(Path(sysconfig.get_paths()["platlib"]).glob("nvidia/cu[0-9]*"), reverse=True)
    nvcc = shutil.which("nvcc")
    places = [
        os.environ.get("CUDA_HOME"),
        *wheels,
        "/usr/local/cuda",
        Path(nvcc).resolve().parent.parent if nvcc else None,
    ]
    for place in filter(None, places):
        if (Path(place) / "bin/nvcc").exists() and (Path(place) / "include/cuda_runtime_api.h").exists():
            return Path(place)
    return None


def find(program: str) -> str | None:
    """A program: on PATH, in the toolkit, or in Triton's wheel."""
    home, triton = toolkit(), importlib.util.find_spec("triton")
    folders = [] if home is None else [str(home / "bin")]
    if triton is not None and triton.origin is not None:
        folders.append(str(Path(triton.origin).parent / "backends/nvidia/bin"))
    return shutil.which(program) or shutil.which(program, path=os.pathsep.join(folders))
