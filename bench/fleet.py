"""Processes that compute together over gloo, one thread each, on the orders of this process.

Every wait has an end: a rank that raises, dies or takes too long ends the others, and its words are raised here.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import pickle
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

TIMEOUT = 180.0  # seconds: of an order, its first imports included, and of what ranks wait for each other


class RankFailed(RuntimeError):
    """A rank raised, died or took too long."""


def _serve(rank: int, size: int, store: str, orders: Connection) -> None:
    """One rank: run what is ordered until the orders end."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=size, timeout=timedelta(seconds=TIMEOUT))
    with contextlib.suppress(EOFError):
        while True:
            function, arguments = pickle.loads(orders.recv_bytes())
            try:
                answer = (True, function(*arguments))
            except BaseException:
                answer = (False, traceback.format_exc())
            orders.send_bytes(pickle.dumps(answer))


class Fleet:
    """Ranks 0 to ``size - 1`` of a process group."""

    def __init__(self, size: int, folder: Path):
        """Start them; a first order waits until all are there.

        Args:
            size: how many.
            folder: where they find each other; empty.
        """
        context = multiprocessing.get_context("spawn")
        self.orders: list[Connection] = []
        self.processes = []
        for rank in range(size):
            here, there = context.Pipe()
            process = context.Process(target=_serve, args=(rank, size, f"file://{folder}/ranks", there), daemon=True)
            process.start()
            there.close()
            self.orders.append(here)
            self.processes.append(process)

    def __call__(self, function: Callable[..., Any], *arguments: Any, ranks: Sequence[int] | None = None) -> list[Any]:
        """Run a function on all ranks, or on some, and return what each gave.

        Args:
            function: found by its name in the ranks too.
            *arguments: the same for all.
            ranks: which.

        Raises:
            RankFailed: with the traceback of the first rank that raised. All have ended then.
        """
        orders = self.orders if ranks is None else [self.orders[rank] for rank in ranks]
        order = pickle.dumps((function, arguments))
        answers: dict[Connection, Any] = {}
        try:
            for connection in orders:
                connection.send_bytes(order)
            ends = time.monotonic() + TIMEOUT
            while len(answers) < len(orders):
                ready = wait([c for c in orders if c not in answers], max(0.0, ends - time.monotonic()))
                if not ready:
                    late = [self.orders.index(c) for c in orders if c not in answers]
                    raise RankFailed(f"rank {', '.join(map(str, late))} gave no answer in {TIMEOUT:g} s")
                for connection in ready:
                    assert isinstance(connection, Connection)
                    fine, answers[connection] = pickle.loads(connection.recv_bytes())
                    if not fine:
                        raise RankFailed(f"rank {self.orders.index(connection)} raised\n{answers[connection]}")
        except (EOFError, OSError) as error:
            self.end()
            raise RankFailed(f"a rank died; exit codes {[p.exitcode for p in self.processes]}") from error
        except BaseException:
            self.end()
            raise
        return [answers[connection] for connection in orders]

    def end(self) -> None:
        """End all ranks."""
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.join(TIMEOUT)
        for connection in self.orders:
            connection.close()


@contextlib.contextmanager
def fleet(size: int) -> Iterator[Fleet]:
    """A fleet that ends with the block."""
    with tempfile.TemporaryDirectory() as folder:
        made = Fleet(size, Path(folder))
        try:
            yield made
        finally:
            made.end()
