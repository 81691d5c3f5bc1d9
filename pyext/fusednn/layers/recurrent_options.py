"""Options of the recurrent layers: heads, recurrent dropout, zoneout, layer norm, recomputation, weight drop."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .. import plan
from ..reference.cells import CELLS
from ..reference.options import NAMES


class Asked(NamedTuple):
    """What a layer asks for beside its cell; as given: nothing.

    Attributes:
        heads: N independent recurrences of H / N units each, over the same input. ``weight_hh_l0`` is
            ``[G * H, H / N]`` and ``weight_hr_l0`` ``[P, H / N]``; every weight and bias holds, one after the other,
            the lines of N layers of ``hidden_size=H / N``, and h and c hold their units likewise.
        recurrent_dropout: in training, probability that a unit of h is dropped where it enters W_hh, in all steps of a
            sequence alike, others scaled by 1 / (1 - p). Gal and Ghahramani, arXiv:1512.05287.
        zoneout: probability that a unit keeps its state of the step before; one for h and c, or a pair. In training
            drawn at each step, in evaluation the expectation. Krueger et al., arXiv:1606.01305.
        layer_norm: the gates' input part W_ih x and recurrent part W_hh h are each normalised over all gates and
            units of a head, with gains ``norm_ih_l0`` and ``norm_hh_l0``, ``[G * H]``, and the biases behind them. Ba,
            Kiros and Hinton, arXiv:1607.06450.
        recompute: keep y and c alone for backward, which computes the gates again.
        weight_drop: in training, probability that an entry of W_hh is dropped, one draw for a whole call, others scaled
            by 1 / (1 - p). Merity, Keskar and Socher, arXiv:1708.02182.
    """

    heads: int = 1
    recurrent_dropout: float = 0.0
    zoneout: float | tuple[float, float] = 0.0
    layer_norm: bool = False
    recompute: bool = False
    weight_drop: float = 0.0

    def checked(self, cell: str, **sizes: int) -> Asked:
        """This, with zoneout in one form. Raises ValueError unless it makes sense for a layer of these sizes."""
        if not isinstance(self.heads, int) or self.heads < 1:
            raise ValueError(f"heads must be a positive integer, got {self.heads!r}")
        for name, size in sizes.items():
            if size % self.heads:
                raise ValueError(f"heads must divide {name}={size}, got {self.heads}")
        zoneout, pair = self.zoneout, isinstance(self.zoneout, (tuple, list))
        kept = zoneout if isinstance(zoneout, (tuple, list)) else (zoneout,)
        dropped = [(name, getattr(self, name)) for name in ("recurrent_dropout", "weight_drop")]
        for name, p in (*dropped, *(("zoneout", p) for p in kept)):
            if not isinstance(p, (int, float)) or isinstance(p, bool) or not 0 <= p <= 1:
                raise ValueError(f"{name} must be a probability between 0 and 1, got {p!r}")
        if pair and (len(kept) != 2 or not CELLS[cell].has_cell_state):
            raise ValueError(f"zoneout must be one probability, or for a cell with c a pair, got {zoneout!r}")
        for name in ("layer_norm", "recompute"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} must be True or False, got {getattr(self, name)!r}")
        return self._replace(zoneout=(tuple(kept) if any(kept) else 0.0) if pair else zoneout)

    def given(self) -> dict[str, Any]:
        """Those that are asked for, as constructor arguments."""
        return {name: value for name, value in self._asdict().items() if value != self._field_defaults[name]}


class RecurrentOptions:
    """The part of a recurrent layer that knows its options, which stay as they were at construction."""

    _asked: Asked | None = None  # none; on the class, so that a torch.nn instance can take a layer's class over
    training: bool

    @property
    def heads(self) -> int:
        """How many recurrences each direction has."""
        return 1 if self._asked is None else self._asked.heads

    @property
    def layer_norm(self) -> bool:
        """Whether the gates are normalised."""
        return self._asked is not None and self._asked.layer_norm

    @property
    def options(self) -> dict[str, Any]:
        """Those that are asked for, as constructor arguments."""
        return {} if self._asked is None else self._asked.given()

    @property
    def option_names(self) -> tuple[str, ...]:
        """Those that are asked for and that kernels have to know, as the plan table names them."""
        return tuple(name for name in NAMES if name.replace(" ", "_") in self.options)

    def _ask(self, asked: Asked, strategy: str) -> None:
        if asked.given():
            self._asked = asked
        plan.refuse_options(strategy, self.option_names)

    def _dropped(self, w_hh: Tensor) -> Tensor:
        """The recurrent weights of a call."""
        p = 0.0 if self._asked is None else self._asked.weight_drop
        return nn.functional.dropout(w_hh, p) if p and self.training else w_hh

    def _drawn(self, h0: Tensor, directions: int) -> dict[str, Any]:
        """Arguments of ``functional.recurrent`` for one sequence from h0, ``[D, B, P]``."""
        asked = self._asked
        if asked is None:
            return {}
        mask = seed = None
        if self.training and asked.recurrent_dropout:
            mask = nn.functional.dropout(torch.ones_like(h0), asked.recurrent_dropout)
        if self.training and asked.zoneout:
            seed = torch.randint(2**63 - 1, (directions,), device=h0.device)
        return {
            "heads": asked.heads,
            "recurrent_mask": mask,
            "zoneout": asked.zoneout,
            "zoneout_seed": seed,
            "recompute": asked.recompute,
        }


def split_heads(state: Tensor | None, heads: int) -> Any:
    """``[D, B, N * H]`` to ``[D * N, B, H]``."""
    return None if state is None else state.unflatten(2, (heads, -1)).transpose(1, 2).flatten(0, 1)


def join_heads(state: Tensor | None, heads: int) -> Any:
    """``[D * N, B, H]`` to ``[D, B, N * H]``."""
    return None if state is None else state.unflatten(0, (-1, heads)).transpose(1, 2).flatten(2)
