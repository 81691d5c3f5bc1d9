"""All layers of a recurrent network in one call, where their strategy walks them together."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from .. import layer_operators  # noqa: F401  (registers torch.ops.fusednn)
from ..native import EMULATED
from ..plan import Request, layer_by_layer, plan
from .recurrent import _allows_tf32, _cast, _check, _is_transformed, called, planned_size

Weights = tuple[Tensor, Tensor, Tensor | None, Tensor | None]


def recurrent_layers(
    cell: str,
    x: Tensor,
    h0: Tensor,
    c0: Tensor | None,
    weights: list[Weights],
    batch_sizes: Tensor | None = None,
    strategy: str = "auto",
    dropout: bool = False,
) -> tuple[Tensor, Tensor, Tensor | None] | None:
    """Run all layers of one direction, or None where each is to be run by itself, by ``recurrent``.

    Args:
        cell: as for ``recurrent``, and so the arguments that are not named here.
        x: input of the first layer, ``[N, I]``.
        h0: initial hidden states, ``[L, B, H]``.
        c0: initial cell states, ``[L, B, H]``, for cells that have them.
        weights: w_ih, w_hh, b_ih and b_hh of each layer; the biases are None in all or in none.
        batch_sizes: rows of each step, or None.
        strategy: ``grid`` walks several layers together where they fit, and ``auto`` where it takes ``grid``.
        dropout: whether something stands between the layers.

    Returns:
        ``(y, h_n, c_n)``: y of the last layer ``[N, H]`` and all states, ``[L, B, H]``.

    Raises:
        TypeError: tensors of different dtype or device.
        ValueError: shapes that do not fit, or a strategy that cannot serve the request.
    """
    device, compiling = x.device.type, torch.compiler.is_compiling()
    if strategy not in ("auto", "grid") or (device == "cpu" and not EMULATED) or (not compiling and _is_transformed()):
        return None
    if device != "meta" and torch.is_autocast_enabled(device):
        low = torch.get_autocast_dtype(device)
        x, h0, c0 = (_cast(t, low) for t in (x, h0, c0))  # pyright: ignore[reportAssignmentType]
        weights = [tuple(_cast(t, low) for t in layer) for layer in weights]  # pyright: ignore[reportAssignmentType]
    layers, _, units = h0.shape
    tf32, (batch, short) = x.dtype == torch.float32 and _allows_tf32(), planned_size(x, h0)
    name = str(x.dtype).removeprefix("torch.")
    request = Request(cell, device, name, batch, hidden=units, tf32=tf32, short=short)
    if not (_together if compiling else _cached_together)(request, layers, strategy, dropout):
        return None
    flat = [t for layer in weights for t in layer if t is not None]
    args = (x, h0, c0, flat, batch_sizes, cell, "grid+tf32" if tf32 else "grid")
    if compiling:
        _check_layers(cell, x, h0, c0, weights, batch_sizes)
    try:
        y, h_n, c_n = called(torch.ops.fusednn.recurrent_layers.default, args, (x, h0, c0, *flat))
    except RuntimeError:  # the kernels refuse what does not fit, but know one error and no names
        _check_layers(cell, x, h0, c0, weights, batch_sizes)
        raise
    return y, h_n, c_n if c0 is not None else None


def _together(request: Request, layers: int, strategy: str, dropout: bool) -> bool:
    chosen = plan(request, strategy).strategy.name
    return chosen == "grid" and layer_by_layer(request, layers, dropout) is None


_cached_together = functools.cache(_together)


def _check_layers(cell: str, x: Tensor, h0: Tensor, c0: Tensor | None, weights: list[Weights], batch_sizes) -> None:
    """Raise unless dtypes, devices and shapes fit together, as the layers one by one would."""
    for layer, own in enumerate(weights):
        part = slice(layer, layer + 1)
        inputs = x if layer == 0 else x.new_empty(x.shape[0], h0.shape[2])
        states = h0[part], None if c0 is None else c0[part]
        _check(cell, (inputs, *states, *own, None), None, None, batch_sizes=batch_sizes, heads=1)
