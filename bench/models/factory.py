"""Where a model gets its layers from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from bench import layers


@dataclass(frozen=True)
class Factory:
    """Makes layers of one implementation: ``torch.nn``, ``fusednn``, or a rung of the ladder by name."""

    impl: str

    def recurrent(self, cell: str, inputs: int, width: int, **options: Any) -> nn.Module:
        return layers.recurrent(self.impl, cell, inputs, width, batch_first=True, **options)

    def encoder_layer(self, d: int, heads: int, ff: int, **options: Any) -> nn.Module:
        return layers.encoder_layer(self.impl, d, heads, ff, **options)
