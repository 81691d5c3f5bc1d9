"""The plan table: every strategy for a recurrent sequence, what it needs, what it costs, and why one is chosen.

``auto``, ``explain``, the tests and the benchmarks all read this table and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from .kernels import Sizes, launches
from .native import COMPILED_DEVICES, EMULATED, HOW_TO_BUILD
from .reference.cells import CELLS
from .reference.options import NAMES as OPTIONS


@dataclass(frozen=True)
class Request:
    """What a call asks for: the cell, the device type and the floating-point type, as torch names them, and sizes.

    Attributes:
        hidden: H, of one head; 0 where it is not known.
        tf32: whether fp32 products may round their factors to TF32.
        short: whether there are no more than ``SHORT`` steps.
        options: what is asked for beside the cell, names of ``OPTIONS``.
    """

    cell: str
    device: str
    dtype: str = "float32"
    batch: int = 1
    projection: bool = False
    hidden: int = 0
    directions: int = 1
    tf32: bool = False
    short: bool = False
    options: tuple[str, ...] = ()


@dataclass(frozen=True)
class Strategy:
    """One rung of the ladder.

    Attributes:
        name: what ``strategy=`` takes.
        idea: one sentence on how it works.
        launches: operator calls (on a GPU: kernel launches) for a sequence of T steps, a formula in T.
        refuse: why the request cannot run this way, or None if it can.
        pass_over: why ``auto`` does not take it although it can serve the request, or None.
        cuda: whether it launches the kernels of csrc/cuda.
        evidence: the result file, or the prediction labelled as such, that puts it where it stands.
        options: those that it can serve.
    """

    name: str
    idea: str
    launches: str
    refuse: Callable[[Request], str | None]
    evidence: str
    pass_over: Callable[[Request], str | None] = lambda request: None
    cuda: bool = False
    options: tuple[str, ...] = OPTIONS


@dataclass(frozen=True)
class Plan:
    """The outcome for one request: the strategy, the reason, and why each other one was not taken."""

    request: Request
    strategy: Strategy
    reason: str
    refused: tuple[tuple[str, str], ...]


COMPILED_DTYPES = ("float64", "float32", "bfloat16", "float16")


def _needs_kernel(request: Request) -> str | None:
    if request.device not in COMPILED_DEVICES:
        if request.device == "cpu":
            return f"no compiled kernel: {HOW_TO_BUILD}"
        if request.device == "cuda":
            return "the library of CUDA kernels is not built: `make build` builds it for a torch with CUDA, given nvcc"
        return f"this version of fusednn has no compiled kernel for {request.device} tensors"
    if request.dtype not in COMPILED_DTYPES:
        return f"dtype must be one of {', '.join(COMPILED_DTYPES)}, got {request.dtype}"
    return None


def _needs_cpu(request: Request) -> str | None:
    return _needs_kernel(request) or (None if request.device == "cpu" else "runs on CPU tensors")


def _needs_gpu(request: Request) -> str | None:
    if request.device == "cpu" and not EMULATED:
        return "runs CUDA kernels; on CPU tensors only in the emulation, with FUSEDNN_EMULATE=1 set at import"
    return _needs_kernel(request)


def _step(request: Request) -> str | None:
    return _needs_gpu(request) or ("has no projection; 'gemm' has" if request.projection else None)


def _persistent(strategy: str) -> Callable[[Request], str | None]:
    def refuse(request: Request) -> str | None:
        if reason := _step(request):
            return reason
        if request.dtype == "float64":
            return "has no float64; 'step' and 'gemm' have"
        # The batch decides only where it is large; so a compiled graph need not depend on it.
        batch = request.batch if request.batch > 8 * PERSISTENT_ROWS else 1
        sizes = (batch, request.hidden, request.directions)
        return _no_room(strategy, request.cell, request.dtype, request.tf32, *sizes) if request.hidden else None

    return refuse


@torch.compiler.assume_constant_result
def _no_room(strategy: str, cell: str, dtype: str, tf32: bool, batch: int, hidden: int, directions: int) -> str | None:
    """Why the weights and states do not fit, by the host code of the kernels itself."""
    try:
        launches(cell, dtype, strategy, Sizes(batch, 1, hidden, directions=directions), training=True, tf32=tf32)
    except ValueError as error:
        return str(error)
    return None


@torch.compiler.assume_constant_result
def _rows_together(cell: str, dtype: str, tf32: bool, hidden: int, layers: int) -> int | str:
    """Rows up to which ``grid`` walks layers together, or why it cannot, by the host code of the kernels itself."""
    try:
        found = launches(cell, dtype, "grid", Sizes(1, 1, hidden, layers=layers), training=True, tf32=tf32)
    except ValueError as error:
        return str(error)
    together = next(launch for launch in found or () if launch.cooperative and launch.grid[2] == layers)
    return WAVEFRONT_ROWS * (together.resident // (together.grid[0] * layers))


def layer_by_layer(request: Request, layers: int, dropout: bool = False) -> str | None:
    """Why ``grid`` launches every layer by itself; None: one launch walks all, forward.

    Args:
        request: what ``grid`` was chosen for.
        layers: how many there are.
        dropout: whether something stands between them.
    """
    if layers == 1:
        return "there is one"
    if request.directions > 1:
        return "the second direction begins with the last step of the layer below"
    if request.options or dropout:
        return f"there is {' and '.join((*request.options, *['dropout between them'] * dropout))}"
    rows = _rows_together(request.cell, request.dtype, request.tf32, request.hidden, layers)
    if isinstance(rows, str):
        return rows
    return f"predicted slower together for more than {rows} rows" if request.batch > rows else None


def _only_measures(request: Request) -> str | None:
    return "kept for measurement"


def _emulation(request: Request) -> str | None:
    return "emulated on CPU tensors" if request.device == "cpu" else None


STEP_ROWS = 64  # predicted: a block of `step` reads its weights once for 16 rows; beyond, a library GEMM reads less


PERSISTENT_ROWS = 128  # predicted: beyond, columns of 8 rows one after the other take longer than a library GEMM


WAVEFRONT_ROWS = 8  # predicted: of a group of blocks; with a second column it loses more than layers side by side gain


SHORT = 4  # predicted: loading all weights into registers and shared memory takes as long as this many launches


def _many_rows(request: Request) -> str | None:
    if not request.hidden:
        return "whether the weights fit depends on the hidden size"
    if request.short:
        return f"predicted slower than 'step' for no more than {SHORT} steps"
    if request.batch > PERSISTENT_ROWS:
        return f"predicted slower than 'gemm' for more than {PERSISTENT_ROWS} rows"
    return _emulation(request)


def _large_batch(request: Request) -> str | None:
    if request.batch > STEP_ROWS:
        return f"predicted slower than 'gemm' for more than {STEP_ROWS} rows"
    return _emulation(request)


_STEPWISE = tuple(option for option in OPTIONS if option != "layer norm")  # a block sees its own units alone


# Best first: ``auto`` takes the first one that neither refuses nor is passed over.
STRATEGIES = (
    Strategy(
        "sequence",
        "one operator call for all steps: threads stay, weights are packed once, gates are fused",
        "1",
        _needs_cpu,
        "bench_launch in bench/results",
    ),
    Strategy(
        "block",
        "one launch: a thread block owns 8 rows of the batch and all weights, in registers and shared memory",
        "1",
        _persistent("block"),
        "predicted, not measured on a GPU",
        _many_rows,
        cuda=True,
        options=_STEPWISE,
    ),
    Strategy(
        "cluster",
        "one launch: a cluster of blocks owns rows of the batch and all weights; h travels from block to block",
        "1",
        _persistent("cluster"),
        "predicted, not measured on a GPU",
        _many_rows,
        cuda=True,
        options=_STEPWISE,
    ),
    Strategy(
        "grid",
        "one launch: weights stay in registers and shared memory of all multiprocessors; h travels through L2",
        "2",
        _persistent("grid"),
        "predicted, not measured on a GPU",
        _many_rows,
        cuda=True,
        options=_STEPWISE,
    ),
    Strategy(
        "step",
        "one kernel a step (two with reset before the product): recurrent product, gates and state update fused",
        "T + 2",
        _step,
        "predicted, not measured on a GPU",
        _large_batch,
        cuda=True,
        options=_STEPWISE,
    ),
    Strategy(
        "graph",
        "the kernels of 'step', of 64 steps at a time, recorded once and replayed; inside a stream capture as 'step'",
        "T / 64 + 3",
        _step,
        "predicted, not measured on a GPU",
        lambda request: "kept for measurement until a GPU has compared it with 'step'",
        cuda=True,
        options=_STEPWISE,
    ),
    Strategy(
        "gemm",
        "a library GEMM and one fused pointwise kernel a step: works for every size and dtype",
        "2 T + 2",
        _needs_gpu,
        "predicted, not measured on a GPU",
        _emulation,
        cuda=True,
    ),
    Strategy(
        "loop",
        "one operator call a step: the same kernel at T = 1, kept to measure what a launch a step costs",
        "T",
        _needs_kernel,
        "bench_launch in bench/results",
        _only_measures,
    ),
    Strategy(
        "reference",
        "plain PyTorch, several operators a step: the definition of correct, differentiable to any order",
        "several T",
        lambda request: None,
        "bench_launch in bench/results",
    ),
)
NAMES = ("auto", *(s.name for s in STRATEGIES))


def _lacks(strategy: Strategy, request: Request) -> str | None:
    """Which option of the request a strategy has not, and which strategies have it."""
    lacking = [option for option in request.options if option not in strategy.options]
    if not lacking:
        return None
    able = [f"'{s.name}'" for s in STRATEGIES if set(lacking) <= set(s.options) and s.refuse(request) is None]
    return f"has no {' and no '.join(lacking)}; {', '.join(able)} ha{'s' if len(able) == 1 else 've'}"


def refuse_options(strategy: str, options: tuple[str, ...]) -> None:
    """Raise ValueError where a strategy that is asked for by name lacks an option, whatever the call."""
    asked = next((s for s in STRATEGIES if s.name == strategy), None)
    lacking = [] if asked is None else [option for option in options if option not in asked.options]
    if lacking:
        able = ", ".join(f"'{s.name}'" for s in STRATEGIES if set(lacking) <= set(s.options))
        raise ValueError(f"strategy {strategy!r} has no {' and no '.join(lacking)}; expected one of 'auto', {able}")


def plan(request: Request, strategy: str = "auto") -> Plan:
    """Choose a strategy for a request.

    Raises:
        ValueError: an unknown cell or strategy, or an explicit strategy that cannot serve the request.
    """
    if request.cell not in CELLS:
        raise ValueError(f"cell must be one of {', '.join(CELLS)}, got {request.cell!r}")
    if strategy not in NAMES:
        raise ValueError(f"strategy must be one of {', '.join(NAMES)}, got {strategy!r}")
    refusals = {s.name: s.refuse(request) or _lacks(s, request) for s in STRATEGIES}
    if strategy != "auto" and refusals[strategy] is not None:
        what = f"{request.cell} in {request.dtype} on {request.device}"
        raise ValueError(f"strategy {strategy!r} is impossible for {what}: {refusals[strategy]}")
    reasons = {s.name: refusals[s.name] or s.pass_over(request) for s in STRATEGIES}
    chosen = next(s for s in STRATEGIES if s.name == strategy or (strategy == "auto" and reasons[s.name] is None))
    reason = f"first in the plan table that can serve it; {chosen.evidence}"
    if strategy != "auto":
        reason = "asked for by name"
    others = tuple((s.name, reasons[s.name] or "after it in the plan table") for s in STRATEGIES if s is not chosen)
    return Plan(request, chosen, reason, others)
