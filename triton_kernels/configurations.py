"""Tile sizes, warps and pipeline stages of the attention kernels: one table for every architecture.

What the compiler makes of each row is in ``fusednn/passports.json``, which ``tools/passports.py`` writes and checks.
"""

from __future__ import annotations

from typing import NamedTuple

import torch


class Configuration(NamedTuple):
    """Queries and keys a tile, warps a block, stages of the pipeline of loads."""

    BLOCK_M: int
    BLOCK_N: int
    warps: int
    stages: int


class Candidate(NamedTuple):
    """A way to compute a forward or a backward pass that tuning may choose: see ``FORMS``; no row means the table's."""

    form: str
    row: Configuration | None = None

    def __str__(self) -> str:
        row = self.row
        return self.form if row is None else f"{self.form} {row.BLOCK_M}x{row.BLOCK_N}, stages {row.stages}"


FORMS = {"forward": ("shifted", "persistent", "specialized", "ping-pong"), "backward": ("two kernels", "one kernel")}
KERNELS = ("forward", "key_value", "query")
ARCHITECTURES = (80, 90, 100, 120)
WITH_DESCRIPTORS = (90, 100)  # tiles come by tensor-memory descriptors there, where strides allow it, else as on 80
HEAD_SIZES = (64, 128, 256)  # a row serves the sizes up to its own
INTERPRETER = Configuration(64, 32, 4, 1)  # small, so that short sequences have several blocks
ROW_TERM = Configuration(32, 1, 4, 1)
NARROW_ROW_TERM = Configuration(16, 1, 4, 1)
DECODE_KEYS = 256  # of a part, at least, where the keys of few queries are split among programs
DECODE_FROM = 2 * DECODE_KEYS  # keys, for a call to be split
MERGE_WARPS = 1

# (kernel, bytes an element; "ieee" for fp32 without TF32): architecture: one configuration a head size.
TABLE: dict[tuple[str, int | str], dict[int, tuple[Configuration, Configuration, Configuration]]] = {
    ("forward", 2): {
        80: (Configuration(128, 64, 8, 3), Configuration(128, 32, 8, 3), Configuration(64, 16, 8, 2)),
        90: (Configuration(128, 128, 8, 2), Configuration(128, 128, 8, 2), Configuration(128, 32, 8, 2)),
        100: (Configuration(128, 128, 8, 2), Configuration(128, 128, 8, 2), Configuration(128, 64, 8, 2)),
        120: (Configuration(128, 64, 8, 3), Configuration(128, 32, 8, 3), Configuration(64, 16, 8, 2)),
    },
    ("key_value", 2): {
        80: (Configuration(32, 128, 8, 2), Configuration(64, 64, 8, 2), Configuration(32, 32, 8, 2)),
        90: (Configuration(64, 128, 8, 2), Configuration(32, 128, 8, 2), Configuration(64, 32, 8, 2)),
        100: (Configuration(64, 128, 8, 2), Configuration(64, 64, 8, 2), Configuration(64, 32, 8, 2)),
        120: (Configuration(32, 128, 8, 2), Configuration(32, 64, 8, 2), Configuration(32, 32, 8, 2)),
    },
    ("query", 2): {
        80: (Configuration(128, 64, 8, 2), Configuration(128, 32, 8, 2), Configuration(64, 16, 8, 2)),
        90: (Configuration(128, 64, 8, 2), Configuration(128, 64, 8, 2), Configuration(128, 32, 8, 2)),
        100: (Configuration(128, 64, 8, 2), Configuration(128, 64, 8, 2), Configuration(128, 32, 8, 2)),
        120: (Configuration(128, 64, 8, 2), Configuration(128, 32, 8, 2), Configuration(64, 16, 8, 2)),
    },
    ("forward", 4): {
        80: (Configuration(64, 32, 4, 2), Configuration(32, 16, 8, 2), Configuration(32, 16, 8, 2)),
        90: (Configuration(128, 64, 8, 2), Configuration(128, 32, 8, 2), Configuration(64, 32, 8, 2)),
        100: (Configuration(128, 64, 8, 2), Configuration(64, 32, 8, 2), Configuration(64, 16, 8, 2)),
        120: (Configuration(64, 32, 4, 2), Configuration(32, 16, 8, 2), Configuration(32, 16, 8, 2)),
    },
    ("key_value", 4): {
        80: (Configuration(32, 32, 8, 2), Configuration(16, 32, 8, 2), Configuration(16, 16, 8, 1)),
        90: (Configuration(32, 64, 8, 2), Configuration(16, 32, 8, 2), Configuration(16, 32, 8, 1)),
        100: (Configuration(32, 64, 8, 2), Configuration(16, 32, 8, 2), Configuration(16, 32, 8, 1)),
        120: (Configuration(32, 32, 8, 2), Configuration(16, 32, 8, 2), Configuration(16, 16, 8, 1)),
    },
    ("query", 4): {
        80: (Configuration(64, 32, 8, 2), Configuration(32, 32, 8, 2), Configuration(32, 16, 8, 1)),
        90: (Configuration(64, 32, 4, 2), Configuration(64, 32, 4, 2), Configuration(32, 16, 8, 1)),
        100: (Configuration(64, 32, 4, 2), Configuration(64, 32, 4, 2), Configuration(64, 16, 4, 1)),
        120: (Configuration(64, 32, 8, 2), Configuration(32, 32, 8, 2), Configuration(32, 16, 8, 1)),
    },
    # fp32 without TF32: products without tensor cores, whose rows are read from shared memory into registers.
    ("forward", "ieee"): {
        80: (Configuration(64, 32, 8, 2), Configuration(32, 32, 8, 1), Configuration(16, 16, 8, 2)),
        90: (Configuration(64, 32, 8, 2), Configuration(32, 32, 8, 2), Configuration(16, 16, 8, 2)),
        100: (Configuration(32, 32, 8, 2), Configuration(32, 32, 8, 2), Configuration(16, 16, 8, 2)),
        120: (Configuration(64, 32, 8, 2), Configuration(32, 32, 8, 1), Configuration(16, 16, 8, 2)),
    },
    ("key_value", "ieee"): {
        80: (Configuration(16, 32, 8, 2), Configuration(16, 16, 8, 1), Configuration(16, 16, 8, 1)),
        90: (Configuration(32, 32, 8, 1), Configuration(16, 32, 8, 1), Configuration(16, 16, 8, 1)),
        100: (Configuration(32, 32, 8, 1), Configuration(16, 32, 8, 1), Configuration(16, 16, 8, 1)),
        120: (Configuration(16, 32, 8, 2), Configuration(16, 16, 8, 1), Configuration(16, 16, 8, 1)),
    },
    ("query", "ieee"): {
        80: (Configuration(32, 32, 4, 1), Configuration(32, 32, 8, 2), Configuration(16, 16, 8, 1)),
        90: (Configuration(32, 32, 8, 2), Configuration(32, 32, 8, 1), Configuration(32, 16, 8, 1)),
        100: (Configuration(32, 32, 8, 2), Configuration(32, 32, 8, 1), Configuration(32, 16, 8, 1)),
        120: (Configuration(32, 32, 8, 1), Configuration(32, 32, 8, 2), Configuration(16, 16, 8, 1)),
    },
    # BLOCK_M is the most rows, in tiles of 16 or of that. Reading keys and values is all it costs: about 32 KiB in
    # flight a multiprocessor hide the memory's latency.
    ("decode", 2): {
        80: (Configuration(64, 64, 4, 3), Configuration(16, 64, 4, 3), Configuration(16, 32, 4, 2)),
        90: (Configuration(64, 128, 4, 3), Configuration(64, 64, 4, 3), Configuration(64, 32, 4, 3)),
        100: (Configuration(64, 128, 4, 3), Configuration(64, 32, 4, 3), Configuration(64, 32, 8, 3)),
        120: (Configuration(64, 64, 4, 3), Configuration(16, 32, 4, 3), Configuration(16, 16, 4, 3)),
    },
    ("decode", 4): {
        80: (Configuration(16, 32, 4, 2), Configuration(16, 16, 4, 2), Configuration(16, 16, 8, 2)),
        90: (Configuration(16, 32, 4, 2), Configuration(16, 16, 4, 2), Configuration(16, 16, 8, 2)),
        100: (Configuration(16, 32, 4, 2), Configuration(16, 16, 4, 2), Configuration(16, 16, 8, 2)),
        120: (Configuration(16, 32, 4, 2), Configuration(16, 16, 4, 2), Configuration(16, 16, 8, 2)),
    },
    ("decode", "ieee"): {
        80: (Configuration(16, 32, 4, 2), Configuration(16, 16, 8, 2), Configuration(16, 16, 8, 2)),
        90: (Configuration(16, 32, 4, 2), Configuration(16, 16, 8, 2), Configuration(16, 16, 8, 2)),
        100: (Configuration(16, 32, 4, 2), Configuration(16, 16, 8, 2), Configuration(16, 16, 8, 2)),
        120: (Configuration(16, 32, 4, 2), Configuration(16, 16, 8, 2), Configuration(16, 16, 8, 2)),
    },
}
# Where position hides keys, comparisons need registers: rows that would spill have another there.
HIDDEN = {("forward", 2, 90, 128): Configuration(128, 64, 8, 3)}
# (architecture, head size) for 16 bits without dropout: dK, dV and dQ by one kernel, which must not spill. With heads
# of 128 tiles of 64 queries by 128 keys do: two kernels there (docs/decisions/0007).
ONE_KERNEL = {
    (80, 64): Configuration(32, 128, 8, 2),
    (90, 64): Configuration(64, 128, 8, 2),
    (100, 64): Configuration(64, 64, 8, 2),
    (120, 64): Configuration(32, 128, 8, 2),
}
# Random words need registers too.
DROPPED = {
    ("forward", 2, 80, 64): Configuration(128, 32, 8, 3),
    ("forward", 2, 90, 64): Configuration(64, 64, 4, 3),
    ("forward", 2, 90, 128): Configuration(128, 64, 8, 3),
    ("forward", 2, 90, 256): Configuration(64, 16, 8, 1),
    ("forward", 2, 100, 128): Configuration(128, 64, 8, 2),
    ("forward", 2, 100, 256): Configuration(128, 32, 8, 2),
    ("forward", 2, 120, 64): Configuration(128, 32, 8, 3),
    ("forward", 2, 120, 128): Configuration(128, 16, 8, 3),
    ("key_value", 2, 80, 64): Configuration(16, 128, 8, 2),
    ("key_value", 2, 80, 128): Configuration(16, 64, 8, 2),
    ("key_value", 2, 100, 128): Configuration(32, 64, 8, 2),
    ("key_value", 2, 120, 64): Configuration(16, 128, 8, 2),
    ("query", 2, 120, 64): Configuration(128, 32, 8, 2),
    ("decode", 2, 90, 64): Configuration(64, 64, 4, 3),
    ("decode", 2, 90, 128): Configuration(64, 64, 8, 3),
    ("decode", 2, 90, 256): Configuration(64, 32, 8, 3),
}
# So do masks.
MASKED = {
    ("forward", 2, 90, 64): Configuration(64, 64, 4, 3),
    ("forward", 2, 90, 128): Configuration(128, 32, 8, 3),
    ("forward", 2, 90, 256): Configuration(64, 16, 8, 2),
    ("decode", 2, 90, 64): Configuration(64, 64, 4, 3),
    ("decode", 2, 90, 128): Configuration(64, 64, 8, 3),
    ("decode", 2, 90, 256): Configuration(64, 32, 8, 3),
}
# Tiles by addresses where descriptors are the rule: the rows of sm_80, but for those that would spill.
ADDRESSED = {
    ("key_value", 2, 90, 128): Configuration(32, 64, 8, 2),
    ("key_value", 2, 100, 128): Configuration(16, 64, 8, 2),
}
# Rows whose strides wide loads cannot follow either: an address a number, in 64 bits. One a head size for all
# architectures. Loads of 16 bits cannot run ahead through shared memory, so nearly all have one stage.
NARROW = {
    ("forward", 2): (Configuration(64, 32, 8, 1), Configuration(32, 32, 8, 1), Configuration(16, 16, 8, 1)),
    ("key_value", 2): (Configuration(32, 64, 8, 1), Configuration(32, 32, 8, 2), Configuration(32, 32, 8, 1)),
    ("query", 2): (Configuration(64, 32, 8, 1), Configuration(32, 32, 8, 1), Configuration(32, 16, 4, 1)),
    ("forward", 4): (Configuration(32, 32, 8, 1), Configuration(16, 16, 4, 1), Configuration(16, 16, 8, 1)),
    ("key_value", 4): (Configuration(32, 32, 8, 2), Configuration(16, 32, 8, 2), Configuration(16, 16, 8, 1)),
    ("query", 4): (Configuration(32, 32, 4, 1), Configuration(32, 16, 8, 1), Configuration(32, 16, 8, 1)),
    ("forward", "ieee"): (Configuration(32, 32, 8, 1), Configuration(16, 16, 16, 1), Configuration(16, 16, 16, 1)),
    ("key_value", "ieee"): (Configuration(16, 32, 8, 1), Configuration(16, 16, 8, 1), Configuration(16, 16, 8, 1)),
    ("query", "ieee"): (Configuration(32, 32, 4, 1), Configuration(16, 16, 8, 1), Configuration(16, 16, 16, 1)),
}
# With Triton before 3.9, rows that would spill. Most have one stage there: loads are not in flight during products.
OLDER = {
    ("forward", 2, 120, 256): Configuration(64, 16, 8, 1),
    ("forward", 4, 100, 128): Configuration(64, 32, 8, 1),
    ("forward", 4, 100, 256): Configuration(64, 16, 8, 1),
    ("key_value", 2, 80, 64): Configuration(32, 128, 8, 1),
    ("key_value", 2, 80, 128): Configuration(64, 64, 8, 1),
    ("key_value", 2, 100, 64): Configuration(64, 128, 8, 1),
    ("key_value", 2, 100, 128): Configuration(64, 64, 8, 1),
    ("key_value", 4, 90, 128): Configuration(16, 32, 8, 1),
    ("key_value", 4, 100, 128): Configuration(16, 32, 8, 1),
}
OLDER_DROPPED = {
    ("forward", 2, 80, 128): Configuration(128, 16, 8, 3),
    ("key_value", 2, 90, 128): Configuration(32, 128, 8, 1),
}
# (pass, bytes an element, architecture, head size): what may be tried beside the default. Nothing here was measured.
# Which rows of the backward pass to expect most of: docs/decisions/0007; of the forward pass: 0009.
CANDIDATES = {
    ("forward", 2, 90, 64): (
        Candidate("shifted", Configuration(128, 64, 8, 3)),
        Candidate("persistent", Configuration(128, 128, 8, 2)),
        Candidate("specialized", Configuration(128, 128, 4, 2)),
        Candidate("ping-pong", Configuration(128, 128, 4, 4)),
    ),
    ("forward", 2, 90, 128): (
        Candidate("shifted", Configuration(128, 64, 8, 3)),
        Candidate("persistent", Configuration(128, 64, 8, 3)),
        Candidate("specialized", Configuration(128, 128, 4, 2)),
        Candidate("ping-pong", Configuration(128, 128, 4, 2)),
    ),
    ("backward", 2, 90, 64): (Candidate("two kernels"),),
    ("backward", 2, 90, 128): (
        Candidate("one kernel", Configuration(64, 128, 8, 1)),
        Candidate("one kernel", Configuration(64, 64, 8, 2)),
    ),
}
NOT_OLDER = {Candidate("one kernel", Configuration(64, 128, 8, 1))}  # candidates that spill with Triton before 3.9


def architecture(capability: tuple[int, int]) -> int:
    """The table's architecture for a device: its own, or the one with no more shared memory.

    sm_86 and sm_89 have the 99 KB of sm_120; sm_103 is as sm_100.
    """
    number = 10 * capability[0] + capability[1]
    if number in (86, 89):
        return 120
    return max((known for known in ARCHITECTURES if known <= number), default=80)


def configuration(
    kernel: str, known: int, dtype: torch.dtype, size: int, hidden: bool, *,
    dropout: bool = False, masked: bool = False, described: bool = True, narrow: bool = False, exact: bool = False,
    older: bool = False,
) -> Configuration:  # fmt: skip
    """Row of the table.

    Args:
        kernel: one of ``KERNELS``, or ``decode``.
        known: one of ``ARCHITECTURES``.
        dtype: of the queries.
        size: padded size of a head or of a value, the larger.
        hidden: whether a causal mask or a window hides keys.
        dropout: whether weights are dropped.
        masked: whether there is a mask.
        described: whether tiles come by descriptors, where the architecture has them.
        narrow: whether strides suit neither descriptors nor wide loads.
        exact: whether products of fp32 are without TF32.
        older: whether Triton is older than 3.9.
    """
    limit = next(limit for limit in HEAD_SIZES if size <= limit)
    foreign = known in WITH_DESCRIPTORS and not described
    number = "ieee" if exact else dtype.itemsize
    if narrow and (kernel, number) in NARROW:
        return NARROW[kernel, number][HEAD_SIZES.index(limit)]
    at = (kernel, number, 80 if foreign else known, limit)
    row = TABLE[at[:2]][at[2]][HEAD_SIZES.index(limit)]
    if hidden:
        row = HIDDEN.get(at, row)
    if older:
        row = OLDER.get(at, row)
    if foreign:
        row = ADDRESSED.get((kernel, number, known, limit), row)
    if masked:
        row = MASKED.get(at, row)
    if dropout:
        row = DROPPED.get(at, row)
        if older:
            row = OLDER_DROPPED.get(at, row)
    return row


def one_kernel(
    known: int, dtype: torch.dtype, size: int, dropout: bool, described: bool, narrow: bool = False,
) -> Configuration | None:  # fmt: skip
    """Row of the backward kernel that computes all three gradients, or None where two kernels are the better way.

    Args:
        known: one of ``ARCHITECTURES``.
        dtype: of the queries.
        size: padded size of a head or of a value, the larger.
        dropout: whether weights are dropped.
        described: whether tiles come by descriptors.
        narrow: as for ``configuration``.
    """
    limit = next(limit for limit in HEAD_SIZES if size <= limit)
    known = 80 if known in WITH_DESCRIPTORS and not described else known
    return None if dropout or narrow or dtype.itemsize != 2 else ONE_KERNEL.get((known, limit))


def candidates(
    way: str, known: int, dtype: torch.dtype, size: int, hidden: bool, older: bool = False,
) -> tuple[Candidate, ...]:  # fmt: skip
    """What may compute a call without modifiers whose tiles come as the architecture likes; the default first.

    Args:
        way: ``forward`` or ``backward``.
        known: one of ``ARCHITECTURES``.
        dtype: of the queries.
        size: padded size of a head or of a value, the larger.
        hidden: whether a causal mask or a window hides keys; without, all programs have the same work and a persistent
            grid nothing to balance.
        older: whether Triton is older than 3.9.
    """
    limit = next(limit for limit in HEAD_SIZES if size <= limit)
    if way == "forward":
        row, default = configuration("forward", known, dtype, size, hidden, older=older), Candidate("shifted")
    else:
        row = one_kernel(known, dtype, size, False, True)
        default = Candidate("two kernels" if row is None else "one kernel")
    others = CANDIDATES.get((way, dtype.itemsize, known, limit), ())
    left_out = {default, default._replace(row=row)} | (NOT_OLDER if older else set())
    return default, *(c for c in others if c not in left_out and (hidden or c.form != "persistent"))


def decode_rows(rows: int, chosen: Configuration) -> int | None:
    """Rows of the decoding kernel's tile, or None where they do not fit into one.

    Args:
        rows: queries of all heads that share a key head.
        chosen: row of the table for ``decode``.
    """
    if rows > chosen.BLOCK_M:
        return None
    return 16 if rows <= 16 else chosen.BLOCK_M


def strides_suit(x: torch.Tensor) -> bool:
    """Whether a descriptor can follow the strides: multiples of 16 bytes, the last dimension dense."""
    strides = [stride for stride, size in zip(x.stride()[:-1], x.shape[:-1], strict=True) if size > 1]
    regular = all(s > 0 and s * x.itemsize % 16 == 0 for s in strides)
    return regular and x.stride(-1) == 1 and x.shape[-1] * x.itemsize % 16 == 0


def padded(size: int) -> int:
    """The next power of two that a tensor core's tile admits."""
    return max(16, 1 << max(0, size - 1).bit_length())
