"""Additive attention: numerics, gradients, masks, memory, the layer."""

from __future__ import annotations

import os

import pytest
import torch

import fusednn
from fusednn.functional import additive_attention
from fusednn.reference import additive as reference
from numerics import assert_numerics

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
SIZES = [(1, 1, 1, 1), (2, 3, 5, 7), (3, 17, 33, 40), (1, 2, 9, 193)]  # B, M, K, H
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
scores = torch.ops.fusednn.additive_scores


def inputs(B, M, K, H, dtype, device="cpu"):
    shapes = ((B, M, H), (B, K, H), (H,))
    return [torch.randn(s, device=device).to(dtype).requires_grad_() for s in shapes]


def everything(function, tensors, grad):
    s = function(*tensors)
    names = ("scores", "query", "key", "weight")
    return dict(zip(names, (s, *torch.autograd.grad(s, tensors, grad.to(s.dtype))), strict=True))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_scores_meet_the_rule(size, dtype, device):
    """The yardstick holds all pairs, in the scores' own precision."""
    given, grad = inputs(*size, dtype, device), torch.randn(size[:3], device=device)
    ours, torchs = everything(scores, given, grad), everything(reference.scores, given, grad)
    truth = everything(reference.scores, [t.detach().double().requires_grad_() for t in given], grad)
    for name in truth:
        row = "single" if truth[name].numel() == 1 else "rows" if name == "weight" else "rule"
        assert_numerics(ours[name], torchs[name], truth[name], name, row)


def test_gradcheck_to_second_order():
    given = inputs(2, 3, 2, 5, torch.float64)
    assert torch.autograd.gradcheck(scores, given)
    assert torch.autograd.gradgradcheck(scores, given)


def test_the_operator_passes_opcheck():
    torch.library.opcheck(torch.ops.fusednn.additive_scores.default, inputs(2, 3, 4, 5, torch.float32))


def test_any_number_of_threads_gives_the_same_bits():
    given, grad = inputs(3, 7, 5, 150, torch.float32), torch.randn(3, 7, 5)
    two = everything(scores, given, grad)
    torch.set_num_threads(1)
    one = everything(scores, given, grad)
    torch.set_num_threads(2)
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("masked", [False, True])
def test_attention_is_the_weighted_mean(masked):
    q, k, w = (t.detach() for t in inputs(2, 3, 5, 7, torch.float32))
    v = torch.randn(2, 5, 4)
    mask = torch.rand(2, 3, 5) > 0.4 if masked else None
    if mask is not None:
        mask[:, :, 0] = True
    s = reference.scores(q, k, w)
    expected = torch.softmax(s if mask is None else s.masked_fill(~mask, -torch.inf), -1)
    out, weights = additive_attention(q, k, v, w, mask)
    torch.testing.assert_close(weights, expected)
    torch.testing.assert_close(out, expected @ v)


def test_a_row_that_sees_nothing_is_zero_and_so_are_its_gradients():
    q, k, w = inputs(2, 3, 5, 7, torch.float32)
    v = torch.randn(2, 5, 4, requires_grad=True)
    mask = torch.ones(2, 3, 5, dtype=torch.bool)
    mask[1, 2] = False
    out, weights = additive_attention(q, k, v, w, mask)
    out.sum().backward()
    assert (out[1, 2] == 0).all() and (weights[1, 2] == 0).all() and (q.grad[1, 2] == 0).all()
    assert all(t.grad.isfinite().all() for t in (q, k, v, w))
    assert additive_attention(q, k[:, :0], v[:, :0], w)[0].eq(0).all(), "no keys"


def test_memory_does_not_hold_the_pairs():
    """Bytes kept for backward are those of inputs and weights, not of [B, M, K, H]."""
    q, k, w = inputs(2, 64, 64, 128, torch.float32)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.nbytes) or t, lambda t: t):
        additive_attention(q, k, torch.randn(2, 64, 8), w)
    assert sum(kept) < 2 * 64 * 64 * 128  # a quarter of one such tensor


def test_layer_masks_padding_and_serves_single_queries():
    layer = fusednn.AdditiveAttention(6, 4, 8, dropout=0.5).eval()
    query, key = torch.randn(2, 3, 6), torch.randn(2, 5, 4)
    padding = torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
    context, weights = layer(query, key, key_padding_mask=padding)
    assert (weights[1, :, 3:] == 0).all() and weights.sum(-1).allclose(torch.ones(2, 3))
    alone, _ = layer(query[1:], key[1:, :3])
    torch.testing.assert_close(context[1:], alone)
    torch.testing.assert_close(layer(query[:, 1], key, key_padding_mask=padding)[0], context[:, 1])
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(query, key)[0], layer(query, key)[0])
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(query, key)[0].dtype == torch.bfloat16


def test_transforms_run_on_the_reference():
    q, k, w = (t.detach() for t in inputs(2, 3, 5, 7, torch.float32))
    v = torch.randn(2, 5, 4)
    got = torch.func.vmap(lambda q: additive_attention(q, k, v, w)[0])(torch.stack([q, 2 * q]))
    torch.testing.assert_close(got[1], additive_attention(2 * q, k, v, w)[0])


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"key": torch.zeros(2, 5, 6)}, ValueError, "do not fit"),
        ({"query": torch.zeros(2, 7)}, ValueError, r"expected query \[B, M, H\]"),
        ({"value": torch.zeros(2, 5, 4).double()}, TypeError, "value must have the dtype and device of query"),
        ({"attn_mask": torch.zeros(2, 3, 5)}, TypeError, "attn_mask must be bool"),
        ({"attn_mask": torch.zeros(2, 4, 5, dtype=torch.bool)}, ValueError, "attn_mask must broadcast to"),
        ({"dropout_p": 1.5}, ValueError, "dropout_p must be between 0 and 1"),
    ],
)
def test_bad_arguments_are_refused(change, error, message):
    arguments = {"query": torch.zeros(2, 3, 7), "key": torch.zeros(2, 5, 7), "value": torch.zeros(2, 5, 4)}
    with pytest.raises(error, match=message):
        additive_attention(**{**arguments, "weight": torch.zeros(7), **change})


@pytest.mark.parametrize(
    "device",
    [
        pytest.param("cpu", marks=pytest.mark.skipif(not INTERPRETED, reason="Triton's interpreter is off")),
        pytest.param("cuda", marks=pytest.mark.gpu),
    ],
)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [(1, 1, 1, 1), (2, 17, 5, 19), (1, 3, 33, 16)], ids=str)
def test_triton_agrees_with_the_reference(size, dtype, device):
    triton_additive = pytest.importorskip("fusednn.triton_kernels.additive", exc_type=ImportError)
    given, grad = inputs(*size, dtype, device), torch.randn(size[:3], device=device)
    truth = everything(reference.scores, [t.detach().double().requires_grad_() for t in given], grad)
    given = [t.detach() for t in given]
    s = triton_additive.forward(*given)
    d_query, d_key, d_weight = triton_additive.backward(grad.to(s.dtype), *given)
    found = {"scores": s, "query": d_query, "key": d_key, "weight": d_weight}
    for name, wanted in truth.items():
        eps = torch.finfo(found[name].dtype).eps
        assert (found[name] - wanted).abs().max() <= 50 * eps * (wanted.abs().max() + 1), name
