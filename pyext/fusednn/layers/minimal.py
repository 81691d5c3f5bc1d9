"""MinGRU and MinLSTM: recurrent layers whose steps run in parallel."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor, nn

from ..functional import scan
from ..reference.scan import SCAN_CELLS
from .inputs import check_input, check_token, given_state
from .lengths import check_lengths, check_padded
from .scripting import refuse_script


class MinimalLayer(nn.Module):
    """What MinGRU and MinLSTM share: layers of one input product and one scan each."""

    cell: ClassVar[str]
    __prepare_scriptable__ = refuse_script

    def __init__(
        self, input_size: int, hidden_size: int, num_layers: int = 1, bias: bool = True, batch_first: bool = False,
        dropout: float = 0.0, device: torch.device | str | None = None, dtype: torch.dtype | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        for name, value in (("input_size", input_size), ("hidden_size", hidden_size), ("num_layers", num_layers)):
            if not isinstance(value, int):
                raise TypeError(f"{name} must be an int, got {type(value).__name__}")
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if not 0 <= dropout <= 1:
            raise ValueError(f"dropout must be between 0 and 1, got {dropout}")
        self.input_size, self.hidden_size, self.num_layers = input_size, hidden_size, num_layers
        self.bias, self.batch_first, self.dropout = bias, batch_first, float(dropout)
        rows = len(SCAN_CELLS[self.cell].gates) * hidden_size
        for layer in range(num_layers):
            inputs = input_size if layer == 0 else hidden_size
            weight = nn.Parameter(torch.empty(rows, inputs, device=device, dtype=dtype))
            self.register_parameter(f"weight_ih_l{layer}", weight)
            if bias:
                self.register_parameter(
                    f"bias_ih_l{layer}", nn.Parameter(torch.empty(rows, device=device, dtype=dtype))
                )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw every parameter uniformly from +-1 / sqrt(H), as torch.nn's recurrent layers do."""
        bound = 1 / math.sqrt(self.hidden_size)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound)

    def extra_repr(self) -> str:
        """The arguments that differ from the defaults."""
        text = f"{self.input_size}, {self.hidden_size}"
        usual = {"num_layers": 1, "bias": True, "batch_first": False, "dropout": 0.0}
        given = {name: getattr(self, name) for name in usual}
        return text + "".join(f", {name}={value}" for name, value in given.items() if value != usual[name])

    def forward(
        self, input: Tensor, hx: Tensor | None = None, *, lengths: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Run the layer over whole sequences.

        Args:
            input: ``[T, B, I]``, ``[B, T, I]`` with ``batch_first``, or ``[T, I]`` unbatched.
            hx: initial state, ``[L, B, H]`` (``[L, H]`` unbatched); zeros if None.
            lengths: of the sequences of a padded batch, in any order, ``[B]`` integers from 0 to T: the output is zero
                beyond a length, h_n is that of each last step, and what the padding holds does not matter.

        Returns:
            ``(output, h_n)`` as ``torch.nn.GRU``: ``[T, B, H]`` in the layout of the input, and ``[L, B, H]``.

        Raises:
            TypeError: an input or state that is no tensor, or of another dtype or device than the weights; lengths
                that are no integers.
            ValueError: an input or state of a wrong shape, or lengths that do not fit the input.
        """
        weight = self._weights(0)[0]
        check_input(self, input, weight)
        if input.dim() not in (2, 3) or input.shape[-1] != self.input_size:
            raise ValueError(
                f"{type(self).__name__} expects input [T, B, {self.input_size}] or [T, {self.input_size}],"
                f" got {list(input.shape)}"
            )
        if lengths is not None:
            check_padded(input)
        batched = input.dim() == 3
        x = input.unsqueeze(1) if not batched else input.transpose(0, 1) if self.batch_first else input
        steps, batch, _ = x.shape
        sizes = (self.num_layers, batch, self.hidden_size)
        expected = sizes if batched else (self.num_layers, self.hidden_size)
        hx = given_state(self, hx, False)
        if hx is not None:
            if hx.shape != expected:
                raise ValueError(f"{type(self).__name__} expects hx {list(expected)}, got {list(hx.shape)}")
            check_input(self, hx, weight, "hx")
        state = x.new_zeros(sizes) if hx is None else hx if batched else hx.unsqueeze(1)
        ends = padding = None
        if lengths is not None:
            check_lengths(lengths, batch, steps)
            ends = lengths.to(x.device, torch.int64)
            padding = (torch.arange(steps, device=x.device)[:, None] >= ends).unsqueeze(2)  # [T, B, 1]
            x = x.masked_fill(padding, 0)  # a step sees none behind it, but a NaN would reach the weights' gradients
        last = []
        for layer in range(self.num_layers):
            if layer and self.dropout:
                x = nn.functional.dropout(x, self.dropout, self.training)
            gates = nn.functional.linear(x, *self._weights(layer))
            start = state[layer].to(gates.dtype)
            x = scan(self.cell, gates, start)
            last.append(start if steps == 0 else x[-1] if ends is None else _at(x, ends, start))
        x = x if padding is None else x.masked_fill(padding, 0)
        h_n = torch.stack(last)
        if not batched:
            return x.squeeze(1), h_n.squeeze(1)
        return x.transpose(0, 1) if self.batch_first else x, h_n

    def step(self, x_t: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Advance by one time step: ``x_t`` ``[B, I]``, state ``[L, B, H]`` or None; returns ``(y_t, state)``.

        Raises:
            TypeError: an input or state that is no tensor, or of another dtype or device than the weights.
            ValueError: an input or state of a wrong shape.
        """
        check_token(self, x_t, self.input_size)
        y, state = self.forward(x_t.unsqueeze(1 if self.batch_first else 0), state)
        return y.squeeze(1 if self.batch_first else 0), state

    def _weights(self, layer: int) -> tuple[Tensor, Tensor | None]:
        return getattr(self, f"weight_ih_l{layer}"), getattr(self, f"bias_ih_l{layer}") if self.bias else None


def _at(x: Tensor, ends: Tensor, start: Tensor) -> Tensor:
    """Of states ``[T, B, H]`` those after so many steps of each sequence, ``[B]``; after none, ``start``."""
    found = x.gather(0, (ends - 1).clamp(min=0).view(1, -1, 1).expand(1, -1, x.shape[2])).squeeze(0)
    return torch.where((ends > 0).unsqueeze(1), found, start)


class MinGRU(MinimalLayer):
    """A GRU whose gates see the input alone, so that all steps run in parallel.

    ``z_t = sigmoid(W_z x_t + b_z)``, ``h_t = (1 - z_t) h_{t-1} + z_t g(W_h x_t + b_h)`` with g(x) = x + 1/2 from 0 on
    and sigmoid(x) below. The third contender between a recurrence of T steps and attention over T^2 pairs. Source: L.
    Feng et al., arXiv:2410.01201.

    Args:
        input_size: I.
        hidden_size: H.
        num_layers: L, each fed by the one before.
        bias: whether the gates have biases.
        batch_first: ``[B, T, I]`` instead of ``[T, B, I]``.
        dropout: probability of dropping an output between layers, in training.
        device: of the parameters.
        dtype: of the parameters.

    Parameters: ``weight_ih_l{k}`` ``[2 * H, I or H]`` (z, h) and ``bias_ih_l{k}`` ``[2 * H]``.

    Raises:
        TypeError: a size that is no int.
        ValueError: a size below 1, or dropout outside 0 to 1.

    Example:
        >>> import torch, fusednn
        >>> layer = fusednn.MinGRU(3, 4, batch_first=True)
        >>> output, h_n = layer(torch.randn(2, 5, 3))
        >>> output.shape, h_n.shape
        (torch.Size([2, 5, 4]), torch.Size([1, 2, 4]))
    """

    cell = "min_gru"


class MinLSTM(MinimalLayer):
    """An LSTM whose gates see the input alone, so that all steps run in parallel.

    ``f_t = sigmoid(W_f x_t + b_f)``, ``i_t = sigmoid(W_i x_t + b_i)``, both divided by their sum, and
    ``h_t = f_t h_{t-1} + i_t g(W_h x_t + b_h)``, g as in MinGRU. Source: L. Feng et al., arXiv:2410.01201. Arguments,
    errors and results are those of ``fusednn.MinGRU``; the parameters have three gates (f, i, h).

    Example:
        >>> import torch, fusednn
        >>> y_t, state = fusednn.MinLSTM(3, 4).step(torch.randn(2, 3))
        >>> y_t.shape, state.shape
        (torch.Size([2, 4]), torch.Size([1, 2, 4]))
    """

    cell = "min_lstm"
