"""Sequences of different lengths: each gets what it would get alone; nested tensors; blocks; memory."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import fusednn
from attention_truth import Case, attend, small_blocks, tensors
from fusednn.functional import varlen_attention
from numerics import assert_numerics


def starts(lengths) -> torch.Tensor:
    return torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()], dtype=torch.int32)


def packed(case: Case, lengths_q, lengths_k, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Tensors of a call: all sequences one after another, [rows, N, E]."""
    x = tensors(case, dtype)
    heads = case.N // case.groups
    x["query"] = torch.randn(sum(lengths_q), case.N, case.E).to(dtype)
    x["key"] = torch.randn(sum(lengths_k), heads, case.E).to(dtype)
    x["value"] = torch.randn(sum(lengths_k), heads, case.Ev or case.E).to(dtype)
    return {n: t.requires_grad_() for n, t in x.items()}


def one_by_one(case: Case, x, lengths_q, lengths_k, **more):
    """Output and LSE of the padless call, from a call a sequence."""
    found = []
    at = {"query": starts(lengths_q).tolist(), "key": starts(lengths_k).tolist(), "value": starts(lengths_k).tolist()}
    for s in range(len(lengths_q)):
        own = {n: x[n][b[s] : b[s + 1]].transpose(0, 1)[None] for n, b in at.items()}
        own |= {n: x[n] for n in ("sink",) if n in x}
        if "alibi_slopes" in x:
            own["alibi_slopes"] = x["alibi_slopes"][s] if x["alibi_slopes"].dim() == 2 else x["alibi_slopes"]
        out, lse = attend(**own, **case.options, return_lse=True, **more)
        found.append((out[0].transpose(0, 1), lse[0]))
    return torch.cat([out for out, _ in found]), torch.cat([lse for _, lse in found], dim=1)


def check(case: Case, lengths_q, lengths_k, dtype: torch.dtype, x=None, **more) -> None:
    """Results and gradients are those of each sequence alone."""
    x = packed(case, lengths_q, lengths_k, dtype) if x is None else x
    doubles = {n: t.detach().double().requires_grad_() for n, t in x.items()}
    most = (max(lengths_q, default=0), max(lengths_k, default=0))
    calls = [
        varlen_attention(
            **x, cu_seqlens_q=starts(lengths_q), cu_seqlens_k=starts(lengths_k), max_seqlen_q=most[0],
            max_seqlen_k=most[1], **case.options, return_lse=True, **more,
        ),
        one_by_one(case, x, lengths_q, lengths_k, backend="torch"),
        one_by_one(case, doubles, lengths_q, lengths_k, backend="torch"),
    ]  # fmt: skip
    assert torch.equal(torch.isneginf(calls[0][1]), torch.isneginf(calls[2][1]))
    calls = [(out, lse.masked_fill(torch.isneginf(lse), 0.0)) for out, lse in calls]
    for name, *results in zip(("output", "LSE"), *calls, strict=True):
        assert_numerics(*results, f"{name} of {case}, {lengths_q}, {lengths_k}")
    weight = torch.randn(calls[0][0].shape)
    for name in x:
        grads = [
            torch.autograd.grad((o * weight.to(o.dtype)).sum() + lse.sum(), y[name], retain_graph=True)[0]
            for (o, lse), y in zip(calls, (x, x, doubles), strict=True)
        ]
        row = "single" if grads[0].numel() == 1 else "rule"
        assert_numerics(*grads, f"gradient of {name} of {case}, {lengths_q}, {lengths_k}", row)


CASES = {
    "plain": Case(),
    "causal": Case(is_causal=True),
    "bottom right": Case(is_causal=True, causal_alignment="bottom_right"),
    "window": Case(window=(2, 1)),
    "grouped": Case(N=4, groups=2, Ev=5),
    "everything": Case(N=4, groups=2, is_causal=True, window=(4, 2), softcap=1.5, alibi=True, sink=True, scale=0.4),
}
LENGTHS = {
    "one": ([5], [7]),
    "several": ([3, 1, 6], [4, 2, 6]),
    "empty ones": ([0, 3, 0, 2], [2, 0, 0, 5]),
    "none": ([], []),
}


@pytest.fixture(scope="module", autouse=True)
def blocks():
    with small_blocks():
        yield


@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_each_sequence_gets_what_it_would_get_alone(case, lengths):
    if sum(lengths[0]):
        check(case, *lengths, torch.float32)
    else:
        x = packed(case, *lengths, torch.float32)
        at = {"cu_seqlens_q": starts([]), "cu_seqlens_k": starts([]), "max_seqlen_q": 0, "max_seqlen_k": 0}
        out = varlen_attention(**x, **at, **case.options)
        assert out.shape == (0, case.N, case.Ev or case.E)


several = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=4)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    lengths=several.filter(lambda found: sum(q for q, _ in found) > 0 and sum(k for _, k in found) > 0),
    case=st.builds(
        lambda groups, heads, **more: Case(N=groups * heads, groups=groups, **more),
        groups=st.integers(1, 2),
        heads=st.integers(1, 2),
        E=st.integers(1, 9),
        is_causal=st.booleans(),
        causal_alignment=st.sampled_from(["top_left", "bottom_right"]),
        window=st.none() | st.tuples(st.none() | st.integers(0, 6), st.none() | st.integers(0, 6)),
        softcap=st.none() | st.floats(0.5, 50),
        alibi=st.booleans(),
        sink=st.booleans(),
    ),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_any_combination(lengths, case, dtype):
    torch.manual_seed(0)
    check(case, *(list(side) for side in zip(*lengths, strict=True)), dtype)


def test_slopes_for_each_sequence():
    case = CASES["everything"]
    x = packed(case, [3, 5], [4, 5], torch.float32)
    x["alibi_slopes"] = torch.rand(2, case.N, requires_grad=True)
    check(case, [3, 5], [4, 5], torch.float32, x)


def test_second_order_gradients_are_right():
    case = Case(N=2, groups=2, E=2, softcap=1.5, sink=True, is_causal=True)
    x = {n: t.detach().double().requires_grad_() for n, t in packed(case, [2, 0, 3], [1, 2, 3], torch.float32).items()}
    at = {"cu_seqlens_q": starts([2, 0, 3]), "cu_seqlens_k": starts([1, 2, 3]), "max_seqlen_q": 3, "max_seqlen_k": 3}

    def run(*values):
        return varlen_attention(**dict(zip(x, values, strict=True)), **at, **case.options)

    assert torch.autograd.gradgradcheck(run, tuple(x.values()), fast_mode=True)


def test_sequences_do_not_see_each_other():
    x = {n: torch.randn(7, 2, 8) for n in ("query", "key", "value")}
    at = {"cu_seqlens_q": starts([3, 4]), "cu_seqlens_k": starts([3, 4]), "max_seqlen_q": 4, "max_seqlen_k": 4}
    for more in ({}, {"sink": torch.zeros(2)}):
        clean = varlen_attention(**x, **at, **more)
        dirty = {n: torch.cat([t[:3], torch.full_like(t[3:], torch.nan)]) for n, t in x.items()}
        assert torch.equal(varlen_attention(**dirty, **at, **more)[:3], clean[:3])


@pytest.mark.parametrize("more", [{}, {"softcap": 3.0}, {"is_causal": True}], ids=str)
def test_jagged_nested_tensors(more):
    """[B, N, j, E] in and out, as torch's operator takes them; gradients flow."""
    parts = [torch.randn(t, 2, 8) for t in (3, 1, 5)]
    leaf = torch.nested.as_nested_tensor(parts, layout=torch.jagged).requires_grad_()
    x = leaf.transpose(1, 2)
    out, lse = attend(x, x, x, return_lse=True, **more)
    assert out.is_nested and out.shape[:2] == x.shape[:2] and lse.is_nested
    for part, o, z in zip(parts, out.unbind(), lse.unbind(), strict=True):
        own = part.transpose(0, 1)[None]
        wanted = attend(own, own, own, return_lse=True, **more)
        torch.testing.assert_close(o, wanted[0][0])
        torch.testing.assert_close(z, wanted[1][0])
    (grad,) = torch.autograd.grad(out.values().sum(), leaf)
    assert grad.is_nested and grad.values().abs().sum() > 0


def test_dropout_of_a_sequence_does_not_depend_on_the_others_lengths():
    """Weights are drawn by number of sequence, head, query and key."""
    q = torch.randn(4, 2, 8)
    results = []
    for more in (3, 6):
        x = torch.cat([q, torch.randn(more, 2, 8)])
        torch.manual_seed(5)
        at = starts([4, more])
        results.append(varlen_attention(x, x, x, at, at, 6, 6, dropout_p=0.5, softcap=9.0)[:4])
    assert torch.equal(*results)


MISTAKES = [
    (ValueError, r"query must have 3 dimensions \[rows, N, E\]", {"query": torch.randn(1, 5, 2, 4)}),
    (TypeError, "cu_seqlens_q must be a tensor, got list", {"cu_seqlens_q": [0, 5]}),
    (TypeError, "cu_seqlens_k must be int32 or int64", {"cu_seqlens_k": torch.tensor([0.0, 5.0])}),
    (ValueError, r"cu_seqlens_q must have shape \[S \+ 1\]", {"cu_seqlens_q": torch.tensor(5)}),
    (ValueError, "cu_seqlens_q must go from 0 to the 5 rows", {"cu_seqlens_q": torch.tensor([0, 4])}),
    (
        ValueError,
        "without decreasing",
        {"cu_seqlens_q": torch.tensor([0, 6, 5]), "cu_seqlens_k": torch.tensor([0, 5, 5])},
    ),
    (ValueError, "same sequences, got 1 and 2", {"cu_seqlens_k": torch.tensor([0, 2, 5])}),
    (ValueError, "max_seqlen_q must be at least 5", {"max_seqlen_q": 4}),
    (TypeError, "max_seqlen_k must be a whole number", {"max_seqlen_k": 5.0}),
    (ValueError, "max_seqlen_k must not be negative", {"max_seqlen_k": -1}),
    (ValueError, r"alibi_slopes needs shape \[2\] or \[1, 2\]", {"alibi_slopes": torch.ones(3, 2)}),
]


@pytest.mark.parametrize(("error", "message", "change"), MISTAKES, ids=[m for _, m, _ in MISTAKES])
def test_mistakes_say_what_was_expected(error, message, change):
    x = {n: torch.randn(5, 2, 4) for n in ("query", "key", "value")}
    at = {"cu_seqlens_q": starts([5]), "cu_seqlens_k": starts([5]), "max_seqlen_q": 5, "max_seqlen_k": 5}
    with pytest.raises(error, match=message):
        varlen_attention(**(x | at | change))


def test_nested_mistakes():
    jagged = torch.nested.as_nested_tensor([torch.randn(2, 2, 4)], layout=torch.jagged).transpose(1, 2)
    with pytest.raises(ValueError, match="nested tensors take no attn_mask"):
        attend(jagged, jagged, jagged, torch.ones(2, 2))
    with pytest.raises(TypeError, match="key must be a nested tensor"):
        attend(jagged, torch.randn(1, 2, 2, 4), jagged)


def test_explain_names_the_path():
    x, at = torch.randn(5, 2, 8), starts([5])
    text = fusednn.explain(varlen_attention, x, x, x, at, at, 5, 5, softcap=2.0)
    assert "blocked" in text and "softcap" in text


PEAK = """
import resource, torch
from fusednn.functional import scaled_dot_product_attention as attend
torch.set_num_threads(1)

def run(T, **options):
    x = [torch.randn(1, 2, T, 16, requires_grad=True) for _ in range(3)]
    attend(*x, **options).sum().backward()

sink = torch.zeros(2, requires_grad=True)
for options in ({"window": (300, 0)}, {"softcap": 5.0, "is_causal": True}, {"sink": sink}):
    run(64, **options)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    run(4096, **options)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)  # KiB
"""


def test_memory_grows_with_the_length_and_not_with_its_square():
    """Forward and backward of 4,096 tokens within 32 MiB, where the scores alone are 128 MiB."""
    done = subprocess.run([sys.executable, "-c", PEAK], capture_output=True, text=True, check=True)
    growth = [int(line) for line in done.stdout.split()]
    assert len(growth) == 3 and max(growth) < 32 * 1024, growth
