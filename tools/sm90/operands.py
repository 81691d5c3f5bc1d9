"""Operands of sm_90's instructions: what they are in every lane."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np

from .warp import ALL, ZERO, Array, Unfit, Value, Warp, constant

BYTES = 16  # of an instruction
Step = Callable[[Warp, int], "dict[int, int] | None"]  # what an instruction does in the lanes of a mask; where they go
Flag = tuple[int, int, int]  # a predicate: where it holds, where it is known, where it depends on an unknown integer

BANK = re.compile(r"^-?c\[0x0\]\[(?:(U?R\w+)\+?)?(0x[0-9a-f]+)?\]$")
_ADDRESS = re.compile(r"\[(?:(U?R\w+)(\.64|\.U32|\.X\d+)?)?(?:\+?(UR\w+))?(?:\+?(-?0x[0-9a-f]+))?\]$")


def signed(x: Array) -> Array:
    """As int64."""
    return x.view(np.int32).astype(np.int64)


def wide(x: Array) -> Array:
    """As uint64."""
    return x.astype(np.uint64)


def low(x: Array) -> Array:
    """The low 32 bits."""
    return (x.astype(np.uint64) & np.uint64(0xFFFFFFFF)).astype(np.uint32)


def high(x: Array) -> Array:
    """The high 32 bits."""
    return (x.astype(np.uint64) >> np.uint64(32)).astype(np.uint32)


def following(name: str, by: int = 1) -> str:
    """The register behind another."""
    found = re.fullmatch(r"(U?R)(\d+)", name)
    return f"{found[1]}{int(found[2]) + by}" if found else name


def source(text: str) -> Callable[[Warp], Value]:
    """An integer operand."""
    if bank := BANK.match(text):
        at, negative = int(bank[2] or "0", 16), text.startswith("-")
        register = source(bank[1]) if bank[1] else None

        def from_bank(w: Warp) -> Value:
            place = np.full(32, at, np.int64) + (signed(register(w)[0]) if register else 0)
            value, known = w.load_constant(place, 4)[0]
            return (np.uint32(0) - value if negative else value), known

        return from_bank
    if re.fullmatch(r"-?0x[0-9a-f]+", text):
        fixed = constant(int(text, 16))
        return lambda w: fixed
    sign, name = (text[0], text[1:]) if text[0] in "-~" else ("", text)
    if re.fullmatch(r"U?R(Z|\d+)(\.H[01](_H[01])?|\.B\d)?", name) is None or "." in name:
        raise Unfit(f"operand {text}")
    if not sign:
        return lambda w: w.registers.get(name, ZERO)

    def changed(w: Warp) -> Value:
        value, known = w.registers.get(name, ZERO)
        return (np.uint32(0) - value if sign == "-" else ~value), known

    return changed


def known_bits(text: str) -> Callable[[Warp], Array]:
    """The bits of an integer operand that are known, lane by lane."""
    if re.fullmatch(r"~?U?R(Z|\d+)", text):
        return lambda w: w.bits_of(text.lstrip("~"))
    get = source(text)
    return lambda w: w.known_bits(get(w)[1])


def pair(text: str) -> Callable[[Warp], tuple[Array, int]]:
    """A 64-bit operand: a register and the one behind it."""
    if bank := BANK.match(text):
        if bank[1] or text.startswith("-"):
            raise Unfit(f"operand {text} of 64 bits")
        at = np.full(32, int(bank[2], 16), np.int64)

        def from_bank(w: Warp) -> tuple[Array, int]:
            (a, known), (b, also) = w.load_constant(at, 8)
            return wide(a) | wide(b) << np.uint64(32), known & also

        return from_bank
    if text.startswith(("-", "~")):
        raise Unfit(f"operand {text} of 64 bits")
    first, second = source(text), source(following(text) if text[0] in "RU" else "RZ")

    def both(w: Warp) -> tuple[Array, int]:
        (a, known), (b, also) = first(w), second(w)
        return wide(a) | wide(b) << np.uint64(32), known & also

    return both


def address(text: str) -> Callable[[Warp, int], Array]:
    """Of the lanes of a mask."""
    text = re.sub(r"^desc\[UR\d+\]", "", text)
    found = _ADDRESS.match(text)
    if found is None:
        raise Unfit(f"address {text}")
    register, form, uniform, offset = found.groups()
    name = register or "RZ"
    base = pair(name) if form == ".64" else source(name)
    # A register of 64 bits beside a uniform one is only 32 bits wide, and the sum is 64 bits
    extra = None if uniform in (None, "URZ") else pair(uniform) if form == ".U32" or form == ".64" else source(uniform)
    plus = np.uint64(int(offset or "0", 16) & 0xFFFFFFFFFFFFFFFF)

    def find(w: Warp, mask: int) -> Array:
        value, known = base(w)
        at = value.astype(np.uint64)
        if extra is not None:
            more, also = extra(w)
            at, known = at + more.astype(np.uint64), known & also
        if mask & ~known:
            raise Unfit(f"address {text} is unknown")
        return at + plus if form == ".64" or form == ".U32" else (at + plus) & np.uint64(0xFFFFFFFF)

    return find


def joined(how: str, a: Flag, b: Flag) -> Flag:
    """Two predicates by AND, OR or XOR."""
    x, y = a[0], b[0]
    value = x & y if how == "AND" else x | y if how == "OR" else x ^ y
    known = a[1] & b[1]
    if how == "AND":
        known |= a[1] & ~x & ALL | b[1] & ~y & ALL
    if how == "OR":
        known |= a[1] & x | b[1] & y
    return value, known, (a[2] | b[2]) & ~known & ALL


def opposite(flag: Flag) -> Flag:
    """Not."""
    return ~flag[0] & ALL, flag[1], flag[2]


def is_predicate(text: str) -> bool:
    """Whether an operand is one."""
    return re.fullmatch(r"!?U?P(T|\d)", text) is not None
