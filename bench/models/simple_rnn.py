"""The seeds' first model: an Elman network with an output projection."""

from __future__ import annotations

from torch import Tensor, nn

from bench.models.factory import Factory


class SimpleRNN(nn.Module):
    """``y_t = W_o h_t + b_o`` over ``h_t = tanh(W x_t + U h_{t-1} + b)`` (Elman 1990)."""

    def __init__(self, factory: Factory, inputs: int, width: int, outputs: int) -> None:
        super().__init__()
        self.rnn = factory.recurrent("RNN", inputs, width)
        self.out = nn.Linear(width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, I] -> [B, T, O]."""
        hidden, _ = self.rnn(x)
        return self.out(hidden)
