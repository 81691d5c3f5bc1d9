"""The compiled module ``fusednn._C``, or its absence."""

from __future__ import annotations

import importlib.util
import warnings
from types import ModuleType

HOW_TO_BUILD = "install a C++20 compiler (g++ 11 or clang 14, or newer), then run `make build` in the source tree"


def _load() -> ModuleType | None:
    """``fusednn._C``, or None where the package was installed without a compiler.

    A module that was built but does not load raises ImportError, which no fallback should hide.
    """
    if importlib.util.find_spec("fusednn._C") is None:
        warnings.warn(
            f"fusednn has no compiled kernels here and runs on plain PyTorch, slower. To change that, {HOW_TO_BUILD}.",
            stacklevel=3,
        )
        return None
    import torch  # noqa: F401  (its libraries must be loaded first)

    from . import _C  # pyright: ignore[reportAttributeAccessIssue]

    return _C


MODULE = _load()
COMPILED_DEVICES = frozenset() if MODULE is None else frozenset({"cpu"})  # as torch names device types
