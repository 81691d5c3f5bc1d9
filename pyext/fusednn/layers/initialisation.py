"""How a recurrent layer's parameters start where torch.nn's way is not wanted."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..reference.cells import CELLS

WEIGHTS = ("torch", "identity", "orthogonal")


class Initialisation(NamedTuple):
    """What is asked for; as given: torch.nn's.

    Attributes:
        init: of the recurrent weights ``weight_hh``, gate by gate and head by head, ``[H, P]`` each: ``identity``, Le,
            Jaitly and Hinton, arXiv:1504.00941; ``orthogonal``, Saxe, McClelland and Ganguli, arXiv:1312.6120.
        forget_bias: what the two biases of a forget gate add up to: ``bias_ih`` has it, and ``bias_hh`` 0. Jozefowicz,
            Zaremba and Sutskever, ICML 2015.
    """

    init: str = "torch"
    forget_bias: float | None = None

    def checked(self, cell: str, bias: bool) -> Initialisation:
        """This. Raises ValueError unless it makes sense for a layer of this cell."""
        if self.init not in WEIGHTS:
            raise ValueError(f"init must be one of {', '.join(WEIGHTS)}, got {self.init!r}")
        wanted = self.forget_bias
        if wanted is None:
            return self
        if not isinstance(wanted, (int, float)) or isinstance(wanted, bool):
            raise ValueError(f"forget_bias must be a number, got {wanted!r}")
        if not CELLS[cell].has_cell_state:
            raise ValueError(f"forget_bias={wanted} needs a cell with a forget gate, lstm; got {cell}")
        if not bias:
            raise ValueError(f"forget_bias={wanted} needs biases, got bias=False")
        return self

    def given(self) -> dict[str, Any]:
        """What is asked for, as constructor arguments."""
        return {name: value for name, value in self._asdict().items() if value != self._field_defaults[name]}

    @torch.no_grad()
    def apply(self, layer: nn.RNNBase, cell: str, heads: int) -> None:
        """Write over what torch.nn's way has drawn."""
        units = layer.hidden_size // heads
        for name, parameter in layer.named_parameters():
            if name.startswith("weight_hh") and self.init != "torch":
                for gate in parameter.split(units):
                    gate.copy_(_start(self.init, gate))
            elif name.startswith("bias_") and self.forget_bias is not None:
                of_gates = parameter.view(heads, -1, units)
                of_gates[:, CELLS[cell].gates.index("f")] = self.forget_bias if name.startswith("bias_ih") else 0.0


def _start(init: str, like: Tensor) -> Tensor:
    start = torch.empty_like(like, dtype=torch.promote_types(like.dtype, torch.float32))  # QR has no 16-bit dtypes
    return nn.init.eye_(start) if init == "identity" else nn.init.orthogonal_(start)
