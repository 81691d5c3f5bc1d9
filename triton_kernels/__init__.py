"""Kernels in Triton: attention comes here; installed as ``fusednn.triton_kernels``."""

from __future__ import annotations

import importlib.metadata
import os


def status() -> str:
    """One line on Triton here: its version, and whether it compiles or interprets."""
    try:
        version = importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
    return f"{version}, interpreter" if os.environ.get("TRITON_INTERPRET") == "1" else version
