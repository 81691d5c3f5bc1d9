"""The rungs of the CUDA ladder, layer by layer: in the emulation on every machine, and on a GPU where there is one."""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import fusednn
from fusednn.kernels import LIBRARY_GEMM, Sizes, kernels, launches
from fusednn.native import EMULATED
from fusednn.plan import COMPILED_DTYPES, Request, plan
from fusednn.plan import STRATEGIES as STRATEGY_TABLE
from numerics import assert_numerics
from sequences import Case, everything, initial_states, make_input, make_layer, retyped, torch_twin

DEVICES = [
    pytest.param("cpu", marks=pytest.mark.skipif(not EMULATED, reason="`make emulated` builds the emulated kernels")),
    pytest.param("cuda", marks=pytest.mark.gpu),
]
PERSISTENT = ["block", "cluster", "grid"]
STRATEGIES = ["gemm", "step", "graph", *PERSISTENT]
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
BOTH = {"num_layers": 2, "bidirectional": True}
CASES = [
    Case(3, 1, 2, 1),
    Case(17, 9, 5, 17, BOTH),
    Case(17, 1, 3, 40, {"batch_first": True}),
    Case(3, 9, 8, 130, {"bias": False}),
    Case(3, 1, 5, 130, {"bidirectional": True}),
    Case(3, 9, 4, 40, BOTH, packed=True),
    Case(17, 9, 6, 17, {"bidirectional": True}, packed=True),
]
FEW = CASES[1:2] + CASES[4:6]  # those of the persistent rungs, whose emulation takes longer
SWEEP = [
    Case(T, B, 3, H, {"bidirectional": T == 3}, packed=B > 1)
    for T, B, H in itertools.product((3, 17), (1, 9), (1, 17, 130))
]
PROJECTED = Case(5, 9, 6, 24, {"proj_size": 9, **BOTH}, packed=True)


def moved(value, device):
    return tuple(v.to(device) for v in value) if type(value) is tuple else value.to(device)


def check(layer, case, dtype, device):
    x, hx = moved(make_input(case, dtype), device), moved(initial_states(layer, case.B), device)
    layer = layer.to(device)
    ours = everything(layer, x, hx)
    torchs = everything(torch_twin(layer).to(device), x, hx)
    truth = everything(retyped(layer, torch.float64, "reference").to(device), x, hx)
    for name in truth:
        row = "rows" if name.startswith("d_weight") else "single" if truth[name].numel() == 1 else "rule"
        assert_numerics(ours[name], torchs[name], truth[name], name, row)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("strategy", ["gemm", "step"])
def test_every_rung_meets_the_rule(strategy, cell, case, dtype, device):
    check(make_layer(cell, case, dtype, strategy=strategy), case, dtype, device)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
@pytest.mark.parametrize("case", [*FEW, *(pytest.param(c, marks=pytest.mark.slow) for c in SWEEP)], ids=str)
@pytest.mark.parametrize("strategy", PERSISTENT)
def test_every_persistent_rung_meets_the_rule(strategy, cell, case, dtype, device):
    if strategy == "block" and case.H > 128:
        pytest.skip("one block holds 128 units")
    check(make_layer(cell, case, dtype, strategy=strategy), case, dtype, device)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", [Case(65, 3, 4, 5), Case(90, 9, 4, 7, {"bidirectional": True}, packed=True)], ids=str)
def test_replays_meet_the_rule(cell, case, dtype, device):
    check(make_layer(cell, case, dtype, strategy="graph"), case, dtype, device)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_projection_meets_the_rule(dtype, device):
    check(make_layer("lstm", PROJECTED, dtype, strategy="gemm"), PROJECTED, dtype, device)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("strategy", ["step", "block"])
def test_tf32_is_used_where_torchs_switch_allows_it_and_only_there(strategy, cell, device):
    case = Case(4, 3, 5, 40)
    layer = make_layer(cell, case, torch.float32, strategy=strategy).to(device)
    x = make_input(case, torch.float32).to(device)
    truth = retyped(layer, torch.float64, "reference").to(device)(x.double())[0]

    def error():
        return (layer(x)[0] - truth).abs().max().item()

    switch = torch.backends.cuda.matmul
    before = switch.fp32_precision
    try:
        switch.fp32_precision = "ieee"
        assert error() < 20 * torch.finfo(torch.float32).eps
        switch.fp32_precision = "tf32"
        assert 20 * torch.finfo(torch.float32).eps < error() < 2**-9  # a factor keeps 11 bits
    finally:
        switch.fp32_precision = before


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_results_are_the_same_bits_from_run_to_run(strategy, cell, device):
    case = Case(5, 9, 4, 40, BOTH)
    layer = make_layer(cell, case, torch.bfloat16, strategy=strategy).to(device)
    x = make_input(case, torch.bfloat16).to(device)
    first = everything(layer, x)
    again = everything(layer, x)
    assert all(torch.equal(first[name], again[name]) for name in first)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_empty_batch_and_single_steps(strategy, cell, device):
    layer = make_layer(cell, Case(1, 1, 3, 5), torch.float32, strategy=strategy).to(device)
    y, _ = layer(torch.zeros(4, 0, 3, device=device))
    assert y.shape == (4, 0, 5)
    x = torch.randn(3, 2, 3, device=device)
    whole, state = layer(x)[0], None
    for x_t, y_t in zip(x, whole, strict=True):
        got, state = layer.step(x_t, state)
        torch.testing.assert_close(got, y_t)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_batch_without_a_step_keeps_its_states_and_their_gradients(strategy, cell, device):
    case = Case(3, 2, 3, 17)
    layer = make_layer(cell, case, torch.bfloat16, strategy=strategy).to(device)
    states = [state.to(device).requires_grad_() for state in initial_states(layer, case.B)]
    x, hx = make_input(case, torch.bfloat16).to(device), tuple(states) if len(states) == 2 else states[0]
    y, last = layer(x, hx, lengths=torch.zeros(case.B, dtype=torch.int64))
    last = last if isinstance(last, tuple) else (last,)
    torch.autograd.backward([y.sum(), *(state.sum() for state in last)])
    assert not y.any()
    for before, after in zip(states, last, strict=True):
        assert torch.equal(after, before) and torch.equal(before.grad, torch.ones_like(before))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_operators_pass_opcheck(strategy, cell, device):
    layer = make_layer(cell, Case(4, 3, 5, 6), torch.float32, strategy=strategy).to(device)
    weights = [None if w is None else w.detach().clone() for w in layer._weights(0)]
    x, h0 = torch.randn(12, 5, device=device), torch.randn(1, 3, 6, device=device)
    c0 = h0.clone() if fusednn.reference.cells.CELLS[cell].has_cell_state else None
    inputs = [x, h0, c0, *weights, None, cell, strategy]
    inputs = [i.requires_grad_() if isinstance(i, torch.Tensor) else i for i in inputs]
    torch.library.opcheck(torch.ops.fusednn.recurrent.default, tuple(inputs))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_compile_without_a_graph_break(strategy, cell, device):
    torch._dynamo.reset()
    layer = make_layer(cell, Case(4, 3, 5, 6), torch.float32, strategy=strategy).to(device)
    x = torch.randn(4, 3, 5, device=device)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x)[0], layer(x)[0])


def test_an_emulated_rung_is_never_chosen_by_itself(cell):
    chosen = fusednn.plan.plan(fusednn.plan.Request(cell, "cpu"))
    assert chosen.strategy.name == "sequence"


@pytest.mark.parametrize("strategy", STRATEGIES[1:])
def test_rungs_with_products_of_their_own_refuse_a_projection_and_say_what_does_it(strategy):
    layer = fusednn.LSTM(3, 5, proj_size=2, strategy=strategy)
    with pytest.raises(ValueError, match="no projection; 'gemm' has" if EMULATED else "FUSEDNN_EMULATE=1"):
        layer(torch.randn(2, 1, 3))


@pytest.mark.gpu
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_forward_and_backward_can_be_captured_in_a_graph(strategy, cell):
    layer = make_layer(cell, Case(6, 3, 5, 17), torch.float32, strategy=strategy).cuda()
    x = torch.randn(6, 3, 5, device="cuda", requires_grad=True)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            torch.autograd.grad(layer(x)[0].square().sum(), [x, *layer.parameters()])
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = layer(x)[0]
        gradients = torch.autograd.grad(y.square().sum(), [x, *layer.parameters()])
    with torch.no_grad():
        x.copy_(torch.randn_like(x))
    graph.replay()
    again = layer(x)[0]
    torch.testing.assert_close(y, again)
    expected = torch.autograd.grad(again.square().sum(), [x, *layer.parameters()])
    for a, b in zip(gradients, expected, strict=True):
        torch.testing.assert_close(a, b)


def counted(cell, strategy, steps, directions=1, training=False, dtype="bfloat16", proj=0):
    """Launches of csrc/cuda, a replay counting as one, and of library GEMMs."""
    found = launches(cell, dtype, strategy, Sizes(5, steps, 40, proj, directions), training)
    library = sum(n for launch, n in found.items() if launch.kernel == LIBRARY_GEMM)
    return sum(n for launch, n in found.items() if not launch.replayed) - library, library


needs_library = pytest.mark.skipif(not EMULATED, reason="`make emulated` builds the emulated kernels")


@needs_library
def test_step_launches_once_a_step_and_twice_for_a_cell_with_two_products(cell):
    info = fusednn.reference.cells.CELLS[cell]
    products = 2 if cell == "gru_reset_before" else 1
    states = 2 if info.has_cell_state else 1
    for steps in (3, 50):
        assert counted(cell, "step", steps) == (products * steps + states, 0)
        assert counted(cell, "step", steps, directions=2) == (products * steps + states, 0), "directions share a launch"


@needs_library
def test_graph_launches_a_replay_for_64_steps_and_few_steps_by_themselves(cell):
    states = 2 if fusednn.reference.cells.CELLS[cell].has_cell_state else 1
    for steps, replays in ((64, 1), (63, 1), (128, 2), (1000, 16)):
        assert counted(cell, "graph", steps) == (states + 1 + replays, 0), "one launch brings the tensors of the call"
    assert counted(cell, "graph", 16) == counted(cell, "step", 16)
    beyond = counted(cell, "step", 7)[0] - states
    assert counted(cell, "graph", 135) == (states + 1 + 2 + beyond, 0)


@needs_library
def test_gemm_launches_a_library_product_and_a_kernel_a_step(cell):
    info = fusednn.reference.cells.CELLS[cell]
    products = 2 if cell == "gru_reset_before" else 1
    states = 2 if info.has_cell_state else 1
    for steps in (3, 50):
        assert counted(cell, "gemm", steps) == (products * steps + states, products * steps)
        if info.has_cell_state:
            assert counted(cell, "gemm", steps, proj=7) == (2 * steps + states, 2 * steps)


@needs_library
@pytest.mark.parametrize("strategy", PERSISTENT)
def test_a_persistent_rung_launches_one_kernel_for_all_steps(strategy, cell):
    clearing = 1 if strategy == "grid" else 0  # of the places of its messages, before each call
    for steps in (3, 50):
        for directions in (1, 2):
            assert counted(cell, strategy, steps, directions) == (1 + clearing, 0)
            assert counted(cell, strategy, steps, directions, training=True) == (2 * (1 + clearing), 0)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_a_nan_of_all_ones_travels_around_the_ring_of_grid_in_its_row_alone(dtype, device):
    """It stands for what has not come, in messages of 40 steps, which are more than the ring has places."""
    torch.manual_seed(5)
    layer = fusednn.LSTM(3, 20, strategy="grid").to(device, dtype)
    x, h0, c0 = torch.randn(40, 9, 3), torch.randn(1, 9, 20), torch.randn(1, 9, 20)
    x, h0, c0 = x.to(device, dtype), h0.to(device, dtype), c0.to(device, dtype)
    clean, _ = layer(x, (h0, c0))
    h0[0, 2] = torch.full((20 * dtype.itemsize,), 255, dtype=torch.uint8, device=device).view(dtype)
    y, _ = layer(x, (h0, c0))
    others = [row for row in range(9) if row != 2]
    assert y[:, 2].isnan().all() and torch.equal(y[:, others], clean[:, others])


@needs_library
@pytest.mark.parametrize("strategy", PERSISTENT)
def test_what_does_not_fit_is_refused_by_name_and_by_auto(strategy):
    request = Request("lstm", "cpu", "bfloat16", hidden=20000)
    with pytest.raises(ValueError, match=f"strategy '{strategy}' is impossible .*20000"):
        plan(request, strategy)
    with pytest.raises(ValueError, match="float64"):
        plan(Request("lstm", "cpu", "float64", hidden=16), strategy)
    assert plan(Request("lstm", "cpu", "bfloat16", hidden=100), strategy).strategy.name == strategy


@needs_library
def test_each_rung_of_the_ladder_serves_larger_sizes_than_the_one_below():
    def largest(strategy):
        sizes = range(64, 4097, 64)
        refuse = plan_table[strategy].refuse
        return max(H for H in sizes if refuse(Request("lstm", "cpu", "bfloat16", hidden=H)) is None)

    plan_table = {s.name: s for s in STRATEGY_TABLE}
    assert largest("block") < largest("cluster") < largest("grid") < largest("step")


def test_the_machine_code_table_is_that_of_these_sources():
    tool = Path(__file__).parent.parent / "tools/machine_code.py"
    done = subprocess.run([sys.executable, str(tool), "--none"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@needs_library
@pytest.mark.parametrize("dtype", COMPILED_DTYPES)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_what_a_cell_launches_stands_in_the_machine_code_table(strategy, cell, dtype):
    if strategy in PERSISTENT and dtype == "float64":
        pytest.skip("no such kernel")
    for launch in launches(cell, dtype, strategy, Sizes(5, 20, 40), training=True):
        if launch.threads > 0:
            assert launch.kernel in kernels(), "bring the table up to date: tools/machine_code.py --write"
            for code in kernels()[launch.kernel].code.values():
                if strategy in PERSISTENT:  # as many as the sizes ask for
                    assert launch.threads <= code.threads and launch.dynamic <= code.dynamic
                else:
                    assert (launch.threads, launch.dynamic) == (code.threads, code.dynamic)


def test_at_most_120_cuda_kernels_are_compiled():
    assert len(kernels()) <= 120


@needs_library
def test_explain_names_the_launches_and_what_holds_each_kernel_back():
    layer = fusednn.LSTM(8, 40, num_layers=2, bidirectional=True, strategy="step")
    text = fusednn.explain(layer, torch.randn(7, 5, 8))
    assert "launches   inference 18," in text and "(T = 7)" in text
    assert "14 x step_forward<Lstm, Float32, false>: 3 x 1 x 2 blocks of 256 threads" in text
    assert "limited by registers" in text


@needs_library
def test_explain_tells_replays_from_what_they_launch():
    text = fusednn.explain(fusednn.LSTM(8, 40, strategy="graph"), torch.randn(130, 5, 8))
    assert "launches   inference 7," in text, "states, tensors of the call, two replays, two steps"
    assert "kernel     4 x replay of 64 steps\n" in text
    assert "kernel     128 x step_forward<Lstm, Float32, false>: 3 x 1 x 1 blocks of 256 threads, in replays" in text


@needs_library
def test_explain_names_clusters_and_how_many_are_resident():
    layer = fusednn.LSTM(8, 512, strategy="cluster", dtype=torch.bfloat16)
    text = fusednn.explain(layer, torch.randn(7, 5, 8, dtype=torch.bfloat16))
    assert "launches   inference 1, training 2 (T = 7)" in text
    assert "1 x persistent_forward<Lstm, Bf16>: 16 x 1 x 1 blocks of 256 threads in clusters of 16, 8 at once" in text
    assert "\nnot grid, step, gemm: " in text
