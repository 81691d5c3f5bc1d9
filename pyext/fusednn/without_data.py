"""Models and inputs without their values: what layers would be called with is found without computing anything."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn
from torch._guards import detect_fake_mode
from torch._subclasses.fake_tensor import FakeCopyMode, FakeTensorMode
from torch.utils._pytree import tree_map

Call = tuple[tuple[Any, ...], dict[str, Any]]


@contextlib.contextmanager
def without_data(model: nn.Module, call: Call) -> Iterator[tuple[nn.Module, Call]]:
    """Where they hold: a copy of a model and the arguments of a call that have shapes, dtypes and devices only."""
    mode = detect_fake_mode(call) or FakeTensorMode()
    with FakeCopyMode(mode):
        twin = copy.deepcopy(model)
    with mode:
        yield twin, tree_map(lambda x: mode.from_tensor(x, static_shapes=True) if isinstance(x, Tensor) else x, call)


def calls_inside(model: nn.Module, call: Call, kinds: tuple[type[nn.Module], ...]) -> dict[str, Call]:
    """The first call of each module of these kinds, by its name, while the model runs.

    Raises:
        Exception: what the model raises.
    """
    found: dict[str, Call] = {}
    handles = []
    for name, module in model.named_modules():
        if isinstance(module, kinds):

            def note(_, inputs, options, name=name):
                found.setdefault(name, (inputs, options))

            handles.append(module.register_forward_pre_hook(note, with_kwargs=True))
    try:
        model(*call[0], **call[1])
    finally:
        for handle in handles:
            handle.remove()
    return found
