"""Which Triton kernels a call launches on a GPU that is not there, exactly as Triton would compile them.

The real launcher runs on tensors without storage that claim to lie on a GPU, and Triton binds the arguments: types,
constants, alignment and options are its own. Nothing is compiled here.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from triton import JITFunction, knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.experimental.gluon._runtime import GluonASTSource
from triton.runtime import driver


@dataclass(frozen=True)
class Kernel:
    """A kernel with all that decides its machine code, but for the compiler's version."""

    function: JITFunction
    target: GPUTarget
    signature: dict[str, Any]
    constants: dict[tuple[int, ...], Any]
    attributes: dict[tuple[int, ...], Any]
    options: dict[str, Any]

    @property
    def name(self) -> str:
        """The function's, without what all have in common."""
        return self.function.__name__.strip("_").removesuffix("_kernel")

    @property
    def source(self) -> ASTSource:
        """What ``triton.compile`` takes."""
        kind = GluonASTSource if self.function.is_gluon() else ASTSource
        return kind(self.function, self.signature, self.constants, self.attributes)

    @property
    def fingerprint(self) -> str:
        """A hash over the text of the function and of all that it calls, and over how it is compiled."""
        how = [self.target, self.signature, self.constants, self.attributes, self.options]
        return hashlib.sha256("\n".join([self.function.cache_key, *map(str, how)]).encode()).hexdigest()[:16]

    def constant(self, name: str) -> Any:
        """The value of a constant argument, or None where there is none of the name."""
        names = self.function.arg_names
        return self.constants.get((names.index(name),)) if name in names else None


class _Driver:
    """Stands in Triton's place of a GPU."""

    def __init__(self, capability: int) -> None:
        self.capability = capability

    def get_current_device(self) -> int:
        return self.capability  # Triton keeps one cache a device: one a target here

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.capability, 32)


@contextlib.contextmanager
def gpu(capability: int) -> Iterator[None]:
    """Let torch's tensors lie on a GPU of this capability, without storage, and every address be aligned."""
    active = driver.active if torch.cuda.is_available() else None
    driver.set_active(_Driver(capability))  # type: ignore[arg-type]  (three methods are all that binding needs)
    try:
        with (
            FakeTensorMode(),
            mock.patch.object(FakeTensor, "data_ptr", lambda tensor: 0, create=True),
            mock.patch("torch.cuda.device", lambda device: contextlib.nullcontext()),
            mock.patch("torch.cuda.get_device_properties", lambda device: SimpleNamespace(multi_processor_count=132)),
            mock.patch("torch.cuda.get_device_capability", lambda device=None: divmod(capability, 10)),
        ):
            yield
    finally:
        if active is not None:
            driver.set_active(active)


def _forget_lines(function: JITFunction) -> None:
    """Take line numbers out of the hash: a kernel that only moves in its file stays the same."""
    if function.starting_line_number:
        function.starting_line_number = 0
        for value in function.__globals__.values():
            if isinstance(value, JITFunction) and not value.__module__.startswith("triton"):
                _forget_lines(value)


def launched(call: Callable[[], object], capability: int) -> list[Kernel]:
    """The kernels of a call, in the order of its launches.

    Args:
        call: launches; makes its tensors itself, on ``cuda``.
        capability: of the GPU, 90 for 9.0.
    """
    found: list[Kernel] = []

    def note(*, fn: Any, compile: dict[str, Any], **_: Any) -> bool:
        function = fn.jit_function
        _forget_lines(function)
        options = json.loads(compile["specialization_data"])["options"]
        del options["extern_libs"]  # a path of this machine; the default
        options = {name: tuple(value) if isinstance(value, list) else value for name, value in options.items()}
        found.append(Kernel(function, GPUTarget("cuda", capability, 32), compile["signature"], compile["constants"],
                            compile["configs"][0], options))  # fmt: skip
        return True  # do not compile

    with gpu(capability), mock.patch.object(knobs.runtime, "jit_cache_hook", note):
        call()
    return found
