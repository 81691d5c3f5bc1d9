"""What layers are given, checked where torch's own message would leave a user alone."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from ..reference.attention import is_autocast_on


def check_tensor(layer: nn.Module, x: Any, name: str = "input") -> None:
    """Raise unless an argument is a tensor."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{type(layer).__name__} expects {name} to be a tensor, got {type(x).__name__}")


def check_input(layer: nn.Module, input: Any, weight: Tensor, name: str = "input") -> None:
    """Raise unless an input is a tensor of the dtype and device of the weight that it meets."""
    check_tensor(layer, input, name)
    if input.dtype != weight.dtype and not is_autocast_on(input.device.type):
        raise TypeError(f"{type(layer).__name__} has weights of {weight.dtype}, got {name} of {input.dtype}")
    if input.device != weight.device:
        raise TypeError(f"{type(layer).__name__} has weights on {weight.device}, got {name} on {input.device}")


def check_token(layer: nn.Module, x_t: Any, width: int) -> None:
    """Raise unless what ``step()`` is given is a tensor ``[B, width]``."""
    check_tensor(layer, x_t, "x_t")
    if x_t.dim() != 2 or x_t.shape[1] != width:
        raise ValueError(f"step() expects x_t of shape [B, {width}], got {list(x_t.shape)}")


def check_device(input: Tensor, weight: Tensor) -> None:
    """Raise as torch.nn's recurrent layers do, in their words, unless input and weight are on one device.

    Raises:
        RuntimeError: they are not.
    """
    if input.device != weight.device:
        raise RuntimeError(
            "Input and parameter tensors are not at the same device, found input tensor at"
            f" {input.device} and parameter tensor at {weight.device}"
        )


def check_kind(name: str, x: Tensor, like: Tensor, whose: str = "the input") -> None:
    """Raise as torch.nn's recurrent layers do unless a tensor has the dtype and device of another, or autocast casts.

    Raises:
        RuntimeError: it has not.
    """
    if x.dtype != like.dtype and not is_autocast_on(like.device.type):
        raise RuntimeError(f"{name} must have the dtype of {whose}, {like.dtype}, got {x.dtype}")
    if x.device != like.device:
        raise RuntimeError(f"{name} must be on the device of {whose}, {like.device}, got {x.device}")


def check_keywords(layer: nn.Module, given: Iterable[str], known: tuple[str, ...]) -> None:
    """Raise unless a constructor knows each keyword that it was given."""
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"it takes {', '.join(known)}"
            raise TypeError(f"{type(layer).__name__}() got an unexpected keyword argument {name!r}; {hint}")


def given_state(layer: nn.Module, hx: Any, pair: bool) -> Any:
    """A state that is a tensor, for some cells a pair of them, or None."""
    if hx is None or (isinstance(hx, Tensor) and not pair):
        return hx
    several = isinstance(hx, (tuple, list))
    if not pair or not several or [isinstance(state, Tensor) for state in hx] != [True, True]:
        got = f"({', '.join(type(state).__name__ for state in hx)})" if several else type(hx).__name__
        wanted = "hx=(h0, c0), two tensors" if pair else "hx=h0, one tensor"
        raise TypeError(f"{type(layer).__name__} expects {wanted}, or None for zeros, got {got}{lengths_hint(hx)}")
    return tuple(hx)


def lengths_hint(hx: Any) -> str:
    """The end of a message to somebody who gave lengths in the place of a state."""
    likely = isinstance(hx, Tensor) and hx.dim() == 1 and not hx.is_floating_point()
    return "; lengths are given by name: lengths=" if likely else ""
