"""Facts about the machine that a reader needs to judge a figure; no host name, no paths."""

from __future__ import annotations

import os
import platform
import re
from typing import Any

import psutil
import torch


def _cpu_model() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as info:
            for line in info:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_model()


def slug(name: str) -> str:
    """A device name as a folder name."""
    name = re.sub(r"\((r|tm)\)|@|\bcpu\b|\bprocessor\b", " ", name.lower())
    return re.sub(r"[^a-z0-9.]+", "-", name).strip("-.") or "unknown"


def _fusednn() -> dict[str, Any]:
    """Version of fusednn, and compiler and instruction set of its kernels."""
    out: dict[str, Any] = {"version": None, "compiler": None, "isa": None, "note": None}
    try:
        import fusednn
        from fusednn import environment
    except ImportError as error:
        return {**out, "note": f"not importable: {type(error).__name__}"}
    found = environment.facts()
    names = {"compiler": "kernels compiler", "isa": "kernels isa", "note": "kernels"}
    return {**out, "version": fusednn.__version__, **{name: found.get(key) for name, key in names.items()}}


def facts(device: torch.device) -> dict[str, Any]:
    """``machine_info`` of the results file."""
    out: dict[str, Any] = {
        "device": device.type,
        "device_name": device_name(device),
        "cpu_model": _cpu_model(),
        "cpu_count": os.cpu_count(),
        "cores_physical": psutil.cpu_count(logical=False),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "torch_threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "torch_isa": torch.backends.cpu.get_cpu_capability(),
        "python": platform.python_version(),
        "system": platform.system(),
        "machine": platform.machine(),
        "fusednn": _fusednn(),
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        out.update(
            sm=f"{properties.major}.{properties.minor}",
            multiprocessors=properties.multi_processor_count,
            device_memory_gib=round(properties.total_memory / 2**30, 1),
            cuda=torch.version.cuda,
            cudnn=torch.backends.cudnn.version(),
        )
    return out
