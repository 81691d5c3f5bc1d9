"""Stacks of equal size for the duel.

A recurrent layer of width d holds 2 d^2 weights a gate, a scan d^2, an encoder layer 12 d^2. So three LSTM layers, four
GRU, twelve RNN, twelve MinGRU or eight MinLSTM layers hold what two encoder layers hold: 24 d^2, up to biases.
"""

from __future__ import annotations

from torch import Tensor, nn

from bench.flops import encoder, recurrent
from bench.models.factory import Factory

EQUAL_LAYERS = {"LSTM": 3, "GRU": 4, "RNN": 12, "MinGRU": 12, "MinLSTM": 8}
ENCODER = "encoder"
ENCODER_LAYERS = 2


def recurrent_stack(factory: Factory, cell: str, d: int) -> nn.Module:
    """Recurrent layers with the parameters of `EncoderStack`."""
    return factory.recurrent(cell, d, d, num_layers=EQUAL_LAYERS[cell])


def equal_flops_ff(d: int, T: int) -> int:
    """Feed-forward width at which two encoder layers over T positions do the products of 24 d^2 weights a position.

    2 layers x (8 d^2 + 4 d ff + 4 T d) = 48 d^2 gives ff = 4 d - T.
    """
    if 4 * d <= T:
        raise ValueError(f"no feed-forward width makes the work equal at d = {d}, T = {T}")
    return 4 * d - T


def stack_flops(kind: str, B: int, T: int, d: int, ff: int | None = None) -> int:
    """Arithmetic of a stack's forward pass: of recurrent layers of a cell, or of ``ENCODER`` layers."""
    if kind == ENCODER:
        return encoder(B, T, d, ff or 4 * d, ENCODER_LAYERS)
    return recurrent(kind, B, T, d, d, EQUAL_LAYERS[kind])


class EncoderStack(nn.Module):
    """Two transformer encoder layers."""

    def __init__(self, factory: Factory, d: int, heads: int, ff: int | None = None) -> None:
        super().__init__()
        self.layers = nn.ModuleList(factory.encoder_layer(d, heads, ff or 4 * d) for _ in range(ENCODER_LAYERS))

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, d] -> [B, T, d]."""
        for layer in self.layers:
            x = layer(x)
        return x
