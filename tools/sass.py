"""What stands in a kernel's machine code, read from the listing of ``nvdisasm -c`` or ``cuobjdump -sass``."""

from __future__ import annotations

import re
from collections import Counter

_MMA = re.compile(r"\b((?:H|D|I|Q|HG|QG|UTCH|UTCQ)MMA[.\w]*)")
_LABEL = re.compile(r"^\s*(\.L_x_\d+):")
_BRANCH = re.compile(r"\bBRA\b.*?(\.L_x_\d+)")
_EVENTS = {  # on Hopper: wait for a barrier, product, arrival, meeting of warps, wait for products
    "SYNCS.PHASECHK": "b",
    "GMMA": "p",
    "SYNCS.ARRIVE": "a",
    "BAR.SYNC": "m",
    "WARPGROUP.DEPBAR": "w",
    "MUFU.EX2": "e",
}
_WAIT = re.compile(r"WARPGROUP\.DEPBAR\.LE gsb0, (0x[0-9a-f]+)")


def products(listing: str) -> dict[str, int]:
    """How often each tensor-core instruction stands there, with its shape and types."""
    return dict(sorted(Counter(_MMA.findall(listing)).items()))


def loops(listing: str) -> list[list[str]]:
    """Instructions of each innermost loop, in order of address."""
    lines, places, found = listing.splitlines(), {}, []
    for at, line in enumerate(lines):
        if label := _LABEL.match(line):
            places[label[1]] = at
        elif (branch := _BRANCH.search(line)) and branch[1] in places:
            found.append((places[branch[1]], at))
    inner = [(a, b) for a, b in found if not any(a <= c and d < b for c, d in found if (c, d) != (a, b))]
    return [lines[a:b] for a, b in inner]


def main_loop(listing: str) -> list[str]:
    """The innermost loop with the most exponentials; without instructions where there is no loop."""
    return max(loops(listing), key=lambda loop: sum("MUFU.EX2" in line for line in loop), default=[])


def pipeline(loop: list[str]) -> dict[str, int]:
    """Of one turn of a Hopper loop.

    Returns:
        products: warp-group products issued; waits: for them; exponentials; in_flight: exponentials that run while a
        product is in flight, issued and not waited for.
    """
    flying, counted = False, Counter(products=0, waits=0, exponentials=0, in_flight=0)
    for _ in range(2):  # what was issued at the end of one turn flies at the start of the next
        counted = Counter(products=0, waits=0, exponentials=0, in_flight=0)
        for line in loop:
            if "GMMA" in line:
                flying = True
                counted["products"] += 1
            elif wait := _WAIT.search(line):
                flying = int(wait[1], 16) > 0
                counted["waits"] += 1
            elif "MUFU.EX2" in line:
                counted["exponentials"] += 1
                counted["in_flight"] += flying
    return dict(counted)


def in_turns(listing: str) -> bool:
    """Whether groups of warps take turns on Hopper's tensor cores.

    In each loop with products they stand after all waits for barriers, and the first thing after them is the arrival
    that hands the turn over. Later arrivals each follow a wait for products. A group's warps meet before each one.
    """
    found = []
    for loop in loops(listing):
        events = "".join(sign for line in loop for text, sign in _EVENTS.items() if text in line)
        if "p" in events:
            found.append(re.fullmatch("m*b+p+ma(we*me*ae*)+", events) is not None)
    return bool(found) and all(found)
