"""What passes from one piece of a sequence to the next."""

from __future__ import annotations

from typing import Any, TypeVar, cast

from torch import Tensor

from .cache import KeyValueCache

State = TypeVar("State")


def detach(state: State) -> State:
    """Cut a state off its history: gradients of what follows stop here (truncated backpropagation through time).

    Args:
        state: what a layer returned: a tensor, a ``KeyValueCache``, tuples or lists of those however nested, or None.

    Returns:
        The same values in the same structure; tensors share their memory.

    Raises:
        TypeError: something else in the state.

    Example:
        >>> import torch, fusednn
        >>> lstm, state = fusednn.LSTM(3, 4), None
        >>> for chunk in torch.randn(6, 2, 3).split(2):
        ...     y, state = lstm(chunk, fusednn.detach(state))
        ...     y.sum().backward()

    Source: Williams and Peng, An efficient gradient-based algorithm for on-line training of recurrent network
    trajectories, 1990.
    """
    if state is None:
        return state
    if isinstance(state, (Tensor, KeyValueCache)):
        return cast(Any, state.detach())
    if isinstance(state, (tuple, list)):
        parts = [detach(part) for part in state]
        return type(state)(*parts) if hasattr(state, "_fields") else type(state)(parts)
    raise TypeError(f"detach() expects tensors and caches, in tuples or lists, or None; got {type(state).__name__}")
