"""What layers are given, checked where torch's own message would leave a user alone."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from ..reference.attention import is_autocast_on


def check_input(layer: nn.Module, input: Any, weight: Tensor, name: str = "input") -> None:
    """Raise unless an input is a tensor of the dtype of the weight that it meets."""
    if not isinstance(input, Tensor):
        raise TypeError(f"{type(layer).__name__} expects {name} to be a tensor, got {type(input).__name__}")
    if input.dtype != weight.dtype and not is_autocast_on(input.device.type):
        raise TypeError(f"{type(layer).__name__} has weights of {weight.dtype}, got {name} of {input.dtype}")


def check_keywords(layer: nn.Module, given: Iterable[str], known: tuple[str, ...]) -> None:
    """Raise unless a constructor knows each keyword that it was given."""
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"it takes {', '.join(known)}"
            raise TypeError(f"{type(layer).__name__}() got an unexpected keyword argument {name!r}; {hint}")


def given_state(layer: nn.Module, hx: Any, pair: bool) -> Any:
    """A state that is a tensor, for some cells a pair of them, or None."""
    if hx is None or isinstance(hx, Tensor):
        return hx
    several = isinstance(hx, (tuple, list))
    if not pair or not several or [isinstance(state, Tensor) for state in hx] != [True, True]:
        got = f"({', '.join(type(state).__name__ for state in hx)})" if several else type(hx).__name__
        wanted = "hx=(h0, c0), two tensors" if pair else "hx=h0, one tensor"
        raise TypeError(f"{type(layer).__name__} expects {wanted}, or None for zeros, got {got}")
    return tuple(hx)
