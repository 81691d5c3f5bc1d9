"""Attention layers one token at a time: step() with a cache is causal attention, as an RNN's is its recurrence."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fusednn
from fusednn.layers.cache import KeyValueCache
from numerics import assert_numerics

B, T, D, N = 2, 6, 16, 4


def causal(length: int) -> torch.Tensor:
    return nn.Transformer.generate_square_subsequent_mask(length)


def stepped(layer, x, *more):
    """Outputs of one step a token of [B, T, D], and the last state."""
    state, found = None, []
    for t in range(x.shape[1]):
        y, state = layer.step(x[:, t], state, *more)
        found.append(y)
    return torch.stack(found, 1), state


def pieces(layer, x, *more):
    """The same in pieces of 2, 1 and the rest."""
    state, found = None, []
    for piece in x.split([2, 1, x.shape[1] - 3], 1):
        y, state = layer.prefill(piece, state, *more)
        found.append(y)
    return torch.cat(found, 1), state


VARIANTS = {"plain": {}, "appended keys": {"add_bias_kv": True, "add_zero_attn": True}, "no bias": {"bias": False}}


@pytest.mark.parametrize("run", [stepped, pieces], ids=["steps", "pieces"])
@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_attention_step_by_step_is_causal_attention(options, run, dtype):
    twin = nn.MultiheadAttention(D, N, batch_first=True, **options).double()
    layer = fusednn.MultiheadAttention(D, N, batch_first=True, **options)
    layer.load_state_dict(twin.state_dict())
    theirs = nn.MultiheadAttention(D, N, batch_first=True, **options).to(dtype)
    theirs.load_state_dict(layer.state_dict())
    layer.to(dtype)
    x = torch.randn(B, T, D).to(dtype)

    def whole(net, x):
        return net(x, x, x, attn_mask=causal(T).to(x.dtype), need_weights=False)[0]

    twin.load_state_dict(layer.state_dict())
    ours, state = run(layer, x)
    assert_numerics(ours, whole(theirs, x), whole(twin, x.double()), "output")
    assert len(state) == T and state.key.shape == (B, N, T, D // N)


@pytest.mark.parametrize("norm_first", [False, True])
def test_encoder_layer_step_by_step_is_the_masked_layer(norm_first):
    layer = fusednn.TransformerEncoderLayer(D, N, 32, batch_first=True, norm_first=norm_first).eval()
    x = torch.randn(B, T, D)
    whole = layer(x, causal(T), is_causal=True)
    for run in (stepped, pieces):
        torch.testing.assert_close(run(layer, x)[0], whole)


@pytest.mark.parametrize("norm_first", [False, True])
def test_decoder_layer_step_by_step_is_the_masked_layer(norm_first):
    layer = fusednn.TransformerDecoderLayer(D, N, 32, batch_first=True, norm_first=norm_first).eval()
    x, memory = torch.randn(B, T, D), torch.randn(B, 5, D)
    whole = layer(x, memory, causal(T), tgt_is_causal=True)
    for run in (stepped, pieces):
        torch.testing.assert_close(run(layer, x, memory)[0], whole)
    _, state = layer.step(x[:, 0], None, memory)
    torch.testing.assert_close(layer.step(x[:, 1], state)[0], whole[:, 1])


def test_time_first():
    layer = fusednn.TransformerEncoderLayer(D, N, 32).eval()
    x = torch.randn(T, B, D)
    state, found = None, []
    for t in range(T):
        y, state = layer.step(x[t], state)
        found.append(y)
    torch.testing.assert_close(torch.stack(found), layer(x, causal(T), is_causal=True))


def test_gradients_flow_through_the_steps():
    layer = fusednn.MultiheadAttention(D, N, batch_first=True)
    results = []
    for run in (lambda x: stepped(layer, x)[0], lambda x: layer.prefill(x)[0]):
        torch.manual_seed(1)
        x = torch.randn(B, T, D, requires_grad=True)
        out = run(x)
        results.append((out, *torch.autograd.grad(out.square().sum(), [x, *layer.parameters()])))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_detach_stops_gradients_and_keeps_the_tokens():
    layer = fusednn.MultiheadAttention(D, N, batch_first=True)
    x = torch.randn(B, T, D, requires_grad=True)
    _, state = layer.prefill(x)
    kept = state.detach()
    assert torch.equal(kept.key, state.key) and not kept.key.requires_grad and state.key.requires_grad
    y, _ = layer.step(torch.randn(B, D), kept)
    assert torch.autograd.grad(y.sum(), x, allow_unused=True) == (None,)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_a_state_does_not_change(mode):
    """Two continuations of one state: neither disturbs the other, nor the state."""
    layer = fusednn.MultiheadAttention(D, N, batch_first=True)
    x, a, b = torch.randn(B, 3, D), torch.randn(B, D), torch.randn(B, D)
    with mode():
        _, state = layer.prefill(x)
        before = state.key.clone()
        first, after_a = layer.step(a, state)
        second, after_b = layer.step(b, state)
        assert torch.equal(state.key, before) and len(state) == 3
        assert torch.equal(layer.step(a, state)[0], first)
        torch.testing.assert_close(layer.step(b, after_a)[0], layer.step(b, layer.step(a, state)[1])[0])
        assert not torch.equal(after_a.key, after_b.key)


def test_a_step_copies_nothing_until_the_buffer_is_full():
    layer = fusednn.MultiheadAttention(D, N, batch_first=True)
    places, state = [], None
    with torch.no_grad():
        for _ in range(300):
            _, state = layer.step(torch.randn(B, D), state)
            places.append(state.key.data_ptr())
    assert len(set(places)) <= 4


def test_a_state_of_inference_mode_goes_on_outside_of_it():
    layer = fusednn.MultiheadAttention(D, N, batch_first=True)
    with torch.inference_mode():
        _, state = layer.step(torch.randn(B, D))
    with torch.no_grad():
        y, state = layer.step(torch.randn(B, D), state)
    assert y.shape == (B, D) and len(state) == 2


def test_beam_search_reorders_rows():
    layer = fusednn.MultiheadAttention(D, N, batch_first=True).eval()
    x = torch.randn(3, 4, D)
    _, state = layer.prefill(x)
    rows = torch.tensor([2, 0, 0])
    _, wanted = layer.prefill(x[rows])
    torch.testing.assert_close(state.reorder(rows).key, wanted.key)


def test_one_interface_for_recurrence_and_attention():
    """A model that streams takes either kind of layer."""
    for layer in (fusednn.LSTM(D, D), fusednn.GRU(D, D), fusednn.MinGRU(D, D), fusednn.MultiheadAttention(D, N),
                  fusednn.TransformerEncoderLayer(D, N, 32)):  # fmt: skip
        state = None
        with torch.no_grad():
            for _ in range(3):
                y, state = layer.step(torch.randn(B, D), state)
        assert y.shape == (B, D)


def test_dropout_applies_in_training_alone():
    layer = fusednn.MultiheadAttention(D, N, dropout=0.5, batch_first=True)
    x = torch.randn(B, T, D)
    assert not torch.equal(layer.prefill(x)[0], layer.prefill(x)[0])
    layer.eval()
    assert torch.equal(layer.prefill(x)[0], layer.prefill(x)[0])


def cache(*shape, dtype=torch.float32):
    return KeyValueCache(torch.zeros(shape, dtype=dtype), torch.zeros(shape, dtype=dtype))


ATTENTION = fusednn.MultiheadAttention(D, N, batch_first=True)
DECODER = fusednn.TransformerDecoderLayer(D, N, 32, batch_first=True)
MISTAKES = [
    (r"x_t of shape \[B, 16\], got \[2, 1, 16\]", lambda: ATTENTION.step(torch.zeros(B, 1, D))),
    (r"x_t of shape \[B, 16\], got \[2, 5\]", lambda: ATTENTION.step(torch.zeros(B, 5))),
    ("kdim=8", lambda: fusednn.MultiheadAttention(D, N, kdim=8).step(torch.zeros(B, D))),
    ("key must continue", lambda: ATTENTION.step(torch.zeros(B, D), cache(3, N, 1, D // N))),
    ("key must continue", lambda: ATTENTION.step(torch.zeros(B, D), cache(B, N, 1, D // N, dtype=torch.float64))),
    ("the first token needs memory", lambda: DECODER.step(torch.zeros(B, D))),
    (
        r"memory must be \[B, T, 16\], got \[2, 2, 3\]",
        lambda: DECODER.step(torch.zeros(B, D), None, torch.zeros(B, 2, 3)),
    ),
    (r"key \[B, N, T, E\]", lambda: KeyValueCache(torch.zeros(2, 3))),
    ("the cache is empty", lambda: KeyValueCache().key),
]


@pytest.mark.parametrize(("message", "call"), MISTAKES, ids=[f"{i}-{m[:20]}" for i, (m, _) in enumerate(MISTAKES)])
def test_mistakes_say_what_was_expected(message, call):
    with pytest.raises(ValueError, match=message):
        call()
