"""The compiled module ``fusednn._C``, or its absence."""

from __future__ import annotations

import importlib.util
import os
import warnings
from pathlib import Path
from types import ModuleType

LIBRARIES = Path(__file__).parent / "lib"
HOW_TO_BUILD = "install a C++20 compiler (g++ 11 or clang 14, or newer), then run `make build` in the source tree"


def _load() -> ModuleType | None:
    """``fusednn._C``, or None where the package was installed without a compiler.

    A module that was built but does not load raises ImportError, which no fallback should hide.
    """
    if importlib.util.find_spec("fusednn._C") is None:
        warnings.warn(
            "fusednn has no compiled kernels here and runs on plain PyTorch, slower than torch.nn. To change that,"
            f" {HOW_TO_BUILD}.",
            stacklevel=3,
        )
        return None
    import torch  # noqa: F401  (its libraries must be loaded first)

    from . import _C  # pyright: ignore[reportAttributeAccessIssue]

    return _C


def _devices() -> frozenset[str]:
    """The device types, as torch names them, that compiled kernels exist for; loads those of a GPU."""
    if MODULE is None:
        return frozenset()
    import torch

    library = LIBRARIES / "libfusednn_cuda.so"
    if torch.version.cuda is None or not library.exists():
        return frozenset({"cpu"})
    MODULE.load_provider("cuda", str(library))
    return frozenset({"cpu", "cuda"})


def _emulates() -> bool:
    """With FUSEDNN_EMULATE=1, strategies of CUDA kernels run on CPU tensors, in the emulation."""
    if os.environ.get("FUSEDNN_EMULATE", "0") != "1":
        return False
    library = LIBRARIES / "libfusednn_emulated.so"
    if MODULE is None or not library.exists():
        raise ImportError("FUSEDNN_EMULATE=1 needs the emulated kernels: run `make emulated` in the source tree")
    MODULE.load_provider("emulated", str(library))
    warnings.warn("FUSEDNN_EMULATE=1: CUDA kernels run on the CPU, thread by thread, very slowly.", stacklevel=3)
    return True


MODULE = _load()
COMPILED_DEVICES = _devices()
EMULATED = _emulates()
