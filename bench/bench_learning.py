"""What small models learn, and where they fail: the systems of fusednn.models, each trained from several seeds for the
same number of steps at its own best rate (`learning`). Nothing is timed, so load does not matter, and there is one
thread, so the figures do not depend on the number of cores.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from bench import layers, tasks, text
from bench.count import count_launches, parameter_count
from bench.learning import RATES, TUNING, accuracy, learn
from bench.measure import Measure
from bench.models import byte_lm, learners
from bench.models.factory import Factory
from bench.tiers import cost, tiers
from bench.train import BATCH, LENGTH, train

TRUNCATED = 8  # steps that truncated backpropagation goes back
ORDER = 12  # tokens of the order task
DISTANCES = (1, 2, 5, 10, 20, 40)  # of agreement
SMALL = 20_000  # bytes of text: 1 %
FEW = 3  # seeds where training takes long


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Without denormal numbers, too: gradients that vanish become such, and a CPU takes ten times as long for them."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    yield
    torch.set_flush_denormal(False)
    torch.set_num_threads(threads)


def _keep(measure: Measure, group: str, system: str, found: dict[str, Any], **fields: Any) -> None:
    measure.benchmark.group = f"learning {group}"
    measure.fact({"system": system, **fields, **found}, impl=layers.OURS, cell=system, mode="training", dtype="float32",
                 params=found["params"], **fields)  # fmt: skip


@tiers(system={"smoke": ("transformer",), "learning": tuple(learners.RECALL)}, T={"smoke": (4,), "learning": (5, 200)})
@cost(30.0)
def test_recall(measure: Measure, T: int, system: str) -> None:
    """The first of T + 1 tokens, asked for at the last. It takes some models more steps than the other tasks do."""
    task, m = partial(tasks.recall, distance=T), layers.models()
    steps, seeds = 2 * measure.tier.lm_steps, range(min(FEW, measure.tier.seeds))
    _keep(measure, "recall", system, learn(lambda: learners.RECALL[system](m), task, steps, seeds, rows=16), T=T)


@tiers(
    system={"smoke": ("seq2seq with attention",), "learning": tuple(learners.COPY)},
    T={"smoke": (3,), "learning": (4, 12)},
)
@cost(30.0)
def test_copy(measure: Measure, device: torch.device, system: str, T: int) -> None:
    """T tokens, said again by the decoder once the encoder has read them."""
    task, m = partial(tasks.copy, length=T), layers.models()
    steps, seeds = measure.tier.lm_steps, range(min(FEW, measure.tier.seeds))
    found = learn(lambda: learners.COPY[system](m), task, steps, seeds)
    model, inputs = learners.COPY[system](m).to(device), [tokens.to(device) for tokens in task(2)[0]]
    with torch.no_grad():
        found["launches"] = count_launches(lambda: model(*inputs), device).launches
    _keep(measure, "copy", system, found, T=T)


@tiers(system={"smoke": ("LSTM",), "learning": tuple(learners.AGREEMENT)})
@cost(40.0)
def test_agreement(measure: Measure, system: str) -> None:
    """Trained on all distances at once, judged at each."""
    m = layers.models()

    def by_distance(model: nn.Module) -> list[float]:
        return [accuracy(model, partial(tasks.agreement, distances=(d,))) for d in DISTANCES]

    steps, seeds = measure.tier.lm_steps, range(measure.tier.seeds)
    task = partial(tasks.agreement, distances=DISTANCES)
    found = learn(lambda: learners.AGREEMENT[system](m), task, steps, seeds, judge=by_distance)
    _keep(measure, "agreement", system, {"distances": DISTANCES, **found})


@tiers(system={"smoke": ("encoder, no positions",), "learning": tuple(learners.ORDERING)})
@cost(8.0)
def test_order(measure: Measure, system: str) -> None:
    """Did A come before B?"""
    task, m = partial(tasks.order, length=ORDER), layers.models()
    steps, seeds = measure.tier.lm_steps, range(measure.tier.seeds)
    _keep(measure, "order", system, learn(lambda: learners.ORDERING[system](m), task, steps, seeds), T=ORDER)


@tiers(
    T={"smoke": (2 * TRUNCATED,), "learning": (TRUNCATED // 2, 2 * TRUNCATED)},
    k={"smoke": (TRUNCATED,), "learning": (TRUNCATED, 4 * TRUNCATED)},
)
@cost(10.0)
def test_truncated(measure: Measure, k: int, T: int) -> None:
    """Recall by a GRU that is trained through k steps at a time; the larger k cuts nothing."""
    task, m = partial(tasks.recall, distance=T), layers.models()
    steps, seeds = measure.tier.lm_steps, range(measure.tier.seeds)
    found = learn(lambda: learners.truncated_gru(m, k), task, steps, seeds)
    _keep(measure, "truncated", "GRU", {"k": k, **found}, T=T)


@tiers(kind={"learning": ("LSTM", "transformer")})
@cost(60.0)
def test_small_text(measure: Measure, device: torch.device, kind: str) -> None:
    """The byte models of equal size on 1 % of the text; each is judged where its held-out loss is least."""
    try:
        whole = text.load()
    except FileNotFoundError as error:
        pytest.skip(str(error))
    data = text.Text(whole.train[:SMALL], whole.held_out)
    layers.models()
    steps = measure.tier.lm_steps

    def best(seed: int, rate: float) -> float:
        torch.manual_seed(seed)
        bits = train(byte_lm(Factory(layers.OURS), kind).to(device), data, kind, steps, device, seed, rate=rate).bits
        return min((b for b in bits if math.isfinite(b)), default=math.inf)

    tuning = [best(TUNING, rate) for rate in RATES]
    rate = RATES[tuning.index(min(tuning))]
    params = parameter_count(byte_lm(Factory(layers.OURS), kind))
    found = {"bits": [best(seed, rate) for seed in range(min(FEW, measure.tier.seeds))], "steps": steps, "rows": BATCH,
             "rate": rate, "tuning": dict(zip(map(str, RATES), tuning, strict=True)), "params": params,
             "unigram": text.unigram_bits(data.held_out), "text": data.digest}  # fmt: skip
    _keep(measure, "small text", kind, found, T=LENGTH)
