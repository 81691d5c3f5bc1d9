"""Ring attention, pipelined recurrences, and training by DDP and FSDP2, each by two processes against one."""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import distributed_ranks as work
import fusednn
from attention_truth import Case, copy, gradients, naive, tensors, torch_own
from bench import fleet as fleets
from fusednn.distributed import local_positions, pipeline_layers, pipeline_time, ring, ring_attention
from numerics import assert_numerics
from sequences import Case as Sequence
from sequences import everything, initial_states, make_input, make_layer, retyped, torch_twin

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.skipif(
    not (torch.distributed.is_available() and torch.distributed.is_gloo_available()), reason="torch has no gloo"
)


@pytest.fixture(scope="module")
def ranks():
    """Two processes that serve all tests."""
    with fleets.fleet(2) as made:
        yield made


T = 12
RINGS = {
    "all": Case(),
    "causal": Case(is_causal=True),
    "window": Case(window=(3, 1)),
    "long window": Case(window=(9, None), is_causal=True),
    "everything": Case(N=4, groups=2, Ev=5, is_causal=True, window=(4, None), softcap=1.5, scale=0.4),
}


def check_ring(ranks, name, layout, dtype):
    case = Case(**{**vars(RINGS[name]), "M": T, "K": T})
    x = tensors(case, dtype, requires_grad=True)
    base, truth = ({n: copy(t, d) for n, t in x.items()} for d in (dtype, torch.float64))
    options = {"layout": layout, **{n: v for n, v in case.options.items() if n != "causal_alignment"}}
    torchs = torch_own(case, base) if case.softcap is None else naive(case, base)[0]
    true = naive(case, truth)[0]
    weight = torch.randn(true.shape, dtype=torch.float64)
    parts = ranks(work.ring, {n: t.detach() for n, t in x.items()}, weight, options)
    back = torch.cat([part["positions"] for part in parts]).argsort()
    ours = {n: torch.cat([part[n] for part in parts], 2)[:, :, back] for n in parts[0] if n != "positions"}
    assert_numerics(ours["output"], torchs.detach(), true.detach(), "output")
    expected = [gradients([o], inputs, [weight]) for o, inputs in ((torchs, base), (true, truth))]
    for n in x:
        row = "fp64 gradient" if dtype == torch.float64 else "rule"
        assert_numerics(ours[n], *(found[n] for found in expected), f"gradient of {n}", row)


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float32, torch.float64), ids=str)
@pytest.mark.parametrize("layout", ring.LAYOUTS)
@pytest.mark.parametrize("name", RINGS)
def test_ring_attention_equals_one_process(ranks, name, layout, dtype):
    check_ring(ranks, name, layout, dtype)


def test_a_rank_keeps_only_its_own_part_for_backward(ranks):
    for kept, own in ranks(work.kept_for_backward, 8):
        assert kept == own


@pytest.mark.parametrize("left", (None, 0, 2, 5, 9))
@pytest.mark.parametrize("right", (None, 0, 1, 6))
def test_pieces_meet_exactly_where_positions_see_each_other(left, right):
    n = 4
    for distance in range(-3 * n, 3 * n + 1, n):
        pairs = {
            (i, j)
            for i, j in itertools.product(range(n), repeat=2)
            if (left is None or distance + i - j <= left) and (right is None or j - i - distance <= right)
        }
        part = ring.seen(distance, n, left, right)
        found = set()
        if part is not None:
            rows, keys = (range(n)[s] for s in (part.rows, part.keys))
            near, far = part.window
            found = {
                (i, j)
                for (a, i), (b, j) in itertools.product(enumerate(rows), enumerate(keys))
                if (near is None or a - b <= near) and (far is None or b - a <= far)
            }
            assert {i for i, _ in found} == set(rows), "a row without a key would have no log-sum-exp"
        assert found == pairs


@pytest.mark.parametrize("size", (2, 4))
def test_zigzag_gives_all_ranks_equal_causal_work(size):
    def pairs(rank, pieces, n):
        plan = ring.Plan(ring.Ranks(None, rank, size), pieces, n, None, 0, {})
        windows = [part.window[1] for hop in range(size) for part in plan.parts(hop)]
        return sum(j - i <= right for right in windows for i, j in itertools.product(range(n), repeat=2))

    assert len({pairs(rank, 2, 2) for rank in range(size)}) == 1
    contiguous = [pairs(rank, 1, 4) for rank in range(size)]
    assert max(contiguous) > 1.4 * sum(contiguous) / size


@pytest.mark.parametrize(
    ("call", "words"),
    (
        ("lengths", "all ranks must have the same size 2 of query, got 4, 5"),
        ("causality", "all ranks must have the same right, got 0, -1"),
        ("odd", "even length, got 3"),
        ("positions", "over 2 ranks does not divide 6 positions"),
    ),
)
def test_what_does_not_fit_is_refused_on_every_rank(ranks, call, words):
    for said in ranks(work.refused, call):
        assert words in said


def test_without_a_process_group_the_error_names_torchrun():
    x = torch.randn(1, 1, 2, 4)
    layer = fusednn.GRU(4, 4)
    for call in (
        lambda: ring_attention(x, x, x),
        lambda: local_positions(4),
        lambda: pipeline_layers(layer, x[0], chunks=1),
        lambda: pipeline_time(layer, x[0]),
    ):
        with pytest.raises(RuntimeError, match="process group: start the program by torchrun"):
            call()


def compare(ours: dict, cell: str, layer, x, hx) -> None:
    """All results and gradients of a stack against one process; ``ours`` has the names of ``sequences.everything``."""
    torchs = everything(torch_twin(layer), x, hx)
    truth = everything(retyped(layer, torch.float64, "reference"), x, hx)
    assert ours.keys() == truth.keys()
    for name in truth:
        assert_numerics(ours[name], torchs[name], truth[name], f"{name} of {cell}", "fp64 gradient")


def weights_of(layer, sequence: Sequence) -> list[torch.Tensor]:
    """The weights of ``sequences.everything``'s loss."""
    states = [s.shape for s in initial_states(layer, sequence.B)]
    width = states[0][2]
    y = (sequence.B, sequence.T, width) if layer.batch_first else (sequence.T, sequence.B, width)
    generator = torch.Generator().manual_seed(7)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in (y, *states)]


def check_layers(ranks, cell, size):
    sequence = Sequence(7, 3, 5, 6, {"num_layers": size})
    layer = make_layer(cell, sequence)
    stack = [make_layer(cell, Sequence(7, 3, 6 if number else 5, 6)) for number in range(size)]
    for number, part in enumerate(stack):
        part.load_state_dict({n: getattr(layer, n.replace("l0", f"l{number}")) for n in part.state_dict()})
    x, hx = make_input(sequence), initial_states(layer, sequence.B)
    parts = ranks(work.layers, stack, x, hx, weights_of(layer, sequence), 3)
    assert all(part["output"].shape == (0, 3, 6) for part in parts[:-1])
    ours = {"output": parts[-1]["output"], "d_x": parts[0]["x"]}
    for name in parts[0]:
        if name.endswith(("_n", "_0")):
            ours[name if name.endswith("_n") else f"d_{name}"] = torch.cat([part[name] for part in parts])
        elif name.endswith("l0"):
            ours |= {f"d_{name.replace('l0', f'l{number}')}": part[name] for number, part in enumerate(parts)}
    compare(ours, cell, layer, x, hx)


def test_layers_over_ranks_equal_the_stack(ranks, cell):
    check_layers(ranks, cell, 2)


def check_time(ranks, cell, options, cuts, batches):
    sequence = Sequence(7, 3, 5, 6, options)
    layer = make_layer(cell, sequence)
    x, hx = make_input(sequence), initial_states(layer, sequence.B)
    parts = ranks(work.time, layer, x, hx, weights_of(layer, sequence), cuts, batches)
    at = 1 if layer.batch_first else 0
    ours = {name: torch.cat([part[of] for part in parts], at) for name, of in (("output", "output"), ("d_x", "x"))}
    ours |= {n: t for n, t in parts[-1].items() if n.endswith("_n")}
    ours |= {f"d_{n}": t for n, t in parts[0].items() if n.endswith("_0")}
    ours |= {f"d_{n}": sum(part[n] for part in parts) for n, _ in layer.named_parameters()}
    compare(ours, cell, layer, x, hx)


@pytest.mark.parametrize("batches", (1, 2))
@pytest.mark.parametrize("options", ({}, {"num_layers": 2, "batch_first": True}), ids=("one", "two-batch_first"))
def test_time_over_ranks_equals_one_process(ranks, cell, options, batches):
    check_time(ranks, cell, options, (4,), batches)


@pytest.mark.slow
def test_three_ranks_equal_one_process():
    with fleets.fleet(3) as three:
        for name, layout in itertools.product(RINGS, ring.LAYOUTS):
            check_ring(three, name, layout, torch.float64)
        check_layers(three, "lstm", 3)
        check_time(three, "lstm", {}, (2, 5), 3)


def test_projected_states_travel(ranks):
    layer = fusednn.LSTM(5, 6, proj_size=4, num_layers=2, dtype=torch.float64)
    sequence = Sequence(7, 3, 5, 6)
    x, hx = make_input(sequence), initial_states(layer, sequence.B)
    first, last = ranks(work.time, layer, x, hx, weights_of(layer, sequence), (3,), 3)
    truth = everything(layer, x, hx)
    for name in ("h_n", "c_n"):
        assert_numerics(last[name], truth[name], truth[name], name)
    found = first["weight_hr_l0"] + last["weight_hr_l0"]
    assert_numerics(found, *[truth["d_weight_hr_l0"]] * 2, "gradient of the projection", "fp64 gradient")


def test_a_loss_of_the_state_alone_reaches_the_first_rank(ranks):
    layer = fusednn.GRU(3, 4, dtype=torch.float64)
    x = torch.randn(6, 2, 3, dtype=torch.float64, requires_grad=True)
    layer(x)[1].sum().backward()
    found = torch.cat(ranks(work.state_alone, layer, x.detach()))
    assert_numerics(found, x.grad, x.grad, "gradient of x", "fp64 gradient")


@pytest.mark.parametrize(
    ("layer", "call", "words"),
    (
        (fusednn.LSTM(3, 4), "layers", "ValueError: each rank's input_size must be the width of the rank before"),
        (fusednn.LSTM(3, 3), "chunks", "ValueError: chunks must be between 1 and T = 4, got 5"),
        (fusednn.LSTM(3, 4), "batch", "ValueError: all ranks must have the same B, got 2, 3"),
        (fusednn.LSTM(3, 4), "batches", "ValueError: batches must be between 1 and B = 2, got 3"),
        (fusednn.LSTM(3, 3, bidirectional=True), "batch", "ValueError: pipeline_time needs a layer with one direction"),
        (fusednn.GRU(3, 3, zoneout=0.1), "layers", "ValueError: pipeline_layers does not train with zoneout"),
        (torch.nn.GRU(3, 3), "layers", "TypeError: pipeline_layers takes fusednn's RNN, LSTM or GRU, got GRU"),
    ),
    ids=str,
)
def test_a_recurrence_that_cannot_be_cut_is_refused_on_every_rank(ranks, layer, call, words):
    for said in ranks(work.refused_recurrence, layer, call):
        assert words in said


@pytest.mark.parametrize("kind", ("LSTM", "transformer"))
def test_ddp_and_fsdp2_train_as_one_process(ranks, kind):
    one = torch.tensor(ranks(work.losses, kind, "none", ranks=[0])[0])
    assert one[-1] < one[0] - 0.3
    for parallel in ("ddp", "fsdp2"):
        first, second = ranks(work.losses, kind, parallel)
        assert first == second
        assert_numerics(torch.tensor(first), one, one.double(), f"losses by {parallel}")


def test_a_rank_that_raises_ends_the_fleet_with_its_words():
    with fleets.fleet(1) as one, pytest.raises(fleets.RankFailed, match="rank 0 raised(.|\n)*invalid literal"):
        one(int, "no number")
    assert not any(process.is_alive() for process in one.processes)


@pytest.mark.slow
def test_whatever_stops_a_rank_ends_the_fleet(monkeypatch):
    with fleets.fleet(2) as two, pytest.raises(fleets.RankFailed, match="rank 1 raised(.|\n)*on purpose"):
        two(work.raises_on, 1)  # while rank 0 waits for it
    with fleets.fleet(1) as one, pytest.raises(fleets.RankFailed, match=r"exit codes \[3\]"):
        one(work.dies)
    with fleets.fleet(2) as two:
        two(work.kept_for_backward, 2)
        monkeypatch.setattr(fleets, "TIMEOUT", 1.0)
        with pytest.raises(fleets.RankFailed, match="rank 0 gave no answer in 1 s"):
            two(work.raises_on, 1, ranks=[0])  # a barrier for which rank 1 never comes


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ("ddp", "fsdp2"))
def test_torchrun_trains_a_byte_model(parallel):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    command += ["bench.train_distributed", "--model", "LSTM", "--parallel", parallel, "--steps", "2"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("bits a byte") == 2
