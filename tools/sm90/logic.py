"""Bits and predicates of sm_90: each function takes an instruction and gives what it does."""

from __future__ import annotations

import numpy as np

from .listing import Instruction
from .operands import Array, Flag, Step, is_predicate, joined, known_bits, opposite, pair, signed, source
from .warp import ALL, EVERY_OTHER, WORD, WORDS, Unfit, Warp, constant, lanes_of, mask_of


def compare(how: str, a: Array, b: Array) -> Array:
    """Lane by lane."""
    table = {"EQ": np.equal, "NE": np.not_equal, "LT": np.less, "LE": np.less_equal, "GT": np.greater,
             "GE": np.greater_equal}  # fmt: skip
    return table[how](a, b)


def table3(lut: int, a, b, c):
    """The bitwise function of three numbers that a table of 8 bits names."""
    out = a & ~a
    for i in range(8):
        if lut >> i & 1:
            out = out | (a if i & 4 else ~a) & (b if i & 2 else ~b) & (c if i & 1 else ~c)
    return out


def logic(i: Instruction) -> Step:
    """LOP3.LUT [p,] d, a, b, c, table, p in."""
    operands = list(i.operands)
    flag_to = operands.pop(0) if is_predicate(operands[0]) else None
    to = operands.pop(0)
    bring, lut = operands.pop(), int(operands.pop(), 16)
    terms = [(source(text), known_bits(text)) for text in operands]

    def step(w: Warp, mask: int) -> None:
        numbers = [(get(w)[0], bits(w)) for get, bits in terms]
        out, sure = table3(lut, *(x for x, _ in numbers)), WORDS
        ways = 1 if all(bits is WORDS for _, bits in numbers) else 8
        for way in range(1, ways):  # with unknown bits of one, two or all numbers flipped
            words = [x ^ ~bits if way >> k & 1 else x for k, (x, bits) in enumerate(numbers)]
            sure = sure & ~(table3(lut, *words) ^ out)
        known = mask_of(sure == WORD)
        w.write(to, (out, known), mask, sure)
        if flag_to is not None:
            known |= mask_of(out & sure != 0)
            found = (mask_of(out != 0), known, ALL & ~known)
            w.set_predicate(flag_to, joined("AND" if "PAND" in i.name else "OR", found, w.predicate(bring)), mask)

    return step


def flag_logic(i: Instruction) -> Step:
    """PLOP3.LUT p, q, a, b, c, table of p, table of q."""
    first, second, a, b, c, lut, other = i.operands

    def step(w: Warp, mask: int) -> None:
        flags = [w.predicate(name) for name in (a, b, c)]
        results = []
        for which in (int(lut, 16), int(other, 16)):
            values = [table3(which, *(f[0] ^ flip for f, flip in zip(flags, flips, strict=True))) & ALL
                      for flips in _flips(flags)]  # fmt: skip
            known = ALL
            for value in values:
                known &= ~(value ^ values[0]) & ALL
            wild = (flags[0][2] | flags[1][2] | flags[2][2]) & ~known & ALL
            results.append((values[0], known, wild))
        w.set_predicate(first, results[0], mask)
        w.set_predicate(second, results[1], mask)

    return step


def _flips(flags: list[Flag]) -> list[tuple[int, ...]]:
    """All ways in which predicates may be, lane by lane; the first one is as they are."""
    ways: list[tuple[int, ...]] = [()]
    for _, known, _ in flags:
        ways = [(*way, flip) for way in ways for flip in ((0,) if known == ALL else (0, ALL & ~known))]
    return ways


def comparison(i: Instruction) -> Step:
    """ISETP.how.(AND|OR|XOR)[.EX] p, q, a, b, p in [, lower part]."""
    to, other, left, right, bring, *lower = i.operands
    how, join, unsigned, extends = (
        i.name[1],
        next(n for n in i.name if n in ("AND", "OR", "XOR")),
        "U32" in i.name,
        "EX" in i.name,
    )
    a, b = source(left), source(right)

    def step(w: Warp, mask: int) -> None:
        (x, kx), (y, ky) = a(w), b(w)
        p, q = (x, y) if unsigned else (signed(x), signed(y))
        known = kx & ky
        value = mask_of(compare(how, p, q))
        found = value, known, ALL & ~known
        if extends:
            below, same = w.predicate(lower[0]), mask_of(np.equal(x, y))
            if how == "NE":
                found = joined("OR", found, below)
            elif how == "EQ":
                found = joined("AND", found, below)
            else:
                strict = mask_of(compare(how[0] + "T", p, q))
                known &= below[1] | ~same & ALL
                found = strict | same & below[0], known, ALL & ~known
        w.set_predicate(to, joined(join, found, w.predicate(bring)), mask)
        w.set_predicate(other, joined(join, opposite(found), w.predicate(bring)), mask)

    return step


def float_comparison(i: Instruction) -> Step:
    """FSETP: unknown, every other lane. DSETP: compared. FCHK, whether a division needs its slow path: no."""
    if i.name[0] == "FCHK":
        return lambda w, mask: w.set_predicate(i.operands[0], (0, ALL, 0), mask)
    if i.name[0] == "DSETP":
        return double_comparison(i)
    to, other, *_, bring = i.operands
    join = next(n for n in i.name if n in ("AND", "OR", "XOR"))

    def step(w: Warp, mask: int) -> None:
        found = (EVERY_OTHER, 0, 0)
        w.set_predicate(to, joined(join, found, w.predicate(bring)), mask)
        w.set_predicate(other, joined(join, opposite(found), w.predicate(bring)), mask)

    return step


def double_comparison(i: Instruction) -> Step:
    """DSETP.how.(AND|OR|XOR) p, q, a, b, p in."""
    to, other, left, right, bring = i.operands
    how, join = i.name[1].removesuffix("U"), next(n for n in i.name if n in ("AND", "OR", "XOR"))
    a, b = pair(left), pair(right)

    def step(w: Warp, mask: int) -> None:
        (x, kx), (y, ky) = a(w), b(w)
        found = mask_of(compare(how, x.view(np.float64), y.view(np.float64))), kx & ky, 0
        w.set_predicate(to, joined(join, found, w.predicate(bring)), mask)
        w.set_predicate(other, joined(join, opposite(found), w.predicate(bring)), mask)

    return step


def vote(i: Instruction) -> Step:
    """VOTE.how [d,] p, q: over the lanes that are here."""
    operands = list(i.operands)
    to = operands.pop(0) if not is_predicate(operands[0]) else None
    flag_to, flag = operands

    def step(w: Warp, mask: int) -> None:
        value, known, wild = w.predicate(flag)
        if mask & (wild | ~known):
            raise Unfit("a vote on unknown numbers")
        held = value & mask
        result = {"ANY": held != 0, "ALL": held == mask, "EQ": held in (0, mask)}[i.name[1]]
        if to is not None:
            w.write(to, constant(held), mask)
        w.set_predicate(flag_to, (ALL if result else 0, ALL, 0), mask)

    return step


def flags_as_bits(i: Instruction) -> Step:
    """P2R d, PR, a, mask and R2P PR, a, mask: predicates 0 to 6 as bits of a register."""
    kind, *form = i.name
    if form:
        raise Unfit(f"form of {kind}")
    if kind == "P2R":
        to, _, text, bits = i.operands
        get, which = source(text), int(bits, 16)

        def to_register(w: Warp, mask: int) -> None:
            (x, known), out = get(w), np.zeros(32, np.uint32)
            for p in range(7):
                if which >> p & 1:
                    value, sure, _ = w.predicate(f"P{p}")
                    out, known = out | lanes_of(value).astype(np.uint32) << np.uint32(p), known & sure
            w.write(to, (x & np.uint32(~which & 0xFFFFFFFF) | out, known), mask)

        return to_register
    _, text, bits = i.operands
    get, which = source(text), int(bits, 16)

    def to_flags(w: Warp, mask: int) -> None:
        x, known = get(w)
        for p in range(7):
            if which >> p & 1:
                w.set_predicate(f"P{p}", (mask_of((x >> np.uint32(p) & 1) != 0), known, ALL & ~known), mask)

    return to_flags
