"""Heads, recurrent dropout, zoneout and recomputation: alone and together, on every rung that has them."""

from __future__ import annotations

import copy
import functools
import pickle
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import fusednn
from fusednn.functional import recurrent
from fusednn.layers.recurrent import layer_of
from fusednn.native import EMULATED, MODULE
from fusednn.plan import STRATEGIES as STRATEGY_TABLE
from fusednn.plan import Request, plan
from fusednn.reference.cells import CELLS
from numerics import assert_numerics
from sequences import states_of

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
NAMES = ("x", "h0", "c0", "w_ih", "w_hh", "b_ih", "b_hh", "w_hr", "norm_ih", "norm_hh")
HOST = ["sequence", "loop"]
PERSISTENT = ["block", "cluster", "grid"]
CUDA = ["gemm", "step", "graph", *PERSISTENT]
needs_library = pytest.mark.skipif(not EMULATED, reason="`make emulated` builds the emulated kernels")
strategies = pytest.mark.parametrize("strategy", [*HOST, *(pytest.param(s, marks=needs_library) for s in CUDA)])


@dataclass(frozen=True)
class Call:
    """A call of ``functional.recurrent``; T, B, I and H and P of one head."""

    heads: int = 1
    directions: int = 1
    mask: bool = False
    zoneout: float | tuple[float, float] = 0.0
    drawn: bool = True
    norm: bool = False
    recompute: bool = False
    packed: bool = False
    T: int = 4
    B: int = 3
    H: int = 7
    P: int = 0

    def __str__(self) -> str:
        return "-".join(f"{k}={v}" for k, v in vars(self).items() if v != getattr(Call, k)) or "plain"

    def tensors(self, cell: str) -> dict[str, torch.Tensor | None]:
        tracks, lines, P = self.heads * self.directions, len(CELLS[cell].gates) * self.H, self.P or self.H
        sizes = self.sizes()
        rows = self.T * self.B if sizes is None else int(sizes.sum())
        shapes = [(rows, 3), (tracks, self.B, P), (tracks, self.B, self.H), (tracks, lines, 3), (tracks, lines, P),
                  (tracks, lines), (tracks, lines), (tracks, P, self.H), (tracks, lines), (tracks, lines)]  # fmt: skip
        found = {name: torch.randn(shape, dtype=torch.float64) * 0.5 for name, shape in zip(NAMES, shapes, strict=True)}
        if cell == "rnn_relu":  # away from the kink, where rounding decides
            found["b_ih"] += 3
            found["w_hh"] *= 0.25
        if not CELLS[cell].has_cell_state:
            found["c0"] = None
        if not self.P:
            found["w_hr"] = None
        for name in ("norm_ih", "norm_hh"):
            found[name] = found[name] + 1 if self.norm else None
        return found

    def sizes(self) -> torch.Tensor | None:
        return torch.arange(self.B, self.B - self.T, -1).clamp(1) if self.packed else None

    def options(self, dtype: torch.dtype) -> dict:
        shape = (self.heads * self.directions, self.B, self.P or self.H)
        generator = torch.Generator().manual_seed(5)
        mask = (torch.rand(shape, generator=generator) < 0.7).to(dtype) * (1 / 0.7) if self.mask else None
        return {
            "heads": self.heads,
            "recurrent_mask": mask,
            "zoneout": self.zoneout,
            "zoneout_seed": torch.arange(11, 11 + self.directions) if self.drawn and self.zoneout else None,
            "recompute": self.recompute,
        }


def run(cell: str, tensors: dict, sizes=None, strategy: str = "auto", **options):
    """``functional.recurrent`` of tensors by name."""
    gains = {name: tensors[name] for name in ("norm_ih", "norm_hh")}
    return recurrent(cell, *list(tensors.values())[:8], sizes, strategy, **gains, **options)


def everything(call: Call, cell: str, tensors: dict, dtype: torch.dtype, strategy: str, rounded=None, **more) -> dict:
    """Outputs, states and the gradients of a weighted sum of them; values rounded to ``rounded`` first."""
    rounded = rounded or dtype
    leaves = {k: None if v is None else v.to(rounded).to(dtype).requires_grad_() for k, v in tensors.items()}
    options = call.options(rounded)
    if options["recurrent_mask"] is not None:
        options["recurrent_mask"] = options["recurrent_mask"].to(dtype)
    out = run(cell, leaves, call.sizes(), strategy, **{**options, **more})
    results = {name: t for name, t in zip(("y", "h_n", "c_n"), out, strict=True) if t is not None}
    generator = torch.Generator().manual_seed(7)
    weights = [torch.randn(r.shape, generator=generator, dtype=torch.float64).to(dtype) for r in results.values()]
    loss = sum((r * w).sum() for r, w in zip(results.values(), weights, strict=True))
    wanted = {k: v for k, v in leaves.items() if v is not None}
    gradients = torch.autograd.grad(loss, list(wanted.values()))
    results |= {f"d_{name}": g for name, g in zip(wanted, gradients, strict=True)}
    return {name: value.detach() for name, value in results.items()}


def check(call: Call, cell: str, dtype: torch.dtype, strategy: str) -> None:
    """torch has no such layer: the plain reference in the dtype takes its part."""
    tensors = call.tensors(cell)
    ours = everything(call, cell, tensors, dtype, strategy)
    torchs = everything(call, cell, tensors, dtype, "reference")
    truth = everything(call, cell, tensors, torch.float64, "reference", rounded=dtype)
    for name in truth:
        row = "rows" if name.startswith("d_w") else "single" if truth[name].numel() == 1 else "rule"
        if dtype == torch.float64 and name.startswith("d_"):
            row = "fp64 gradient"
        assert_numerics(ours[name], torchs[name], truth[name], name, row)


# Over so many values no row's variance is near zero, which would make one rounding the error of everything behind it.
NORM = Call(norm=True, H=17)
EACH = [
    Call(heads=3),
    Call(mask=True),
    Call(zoneout=0.4),
    Call(zoneout=0.4, drawn=False),
    NORM,
    Call(recompute=True),
    Call(heads=2, directions=2, mask=True, zoneout=0.3, norm=True, recompute=True, packed=True),
]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("call", EACH, ids=str)
def test_each_option_meets_the_rule(cell, call, dtype):
    check(call, cell, dtype, "sequence")


WITHOUT_NORM = [Call(**{**vars(call), "norm": False}) for call in EACH if call != NORM]


@needs_library
@pytest.mark.parametrize("call,dtype", [
    (NORM, torch.float32), (NORM, torch.float64), (EACH[-1], torch.float32),
    (EACH[-1], torch.bfloat16),
], ids=str)  # fmt: skip
def test_layer_norm_on_gemm_meets_the_rule(cell, call, dtype):
    check(call, cell, dtype, "gemm")


@needs_library
@pytest.mark.parametrize("call", WITHOUT_NORM, ids=str)
@pytest.mark.parametrize("strategy", ["gemm", "step", *PERSISTENT])
def test_each_option_meets_the_rule_on_the_cuda_rungs(cell, call, strategy):
    check(call, cell, torch.bfloat16 if call == WITHOUT_NORM[-1] else torch.float32, strategy)


@needs_library
@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
@pytest.mark.parametrize("strategy", ["cluster", "grid"])
def test_options_of_several_blocks_meet_the_rule(strategy, dtype):
    call = Call(heads=2, directions=2, mask=True, zoneout=(0.3, 0.5), packed=True, B=10, H=35)
    check(call, "lstm", dtype, strategy)


@needs_library
@pytest.mark.parametrize("cell", ["gru_reset_before", "lstm"])
def test_recorded_steps_meet_the_rule(cell):
    """Enough steps for a replay."""
    call = Call(heads=2, directions=2, mask=True, zoneout=0.3, packed=True, T=19)
    check(call, cell, torch.float32, "graph")


@pytest.mark.parametrize("strategy", [*HOST, pytest.param("gemm", marks=needs_library)])
@pytest.mark.parametrize("call", [Call(P=4, **vars_) for vars_ in (
    {"heads": 2}, {"mask": True, "directions": 2}, {"zoneout": (0.3, 0.5), "packed": True}, {"recompute": True},
    {"heads": 2, "mask": True, "zoneout": (0.2, 0.0), "recompute": True, "directions": 2},
)], ids=str)  # fmt: skip
def test_with_a_projection(call, strategy):
    check(call, "lstm", torch.float32, strategy)


@st.composite
def calls(draw):
    """Any options; layer norm not of a single value, of which it leaves nothing but rounding."""
    zoneout, norm = draw(st.sampled_from([0.0, 0.2, 0.7, 1.0])), draw(st.booleans())
    return Call(
        heads=draw(st.integers(1, 4)), directions=draw(st.integers(1, 2)), mask=draw(st.booleans()), zoneout=zoneout,
        drawn=draw(st.booleans()), norm=norm, recompute=draw(st.booleans()), packed=draw(st.booleans()),
        T=draw(st.integers(1, 4)), B=draw(st.integers(1, 6)), H=draw(st.sampled_from([3, 17] if norm else [1, 3, 17])),
    )  # fmt: skip


@settings(max_examples=40, deadline=None, derandomize=True)
@given(calls(), st.sampled_from(sorted(CELLS)), st.sampled_from(HOST + CUDA * EMULATED))
def test_random_combinations_meet_the_rule(call, cell, strategy):
    torch.manual_seed(0)
    if strategy in CUDA and strategy != "gemm":
        call = Call(**{**vars(call), "norm": False})
    check(call, cell, torch.float32 if strategy in PERSISTENT else torch.float64, strategy)


def as_function(call: Call, cell: str):
    """A call as a function of its tensors, and those."""
    tensors = call.tensors(cell)
    names = [name for name, t in tensors.items() if t is not None]

    def function(*leaves):
        given = {**tensors, **dict(zip(names, leaves, strict=True))}
        out = run(cell, given, call.sizes(), **call.options(torch.float64))
        return tuple(t for t in out if t is not None)

    return function, [tensors[name].requires_grad_() for name in names]


@pytest.mark.parametrize("call", [Call(**{**vars(call), "T": 2, "B": 2, "H": 2}) for call in EACH], ids=str)
def test_first_order_gradients_are_right(cell, call):
    assert torch.autograd.gradcheck(*as_function(call, cell), fast_mode=True)


def test_second_order_gradients_are_right(cell):
    call = Call(heads=2, mask=True, zoneout=0.3, norm=True, recompute=True, T=2, B=2, H=2)
    assert torch.autograd.gradgradcheck(*as_function(call, cell), fast_mode=True)


def make(cell: str, **options):
    layer_class, arguments = layer_of(cell)
    return layer_class(5, 12, **arguments, **options)


def test_heads_are_layers_side_by_side(cell):
    """Each head has the weights of a layer of H / N units, one after the other."""
    layer = make(cell, heads=3, bidirectional=True)
    layer_class, arguments = layer_of(cell)
    x = torch.randn(6, 4, 5)
    y = layer(x)[0].view(6, 4, 2, 3, 4)
    for head in range(3):
        alone = layer_class(5, 4, bidirectional=True, **arguments)
        alone.load_state_dict({name: t.chunk(3)[head] for name, t in layer.state_dict().items()})
        torch.testing.assert_close(alone(x)[0].view(6, 4, 2, 4), y[:, :, :, head])


def test_a_mask_acts_on_the_recurrent_product_alone():
    """h = tanh(x + W (m h)), written out by hand; y shows h unmasked."""
    x, w, m = torch.randn(4, 2, 3), torch.randn(1, 3, 3), torch.tensor([[[0.0, 2.0, 2.0], [2.0, 0.0, 2.0]]])
    h = h0 = torch.randn(1, 2, 3)
    eye = torch.eye(3)[None]
    y = recurrent("rnn_tanh", x.view(8, 3), h0, None, eye, w, recurrent_mask=m)[0].view(4, 2, 3)
    for x_t, y_t in zip(x, y, strict=True):
        h = torch.tanh(x_t + (m * h) @ w[0].T)
        torch.testing.assert_close(y_t, h[0])


def lstm_states(x, h, c, w, zone_h, zone_c, steps):
    """LSTM with zoneout's k given, by hand."""
    for t in range(steps):
        i, f, g, o = (x[t] + h @ w.T).chunk(4, 1)
        new_c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        new_h = o.sigmoid() * new_c.tanh()
        h, c = zone_h * h + (1 - zone_h) * new_h, zone_c * c + (1 - zone_c) * new_c
    return h, c


@pytest.mark.parametrize("strategy", ["auto", "reference"])
def test_zoneout_in_evaluation_is_the_expectation(strategy):
    x, w, h0, c0 = torch.randn(4, 2, 12), torch.randn(12, 3), torch.randn(2, 3), torch.randn(2, 3)
    eye = torch.eye(12)[None]
    _, h_n, c_n = recurrent(
        "lstm", x.view(8, 12), h0[None], c0[None], eye, w[None], strategy=strategy, zoneout=(0.3, 0.6)
    )
    h, c = lstm_states(x, h0, c0, w, 0.3, 0.6, 4)
    torch.testing.assert_close((h_n[0], c_n[0]), (h, c))


def test_layer_norm_is_over_all_gates_and_units():
    """RNN and LSTM: LN(W x) + LN(W h) and both biases, written out by hand."""
    for layer in (fusednn.RNN(3, 5, layer_norm=True), fusednn.LSTM(3, 5, layer_norm=True)):
        assert all((parameter == 1).all() for name, parameter in layer.named_parameters() if name.startswith("norm"))
        gains, shifts = (layer.norm_ih_l0, layer.norm_hh_l0), (layer.bias_ih_l0, layer.bias_hh_l0)
        for gain in gains:
            nn.init.normal_(gain)
        x, h, c = torch.randn(4, 2, 3), torch.zeros(2, 5), torch.zeros(2, 5)
        for x_t in x:
            gates = 0
            products = (x_t @ layer.weight_ih_l0.T, h @ layer.weight_hh_l0.T)
            for value, gain, shift in zip(products, gains, shifts, strict=True):
                d = value - value.mean(1, keepdim=True)
                gates = gates + d / (d.square().mean(1, keepdim=True) + 1e-5).sqrt() * gain + shift
            if isinstance(layer, fusednn.RNN):
                h = torch.tanh(gates)
            else:
                i, f, g, o = gates.chunk(4, 1)
                c = f.sigmoid() * c + i.sigmoid() * g.tanh()
                h = o.sigmoid() * c.tanh()
        torch.testing.assert_close(states_of(layer(x)[1])[0][0], h)


def kept_units(steps: int, units: int, p: float, seed: int, batch: int = 3, strategy: str = "auto") -> torch.Tensor:
    """Which units keep h, seen from outside: the cell alone would give 1 in the first step and never 0.  # [T, B, H]"""
    x = torch.full((steps * batch, 1), 20.0)
    found = []
    h = torch.zeros(1, batch, units)
    w_ih, w_hh = torch.ones(1, units, 1), torch.zeros(1, units, units)
    for t in range(steps):
        rows = x[t * batch : (t + 1) * batch]
        y = recurrent("rnn_tanh", rows, h, None, w_ih, w_hh, strategy=strategy, zoneout=p,
                      zoneout_seed=torch.tensor([seed]), first_step=t)[0]  # fmt: skip
        found.append(y == 0)
    return torch.stack(found)


def test_zoneout_keeps_as_many_units_as_asked():
    for p in (0.1, 0.5, 0.9):
        share = kept_units(50, 200, p, 1).double().mean().item()
        assert abs(share - p) < 5 * (p * (1 - p) / 30000) ** 0.5


def test_zoneout_draws_anew_at_each_step_row_and_unit_and_for_each_seed():
    kept = kept_units(8, 64, 0.5, 1)
    assert not torch.equal(kept[0], kept[1]) and not torch.equal(kept[:, 0], kept[:, 1])
    assert not torch.equal(kept[:, :, :32], kept[:, :, 32:])
    assert not torch.equal(kept, kept_units(8, 64, 0.5, 2))
    assert torch.equal(kept, kept_units(8, 64, 0.5, 1)), "and the same for the same"


def test_zoneout_does_not_depend_on_the_other_rows():
    assert torch.equal(kept_units(4, 40, 0.5, 1, batch=5)[:, :2], kept_units(4, 40, 0.5, 1, batch=2))


def test_zoneout_of_one_keeps_the_initial_state(cell):
    layer = make(cell, zoneout=1.0)
    hx = tuple(torch.randn(1, 3, 12) for _ in range(2 if CELLS[cell].has_cell_state else 1))
    y, hidden = layer(torch.randn(4, 3, 5), hx if len(hx) == 2 else hx[0])
    assert all(torch.equal(a, b) for a, b in zip(states_of(hidden), hx, strict=True))
    assert torch.equal(y, hx[0].expand(4, 3, 12))


@strategies
def test_a_sequence_in_pieces_equals_the_whole(cell, strategy):
    """With the same mask and seed, and each piece told the number of its first step."""
    call = Call(heads=2, mask=True, zoneout=0.4, T=7)
    dtype = torch.float32 if strategy in PERSISTENT else torch.float64
    tensors = {name: None if t is None else t.to(dtype) for name, t in call.tensors(cell).items()}
    options = call.options(dtype)
    whole, h_n, c_n = run(cell, tensors, strategy=strategy, **options)
    x, h, c = tensors["x"], tensors["h0"], tensors["c0"]
    pieces, first = [], 0
    for rows in x.split([call.B, 2 * call.B, 4 * call.B]):
        piece = {**tensors, "x": rows, "h0": h, "c0": c}
        y, h, c = run(cell, piece, strategy=strategy, first_step=first, **options)
        pieces.append(y)
        first += rows.shape[0] // call.B
    torch.testing.assert_close(torch.cat(pieces), whole)
    torch.testing.assert_close(h, h_n)
    torch.testing.assert_close(c, c_n)


def test_step_by_step_equals_the_sequence_in_evaluation(cell):
    layer = make(cell, num_layers=2, heads=3, recurrent_dropout=0.5, zoneout=0.3, layer_norm=True).eval()
    x = torch.randn(6, 4, 5)
    whole, state = layer(x)[0], None
    for x_t, y_t in zip(x, whole, strict=True):
        got, state = layer.step(x_t, state)
        torch.testing.assert_close(got, y_t)


def saved_numbers(layer, x) -> int:
    """Numbers that autograd keeps beside the input and the parameters."""
    own = {t.untyped_storage().data_ptr() for t in (x, *layer.parameters())}
    kept = {}

    def pack(tensor):
        if tensor.layout == torch.strided and tensor.untyped_storage().data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        outputs = layer(x)  # held until the bytes are counted, so that no storage is reused
    assert outputs is not None
    return sum(kept.values()) // x.element_size()


@pytest.mark.skipif(MODULE is None, reason="the package was built without a C++ compiler")
def test_recomputation_keeps_y_and_c_alone(cell):
    T, B, H = 30, 8, 12
    layer = make(cell, recompute=True)
    x = torch.randn(T, B, 5, requires_grad=True)
    assert (
        saved_numbers(layer, x) == (2 if CELLS[cell].has_cell_state else 1) * T * B * H + B * H
    )  # and the zeros of h0


def test_training_draws_and_evaluation_does_not(cell):
    for options in ({"recurrent_dropout": 0.5}, {"zoneout": 0.5}):
        layer = make(cell, **options)
        x = torch.randn(9, 4, 5)
        assert not torch.equal(layer(x)[0], layer(x)[0]), options
        layer.eval()
        assert torch.equal(layer(x)[0], layer(x)[0]), options
    dropped = make(cell, recurrent_dropout=0.5).eval()
    plain = make(cell)
    plain.load_state_dict(dropped.state_dict())
    assert torch.equal(dropped(x)[0], plain(x)[0])


def test_a_generator_seed_repeats_a_training_run(cell):
    layer = make(cell, recurrent_dropout=0.3, zoneout=0.3, bidirectional=True)
    x = torch.randn(9, 4, 5)
    runs = []
    for _ in range(2):
        torch.manual_seed(3)
        runs.append(layer(x)[0])
    assert torch.equal(*runs)


TOGETHER = {"heads": 2, "recurrent_dropout": 0.25, "zoneout": 0.1, "layer_norm": True, "recompute": True}


@pytest.mark.parametrize("cell", ["gru_reset_before", "lstm"])
def test_compile_without_a_graph_break(cell):
    torch._dynamo.reset()
    layer = make(cell, **TOGETHER).eval()
    x = torch.randn(4, 3, 5)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x)[0], layer(x)[0])
    layer.train()
    y = compiled(x)[0]
    y.sum().backward()
    assert torch.isfinite(layer.weight_hh_l0.grad).all()


@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_the_operators_pass_opcheck(cell):
    call = Call(**{**vars(EACH[-1]), "T": 4})
    tensors = {k: None if t is None else t.float() for k, t in call.tensors(cell).items()}
    lines = call.heads * call.directions * len(CELLS[cell].gates) * call.H
    tensors |= {"x": torch.randn(tensors["x"].shape[0], lines), "w_ih": None, "b_ih": None}  # as layer norm gives it
    norm, given = tensors["norm_hh"], tuple(tensors.values())[:8]
    options = call.options(torch.float32)
    drawn = (options["heads"], options["recurrent_mask"], options["zoneout_seed"], 0.3, 0.0, 2)
    where = (call.sizes(), cell, "sequence")
    leaves = [None if t is None else t.clone().requires_grad_() for t in (*given, norm)]
    checks = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
    check = functools.partial(torch.library.opcheck, test_utils=checks)
    ops = torch.ops.fusednn
    for recompute in (False, True):
        check(ops.recurrent.default, (*leaves[:8], *where, *drawn, leaves[8], recompute))
        check(ops.recurrent_forward.default, (*given, *where, True, *drawn, norm, recompute))
    y, h_n, c_n, saved, states = ops.recurrent_forward(*given, *where, True, *drawn, norm)
    grads = (torch.randn_like(y), torch.randn_like(h_n), None if given[2] is None else torch.randn_like(c_n))
    products = 1 + bool(CELLS[cell].late)
    normed = (torch.randn(y.shape[0], lines), torch.rand(y.shape[0], products * call.heads * call.directions))
    h0, c0, _, w_hh, _, b_hh, w_hr = given[1:]
    check(
        ops.recurrent_backward.default,
        (*grads, y, saved, states, *normed, h0, c0, w_hh, b_hh, w_hr, *where, *drawn, norm),
    )


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_rows_do_not_reach_each_other(cell, poison):
    call = Call(heads=2, mask=True, zoneout=0.3, norm=True, directions=2, T=6, B=5)
    tensors, options = call.tensors(cell), call.options(torch.float64)
    clean = run(cell, tensors, **options)[0].view(call.T, call.B, -1)
    tensors["x"].view(call.T, call.B, -1)[2, 3] = poison
    y = run(cell, tensors, **options)[0].view(call.T, call.B, -1)
    others = [0, 1, 2, 4]
    assert torch.equal(y[:, others], clean[:, others])


def test_every_output_element_is_written(cell):
    """Memory comes filled with NaN; nothing of it may show."""
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.use_deterministic_algorithms(True)
    try:
        call = EACH[-1]
        results = everything(call, cell, call.tensors(cell), torch.float32, "auto")
    finally:
        torch.use_deterministic_algorithms(False)
    for name, tensor in results.items():
        assert torch.isfinite(tensor).all(), name


def test_a_layer_shows_copies_and_pickles_its_options():
    layer = fusednn.LSTM(5, 12, proj_size=6, heads=3, recurrent_dropout=0.25, zoneout=(0.1, 0.2), recompute=True)
    assert repr(layer) == (
        "LSTM(5, 12, proj_size=6, heads=3, recurrent_dropout=0.25, zoneout=(0.1, 0.2), recompute=True)"
    )
    assert layer.weight_hh_l0.shape == (48, 2) and layer.weight_hr_l0.shape == (6, 4)
    x = torch.randn(3, 2, 5)
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert repr(twin) == repr(layer)
        assert torch.equal(twin.eval()(x)[0], layer.eval()(x)[0])
    assert list(layer.state_dict()) == list(fusednn.LSTM(5, 12, proj_size=6).state_dict())


def test_a_heads_initial_values_are_those_of_its_own_size():
    layer = fusednn.GRU(64, 256, heads=16)
    assert 0.2 < layer.weight_hh_l0.abs().max() <= 16**-0.5


MISTAKES = [
    ({"heads": 0}, "heads must be a positive integer, got 0"),
    ({"heads": 2.0}, "heads must be a positive integer, got 2.0"),
    ({"heads": 5}, "heads must divide hidden_size=12, got 5"),
    ({"heads": 4, "proj_size": 6}, "heads must divide proj_size=6, got 4"),
    ({"recurrent_dropout": 1.5}, "recurrent_dropout must be a probability between 0 and 1, got 1.5"),
    ({"zoneout": -0.1}, "zoneout must be a probability between 0 and 1, got -0.1"),
    ({"zoneout": (0.1, 2.0)}, "zoneout must be a probability between 0 and 1, got 2.0"),
    ({"zoneout": (0.1, 0.2, 0.3)}, "zoneout must be one probability, or for a cell with c a pair"),
    ({"recompute": 1}, "recompute must be True or False, got 1"),
    ({"layer_norm": "yes"}, "layer_norm must be True or False, got 'yes'"),
    ({"strategy": "step", "layer_norm": True}, "strategy 'step' has no layer norm; expected one of 'auto', 'sequence'"),
    ({"strategy": "grid", "layer_norm": True}, "strategy 'grid' has no layer norm; expected one of 'auto', 'sequence'"),
]


@pytest.mark.parametrize("options,message", MISTAKES, ids=str)
def test_construction_says_what_was_expected(options, message):
    with pytest.raises(ValueError, match=message):
        fusednn.LSTM(5, 12, **options)


def test_a_cell_without_c_takes_one_probability():
    with pytest.raises(ValueError, match="for a cell with c a pair"):
        fusednn.GRU(5, 12, zoneout=(0.1, 0.2))


def test_functional_refuses_options_that_do_not_fit():
    good = Call(heads=2, mask=True, zoneout=0.1)
    tensors, options = good.tensors("gru"), good.options(torch.float64)
    for change, message in [
        ({"heads": 3}, "1 or 2 directions of 3 heads"),
        ({"recurrent_mask": options["recurrent_mask"][:1]}, "recurrent_mask must be like h0"),
        ({"recurrent_mask": options["recurrent_mask"].float()}, "recurrent_mask must be like h0"),
        ({"zoneout": 1.5}, "zoneout must be a probability"),
        ({"zoneout": (0.1, 0.1)}, "the cell has no c"),
        ({"zoneout_seed": torch.tensor([1.0])}, r"zoneout_seed must be \[1\] int64"),
        ({"zoneout_seed": torch.tensor([1, 2])}, r"zoneout_seed must be \[1\] int64"),
    ]:
        with pytest.raises(ValueError, match=message):
            run("gru", tensors, **{**options, **change})


def test_explain_names_the_options_and_who_lacks_them():
    text = fusednn.explain(fusednn.GRU(5, 12, heads=2, zoneout=0.1), torch.randn(3, 2, 5))
    assert "options    heads, zoneout" in text
    assert "not block, cluster" in text


def test_the_plan_refuses_what_a_strategy_lacks():
    lacking = [s.name for s in STRATEGY_TABLE if "layer norm" not in s.options]
    for name in lacking:
        refused = dict(plan(Request("gru", "cpu", options=("layer norm",))).refused)
        assert refused[name]
        if EMULATED:
            with pytest.raises(ValueError, match="has no layer norm; 'sequence'"):
                plan(Request("gru", "cpu", options=("layer norm",)), name)


def test_without_options_a_layer_is_as_before(cell):
    layer = make(cell)
    assert layer.options == {} and "heads" not in repr(layer)
