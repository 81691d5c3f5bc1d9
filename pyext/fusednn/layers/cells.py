"""RNNCell, LSTMCell and GRUCell: one step, torch.nn's constructors and semantics."""

from __future__ import annotations

from torch import Tensor, nn

from .. import plan
from ..functional import recurrent
from .inputs import check_device, check_kind
from .scripting import refuse_script


class RecurrentCell(nn.RNNCellBase):
    """One step through the same operator as a sequence, at T = 1."""

    strategy: str = "auto"
    __prepare_scriptable__ = refuse_script

    @property
    def cell(self) -> str:
        """Name of the cell in the registry."""
        raise NotImplementedError

    def _step(self, input: Tensor, states: tuple[Tensor, ...] | None, count: int) -> tuple[Tensor, ...]:
        name = self._get_name()
        for what, value in (("input", (input,)), ("hx", states or ())):
            if not all(isinstance(part, Tensor) for part in value):
                raise TypeError(f"{name} expects {what} of tensors, got {', '.join(type(v).__name__ for v in value)}")
        if input.dim() not in (1, 2):
            raise ValueError(f"{name}: Expected input to be 1D or 2D, got {input.dim()}D instead")
        for i, state in enumerate(states or ()):
            if state.dim() not in (1, 2):
                which = "hidden" if count == 1 else f"hx[{i}]"
                raise ValueError(f"{name}: Expected {which} to be 1D or 2D, got {state.dim()}D instead")
            if state.dim() != input.dim():
                raise RuntimeError(f"hidden{i} must be {input.dim()}D as the input is, got {state.dim()}D")
        batched = input.dim() == 2
        x = input if batched else input.unsqueeze(0)
        if states is None:
            states = (x.new_zeros(x.shape[0], self.hidden_size),) * count
        elif not batched:
            states = tuple(state.unsqueeze(0) for state in states)
        self._check(x, states)
        biases = (None, None) if self.bias_ih is None else (self.bias_ih.unsqueeze(0), self.bias_hh.unsqueeze(0))
        try:
            _, h, c = recurrent(
                self.cell,
                x,
                states[0].unsqueeze(0),
                states[1].unsqueeze(0) if count == 2 else None,
                self.weight_ih.unsqueeze(0),
                self.weight_hh.unsqueeze(0),
                *biases,
                strategy=self.strategy,
            )
        except TypeError:  # a dtype or device: as torch.nn raises it, at no cost before
            check_device(x, self.weight_ih)
            check_kind("input", x, self.weight_ih, "the weights")
            for i, state in enumerate(states):
                check_kind(f"hidden{i}", state, x)
            raise
        result = (h.squeeze(0),) if c is None else (h.squeeze(0), c.squeeze(0))
        return result if batched else tuple(state.squeeze(0) for state in result)

    def _check(self, x: Tensor, states: tuple[Tensor, ...]) -> None:
        """Raise as torch.nn does, in its words, where sizes do not fit."""
        if x.shape[1] != self.input_size:
            raise RuntimeError(f"input has inconsistent input_size: got {x.shape[1]} expected {self.input_size}")
        for i, state in enumerate(states):
            if state.shape[0] != x.shape[0]:
                raise RuntimeError(f"Input batch size {x.shape[0]} doesn't match hidden{i} batch size {state.shape[0]}")
            if state.shape[1] != self.hidden_size:
                raise RuntimeError(
                    f"hidden{i} has inconsistent hidden_size: got {state.shape[1]}, expected {self.hidden_size}"
                )

    def _set_strategy(self, strategy: str) -> None:
        if strategy not in plan.NAMES:
            raise ValueError(f"strategy must be one of {', '.join(plan.NAMES)}, got {strategy!r}")
        self.strategy = strategy


class RNNCell(RecurrentCell, nn.RNNCell):
    """One Elman step, as ``torch.nn.RNNCell``; ``strategy`` as in ``fusednn.RNN``.

    Example:
        >>> import torch, fusednn
        >>> fusednn.RNNCell(10, 20)(torch.randn(3, 10)).shape
        torch.Size([3, 20])
    """

    def __init__(self, *args, strategy: str = "auto", **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self._set_strategy(strategy)

    @property
    def cell(self) -> str:
        """Name of the cell in the registry."""
        if self.nonlinearity not in ("tanh", "relu"):
            raise RuntimeError(f"Unknown nonlinearity: {self.nonlinearity}")
        return f"rnn_{self.nonlinearity}"

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        """``[B, I]`` or ``[I]``, and h ``[B, H]`` or ``[H]``, to the next h."""
        return self._step(input, None if hx is None else (hx,), 1)[0]


class LSTMCell(RecurrentCell, nn.LSTMCell):
    """One LSTM step, as ``torch.nn.LSTMCell``; ``strategy`` as in ``fusednn.LSTM``.

    Example:
        >>> import torch, fusednn
        >>> h, c = fusednn.LSTMCell(10, 20)(torch.randn(3, 10))
        >>> h.shape, c.shape
        (torch.Size([3, 20]), torch.Size([3, 20]))
    """

    def __init__(self, *args, strategy: str = "auto", **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self._set_strategy(strategy)

    @property
    def cell(self) -> str:
        """``lstm``."""
        return "lstm"

    def forward(self, input: Tensor, hx: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """``[B, I]`` or ``[I]``, and (h, c), to the next (h, c)."""
        if hx is not None and (isinstance(hx, Tensor) or len(hx) != 2):
            got = "a tensor" if isinstance(hx, Tensor) else f"{len(hx)} values"
            raise RuntimeError(f"{self._get_name()} expects hx=(h, c), got {got}")
        states = self._step(input, hx, 2)
        return states[0], states[1]


class GRUCell(RecurrentCell, nn.GRUCell):
    """One GRU step, as ``torch.nn.GRUCell``; ``strategy`` and ``reset_after`` as in ``fusednn.GRU``.

    Example:
        >>> import torch, fusednn
        >>> fusednn.GRUCell(10, 20)(torch.randn(3, 10)).shape
        torch.Size([3, 20])
    """

    reset_after: bool = True

    def __init__(self, *args, strategy: str = "auto", reset_after: bool = True, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self._set_strategy(strategy)
        self.reset_after = reset_after

    @property
    def cell(self) -> str:
        """``gru``, or ``gru_reset_before``."""
        return "gru" if self.reset_after else "gru_reset_before"

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        """``[B, I]`` or ``[I]``, and h ``[B, H]`` or ``[H]``, to the next h."""
        return self._step(input, None if hx is None else (hx,), 1)[0]
