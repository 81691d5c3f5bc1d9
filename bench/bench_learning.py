"""What small models learn, and where they fail: the systems of fusednn.models, each trained from several seeds for the
same number of steps at its own best rate (`learning`). Nothing is timed, so load does not matter, and there is one
thread, so the figures do not depend on the number of cores.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bench import layers, tasks, text
from bench.count import count_launches, parameter_count
from bench.learning import RATES, TUNING, accuracy, learn
from bench.measure import Measure
from bench.models import byte_lm
from bench.models.factory import Factory
from bench.tiers import cost, tiers
from bench.train import BATCH, LENGTH, train

TRUNCATED = 8  # steps that truncated backpropagation goes back
ORDER = 12  # tokens of the order task
DISTANCES = (1, 2, 5, 10, 20, 40)  # of agreement
SMALL = 20_000  # bytes of text: 1 %
FEW = 3  # seeds where training takes long


def open_lstm(m: Any) -> nn.Module:
    """An LSTM whose forget gates start open."""
    model = m.RecurrentLM(tasks.SYMBOLS + 1, 16, 64)
    m.forget_bias_(model.layer, 5.0)
    return model


RECALL: dict[str, Callable[[Any], nn.Module]] = {  # the third and the last have the same size
    "RNN, H = 64": lambda m: m.RecurrentLM(tasks.SYMBOLS + 1, 16, 64, "RNN"),
    "RNN, H = 512": lambda m: m.RecurrentLM(tasks.SYMBOLS + 1, 16, 512, "RNN"),
    "LSTM, H = 64": lambda m: m.RecurrentLM(tasks.SYMBOLS + 1, 16, 64),
    "LSTM, H = 64, forget bias 5": open_lstm,
    "transformer": lambda m: m.TransformerLM(tasks.SYMBOLS + 1, 32, 4, num_layers=1, longest=256),
}
COPY: dict[str, Callable[[Any], nn.Module]] = {  # of one size
    "seq2seq": lambda m: m.Seq2Seq(tasks.COPIED, tasks.COPIED + 1, 32, 82),
    "seq2seq with attention": lambda m: m.AttentionSeq2Seq(tasks.COPIED, tasks.COPIED + 1, 32, 48),
}
AGREEMENT: dict[str, Callable[[Any], nn.Module]] = {  # of one size
    "LSTM": lambda m: m.RecurrentLM(tasks.NOUNS + 1, 16, 52),
    "transformer": lambda m: m.TransformerLM(tasks.NOUNS + 1, 32, 4, num_layers=1, longest=64),
}
ORDERING: dict[str, Callable[[Any], nn.Module]] = {
    "encoder, no positions": lambda m: m.BertEncoder(tasks.ORDERED, 32, 4, 1, positions=None),
    "encoder, learned positions": lambda m: m.BertEncoder(tasks.ORDERED, 32, 4, 1),
    "encoder, sinusoidal positions": lambda m: m.BertEncoder(tasks.ORDERED, 32, 4, 1, positions="sinusoidal"),
    "decoder, no positions": lambda m: m.TransformerLM(tasks.ORDERED, 32, 4, positions=None),
}


class Truncated(nn.Module):
    """A language model that is trained through k steps at a time."""

    def __init__(self, model: Any, k: int, detach: Callable[[Any], Any]) -> None:
        super().__init__()
        self.model, self.k, self.detach = model, k, detach

    def forward(self, tokens: Tensor) -> Tensor:
        """[B, T] -> [B, T, V]; the state goes on, its gradient does not."""
        state, found = None, []
        for segment in tokens.split(self.k, 1):
            logits, state = self.model.prefill(segment, self.detach(state))
            found.append(logits)
        return torch.cat(found, 1)


def truncated_gru(m: Any, k: int) -> Truncated:
    return Truncated(m.RecurrentLM(tasks.SYMBOLS + 1, 16, 64, "GRU"), k, m.detach)


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


@tiers(system={"smoke": ("transformer",), "learning": tuple(RECALL)}, T={"smoke": (4,), "learning": (10, 200)})
@cost(30.0)
def test_recall(measure: Measure, T: int, system: str) -> None:
    """The first of T + 1 tokens, asked for at the last. It takes some models more steps than the other tasks do."""
    task, m = partial(tasks.recall, distance=T), layers.models()
    steps, seeds = 2 * measure.tier.lm_steps, range(min(FEW, measure.tier.seeds))
    _keep(measure, "recall", system, learn(lambda: RECALL[system](m), task, steps, seeds, rows=16), T=T)


@tiers(system={"smoke": ("seq2seq with attention",), "learning": tuple(COPY)}, T={"smoke": (3,), "learning": (4, 12)})
@cost(30.0)
def test_copy(measure: Measure, device: torch.device, system: str, T: int) -> None:
    """T tokens, said again by the decoder once the encoder has read them."""
    task, m = partial(tasks.copy, length=T), layers.models()
    steps, seeds = measure.tier.lm_steps, range(min(FEW, measure.tier.seeds))
    found = learn(lambda: COPY[system](m), task, steps, seeds)
    model, inputs = COPY[system](m).to(device), [tokens.to(device) for tokens in task(2)[0]]
    with torch.no_grad():
        found["launches"] = count_launches(lambda: model(*inputs), device).launches
    _keep(measure, "copy", system, found, T=T)


@tiers(system={"smoke": ("LSTM",), "learning": tuple(AGREEMENT)})
@cost(40.0)
def test_agreement(measure: Measure, system: str) -> None:
    """Trained on all distances at once, judged at each."""
    m = layers.models()

    def by_distance(model: nn.Module) -> list[float]:
        return [accuracy(model, partial(tasks.agreement, distances=(d,))) for d in DISTANCES]

    steps, seeds = measure.tier.lm_steps, range(measure.tier.seeds)
    task = partial(tasks.agreement, distances=DISTANCES)
    found = learn(lambda: AGREEMENT[system](m), task, steps, seeds, judge=by_distance)
    _keep(measure, "agreement", system, {"distances": DISTANCES, **found})


@tiers(system={"smoke": ("encoder, no positions",), "learning": tuple(ORDERING)})
@cost(8.0)
def test_order(measure: Measure, system: str) -> None:
    """Did A come before B?"""
    task, m = partial(tasks.order, length=ORDER), layers.models()
    steps, seeds = measure.tier.lm_steps, range(measure.tier.seeds)
    _keep(measure, "order", system, learn(lambda: ORDERING[system](m), task, steps, seeds), T=ORDER)


@tiers(
    T={"smoke": (2 * TRUNCATED,), "learning": (TRUNCATED // 2, 2 * TRUNCATED)},
    k={"smoke": (TRUNCATED,), "learning": (TRUNCATED, 4 * TRUNCATED)},
)
@cost(10.0)
def test_truncated(measure: Measure, k: int, T: int) -> None:
    """Recall by a GRU that is trained through k steps at a time; the larger k cuts nothing."""
    task, m = partial(tasks.recall, distance=T), layers.models()
    steps, seeds = measure.tier.lm_steps, range(measure.tier.seeds)
    found = learn(lambda: truncated_gru(m, k), task, steps, seeds)
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
