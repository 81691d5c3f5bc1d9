"""Compile the Triton kernels of ``shipped.py`` ahead of time with this environment's Triton, and read their code.

``tools/passports.py`` runs this once a compiler. Prints as JSON the compiler's version, the fingerprint of every kernel
by name and architecture, and the facts of those that were to be compiled: those of ``--only``, or those of ``--always``
and all whose fingerprint is not the table's.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import io
import json
import multiprocessing
import os
import re
import resource
import subprocess
import tempfile
from pathlib import Path

os.environ.pop("TRITON_INTERPRET", None)  # before Triton is imported
os.environ.pop("FUSEDNN_TUNED", None)  # passports are those of the defaults, and of the candidates by name
os.environ["TRITON_DEFAULT_FP_FUSION"] = "1"  # what it is without; Triton 3.9 warns where nobody says

import sass
import triton
from launched import Kernel, launched
from shipped import FLAGS, TILES, calls
from toolkit import find
from triton import knobs

_USED = re.compile(r"Used (\d+) registers")
_SPILL = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_SERIALISED = re.compile(r"\bC75\d\d\b")  # ptxas waits after each warp-group product


def shipped() -> dict[tuple[str, str], Kernel]:
    """Every kernel by name and architecture; one that several calls launch has the first call's name."""
    found: dict[tuple[str, str], Kernel] = {}
    seen = set()
    for call in calls():
        for capability in call.capabilities:
            for kernel in launched(call.run, capability):
                if kernel.fingerprint in seen:
                    continue
                seen.add(kernel.fingerprint)
                flags = [flag.lower() for flag in FLAGS if kernel.constant(flag)]
                key = f"{call.family}_{kernel.name}<{', '.join([call.label, *flags])}>", f"sm_{capability}"
                assert key not in found, f"two kernels are called {key}"
                found[key] = kernel
    return found


def cpu_seconds() -> float:
    """Of this process and of the programs that it ran."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in used)


def passport(kernel: Kernel) -> dict:
    """Compile a kernel and read its machine code; ``error`` alone where the compiler refuses it."""
    knobs.nvidia.dump_ptxas_log = True
    knobs.compilation.always_compile = True
    log, start = io.StringIO(), cpu_seconds()
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(log):
        knobs.cache.dir = folder
        try:
            compiled = triton.compile(kernel.source, target=kernel.target, options=kernel.options)
        except Exception as error:  # of any kind, and the others are to be compiled still
            return {"error": f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"}
        seconds = cpu_seconds() - start
        cubin, disassembler = Path(folder) / "cubin", find("nvdisasm")
        assert disassembler is not None
        cubin.write_bytes(compiled.asm["cubin"])
        listing = subprocess.run([disassembler, "-c", cubin], capture_output=True, text=True, check=True).stdout
    said = log.getvalue()
    registers, spill = _USED.search(said), _SPILL.search(said)
    assert registers is not None and spill is not None, said
    tile = {name: value for name in TILES if (value := kernel.constant(name)) is not None}
    facts = {
        "configuration": {**tile, "warps": compiled.metadata.num_warps, "stages": kernel.options["num_stages"]},
        "threads": 32 * compiled.metadata.num_warps,
        "registers": int(registers[1]),
        "shared": compiled.metadata.shared,
        "stack": int(spill[1]),
        "spills": int(spill[2]) + int(spill[3]),
        "mma": sass.products(listing),
        **sass.pipeline(sass.main_loop(listing)),
        "serialised": bool(_SERIALISED.search(said)),
        "seconds": round(seconds, 1),
    }
    if kernel.function.is_gluon():
        facts["in_turns"] = sass.in_turns(listing)
    return facts


KERNELS: dict[tuple[str, str], Kernel] = {}  # inherited by the processes that compile


def _compile(key: tuple[str, str]) -> dict:
    return passport(KERNELS[key])


def main() -> None:
    """Print as JSON what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", type=Path, help="compile what differs from this table")
    parser.add_argument("--always", metavar="REGEX", help="compile these in any case, by 'name architecture'")
    parser.add_argument("--only", metavar="REGEX", help="compile these, and nothing else")
    options = parser.parse_args()
    KERNELS.update(shipped())
    table = json.loads(options.table.read_text()).get(triton.__version__, {}) if options.table else {}
    prints: dict[str, dict[str, str]] = {}
    cost: dict[tuple[str, str], float] = {}
    for (name, known), kernel in KERNELS.items():
        prints.setdefault(name, {})[known] = kernel.fingerprint
        kept = table.get(name, {}).get(known, {})
        stale = bool(table) and kept.get("fingerprint") != kernel.fingerprint  # of a compiler that the table knows
        asked = options.only or options.always
        matches = bool(asked) and re.search(asked, f"{name} {known}") is not None
        if matches or (stale and not options.only):
            cost[name, known] = kept.get("seconds", 99.0)
    chosen = sorted(cost, key=lambda key: -cost[key])  # the long ones first
    found: dict[str, dict[str, dict]] = {}
    if chosen:
        fork = multiprocessing.get_context("fork")  # nothing was compiled yet, so nothing runs beside this thread
        with concurrent.futures.ProcessPoolExecutor(os.cpu_count(), fork) as pool:
            for (name, known), facts in zip(chosen, pool.map(_compile, chosen), strict=True):
                found.setdefault(name, {})[known] = facts
    print(json.dumps({"triton": triton.__version__, "fingerprints": prints, "kernels": found}))


if __name__ == "__main__":
    main()
