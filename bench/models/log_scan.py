"""MinGRU and MinLSTM as their paper gives them: a scan in log space by torch's cumsum and logcumsumexp.

Source: L. Feng et al., arXiv:2410.01201, appendix B (after F. Heinsen, arXiv:2311.06281). This is what a user of plain
PyTorch has, and so the baseline of ``fusednn.MinGRU`` and ``MinLSTM``; parameters have the same names and shapes.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def _log_positive(x: Tensor) -> Tensor:
    return torch.where(x >= 0, (F.relu(x) + 0.5).log(), F.logsigmoid(x))


class LogScan(nn.Module):
    """Layers of one gated linear recurrence each; states start from zero."""

    def __init__(
        self, cell: str, input_size: int, hidden_size: int, num_layers: int = 1, batch_first: bool = False
    ) -> None:
        super().__init__()
        self.cell, self.hidden_size, self.num_layers, self.batch_first = cell, hidden_size, num_layers, batch_first
        rows, bound = {"MinGRU": 2, "MinLSTM": 3}[cell] * hidden_size, 1 / math.sqrt(hidden_size)
        for layer in range(num_layers):
            inputs = input_size if layer == 0 else hidden_size
            for name, shape in ((f"weight_ih_l{layer}", (rows, inputs)), (f"bias_ih_l{layer}", (rows,))):
                self.register_parameter(name, nn.Parameter(torch.empty(shape).uniform_(-bound, bound)))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """As ``fusednn.MinGRU``: states of all steps, and the last of each layer."""
        time, last = 1 if self.batch_first else 0, []
        for layer in range(self.num_layers):
            parts = F.linear(x, getattr(self, f"weight_ih_l{layer}"), getattr(self, f"bias_ih_l{layer}"))
            log_a, log_b = self._logs(*parts.split(self.hidden_size, dim=-1))
            log_kept = log_a.cumsum(time)
            x = (log_kept + (log_b - log_kept).logcumsumexp(time)).exp()
            last.append(x.select(time, -1))
        return x, torch.stack(last)

    def _logs(self, *gates: Tensor) -> tuple[Tensor, Tensor]:
        """The logarithms of a and b."""
        share = gates[0] if self.cell == "MinGRU" else F.softplus(-gates[0]) - F.softplus(-gates[1])
        return -F.softplus(share), -F.softplus(-share) + _log_positive(gates[-1])
