"""A kernel's machine code as instructions, read from ``nvdisasm -c -hex -gi``.

The control fields of an instruction are those of Z. Jia et al., arXiv:1804.06826, section 2: how long the warp pauses
behind it, the scoreboards that it sets and those that it waits for.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_LABEL = re.compile(r"^(\.L_x_\d+|\$?__internal\w+|\$\S+|\.text\.\S+):")
_INSTRUCTION = re.compile(
    r"^\s+/\*([0-9a-f]{4,})\*/\s+(?:(@!?U?P\w+)\s+)?([A-Z0-9_a-z.]+)\s*(.*?)\s*;\s+/\* 0x(\w{16}) \*/"
)
_SECOND_WORD = re.compile(r"^\s+/\* 0x(\w{16}) \*/")
_PLACE = re.compile(r'//## File "([^"]+)", line (\d+)')
_KERNEL = re.compile(r"^\s*\.section\s+\.text\.(\S+?),", re.MULTILINE)


@dataclass(frozen=True)
class Control:
    """Cycles until the warp's next instruction; scoreboards: the one that tells of the result and the one that tells
    that operands were read (7: none), and a mask of those to wait for.
    """

    stall: int
    write: int
    read: int
    wait: int


@dataclass(frozen=True)
class Instruction:
    """One instruction: its guard ("@P0", or ""), its name in parts, its operands, and the places in the source that it
    comes from, the innermost function first.
    """

    address: int
    guard: str
    name: tuple[str, ...]
    operands: tuple[str, ...]
    control: Control
    places: tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Code:
    """A kernel: its instructions and the index of the instruction that each label names."""

    instructions: list[Instruction]
    labels: dict[str, int]


def control(word: int) -> Control:
    """From the second word of an instruction."""
    return Control(word >> 41 & 15, word >> 46 & 7, word >> 49 & 7, word >> 52 & 63)


def split(operands: str) -> tuple[str, ...]:
    """Operands between commas, without the hints of reuse."""
    return tuple(part.strip().replace(".reuse", "") for part in operands.split(",")) if operands else ()


def kernels(listing: str) -> dict[str, Code]:
    """The kernels of a listing, by mangled name."""
    pieces = _KERNEL.split(listing)[1:]
    return {name: read(text) for name, text in zip(pieces[::2], pieces[1::2], strict=True)}


def read(text: str) -> Code:
    """The instructions of one kernel."""
    instructions: list[Instruction] = []
    labels: dict[str, int] = {}
    places: list[tuple[str, int]] = []
    fresh, pending = True, None
    for line in text.splitlines():
        if place := _PLACE.search(line):
            if fresh:
                places, fresh = [], False
            places.append((place[1], int(place[2])))
        elif label := _LABEL.match(line):
            labels[label[1]] = len(instructions)
        elif found := _INSTRUCTION.match(line):
            pending, fresh = found, True
        elif pending is not None and (second := _SECOND_WORD.match(line)):
            address, guard, name, operands, _ = pending.groups()
            instructions.append(
                Instruction(int(address, 16), guard or "", tuple(name.split(".")), split(operands),
                            control(int(second[1], 16)), tuple(places)))  # fmt: skip
            pending = None
    return Code(instructions, labels)
