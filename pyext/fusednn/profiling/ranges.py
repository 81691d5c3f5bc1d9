"""Ranges on a profiler's time line: NVTX ranges in the domain ``fusednn``, and where to look.

With ``FUSEDNN_NVTX=1`` in the environment when fusednn is imported, each forward of a fusednn module is a range, named
as the module prints itself; the CUDA library reads the same variable, and marks each call of a strategy and each chunk
of 64 steps that are launches of their own. Off, nothing is registered and nothing is called. Needs the package
``nvtx``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.modules import module as hooks

DOMAIN = "fusednn"
MEASURED = "measured"

_domain: Any = None
_recorder: Any = None


def listen(domain: Any) -> list[Any]:
    """Send ranges of modules and spans to a domain of NVTX, as the package ``nvtx`` makes them; with None no more.

    Returns:
        Handles of the modules' hooks, to remove them by.
    """
    global _domain
    _domain = domain
    if domain is None:
        return []
    return [
        hooks.register_module_forward_pre_hook(_begin),
        hooks.register_module_forward_hook(_end, always_call=True),
    ]


def listen_to_nvtx() -> list[Any]:
    """`listen` with NVTX's domain ``fusednn``.

    Raises:
        ImportError: the package ``nvtx`` is missing.
    """
    try:
        import nvtx  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ImportError("FUSEDNN_NVTX=1 needs the package nvtx: pip install nvtx") from error
    return listen(nvtx.get_domain(DOMAIN))


def record_with(recorder: Any) -> None:
    """Start and stop a profiler, such as ``torch.profiler.profile()``, around what is `measured`; with None no more."""
    global _recorder
    _recorder = recorder


@contextlib.contextmanager
def span(name: str) -> Iterator[None]:
    """A range of this name, where somebody listens.

    Example:
        >>> import fusednn.profiling
        >>> with fusednn.profiling.span("my decoder"):
        ...     pass
    """
    if _domain is None:
        yield
        return
    domain = _domain
    _push(domain, name)
    try:
        yield
    finally:
        domain.pop_range()


@contextlib.contextmanager
def measured() -> Iterator[None]:
    """The part of a program that profilers look at: a range named ``measured``, and all that torch's profiler records.

    Warm up first: the first calls compile, allocate and tune.

    Example:
        >>> import torch, fusednn, fusednn.profiling
        >>> layer, x = fusednn.GRU(4, 8), torch.randn(5, 2, 4)
        >>> _ = layer(x)
        >>> with fusednn.profiling.measured():
        ...     _ = layer(x)
    """
    if _recorder is not None:
        _recorder.start()
    try:
        with span(MEASURED):
            yield
    finally:
        if _recorder is not None:
            _recorder.stop()


def _push(domain: Any, name: str) -> None:
    domain.push_range(domain.get_event_attributes(message=name))


def _is_shown(module: nn.Module) -> bool:
    """Whether a module has ranges: one of ours, where somebody listens and nothing compiles."""
    ours = any(kind.__module__.startswith("fusednn.") for kind in type(module).__mro__)
    return _domain is not None and ours and not torch.compiler.is_compiling()


def _begin(module: nn.Module, inputs: Any) -> None:
    if _is_shown(module):
        _push(_domain, str(module) if not any(module.children()) else type(module).__name__)


def _end(module: nn.Module, inputs: Any, result: Any) -> None:
    if _is_shown(module):
        _domain.pop_range()
