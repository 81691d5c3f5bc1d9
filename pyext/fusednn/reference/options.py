"""What a recurrent layer may ask for beside its cell."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from . import philox

NAMES = ("heads", "recurrent dropout", "zoneout", "layer norm", "recompute")
NORM_EPS = 1e-5


class Options(NamedTuple):
    """Options of the operators, in the order of their schemas; as given: nothing.

    Attributes:
        heads: recurrences of one direction that share the input alone.
        mask: ``[D, B, P]``, multiplies h where it enters W_hh; or None.
        seed: of zoneout's draws, int64, one for each direction; None: the expectation takes their place.
        zoneout_h: the probability that a unit keeps its h from the step before.
        zoneout_c: likewise of c.
        first: number of the first step, which the draws depend on.
        norm: ``[D, G * H]``, gain of layer norm over the gates of a recurrent product (of a second one apart), which
            b_hh follows; None: there is none.
        recompute: whether backward computes the gates anew in place of keeping them.
    """

    heads: int = 1
    mask: Tensor | None = None
    seed: Tensor | None = None
    zoneout_h: float = 0.0
    zoneout_c: float = 0.0
    first: int = 0
    norm: Tensor | None = None
    recompute: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """Those that are asked for, as the plan table has them."""
        asked = (self.heads != 1, self.mask is not None, self.zones, self.norm is not None, self.recompute)
        return tuple(name for name, wanted in zip(NAMES, asked, strict=True) if wanted)

    @property
    def zones(self) -> bool:
        """Whether zoneout takes part."""
        return self.zoneout_h > 0 or self.zoneout_c > 0


PLAIN = Options()


def keeps(options: Options, track: int, t: int, state: Tensor, cell_state: bool) -> Tensor | float:
    """How much of its old state each unit keeps at step t, in the shape of ``state``, ``[rows, units]``.

    Unit u of row b draws word u % 4 of Philox with the counter (u // 4, b, t, 2 * head + cell_state), and keeps its
    state where that is below the probability.
    """
    p = options.zoneout_c if cell_state else options.zoneout_h
    if options.seed is None:
        return p
    rows, units = (torch.arange(n, device=state.device) for n in state.shape)
    direction, head = divmod(track, options.heads)
    step, stream = (torch.full_like(units, n) for n in (options.first + t, 2 * head + cell_state))
    return (philox.draw(options.seed[direction], units, rows[:, None], step, stream) < philox.limit_of(p)).to(
        state.dtype
    )


def zone(options: Options, track: int, t: int, old: tuple[Tensor, ...], new: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """h, and c where the cell has one, after zoneout: k old + (1 - k) new."""
    out = []
    for cell_state, (before, after) in enumerate(zip(old, new, strict=True)):
        if (options.zoneout_c if cell_state else options.zoneout_h) > 0:
            k = keeps(options, track, t, after, bool(cell_state))
            after = k * before + (1 - k) * after
        out.append(after)
    return tuple(out)
