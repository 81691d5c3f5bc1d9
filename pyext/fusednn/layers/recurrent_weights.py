"""The parameters of a recurrent layer: torch.nn's, those of options, and how kernels take them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .recurrent_options import RecurrentOptions


class RecurrentWeights(RecurrentOptions, nn.RNNBase):
    """The part of a recurrent layer that knows its parameters."""

    def _resize(self, gates: int) -> None:
        """Give a cell that torch does not know its own number of gates, and heads their own weights."""
        for name in self._flat_weights_names:
            parameter = getattr(self, name)
            lines = self.proj_size if name.startswith("weight_hr") else gates * self.hidden_size
            columns = [n // (1 if name.startswith("weight_ih") else self.heads) for n in parameter.shape[1:]]
            setattr(self, name, nn.Parameter(parameter.new_empty(lines, *columns)))
        self._init_flat_weights()
        self.reset_parameters()

    def _add_gains(self) -> None:
        for name in self._flat_weights_names:
            if name.startswith(("weight_ih", "weight_hh")):
                weight = getattr(self, name)
                self.register_parameter(name.replace("weight", "norm"), nn.Parameter(weight.new_ones(weight.shape[0])))

    def _weights(self, layer: int) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None]:
        """w_ih, w_hh, b_ih, b_hh, w_hr of a layer, as ``_stacked`` gives them."""
        if self._asked is None and not (self.bidirectional or self.proj_size):  # as they are, at less cost
            found: dict[str, Any] = self._parameters
            names = self._all_weights[layer]
            try:
                if not self.bias:
                    return found[names[0]], found[names[1]], None, None, None
                return found[names[0]], found[names[1]], found[names[2]], found[names[3]], None
            except KeyError:  # torch.nn.utils.parametrize has put something in its place
                pass
        return (
            self._stacked("weight_ih", layer),
            self._dropped(self._stacked("weight_hh", layer)),
            self._stacked("bias_ih", layer) if self.bias else None,
            self._stacked("bias_hh", layer) if self.bias else None,
            self._stacked("weight_hr", layer) if self.proj_size else None,
        )

    def _stacked(self, name: str, layer: int) -> Tensor:
        """A weight with directions and heads in front where there are several."""
        found = self._weight(f"{name}_l{layer}")
        if self.bidirectional:
            found = torch.stack((found, self._weight(f"{name}_l{layer}_reverse")))
        if self.heads == 1:
            return found
        lines = found.unflatten(1 if self.bidirectional else 0, (self.heads, -1))  # of each head
        return lines.flatten(0, 1) if self.bidirectional else lines

    def _gains(self, layer: int) -> dict[str, Any]:
        """Arguments of layer norm."""
        if not self.layer_norm:
            return {}
        return {f"norm_{side}": self._stacked(f"norm_{side}", layer) for side in ("ih", "hh")}

    def _weight(self, name: str) -> Tensor:
        """A parameter, or what torch.nn.utils.parametrize put in its place."""
        found = self._parameters.get(name)
        return getattr(self, name) if found is None else found
