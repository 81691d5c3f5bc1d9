"""What a passport must show; the figures are those of ``docs/kernels/attention.md``."""

from __future__ import annotations

import re

from fusednn.occupancy import CAPABILITIES

# Bytes, at most, of kernels that spill with every row that was tried: docs/decisions/0011-two-kernels-spill.md.
SPILLS = {
    f"attention_forward<{number}, 256{causal}, addresses>": most
    for number, most in (("fp32", 128), ("tf32", 24))
    for causal in ("", ", causal")
}
SPILLS_89 = {  # where the rows are those of sm_120
    "attention_query<fp32, 64, causal>": 24,
    "attention_key_value<fp32, 256>": 16,
    "attention_forward<tf32, 128, addresses>": 16,
}
SECONDS = 10.0  # of CPU time that one kernel may take to compile
OVERLAP = 54 / 66  # of the exponentials of Hopper's forward kernel run while a product is in flight
# Waits for products in a turn of Hopper's loops, at most.
WAITS = {"forward": 1, "persistent": 1, "ping_pong": 2, "key_value": 2, "query": 2}
_HOPPER = re.compile(rf"attention_({'|'.join(WAITS)})<(?:fp16|bf16), \d+(?:, causal)?> sm_90")


def faults(kernels: dict[str, dict[str, dict]]) -> list[str]:
    """Kernels that break a rule, of one compiler's passports by name and architecture."""
    return [f"{name} {known}: {fault}" for name, facts in kernels.items() for known, fact in facts.items()
            for fault in _faults(name, known, fact)]  # fmt: skip


def _faults(name: str, known: str, fact: dict) -> list[str]:
    if "error" in fact:
        return [f"does not compile: {fact['error']}"]
    number = known.removeprefix("sm_")
    limit = CAPABILITIES[f"{number[:-1]}.{number[-1]}"].shared_block
    said = []
    if fact["spills"] > (SPILLS | SPILLS_89 if known == "sm_89" else SPILLS).get(name, 0):
        said.append(f"{fact['spills']} bytes of spills")
    if fact["shared"] > limit:
        said.append(f"{fact['shared']} bytes of shared memory, the device has {limit}")
    if fact["serialised"]:
        said.append("ptxas serialised its products")
    if fact["seconds"] > SECONDS:
        said.append(f"{fact['seconds']} s to compile")
    if fact.get("in_turns") is False:
        said.append("groups of warps do not take turns")
    if product := re.match(r"attention_(?!row|merge)\w+<(fp32)?", name):
        if product[1] and fact["mma"]:
            said.append("tensor-core instructions, which round fp32")
        elif not product[1] and not fact["mma"]:
            said.append("no tensor-core instruction")
    if hopper := _HOPPER.fullmatch(f"{name} {known}"):
        if fact["waits"] > WAITS[hopper[1]]:
            said.append(f"{fact['waits']} waits for {fact['products']} products a turn")
        share = fact["in_flight"] / max(1, fact["exponentials"])
        if hopper[1] in ("forward", "persistent") and share < OVERLAP:
            said.append(f"{fact['in_flight']} of {fact['exponentials']} exponentials run under a product")
    return said
