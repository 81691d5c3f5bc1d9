"""Facts about this machine and this installation, for issues and result files."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path

import torch

from . import native


def cpu_model() -> str:
    """The processor's own name, as far as the system tells."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def device_name(device: torch.device) -> str:
    """The name of a GPU, or of the processor."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_model()


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def facts() -> dict[str, str]:
    """Name and value of each fact; no host name, no user name, no path."""
    from .triton_kernels import status

    built = native.MODULE
    found = {
        "fusednn": _version("fusednn"),
        "python": f"{platform.python_version()} on {platform.system()} {platform.machine()}",
        "torch": f"{torch.__version__} ({torch.get_num_threads()} threads)",
        "triton": status(),
        "cpu": f"{cpu_model()} ({os.cpu_count()} cores)",
    }
    if built is None:
        found["kernels"] = f"none compiled: plain PyTorch runs; {native.HOW_TO_BUILD}"
    else:
        found.update({f"kernels {key}": str(value) for key, value in built.build_info().items()})
    if torch.cuda.is_available():
        major, minor = torch.cuda.get_device_capability()
        found["gpu"] = f"{torch.cuda.get_device_name()} (sm_{major}{minor}, CUDA {torch.version.cuda})"
    elif torch.version.cuda:
        found["gpu"] = f"none visible to torch, which was built for CUDA {torch.version.cuda}"
    else:
        found["gpu"] = "torch is a CPU build; for a GPU install torch with CUDA, then run `make build`"
    return found


def report() -> str:
    """The facts as aligned lines."""
    rows = facts()
    width = max(map(len, rows))
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows.items())
