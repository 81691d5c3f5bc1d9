"""``python -m fusednn``: a report on this installation, what would run and why, and how fast it is beside torch.nn."""

from __future__ import annotations

import argparse
import sys

import torch
from torch import nn

from . import environment, functional
from .comparison import compare
from .explanation import explain
from .kernels import Sizes, every
from .occupancy import GPUS
from .plan import Request, plan
from .profiling import command
from .profiling.workload import RECURRENT, add_sizes, check, check_heads, place_of, positive, recurrent_layer
from .recurrent_explanation import describe
from .reference.cells import CELLS


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m fusednn", description=__doc__)
    commands = parser.add_subparsers(dest="command", metavar="command")
    commands.add_parser("report", help="facts about this machine and installation (the default)")
    add = commands.add_parser(
        "explain", help="which kernel would run, and why", formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add.add_argument("what", choices=[*CELLS, "rnn", "attention"], help="a cell, or attention")
    add_sizes(add, batch=1, hidden=512)
    add = commands.add_parser(
        "compare",
        help="time torch.nn's layer and fusednn's on this machine, check that they agree, and say what ran",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add.add_argument("what", choices=[*RECURRENT, "transformer"], help="a layer; transformer is the encoder's")
    add_sizes(add)
    command.add_parser(commands)
    add = commands.add_parser("occupancy", help="theoretical occupancy of the CUDA and Triton kernels; needs no GPU")
    add.add_argument("kernel", nargs="?", default="", help="part of a kernel's name, such as Lstm or attention_forward")
    add.add_argument("--gpu", choices=sorted(GPUS), action="append", help="may be repeated (default: all)")
    add = commands.add_parser(
        "tune",
        help="measure attention kernels on this GPU and keep the fastest, for processes with FUSEDNN_TUNED=1",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add.add_argument("--size", type=positive, default=128, metavar="E", help="of a head")
    add.add_argument("--dtype", choices=("bfloat16", "float16"), default="bfloat16")
    add.add_argument("--time", type=positive, default=4096, metavar="T", help="queries and keys")
    add.add_argument("--batch", type=positive, default=1, metavar="B")
    add.add_argument("--heads", type=positive, default=16, metavar="N")
    add.add_argument("--causal", action="store_true", help="hide the keys that come after the query")
    add.add_argument("--repeats", type=positive, default=20, help="rounds of measurements")
    return parser


def _explain(options: argparse.Namespace) -> str:
    if options.what == "attention":
        check_heads(options)
        shape = (options.batch, options.heads, options.time, options.hidden // options.heads)
        q = torch.empty(shape, **place_of(options))
        return explain(functional.scaled_dot_product_attention, q, q, q)
    cell = "rnn_tanh" if options.what == "rnn" else options.what
    device = torch.device(options.device).type  # refuses what torch does not know
    chosen = plan(Request(cell, device, options.dtype, options.batch), options.strategy)
    sizes = f"sizes      B = {options.batch}, T = {options.time}, H = {options.hidden}, L = {options.layers}"
    layer = Sizes(options.batch, options.time, options.hidden)
    first, rest = describe(chosen, layer, options.layers).split("\n", 1)
    return "\n".join([first, sizes, rest])


def _compare(options: argparse.Namespace) -> str:
    check(options)
    hidden, place = options.hidden, place_of(options)
    if options.what == "transformer":
        layer = nn.TransformerEncoderLayer(hidden, options.heads, 4 * hidden, dropout=0.0, batch_first=True, **place)
    else:
        layer = recurrent_layer(options)
    x = torch.randn(options.batch, options.time, hidden, **place, requires_grad=True)
    found = compare(layer, x)
    name = environment.device_name(torch.device(options.device))
    lines = [
        f"sizes      B = {options.batch}, T = {options.time}, H = {hidden}, {options.dtype} on {options.device}",
        f"machine    {name}, {torch.get_num_threads()} threads, torch {torch.__version__}",
        f"{found}\n",
        explain(found.replaced.model, x),
    ]
    return "\n".join(lines)


def _occupancy(options: argparse.Namespace) -> str:
    chosen = [kernel for kernel in every() if options.kernel in kernel.name]
    if not chosen:
        raise ValueError(f"no kernel's name contains {options.kernel!r}; fusednn occupancy lists all")
    rows: list[tuple[str, ...]] = [
        (
            "kernel",
            "GPU",
            "threads",
            "registers",
            "shared bytes",
            "blocks",
            "warps",
            "occupancy",
            "limited by",
            "one more block needs",
        )
    ]
    for kernel in chosen:
        for gpu in (GPUS[name] for name in options.gpu or GPUS):
            code, fits = kernel.on(gpu), kernel.occupancy(gpu)
            if code is not None and fits is not None:
                facts = (code.threads, code.registers, code.shared + code.dynamic, fits.blocks, fits.warps)
                why = (f"{100 * fits.share:.3g}%", fits.limiter, kernel.one_more(gpu))
                rows.append((kernel.name, gpu.name, *map(str, facts), *why))
    return command.in_columns(rows)


def _tune(options: argparse.Namespace) -> str:
    from .triton_kernels.tuning import tune

    device = "cuda" if torch.cuda.is_available() else "meta"  # which it refuses
    shape = (options.batch, options.heads, options.time, options.size)
    q, k, v = (torch.randn(shape, dtype=getattr(torch, options.dtype), device=device) for _ in range(3))
    rows: list[tuple[str, ...]] = [("pass", "candidate", "ms", "verdict", "chosen")]
    for result in tune(q, k, v, options.causal, repeats=options.repeats):
        spent = "" if result.milliseconds is None else f"{result.milliseconds:.4g}"
        rows.append((result.way, str(result.candidate), spent, result.verdict, "chosen" if result.chosen else ""))
    return command.in_columns(rows)


def main(arguments: list[str] | None = None) -> int:
    """Run one command; 0 for success, 2 for arguments that do not fit."""
    options = _parser().parse_args(arguments)
    commands = {
        "explain": _explain, "compare": _compare, "profile": command.profile, "occupancy": _occupancy, "tune": _tune,
    }  # fmt: skip
    try:
        print(commands[options.command](options) if options.command in commands else environment.report())
    except (ValueError, RuntimeError) as error:
        print(f"fusednn: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
