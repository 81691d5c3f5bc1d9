"""How far a gradient reaches into the past of a sequence."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn


class GradientTracker:
    """Watches the gradient that a layer passes to its input, at each distance from the last step.

    A context manager that hooks onto any layer whose first argument is a sequence. Of several calls within it, the last
    counts; of the input, its use by the layer alone. An input that needs no gradient is given one, so that the first
    layer of a model can be watched, too.

    Args:
        layer: the layer to watch.
        batch_first: its input is ``[B, T, ...]`` instead of ``[T, B, ...]``; the layer's own attribute if None.

    Example:
        >>> import torch, fusednn
        >>> from fusednn.models import GradientTracker
        >>> layer = fusednn.RNN(4, 8, batch_first=True)
        >>> with GradientTracker(layer) as tracker:
        ...     layer(torch.randn(2, 30, 4))[0][:, -1].sum().backward()
        >>> norms = tracker.by_distance()
        >>> norms.shape, bool(norms[20] < 1e-3 * norms[0])  # it vanishes
        (torch.Size([30]), True)

    Source: Bengio, Simard and Frasconi, Learning long-term dependencies with gradient descent is difficult, 1994.
    """

    def __init__(self, layer: nn.Module, batch_first: bool | None = None) -> None:
        self.layer = layer
        self.batch_first = getattr(layer, "batch_first", True) if batch_first is None else batch_first
        self._calls = 0
        self._gradient: Tensor | None = None

    def __enter__(self) -> GradientTracker:
        self._hook = self.layer.register_forward_pre_hook(self._watch)
        return self

    def __exit__(self, *_: object) -> None:
        self._hook.remove()

    def _watch(self, layer: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        x = arguments[0]
        watched = (x if x.requires_grad else x.detach().requires_grad_()).view_as(x)  # other uses of x do not count
        self._calls, self._gradient = self._calls + 1, None
        watched.register_hook(partial(self._keep, self._calls))
        return tuple(watched if argument is x else argument for argument in arguments)

    def _keep(self, call: int, gradient: Tensor) -> None:
        if call == self._calls:
            self._gradient = gradient.detach()

    def by_distance(self) -> Tensor:
        """Norm of dL/dx_t over batch and units, from the last step backwards.  # [T]

        Raises:
            RuntimeError: no gradient has arrived: no backward pass yet, or none through this layer.
        """
        if self._gradient is None:
            raise RuntimeError("no gradient has arrived at the layer's input")
        gradient = self._gradient if self.batch_first else self._gradient.transpose(0, 1)
        return torch.linalg.vector_norm(gradient.flatten(2), dim=(0, 2)).flip(0)
