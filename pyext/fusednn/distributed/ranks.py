"""The ranks of a process group: who is next to whom, and whether all were given the same."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor


class Ranks(NamedTuple):
    """This process among those of a group.

    Attributes:
        group: torch.distributed's.
        rank: of this process in the group.
        size: how many there are.
    """

    group: Any
    rank: int
    size: int

    def peer(self, rank: int) -> int:
        """How torch.distributed's messages name a rank of the group, counted around."""
        return dist.get_global_rank(self.group, rank % self.size)

    def gather(self, mine: Sequence[float], device: torch.device) -> list[list[float]]:
        """What each rank gives, by rank; all give equally many numbers."""
        own = torch.tensor(mine, dtype=torch.float64, device=device)
        found = [torch.empty_like(own) for _ in range(self.size)]
        dist.all_gather(found, own, group=self.group)
        return [numbers.tolist() for numbers in found]

    def agree(self, device: torch.device, **numbers: float) -> None:
        """Raise ValueError, on every rank, unless all have the same numbers."""
        for name, found in zip(numbers, zip(*self.gather(list(numbers.values()), device), strict=True), strict=True):
            if len(set(found)) > 1:
                raise ValueError(f"all ranks must have the same {name}, got {', '.join(f'{x:g}' for x in found)}")


def ranks_of(group: Any, caller: str) -> Ranks:
    """The ranks of a group, None for all processes.

    Raises:
        RuntimeError: there is no process group.
        ValueError: this process is not in the group.
    """
    if not dist.is_available() or not dist.is_initialized():
        raise RuntimeError(
            f"{caller} needs a process group: start the program by torchrun, and call"
            " torch.distributed.init_process_group() first"
        )
    group = dist.group.WORLD if group is None else group
    rank = dist.get_rank(group)
    if rank < 0:
        raise ValueError(f"{caller}: this process is not in the group")
    return Ranks(group, rank, dist.get_world_size(group))


class Exchange:
    """Tensors on their way to one rank, and as many of the same sizes from another."""

    def __init__(self, ranks: Ranks, tensors: Sequence[Tensor], to: int, source: int):
        """Start, and do not wait.

        Args:
            ranks: of the group.
            tensors: to send; not changed until ``wait``.
            to: rank of the group.
            source: likewise.
        """
        self.sent = [t.contiguous() for t in tensors]
        self.received = [torch.empty_like(t) for t in self.sent]
        out = [dist.P2POp(dist.isend, t, ranks.peer(to), ranks.group) for t in self.sent]
        back = [dist.P2POp(dist.irecv, t, ranks.peer(source), ranks.group) for t in self.received]
        self.works = dist.batch_isend_irecv(out + back)

    def wait(self) -> list[Tensor]:
        """What arrived."""
        for work in self.works:
            work.wait()
        return self.received
