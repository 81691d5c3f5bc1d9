"""What a passport must show; the figures are those of ``docs/kernels/attention.md``."""

from __future__ import annotations

import re

from fusednn.occupancy import CAPABILITIES

SECONDS = 10.0  # of CPU time that one kernel may take to compile
OVERLAP = 54 / 66  # of the exponentials of Hopper's forward kernel run while a product is in flight
# Waits for products in a turn of Hopper's loops, at most.
WAITS = {"forward": 1, "persistent": 1, "ping_pong": 2, "key_value": 2, "query": 2}
_HOPPER = re.compile(rf"attention_({'|'.join(WAITS)})<(?:fp16|bf16), \d+(?:, causal)?> sm_90")
# Kernels that may spill: bytes, stores and loads together; on which Triton, if not on all; why they are shipped so.
OLD = "3.6"
MAY_SPILL = {
    r"one kernel 64x128, stages 1> sm_90": (192, OLD, "a candidate, which tuning may choose"),
    r"addresses>": (1500, "", "strides that neither descriptors nor wide loads can follow: served, not tuned"),
    r"attention_forward<fp16, 256, causal> sm_120": (36, OLD, "the newest has none"),
    r"attention_forward<fp16, 128, causal, dropout> sm_80": (8, OLD, "the newest has none"),
    r"attention_forward<tf32, 256> sm_100": (68, OLD, "the newest has none"),
    r"attention_key_value<tf32, 128, causal> sm_(90|100)": (24, OLD, "the newest has none"),
    r"attention_key_value<fp16, 128, causal, dropout> sm_90": (48, OLD, "the newest has none"),
    r"attention_key_value<fp16, (64|128).*> sm_80": (28, OLD, "the newest has none"),
    r"attention_key_value<fp16, (64|128).*> sm_100": (1900, OLD, "the newest has none"),
}
# Kernels whose products ptxas may serialise, and why they are shipped so.
MAY_SERIALISE = {
    r"attention_decode<": "reading keys and values is all that such a call costs",
    r"attention_forward<fp16, (64|256), causal, dropout> sm_90": "words of dropout between the products; not tuned yet",
}


def may_spill(name: str, version: str) -> int:
    """Bytes that a kernel may spill; the name with its architecture, the version of Triton."""
    found = (limit for pattern, (limit, where, _) in MAY_SPILL.items()
             if re.search(pattern, name) and version.startswith(where))  # fmt: skip
    return max(found, default=0)


def faults(kernels: dict[str, dict[str, dict]], version: str) -> list[str]:
    """Kernels that break a rule, of one compiler's passports by name and architecture; the version of that Triton."""
    return [f"{name} {known}: {fault}" for name, facts in kernels.items() for known, fact in facts.items()
            for fault in _faults(name, known, fact, version)]  # fmt: skip


def _faults(name: str, known: str, fact: dict, version: str) -> list[str]:
    if "error" in fact:
        return [f"does not compile: {fact['error']}"]
    number = known.removeprefix("sm_")
    limit = CAPABILITIES[f"{number[:-1]}.{number[-1]}"].shared_block
    said = []
    if fact["spills"] > may_spill(f"{name} {known}", version):
        said.append(f"{fact['spills']} bytes of spills")
    if fact["shared"] > limit:
        said.append(f"{fact['shared']} bytes of shared memory, the device has {limit}")
    if fact["serialised"] and not any(re.search(pattern, f"{name} {known}") for pattern in MAY_SERIALISE):
        said.append("ptxas serialised its products")
    if fact["seconds"] > SECONDS:
        said.append(f"{fact['seconds']} s to compile")
    if fact.get("in_turns") is False:
        said.append("groups of warps do not take turns")
    if re.match(r"attention_(?!row|merge)", name) and not fact["mma"]:
        said.append("no tensor-core instruction")
    if hopper := _HOPPER.fullmatch(f"{name} {known}"):
        if fact["waits"] > WAITS[hopper[1]]:
            said.append(f"{fact['waits']} waits for {fact['products']} products a turn")
        share = fact["in_flight"] / max(1, fact["exponentials"])
        if hopper[1] in ("forward", "persistent") and share < OVERLAP:
            said.append(f"{fact['in_flight']} of {fact['exponentials']} exponentials run under a product")
    return said
