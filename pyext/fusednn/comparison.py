"""Time a model on torch.nn's layers and on fusednn's, in turn, after a check that both compute the same."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from .conversion import REPLACEMENTS, Conversion, check_module, convert, revert

LEAST, MOST = 7, 200  # pairs of measurements
SHORTEST = 5e-3  # seconds; shorter calls are timed several at once
RESAMPLES = 2000


@dataclass(frozen=True)
class Timing:
    """One mode of both sides.

    Attributes:
        mode: ``inference``, or ``training``: forward and backward.
        theirs, ours: median seconds of one call on torch.nn's layers and on fusednn's.
        ratio, low, high: ``theirs / ours`` with its 95 % interval, a bootstrap of the pairs.
        pairs: how many measurements of each side.
        error, allowed: of the tensor that is worst, against the model in float64; see ``compare``.
    """

    mode: str
    theirs: float
    ours: float
    ratio: float
    low: float
    high: float
    pairs: int
    error: float
    allowed: float

    def __str__(self) -> str:
        times = f"torch.nn {_duration(self.theirs)}, fusednn {_duration(self.ours)}"
        trust = f"{self.low:.2f} to {self.high:.2f} in 95 %, {self.pairs} pairs"
        return f"{self.mode:<10} {times}: {self.ratio:.2f} times as fast ({trust})"


@dataclass(frozen=True)
class Comparison:
    """What ``compare`` found; as text, what a person wants to read of it.

    Attributes:
        replaced: what differs between the two sides; its ``model`` is the copy that runs on fusednn.
        timings: inference, and training where the model has something to train.
    """

    replaced: Conversion
    timings: tuple[Timing, ...]

    def __str__(self) -> str:
        worst = max(self.timings, key=lambda t: _share((t.error, t.allowed)))
        right = f"checked    error {worst.error:.2g} of {worst.allowed:.2g} allowed, against the model in float64"
        return "\n".join([*(f"replaced   {line}" for line in str(self.replaced).splitlines()), right,
                          *map(str, self.timings)])  # fmt: skip


def compare(model: nn.Module, *inputs: Any, seconds: float = 1.0, **options: Any) -> Comparison:
    """Say how much faster a model is on fusednn's layers than on torch.nn's, here and for these inputs.

    Works on copies: one on torch.nn's layers, one on fusednn's, and one in float64 for the check, which comes first. In
    eval mode every result, and every gradient of their mean squares, must be as near to float64 as torch.nn's own:
    ``max|ours - truth| <= 2 max|torch.nn - truth| + 4 eps max|truth|``. Then the two sides run in turn, in
    eval mode without gradients and in train mode with them.

    Args:
        model: any module with layers that ``fusednn.convert`` replaces, or that ``fusednn.revert`` does.
        *inputs: what the model is called with: tensors, packed sequences, and tuples, lists and dicts of them. One
            that requires gradients gets them, as the input of a layer inside a network does.
        seconds: how long to measure each mode; seven pairs of calls are timed in any case.
        **options: keyword arguments of the call.

    Returns:
        A ``Comparison``; print it.

    Raises:
        TypeError: ``model`` is not a module.
        ValueError: there is nothing to compare or to differentiate, or the model does not run in float64.
        RuntimeError: the results differ by more than that; no time is given then.

    Example:
        >>> import torch, fusednn
        >>> found = fusednn.compare(torch.nn.GRU(8, 16), torch.randn(5, 2, 8), seconds=0.01)
        >>> [timing.mode for timing in found.timings]
        ['inference', 'training']
    """
    check_module("compare", model)
    reverted = revert(copy.deepcopy(model))
    replaced = convert(copy.deepcopy(reverted.model))
    if not replaced.replaced:
        known = ", ".join(kind.__name__ for kind in REPLACEMENTS)
        raise ValueError(f"compare() expects a model with a layer to replace ({known}), got {type(model).__name__}:"
                         f" {replaced}")  # fmt: skip
    replaced.kept.update(reverted.kept)
    theirs, ours = (_Side(side, inputs, options) for side in (reverted.model, replaced.model))
    trains = any(p.requires_grad for p in model.parameters())
    modes = ("inference", "training") if trains else ("inference",)
    checks = _checks(theirs, ours, modes)
    return Comparison(replaced, tuple(_timing(theirs, ours, mode, seconds, *checks[mode]) for mode in modes))


class _Side:
    """A model with inputs of its own."""

    def __init__(self, model: nn.Module, inputs: Any, options: Any, dtype: torch.dtype | None = None) -> None:
        def own(t: Tensor) -> Tensor:
            made = t.detach().clone()
            return (made.to(dtype or t.dtype) if t.is_floating_point() else made).requires_grad_(t.requires_grad)

        self.model = model
        self.inputs, self.options = _mapped(inputs, own), _mapped(options, own)
        tensors = [*_tensors((self.inputs, self.options)), *model.parameters()]
        self.leaves = [t for t in tensors if t.requires_grad]
        self.device = next((t.device for t in tensors if t.device.type != "cpu"), None)

    def inference(self) -> list[Tensor]:
        """All results."""
        with torch.inference_mode():
            return _tensors(self.model(*self.inputs, **self.options))

    def training(self) -> list[Tensor]:
        """All results, and the gradients of their mean squares."""
        for leaf in self.leaves:
            leaf.grad = None
        with torch.enable_grad():
            results = _tensors(self.model(*self.inputs, **self.options))
            losses = [t.square().mean() for t in results if t.requires_grad]
            if not losses:
                raise ValueError("compare() expects a result that depends on the parameters that require gradients")
            torch.autograd.backward(losses)
        return [*(t.detach() for t in results), *(leaf.grad for leaf in self.leaves if leaf.grad is not None)]

    def run(self, mode: str) -> Callable[[], list[Tensor]]:
        return self.training if mode == "training" else self.inference

    def finish(self) -> None:
        """Wait until nothing is queued."""
        if self.device is not None:
            torch.accelerator.synchronize(self.device)


def _mapped(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """A nested value with each tensor changed."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, PackedSequence):
        return value._replace(data=change(value.data))
    if type(value) in (tuple, list):
        return type(value)(_mapped(part, change) for part in value)
    if isinstance(value, dict):
        return {key: _mapped(part, change) for key, part in value.items()}
    return value


def _tensors(value: Any) -> list[Tensor]:
    """The floating-point tensors of a nested value, in order."""
    if isinstance(value, Tensor):
        return [value] if value.is_floating_point() else []
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, (tuple, list)) else ()
    return [tensor for part in parts for tensor in _tensors(part)]


def _checks(theirs: _Side, ours: _Side, modes: tuple[str, ...]) -> dict[str, tuple[float, float]]:
    """Error and allowance of the worst tensor of each mode; raises where an error is not allowed."""
    given = (theirs.inputs, theirs.options)
    truth = _Side(copy.deepcopy(theirs.model).double(), *given, dtype=torch.float64)
    found = {}
    for side in (theirs, ours, truth):
        side.model.eval()
    for mode in modes:
        with _without_cudnn() if mode == "training" else contextlib.nullcontext():
            got, expected = ours.run(mode)(), theirs.run(mode)()
            try:
                exact = truth.run(mode)()
            except (RuntimeError, TypeError, ValueError) as error:
                message = f"compare() checks against a copy of the model in float64, which does not run: {error}"
                raise ValueError(message) from error
        if not got:
            raise ValueError("compare() expects a model that returns floating-point tensors, got none")
        errors = [_error(*tensors) for tensors in zip(got, expected, exact, strict=True)]
        found[mode] = max(errors, key=_share)
        wrong = [e for e in errors if not e[0] <= e[1]]  # a NaN is wrong
        if wrong:
            error, allowed = wrong[0]
            raise RuntimeError(
                f"{len(wrong)} of {len(errors)} tensors of {mode} differ from float64 by more than torch.nn's rounding"
                f" explains: error {error:.3g}, allowed {allowed:.3g}; this is a defect of fusednn, please report it"
            )
    return found


def _without_cudnn() -> contextlib.AbstractContextManager[None]:
    """The model is in eval mode, where cuDNN's layers have no backward."""
    names = ("benchmark", "benchmark_limit", "deterministic", "allow_tf32", "fp32_precision")
    as_they_stand: dict[str, Any] = dict.fromkeys(names)
    return torch.backends.cudnn.flags(enabled=False, **as_they_stand)


def _share(error: tuple[float, float]) -> float:
    """The part of the allowance that an error uses."""
    return error[0] / error[1] if error[1] else 0.0


def _error(ours: Tensor, theirs: Tensor, truth: Tensor) -> tuple[float, float]:
    """Largest error, and how large it may be."""
    if truth.numel() == 0:
        return 0.0, 0.0
    rounding = 4 * torch.finfo(ours.dtype).eps * truth.abs().max().item()
    error, allowed = ((side.double() - truth).abs().max().item() for side in (ours, theirs))
    return error, 2 * allowed + rounding


def _timing(theirs: _Side, ours: _Side, mode: str, seconds: float, error: float, allowed: float) -> Timing:
    sides = [(side, side.run(mode)) for side in (theirs, ours)]
    for side, run in sides:
        side.model.train(mode == "training")
        run()
    repeats = max(1, round(SHORTEST / min(_seconds(side, run, 1) for side, run in sides)))
    pairs, begun = [], perf_counter()
    while len(pairs) < LEAST or (len(pairs) < MOST and perf_counter() - begun < seconds):
        pairs.append([_seconds(side, run, repeats) for side, run in sides])
    times = torch.tensor(pairs, dtype=torch.float64)  # [pairs, 2]
    picks = torch.randint(len(pairs), (RESAMPLES, len(pairs)), generator=torch.Generator().manual_seed(0))
    medians = times[picks].quantile(0.5, dim=1)
    ends = torch.tensor([0.025, 0.975], dtype=torch.float64)
    low, high = (medians[:, 0] / medians[:, 1]).quantile(ends).tolist()
    a, b = times.quantile(0.5, dim=0).tolist()
    return Timing(mode, a, b, a / b, low, high, len(pairs), error, allowed)


def _seconds(side: _Side, run: Callable[[], Any], repeats: int) -> float:
    """Seconds of one of several calls."""
    side.finish()
    begun = perf_counter()
    for _ in range(repeats):
        run()
    side.finish()
    return (perf_counter() - begun) / repeats


def _duration(seconds: float) -> str:
    unit, scale = next(((u, s) for u, s in (("s", 1.0), ("ms", 1e-3)) if seconds >= s), ("us", 1e-6))
    return f"{seconds / scale:.3g} {unit}"
