"""Fused attention in Triton; installed as ``fusednn.triton_kernels``. Importing this alone does not import Triton."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os

# Whether calls take what ``fusednn tune`` chose on this machine. Read once: what runs must not change under a process.
TUNED = os.environ.get("FUSEDNN_TUNED", "0") == "1"


def status() -> str:
    """One line on Triton here: its version, and whether it compiles or interprets."""
    try:
        version = importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
    return f"{version}, interpreter" if os.environ.get("TRITON_INTERPRET") == "1" else version


def unavailable(device: str) -> str | None:
    """Why the kernels cannot run on a type of device, or None where they can."""
    if device not in ("cuda", "cpu"):
        return f"the kernels run on CUDA tensors, got tensors on {device}"
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed; pip install triton"
    from .launch import INTERPRETED

    if device == "cpu" and not INTERPRETED:
        return "CPU tensors need Triton's interpreter: set TRITON_INTERPRET=1 before anything imports triton"
    return None
