"""Elman's network, recurrent language models, and an encoder that reads both ways."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ..layers.initialisation import Initialisation
from ..layers.minimal import MinGRU, MinLSTM
from ..layers.recurrent import GRU, LSTM, RNN
from .tokens import LanguageModel, State, Vocabulary, check_tokens

CELLS: dict[str, Any] = {"RNN": RNN, "LSTM": LSTM, "GRU": GRU, "MinGRU": MinGRU, "MinLSTM": MinLSTM}


def recurrent_layer(cell: str, input_size: int, hidden_size: int, num_layers: int = 1, **options: Any) -> Any:
    """A layer of fusednn by its name, batch first.

    Raises:
        ValueError: a name that is not in ``CELLS``.
    """
    if cell not in CELLS:
        raise ValueError(f"cell must be one of {', '.join(CELLS)}, got {cell!r}")
    return CELLS[cell](input_size, hidden_size, num_layers, batch_first=True, **options)


class SimpleRNN(nn.Module):
    """``y_t = W_o h_t + b_o`` over ``h_t = tanh(W x_t + U h_{t-1} + b)``: a series in, a series out.

    Args:
        input_size: I.
        hidden_size: H.
        output_size: O.
        **options: of ``fusednn.RNN``.

    Example:
        >>> import torch
        >>> from fusednn.models import SimpleRNN
        >>> y, state = SimpleRNN(1, 16, 1)(torch.randn(2, 50, 1))
        >>> y.shape
        torch.Size([2, 50, 1])

    Source: Elman, Finding structure in time, 1990.
    """

    def __init__(self, input_size: int, hidden_size: int, output_size: int, **options: Any) -> None:
        super().__init__()
        self.layer = recurrent_layer("RNN", input_size, hidden_size, **options)
        self.out = nn.Linear(hidden_size, output_size)

    def forward(self, x: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """``[B, T, I]`` and h ``[1, B, H]`` or None to ``([B, T, O], h)``.

        Raises:
            ValueError, RuntimeError: as ``fusednn.RNN``.
        """
        y, h = self.layer(x, state)
        return self.out(y), h

    def step(self, x_t: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """``[B, I]`` to ``([B, O], h)``; step by step this is ``forward``.

        Raises:
            ValueError, RuntimeError: as ``fusednn.RNN.step``.
        """
        y, h = self.layer.step(x_t, state)
        return self.out(y), h


class RecurrentLM(LanguageModel):
    """Embedding, recurrent layers, projection to the vocabulary.

    With ``zoneout=`` this is the Zoneout LSTM of Krueger et al., arXiv:1606.01305.

    Args:
        vocabulary: V.
        width: of a token's vector.
        hidden_size: H.
        cell: ``RNN``, ``LSTM``, ``GRU``, ``MinGRU`` or ``MinLSTM``.
        num_layers: how many, one upon the other.
        tied: one matrix for embedding and projection; the layer's output must be as wide as the embedding.
        **options: of the layer: dropout, zoneout, layer_norm, proj_size and so on.

    Raises:
        ValueError: an unknown cell, tied weights of two widths, or options that the layer refuses.

    Example:
        >>> import torch
        >>> from fusednn.models import RecurrentLM
        >>> model = RecurrentLM(100, 32, 64, "GRU")
        >>> model(torch.randint(100, (2, 7))).shape
        torch.Size([2, 7, 100])
        >>> logits, state = model.step(torch.tensor([1, 2]))
        >>> model.generate(torch.tensor([[1], [2]]), 5).shape
        torch.Size([2, 5])

    Source: Mikolov et al., Recurrent neural network based language model, 2010.
    """

    def __init__(
        self, vocabulary: int, width: int, hidden_size: int, cell: str = "LSTM", num_layers: int = 1,
        tied: bool = False, **options: Any,
    ) -> None:  # fmt: skip
        super().__init__()
        self.layer = recurrent_layer(cell, width, hidden_size, num_layers, **options)
        self.vocabulary = Vocabulary(vocabulary, width, options.get("proj_size") or hidden_size, tied)

    def prefill(self, tokens: Tensor, state: State = None) -> tuple[Tensor, State]:
        """As ``TokenModel.prefill``; the state is the layer's."""
        check_tokens(tokens)
        y, state = self.layer(self.vocabulary(tokens), state)
        return self.vocabulary.logits(y), state

    def step(self, token: Tensor, state: State = None) -> tuple[Tensor, State]:
        """As ``TokenModel.step``, by the layer's own ``step``."""
        y, state = self.layer.step(self.vocabulary(token), state)
        return self.vocabulary.logits(y), state


class BidirectionalEncoder(nn.Module):
    """A recurrent layer in each direction; each token's logits have seen the whole sequence.

    Args:
        vocabulary: V.
        width: of a token's vector.
        hidden_size: H, of each direction.
        outputs: O, logits of each token.
        cell: ``RNN``, ``LSTM`` or ``GRU``.
        num_layers: how many, one upon the other.
        **options: of the layer.

    Raises:
        ValueError: an unknown cell, or options that the layer refuses.

    Example:
        >>> import torch
        >>> from fusednn.models import BidirectionalEncoder
        >>> BidirectionalEncoder(100, 32, 64, outputs=5)(torch.randint(100, (2, 7))).shape
        torch.Size([2, 7, 5])

    Source: Schuster and Paliwal, Bidirectional recurrent neural networks, 1997.
    """

    def __init__(
        self, vocabulary: int, width: int, hidden_size: int, outputs: int, cell: str = "LSTM", num_layers: int = 1,
        **options: Any,
    ) -> None:  # fmt: skip
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.layer = recurrent_layer(cell, width, hidden_size, num_layers, **{"bidirectional": True, **options})
        self.out = nn.Linear(hidden_size * (2 if self.layer.bidirectional else 1), outputs)

    def forward(self, tokens: Tensor) -> Tensor:
        """``[B, T]`` integers to ``[B, T, O]``.

        Raises:
            ValueError: tokens of another rank.
        """
        check_tokens(tokens)
        return self.out(self.layer(self.embedding(tokens))[0])


def identity_(layer: RNN) -> RNN:
    """Start an Elman layer as one that keeps its state: W_hh is the identity, the biases are 0. With relu: the IRNN.

    Raises:
        ValueError: a layer with gates, or with heads.

    Source: Le, Jaitly and Hinton, arXiv:1504.00941.
    """
    for name, parameter in layer.named_parameters():
        if name.startswith("weight_hh") and parameter.shape != (layer.hidden_size, layer.hidden_size):
            raise ValueError(f"the identity needs {name} of shape [H, H], got {list(parameter.shape)}")
        if name.startswith("bias"):
            nn.init.zeros_(parameter)
    Initialisation(init="identity").apply(layer, layer.cell, layer.heads)
    return layer


def forget_bias_(layer: LSTM, value: float = 1.0) -> LSTM:
    """Start an LSTM with open forget gates: both biases of the gate together are ``value``.

    Raises:
        ValueError: another layer than an LSTM.

    Source: Gers, Schmidhuber and Cummins, 2000; Jozefowicz et al., 2015 (1.0).
    """
    if layer.mode != "LSTM":
        raise ValueError(f"only an LSTM has a forget gate, got {layer.mode}")
    Initialisation(forget_bias=value).apply(layer, layer.cell, layer.heads)
    return layer
