"""What Triton's compilers make of every kernel on every architecture: ``pyext/fusednn/passports.json``.

``python tools/passports.py`` compiles kernels ahead of time, without a GPU, with this environment's Triton and with the
oldest one that is supported, which it installs into ``build/``. It compares what it finds with the table, and fails on
spills, on more shared memory than a block may have, on products that ptxas serialised, on too many waits for products
and too little that runs beside them, and on more than ten seconds of compilation. ``--write`` brings the table up to
date. A fingerprint beside each passport tells what changed: those are compiled, and of the others the kernels for sm_90
that most calls take; ``--all`` compiles every one.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

from gates import faults

ROOT = Path(__file__).resolve().parent.parent
TABLE = ROOT / "pyext/fusednn/passports.json"
OLDEST = "3.6"
ALWAYS = (
    r"^(?!.*(tf32|fp32|mask|addresses|dropout|sequences|shifted|specialized|ping_pong|stages|rows|256|persistent|compose))"
    r".* sm_90$"
)
NOT_COMPARED = ("seconds", "fingerprint")


def oldest() -> Path:
    """The folder of the oldest supported Triton, without what it depends on: compiling needs nothing."""
    folder = ROOT / f"build/triton-{OLDEST}"
    if not (folder / "triton").exists():
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder)]
        subprocess.run([*pip, f"triton=={OLDEST}.*"], check=True)
    return folder


def compiled(folder: Path | None, arguments: list[str]) -> dict:
    """What ``compile_kernels.py`` finds with the Triton in a folder, or with the environment's."""
    places = [] if folder is None else [str(folder)]
    paths = os.pathsep.join([*places, str(ROOT / "pyext"), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, str(ROOT / "tools/compile_kernels.py"), "--table", str(TABLE), *arguments]
    environment = {**os.environ, "PYTHONPATH": paths}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(done.returncode)
    return json.loads(done.stdout.splitlines()[-1])


def text_of(table: dict) -> str:
    """The table as JSON with a line a passport, for readable differences."""
    versions = []
    for version, kernels in table.items():
        blocks = []
        for name, facts in kernels.items():
            lines = [f"   {json.dumps(key)}: {json.dumps(fact)}" for key, fact in facts.items()]
            blocks.append(f"  {json.dumps(name)}: {{\n" + ",\n".join(lines) + "\n  }")
        versions.append(f" {json.dumps(version)}: {{\n" + ",\n".join(blocks) + "\n }")
    return "{\n" + ",\n".join(versions) + "\n}\n"


def merged(kept: dict, found: dict) -> dict:
    """The passports of one compiler after a run: what is launched, as found or else as it was."""
    rows: dict[str, dict] = {}
    for name, prints in found["fingerprints"].items():
        for known, fingerprint in prints.items():
            facts = found["kernels"].get(name, {}).get(known)
            if facts is not None:
                rows.setdefault(name, {})[known] = {**facts, "fingerprint": fingerprint}
            elif known in kept.get(name, {}):
                rows.setdefault(name, {})[known] = kept[name][known]
    return rows


def differences(kept: dict, found: dict) -> list[str]:
    """What the table of the same compiler says otherwise, and which of its rows are stale, missing or left over."""
    lines = []
    prints, kernels = found["fingerprints"], found["kernels"]
    for name, facts in kept.items():
        lines += [f"{name} {known}: in the table, not launched" for known in facts if known not in prints.get(name, {})]
    for name, known, fingerprint in ((n, k, f) for n, row in prints.items() for k, f in row.items()):
        old, new = kept.get(name, {}).get(known), kernels.get(name, {}).get(known)
        if old is None:
            lines.append(f"{name} {known}: not in the table")
        elif old["fingerprint"] != fingerprint:
            lines.append(f"{name} {known}: changed since its passport")
        if old and new:
            lines += [f"{name} {known}: {key} {old.get(key)} in the table, {value} in the code"
                      for key, value in new.items() if key not in NOT_COMPARED and old.get(key) != value]  # fmt: skip
    return lines


def main() -> None:
    """Compare, or write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--all", action="store_true", help="compile every kernel, changed or not")
    what.add_argument("--only", metavar="REGEX", help="compile these, such as 'attention_forward<fp16, 128> sm_90'")
    what.add_argument("--none", action="store_true", help="compile nothing: is the table up to date?")
    parser.add_argument("--newest", action="store_true", help="leave out the oldest Triton")
    parser.add_argument("--write", action="store_true", help="bring the table up to date")
    options = parser.parse_args()
    if importlib.util.find_spec("triton") is None:
        sys.exit("passports not checked: Triton is not installed")
    table = json.loads(TABLE.read_text())
    only = "$^" if options.none else options.only
    arguments = ["--only", only] if only else ["--always", "." if options.all else ALWAYS]
    wrong, written = [], {}
    places = [None, oldest()]
    if options.newest or importlib.metadata.version("triton").startswith(f"{OLDEST}."):
        places = [None]
    for place in places:
        found = compiled(place, arguments)
        version = found["triton"]
        done, launched = (sum(map(len, found[key].values())) for key in ("kernels", "fingerprints"))
        print(f"passports: {done} of {launched} kernels compiled, Triton {version}", flush=True)
        for name, facts in found["kernels"].items() if options.only else ():
            print(*(f"{name} {known} {json.dumps(fact)}" for known, fact in facts.items()), sep="\n")
        kept = table.get(version, {})
        lines = [] if options.write or not kept else differences(kept, found)
        written[version] = merged(kept, found)
        wrong += [f"Triton {version}: {line}" for line in [*lines, *faults(written[version])]]
    if options.write:
        rest = table if options.newest else {}
        by_version = sorted({**rest, **written}.items(), key=lambda item: [*map(int, re.findall(r"\d+", item[0]))])
        TABLE.write_text(text_of(dict(by_version)))
    if wrong:
        sys.exit("\n".join(wrong))


if __name__ == "__main__":
    main()
