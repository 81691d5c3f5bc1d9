"""Measure the candidates of an attention call on this GPU, and keep the fastest right one for later processes."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..attention_call import Inputs, Options, wide
from . import unavailable
from .configurations import Candidate, architecture, candidates, padded

ROUNDINGS = 16  # of the largest number: how far two orders of the same sums may lie apart
GAIN = 0.02  # a candidate that is not this much faster than the default leaves it in place

Run = Callable[[Candidate], Sequence[Tensor]]  # computes anew, and returns the results
Timer = Callable[[Callable[[], object]], float]  # milliseconds of one call


@dataclass(frozen=True)
class Result:
    """What became of a candidate.

    Attributes:
        way: ``forward`` or ``backward``.
        candidate: the default is the first of its pass.
        verdict: ``right``, ``wrong``, or the error that it raised.
        milliseconds: median; None where it is not right.
        chosen: whether it is what tuned processes will run.
    """

    way: str
    candidate: Candidate
    verdict: str
    milliseconds: float | None = None
    chosen: bool = False


def tune(
    query: Tensor, key: Tensor, value: Tensor, is_causal: bool = False,
    window: tuple[int | None, int | None] | None = None, *, backward: bool = True, repeats: int = 20,
) -> list[Result]:  # fmt: skip
    """Time what could compute attention of these tensors, and write the fastest into the file of ``tuned.path()``.

    The choice holds for calls without modifiers but mask by position, on this GPU and with this Triton, for the dtype
    and the range of head sizes, in processes that start with FUSEDNN_TUNED=1. Candidates are compiled here, so this
    takes minutes the first time. Their results are compared with the default's, and wrong ones are refused.

    Args:
        query: queries [B, N, M, E], contiguous, on a GPU.
        key: keys [B, N / G, K, E].
        value: values [B, N / G, K, Ev].
        is_causal: hide the keys that come after the query.
        window: as for ``scaled_dot_product_attention``.
        backward: tune the backward pass too.
        repeats: rounds of measurements; each times every candidate once.

    Returns:
        A result a candidate, the default of each pass first.

    Raises:
        RuntimeError: no GPU, no CUDA tensors, or no Triton.
        ValueError: the file is malformed, or strides do not suit tensor-memory descriptors.
    """
    if not torch.cuda.is_available():
        raise RuntimeError("tuning measures on a GPU, and torch finds none")
    if not query.is_cuda:
        raise RuntimeError(f"tuning measures on a GPU and needs CUDA tensors, got tensors on {query.device.type}")
    reason = unavailable("cuda")
    if reason is not None:
        raise RuntimeError(f"tuning: {reason}")
    return measured(query, key, value, is_causal, window, backward, repeats, milliseconds)


def measured(
    query: Tensor, key: Tensor, value: Tensor, is_causal: bool, window: tuple[int | None, int | None] | None,
    backward: bool, repeats: int, timer: Timer,
) -> list[Result]:  # fmt: skip
    """``tune`` by some clock."""
    from . import launch, tuned

    if not all(map(launch.describable, (query, key, value))):
        raise ValueError("tuning needs contiguous tensors whose rows are multiples of 16 bytes")
    tuned.read()  # a malformed file is to be known before minutes are spent
    left, right = window or (None, None)
    right = 0 if is_causal else right
    inputs = Inputs(query, key, value)
    options = Options(
        query.shape[3] ** -0.5, None, left, right, False, 0.0, query.shape[2], key.shape[2], False, "triton"
    )
    hidden, size = left is not None or right is not None, max(padded(query.shape[3]), padded(value.shape[3]))
    known = architecture(torch.cuda.get_device_capability(query.device))
    out = query.new_empty(*query.shape[:3], value.shape[3])
    lse = query.new_empty(query.shape[:3], dtype=wide(query.dtype))
    grad, grads = torch.randn_like(out), [torch.empty_like(x) for x in inputs[:3]]

    def forward(candidate: Candidate) -> list[Tensor]:
        launch.forward(inputs, options, out, lse, candidate)
        return [out, lse]

    def gradients(candidate: Candidate) -> list[Tensor]:
        launch.backward(grad, None, inputs, options, out, lse, [*grads, None, None, None], candidate)
        return grads

    results, choices = [], {}
    for way, run in (("forward", forward), ("backward", gradients))[: 1 + backward]:
        tried = candidates(way, known, query.dtype, size, hidden, launch.OLDER)
        with launch.on_device(query):
            found = race(way, tried, run, timer, repeats)
            run(tried[0])  # the gradients need the default's output
        choices[tuned.key(way, query, size, hidden)] = next(r.candidate for r in found if r.chosen)
        results += found
    tuned.write(choices)
    return results


def race(way: str, tried: Sequence[Candidate], run: Run, timer: Timer, repeats: int) -> list[Result]:
    """Check candidates against the first, and time those that agree, in turns, so that a change of clock meets all.

    Args:
        way: ``forward`` or ``backward``.
        tried: candidates, the default first; an error of that one is raised.
        run: see ``Run``; writes into the same tensors each time.
        timer: see ``Timer``.
        repeats: rounds.
    """
    expected = [x.clone() for x in run(tried[0])]
    results = [Result(way, tried[0], "right"), *(Result(way, c, _verdict(c, run, expected)) for c in tried[1:])]
    right = [r.candidate for r in results if r.verdict == "right"]
    times: dict[Candidate, list[float]] = {candidate: [] for candidate in right}
    for _ in range(repeats):
        for candidate in right:
            times[candidate].append(timer(lambda c=candidate: run(c)))
    medians = {candidate: statistics.median(spent) for candidate, spent in times.items()}
    best = min(right, key=lambda candidate: medians[candidate])
    if medians[best] > (1.0 - GAIN) * medians[tried[0]]:
        best = tried[0]
    return [replace(r, milliseconds=medians.get(r.candidate), chosen=r.candidate == best) for r in results]


def _verdict(candidate: Candidate, run: Run, expected: Sequence[Tensor]) -> str:
    """``right``, ``wrong`` or an error, of one run whose results were poisoned before."""
    try:
        found = run(candidate)  # compiles
        for x in found:
            x.fill_(float("nan"))
        found = run(candidate)
        return "right" if all(map(agree, found, expected)) else "wrong"
    except Exception as error:  # of the compiler, the launch or the device: such a candidate is no choice
        return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"


def agree(found: Tensor, expected: Tensor) -> bool:
    """Whether two results differ by rounding alone; infinities, of empty rows' LSE, must be the same."""
    finite = expected.isfinite()
    if not torch.equal(finite, found.isfinite()) or not torch.equal(found[~finite], expected[~finite]):
        return False
    a, b = found[finite].double(), expected[finite].double()
    bound = ROUNDINGS * torch.finfo(expected.dtype).eps
    return not len(a) or bool((a - b).abs().max() <= bound * b.abs().max())


def milliseconds(run: Callable[[], object]) -> float:
    """Of one call on the current GPU, by CUDA events."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end)
