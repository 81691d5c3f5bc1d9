"""The operator library: opcheck on every operator, NaN-poisoned outputs, instruction sets, the registry in C++."""

from __future__ import annotations

import functools
import subprocess
import sys

import pytest
import torch

import fusednn
from fusednn.native import MODULE
from fusednn.reference.cells import CELLS
from numerics import assert_numerics
from sequences import Case, everything, initial_states, make_input, make_layer, retyped, torch_twin

compiled = pytest.mark.skipif(MODULE is None, reason="the package was built without a C++ compiler")
CHECKS = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")


def arguments(cell: str, directions: int, packed: bool, grad: bool = False):
    """x, h0, c0, w_ih, w_hh, b_ih, b_hh, w_hr, batch_sizes, cell, strategy of a small call."""
    gates, B, units, inputs = len(CELLS[cell].gates), 3, 5, 4
    sizes = torch.tensor([3, 2, 2, 1]) if packed else None
    rows = 8 if packed else 4 * B

    def tensor(*shape):
        return torch.randn(*shape, requires_grad=grad)

    return (
        tensor(rows, inputs),
        tensor(directions, B, units),
        tensor(directions, B, units) if CELLS[cell].has_cell_state else None,
        tensor(directions, gates * units, inputs),
        tensor(directions, gates * units, units),
        tensor(directions, gates * units),
        tensor(directions, gates * units),
        None,
        sizes,
        cell,
        "sequence",
    )


@compiled
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("directions", [1, 2])
def test_opcheck_recurrent(cell, directions, packed):
    call = arguments(cell, directions, packed, grad=True)
    torch.library.opcheck(torch.ops.fusednn.recurrent.default, call, test_utils=CHECKS)


@compiled
@pytest.mark.parametrize("directions", [1, 2])
def test_opcheck_recurrent_from_zeros(cell, directions):
    rows, _, _, *weights = arguments(cell, directions, False)[:8]
    call = (rows.view(4, 3, -1), *weights, cell)
    torch.library.opcheck(torch.ops.fusednn.recurrent.from_zeros, call, test_utils=CHECKS)


@compiled
@pytest.mark.parametrize("count", [0, 1, 2])
@pytest.mark.parametrize("wanted", [False, True])
def test_opcheck_linear_gradients(count, wanted):
    d_y = torch.randn(6, 9)[:, 2:7]  # of one direction
    call = (d_y, [torch.randn(6, 3), torch.randn(6, 8)][:count], torch.randn(5, 3) if wanted else None, wanted)
    torch.library.opcheck(torch.ops.fusednn.linear_gradients.default, call, test_utils=CHECKS)


@compiled
@pytest.mark.parametrize(
    ("x", "w", "named"),
    [
        ([torch.zeros(5, 3)], None, "x: expected size"),
        ([torch.zeros(6, 3, dtype=torch.float64)], None, "dtype"),
        ([torch.zeros(6, 3)], torch.zeros(4, 3), "w: expected size"),
        ([torch.zeros(6, 1)] * 3, None, "at most two x"),
    ],
)
def test_linear_gradients_refuses_what_does_not_fit(x, w, named):
    with pytest.raises(RuntimeError, match=named):
        torch.ops.fusednn.linear_gradients(torch.zeros(6, 5), x, w, False)


@compiled
@pytest.mark.parametrize(("rows", "by_kernel"), [(508, True), (512, False)])
def test_the_products_of_many_rows_in_bf16_are_the_librarys(rows, by_kernel):
    layer = fusednn.LSTM(3, 5).to(torch.bfloat16)
    y, _ = layer(torch.randn(rows // 4, 4, 3, dtype=torch.bfloat16))
    with torch.profiler.profile() as profile:
        y.sum().backward()
    assert ("fusednn::linear_gradients" in {event.name for event in profile.events()}) == by_kernel


@compiled
@pytest.mark.parametrize("packed", [False, True])
def test_opcheck_forward_and_backward(cell, packed):
    call = (*arguments(cell, 2, packed), True)
    x, h0, c0, w_ih, w_hh, b_ih, b_hh, w_hr, sizes, *names, _ = call
    torch.library.opcheck(torch.ops.fusednn.recurrent_forward.default, call, test_utils=CHECKS)
    y, h_n, c_n, saved, _ = torch.ops.fusednn.recurrent_forward(*call)
    grads = (torch.randn_like(y), torch.randn_like(h_n), torch.randn_like(c_n) if c0 is not None else None)
    back = (*grads, y, saved, None, None, None, h0, c0, w_hh, b_hh, w_hr, sizes, *names)
    torch.library.opcheck(torch.ops.fusednn.recurrent_backward.default, back, test_utils=CHECKS)


@compiled
def test_the_registry_in_cpp_is_the_registry_in_python():
    found = {c["name"]: (c["gates"], c["saved"], c["cell_state"], c["split"]) for c in MODULE.cells()}
    expected = {c.name: (len(c.gates), len(c.saved), c.has_cell_state, c.split) for c in CELLS.values()}
    assert found == expected


@compiled
def test_every_output_element_is_written(cell, monkeypatch):
    """Memory comes filled with NaN; nothing of it may show."""
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.use_deterministic_algorithms(True)
    try:
        case = Case(7, 5, 3, 13, {"bidirectional": True, "num_layers": 2}, packed=True)
        layer = make_layer(cell, case, torch.float32)
        results = everything(layer, make_input(case, torch.float32), initial_states(layer, case.B))
    finally:
        torch.use_deterministic_algorithms(False)
    for name, tensor in results.items():
        assert torch.isfinite(tensor).all(), name


ISA_CASE = Case(9, 7, 5, 37, {"bidirectional": True})


@compiled
@pytest.mark.parametrize("isa", ["baseline", "avx2", "avx512", "avx512_bf16"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_every_instruction_set_meets_the_rule(cell, isa, dtype):
    available = MODULE.build_info()["isas_supported"]
    if isa not in available:
        pytest.skip(f"this processor or build has {available}")
    before = MODULE.build_info()["isa"]
    MODULE.set_isa(isa)
    try:
        layer = make_layer(cell, ISA_CASE, dtype)
        x, hx = make_input(ISA_CASE, dtype), initial_states(layer, ISA_CASE.B)
        ours = everything(layer, x, hx)
    finally:
        MODULE.set_isa(before)
    torchs, truth = everything(torch_twin(layer), x, hx), everything(retyped(layer, torch.float64, "reference"), x, hx)
    for name in truth:
        assert_numerics(ours[name], torchs[name], truth[name], name, "rows" if name.startswith("d_weight") else "rule")


@pytest.mark.parametrize("strategy", ["auto", "loop", "reference"])
def test_weights_of_one_direction_may_come_without_it(cell, strategy):
    x, h0, c0, *weights = arguments(cell, 1, False, grad=True)[:7]
    run = functools.partial(fusednn.functional.recurrent, cell, x, h0, c0, strategy=strategy)
    with_one, without = run(*weights)[0], run(*(w.squeeze(0) for w in weights))[0]
    torch.testing.assert_close(without, with_one, rtol=0, atol=0)
    grads = [torch.autograd.grad(y.square().sum(), weights) for y in (with_one, without)]
    torch.testing.assert_close(*grads, rtol=0, atol=0)


@compiled
def test_an_instruction_set_that_does_not_exist_is_refused():
    with pytest.raises((ValueError, RuntimeError), match="mmx"):
        MODULE.set_isa("mmx")


def test_number_of_threads_does_not_change_the_bits(cell):
    case = Case(12, 6, 8, 70, {"bidirectional": True})
    layer = make_layer(cell, case, torch.float32)
    x = make_input(case, torch.float32)
    with torch.no_grad():
        two = layer(x)[0]
        torch.set_num_threads(1)
        try:
            one = layer(x)[0]
        finally:
            torch.set_num_threads(2)
    torch.testing.assert_close(one, two, rtol=0, atol=1e-6)


@compiled
def test_the_kernel_is_what_runs(cell):
    """A layer reaches the compiled operator: once for a sequence, T times for the loop, never for the reference."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Count(TorchDispatchMode):
        calls = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.calls += func is torch.ops.fusednn.recurrent_forward.default
            return func(*args, **(kwargs or {}))

    case = Case(6, 2, 3, 4)
    x = make_input(case, torch.float32).requires_grad_()
    for strategy, calls in (("auto", 1), ("sequence", 1), ("loop", 6), ("reference", 0)):
        with Count() as count:
            make_layer(cell, case, torch.float32, strategy=strategy)(x)
        assert count.calls == calls, strategy


NO_KERNEL = """
import importlib.util, sys, warnings
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *a: None if name == "fusednn._C" else find(name, *a)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import fusednn
assert any("no compiled kernels" in str(w.message) for w in caught), caught
import torch
from sequences import CASES, everything, make_input, make_layer, torch_twin
for cell in ("rnn_tanh", "lstm", "gru"):
    layer = make_layer(cell, CASES[8])
    x = make_input(CASES[8])
    ours, theirs = everything(layer, x), everything(torch_twin(layer), x)
    for name in theirs:
        torch.testing.assert_close(ours[name], theirs[name])
from fusednn.environment import report
assert "plain PyTorch" in report()
try:
    fusednn.LSTM(3, 4, strategy="sequence")(torch.randn(2, 2, 3))
except ValueError as error:
    assert "no compiled kernel" in str(error)
else:
    raise AssertionError("an explicit strategy without a kernel must raise")
torch.library.opcheck(torch.ops.fusednn.recurrent.default, (torch.randn(4, 3), torch.randn(1, 2, 5), None,
    torch.randn(1, 5, 3), torch.randn(1, 5, 5), None, None, None, None, "rnn_tanh", "auto"))
"""


def test_without_compiled_kernels_plain_pytorch_runs_and_says_so():
    paths = [p for p in sys.path if p]
    code = f"import sys; sys.path[:0] = {paths!r}\n{NO_KERNEL}"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("strategy", ["auto", "loop", "reference", "step"])
def test_steps_and_rows_are_the_same_to_the_functional_form(cell, strategy):
    x, h0, c0, *others = arguments(cell, 1, False, grad=True)
    weights, found = others[:5], []
    for form in (x, x.view(4, 3, -1)):
        y, *_ = fusednn.functional.recurrent(cell, form, h0, c0, *weights, strategy=strategy)
        assert y.shape[:-1] == form.shape[:-1]
        wanted = [t for t in (x, h0, c0, *weights) if t is not None]
        found.append([y.flatten(0, -2), *torch.autograd.grad(y.square().sum(), wanted)])
    assert all(torch.equal(*pair) for pair in zip(*found, strict=True))


def test_functional_refuses_what_does_not_fit():
    x, h0, c0, w_ih, w_hh, b_ih, b_hh, *_ = arguments("lstm", 1, False)
    recurrent = fusednn.functional.recurrent
    good = dict(x=x, h0=h0, c0=c0, w_ih=w_ih, w_hh=w_hh, b_ih=b_ih, b_hh=b_hh)
    assert recurrent("lstm", **good)[0].shape == (12, 5)
    bad = [
        (ValueError, "cell must be one of", "lstmm", {}),
        (ValueError, "needs c0", "lstm", {"c0": None}),
        (ValueError, "takes no c0", "gru", {}),
        (ValueError, r"w_ih must have shape \[1, 20, 4\]", "lstm", {"w_ih": w_ih[:, :, 1:]}),
        (ValueError, "multiple of B = 3", "lstm", {"x": x[1:]}),
        (ValueError, r"may be \[T, 3, I\], got \[3, 4, 4\]", "lstm", {"x": x.view(3, 4, 4)}),
        (TypeError, "h0 must have the dtype", "lstm", {"h0": h0.double()}),
        (ValueError, "expected x", "lstm", {"x": x[0]}),
        (TypeError, "batch_sizes must be int64", "lstm", {"batch_sizes": torch.tensor([3.0])}),
        (ValueError, "batch_sizes must", "lstm", {"batch_sizes": torch.tensor([3, 3])}),
        (ValueError, "batch_sizes must", "lstm", {"batch_sizes": torch.tensor([2, 3, 3, 4])}),
        (ValueError, "1 or 2 directions", "lstm", {"h0": h0.expand(3, -1, -1)}),
    ]
    for error, message, cell, change in bad:
        with pytest.raises(error, match=message):
            recurrent(cell, **{**good, **change})
