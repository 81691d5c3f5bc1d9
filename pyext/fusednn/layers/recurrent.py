"""RNN, LSTM and GRU: torch.nn's constructors, parameters and semantics on fusednn's kernels."""

from __future__ import annotations

import inspect
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from .. import plan
from ..functional import recurrent
from ..functional.recurrent import recurrent_from_zeros
from ..functional.recurrent_layers import recurrent_layers
from ..padded_operators import Packing
from ..reference.cells import CELLS
from .initialisation import Initialisation
from .inputs import check_device, check_keywords, check_kind, check_token, given_state, lengths_hint
from .lengths import check_lengths, check_padded
from .recurrent_options import Asked, join_heads, split_heads
from .recurrent_weights import RecurrentWeights
from .scripting import refuse_script

Hidden = Tensor | tuple[Tensor, Tensor]
_KEYWORDS = tuple(inspect.signature(nn.RNNBase.__init__).parameters)[2:]  # without self and mode


class RecurrentLayer(RecurrentWeights):
    """What RNN, LSTM and GRU share. A new cell's layer needs a name for its mode and ``cell``; see ``LSTM``.

    The base is ``torch.nn.RNNBase``, not ``torch.nn.LSTM`` and so on: torch.compile refuses to trace instances of those
    three. Parameters, their names and their initialisation are those of the base.
    """

    strategy: str = "auto"  # on the class, so that a torch.nn instance can take this class over
    _initialisation: Initialisation = Initialisation()  # likewise
    __prepare_scriptable__ = refuse_script
    variants: ClassVar[dict[str, dict]] = {}  # each cell that the layer runs, with the arguments that select it

    def __init__(
        self,
        mode: str,
        *args,
        strategy: str = "auto",
        heads: int = 1,
        recurrent_dropout: float = 0.0,
        zoneout: float | tuple[float, float] = 0.0,
        layer_norm: bool = False,
        recompute: bool = False,
        weight_drop: float = 0.0,
        init: str = "torch",
        forget_bias: float | None = None,
        **kwargs,
    ) -> None:
        if strategy not in plan.NAMES:
            raise ValueError(f"strategy must be one of {', '.join(plan.NAMES)}, got {strategy!r}")
        check_keywords(self, kwargs, (*_KEYWORDS, "strategy", *Asked._fields, *Initialisation._fields))
        known_to_torch = mode in ("RNN_TANH", "RNN_RELU", "LSTM", "GRU")
        super().__init__(mode if known_to_torch else "RNN_TANH", *args, **kwargs)
        self.strategy = strategy
        self.mode = mode
        asked = Asked(heads, recurrent_dropout, zoneout, layer_norm, recompute, weight_drop)
        self._ask(asked.checked(self.cell, hidden_size=self.hidden_size, proj_size=self.proj_size), strategy)
        if not known_to_torch or self.heads > 1:
            self._resize(len(CELLS[self.cell].gates))
        if self.layer_norm:
            self._add_gains()
        self._initialisation = Initialisation(init, forget_bias).checked(self.cell, self.bias)
        self._initialisation.apply(self, self.cell, self.heads)

    def reset_parameters(self) -> None:
        """As torch.nn's for each head: uniform within 1 / sqrt(H), with the H of one head; gains are 1.

        Then ``init`` and ``forget_bias``.
        """
        if self._asked is None:
            super().reset_parameters()
        else:
            limit = (self.heads / self.hidden_size) ** 0.5
            for name, parameter in self.named_parameters():
                if name.startswith("norm"):
                    nn.init.ones_(parameter)
                else:
                    nn.init.uniform_(parameter, -limit, limit)
        self._initialisation.apply(self, self.cell, self.heads)

    @property
    def cell(self) -> str:
        """Name of the cell in the registry."""
        return self.mode.lower()

    def flatten_parameters(self) -> None:
        """Do nothing: fusednn's kernels take the parameters where they lie."""

    def extra_repr(self) -> str:
        """As torch.nn's, with the strategy where one was asked for, and options where there are any."""
        asked = {} if self.strategy == "auto" else {"strategy": self.strategy}
        asked |= self.options | self._initialisation.given()
        return ", ".join([super().extra_repr(), *(f"{k}={v!r}" for k, v in asked.items())])

    def check_forward_args(self, input: Tensor, hidden: Hidden, batch_sizes: Tensor | None) -> None:
        """Raise as torch.nn does unless input and initial states fit the layer."""
        self.check_input(input, batch_sizes)
        expected = self.get_expected_hidden_size(input, batch_sizes)
        if isinstance(hidden, Tensor):
            self.check_hidden_size(hidden, expected)
            return
        self.check_hidden_size(hidden[0], expected, "Expected hidden[0] size {}, got {}")
        cell_size = (*expected[:2], self.hidden_size)
        self.check_hidden_size(hidden[1], cell_size, "Expected hidden[1] size {}, got {}")

    def permute_hidden(self, hx: Hidden, permutation: Tensor | None) -> Hidden:
        """Reorder the batch of the states."""
        if permutation is None:
            return hx
        if isinstance(hx, Tensor):
            return hx.index_select(1, permutation)
        return hx[0].index_select(1, permutation), hx[1].index_select(1, permutation)

    def forward(self, input, hx=None, *, lengths: Tensor | None = None):
        """Run the layer over whole sequences; arguments, results and errors are those of torch.nn, save ``lengths``.

        Args:
            input: ``[T, B, I]``, ``[B, T, I]`` with ``batch_first``, ``[T, I]`` unbatched, or a PackedSequence.
            hx: initial state ``h0``, or ``(h0, c0)`` for LSTM; zeros if None. ``[L * D, B, P]``, ``[L * D, B, H]``.
            lengths: of the sequences of a padded batch, in any order, ``[B]`` integers from 0 to T, best on the CPU.
                The result is that of packing, the layer, and padding: the output is zero beyond a length, the final
                states are those of each last step, and what the padding holds does not matter.

        Returns:
            ``(output, h_n)``, or ``(output, (h_n, c_n))`` for LSTM.

        Raises:
            ValueError: input of a wrong rank or dtype.
            RuntimeError: sizes that do not fit, or T = 0; tensors of several devices; a nested tensor.
            TypeError, ValueError: lengths that are no integers, or do not fit the input.
        """
        plain = lengths is None and self._asked is None and self.num_layers == 1
        if plain and hx is None and not torch.is_grad_enabled():  # as below, at less cost
            found = recurrent_from_zeros(self.cell, input, self.batch_first, self._weights(0), self.strategy)
            if found is not None:
                return found
        if not isinstance(input, Tensor):
            if not isinstance(input, PackedSequence):
                raise TypeError(f"{self._get_name()} expects a tensor or a PackedSequence, got {type(input).__name__}")
            if lengths is not None:
                raise ValueError("lengths are those of a padded batch, [T, B, I] or [B, T, I]; got a PackedSequence")
            return self._forward_packed(input, given_state(self, hx, CELLS[self.cell].has_cell_state))
        if input.is_nested:
            raise RuntimeError(
                f"{self._get_name()} expects a PackedSequence or a padded batch with lengths=, got a nested tensor"
            )
        if lengths is not None:
            check_padded(input)
        rank = input.dim()
        if rank not in (2, 3):
            raise ValueError(f"{self._get_name()}: Expected input to be 2D or 3D, got {rank}D tensor instead")
        batched = rank == 3
        if hx is not None:
            hx = given_state(self, hx, CELLS[self.cell].has_cell_state)
            self._check_state_rank(hx, batched)
        if not batched:
            input = input.unsqueeze(0 if self.batch_first else 1)
            hx = _map(hx, lambda state: state.unsqueeze(1))
        x = input.transpose(0, 1) if self.batch_first else input
        steps, batch, _ = x.shape
        if hx is None:
            self.check_input(input, None)
            hx = self._initial(input, batch)
        else:
            self.check_forward_args(input, hx, None)
        if steps == 0:
            raise RuntimeError(f"Expected sequence length to be larger than 0 in {self._get_name()}")
        if lengths is not None:
            check_lengths(lengths, batch, steps)
        if plain and not torch.compiler.is_compiling() and batch:  # a graph for all sizes takes rows
            y, hidden = self._run(x, hx, None)
        elif lengths is None or _exports_to_onnx():
            y, hidden = self._run(x.flatten(0, 1), hx, None, lengths)
            y = y.view(steps, batch, -1) if batch else y.new_empty(steps, batch, y.shape[1])
        else:
            packing = Packing.of(lengths, x)
            y, hidden = self._run(packing.rows(x), self.permute_hidden(hx, packing.order), packing.batch_sizes)
            y, hidden = packing.padded(y), self.permute_hidden(hidden, packing.place)
        y = y.transpose(0, 1) if self.batch_first else y
        if not batched:
            y = y.squeeze(0 if self.batch_first else 1)
            hidden = _map(hidden, lambda state: state.squeeze(1))
        return y, hidden

    def _forward_packed(self, packed: PackedSequence, hx):
        data, batch_sizes, sorted_indices, unsorted_indices = packed
        if hx is None:
            hx = self._initial(data, int(batch_sizes[0]))
        else:
            hx = self.permute_hidden(hx, sorted_indices)
        self.check_forward_args(data, hx, batch_sizes)
        y, hidden = self._run(data, hx, batch_sizes)
        output = PackedSequence(y, batch_sizes, sorted_indices, unsorted_indices)
        return output, self.permute_hidden(hidden, unsorted_indices)

    def step(self, x_t: Tensor, state: Hidden | None = None) -> tuple[Tensor, Hidden]:
        """Advance every layer by one time step, for streaming.

        In training every call is a sequence of its own to recurrent dropout and zoneout, which draw anew.

        Args:
            x_t: input of the step, ``[B, I]``.
            state: what the previous call returned, or None to start from zeros.

        Returns:
            ``(y_t, state)`` with ``y_t`` ``[B, P]``.

        Raises:
            TypeError: ``x_t`` is no tensor.
            ValueError: the layer is bidirectional (the future is not known), or ``x_t`` is not ``[B, I]``.
        """
        if self.bidirectional:
            raise ValueError("step() needs a layer with one direction: bidirectional=True reads the future")
        check_token(self, x_t, self.input_size)
        hx = given_state(self, state, CELLS[self.cell].has_cell_state)
        hx = self._initial(x_t, x_t.shape[0]) if hx is None else hx
        self.check_forward_args(x_t.unsqueeze(1 if self.batch_first else 0), hx, None)
        return self._run(x_t, hx, None)

    def _check_state_rank(self, hx: Hidden, batched: bool) -> None:
        rank, name = (3, "batched 3-D") if batched else (2, "unbatched 2-D")
        states = (hx,) if isinstance(hx, Tensor) else hx
        if any(state.dim() != rank for state in states):
            got = ", ".join(f"{state.dim()}-D" for state in states)
            what = "hx" if isinstance(hx, Tensor) else "hx and cx"
            hint = lengths_hint(hx)
            raise RuntimeError(f"For {name} input, {what} should also be {rank}-D but got {got} tensor{hint}")

    def _initial(self, input: Tensor, batch: int) -> Hidden:
        stack = self.num_layers * (2 if self.bidirectional else 1)
        h0 = input.new_zeros(stack, batch, self.proj_size or self.hidden_size)
        if not CELLS[self.cell].has_cell_state:
            return h0
        return h0, input.new_zeros(stack, batch, self.hidden_size) if self.proj_size else h0

    def _run(
        self, x: Tensor, hx: Hidden, batch_sizes: Tensor | None, lengths: Tensor | None = None
    ) -> tuple[Tensor, Hidden]:
        """``_all_layers``, whose refusal of a dtype or device becomes what torch.nn raises, at no cost before it."""
        try:
            return self._all_layers(x, hx, batch_sizes, lengths)
        except TypeError:
            check_device(x, self._weight("weight_ih_l0"))
            for i, state in enumerate(hx if isinstance(hx, tuple) else (hx,)):
                check_kind(f"hidden[{i}]" if isinstance(hx, tuple) else "hidden", state, x)
            raise

    def _all_layers(
        self, x: Tensor, hx: Hidden, batch_sizes: Tensor | None, lengths: Tensor | None
    ) -> tuple[Tensor, Hidden]:
        """All layers over rows ``[N, I]``: of sequences of one length, packed with their sizes, padded with theirs."""
        h0, c0 = hx if isinstance(hx, tuple) else (hx, None)
        directions = 2 if self.bidirectional else 1
        if self.num_layers > 1 and directions == 1 and not self.proj_size and self._asked is None and lengths is None:
            weights = [self._weights(layer)[:4] for layer in range(self.num_layers)]
            dropout = self.training and self.dropout > 0
            together = recurrent_layers(self.cell, x, h0, c0, weights, batch_sizes, self.strategy, dropout)
            if together is not None:
                y, h_n, c_n = together
                return y, h_n if c_n is None else (h_n, c_n)
        if self.num_layers == 1 and self._asked is None:  # as below, at less cost
            x, h_n, c_n = recurrent(
                self.cell, x, h0, c0, *self._weights(0), batch_sizes, self.strategy, lengths=lengths
            )
            return x, h_n if c_n is None else (h_n, c_n)
        last_h, last_c = [], []
        for layer in range(self.num_layers):
            if layer and self.dropout:
                x = nn.functional.dropout(x, self.dropout, self.training)
            start_h, start_c = h0, c0
            if self.num_layers > 1:
                part = slice(layer * directions, (layer + 1) * directions)
                start_h, start_c = h0[part], None if c0 is None else c0[part]
            if self.heads > 1:
                start_h, start_c = split_heads(start_h, self.heads), split_heads(start_c, self.heads)
            x, h_n, c_n = recurrent(
                self.cell, x, start_h, start_c, *self._weights(layer), batch_sizes, self.strategy,
                lengths=lengths, **self._drawn(start_h, directions), **self._gains(layer),
            )  # fmt: skip
            if self.heads > 1:
                h_n, c_n = join_heads(h_n, self.heads), join_heads(c_n, self.heads)
            last_h.append(h_n)
            last_c.append(c_n)
        h_n = last_h[0] if len(last_h) == 1 else torch.cat(last_h)
        if c0 is None:
            return x, h_n
        return x, (h_n, last_c[0] if len(last_c) == 1 else torch.cat(last_c))


def _map(hidden, function):
    """Apply a function to each state tensor."""
    if hidden is None:
        return None
    return tuple(map(function, hidden)) if isinstance(hidden, tuple) else function(hidden)


def _exports_to_onnx() -> bool:
    """Whose operators take padded rows, and no packed ones."""
    return torch.compiler.is_exporting() and torch.onnx.is_in_onnx_export()


def layer_of(cell: str) -> tuple[type[RecurrentLayer], dict]:
    """The layer class that runs a cell, and the arguments that select the cell."""
    return next((c, c.variants[cell]) for c in RecurrentLayer.__subclasses__() if cell in c.variants)


class RNN(RecurrentLayer):
    r"""Elman network, as ``torch.nn.RNN``: :math:`h_t = \tanh(W_{ih} x_t + b_{ih} + W_{hh} h_{t-1} + b_{hh})`.

    Differs from torch in ``strategy``, ``step()``, torch.compile without a graph break, second-order gradients, and
    backward in eval mode on every device. Under autocast outputs have autocast's dtype.

    Args:
        input_size, hidden_size, num_layers, nonlinearity, bias, batch_first, dropout, bidirectional, device, dtype:
            as ``torch.nn.RNN``.
        strategy: how to run (``fusednn.plan.STRATEGIES``); ``auto`` takes the best that can serve the request.
        heads, recurrent_dropout, zoneout, layer_norm, recompute, weight_drop: options of the recurrence, one by one in
            ``docs/layers.md``.
        init, forget_bias: how the parameters start; likewise.

    Shape:
        as ``torch.nn.RNN``.

    Raises:
        TypeError, ValueError: as ``torch.nn.RNN``; ValueError for an unknown strategy.

    Example:
        >>> import torch, fusednn
        >>> rnn = fusednn.RNN(10, 20, num_layers=2)
        >>> output, h_n = rnn(torch.randn(5, 3, 10))
        >>> output.shape, h_n.shape
        (torch.Size([5, 3, 20]), torch.Size([2, 3, 20]))

    Source: Elman, Finding structure in time, 1990.
    """

    variants: ClassVar = {"rnn_tanh": {}, "rnn_relu": {"nonlinearity": "relu"}}

    def __init__(
        self, input_size: int, hidden_size: int, num_layers: int = 1, nonlinearity: str = "tanh", *args, **kwargs
    ) -> None:
        if "proj_size" in kwargs:
            raise ValueError("proj_size argument is only supported for LSTM, not RNN or GRU")
        if nonlinearity not in ("tanh", "relu"):
            raise ValueError(f"Unknown nonlinearity '{nonlinearity}'. Select from 'tanh' or 'relu'.")
        self.nonlinearity = nonlinearity
        super().__init__(f"RNN_{nonlinearity.upper()}", input_size, hidden_size, num_layers, *args, **kwargs)


class LSTM(RecurrentLayer):
    r"""Long short-term memory, as ``torch.nn.LSTM``, projections (``proj_size``) included.

    .. math::
        i, f, o = \sigma(W x_t + b + U h_{t-1} + b'), \quad g = \tanh(\ldots), \quad
        c_t = f c_{t-1} + i g, \quad h_t = o \tanh(c_t)

    Differs from torch in ``strategy``, ``step()``, torch.compile without a graph break, second-order gradients, and
    backward in eval mode on every device. Under autocast outputs have autocast's dtype.

    Args:
        input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, proj_size, device, dtype:
            as ``torch.nn.LSTM``.
        strategy: how to run (``fusednn.plan.STRATEGIES``); ``auto`` takes the best that can serve the request.
        heads, recurrent_dropout, zoneout, layer_norm, recompute, weight_drop: options of the recurrence, one by one in
            ``docs/layers.md``.
        init, forget_bias: how the parameters start; likewise.

    Shape:
        as ``torch.nn.LSTM``.

    Raises:
        TypeError, ValueError: as ``torch.nn.LSTM``; ValueError for an unknown strategy.

    Example:
        >>> import torch, fusednn
        >>> lstm = fusednn.LSTM(10, 20, batch_first=True)
        >>> output, (h_n, c_n) = lstm(torch.randn(3, 5, 10))
        >>> output.shape, c_n.shape
        (torch.Size([3, 5, 20]), torch.Size([1, 3, 20]))

    Source: Hochreiter and Schmidhuber, 1997; forget gate by Gers, Schmidhuber and Cummins, 2000; projection by Sak,
    Senior and Beaufays, 2014.
    """

    variants: ClassVar = {"lstm": {}}

    def __init__(self, *args, **kwargs) -> None:
        super().__init__("LSTM", *args, **kwargs)


class GRU(RecurrentLayer):
    r"""Gated recurrent unit, as ``torch.nn.GRU``.

    .. math::
        r, z = \sigma(W x_t + b + U h_{t-1} + b'), \quad n = \tanh(W_n x_t + b_n + r (U_n h_{t-1} + b'_n)), \quad
        h_t = (1 - z) n + z h_{t-1}

    Differs from torch in ``strategy``, ``reset_after``, ``step()``, torch.compile without a graph break, second-order
    gradients, and backward in eval mode on every device. Under autocast outputs have autocast's dtype.

    Args:
        input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, device, dtype:
            as ``torch.nn.GRU``.
        reset_after: True for torch's form above; False for the form of most texts, with the reset before the product,
            :math:`n = \tanh(W_n x_t + b_n + U_n (r h_{t-1}) + b'_n)` and :math:`h_t = (1 - z) h_{t-1} + z n`.
        strategy: how to run (``fusednn.plan.STRATEGIES``); ``auto`` takes the best that can serve the request.
        heads, recurrent_dropout, zoneout, layer_norm, recompute, weight_drop: options of the recurrence, one by one in
            ``docs/layers.md``.
        init, forget_bias: how the parameters start; likewise.

    Shape:
        as ``torch.nn.GRU``.

    Raises:
        TypeError, ValueError: as ``torch.nn.GRU``; ValueError for an unknown strategy.

    Example:
        >>> import torch, fusednn
        >>> gru = fusednn.GRU(10, 20, bidirectional=True)
        >>> output, h_n = gru(torch.randn(5, 3, 10))
        >>> output.shape, h_n.shape
        (torch.Size([5, 3, 40]), torch.Size([2, 3, 20]))

    Source: Cho et al., Learning phrase representations using RNN encoder-decoder, 2014.
    """

    variants: ClassVar = {"gru": {}, "gru_reset_before": {"reset_after": False}}
    reset_after: bool = True

    def __init__(self, *args, reset_after: bool = True, **kwargs) -> None:
        if "proj_size" in kwargs:
            raise ValueError("proj_size argument is only supported for LSTM, not RNN or GRU")
        if not isinstance(reset_after, bool):
            raise ValueError(f"reset_after must be True or False, got {reset_after!r}")
        super().__init__("GRU", *args, **kwargs)
        self.reset_after = reset_after

    @property
    def cell(self) -> str:
        """``gru``, or ``gru_reset_before``."""
        return "gru" if self.reset_after else "gru_reset_before"

    def extra_repr(self) -> str:
        """As torch.nn's, with ``reset_after`` where it is not torch's."""
        return super().extra_repr() + ("" if self.reset_after else ", reset_after=False")
