"""A warp of 32 lanes that walks through a kernel's machine code (sm_90), to see which instructions it executes.

Integers, predicates and addresses are computed; numbers that come out of tensors are not, and are *unknown*. A branch
on a comparison of unknown floats takes both ways, every other lane one: a warp with many different numbers does that. A
branch or an address that depends on an unknown integer ends the walk with an error, and so does an instruction that
is not listed here or an access outside of all tensors: nothing is guessed. Every wait ends at its first look.

Divergent lanes go on apart, those with the least address first, until they meet where the code says so (BSSY and BSYNC,
WARPSYNC).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from .listing import Code

LANES = 32
ALL = (1 << LANES) - 1
EVERY_OTHER = 0x55555555
LOCAL, SHARED = 0x2_0000_0000_0000, 0x3_0000_0000_0000  # where local and shared memory lie among generic addresses
LOCAL_BYTES, SHARED_BYTES = 1 << 16, 1 << 24
PARAMETERS = 0x210  # in constant bank 0

Array = np.ndarray  # of 32 uint32
Value = tuple[Array, int]  # of a register, and the mask of lanes where it is known
ZERO: Value = (np.zeros(LANES, np.uint32), ALL)
WORD = np.uint32(0xFFFFFFFF)
WORDS = np.full(LANES, WORD)
UNKNOWN: Value = (np.zeros(LANES, np.uint32), 0)


class Unfit(Exception):
    """What the walk cannot follow."""


@dataclass(frozen=True)
class Region:
    """Global memory that the kernel may touch; of some the content is known, of some every word is the same."""

    name: str
    start: int
    size: int
    content: bytes | None = None
    word: int | None = None


@dataclass(frozen=True)
class Access:
    """What an instruction did with memory: which, how many bytes in all, from how many lanes."""

    where: str
    bytes: int
    lanes: int


@dataclass
class Block:
    """What a warp is told from outside."""

    code: Code
    parameters: bytes
    regions: list[Region]
    threads: int
    grid: tuple[int, int, int]
    special: dict[str, int] = field(default_factory=dict)  # of SR_...


def lanes_of(mask: int) -> Array:
    """A mask as 32 booleans."""
    return _lanes_of(mask)


@functools.lru_cache(4096)
def _lanes_of(mask: int) -> Array:
    return np.array([mask >> i & 1 for i in range(LANES)], bool)


def mask_of(lanes: Array) -> int:
    """32 booleans as a mask."""
    return int.from_bytes(np.packbits(lanes, bitorder="little").tobytes(), "little")


def constant(number: int) -> Value:
    """The same in all lanes."""
    return np.full(LANES, number & 0xFFFFFFFF, np.uint32), ALL


class Warp:
    """One warp of a block, and its walk.

    Attributes:
        trace: indexes of the instructions that were issued, in their order.
        off: places in the trace whose guard let no lane through.
        accesses: of those that touched memory, by place in the trace.
    """

    def __init__(self, block: Block, warp: int):
        """At the first instruction, with nothing known but what a block is told."""
        self.block = block
        self.registers: dict[str, Value] = {"RZ": ZERO, "URZ": ZERO, "SRZ": ZERO}
        self.bits: dict[str, Array] = {}  # of registers that are known in part
        self.predicates: dict[str, tuple[int, int, int]] = {"PT": (ALL, ALL, 0), "UPT": (ALL, ALL, 0)}
        self.thread = np.arange(LANES, dtype=np.uint32) + np.uint32(LANES * warp)
        self.local = np.zeros((LANES, LOCAL_BYTES), np.uint8)
        self.local_known = np.zeros((LANES, LOCAL_BYTES), bool)
        self.barriers: dict[str, list[int]] = {}  # lanes that are to meet, apart from each other
        self.waiting: dict[tuple[str, int], int] = {}
        self.alive = ALL
        self.trace: list[int] = []
        self.off: set[int] = set()
        self.accesses: dict[int, Access] = {}
        bank = bytearray(PARAMETERS) + bytearray(block.parameters) + bytearray(16)
        told = {0: block.threads, 4: 1, 8: 1, 12: block.grid[0], 16: block.grid[1], 20: block.grid[2],
                0x20: LOCAL, 0x24: LOCAL >> 32, 0x28: LOCAL_BYTES - 16}  # fmt: skip
        for at, number in told.items():
            bank[at : at + 4] = (number & 0xFFFFFFFF).to_bytes(4, "little")
        self.bank = bytes(bank)

    # ------- state

    def write(self, name: str, value: Value, mask: int, bits: Array | None = None) -> None:
        """To a register, in the lanes of a mask; to a uniform one in all. ``bits``: those that are known, where lanes
        know a part of a number.
        """
        if name in ("RZ", "URZ"):
            return
        if (bits is not None and value[1] != ALL) or name in self.bits:
            fresh = self.known_bits(value[1]) if bits is None else bits
            fresh = np.where(lanes_of(mask), fresh, self.bits_of(name))
            self.bits.pop(name, None)
            if not np.array_equal(fresh, self.known_bits(mask_of(np.equal(fresh, WORD)))):
                self.bits[name] = fresh
        if mask != ALL and not name.startswith("U"):
            old = self.registers.get(name, ZERO)
            value = np.where(lanes_of(mask), value[0], old[0]), value[1] & mask | old[1] & ~mask
        self.registers[name] = value

    @staticmethod
    def known_bits(known: int) -> Array:
        """All bits of some lanes."""
        if known == ALL:
            return WORDS
        return np.where(lanes_of(known), WORD, np.uint32(0))

    def bits_of(self, name: str) -> Array:
        """The bits of a register that are known, lane by lane."""
        return self.bits[name] if name in self.bits else self.known_bits(self.registers.get(name, ZERO)[1])

    def predicate(self, name: str) -> tuple[int, int, int]:
        """Lanes where it holds, where it is known, and where it depends on an unknown integer."""
        flip = name.startswith("!")
        value, known, wild = self.predicates.get(name.lstrip("!"), (0, 0, ALL))
        return (~value & ALL if flip else value), known, wild

    def set_predicate(self, name: str, value: tuple[int, int, int], mask: int) -> None:
        """In the lanes of a mask, a uniform one in all."""
        if name in ("PT", "UPT"):
            return
        if name.startswith("U"):
            mask = ALL
        old = self.predicates.get(name, (0, 0, ALL))
        new = tuple(v & mask | o & ~mask & ALL for v, o in zip(value, old, strict=True))
        self.predicates[name] = (new[0], new[1], new[2])

    def guard(self, text: str, mask: int) -> int:
        """Lanes of a mask that an instruction's guard lets through."""
        if not text:
            return mask
        value, _, wild = self.predicate(text[1:])
        if wild & mask:
            raise Unfit("its guard depends on an unknown number")
        return value & mask

    # ------- memory

    def load_constant(self, at: Array, size: int, mask: int = ALL) -> list[Value]:
        """Words of the parameters; a part of a word for sizes below 4."""
        step, words = min(size, 4), []
        for word in range(0, size, step):
            number = np.zeros(LANES, np.uint32)
            for place in {int(x) for x in at[lanes_of(mask)]}:
                first = place + word
                if first + step > len(self.bank) or first < 0:
                    raise Unfit(f"constant {first:#x} beyond the parameters")
                number[at == place] = int.from_bytes(self.bank[first : first + step], "little")
            words.append((number, mask))
        return words

    def touch(self, at: Array, mask: int, size: int, space: str) -> Access:
        """Notes an access; generic addresses find their space."""
        lanes = mask.bit_count()
        some = at[lanes_of(mask)]
        low = int(some.min())
        if space == "generic" and low >> 48 == LOCAL >> 48:
            space = "local"
        elif space == "generic" and low >> 48 == SHARED >> 48:
            space = "shared"
        if space in ("generic", "global"):
            named = {self.region_at(int(first), size) for first in set(some.tolist())}
            space = " and ".join(sorted(named))  # of several nothing is known
        found = Access(space, size * lanes, lanes)
        self.accesses[len(self.trace) - 1] = found
        return found

    def region_at(self, first: int, size: int) -> str:
        """The tensor that these bytes lie in."""
        for region in self.block.regions:
            if region.start <= first and first + size <= region.start + region.size:
                return region.name
        raise Unfit(f"{first:#x} to {first + size:#x} is outside of all tensors")

    def load(self, at: Array, mask: int, size: int, space: str, signed: bool) -> list[Value]:
        """``size`` bytes a lane, as registers."""
        where = self.touch(at, mask, size, space).where
        words = max(1, size // 4)
        if where == "local":
            offset = (at & np.uint64(LOCAL_BYTES - 1)).astype(np.int64)
            step, out = min(size, 4), []
            for word in range(words):
                place = offset[:, None] + word * 4 + np.arange(step)
                raw, known = np.take_along_axis(self.local, place, 1), np.take_along_axis(self.local_known, place, 1)
                number = (raw.astype(np.uint32) << (8 * np.arange(step, dtype=np.uint32))).sum(1, dtype=np.uint32)
                if signed and step < 4:
                    shift = np.uint32(32 - 8 * step)
                    number = ((number << shift).view(np.int32) >> shift).view(np.uint32)
                out.append((number, mask_of(np.asarray(known.all(1))) & mask))
            return out
        region = next((r for r in self.block.regions if r.name == where), None)
        if region is None or (region.content is None and region.word is None):
            return [UNKNOWN] * words
        if region.content is None:
            return [constant(region.word or 0)] * words
        out, step = [], min(size, 4)
        for word in range(words):
            number = np.zeros(LANES, np.uint32)
            for lane in range(LANES):
                if mask >> lane & 1:
                    first = int(at[lane]) - region.start + 4 * word
                    number[lane] = int.from_bytes(region.content[first : first + step], "little")
            out.append((number, mask))
        return out

    def store(self, at: Array, mask: int, size: int, space: str, values: list[Value]) -> None:
        """Notes it; local memory keeps it."""
        if self.touch(at, mask, size, space).where != "local":
            return
        offset = (at & np.uint64(LOCAL_BYTES - 1)).astype(np.int64)
        rows = np.flatnonzero(lanes_of(mask))
        for i in range(size):
            number, known = values[i // 4]
            place = offset[rows] + i
            self.local[rows, place] = (number[rows] >> np.uint32(8 * (i % 4)) & 0xFF).astype(np.uint8)
            self.local_known[rows, place] = lanes_of(known)[rows]

    # ------- the walk

    def walk(self, steps: list[Callable[[Warp, int], dict[int, int] | None]], limit: int = 2_000_000) -> None:
        """From the first instruction to the last one's exit."""
        code = self.block.code.instructions
        ready = [(0, ALL)]  # lanes that go together, each group at its instruction
        while ready or self.waiting:
            if not ready:
                self.meet(ready)
            at, mask = ready.pop(ready.index(min(ready)))
            if len(self.trace) >= limit:
                raise Unfit("the walk does not end")
            self.trace.append(at)
            instruction = code[at]
            try:
                through = self.guard(instruction.guard, mask)
                targets = steps[at](self, through) if through else None
                if not through:
                    self.off.add(len(self.trace) - 1)
            except Unfit as why:
                text = f"{instruction.guard} {'.'.join(instruction.name)} {', '.join(instruction.operands)}"
                raise Unfit(f"{instruction.address:#x} {text}: {why}") from None
            if targets is None:
                targets = {at + 1: mask}
            elif through != mask:
                targets[at + 1] = targets.get(at + 1, 0) | mask & ~through
            ready += targets.items()
            if self.waiting:
                self.release(ready)

    def release(self, ready: list[tuple[int, int]]) -> None:
        """Lanes whose barrier all its lanes have reached go on behind it."""
        for (name, at), lanes in list(self.waiting.items()):
            for group in self.barriers.get(name, []):
                if group & self.alive & ~lanes == 0 and lanes & group & self.alive:
                    ready.append((at + 1, lanes & group & self.alive))
                    lanes &= ~group
            self.waiting[name, at] = lanes
            if not lanes & self.alive:
                del self.waiting[name, at]

    def meet(self, ready: list[tuple[int, int]]) -> None:
        """Where no lane can go on alone: a meeting of the whole warp."""
        for (name, at), lanes in list(self.waiting.items()):
            if name == "warp" and lanes == self.alive:
                del self.waiting[name, at]
                ready.append((at + 1, lanes))
                return
        raise Unfit(f"lanes wait for each other: {self.waiting}")
