"""ONNX: the recurrent layers as the standard operators RNN, LSTM and GRU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from .reference.cells import CELLS

# ONNX's operator, and which of torch's gates it has first, second, ...: i, o, f, g and z, r, n.
_OPERATORS = {
    "rnn_tanh": ("RNN", (0,)),
    "rnn_relu": ("RNN", (0,)),
    "lstm": ("LSTM", (0, 3, 1, 2)),
    "gru": ("GRU", (1, 0, 2)),
    "gru_reset_before": ("GRU", (1, 0, 2)),
}


def translations() -> dict[Callable, Callable]:
    """What ``torch.onnx.export`` has to know of fusednn, for its ``custom_translation_table``.

    ``RNN``, ``LSTM`` and ``GRU`` and their cells, with several layers, both directions and initial states, become
    ONNX's operators of these names. T and B may be dynamic, and ``lengths`` an input, their ``sequence_lens``.

    Returns:
        The table: fusednn's operator and the function that writes ONNX's in its place.

    Raises:
        ImportError: onnxscript is not installed; ``pip install 'fusednn[onnx]'``.
        ValueError: from ``torch.onnx.export``, as a cause of its error: what ONNX's operators cannot express, which is
            packed input, ``proj_size``, and every option but ``recompute``.

    Example:
        >>> import torch, fusednn
        >>> gru, x = fusednn.GRU(3, 4), torch.randn(5, 2, 3)
        >>> program = torch.onnx.export(  # doctest: +SKIP
        ...     gru, (x,), dynamo=True, custom_translation_table=fusednn.onnx.translations())

    Source: the ONNX specification of RNN, LSTM and GRU, opset 14.
    """
    import onnxscript  # noqa: F401  (what torch.onnx.export itself needs: better said here)

    return {
        torch.ops.fusednn.recurrent.default: _recurrent,
        torch.ops.fusednn.recurrent_padded.default: _recurrent_padded,
    }


def _refuse(cell, w_hr, batch_sizes, heads, mask, zoneout, norm) -> None:
    for asked, what in (
        (cell not in _OPERATORS, f"cell {cell}"),
        (w_hr is not None, "proj_size"),
        (batch_sizes is not None, "packed input; a padded batch with lengths they can"),
        (heads != 1, "heads"),
        (mask is not None, "recurrent_dropout in training"),
        (zoneout, "zoneout"),
        (norm is not None, "layer_norm"),
    ):
        if asked:
            raise ValueError(f"ONNX's RNN, LSTM and GRU cannot express {what}")


def _recurrent(
    x, h0, c0, w_ih, w_hh, b_ih, b_hh, w_hr, batch_sizes, cell, strategy, heads=1, mask=None, seed=None, zoneout_h=0.0,
    zoneout_c=0.0, first=0, norm=None, recompute=False,
):  # fmt: skip
    """``fusednn::recurrent`` on rows ``[N, I]`` as an operator on ``[T, B, I]``."""
    _refuse(cell, w_hr, batch_sizes, heads, mask, zoneout_h or zoneout_c, norm)
    return _operator(x, h0, c0, w_ih, w_hh, b_ih, b_hh, None, cell)


def _recurrent_padded(
    x, h0, c0, w_ih, w_hh, b_ih, b_hh, w_hr, lengths, cell, strategy, heads=1, mask=None, seed=None, zoneout_h=0.0,
    zoneout_c=0.0, first=0, norm=None, recompute=False,
):  # fmt: skip
    """``fusednn::recurrent_padded`` likewise."""
    _refuse(cell, w_hr, None, heads, mask, zoneout_h or zoneout_c, norm)
    return _operator(x, h0, c0, w_ih, w_hh, b_ih, b_hh, lengths, cell)


def _operator(x, h0, c0, w_ih, w_hh, b_ih, b_hh, lengths, cell: str):
    """ONNX's operator of a cell, and what it takes and gives in its order of gates."""
    import onnxscript

    op: Any = onnxscript.opset18
    name, order = _OPERATORS[cell]
    directions, gates = h0.shape[0], len(CELLS[cell].gates)
    units, inputs = w_hh.shape[-1], x.shape[1]

    def reordered(weight, *columns: int):
        """[D, G * H, columns] with the gates in ONNX's order; with or without D before."""
        each = op.Reshape(weight, op.Constant(value_ints=[directions, gates, units, *columns]))
        each = op.Gather(each, op.Constant(value_ints=list(order)), axis=1)
        if cell == "gru_reset_before":  # ONNX's z keeps where this cell's z renews: sigmoid(-a) = 1 - sigmoid(a)
            signs = op.CastLike(op.Constant(value_floats=[-1.0, 1.0, 1.0]), weight)
            each = op.Mul(each, op.Reshape(signs, op.Constant(value_ints=[gates, 1, *(1 for _ in columns)])))
        return op.Reshape(each, op.Constant(value_ints=[directions, gates * units, *columns]))

    batch = op.Shape(h0, start=1, end=2)
    steps = op.Reshape(
        x, op.Concat(op.Constant(value_ints=[-1]), batch, op.Constant(value_ints=[inputs]), axis=0)
    )  # [T, B, I]
    biases = None if b_ih is None else op.Concat(reordered(b_ih), reordered(b_hh), axis=1)
    how = {"hidden_size": units, "direction": "forward" if directions == 1 else "bidirectional"}
    if name == "RNN":
        how["activations"] = ["Relu" if cell == "rnn_relu" else "Tanh"] * directions
    if name == "GRU":
        how["linear_before_reset"] = int(cell == "gru")
    states = (h0,) if c0 is None else (h0, c0)
    if lengths is not None:
        lengths = op.Cast(lengths, to=onnxscript.INT32.dtype)
    y, *last = getattr(op, name)(
        steps, reordered(w_ih, inputs), reordered(w_hh, units), biases, lengths, *states, **how
    )  # y [T, D, B, H]
    y = op.Reshape(op.Transpose(y, perm=[0, 2, 1, 3]), op.Constant(value_ints=[-1, directions * units]))
    if lengths is not None:  # a sequence of no step keeps its state, of which ONNX says nothing
        empty = op.Not(op.Cast(lengths, to=onnxscript.BOOL.dtype))
        empty = op.Reshape(empty, op.Constant(value_ints=[1, -1, 1]))
        last = [op.Where(empty, before, after) for before, after in zip(states, last, strict=True)]
    if c0 is None:
        last.append(op.CastLike(op.ConstantOfShape(op.Constant(value_ints=[0])), x))
    return y, *last
