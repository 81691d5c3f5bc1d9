"""Gradients of the functional form: first and second order, rows that see nothing, empty sizes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.autograd import forward_ad

from attention_truth import EVERYTHING, MODIFIERS, Case, attend, small_blocks, tensors
from fusednn.functional.attention import choose_backend

SMALL = {name: replace(case, B=1, M=min(case.M, 4), K=min(case.K, 4), E=2, Ev=3) for name, case in MODIFIERS.items()}
small = pytest.mark.parametrize("case", SMALL.values(), ids=SMALL.keys())


@pytest.fixture(scope="module", autouse=True)
def blocks():
    """Sizes here are small: cut them into blocks all the same."""
    with small_blocks():
        yield


def as_function(case: Case):
    """Output and LSE as a function of the call's floating-point tensors, and those tensors."""
    x = tensors(case, torch.float64, requires_grad=True)
    names = [n for n, t in x.items() if t.requires_grad]
    hidden = {}
    if case.mask == "float":  # -inf has no finite difference: hide by a constant and differentiate the rest
        finite = x["attn_mask"].detach().masked_fill(x["attn_mask"] == -torch.inf, 0.0).requires_grad_()
        hidden = {"where": x["attn_mask"].detach() == -torch.inf}
        x["attn_mask"] = finite

    def run(*values):
        inputs = x | dict(zip(names, values, strict=True))
        if hidden:
            inputs["attn_mask"] = inputs["attn_mask"].masked_fill(hidden["where"], -torch.inf)
        out, lse = attend(**inputs, **case.options, return_lse=True)
        return out, lse.masked_fill(torch.isneginf(lse), 0.0)

    return run, tuple(x[n] for n in names)


@small
def test_first_order_gradients_are_right(case):
    run, inputs = as_function(case)
    assert torch.autograd.gradcheck(run, inputs, fast_mode=True)


@small
def test_second_order_gradients_are_right(case):
    run, inputs = as_function(case)
    assert torch.autograd.gradgradcheck(run, inputs, fast_mode=True)


@small
def test_forward_mode_derivatives_are_right(case):
    run, inputs = as_function(case)
    assert torch.autograd.gradcheck(run, inputs, fast_mode=True, check_forward_ad=True, check_backward_ad=False)


@pytest.mark.parametrize("case", [SMALL["plain"], SMALL["softcap"]], ids=["torch_sdpa", "blocked"])
def test_jvp_is_the_gradient_along_the_tangent(case):
    run, inputs = as_function(case)
    tangents = tuple(torch.randn_like(t) for t in inputs)
    _, found = torch.func.jvp(lambda *x: run(*x)[0].square().sum(), tuple(t.detach() for t in inputs), tangents)
    grads = torch.autograd.grad(run(*inputs)[0].square().sum(), inputs)
    torch.testing.assert_close(found, sum((g * t).sum() for g, t in zip(grads, tangents, strict=True)))


def test_a_gradient_carries_its_tangent_back():
    """The gradient is linear in that of the output, so its tangent is the gradient of the tangent."""
    run, inputs = as_function(SMALL["softcap"])
    out = run(*inputs)[0]
    weight, tangent = torch.randn_like(out), torch.randn_like(out)
    with forward_ad.dual_level():
        found = torch.autograd.grad(out, inputs, forward_ad.make_dual(weight, tangent), retain_graph=True)
        tangents = [forward_ad.unpack_dual(g).tangent for g in found]
    torch.testing.assert_close(tangents, list(torch.autograd.grad(out, inputs, tangent)))


EMPTY_ROWS = {
    "bool": {"attn_mask": torch.tensor([[True, False, True], [False, False, False], [False, True, True]])},
    "float": {"attn_mask": torch.tensor([[0.5, -torch.inf, 0.0], [-torch.inf] * 3, [-torch.inf, 1.0, 2.0]])},
    "mask against causal": {
        "attn_mask": torch.tensor([[True] * 3, [False, False, True], [True] * 3]),
        "is_causal": True,
    },
    "mask against window": {
        "attn_mask": torch.tensor([[True] * 3, [False, False, True], [True] * 3]),
        "window": (0, 0),
    },
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("more", [{}, {"softcap": 4.0}, {"return_lse": True}], ids=["torch_sdpa", "blocked", "lse"])
@pytest.mark.parametrize(
    ("options", "learned"),
    [(options, False) for options in EMPTY_ROWS.values()] + [(EMPTY_ROWS["float"], True)],
    ids=[*EMPTY_ROWS, "float, learned"],
)
def test_a_row_that_sees_nothing(options, more, dtype, learned):
    """Zero output, LSE -inf, zero gradients for its query and from its output; its neighbours are untouched."""
    options = dict(options)
    mask = options.pop("attn_mask")
    q, k, v = (torch.randn(2, 2, 3, 8, dtype=dtype, requires_grad=True) for _ in range(3))
    leaves = [q, k, v]
    if mask.is_floating_point():
        mask = mask.to(dtype).requires_grad_(learned)
        leaves += [mask] if learned else []
    result = attend(q, k, v, mask, **options, **more)
    out, lse = result if more.get("return_lse") else (result, None)
    assert torch.equal(out[:, :, 1], torch.zeros_like(out[:, :, 1]))
    assert out[:, :, [0, 2]].abs().amin() > 0
    if lse is not None:
        assert torch.isneginf(lse[:, :, 1]).all() and lse[:, :, [0, 2]].isfinite().all()
    for rows, expect_zero in (([1], True), ([0, 1, 2], False)):
        total = out[:, :, rows].square().sum() + out[:, :, rows].sum()
        if lse is not None:
            total = total + lse[:, :, rows].sum()
        grads = torch.autograd.grad(total, leaves, retain_graph=True)
        assert all(g.isfinite().all() for g in grads)
        assert (grads[0][:, :, 1] == 0).all()
        assert all((g == 0).all() for g in grads) == expect_zero
        if learned:
            assert (grads[3][1] == 0).all()


def test_a_sink_is_seen_by_every_row():
    """With a sink a row without keys has LSE = sink and still no value."""
    q = torch.randn(1, 2, 3, 4, requires_grad=True)
    sink = torch.tensor([0.5, -2.0], requires_grad=True)
    nothing = torch.zeros(3, 3, dtype=torch.bool)
    out, lse = attend(q, q, q, nothing, sink=sink, return_lse=True)
    assert torch.equal(out, torch.zeros_like(out))
    assert torch.equal(lse, sink[None, :, None].expand(1, 2, 3))
    dq, dsink = torch.autograd.grad(out.sum() + lse.sum(), (q, sink))
    assert torch.equal(dq, torch.zeros_like(q)) and torch.equal(dsink, torch.full_like(sink, 3.0))


@pytest.mark.parametrize("empty", ["B", "M", "K", "E"])
@pytest.mark.parametrize(
    "more", [{}, {"softcap": 2.0}, {"mask": "bool"}, {"is_causal": True, "window": (1, 1)}], ids=str
)
def test_empty_sizes(empty, more):
    """No rows, no queries, no keys (zero, LSE -inf), heads without numbers (equal weights): with gradients."""
    case = Case(**({empty: 0} | ({"Ev": 3} if empty == "E" else {}) | more))
    x = tensors(case, torch.float32, requires_grad=True)
    out, lse = attend(**x, **case.options, return_lse=True)
    assert out.shape == (case.B, case.N, case.M, case.Ev or case.E) and lse.shape == out.shape[:-1]
    torch.testing.assert_close(attend(**x, **case.options), out)
    if empty == "K":
        assert torch.equal(out, torch.zeros_like(out)) and torch.isneginf(lse).all()
    grads = torch.autograd.grad(out.sum() + lse.masked_fill(torch.isneginf(lse), 0).sum(), [x["query"], x["value"]])
    assert all(g.isfinite().all() for g in grads)


def test_no_gradient_is_asked_for_under_no_grad():
    """Inference in fp64 takes torch's kernel, and gives what blocks give."""
    q = torch.randn(1, 2, 5, 8, dtype=torch.float64, requires_grad=True)
    with torch.no_grad():
        assert choose_backend(q, q, q)[0] == "torch_sdpa"
        fast = attend(q, q, q)
    assert choose_backend(q, q, q)[0] == "blocked"
    torch.testing.assert_close(fast, attend(q, q, q))


def test_inputs_are_not_changed():
    case = EVERYTHING
    x = tensors(case, torch.float32, requires_grad=True)
    before = {n: t.detach().clone() for n, t in x.items()}
    attend(**x, **case.options).sum().backward()
    assert all(torch.equal(before[n], t) for n, t in x.items())
