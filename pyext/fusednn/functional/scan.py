"""Linear gated recurrences by a scan."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import scan_operators  # noqa: F401  (registers torch.ops.fusednn.scan)
from ..reference import scan as reference
from ..reference.scan import SCAN_CELLS
from .arguments import check_tensors
from .recurrent import _is_transformed


def scan(cell: str, gates: Tensor, h0: Tensor) -> Tensor:
    """Run ``h_t = a_t h_{t-1} + b_t`` over all steps, with a and b from gates that see the input alone.

    The operator under ``fusednn.MinGRU`` and ``MinLSTM``. Since a and b need no h, the steps can be combined in any
    order: on a GPU all of them run in parallel, in a number of rounds that grows with log T. Differentiable to any
    order; the second one recomputes the sequence in plain PyTorch.

    Args:
        cell: ``min_gru`` (gates z, h) or ``min_lstm`` (gates f, i, h).
        gates: pre-activations, ``[T, B, G * H]``; computed in fp32 for lower precisions.
        h0: initial state, ``[B, H]``.

    Returns:
        The states ``[T, B, H]``. The same bits from run to run.

    Raises:
        TypeError: something that is no tensor, or tensors of different dtype or device.
        ValueError: an unknown cell, or shapes that do not fit.

    Source: L. Feng et al., "Were RNNs All We Needed?", arXiv:2410.01201, with candidate g(x) = x + 1/2 from 0 on and
    sigmoid(x) below.

    Example:
        >>> import torch, fusednn
        >>> fusednn.functional.scan("min_gru", torch.randn(5, 2, 2 * 4), torch.zeros(2, 4)).shape
        torch.Size([5, 2, 4])
    """
    if cell not in SCAN_CELLS:
        raise ValueError(f"cell must be one of {', '.join(SCAN_CELLS)}, got {cell!r}")
    if not (isinstance(gates, Tensor) and isinstance(h0, Tensor)):
        check_tensors(gates=gates, h0=h0)
    if gates.dtype != h0.dtype or gates.device != h0.device:
        raise TypeError(
            f"h0 must have the dtype and device of gates ({gates.dtype}, {gates.device}), got {h0.dtype}, {h0.device}"
        )
    count = len(SCAN_CELLS[cell].gates)
    if gates.dim() != 3 or h0.dim() != 2 or gates.shape[1:] != (h0.shape[0], count * h0.shape[1]):
        raise ValueError(
            f"expected gates [T, B, {count} * H] and h0 [B, H] for cell {cell},"
            f" got {list(gates.shape)} and {list(h0.shape)}"
        )
    if not torch.compiler.is_compiling() and _is_transformed():
        return reference.scan(gates, h0, cell)
    return torch.ops.fusednn.scan(gates, h0, cell)
