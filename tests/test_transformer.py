"""fusednn's Transformer layers are torch's in everything a model can see, alone and inside torch's stacks."""

from __future__ import annotations

import copy
import pickle
import warnings

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import fusednn
from numerics import assert_numerics

SIZES = {"d_model": 16, "nhead": 4, "dim_feedforward": 24}
PAIRS = {
    "encoder": (fusednn.TransformerEncoderLayer, nn.TransformerEncoderLayer),
    "decoder": (fusednn.TransformerDecoderLayer, nn.TransformerDecoderLayer),
}
kinds = pytest.mark.parametrize("kind", PAIRS)


def twins(kind, dtype=torch.float32, **options):
    """Ours, torch's, and torch's in fp64, with the same parameters."""
    mine, theirs = PAIRS[kind]
    torchs = theirs(**(SIZES | options))
    ours = mine(**(SIZES | options))
    ours.load_state_dict(torchs.state_dict())
    return ours.to(dtype), torchs.to(dtype), copy.deepcopy(torchs).to(dtype).double()


def run(layer, inputs, masks, grad=True):
    """Output and, with ``grad``, the gradients of inputs and parameters."""
    dtype = layer.norm1.weight.dtype
    inputs = [x.detach().to(dtype).requires_grad_(grad) for x in inputs]
    masks = {k: m.to(dtype) if isinstance(m, torch.Tensor) and m.is_floating_point() else m for k, m in masks.items()}
    with warnings.catch_warnings(), torch.set_grad_enabled(grad):
        warnings.filterwarnings("ignore", "Support for mismatched")
        out = layer(*inputs, **masks)
    if not grad:
        return [out]
    torch.manual_seed(1)
    total = (out * torch.randn(out.shape).to(out.dtype)).sum()
    return [out, *torch.autograd.grad(total, [*inputs, *layer.parameters()])]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(data=st.data())
def test_any_configuration_equals_torchs(data):
    """Output and every gradient over constructor options, masks, training and inference (torch's fused path)."""
    torch.manual_seed(0)
    draw = data.draw
    kind = draw(st.sampled_from(list(PAIRS)))
    options = {name: draw(st.booleans()) for name in ("batch_first", "norm_first", "bias")}
    options |= {"activation": draw(st.sampled_from(["relu", "gelu", F.silu])), "dropout": 0.0}
    options |= {"nhead": draw(st.sampled_from([1, 4])), "layer_norm_eps": draw(st.sampled_from([1e-5, 1e-3]))}
    grad, train, batched = draw(st.booleans()), draw(st.booleans()), draw(st.booleans())
    B, T, S = draw(st.integers(1, 3)), draw(st.integers(2, 5)), draw(st.integers(2, 5))
    rows = B if batched else 1

    def sequence(length):
        if not batched:
            return torch.randn(length, 16)
        return torch.randn(B, length, 16) if options["batch_first"] else torch.randn(length, B, 16)

    def mask_of(queries, keys, per_head):
        hidden = torch.rand((rows * options["nhead"], queries, keys) if per_head else (queries, keys)) < 0.4
        hidden[..., 0] = False
        return hidden if draw(st.booleans()) else torch.randn(hidden.shape).masked_fill(hidden, -torch.inf)

    def padding_of(keys):
        hidden = torch.rand((B, keys) if batched else (keys,)) < 0.4
        hidden[..., 0] = False
        return hidden

    masks = {}
    sides = [("src", T, T)] if kind == "encoder" else [("tgt", T, T), ("memory", T, S)]
    for name, queries, keys in sides:
        if draw(st.booleans()):
            masks[f"{name}_mask"] = mask_of(queries, keys, draw(st.booleans()))
        if draw(st.booleans()):
            masks[f"{name}_key_padding_mask"] = padding_of(keys)
    inputs = [sequence(T)] if kind == "encoder" else [sequence(T), sequence(S)]
    dtype = draw(st.sampled_from([torch.float32, torch.bfloat16]))
    layers = [layer.train(train) for layer in twins(kind, dtype, **options)]
    results = [run(layer, inputs, masks, grad) for layer in layers]
    for i, (ours, torchs, truth) in enumerate(zip(*results, strict=True)):
        assert_numerics(ours, torchs, truth, f"result {i}")


@kinds
@pytest.mark.parametrize("batch_first", [False, True])
def test_causal_hint(kind, batch_first):
    mask = nn.Transformer.generate_square_subsequent_mask(5)
    x = torch.randn(2, 5, 16) if batch_first else torch.randn(5, 2, 16)
    masks = {"src_mask": mask, "is_causal": True} if kind == "encoder" else {"tgt_mask": mask, "tgt_is_causal": True}
    inputs = [x] if kind == "encoder" else [x, x.flip(0)]
    layers = twins(kind, batch_first=batch_first, dropout=0.0)
    for results in zip(*(run(layer, inputs, masks) for layer in layers), strict=True):
        assert_numerics(*results)


PADDINGS = {
    "none": None,
    "left-aligned": torch.tensor([[False] * 5, [False] * 3 + [True] * 2]),
    # Key 0 stays: hidden, it would leave the first causal query without keys, where torch's fused path gives NaN.
    "scattered": torch.tensor([[False, True, False, False, True], [False, False, True, False, False]]),
}


@pytest.mark.parametrize("padding", PADDINGS.values(), ids=PADDINGS.keys())
@pytest.mark.parametrize("causal", [False, True], ids=["", "causal"])
@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("batch_first", [False, True], ids=["", "batch_first"])
def test_inside_torchs_encoder(padding, causal, train, batch_first):
    """torch.nn.TransformerEncoder gives the same, also where it turns padding into nested tensors (and pads with 0)."""
    stacks = []
    for layer in twins("encoder", dropout=0.0, batch_first=batch_first):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "enable_nested_tensor is True")
            stacks.append(nn.TransformerEncoder(layer, 2).train(train))
    x = torch.randn(2, 5, 16) if batch_first else torch.randn(5, 2, 16)
    mask = nn.Transformer.generate_square_subsequent_mask(5) if causal else None
    results = []
    for stack in stacks:
        dtype = next(stack.parameters()).dtype
        with torch.set_grad_enabled(train):
            results.append(
                stack(x.to(dtype), None if mask is None else mask.to(dtype), src_key_padding_mask=padding).detach()
            )
    assert_numerics(*results, "output")


def test_inside_torchs_decoder_and_transformer():
    """torch.nn.TransformerDecoder and torch.nn.Transformer take our layers, here by fusednn.convert."""
    torchs = nn.Transformer(16, 4, 2, 2, 24, dropout=0.0, batch_first=True)
    ours = copy.deepcopy(torchs)
    assert fusednn.convert(ours).kept == {}
    assert {type(m) for m in ours.modules()} >= {*(mine for mine, _ in PAIRS.values()), fusednn.MultiheadAttention}
    truth = copy.deepcopy(torchs).double()
    src, tgt = torch.randn(2, 5, 16), torch.randn(2, 4, 16)
    mask, padding = nn.Transformer.generate_square_subsequent_mask(4), PADDINGS["left-aligned"]
    for train in (True, False):
        outs = []
        for model, dtype in ((ours, torch.float32), (torchs, torch.float32), (truth, torch.float64)):
            masks = {"tgt_mask": mask.to(dtype), "memory_key_padding_mask": padding, "src_key_padding_mask": padding}
            outs.append(model.train(train)(src.to(dtype), tgt.to(dtype), **masks, tgt_is_causal=True).detach())
        assert_numerics(*outs, "output")


@kinds
def test_same_construction_state_and_identity(kind):
    """Same initialisation from one seed, state_dict both ways, repr, isinstance, copies; all by position."""
    mine, theirs = PAIRS[kind]
    layers = []
    for which in (mine, theirs):
        torch.manual_seed(5)
        layers.append(which(16, 4, 24, 0.1, "gelu", 1e-4, True, True, False))
    ours, torchs = layers
    assert list(ours.state_dict()) == list(torchs.state_dict())
    assert all(torch.equal(ours.state_dict()[n], t) for n, t in torchs.state_dict().items())
    assert repr(ours) == repr(torchs) and isinstance(ours, theirs)
    torchs.load_state_dict(ours.state_dict())
    assert set(vars(ours)) == set(vars(torchs))
    inputs = [torch.randn(2, 5, 16)] * (1 if kind == "encoder" else 2)
    expected = ours.eval()(*inputs)
    for twin in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert type(twin) is mine and type(twin.self_attn) is fusednn.MultiheadAttention
        assert torch.equal(twin(*inputs), expected)


@kinds
def test_changing_the_class_alone_gives_a_working_layer(kind):
    mine, theirs = PAIRS[kind]
    layer = theirs(**SIZES).eval()
    inputs = [torch.randn(5, 2, 16)] * (1 if kind == "encoder" else 2)
    before = layer(*inputs)
    layer.__class__ = mine
    torch.testing.assert_close(layer(*inputs), before)


@kinds
def test_our_attention_runs(kind, monkeypatch):
    """In training and in inference no call reaches torch's attention layer or its fused encoder kernel."""
    ours = twins(kind, batch_first=True)[0]
    monkeypatch.setattr(nn.MultiheadAttention, "forward", lambda *a, **k: pytest.fail("torch's attention ran"))
    monkeypatch.setattr(torch, "_transformer_encoder_layer_fwd", lambda *a, **k: pytest.fail("torch's layer ran"))
    inputs = [torch.randn(2, 5, 16)] * (1 if kind == "encoder" else 2)
    ours(*inputs)
    with torch.no_grad():
        ours.eval()(*inputs)


@kinds
def test_dropout_draws_as_torch_draws(kind):
    """From the same generator state the same numbers are dropped in attention, feed-forward and residuals."""
    ours, torchs, _ = twins(kind, dropout=0.4)
    inputs = [torch.randn(5, 2, 16)] * (1 if kind == "encoder" else 2)
    results = []
    for layer in (ours, torchs):
        torch.manual_seed(7)
        results.append(layer(*inputs))
    torch.testing.assert_close(*results)


@kinds
@pytest.mark.parametrize("norm_first", [False, True], ids=["", "norm_first"])
def test_compile_without_graph_breaks(kind, norm_first):
    torch.compiler.reset()
    ours = twins(kind, batch_first=True, norm_first=norm_first, dropout=0.0)[0]
    inputs = [torch.randn(2, 5, 16)] * (1 if kind == "encoder" else 2)
    name = "src" if kind == "encoder" else "tgt"
    masks = {f"{name}_mask": nn.Transformer.generate_square_subsequent_mask(5)}
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    for a, b in zip(*(run(m, inputs, masks) for m in (compiled, ours)), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


@kinds
def test_autocast(kind):
    ours, torchs, truth = twins(kind, dropout=0.0)
    inputs = [torch.randn(5, 2, 16)] * (1 if kind == "encoder" else 2)
    with torch.autocast("cpu"):
        a, b = ours(*inputs), torchs(*inputs)
    assert_numerics(a, b, truth(*[x.double() for x in inputs]), "output")


def test_nested_tensors_are_served_as_torch_serves_them():
    ours, torchs, _ = (layer.eval() for layer in twins("encoder", batch_first=True))
    x = torch.nested.as_nested_tensor([torch.randn(3, 16), torch.randn(5, 16)])
    with torch.no_grad():
        for one, other in zip(ours(x).unbind(), torchs(x).unbind(), strict=True):
            torch.testing.assert_close(one, other)
