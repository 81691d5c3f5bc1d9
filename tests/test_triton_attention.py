"""The fused attention: numerics, gradients, layouts, refusals; in Triton's interpreter where there is no GPU."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

import fusednn
from attention_truth import EVERYTHING, MODIFIERS, Case, any_case, attend, check, tensors
from fusednn import triton_kernels
from fusednn.functional.attention import choose_backend
from numerics import assert_numerics
from test_attention_autograd import EMPTY_ROWS

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytestmark = pytest.mark.skipif(
    triton_kernels.unavailable(DEVICE) is not None, reason=str(triton_kernels.unavailable(DEVICE))
)
modifiers = pytest.mark.parametrize("case", MODIFIERS.values(), ids=MODIFIERS.keys())
LOW = {"causal", "float mask", "everything"}  # enough for 16 bits: modifiers work in fp32


def fused(*inputs, **options):
    return attend(*inputs, **options, backend="triton")


@modifiers
def test_each_modifier_with_the_lse_and_its_gradient(case):
    check(case, torch.float32, True, "triton")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", sorted(LOW))
def test_each_modifier_in_16_bits(name, dtype):
    check(MODIFIERS[name], dtype, backend="triton")


LENGTHS = Case(B=1, N=1, E=24, is_causal=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("T", [1, 2, 63, 113, 127])
@pytest.mark.parametrize("modified", [False, True], ids=["causal", "modified"])
def test_odd_lengths(T, modified, dtype):
    """Several blocks, whole blocks hidden on either side, the last one cut."""
    more = {"window": (40, None), "softcap": 5.0, "sink": True, "mask": "float"} if modified else {}
    check(replace(LENGTHS, M=T, K=T + 1, causal_alignment="bottom_right", **more), dtype, modified, "triton")


@pytest.mark.parametrize("E", [1, 16, 40, 64, 80, 128])
def test_head_sizes(E):
    check(Case(B=1, N=2, groups=2, M=33, K=35, E=E), torch.float32, backend="triton")


@pytest.mark.parametrize("sizes", [{"E": 256}, {"E": 20, "Ev": 70}, {"E": 70, "Ev": 3}], ids=str)
def test_wide_heads_and_values_of_another_width(sizes):
    check(Case(B=1, N=1, M=5, K=34, **sizes), torch.bfloat16, backend="triton")


@settings(max_examples=7, deadline=None, derandomize=True)
@given(
    case=any_case(length=70, batch=1, groups=2, size=20, value_size=40),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
)
def test_any_combination(case, dtype):
    torch.manual_seed(0)
    check(case, dtype, True, "triton")


GRADCHECKED = ["bool mask", "everything"]


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("name", GRADCHECKED)
def test_gradients_of_both_orders_are_right(name, order):
    case = replace(MODIFIERS[name], B=1, N=2, M=3, K=4, E=2, Ev=3)
    x = tensors(case, torch.float64, requires_grad=True)
    hidden = None
    if case.mask == "float":  # -inf has no finite difference: hide by a constant and differentiate the rest
        hidden = x["attn_mask"].detach() == -torch.inf
        x["attn_mask"] = x["attn_mask"].detach().masked_fill(hidden, 0.0).requires_grad_()
    names = [n for n, t in x.items() if t.requires_grad]

    def run(*values):
        inputs = x | dict(zip(names, values, strict=True))
        if hidden is not None:
            inputs["attn_mask"] = inputs["attn_mask"].masked_fill(hidden, -torch.inf)
        out, lse = fused(**inputs, **case.options, return_lse=True)
        return out, lse.masked_fill(torch.isneginf(lse), 0.0)

    checker = torch.autograd.gradcheck if order == 1 else torch.autograd.gradgradcheck
    assert checker(run, tuple(x[n] for n in names), fast_mode=True)


@pytest.fixture
def poisoned():
    """Memory that is not written holds NaN."""
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize(
    "case", [EVERYTHING, Case(B=1, M=70, K=3, is_causal=True), Case(B=1, M=3, K=70, window=(1, 0))], ids=str
)
def test_every_number_of_the_results_is_written(case, poisoned):
    """Keys no query sees and queries that see no key have gradients too: zero."""
    check(case, torch.float32, True, "triton")


@pytest.mark.parametrize("options", EMPTY_ROWS.values(), ids=EMPTY_ROWS)
def test_a_row_that_sees_nothing(options, poisoned):
    """Zero output, LSE -inf, zero gradients; never NaN."""
    options = dict(options)
    mask = options.pop("attn_mask")
    leaves = [torch.randn(2, 2, 3, 8, requires_grad=True) for _ in range(3)]
    if mask.is_floating_point():
        mask = mask.clone().requires_grad_()
        leaves.append(mask)
    out, lse = fused(*leaves[:3], mask, **options, return_lse=True)
    assert torch.equal(out[:, :, 1], torch.zeros_like(out[:, :, 1])) and torch.isneginf(lse[:, :, 1]).all()
    assert out[:, :, [0, 2]].abs().amin() > 0
    grads = torch.autograd.grad(out.square().sum() + lse[:, :, [0, 2]].sum(), leaves, retain_graph=True)
    assert all(g.isfinite().all() for g in grads) and (grads[0][:, :, 1] == 0).all()
    if mask.is_floating_point():
        assert (grads[3][1] == 0).all() and (grads[3][0] != 0).any()
    for grad in torch.autograd.grad(out[:, :, 1].sum() + lse[:, :, 1].sum(), leaves):
        assert torch.equal(grad, torch.zeros_like(grad))


@pytest.mark.parametrize("empty", ["B", "M", "K", "E"])
def test_empty_sizes(empty, poisoned):
    case = replace(EVERYTHING, softcap=None, **({empty: 0, "Ev": 3}))
    x = tensors(case, torch.float32, requires_grad=True)
    results = [attend(**x, **case.options, return_lse=True, backend=backend) for backend in ("triton", "torch")]
    grads = [torch.autograd.grad(out.sum() + lse.sum(), list(x.values())) for out, lse in results]
    for a, b in zip((*results[0], *grads[0]), (*results[1], *grads[1]), strict=True):
        torch.testing.assert_close(a, b)


def test_blocks_that_position_hides_are_not_read():
    """NaN among keys beyond the causal blocks and before the window's reaches nothing."""
    q, k = torch.randn(1, 1, 64, 8), torch.randn(1, 1, 256, 8)
    clean = fused(q, k, k, is_causal=True)
    k[:, :, 64:] = torch.nan
    assert torch.equal(fused(q, k, k, is_causal=True), clean)
    k = torch.randn(1, 1, 256, 8)
    clean = fused(q, k, k, window=(64, 64), causal_alignment="bottom_right")
    k[:, :, :128] = torch.nan
    assert torch.equal(fused(q, k, k, window=(64, 64), causal_alignment="bottom_right"), clean)


def operators_of(call) -> set[str]:
    call()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        call()
    return {event.key for event in profile.key_averages()}


def test_no_softmax_or_product_of_torch_runs_and_nothing_is_copied():
    """Strided, transposed and expanded inputs are read where they are."""
    case = replace(EVERYTHING, alibi=False)  # torch's sum of slopes a batch row clones a few numbers
    x = tensors(case, torch.float32, requires_grad=True)
    x["query"] = x["query"].detach().transpose(1, 2).contiguous().transpose(1, 2).requires_grad_()
    x["key"] = x["key"].detach().repeat_interleave(2, -1)[..., ::2].requires_grad_()
    x["value"] = x["value"].detach()[:1, :1].expand_as(x["value"]).requires_grad_()

    def call():
        out, lse = fused(**x, **case.options, return_lse=True)
        torch.autograd.grad((out, lse), list(x.values()), (torch.ones(()).expand_as(out), torch.ones_like(lse)))

    seen = operators_of(call)
    assert {"fusednn::attention_forward", "fusednn::attention_backward"} <= seen
    words = ("softmax", "matmul", "mm", "einsum", "logsumexp", "scaled_dot", "clone", "contiguous")
    assert not [name for name in seen if any(word in name.split("::")[-1] for word in words)]


def test_memory_layout_does_not_matter():
    x = tensors(EVERYTHING, torch.float32)
    odd = {
        "query": x["query"].transpose(1, 2).contiguous().transpose(1, 2),
        "key": x["key"].repeat_interleave(2, -1)[..., ::2],
        "value": x["value"][:1, :1].expand_as(x["value"]),
        "attn_mask": x["attn_mask"].transpose(-1, -2).contiguous().transpose(-1, -2),
    }
    assert not any(t.is_contiguous() for t in odd.values())
    results = []
    for inputs in (odd, {n: t.contiguous() for n, t in odd.items()}):
        inputs = {n: t.detach().requires_grad_() for n, t in inputs.items()}
        out = fused(**(x | inputs), **EVERYTHING.options)
        results.append((out, *torch.autograd.grad(out.square().sum(), list(inputs.values()))))
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)
    assert results[0][0].transpose(1, 2).is_contiguous(), "the output lies in memory as the queries do"


@pytest.mark.parametrize(
    "shapes",
    [
        ((4, 8), (5, 8), None),
        ((3, 4, 8), (3, 5, 8), (4, 5)),
        ((2, 4, 8), (3, 1, 5, 8), (3, 1, 1, 5)),
        ((3, 1, 4, 8), (1, 2, 5, 8), (2, 1, 1)),
        ((2, 2, 3, 4, 8), (2, 1, 3, 5, 8), (2, 1, 1, 4, 5)),
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", ["bool", "float"])
def test_dimensions_broadcast(shapes, kind):
    """Two to five dimensions, broadcast ones too, and masks with fewer: as PyTorch's composition, gradients too."""
    leaves = [torch.randn(shape, requires_grad=True) for shape in (shapes[0], shapes[1], shapes[1])]
    mask = None
    if shapes[2] is not None:
        mask = torch.rand(shapes[2]) < 0.7 if kind == "bool" else torch.randn(shapes[2], requires_grad=True)
        leaves += [mask] if kind == "float" else []
    results = []
    for backend in ("triton", "torch"):
        out, lse = attend(*leaves[:3], mask, return_lse=True, backend=backend)
        weight = torch.linspace(-1, 1, out.numel()).view_as(out)
        lse = lse.masked_fill(torch.isneginf(lse), 0.0)
        results.append((out, lse, *torch.autograd.grad((out * weight).sum() + lse.sum(), leaves)))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_slopes_for_each_batch_row():
    q = torch.randn(3, 2, 5, 8)
    slopes = torch.rand(3, 2, requires_grad=True)
    results = [attend(q, q, q, alibi_slopes=slopes, backend=backend) for backend in ("triton", "torch")]
    torch.testing.assert_close(*results)
    torch.testing.assert_close(*(torch.autograd.grad(out.square().sum(), slopes) for out in results))


@pytest.mark.parametrize("names", [("query",), ("value",), ("attn_mask",), ("sink", "alibi_slopes")], ids=str)
def test_only_the_gradients_asked_for(names):
    """Each gradient is the same whether or not the others are wanted."""
    x = tensors(EVERYTHING, torch.float32, requires_grad=True)
    whole = torch.autograd.grad(fused(**x, **EVERYTHING.options).square().sum(), [x[n] for n in names])
    x = {n: t.detach().requires_grad_(n in names) for n, t in x.items()}
    alone = torch.autograd.grad(fused(**x, **EVERYTHING.options).square().sum(), [x[n] for n in names])
    assert all(torch.equal(a, b) for a, b in zip(whole, alone, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_halves_merged_by_their_lse_equal_the_whole(dtype):
    q, k, v = (torch.randn(1, 2, T, 8).to(dtype) for T in (6, 70, 70))
    out, lse = fused(q, k, v, return_lse=True)
    halves = [fused(q, k[:, :, s], v[:, :, s], return_lse=True) for s in (slice(0, 41), slice(41, None))]
    total = torch.logaddexp(halves[0][1], halves[1][1])
    torch.testing.assert_close(total, lse)
    merged = sum(torch.exp(h[1] - total).unsqueeze(-1) * h[0] for h in halves)
    truth = F.scaled_dot_product_attention(q.double(), k.double(), v.double())
    assert_numerics(merged.to(dtype), out, truth, "merged output")


def test_large_scores_do_not_overflow():
    x = tensors(Case(sink=True, M=3, K=40), torch.float32) | {"sink": torch.tensor([3e4, -3e4])}
    x["query"] = x["query"] * 1e4
    torch.testing.assert_close(fused(**x), attend(**x))


def test_slopes_sink_and_mask_may_be_more_precise_than_the_inputs():
    x = tensors(replace(EVERYTHING, softcap=None), torch.float32, requires_grad=True)
    for n in ("query", "key", "value"):
        x[n] = x[n].detach().bfloat16().requires_grad_()
    options = EVERYTHING.options | {"softcap": None}
    results = [attend(**x, **options, return_lse=True, backend=backend) for backend in ("triton", "torch")]
    torch.testing.assert_close(results[0][1], results[1][1], rtol=1e-5, atol=1e-5)
    grads = torch.autograd.grad(results[0][0].sum(), [x["attn_mask"], x["sink"], x["alibi_slopes"]])
    assert all(g.dtype == torch.float32 for g in grads)


def test_repeats_bit_for_bit():
    x = tensors(EVERYTHING, torch.float32, requires_grad=True)
    runs = []
    for _ in range(2):
        out = fused(**x, **EVERYTHING.options, deterministic=True)
        runs.append((out, *torch.autograd.grad(out.sum(), list(x.values()))))
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


OPERATOR = (0.3, 1.5, 4, 0, True, 0.0, 3, 4, False, "triton")  # Options


def operator_inputs(requires_grad: bool):
    x = tensors(replace(EVERYTHING, B=1, M=3, K=4), torch.float32, requires_grad)
    return *(x[n] for n in ("query", "key", "value", "attn_mask", "alibi_slopes", "sink")), None, None, None


def test_opcheck_forward():
    checks = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
    call = (*operator_inputs(True), *OPERATOR)
    torch.library.opcheck(torch.ops.fusednn.attention_forward.default, call, test_utils=checks)


@pytest.mark.parametrize("wanted", [[True] * 6, [True, False, False, True, False, True]], ids=str)
def test_opcheck_backward(wanted):
    inputs = operator_inputs(False)
    out, lse = torch.ops.fusednn.attention_forward(*inputs, *OPERATOR)
    call = (torch.randn_like(out), torch.randn_like(lse), out, lse, wanted, *inputs, *OPERATOR)
    torch.library.opcheck(
        torch.ops.fusednn.attention_backward.default, call, test_utils=("test_schema", "test_faketensor")
    )


def test_compile_without_graph_breaks():
    torch.compiler.reset()
    results = []
    for call in (torch.compile(fused, fullgraph=True, backend="aot_eager"), fused):
        torch.manual_seed(0)
        x = tensors(EVERYTHING, torch.float32, requires_grad=True)
        out = call(**x, **EVERYTHING.options)
        results.append((out, *torch.autograd.grad(out.square().sum(), list(x.values()))))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)


def test_autocast_casts_what_torch_casts():
    x = tensors(Case(mask="float", sink=True), torch.float32)
    low = {n: t.bfloat16() if n != "sink" else t for n, t in x.items()}
    with torch.autocast("cpu"):
        out = fused(**x)
    assert out.dtype == torch.bfloat16 and torch.equal(out, fused(**low))


def x(*shape, dtype=torch.float32):
    return torch.randn(shape, dtype=dtype)


REFUSED = [
    ("head sizes up to 256, got 300", lambda: fused(x(1, 2, 3, 300), x(1, 2, 3, 300), x(1, 2, 3, 4))),
    ("2 and 4 heads", lambda: fused(x(1, 4, 3, 8), x(1, 2, 3, 8), x(1, 4, 3, 8), enable_gqa=True)),
    ("tensors on meta", lambda: fused(*3 * [torch.empty(1, 2, 3, 4, device="meta")])),
    ("torch.func", lambda: torch.vmap(lambda t: fused(t, t, t))(x(2, 1, 2, 3, 4))),
]


@pytest.mark.parametrize(("reason", "call"), REFUSED, ids=[r for r, _ in REFUSED])
def test_what_cannot_be_served_is_refused_not_replaced(reason, call):
    with pytest.raises(ValueError, match=f"backend='triton' cannot serve this request: .*{reason}"):
        call()


def test_choice_and_explanation():
    t = x(1, 2, 3, 4)
    assert choose_backend(t, t, t, backend="triton")[0] == "triton"
    assert choose_backend(t, t, t)[0] == ("triton" if DEVICE == "cuda" else "torch_sdpa")
    text = fusednn.explain(fusednn.functional.scaled_dot_product_attention, t, t, t, backend="triton")
    assert "triton" in text and choose_backend(t, t, t, backend="triton")[1] in text


def test_cpu_tensors_without_the_interpreter_are_refused():
    code = """
import torch, fusednn
x = torch.ones(1, 1, 2, 4)
try:
    fusednn.functional.scaled_dot_product_attention(x, x, x, backend="triton")
except ValueError as error:
    print(error)
try:
    torch.ops.fusednn.attention_forward(
        x, x, x, None, None, None, None, None, None, 1.0, None, None, None, False, 0.0, 2, 2, False, "triton"
    )
except RuntimeError as error:
    print(error)
"""
    environment = {n: v for n, v in os.environ.items() if n != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert len(lines) == 2 and all("set TRITON_INTERPRET=1" in line for line in lines)
