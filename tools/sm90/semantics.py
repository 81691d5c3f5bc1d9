"""What the instructions of sm_90 do to the integers, predicates and lanes of a warp (warp.py)."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np

from . import arithmetic, logic
from .listing import Code, Instruction
from .operands import BANK, BYTES, Step, address, following, is_predicate, signed, source
from .warp import ALL, UNKNOWN, Unfit, Warp, constant, lanes_of, mask_of

_SPECIAL = {"SR_LANEID": lambda w: (w.thread % 32).astype(np.uint32), "SR_TID.X": lambda w: w.thread}
_WIDTHS = {"U8": 1, "S8": 1, "U16": 2, "S16": 2, "64": 8, "128": 16}

# Instructions on floats: how many registers they write.
_FLOATS = {
    "FADD": 1, "FMUL": 1, "FFMA": 1, "FSEL": 1, "FMNMX": 1, "F2FP": 1, "F2F": 1, "HADD2": 1, "HMUL2": 1, "HFMA2": 1,
    "HMMA": 4, "FSET": 1, "DADD": 2, "DMUL": 2, "DFMA": 2,
}  # fmt: skip
_NOTHING = {
    "NOP", "YIELD", "ERRBAR", "CGAERRBAR", "MEMBAR", "CCTL", "FENCE", "PREEXIT", "ACQBULK", "LDGDEPBAR", "DEPBAR",
    "BAR", "UCGABAR_ARV", "UCGABAR_WAIT", "NANOSLEEP",
}  # fmt: skip


def floats(i: Instruction) -> Step:
    """Numbers that came from tensors stay unknown; a constant that HFMA2 makes is known."""
    to = next(text for text in i.operands if not is_predicate(text))
    count = 2 if i.name[0] == "HMMA" and i.name[2] == "F16" else _FLOATS[i.name[0]]
    if i.name[0] == "HFMA2" and i.operands[1:3] in (("-RZ", "RZ"), ("RZ", "RZ")):
        halves = np.array([float(text) for text in i.operands[3:5]], np.float16)
        word = constant(int(halves.view(np.uint16)[0]) << 16 | int(halves.view(np.uint16)[1]))
        return lambda w, mask: w.write(to, word, mask)

    def step(w: Warp, mask: int) -> None:
        for k in range(count):
            w.write(following(to, k), UNKNOWN, mask)

    return step


def special(i: Instruction) -> Step:
    """S2R, S2UR, CS2R: who a lane is. Clocks are unknown."""
    to, name = i.operands
    count = 1 if i.name[0] != "CS2R" or "32" in i.name else 2

    def step(w: Warp, mask: int) -> None:
        if name == "SRZ":
            value = constant(0)
        elif name in _SPECIAL:
            value = (_SPECIAL[name](w), ALL)
        elif name in w.block.special:
            value = constant(w.block.special[name])
        elif "CLOCK" in name or "TIMER" in name:
            value = UNKNOWN
        else:
            raise Unfit(f"special register {name}")
        for k in range(count):
            w.write(following(to, k), value, mask)

    return step


# ------- memory


def memory(i: Instruction) -> Step:
    """Loads and stores, asynchronous ones too."""
    kind = i.name[0]
    space = {"LDL": "local", "STL": "local", "LDS": "shared", "STS": "shared", "LD": "generic", "ST": "generic"}.get(
        kind, "global")  # fmt: skip
    size = next((_WIDTHS[part] for part in i.name if part in _WIDTHS), 4)
    is_signed = any(part in ("S8", "S16") for part in i.name)
    places = [address(text) for text in i.operands if "[" in text]
    others = [text for text in i.operands if "[" not in text]
    if kind == "LDGSTS":

        def copy(w: Warp, mask: int) -> None:
            w.touch(places[1](w, mask), mask, size, "global")

        return copy
    if kind == "STAS":

        def send(w: Warp, mask: int) -> None:
            w.touch(np.zeros(32, np.uint64), mask, size, "peers")

        return send
    if kind.startswith("LD"):
        to = next(text for text in others if not is_predicate(text))

        def load(w: Warp, mask: int) -> None:
            for k, value in enumerate(w.load(places[0](w, mask), mask, size, space, is_signed)):
                w.write(following(to, k), value, mask)

        return load
    if not kind.startswith("ST"):
        raise Unfit("form of memory")

    def store(w: Warp, mask: int) -> None:
        values = [source(following(others[0], k))(w) for k in range(max(1, size // 4))]
        w.store(places[0](w, mask), mask, size, space, values)

    return store


def parameter(i: Instruction) -> Step:
    """LDC and ULDC d, c[0][place]."""
    to, text = i.operands
    bank = BANK.match(text)
    if bank is None:
        raise Unfit(f"constant {text}")
    at, register = int(bank[2] or "0", 16), source(bank[1]) if bank[1] else None
    size = next((_WIDTHS[part] for part in i.name if part in _WIDTHS), 4)

    def step(w: Warp, mask: int) -> None:
        place = np.full(32, at, np.int64) + (signed(register(w)[0]) if register else 0)
        for k, value in enumerate(w.load_constant(place, size, mask)):
            w.write(following(to, k), value, mask)

    return step


def mbarrier(i: Instruction) -> Step:
    """SYNCS: a phase is complete at the first look."""
    if "PHASECHK" not in i.name:
        return lambda w, mask: None
    flag = next(text for text in i.operands if is_predicate(text))
    return lambda w, mask: w.set_predicate(flag, (ALL, ALL, 0), mask)


# ------- lanes


def shuffle(i: Instruction) -> Step:
    """SHFL.IDX p, d, a, lane, limits: a of another lane; of the other forms the result is unknown."""
    _, to, what, lane, limits = i.operands
    get, which = source(what), source(lane)

    def step(w: Warp, mask: int) -> None:
        if i.name[1] != "IDX" or limits != "0x1f":
            return w.write(to, UNKNOWN, mask)
        (value, known), (number, sure) = get(w), which(w)
        there = number % 32
        w.write(to, (value[there], mask_of(lanes_of(known)[there]) & sure), mask)

    return step


def branch(i: Instruction, code: Code) -> Step:
    """BRA, with a predicate among its operands; BRA.DIV: where lanes are apart; BRA.U.ANY as a loop over lanes."""
    label = re.search(r"`\((.+)\)", i.operands[-1])
    if label is None or label[1] not in code.labels:
        raise Unfit("target of a branch")
    target, flags = code.labels[label[1]], [text for text in i.operands[:-1] if is_predicate(text)]
    at = i.address // BYTES
    if "DIV" in i.name:
        return lambda w, mask: {at + 1 if mask == w.alive else target: mask}

    def step(w: Warp, mask: int) -> dict[int, int]:
        there = mask
        for name in flags:
            value, _, wild = w.predicate(name)
            if wild & there:
                raise Unfit("depends on an unknown number")
            there &= value
        out = {target: there} if there else {}
        if mask & ~there:
            out[at + 1] = mask & ~there
        return out

    return step


def lanes(i: Instruction) -> Step:
    """BSSY, BSYNC, BREAK, WARPSYNC, EXIT, CALL."""
    kind, at = i.name[0], i.address // BYTES
    name = i.operands[0] if i.operands else ""

    def begin(w: Warp, mask: int) -> None:
        leave(w, mask)
        w.barriers[name].append(mask)

    def leave(w: Warp, mask: int) -> None:
        w.barriers[name] = [group & ~mask for group in w.barriers.get(name, []) if group & ~mask]

    def meet(w: Warp, mask: int) -> dict[int, int]:
        w.waiting[name, at] = w.waiting.get((name, at), 0) | mask
        return {}

    def all_meet(w: Warp, mask: int) -> dict[int, int] | None:
        if mask == w.alive:
            return None
        w.waiting["warp", at] = w.waiting.get(("warp", at), 0) | mask
        return {}

    def end(w: Warp, mask: int) -> dict[int, int]:
        w.alive &= ~mask
        return {}

    def call(w: Warp, mask: int) -> None:
        raise Unfit("a call")

    return {"BSSY": begin, "BREAK": leave, "BSYNC": meet, "WARPSYNC": all_meet, "EXIT": end, "CALL": call,
            "RET": call, "ENDCOLLECTIVE": call, "BPT": call}[kind]  # fmt: skip


_TABLE: dict[str, Callable[[Instruction], Step]] = {
    **dict.fromkeys(("IADD3", "UIADD3", "VIADD"), arithmetic.add3),
    **dict.fromkeys(("IMAD", "UIMAD"), arithmetic.multiply),
    **dict.fromkeys(("LEA", "ULEA"), arithmetic.shift_add),
    **dict.fromkeys(("SHF", "USHF"), arithmetic.shift),
    **dict.fromkeys(("LOP3", "ULOP3"), logic.logic),
    **dict.fromkeys(("PLOP3", "UPLOP3"), logic.flag_logic),
    **dict.fromkeys(("ISETP", "UISETP"), logic.comparison),
    **dict.fromkeys(("FSETP", "FCHK", "DSETP", "HSETP2"), logic.float_comparison),
    **dict.fromkeys(("SEL", "USEL"), arithmetic.select),
    **dict.fromkeys(("VIMNMX", "VIADDMNMX", "IMNMX"), arithmetic.extreme),
    **dict.fromkeys(("PRMT", "UPRMT"), arithmetic.permute),
    **dict.fromkeys(("IABS", "I2F", "I2FP", "F2I", "MUFU", "MOV", "UMOV", "R2UR"), arithmetic.unary),
    **dict.fromkeys(_FLOATS, floats),
    **dict.fromkeys(("S2R", "S2UR", "CS2R"), special),
    **dict.fromkeys(("VOTE", "VOTEU"), logic.vote),
    **dict.fromkeys(("P2R", "R2P"), logic.flags_as_bits),
    **dict.fromkeys(("LD", "ST", "LDG", "STG", "LDS", "STS", "LDL", "STL", "LDGSTS", "STAS"), memory),
    **dict.fromkeys(("LDC", "ULDC"), parameter),
    "SYNCS": mbarrier,
    "SHFL": shuffle,
}


def step_of(i: Instruction, code: Code) -> Step:
    """What an instruction does; one that is not listed ends the walk when it is reached."""
    kind = i.name[0]
    try:
        if kind in _NOTHING:
            return lambda w, mask: None
        if kind == "BRA":
            return branch(i, code)
        if kind in ("BSSY", "BSYNC", "BREAK", "WARPSYNC", "EXIT", "CALL", "RET", "ENDCOLLECTIVE", "BPT"):
            return lanes(i)
        if kind not in _TABLE:
            raise Unfit("no such instruction here")
        return _TABLE[kind](i)
    except (Unfit, ValueError) as why:
        text = str(why)

    def unfit(w: Warp, mask: int) -> None:
        raise Unfit(text)

    return unfit


def steps_of(code: Code) -> list[Step]:
    """Of all instructions of a kernel."""
    return [step_of(i, code) for i in code.instructions]
