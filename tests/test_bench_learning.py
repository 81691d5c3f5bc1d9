"""What models learn: tasks that one thing decides, a fair choice of rates, and verdicts that follow the data."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch

from bench import kept, learning, learning_figures, results, tasks
from bench.count import parameter_count
from bench.fields import record
from bench.models import learners
from bench.verdict import CONTRADICTED, NOT_MEASURED, SUPPORTED
from fusednn import models

pytestmark = pytest.mark.usefixtures("one_thread")
ROWS = 4000
TASKS = {  # and the chance of a guess
    "recall": (partial(tasks.recall, distance=5), 1 / tasks.SYMBOLS),
    "agreement": (partial(tasks.agreement, distances=(5,)), 0.5),
    "order": (partial(tasks.order, length=5), 0.5),
}
MACHINE = {"device": "cpu", "device_name": "Test CPU (R) 3000", "cpu_count": 2, "torch_threads": 2, "torch": "2.13.0",
           "python": "3.11.0", "system": "Linux", "fusednn": {}}  # fmt: skip


def answers(task, rows=ROWS):
    """Tokens and the one answer of each row."""
    (tokens,), targets = task(rows)
    assert ((targets != tasks.IGNORED).sum(1) == 1).all()
    return tokens, targets[:, -1]


def best_guess(clue, answer):
    """Share of right answers of who knows only the clue, and the likeliest answer to each."""
    counts = torch.zeros(int(clue.max()) + 1, int(answer.max()) + 1).index_put_(
        (clue, answer), torch.tensor(1.0), accumulate=True
    )
    return (counts.max(1).values.sum() / len(answer)).item()


@pytest.mark.parametrize("name", TASKS)
def test_the_same_seed_gives_the_same_rows_and_another_others(name):
    task = TASKS[name][0]

    def drawn(seed):
        torch.manual_seed(seed)
        return answers(task)[0]

    assert torch.equal(drawn(1), drawn(1)) and not torch.equal(drawn(1), drawn(2))


@pytest.mark.parametrize("name", ["recall", "agreement"])
def test_the_first_token_alone_decides(name):
    tokens, answer = answers(TASKS[name][0])
    assert best_guess(tokens[:, 0], answer) == 1


@pytest.mark.parametrize("name", ["recall", "agreement"])
def test_a_guess_from_any_other_token_gets_chance(name):
    task, chance = TASKS[name]
    tokens, answer = answers(task)
    known = {k: best_guess(tokens[:, k], answer) for k in range(1, tokens.shape[1])}
    assert max(known.values()) < chance + 0.05, known


def test_both_orders_are_as_frequent_and_of_the_same_two_tokens():
    tokens, answer = answers(TASKS["order"][0])
    assert torch.equal(tokens.sort(1).values[:, :2], torch.tensor([[0, 1]]).expand(ROWS, 2))
    assert abs(answer.double().mean().item() - 0.5) < 0.03


def test_most_nouns_between_say_nothing_of_the_verb():
    tokens, answer = answers(TASKS["agreement"][0])
    assert best_guess(((tokens[:, 1:-1] % 2).float().mean(1) > 0.5).long(), answer) < 0.53


def test_order_is_that_of_a_and_b():
    tokens, answer = answers(TASKS["order"][0])
    a, b = ((tokens == token).long().argmax(1) for token in (0, 1))
    assert torch.equal(answer, (a < b).long())


def test_agreement_draws_all_its_distances():
    lengths = {tasks.agreement(1, (2, 7))[0][0].shape[1] for _ in range(30)}
    assert lengths == {3, 8}


def test_copy_asks_for_its_source():
    (source, late), target = tasks.copy(3, 5)
    assert torch.equal(target, source) and torch.equal(late[:, 1:], source[:, :-1])
    assert (late[:, 0] == tasks.COPIED).all()


@pytest.mark.parametrize(("table", "names"), [
    (learners.COPY, learners.COPY),
    (learners.AGREEMENT, learners.AGREEMENT),
    (learners.RECALL, ("LSTM, H = 64", "transformer")),
])  # fmt: skip
def test_compared_systems_have_one_size(table, names):
    sizes = [parameter_count(table[name](models)) for name in names]
    assert max(sizes) / min(sizes) <= 1.02


def test_a_truncated_model_says_the_same_and_cuts_the_gradient():
    whole, cut = learners.truncated_gru(models, 12), learners.truncated_gru(models, 4)
    cut.load_state_dict(whole.state_dict())
    tokens = torch.arange(12).remainder(4).unsqueeze(0)
    assert torch.allclose(whole(tokens), cut(tokens), atol=1e-5)

    def reach(model):
        with models.GradientTracker(model.model.layer) as tracker:
            model(tokens)[:, -1].sum().backward()
        return len(tracker.by_distance())

    assert (reach(whole), reach(cut)) == (12, 4)


def test_the_rate_is_the_best_on_a_seed_that_is_not_measured(monkeypatch):
    seen = []
    found = {2e-3: 0.5, 5e-3: float("nan"), 1e-2: 0.25}

    def trained(model, task, steps, rate, rows):
        seen.append((torch.initial_seed(), rate))
        return rate

    monkeypatch.setattr(learning, "train", trained)
    monkeypatch.setattr(
        learning, "loss", lambda rate, task: found[rate] if found[rate] == found[rate] else float("inf")
    )
    monkeypatch.setattr(learning, "accuracy", lambda rate, task: rate)
    got = learning.learn(lambda: torch.nn.Linear(1, 1), TASKS["recall"][0], 7, range(3))
    assert got["rate"] == 1e-2 and got["accuracy"] == [1e-2] * 3
    assert [seed for seed, _ in seen] == [learning.TUNING] * 3 + [0, 1, 2]


def test_a_diverged_model_has_infinite_loss():
    model = models.RecurrentLM(tasks.SYMBOLS + 1, 4, 4)
    assert learning.loss(model, TASKS["recall"][0]) < 3
    with torch.no_grad():
        model.vocabulary.out.weight.fill_(float("nan"))
    assert learning.loss(model, TASKS["recall"][0]) == float("inf")


# ---- verdicts

HELD = {"params": 100, "rate": 0.01, "steps": 5, "rows": 2}
NEAR, FAR = [1.0, 0.99, 1.0], [0.25, 0.26, 0.24]


def fact(name, **series):
    return {"kind": "fact", "fullname": f"bench/{name}", "series": {**HELD, **series}}


def cell(name, series=None, **fields):
    bench = {"fullname": f"bench/{name}", "extra_info": record(disturbed=False, **fields), "stats": {"data": [1.0]}}
    return {"kind": "measured", "fullname": f"bench/{name}", "bench": bench, "series": series or {}}


def two(test, system, near, far, lengths):
    return [fact(f"bench_learning.py::test_{test}[{T}-{system}]", system=system, T=T, accuracy=a)
            for T, a in zip(lengths, (near, far), strict=True)]  # fmt: skip


def bits(lstm, transformer):
    return [fact(f"bench_learning.py::test_small_text[{name}]", system=name, bits=b)
            for name, b in (("LSTM", lstm), ("transformer", transformer))]  # fmt: skip


def agreement(system, by_distance):
    return [fact(f"bench_learning.py::test_agreement[{system}]", system=system, distances=[1, 10, 20],
                 accuracy=[by_distance] * 3)]  # fmt: skip


def order(system, accuracy):
    return [fact(f"bench_learning.py::test_order[{system}]", system=system, accuracy=[accuracy] * 3)]


def truncated(k, T, accuracy):
    return [fact(f"bench_learning.py::test_truncated[{T}-{k}]", system="GRU", k=k, T=T, accuracy=accuracy)]


def copies(plain, attention):
    made = [
        *two("copy", "seq2seq", NEAR, plain, (4, 12)),
        *two("copy", "seq2seq with attention", NEAR, attention, (4, 12)),
    ]
    for row in made:
        row["series"]["launches"] = 90 if "attention" in row["series"]["system"] else 20
    return made


def batches(encoder, lstm):
    return [
        fact(
            "bench_duel.py::test_largest_batch[T512-fusednn]", impl="fusednn", batch={"encoder": encoder, "LSTM": lstm}
        )
    ]


def flash(ratio):
    fields = {"cell": "LSTM stack", "ratio": ratio, "ratio_low": ratio - 0.1, "ratio_high": ratio + 0.1}
    return [cell("bench_duel.py::test_flash[T512-LSTM]", **fields)]


def clipping(slope):
    fields = {"slope": slope, "slope_low": slope - 1e-3, "slope_high": slope + 1e-3}
    return [cell("bench_gradients.py::test_clipped_training[T50]", {"clipped_share": 1.0}, **fields)]


def saved(ours, other):
    series = {"other_memory": {"saved_mib": other}}
    fields = {"impl": "fusednn", "mode": "training", "ratio": 1.0, "ratio_low": 1.0, "ratio_high": 1.0}
    return [cell("bench_duel.py::test_stacks[x]", series, saved_mib=ours, T=16, cell="LSTM stack", **fields)]


LOST = "recall of the first token: points lost from T = 5 to 200, "
TURNED = [  # claim, row, what supports it, what contradicts it; test_bench_claims.py has the test of all rows
    (9, "slope with clipping less slope without", clipping(0.0), clipping(0.05)),
    (12, LOST + "RNN, H = 64", two("recall", "RNN, H = 64", NEAR, FAR, (5, 200)),
     two("recall", "RNN, H = 64", NEAR, NEAR, (5, 200))),
    (12, LOST + "transformer", two("recall", "transformer", NEAR, NEAR, (5, 200)),
     two("recall", "transformer", NEAR, FAR, (5, 200))),
    (12, "copy: points lost from 4 to 12 tokens, seq2seq", copies(FAR, NEAR), copies(NEAR, NEAR)),
    (12, "copy: points lost from 4 to 12 tokens, seq2seq with attention", copies(FAR, NEAR), copies(FAR, FAR)),
    (13, "LSTM next to the subject", agreement("LSTM", [0.85, 0.6, 0.6]), agreement("LSTM", [1.0, 0.6, 0.6])),
    (13, "LSTM at a distance of 10 and more", agreement("LSTM", [0.85, 0.62, 0.58]),
     agreement("LSTM", [0.85, 0.62, 1.0])),
    (13, "transformer, where it is worst", agreement("transformer", [0.95, 0.99, 0.95]),
     agreement("transformer", [0.95, 0.8, 0.95])),
    (14, "largest batch under a fixed budget, fusednn", batches(30, 10), batches(10, 30)),
    (15, "with Flash Attention: LSTM / transformer", flash(10), flash(1)),
    (18, "copy of 12 tokens: points gained by attention", copies(FAR, NEAR), copies(NEAR, FAR)),
    (20, "share of duel cells that the RNN wins in memory", saved(1.0, 2.0), saved(2.0, 1.0)),
    (20, "loss on 1 % of the text: LSTM below transformer", bits([3.0, 3.1], [3.5, 3.6]), bits([3.5, 3.6], [3.0, 3.1])),
    (22, "did A come before B? encoder, no positions", order("encoder, no positions", 0.51),
     order("encoder, no positions", 0.99)),
    (22, "did A come before B? encoder, learned positions", order("encoder, learned positions", 0.99),
     order("encoder, learned positions", 0.51)),
    (23, "recall at k/2", truncated(8, 4, NEAR), truncated(8, 4, FAR)),
    (23, "recall at 2k", truncated(8, 16, FAR), truncated(8, 16, NEAR)),
    (23, "recall at 2k, trained through all steps", truncated(32, 16, NEAR), truncated(32, 16, FAR)),
]  # fmt: skip


def assembled(rows, tier="learning", learnt=None):
    rows = copy.deepcopy(rows)
    when = "2026-01-02T03:04:05+00:00"
    return results.assemble(rows, MACHINE, {"name": tier, "seeds": 3, "lm_steps": 5}, {}, when, learnt)


def verdict(found, id, row):
    return next(c for c in found["claims"] if (c["id"], c["row"]) == (id, row))


def test_seeds_that_disagree_widen_the_interval():
    mixed = two("recall", "transformer", NEAR, [1.0, 1.0, 0.2], (5, 200))
    assert verdict(assembled(mixed), 12, LOST + "transformer")["verdict"] == "MIXED"


def test_another_tier_names_the_one_that_measures():
    found = verdict(assembled([], "standard"), 23, "recall at 2k")
    assert found["verdict"] == NOT_MEASURED and "make claims" in found["reason"]


def test_kept_results_stand_in_for_what_a_run_left_out():
    learnt = assembled([*truncated(8, 16, FAR), *batches(30, 10)])
    found = assembled(batches(10, 30), "standard", learnt)
    stood_in = verdict(found, 23, "recall at 2k")
    assert stood_in["verdict"] == SUPPORTED and stood_in["basis"].endswith("kept 2026-01-02")
    assert verdict(found, 14, "largest batch under a fixed budget, fusednn")["verdict"] == CONTRADICTED  # its own


def test_only_a_whole_run_is_kept_and_then_found(tmp_path):
    report = tmp_path / "report"
    names = [f"bench_learning.py::test_{test}[x]" for test in learning_figures.TESTS]
    for rows, tier in (([fact(name) for name in names[1:]], "learning"), ([fact(name) for name in names], "standard")):
        results.write(assembled(rows, tier), report / "results.json")
        with pytest.raises(SystemExit, match="not kept"):
            kept.LEARNING.keep(report, tmp_path)
    assert kept.learnt(MACHINE, tmp_path) is None
    whole = assembled([fact(name) for name in names])
    results.write(whole, report / "results.json")
    kept.LEARNING.keep(report, tmp_path)
    assert kept.learnt(MACHINE, tmp_path) == whole
