"""Integer arithmetic of sm_90: each function takes an instruction and gives what it does."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .listing import Instruction
from .operands import Array, Step, following, high, is_predicate, known_bits, low, pair, signed, source, wide
from .warp import ALL, UNKNOWN, WORD, Unfit, Value, Warp, lanes_of, mask_of


def add3(i: Instruction) -> Step:
    """IADD3 d, [carry, [carry,]] a, b, c [, carry in, carry in]; VIADD and UIADD3 too."""
    operands = list(i.operands)
    to = operands.pop(0)
    carries = []
    while is_predicate(operands[0]):
        carries.append(operands.pop(0))
    brings = [operands.pop() for _ in range(len(operands)) if is_predicate(operands[-1])] if "X" in i.name else []
    terms = [(text[0] == "-", source(text.lstrip("-"))) for text in operands]

    def step(w: Warp, mask: int) -> None:
        total, known = np.zeros(32, np.uint64), ALL
        for negative, get in terms:
            value, also = get(w)
            total = total + (wide(~value) + np.uint64(1) if negative else wide(value))
            known &= also
        for name in brings:
            flag = w.predicate(name)
            total, known = total + lanes_of(flag[0]), known & flag[1]
        w.write(to, (low(total), known), mask)
        for count, name in enumerate(carries, 1):
            w.set_predicate(name, (mask_of(high(total) >= count), known, ALL & ~known), mask)

    return step


def multiply(i: Instruction) -> Step:
    """IMAD d, [carry,] a, b, c [, carry in], with WIDE, HI, U32, X."""
    operands = list(i.operands)
    to = operands.pop(0)
    carry = operands.pop(0) if is_predicate(operands[0]) else None
    bring = operands.pop() if is_predicate(operands[-1]) else None
    if len(operands) != 3 or carry == bring == "":
        raise Unfit("form of IMAD")
    unsigned, is_wide, is_high = "U32" in i.name, "WIDE" in i.name, "HI" in i.name
    a, b = source(operands[0]), source(operands[1])
    if not (is_wide or is_high):
        c = source(operands[2])
        if "RZ" in operands[:2] and bring is None:
            return copied(to, operands[2])

        def narrow(w: Warp, mask: int) -> None:
            (x, kx), (y, ky), (z, kz) = a(w), b(w), c(w)
            value, known = x * y + z, kx & ky & kz
            if bring is not None:
                flag = w.predicate(bring)
                value, known = value + lanes_of(flag[0]).astype(np.uint32), known & flag[1]
            w.write(to, (value, known), mask)

        return narrow
    c64 = pair(operands[2])

    def full(w: Warp, mask: int) -> None:
        (x, kx), (y, ky), (z, kz) = a(w), b(w), c64(w)
        product = wide(x) * wide(y) if unsigned else (signed(x) * signed(y)).view(np.uint64)
        total, known = product + z, kx & ky & kz
        if carry is not None and carry not in ("PT", "UPT"):
            w.set_predicate(carry, (mask_of(total < product), known, ALL & ~known), mask)
        if bring is not None:
            flag = w.predicate(bring)
            total, known = total + lanes_of(flag[0]), known & flag[1]
        if is_high:
            w.write(to, (high(total), known), mask)
        else:
            w.write(to, (low(total), known), mask)
            w.write(following(to), (high(total), known), mask)

    return full


def copied(to: str, text: str) -> Step:
    """D = a, with what is known of a."""
    get, bits = source(text), known_bits(text)
    return lambda w, mask: w.write(to, get(w), mask, bits(w))


def shift_add(i: Instruction) -> Step:
    """LEA d, [carry,] a, b, [c,] shift [, carry in], with HI, X, SX32."""
    operands = list(i.operands)
    to = operands.pop(0)
    carry = operands.pop(0) if is_predicate(operands[0]) else None
    bring = operands.pop() if is_predicate(operands[-1]) else None
    shift = np.uint64(int(operands.pop(), 16))
    is_high, extends = "HI" in i.name, "SX32" in i.name
    a, b = source(operands[0]), source(operands[1])
    upper = source(operands[2]) if len(operands) == 3 else None

    def step(w: Warp, mask: int) -> None:
        (x, kx), (y, ky) = a(w), b(w)
        long, known = wide(x), kx & ky
        if extends:
            long = signed(x).view(np.uint64)
        elif upper is not None:
            z, kz = upper(w)
            long, known = long | wide(z) << np.uint64(32), known & kz
        part = high(long << shift) if is_high else low(long << shift)
        total = wide(part) + wide(y)
        if bring is not None:
            flag = w.predicate(bring)
            total, known = total + lanes_of(flag[0]), known & flag[1]
        w.write(to, (low(total), known), mask)
        if carry is not None:
            w.set_predicate(carry, (mask_of(high(total) > 0), known, ALL & ~known), mask)

    return step


def shift(i: Instruction) -> Step:
    """SHF.L or .R d, low, by, high, with U32, S32, U64, S64, HI, W."""
    to, *operands = i.operands
    a, by, b = (source(text) for text in operands)
    left, takes_high, arithmetic = "L" in i.name, "HI" in i.name, "S32" in i.name or "S64" in i.name
    wraps = "W" in i.name
    long = "U64" in i.name or "S64" in i.name

    def step(w: Warp, mask: int) -> None:
        (x, kx), (n, kn), (y, ky) = a(w), by(w), b(w)
        most = np.uint64(63 if long else 32)
        count = wide(n) & np.uint64(31) if wraps else np.minimum(wide(n), most)
        both = wide(x) | wide(y) << np.uint64(32)
        known = kn & kx & ky
        if left:
            out = (high if takes_high else low)(both << count)
        elif takes_high:
            known = kn & ky
            exact = signed(y).view(np.uint64) if arithmetic else wide(y)
            out = low(exact.view(np.int64) >> np.minimum(count, np.uint64(63)).astype(np.int64))
        else:
            out = low((both.view(np.int64) >> count.astype(np.int64)).view(np.uint64) if arithmetic else both >> count)
        w.write(to, (out, known), mask)

    return step


def select(i: Instruction) -> Step:
    """SEL d, a, b, p."""
    to, left, right, flag = i.operands
    a, b = source(left), source(right)

    def step(w: Warp, mask: int) -> None:
        (x, kx), (y, ky), (p, kp, _) = a(w), b(w), w.predicate(flag)
        w.write(to, (np.where(lanes_of(p), x, y), (p & kx | ~p & ky) & kp), mask)

    return step


def extreme(i: Instruction) -> Step:
    """VIMNMX d, a, b, p: the least where p, else the greatest; VIADDMNMX d, a, b, c, p: of a + b and c."""
    to, *texts, flag = i.operands
    terms = [source(text) for text in texts if not is_predicate(text)]
    unsigned = "U32" in i.name

    def step(w: Warp, mask: int) -> None:
        values = [get(w) for get in terms]
        known = values[0][1] & values[1][1]
        x, y = values[0][0], values[1][0]
        if len(values) == 3:
            x, y, known = x + y, values[2][0], known & values[2][1]
        least, (p, kp, _) = (x < y if unsigned else signed(x) < signed(y)), w.predicate(flag)
        w.write(to, (np.where(least == lanes_of(p), x, y), known & kp), mask)

    return step


def permute(i: Instruction) -> Step:
    """PRMT d, a, selector, b: bytes of b:a."""
    if len(i.name) > 1:
        raise Unfit("form of PRMT")
    to, left, pick, right = i.operands
    a, b, bits_a, bits_b = source(left), source(right), known_bits(left), known_bits(right)
    selector = int(pick, 16)

    def step(w: Warp, mask: int) -> None:
        number, bits = chosen_bytes(a(w)[0], b(w)[0], selector), chosen_bytes(bits_a(w), bits_b(w), selector)
        w.write(to, (number, mask_of(bits == WORD)), mask, bits)

    return step


def chosen_bytes(a: Array, b: Array, selector: int) -> Array:
    """Four of eight bytes, or copies of their signs."""
    out = np.zeros(32, np.uint32)
    for byte in range(4):
        chosen = selector >> 4 * byte & 15
        found = (b if chosen & 4 else a) >> np.uint32(chosen % 4 * 8) & np.uint32(255)
        out |= ((found >> np.uint32(7)) * np.uint32(255) if chosen & 8 else found) << np.uint32(8 * byte)
    return out


def unary(i: Instruction) -> Step:
    """IABS, I2F, F2I, MUFU, MOV, R2UR and their like: d, a."""
    kind, (to, text) = i.name[0], (i.operands[0], i.operands[-1])
    if kind in ("MUFU", "F2I", "I2F", "I2FP") and ("64" in i.name or "F64" in i.name):
        raise Unfit("doubles")
    if kind == "MUFU" and (text[0] in "-|" or i.name[1] != "RCP"):
        return lambda w, mask: w.write(to, UNKNOWN, mask)
    if i.operands[1:-1] and kind not in ("R2UR",):
        raise Unfit(f"form of {kind}")
    get = source(text.strip("|"))
    if kind in ("MOV", "UMOV"):
        return copied(to, text)
    if kind == "R2UR":
        return uniform(next(name for name in i.operands if not is_predicate(name)), get, i.operands[0])

    def step(w: Warp, mask: int) -> None:
        x, known = get(w)
        if kind == "IABS":
            x = low(np.abs(signed(x)))
        elif kind in ("I2F", "I2FP"):
            exact = wide(x).astype(np.float64) if "U32" in i.name else signed(x).astype(np.float64)
            near = exact.astype(np.float32)
            if "RP" in i.name:
                near = np.where(near < exact, np.nextafter(near, np.float32(np.inf)), near).astype(np.float32)
            x = near.view(np.uint32)
        elif kind == "MUFU":
            with np.errstate(all="ignore"):
                x = (np.float32(1) / x.view(np.float32)).view(np.uint32)
        elif kind == "F2I":
            with np.errstate(all="ignore"):
                whole = np.nan_to_num(np.trunc(x.view(np.float32).astype(np.float64)), posinf=0xFFFFFFFF, neginf=0)
            x = np.clip(whole, 0, 0xFFFFFFFF).astype(np.uint64).astype(np.uint32)
        w.write(to, (x, known), mask)

    return step


def uniform(to: str, get: Callable[[Warp], Value], others: str) -> Step:
    """R2UR [p,] d, a: the number of the first lane that is here; p: lanes with another one."""

    def step(w: Warp, mask: int) -> None:
        x, known = get(w)
        first = int(np.argmax(lanes_of(mask)))
        w.write(to, (np.full(32, x[first], np.uint32), ALL if known >> first & 1 else 0), ALL)
        if is_predicate(others):
            w.set_predicate(others, (mask_of(x != x[first]), known, ALL & ~known), mask)

    return step
