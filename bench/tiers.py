"""How much is measured: smoke (20 s, part of the tests), standard (the default, 6 minutes on two cores), full; users,
crossover and learning, which are bench_users.py (12 minutes), bench_crossover.py and bench_learning.py alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from bench.load import WINDOW


@dataclass(frozen=True)
class Tier:
    """Rounds and seconds of clean measuring a cell wants, and the seconds after which it takes what it has."""

    name: str
    rounds: int
    seconds: float
    limit: float
    seeds: int  # repetitions of the gradient measurements, of the loss curves, and of what is learnt
    lm_steps: int  # training steps of a byte model, and in tier learning of every model
    window: float = WINDOW  # seconds of rounds that are judged together
    patience: float = 20.0  # seconds a whole run spends on repeating rejected rounds before it takes what it gets

    def as_dict(self) -> dict[str, Any]:
        return dict(self.__dict__)


SMOKE = Tier("smoke", rounds=3, seconds=0.0, limit=0.2, seeds=3, lm_steps=10, window=0.05, patience=5.0)
STANDARD = Tier("standard", rounds=7, seconds=0.15, limit=1.5, seeds=20, lm_steps=250)
FULL = Tier("full", rounds=15, seconds=1.0, limit=30.0, seeds=20, lm_steps=1000, patience=600.0)
USERS = Tier("users", rounds=9, seconds=0.3, limit=5.0, seeds=3, lm_steps=500, patience=60.0)
CROSSOVER = Tier("crossover", rounds=5, seconds=0.1, limit=2.0, seeds=1, lm_steps=0, patience=60.0)
LEARNING = Tier("learning", rounds=1, seconds=0.0, limit=1.0, seeds=5, lm_steps=150)  # nothing is timed
TIERS = {tier.name: tier for tier in (SMOKE, STANDARD, FULL, USERS, CROSSOVER, LEARNING)}


def tiers(**values: dict[str, tuple[Any, ...]]) -> pytest.MarkDecorator:
    """Parametrise by tier: ``@tiers(T=dict(smoke=(8,), standard=(50, 100), full=(50, 100, 1000)))``.

    A tier without values leaves the benchmark out.
    """
    return pytest.mark.tiers(**values)


def cost(seconds: float) -> pytest.MarkDecorator:
    """About how long one case takes in the standard tier; only the time left in the progress bar depends on it."""
    return pytest.mark.cost(seconds)
