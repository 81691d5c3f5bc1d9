"""Who wins over batch, length and width, and why: a model of time, fitted, and tried on sizes that it has not seen.

    time = launches x latency + steps x latency of a step + work / rate

Launches are counted (operator calls on a CPU, kernels on a GPU). Steps are what no implementation can run side by side:
layers x T for a recurrence that walks, layers for one token, none else. Work is arithmetic by formula. The three
coefficients are never negative, belong to one kind of stack in one mode, and make relative errors small.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from scipy.optimize import nnls

from bench.flops import SCANS, attention, of_mode
from bench.models.stacks import ENCODER, ENCODER_LAYERS, EQUAL_LAYERS, stack_flops
from bench.query import Cells
from bench.stats import crossover

CROSSOVER, DECODE = "crossover", "decode"
RECURRENT = ("RNN", "LSTM", "GRU", "MinGRU")
KINDS = (*RECURRENT, ENCODER)
MODES = ("inference", "training", DECODE)
HELD_BACK = 128  # the width that the fit does not see
LEAST = 4  # sizes of a fit

Size = tuple[int, int, int]  # B, T, d


@dataclass(frozen=True)
class Point:
    """One measured cell."""

    seconds: float
    launches: float


@dataclass(frozen=True)
class Fit:
    """Seconds a launch, seconds a step, FLOP a second; None where the fit gives time no such part.

    Attributes:
        seen: median relative error at the sizes of the fit.
        unseen: at those held back.
    """

    launch: float | None
    step: float | None
    rate: float | None
    seen: float | None = None
    unseen: float | None = None

    def seconds(self, kind: str, mode: str, size: Size, launches: float) -> float:
        """What the model says of a size."""
        parts = _parts(kind, mode, size, launches)
        inverse = (self.launch, self.step, 1 / self.rate if self.rate else None)
        return sum(part * (cost or 0.0) for part, cost in zip(parts, inverse, strict=True))


@dataclass(frozen=True)
class Where:
    """The lengths at which attention is faster: ``from`` T, ``until`` T, ``always`` or ``never``, of those measured."""

    word: str
    T: float | None = None

    def __str__(self) -> str:
        return self.word if self.T is None else f"{self.word} {self.T:.0f}"


@dataclass(frozen=True)
class Crossing:
    """Where attention wins over a recurrence of the width that the fit has not seen, measured and by the fit."""

    kind: str
    mode: str
    B: int
    measured: Where
    predicted: Where


def work_of(kind: str, mode: str, B: int, T: int, d: int) -> int:
    """FLOPs of a stack over a sequence, or in mode decode of one token behind T others."""
    if mode != DECODE:
        return of_mode(stack_flops(kind, B, T, d), mode)
    before = attention(B, 1, 1, T, d) if kind == ENCODER else 0  # scores and weighted sum over the T others
    return stack_flops(kind, B, 1, d) + ENCODER_LAYERS * before


def _parts(kind: str, mode: str, size: Size, launches: float) -> tuple[float, float, float]:
    """Launches, steps and work of one run."""
    B, T, d = size
    walks = kind != ENCODER and kind not in SCANS
    steps = EQUAL_LAYERS[kind] * (1 if mode == DECODE else T) * (2 if mode == "training" else 1) if walks else 0
    return launches, steps, work_of(kind, mode, B, T, d)


Points = dict[tuple[str, str], dict[Size, Point]]  # by kind and mode


def points(cells: Cells) -> Points:
    """Undisturbed medians of bench_crossover.py."""
    found: Points = defaultdict(dict)
    for cell in cells.all:
        info = cell["extra_info"]
        if "bench_crossover.py::" in cell["fullname"] and not info.get("disturbed"):
            kind = info["cell"].removesuffix(" stack")
            found[kind, info["mode"]][info["B"], info["T"], info["H"]] = Point(
                cell["stats"]["median"], info["launches"]
            )
    return dict(found)


def _shown(measured: Mapping[Size, Point]) -> dict[Size, Point]:
    """The sizes that a fit may see."""
    return {size: p for size, p in measured.items() if size[2] != HELD_BACK}


def fit(kind: str, mode: str, measured: Mapping[Size, Point]) -> Fit:
    """The model of one kind in one mode.

    Raises:
        ValueError: fewer than four sizes beside those held back.
    """
    seen = _shown(measured)
    if len(seen) < LEAST:
        raise ValueError(f"a fit needs four sizes, got {len(seen)}")
    rows = np.array([_parts(kind, mode, size, p.launches) for size, p in seen.items()])
    times = np.array([p.seconds for p in seen.values()])
    scale = rows.max(0) + (rows.max(0) == 0)
    found = nnls(rows / scale / times[:, None], np.ones(len(seen)))[0] / scale
    launch, step, inverse = (float(c) if c > 0 else None for c in found)
    made = Fit(launch, step, 1 / inverse if inverse else None)

    def error(held: bool) -> float | None:
        errors = [abs(made.seconds(kind, mode, size, p.launches) / p.seconds - 1)
                  for size, p in measured.items() if (size[2] == HELD_BACK) == held]  # fmt: skip
        return float(np.median(errors)) if errors else None

    return replace(made, seen=error(False), unseen=error(True))


def fits(measured: Points) -> dict[tuple[str, str], Fit]:
    """Every kind and mode with enough sizes."""
    enough = {key: sizes for key, sizes in measured.items() if len(_shown(sizes)) >= LEAST}
    return {key: fit(*key, sizes) for key, sizes in enough.items()}


def where(ratios: dict[float, float]) -> Where:
    """From a ratio recurrence / attention by length; of several crossings the first."""
    at = crossover(ratios)
    starts = ratios[min(ratios)] > 1  # attention is faster where sequences are shortest
    if at is None:
        return Where("always" if starts else "never")
    return Where("until" if starts else "from", at)


def crossings(measured: Points) -> list[Crossing]:
    """Measured and predicted, at the width held back, of each recurrence against attention."""
    found, models = [], fits(measured)
    for kind, mode in itertools.product(RECURRENT, MODES):
        mine, other = models.get((kind, mode)), models.get((ENCODER, mode))
        if mine is None or other is None:
            continue
        ours, theirs = measured[kind, mode], measured[ENCODER, mode]
        both = sorted(size for size in ours if size[2] == HELD_BACK and size in theirs)
        for B, sizes in itertools.groupby(both, lambda size: size[0]):
            real, guessed = {}, {}
            for size in sizes:
                real[float(size[1])] = ours[size].seconds / theirs[size].seconds
                guessed[float(size[1])] = mine.seconds(kind, mode, size, ours[size].launches) / other.seconds(
                    ENCODER, mode, size, theirs[size].launches
                )
            if len(real) > 1:
                found.append(Crossing(kind, mode, B, where(real), where(guessed)))
    return found


def agrees(crossing: Crossing, factor: float = 2.0) -> bool:
    """Whether the prediction is right: the same word, or a length within a factor."""
    a, b = crossing.measured, crossing.predicted
    if a.T is None or b.T is None:
        return a.word == b.word
    return a.word == b.word and abs(math.log(a.T / b.T)) <= math.log(factor)
