"""Outputs, LSE and gradients of the functional form follow the numerics rule, for every modifier, size and layout."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from attention_truth import (
    EVERYTHING,
    MODIFIERS,
    Case,
    any_case,
    attend,
    check,
    copy,
    gradients,
    naive,
    small_blocks,
    tensors,
)
from fusednn import cpu_attention
from fusednn.functional import attention_paths
from numerics import assert_numerics

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))
modifiers = pytest.mark.parametrize("case", MODIFIERS.values(), ids=MODIFIERS.keys())


@pytest.fixture(scope="module", autouse=True)
def blocks():
    """Sizes here are small: cut them into blocks all the same."""
    with small_blocks():
        yield


@dtypes
@modifiers
def test_each_modifier_alone(case, dtype):
    check(case, dtype)


@modifiers
def test_each_modifier_in_one_piece(case, monkeypatch):
    """What runs where the scores are few and there is no compiled kernel."""
    monkeypatch.setattr(cpu_attention, "available", lambda device: False)
    monkeypatch.setattr(attention_paths, "FEW_SCORES", 1 << 20)
    check(case, torch.float32)


@dtypes
@modifiers
def test_each_modifier_without_the_compiled_kernel(case, dtype, monkeypatch):
    """What runs on devices without a kernel, and without a compiler."""
    monkeypatch.setattr(cpu_attention, "available", lambda device: False)
    check(case, dtype)


@modifiers
def test_each_modifier_in_blocks_of_the_size_that_runs(case, monkeypatch):
    """Lengths that are no multiple of a block nor of a vector."""
    monkeypatch.setattr(cpu_attention, "ROWS", 0)
    check(replace(case, M=113, K=131, E=33), torch.float32)


@dtypes
@modifiers
def test_few_queries_over_keys_in_two_parts(case, dtype):
    """Output and LSE: a kernel of its own, for up to eight queries a key head."""
    case = replace(case, M=2, K=603, E=33, Ev=73)
    x = tensors(case, dtype)
    wide = {n: copy(t, torch.float64) for n, t in x.items()}
    found, baseline, truth = attend(**x, **case.options, return_lse=True), naive(case, x), naive(case, wide)
    assert torch.equal(torch.isneginf(found[1]), torch.isneginf(truth[1]))
    for name, *results in zip(("output", "LSE"), found, baseline, truth, strict=True):
        assert_numerics(*(r.masked_fill(torch.isneginf(truth[1]), 0) if name == "LSE" else r for r in results), name)


@pytest.mark.parametrize("queries", [1, 2])
def test_gradients_of_few_queries_are_as_exact_as_those_of_torchs_kernel(queries):
    """The worst element of such a gradient belongs to one large weight, and its error is one draw, of torch's too: so
    the mean over many draws is compared."""
    case, errors = Case(M=queries, K=1303, E=67), []
    for _ in range(40):
        x = tensors(case, torch.float32, requires_grad=True)
        plain, wide = ({n: copy(t, d) for n, t in x.items()} for d in (torch.float32, torch.float64))
        outs = attend(**x, return_lse=True)[0], F.scaled_dot_product_attention(**plain), naive(case, wide)[0]
        weight = torch.randn(outs[0].shape, dtype=torch.float64)
        ours, torchs, truth = (gradients([o], t, [weight]) for o, t in zip(outs, (x, plain, wide), strict=True))
        errors.append([[(g[n] - truth[n]).abs().max() / truth[n].abs().max() for n in x] for g in (ours, torchs)])
    ours, torchs = torch.tensor(errors).mean(0)
    assert (ours <= torchs).all(), f"mean errors of query, key, value: {ours.tolist()}, of torch's {torchs.tolist()}"


@pytest.mark.parametrize(
    ("seen", "options"),
    [
        (slice(603), {"window": (None, 602)}),
        (slice(603, None), {"window": (696, None), "causal_alignment": "bottom_right"}),
    ],
    ids=["right", "left"],
)
def test_one_query_does_not_read_what_position_hides(seen, options):
    """NaN before and behind the window, beside what it sees in one part of the keys."""
    x = tensors(Case(M=1, K=1300, E=33), torch.float32)
    alone = attend(x["query"], x["key"][:, :, seen], x["value"][:, :, seen], softcap=3.0)
    for name in ("key", "value"):
        kept = x[name][:, :, seen].clone()
        x[name].fill_(torch.nan)[:, :, seen] = kept
    torch.testing.assert_close(attend(**x, **options, softcap=3.0), alone)


def test_a_block_of_which_some_queries_see_nothing(monkeypatch):
    """Queries that stand so far behind the last key that the window holds none, after some that see a few."""
    monkeypatch.setattr(cpu_attention, "ROWS", 0)
    check(Case(B=1, M=200, K=100, E=16, window=(1, None), softcap=5.0), torch.float32, with_lse=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@modifiers
def test_each_modifier_with_the_lse_and_its_gradient(case, dtype):
    check(case, dtype, with_lse=True)


@settings(max_examples=80, deadline=None, derandomize=True)
@given(
    case=any_case(length=9, batch=2, groups=3, size=17, value_size=17),
    dtype=st.sampled_from(DTYPES),
    with_lse=st.booleans(),
)
def test_any_combination(case, dtype, with_lse):
    torch.manual_seed(0)
    check(case, dtype, with_lse)


@dtypes
@pytest.mark.parametrize("T", [1, 2, 63, 113, 127])
@pytest.mark.parametrize("modified", [False, True], ids=["plain", "modified"])
def test_odd_lengths(T, modified, dtype):
    more = {"window": (40, None), "softcap": 5.0, "sink": True} if modified else {}
    check(Case(B=3, M=T, K=T + 1, E=63, is_causal=T > 1, **more), dtype)


@pytest.mark.parametrize("softcap", [None, 1e30], ids=["torch_sdpa", "blocked"])
def test_one_visible_key(softcap):
    """The weight is 1 whatever the scores, so query and key have no gradient.

    The rule compares with torch's math kernel, which gives exactly zero. torch's fused CPU kernel subtracts two sums
    taken in different orders and leaves their rounding; hence a bound on those sums instead.
    """
    q, k, v = (torch.randn(1, 2, 1, 63, requires_grad=True) for _ in range(3))
    out = attend(q, k, v, softcap=softcap)
    weight = torch.randn_like(out)
    dq, dk, dv = torch.autograd.grad((out * weight).sum(), (q, k, v))
    torch.testing.assert_close(out, v)
    torch.testing.assert_close(dv, weight)
    bound = 63 * torch.finfo(torch.float32).eps * (weight * v).abs().sum(-1).max() * max(q.abs().max(), k.abs().max())
    assert max(dq.abs().max(), dk.abs().max()) <= (bound if softcap is None else 0.0)


@pytest.mark.parametrize("case", [Case(K=5), EVERYTHING], ids=["torch_sdpa", "blocked"])
def test_memory_layout_does_not_matter(case):
    """Transposed, strided, and expanded tensors give what their contiguous copies give, gradients too."""
    x = tensors(case, torch.float32)
    packed = {n: x[n] for n in ("query", "key", "value")}
    odd = {
        "query": packed["query"].transpose(1, 2).contiguous().transpose(1, 2),
        "key": packed["key"].repeat_interleave(2, -1)[..., ::2],
        "value": packed["value"][:1, :1].expand_as(packed["value"]),
    }
    assert not any(t.is_contiguous() for t in odd.values())
    results = []
    for inputs in (odd, {n: t.contiguous() for n, t in odd.items()}):
        inputs = {n: t.detach().requires_grad_() for n, t in inputs.items()}
        out = attend(**(x | inputs), **case.options)
        results.append((out, *torch.autograd.grad(out.square().sum(), list(inputs.values()))))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("more", [{}, {"sink": True}, {"mask": "bool", "is_causal": True}], ids=str)
def test_fewer_and_more_dimensions(more):
    """[N, T, E] and [A, B, N, T, E] give what each slice of [B, N, T, E] gives."""
    case = Case(B=4, **more)
    x = tensors(case, torch.float32)
    whole = attend(**x, **case.options)
    per_head = ("sink",)
    one = {n: t if n in per_head else t[1] for n, t in x.items()}
    torch.testing.assert_close(attend(**one, **case.options), whole[1])
    five = {n: t if n in per_head else t.unflatten(0, (2, 2)) for n, t in x.items()}
    torch.testing.assert_close(attend(**five, **case.options), whole.unflatten(0, (2, 2)))


def test_two_dimensions():
    q, k, v = torch.randn(3, 4), torch.randn(5, 4), torch.randn(5, 6)
    torch.testing.assert_close(attend(q, k, v), F.scaled_dot_product_attention(q, k, v))
    out, lse = attend(q, k, v, return_lse=True)
    torch.testing.assert_close(out, F.scaled_dot_product_attention(q, k, v))
    torch.testing.assert_close(lse, (q @ k.T / 2).logsumexp(-1))


@pytest.mark.parametrize("softcap", [None, 9.0], ids=["torch_sdpa", "blocked"])
@pytest.mark.parametrize(
    "shapes",
    [
        ((3, 2, 4, 8), (1, 2, 5, 8)),
        ((3, 2, 4, 8), (3, 1, 5, 8)),
        ((3, 1, 4, 8), (1, 2, 5, 8)),
        ((2, 4, 8), (3, 1, 5, 8)),
    ],
    ids=str,
)
def test_leading_dimensions_broadcast(shapes, softcap):
    q, k = (torch.randn(shape) for shape in shapes)
    lead = torch.broadcast_shapes(shapes[0][:-2], shapes[1][:-2])
    wide = attend(q.expand(*lead, 4, 8).contiguous(), *2 * [k.expand(*lead, 5, 8).contiguous()], softcap=softcap)
    torch.testing.assert_close(attend(q, k, k, softcap=softcap), wide)


@pytest.mark.parametrize("shape", [(3, 5), (1, 5), (3, 1), (1, 1), (2, 1, 5), (2, 1, 1, 5), (2, 4, 3, 1)], ids=str)
@pytest.mark.parametrize("kind", ["bool", "float"])
@pytest.mark.parametrize("softcap", [None, 9.0], ids=["torch_sdpa", "blocked"])
def test_masks_broadcast(shape, kind, softcap):
    q, k = torch.randn(2, 4, 3, 8), torch.randn(2, 4, 5, 8)
    if shape == (2, 1, 5):
        q, k = q[:, :2], k[:, :2]
    mask = torch.rand(shape) < 0.5 if kind == "bool" else torch.randn(shape)
    full = mask.expand(2, q.shape[1], 3, 5).contiguous()
    torch.testing.assert_close(
        attend(q, k, k, mask, softcap=softcap, is_causal=True), attend(q, k, k, full, softcap=softcap, is_causal=True)
    )


def test_slopes_for_each_batch_row():
    q = torch.randn(3, 2, 5, 8)
    slopes = torch.rand(3, 2)
    rows = [attend(q[b], q[b], q[b], alibi_slopes=slopes[b]) for b in range(3)]
    torch.testing.assert_close(attend(q, q, q, alibi_slopes=slopes), torch.stack(rows))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_halves_merged_by_their_lse_equal_the_whole(dtype):
    """out = sum exp(lse_i - lse) out_i: what split keys, sinks and ring attention rest on."""
    q, k, v = (torch.randn(2, 3, 6, 8).to(dtype) for _ in range(3))
    k, v = torch.cat([k, v], 2), torch.cat([v, k], 2)
    out, lse = attend(q, k, v, return_lse=True, softcap=3.0)
    halves = [attend(q, k[:, :, s], v[:, :, s], return_lse=True, softcap=3.0) for s in (slice(0, 5), slice(5, None))]
    total = torch.logaddexp(halves[0][1], halves[1][1])
    torch.testing.assert_close(total, lse)
    merged = sum(torch.exp(h[1] - total).unsqueeze(-1) * h[0] for h in halves)
    truth = attend(q.double(), k.double(), v.double(), softcap=3.0)
    assert_numerics(merged.to(dtype), out, truth, "merged output")


def test_prefill_equals_one_query_at_a_time():
    """With bottom-right alignment a query alone, with the keys up to its own, is its row of the whole."""
    case = Case(M=6, K=6, is_causal=True, window=(3, None), alibi=True, sink=True, causal_alignment="bottom_right")
    x = tensors(case, torch.float64)
    whole = attend(**x, **case.options)
    for t in range(6):
        one = x | {
            "query": x["query"][:, :, t : t + 1],
            "key": x["key"][:, :, : t + 1],
            "value": x["value"][:, :, : t + 1],
        }
        torch.testing.assert_close(attend(**one, **case.options)[:, :, 0], whole[:, :, t])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_large_scores_do_not_overflow(dtype):
    """Scores in the ten thousands, where exp alone is infinite and weights from a rounded LSE lose digits."""
    case = Case(sink=True)
    x = tensors(case, dtype) | {"sink": torch.tensor([3e4, -3e4], dtype=dtype)}
    x["query"] = x["query"] * 1e4
    wide = {n: t.double() for n, t in x.items()}
    assert_numerics(attend(**x), naive(case, x)[0], naive(case, wide)[0], "output")


def test_repeats_bit_for_bit():
    case = EVERYTHING
    x = tensors(case, torch.float32, requires_grad=True)
    runs = []
    for _ in range(3):
        out = attend(**x, **case.options, deterministic=True)
        runs.append((out, *torch.autograd.grad(out.sum(), list(x.values()))))
    for other in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(runs[0], other, strict=True))
