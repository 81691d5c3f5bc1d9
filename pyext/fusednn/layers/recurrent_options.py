"""Options of the recurrent layers: heads, recurrent dropout, zoneout, recomputation."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .. import plan
from ..reference.cells import CELLS


class RecurrentOptions:
    """What a recurrent layer may ask for beside its cell; ``docs/kernels/recurrent_options.md`` has the equations.

    Attributes:
        heads: N independent recurrences of H / N units each, over the same input. ``weight_hh_l0`` is
            ``[G * H, H / N]`` and ``weight_hr_l0`` ``[P, H / N]``; every weight and bias holds, one after the other,
            the lines of N layers of ``hidden_size=H / N``, and h and c hold their units likewise.
        recurrent_dropout: in training, probability that a unit of h is dropped where it enters W_hh, in all steps of a
            sequence alike, others scaled by 1 / (1 - p). Gal and Ghahramani, arXiv:1512.05287.
        zoneout: probability that a unit keeps its state of the step before; one for h and c, or a pair. In training
            drawn at each step, in evaluation the expectation. Krueger et al., arXiv:1606.01305.
        recompute: keep y and c alone for backward, which computes the gates again.
    """

    # On the class, so that a torch.nn instance can take a layer's class over.
    heads: int = 1
    recurrent_dropout: float = 0.0
    zoneout: float | tuple[float, float] = 0.0
    recompute: bool = False
    hidden_size: int
    proj_size: int
    strategy: str
    cell: str
    training: bool

    def _set_options(self, heads, recurrent_dropout, zoneout, recompute) -> None:
        if not isinstance(heads, int) or heads < 1:
            raise ValueError(f"heads must be a positive integer, got {heads!r}")
        for name in ("hidden_size", "proj_size"):
            if getattr(self, name) % heads:
                raise ValueError(f"heads must divide {name}={getattr(self, name)}, got {heads}")
        kept = zoneout if isinstance(zoneout, (tuple, list)) else (zoneout,)
        for name, p in (("recurrent_dropout", recurrent_dropout), *(("zoneout", p) for p in kept)):
            if not isinstance(p, (int, float)) or isinstance(p, bool) or not 0 <= p <= 1:
                raise ValueError(f"{name} must be a probability between 0 and 1, got {p!r}")
        if isinstance(zoneout, (tuple, list)):
            if len(zoneout) != 2 or not CELLS[self.cell].has_cell_state:
                raise ValueError(f"zoneout must be one probability, or for a cell with c a pair, got {zoneout!r}")
            zoneout = tuple(zoneout) if any(zoneout) else 0.0
        if not isinstance(recompute, bool):
            raise ValueError(f"recompute must be True or False, got {recompute!r}")
        self.heads, self.recurrent_dropout, self.zoneout, self.recompute = heads, recurrent_dropout, zoneout, recompute
        plan.refuse_options(self.strategy, self.options_asked())

    def options(self) -> dict[str, Any]:
        """Those that are asked for, as constructor arguments."""
        names = ("heads", "recurrent_dropout", "zoneout", "recompute")
        return {name: getattr(self, name) for name in names if getattr(self, name) != getattr(RecurrentOptions, name)}

    def options_asked(self) -> tuple[str, ...]:
        """Those that are asked for, as the plan table names them."""
        return tuple(name.replace("_", " ") for name in self.options())

    def _drawn(self, h0: Tensor, directions: int) -> dict[str, Any]:
        """Arguments of ``functional.recurrent`` for one sequence from h0, ``[D, B, P]``."""
        if not self.options():
            return {}
        mask = seed = None
        if self.training and self.recurrent_dropout:
            mask = nn.functional.dropout(torch.ones_like(h0), self.recurrent_dropout)
        if self.training and self.zoneout:
            seed = torch.randint(2**63 - 1, (directions,), device=h0.device)
        return {
            "heads": self.heads,
            "recurrent_mask": mask,
            "zoneout": self.zoneout,
            "zoneout_seed": seed,
            "recompute": self.recompute,
        }


def split_heads(state: Tensor | None, heads: int) -> Any:
    """``[D, B, N * H]`` to ``[D * N, B, H]``."""
    return None if state is None else state.unflatten(2, (heads, -1)).transpose(1, 2).flatten(0, 1)


def join_heads(state: Tensor | None, heads: int) -> Any:
    """``[D * N, B, H]`` to ``[D, B, N * H]``."""
    return None if state is None else state.unflatten(0, (-1, heads)).transpose(1, 2).flatten(2)
