"""The command ``python -m fusednn profile``."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path

from .target import parse_target
from .tools import TOOLS, Asked, Rows, Tool
from .workload import positive

EPILOG = """\
TARGET, behind --, is a layer and its sizes, a benchmark's id, or a script:
  python -m fusednn profile --tool torch -- lstm --batch 8 --time 100 --hidden 256 --training
  python -m fusednn profile --tool ncu --kernel step_forward -- gru --dtype bfloat16 --strategy step
  python -m fusednn profile --tool nsys -- "bench/bench_recurrent.py::test_time[T50-lstm-inference-fusednn]"
  python -m fusednn profile --tool nsys -- train.py --epochs 1
`python -m fusednn.profiling.workload --help` lists the layers and their options."""
# The driver's own words where it keeps hardware counters to administrators.
_REFUSED = "ERR_NVGPUCTRPERM"
_HOW = (
    "the driver keeps hardware counters to administrators: run as root, or load the driver with"
    " NVreg_RestrictProfilingToAdminUsers=0"
)


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``profile`` to a command line."""
    add = commands.add_parser(
        "profile", help="Nsight Compute, Nsight Systems or torch's profiler on a layer, a benchmark or a script",
        formatter_class=argparse.RawDescriptionHelpFormatter, epilog=EPILOG,
    )  # fmt: skip
    add.add_argument("--tool", choices=sorted(TOOLS), default="torch", help="default: torch")
    add.add_argument("--kernel", metavar="REGEX", help="ncu: only kernels whose name it matches")
    add.add_argument("--launches", type=positive, default=20, metavar="N",
                     help="ncu: launches that are profiled; torch: rows that are shown (default: 20)")  # fmt: skip
    add.add_argument(
        "--out", type=Path, default=Path("profile"), metavar="FOLDER", help="of the report (default: profile)"
    )
    add.add_argument("--print", action="store_true", dest="only_print", help="print the commands, run nothing")
    add.add_argument("target", nargs=argparse.REMAINDER, metavar="-- TARGET")


def profile(options: argparse.Namespace) -> str:
    """Run a profiler; gives its tables as text.

    Raises:
        ValueError: the target is none, or the tool is missing; the message has the commands that would run.
        RuntimeError: the profiler or the program failed; the message has the end of what it said.
    """
    words = options.target[1:] if options.target[:1] == ["--"] else options.target
    tool = TOOLS[options.tool]
    if options.kernel and tool.name != "ncu":
        raise ValueError(f"--kernel is for ncu, got --tool {tool.name}")
    asked = Asked(parse_target(words), options.out, options.kernel, options.launches)
    commands = tool.commands(asked)
    printed = "\n".join(f"  {'FUSEDNN_NVTX=1 ' if tool.needs else ''}{shlex.join(command)}" for command in commands)
    if options.only_print:
        return printed
    if lacking := tool.missing():
        raise ValueError(f"missing: {lacking}\nWhere it is there, this runs:\n{printed}")
    if (file := asked.target.file) and not Path(file).exists():
        raise ValueError(f"no file {file}")
    try:
        options.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"--out: {error}") from error
    outputs = [_run(command, tool, asked.out / "log.txt") for command in commands][1:]
    for number, output in enumerate(outputs):
        (asked.out / f"{tool.name}-{number}.csv").write_text(output)
    (asked.out / "target.json").write_text(json.dumps(words) + "\n")
    parts = [in_columns(rows, str.rjust) for rows in tool.tables(asked, outputs)]
    return "\n\n".join([*parts, f"report     {tool.opens(asked)}"])


def _run(command: list[str], tool: Tool, log: Path) -> str:
    """What a command prints; both streams of all commands go to the log."""
    marked = {"FUSEDNN_NVTX": "1", "NSYS_NVTX_PROFILER_REGISTER_ONLY": "0"} if tool.needs else {}
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **marked})
    with log.open("a") as file:
        file.write(f"$ {shlex.join(command)}\n{done.stdout}{done.stderr}\n")
    said = done.stdout + done.stderr
    if _REFUSED in said:
        raise RuntimeError(f"{_HOW} ({_REFUSED})")
    if done.returncode:
        last = "\n".join(said.strip().splitlines()[-15:])
        raise RuntimeError(f"{command[0]} ended with status {done.returncode}; all of it is in {log}:\n{last}")
    return done.stdout


def in_columns(rows: Rows, align: Callable[[str, int], str] = str.ljust) -> str:
    """Rows of cells as text; ``align`` is for all columns but the first."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ((cells[0].ljust(widths[0]), *map(align, cells[1:], widths[1:])) for cells in rows)
    return "\n".join("  ".join(line).rstrip() for line in lines)
