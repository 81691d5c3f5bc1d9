"""fusednn.MultiheadAttention is torch.nn.MultiheadAttention in everything a model can see."""

from __future__ import annotations

import copy
import io
import pickle
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import fusednn
from numerics import assert_numerics


def twins(embed_dim=16, num_heads=4, dtype=torch.float32, **options):
    """Ours, torch's, and torch's in fp64, with the same parameters; biases are not zero."""
    torchs = nn.MultiheadAttention(embed_dim, num_heads, **options)
    with torch.no_grad():
        for parameter in torchs.parameters():
            parameter.normal_(std=0.3)
    ours = fusednn.MultiheadAttention(embed_dim, num_heads, **options)
    ours.load_state_dict(torchs.state_dict())
    return ours.to(dtype), torchs.to(dtype), copy.deepcopy(torchs).to(dtype).double()


def run(layer, inputs, masks, **options):
    """Output, weights, and the gradients of inputs, float masks and parameters."""
    dtype = next(layer.parameters()).dtype
    cast = {
        k: v.detach().to(dtype).requires_grad_() if v.is_floating_point() else v for k, v in (inputs | masks).items()
    }
    if inputs["key"] is inputs["query"]:
        cast["key"] = cast["value"] = cast["query"]
    elif inputs["value"] is inputs["key"]:
        cast["value"] = cast["key"]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Support for mismatched")
        out, weights = layer(**cast, **options)
    leaves = [t for t in {id(t): t for t in cast.values()}.values() if t.requires_grad]
    torch.manual_seed(1)
    total = (out * torch.randn(out.shape).to(out.dtype)).sum()
    grads = torch.autograd.grad(total, [*leaves, *layer.parameters()], allow_unused=True)
    return [out, *([] if weights is None else [weights]), *grads]


def compare(inputs, masks, dtype=torch.float32, embed_dim=16, num_heads=4, train=True, call=None, **options):
    layers = [layer.train(train) for layer in twins(embed_dim, num_heads, dtype, **options)]
    results = [run(layer, inputs, masks, **(call or {"need_weights": False})) for layer in layers]
    for i, (ours, torchs, truth) in enumerate(zip(*results, strict=True)):
        assert (ours is None) == (torchs is None)
        if ours is not None:
            # Key biases shift all scores of a row alike: their gradient is zero but for rounding, which the
            # rule would scale to itself. in_proj_bias mixes it with real gradients.
            assert_numerics(ours, torchs, truth, f"result {i}")


@settings(max_examples=100, deadline=None, derandomize=True)
@given(data=st.data())
def test_any_configuration_equals_torchs(data):
    """Outputs, weights and every gradient, over constructor options, input forms, masks and call options."""
    torch.manual_seed(0)
    draw = data.draw
    heads = draw(st.sampled_from([1, 2, 3, 4]))
    B, M, K = draw(st.integers(1, 3)), draw(st.integers(2, 6)), draw(st.integers(2, 6))
    batched, form = draw(st.booleans()), draw(st.sampled_from(["self", "cross", "apart", "widths"]))
    options = {name: draw(st.booleans()) for name in ("bias", "add_bias_kv", "add_zero_attn", "batch_first")}
    width = 4 * heads
    if form == "widths":
        options |= {"kdim": 5, "vdim": 6}
    K = M if form == "self" else K

    def sequence(T, E):
        if not batched:
            return torch.randn(T, E)
        return torch.randn(B, T, E) if options["batch_first"] else torch.randn(T, B, E)

    query = sequence(M, width)
    key = query if form == "self" else sequence(K, options.get("kdim", width))
    value = key if form in ("self", "cross") else sequence(K, options.get("vdim", width))
    masks = {}
    attn_mask = draw(st.sampled_from([None, "bool", "float"]))
    if attn_mask:
        rows = (B if batched else 1) * heads
        seen = torch.rand((rows, M, K) if draw(st.booleans()) else (M, K)) < 0.6
        seen[..., 0] = True
        masks["attn_mask"] = ~seen if attn_mask == "bool" else torch.randn(seen.shape).masked_fill(~seen, -torch.inf)
    padding = draw(st.sampled_from([None, "bool", "float"]))
    if padding:
        hidden = torch.rand((B, K) if batched else (K,)) < 0.4
        hidden[..., 0] = False
        masks["key_padding_mask"] = (
            hidden if padding == "bool" else torch.randn(hidden.shape).masked_fill(hidden, -torch.inf)
        )
    call = {"need_weights": draw(st.booleans()), "average_attn_weights": draw(st.booleans())}
    dtype = draw(st.sampled_from([torch.float32, torch.float32, torch.bfloat16]))
    inputs = {"query": query, "key": key, "value": value}
    compare(inputs, masks, dtype, width, heads, draw(st.booleans()), call, **options)


@pytest.mark.parametrize("more", [{}, {"add_bias_kv": True}, {"add_zero_attn": True}], ids=str)
@pytest.mark.parametrize("padding", [False, True], ids=["", "padding"])
@pytest.mark.parametrize("float_mask", [False, True], ids=["bool", "float"])
def test_causal_hint(more, padding, float_mask):
    """With is_causal torch drops the mask and aligns top-left, so that appended keys are hidden too; so do we."""
    x = torch.randn(5, 2, 16)
    masks = {"attn_mask": torch.ones(5, 5).triu(1).bool()}
    if float_mask:
        masks = {"attn_mask": nn.Transformer.generate_square_subsequent_mask(5)}
    if padding:
        masks["key_padding_mask"] = torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
    compare({"query": x, "key": x, "value": x}, masks, call={"need_weights": False, "is_causal": True}, **more)


@pytest.mark.parametrize("inference", [False, True], ids=["slow", "fused"])
@pytest.mark.parametrize("masks", [[], ["attn_mask"], ["key_padding_mask"], ["attn_mask", "key_padding_mask"]], ids=str)
def test_inference_equals_torchs_fused_path(masks, inference):
    """torch fuses the layer in inference; with or without that path the result is the same."""
    ours, torchs, truth = (layer.eval() for layer in twins(batch_first=True))
    x = torch.randn(3, 5, 16)
    given = {
        "attn_mask": torch.ones(5, 5).triu(2).bool(),
        "key_padding_mask": torch.tensor([[False] * 5, [False] * 4 + [True], [True, False, False, False, True]]),
    }
    given = {name: given[name] for name in masks}
    with torch.set_grad_enabled(not inference):
        a, b, c = (
            m(*3 * [x.to(m.in_proj_weight.dtype)], need_weights=False, **given)[0] for m in (ours, torchs, truth)
        )
    assert_numerics(a, b, c, "output")


@pytest.mark.parametrize("need_weights", [False, True])
@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("grad", [False, True], ids=["no_grad", "grad"])
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("kind", ["padding", "float padding", "mask", "both"])
def test_rows_without_keys_are_nan_where_torchs_are(need_weights, train, grad, batch_first, kind):
    """torch gives NaN with weights and in its fused inference path with bool masks, the output bias elsewhere."""
    ours, torchs, _ = (layer.train(train) for layer in twins(batch_first=batch_first))
    x = torch.randn(2, 2, 16)
    padding = torch.tensor([[True, True], [False, True]])
    mask = torch.tensor([[True, True], [False, False]])
    masks = {
        "padding": {"key_padding_mask": padding},
        "float padding": {"key_padding_mask": torch.zeros(2, 2).masked_fill(padding, -torch.inf)},
        "mask": {"attn_mask": mask},
        "both": {"attn_mask": mask, "key_padding_mask": padding},
    }[kind]
    with torch.set_grad_enabled(grad):
        a, b = (layer(x, x, x, need_weights=need_weights, **masks)[0] for layer in (ours, torchs))
    torch.testing.assert_close(a, b, equal_nan=True)
    assert a.isnan().any() == b.isnan().any()
    if need_weights:
        assert a.isnan().any() and not a.isnan().all()


MISTAKES = [
    lambda m, x: m(x[None], x[None], x[None], need_weights=False),
    lambda m, x: m(x, x[0], x[0], need_weights=False),
    lambda m, x: m(x[..., :8], x, x, need_weights=False),
    lambda m, x: m(x, x[:3], x, need_weights=False),
    lambda m, x: m(x, x[:, :1], x[:, :1], need_weights=False),
    lambda m, x: m(x, x, x, need_weights=False, is_causal=True),
    lambda m, x: m(x, x, x, need_weights=False, attn_mask=torch.ones(4, 4).bool()),
    lambda m, x: m(x, x, x, need_weights=False, attn_mask=torch.ones(3, 5, 5).bool()),
    lambda m, x: m(x, x, x, need_weights=False, attn_mask=torch.ones(1, 1, 5, 5).bool()),
    lambda m, x: m(x, x, x, need_weights=False, attn_mask=torch.ones(5, 5).long()),
    lambda m, x: m(x, x, x, need_weights=False, key_padding_mask=torch.ones(2, 4).bool()),
    lambda m, x: m(x, x, x, need_weights=False, key_padding_mask=torch.ones(5).bool()),
    lambda m, x: m(x, x, x, need_weights=False, key_padding_mask=torch.ones(2, 5).long()),
    lambda m, x: m(x[:, 0], x[:, 0], x[:, 0], need_weights=False, key_padding_mask=torch.ones(1, 5).bool()),
    lambda m, x: m(x.double(), x.double(), x.double(), need_weights=False),
]


@pytest.mark.parametrize("mistake", MISTAKES, ids=range(len(MISTAKES)))
def test_mistakes_raise_what_torch_raises(mistake):
    ours, torchs, _ = twins()
    x = torch.randn(5, 2, 16)
    with pytest.raises(Exception) as theirs:
        mistake(torchs, x)
    with pytest.raises(theirs.type) as mine:
        mistake(ours, x)
    assert str(mine.value) == str(theirs.value)


def test_a_deprecated_mix_of_masks_warns_as_torch_does():
    ours, torchs, _ = twins()
    x, padding, mask = torch.randn(5, 2, 16), torch.zeros(2, 5).bool(), torch.zeros(5, 5)
    for layer in (torchs, ours):
        with pytest.warns(UserWarning, match="Support for mismatched key_padding_mask and attn_mask"):
            layer(x, x, x, key_padding_mask=padding, attn_mask=mask, need_weights=False)


def test_dropout_only_in_training():
    """In training weights are dropped as torch drops them, from the same generator state; never in evaluation."""
    ours, torchs, _ = twins(dropout=0.5)
    x = torch.randn(5, 2, 16)
    results = []
    for layer in (ours, torchs):
        torch.manual_seed(7)
        results.append(layer(x, x, x, need_weights=False)[0])
    torch.testing.assert_close(*results)
    ours.eval()
    a, b = (ours(x, x, x, need_weights=False)[0] for _ in range(2))
    assert torch.equal(a, b) and not torch.allclose(a, results[0])


def test_attention_without_weights_runs_on_the_functional_form(monkeypatch):
    """The layer would be worth nothing if it went to torch's forward."""
    ours = twins()[0]
    x = torch.randn(5, 2, 16)
    monkeypatch.setattr(nn.MultiheadAttention, "forward", lambda *a, **k: pytest.fail("torch's forward ran"))
    for masks in ({}, {"key_padding_mask": torch.zeros(2, 5).bool()}, {"attn_mask": torch.zeros(5, 5)}):
        ours(x, x, x, need_weights=False, **masks)


def test_nested_tensors_are_served_as_torch_serves_them():
    ours, torchs, _ = (layer.eval() for layer in twins(batch_first=True))
    x = torch.nested.as_nested_tensor([torch.randn(3, 16), torch.randn(5, 16)])
    with torch.no_grad():
        a, b = (layer(x, x, x, need_weights=False)[0] for layer in (ours, torchs))
    for one, other in zip(a.unbind(), b.unbind(), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("options", [{}, {"kdim": 5, "vdim": 6, "add_bias_kv": True}, {"bias": False}], ids=str)
def test_same_construction_state_and_identity(options):
    """Same initialisation from one seed, state_dict both ways, repr, isinstance, deepcopy, pickle, torch.save."""
    torch.manual_seed(5)
    torchs = nn.MultiheadAttention(16, 4, **options)
    torch.manual_seed(5)
    ours = fusednn.MultiheadAttention(16, 4, **options)
    assert list(ours.state_dict()) == list(torchs.state_dict())
    assert all(torch.equal(ours.state_dict()[n], t) for n, t in torchs.state_dict().items())
    assert repr(ours) == repr(torchs) and isinstance(ours, nn.MultiheadAttention)
    torchs.load_state_dict(ours.state_dict())
    buffer = io.BytesIO()
    torch.save(ours, buffer)
    buffer.seek(0)
    q, k = torch.randn(3, 2, 16), torch.randn(4, 2, options.get("kdim", 16))
    v = torch.randn(4, 2, options.get("vdim", 16))
    expected = ours(q, k, v, need_weights=False)[0]
    for twin in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours)), torch.load(buffer, weights_only=False)):
        assert type(twin) is fusednn.MultiheadAttention
        assert torch.equal(twin(q, k, v, need_weights=False)[0], expected)


def test_changing_the_class_of_a_layer_changes_nothing_else():
    torchs = nn.MultiheadAttention(16, 4, dropout=0.1).eval()
    x = torch.randn(5, 2, 16)
    before, state = torchs(x, x, x, need_weights=False)[0], set(vars(torchs))
    torchs.__class__ = fusednn.MultiheadAttention
    torch.testing.assert_close(torchs(x, x, x, need_weights=False)[0], before)
    assert set(vars(torchs)) == state == set(vars(fusednn.MultiheadAttention(16, 4)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("options", [{}, {"add_bias_kv": True, "add_zero_attn": True}], ids=str)
def test_autocast(dtype, options):
    ours, torchs, truth = twins(**options)
    x = torch.randn(5, 2, 16)
    mask = nn.Transformer.generate_square_subsequent_mask(5)
    with torch.autocast("cpu", dtype=dtype):
        a = ours(x, x, x, need_weights=False, attn_mask=mask)[0]
        b = torchs(x, x, x, need_weights=False, attn_mask=mask)[0]
    assert a.dtype == dtype
    assert_numerics(a, b, truth(*3 * [x.double()], need_weights=False, attn_mask=mask.double())[0], "output")


@pytest.mark.parametrize("masks", ["none", "padding", "causal"])
def test_compile_without_graph_breaks(masks):
    torch.compiler.reset()
    ours = twins(batch_first=True)[0]
    x = torch.randn(2, 5, 16)
    given = {
        "none": {},
        "padding": {"key_padding_mask": torch.tensor([[False] * 5, [False] * 3 + [True] * 2])},
        "causal": {"attn_mask": nn.Transformer.generate_square_subsequent_mask(5), "is_causal": True},
    }[masks]
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    for training in (True, False):
        ours.train(training)
        with torch.set_grad_enabled(training):
            a, b = (layer(x, x, x, need_weights=False, **given)[0] for layer in (compiled, ours))
        torch.testing.assert_close(a, b)
    ours.train()
    grads = [
        torch.autograd.grad(m(x, x, x, need_weights=False, **given)[0].sum(), list(ours.parameters()))
        for m in (compiled, ours)
    ]
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("B, M, K", [(0, 3, 3), (2, 0, 3)], ids=str)  # fmt: skip
def test_empty_sizes(B, M, K):
    ours, torchs, _ = twins()
    q, k = torch.randn(M, B, 16), torch.randn(K, B, 16)
    a, b = (layer(q, k, k, need_weights=False)[0] for layer in (ours, torchs))
    assert a.shape == b.shape == (M, B, 16)
