"""The systems of fusednn.models: what a step, a state, a mask and an option of each means. Learning: the next file."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import nn

import fusednn
from fusednn import models
from fusednn.models.attention import RelativeAttention, WindowedAttention

pytestmark = pytest.mark.usefixtures("one_thread")
V, B, T = 11, 2, 9

LANGUAGE_MODELS = {
    "RNN": lambda: models.RecurrentLM(V, 8, 12, "RNN"),
    "LSTM": lambda: models.RecurrentLM(V, 8, 12, "LSTM", 2),
    "GRU, tied": lambda: models.RecurrentLM(V, 8, 8, "GRU", tied=True),
    "MinGRU": lambda: models.RecurrentLM(V, 8, 12, "MinGRU"),
    "projected": lambda: models.RecurrentLM(V, 8, 12, proj_size=8, tied=True),
    "zoneout": lambda: models.RecurrentLM(V, 8, 12, zoneout=(0.1, 0.2)),
    "AWD": lambda: models.AWDLSTM(V, 8, 12, 2),
    "transformer": lambda: models.TransformerLM(V, 16, 4),
    "transformer, sines": lambda: models.TransformerLM(V, 16, 4, positions="sinusoidal", tied=False),
    "Transformer-XL": lambda: models.TransformerXL(V, 16, 4, reach=3),
}
FROM_SOURCE = {
    "seq2seq": lambda: models.Seq2Seq(7, V, 8, 12, 2, reverse=True),
    "attention": lambda: models.AttentionSeq2Seq(7, V, 8, 12),
    "encoder-decoder": lambda: models.EncoderDecoder(V, 16, 4),
}
ALL = LANGUAGE_MODELS | FROM_SOURCE


def begin(name):
    """A model in evaluation, a state to start from, and the logits of whole sequences, with their tokens."""
    model, tokens, source = ALL[name]().eval(), torch.randint(V, (B, T)), torch.randint(7, (B, 5))
    if name in LANGUAGE_MODELS:
        return model, None, tokens, model(tokens)
    whole = model(source, tokens)
    return model, model.start(source), tokens, whole[0] if isinstance(whole, tuple) else whole


@pytest.mark.parametrize("name", ALL)
def test_step_by_step_is_the_whole(name):
    model, state, tokens, whole = begin(name)
    found = []
    for token in tokens.unbind(1):
        logits, state = model.step(token, state)
        found.append(logits)
    torch.testing.assert_close(torch.stack(found, 1), whole)


@pytest.mark.parametrize("name", ALL)
def test_piece_by_piece_is_the_whole(name):
    model, state, tokens, whole = begin(name)
    found = []
    for piece in tokens.split([4, 1, T - 5], 1):
        logits, state = model.prefill(piece, models.detach(state))
        found.append(logits)
    torch.testing.assert_close(torch.cat(found, 1), whole)


@pytest.mark.parametrize("name", ALL)
def test_detach_keeps_the_values_and_drops_the_history(name):
    model, state, tokens, _ = begin(name)
    _, state = model.prefill(tokens, state)
    for whole, cut in zip(tensors(state), tensors(models.detach(state)), strict=True):
        assert torch.equal(whole, cut) and not cut.requires_grad


def tensors(state):
    if isinstance(state, tuple):
        return [t for part in state for t in tensors(part)]
    return [state] if isinstance(state, torch.Tensor) else [state.key, state.value]


@pytest.mark.parametrize("name", ALL)
def test_greedy_generation_follows_the_logits(name):
    model, state, tokens, _ = begin(name)
    added = model.generate(tokens[:, :3], 4, state)
    logits, _ = model.prefill(torch.cat([tokens[:, :3], added], 1), state)
    assert torch.equal(logits[:, 2:-1].argmax(-1), added)


def test_generation_draws_from_the_softmax():
    model = models.RecurrentLM(V, 8, 12).eval()
    prompt = torch.zeros(4000, 1, dtype=torch.long)
    drawn = model.generate(prompt, 1, temperature=0.5, generator=torch.Generator().manual_seed(0))
    expected = torch.softmax(model(prompt[:1])[0, 0] / 0.5, -1)
    torch.testing.assert_close(drawn.flatten().bincount(minlength=V) / 4000, expected, atol=0.03, rtol=0)


@pytest.mark.parametrize("name", ALL)
def test_every_parameter_gets_a_gradient(name):
    model = ALL[name]().train()
    tokens = torch.randint(7, (B, T))
    logits = model(tokens) if name in LANGUAGE_MODELS else model(tokens, tokens)
    (logits[0] if isinstance(logits, tuple) else logits).square().sum().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_tied_weights_are_one():
    model = models.TransformerLM(V, 16, 4)
    assert model.vocabulary.out.weight is model.vocabulary.embedding.weight
    loose = models.TransformerLM(V, 16, 4, tied=False)
    assert sum(p.numel() for p in loose.parameters()) - sum(p.numel() for p in model.parameters()) == V * 16
    with pytest.raises(ValueError, match="one width, got 8 and 12"):
        models.RecurrentLM(V, 8, 12, tied=True)


def test_sines_have_the_papers_wavelengths():
    table = models.sinusoidal(100, 6)
    for i in range(3):
        angle = torch.arange(100.0) / 10_000 ** (2 * i / 6)
        torch.testing.assert_close(table[:, 2 * i], angle.sin(), atol=1e-4, rtol=0)
        torch.testing.assert_close(table[:, 2 * i + 1], angle.cos(), atol=1e-4, rtol=0)


def test_relative_bias_shares_far_distances():
    bias = models.RelativeBias(heads=2, causal=True, buckets=8, furthest=20)
    nn.init.normal_(bias.weight)
    b = bias(40, 40)[0]
    assert torch.equal(b[5:, 0], bias(35, 40)[0, :, 0]), "queries stand at the last keys"
    assert len(b[30, :31].unique()) == 8 and len(b[30, 27:31].unique()) == 4, "near ones have numbers of their own"
    assert (b[39, :20] == b[39, 0]).all()
    both = models.RelativeBias(heads=2, causal=False, buckets=8, furthest=20)
    nn.init.normal_(both.weight)
    assert both(5, 5)[0, 2, 1] != both(5, 5)[0, 2, 3], "left and right differ"
    assert torch.equal(both(5, 5)[0].diagonal(1)[:1].expand(4), both(5, 5)[0].diagonal(1))


def test_bert_ignores_padding():
    model = models.BertEncoder(V, 16, 4).eval()
    tokens, padding = torch.randint(V, (B, T)), torch.zeros(B, T, dtype=torch.bool)
    padding[1, 6:] = True
    torch.testing.assert_close(model(tokens, padding)[1, :6], model(tokens[1:, :6])[0])
    torch.testing.assert_close(model(tokens, padding)[0], model(tokens)[0])


def test_bert_without_positions_cannot_tell_orders_apart():
    tokens, order = torch.randint(V, (B, T)), torch.randperm(T)
    blind, sighted = (models.BertEncoder(V, 16, 4, positions=p).eval() for p in (None, "sinusoidal"))
    torch.testing.assert_close(blind(tokens)[:, order], blind(tokens[:, order]))
    assert not torch.allclose(sighted(tokens)[:, order], sighted(tokens[:, order]), atol=1e-2)


def test_longformer_attends_to_neighbours_and_global_tokens():
    """Against the same projections under one mask of the whole matrix."""
    layer = WindowedAttention(16, 4, window=2, global_tokens=2)
    x = torch.randn(B, 12, 16)
    i = torch.arange(12)
    mask = ((i[:, None] - i).abs() <= 2) | (i < 2) | (i[:, None] < 2)
    seen = layer.remember(x)
    q = layer._split(layer.query(x))
    wanted = layer._join(fusednn.functional.scaled_dot_product_attention(q, seen.key, seen.value, mask))
    torch.testing.assert_close(layer(x, seen), wanted)


def test_transformer_xl_scores_are_the_papers():
    layer, x = RelativeAttention(8, 2, reach=4), torch.randn(1, 5, 8)
    nn.init.normal_(layer.content_bias)
    nn.init.normal_(layer.position_bias)
    q, k, v = (part.view(5, 2, 4).transpose(0, 1) for part in (layer.query(x), layer.key(x), layer.value(x)))
    r = layer.position(models.sinusoidal(5, 8)).view(5, 2, 4).transpose(0, 1)
    scores = torch.full((2, 5, 5), -torch.inf)
    for i in range(5):
        for j in range(i + 1):
            content = ((q[:, i] + layer.content_bias[:, 0]) * k[:, j]).sum(-1)
            scores[:, i, j] = (content + ((q[:, i] + layer.position_bias[:, 0]) * r[:, i - j]).sum(-1)) / 2
    wanted = layer.out((torch.softmax(scores, -1) @ v).transpose(0, 1).flatten(1))
    torch.testing.assert_close(layer(x, layer.remember(x))[0], wanted)


def test_transformer_xl_sees_no_further_than_its_layers_reach():
    model = models.TransformerXL(V, 16, 4, reach=3, num_layers=2).eval()
    a = torch.randint(V, (1, 12))
    b = a.clone()
    b[0, 2] = (b[0, 2] + 1) % V
    changed = (model(a) - model(b)).abs().amax(-1)[0] > 1e-5
    assert changed.tolist() == [2 <= t <= 2 + 6 for t in range(12)]


def test_alignment_is_a_distribution_over_the_source():
    model = models.AttentionSeq2Seq(7, V, 8, 12)
    _, alignment = model(torch.randint(7, (B, 5)), torch.randint(V, (B, 3)))
    assert alignment.shape == (B, 3, 5)
    torch.testing.assert_close(alignment.sum(-1), torch.ones(B, 3))


def test_awd_drops_weights_units_and_words_in_training_alone():
    model = models.AWDLSTM(V, 8, 12, num_layers=1, weight_drop=0.5, dropout=0.0, inputs=0.0, words=0.0)
    tokens = torch.randint(V, (B, T))
    plain = fusednn.LSTM(8, 8, batch_first=True)
    plain.load_state_dict(model.layers[0].state_dict())
    wanted = model.vocabulary.logits(plain(model.vocabulary(tokens))[0])
    torch.testing.assert_close(model.eval()(tokens), wanted)
    assert not torch.allclose(model.train()(tokens), wanted)
    assert model.layers[0].options == {"weight_drop": 0.5}


def test_locked_dropout_and_dropped_words_last_for_the_sequence():
    model = models.AWDLSTM(V, 8, 12, num_layers=1, weight_drop=0.0, dropout=0.0, inputs=0.0, words=0.5)
    tokens = torch.arange(V).repeat(2).unsqueeze(0)
    embedded = model._embed(tokens)
    gone = (embedded == 0).all(-1)[0]
    assert torch.equal(gone[:V], gone[V:]) and 0 < gone.sum() < 2 * V
    dropped = models.awd.locked_dropout(torch.ones(3, 7, 50), 0.5, True)
    assert (dropped == dropped[:, :1]).all() and not torch.equal(dropped[0], dropped[1])


def test_zoneout_applies_in_training():
    torch.manual_seed(0)
    model = models.RecurrentLM(V, 8, 12, zoneout=0.5)
    tokens = torch.randint(V, (B, T))
    assert not torch.allclose(model(tokens), model(tokens))
    model.eval()
    assert torch.equal(model(tokens), model(tokens))


def test_gradients_vanish_by_distance_and_the_identity_keeps_them():
    """At torch's initialisation an RNN's gradient is a millionth after 25 steps; from the identity it arrives whole."""
    ratios = {}
    for name, layer in {
        "RNN": fusednn.RNN(4, 32, batch_first=True),
        "IRNN": models.identity_(fusednn.RNN(4, 32, nonlinearity="relu", batch_first=True)),
        "LSTM": fusednn.LSTM(4, 32),
        "LSTM, forget bias 3": models.forget_bias_(fusednn.LSTM(4, 32), 3.0),
    }.items():
        with models.GradientTracker(layer.double()) as tracker:
            x = torch.randn(4, 40, 4, dtype=torch.float64)
            y, _ = layer(x if layer.batch_first else x.transpose(0, 1))
            (y[:, -1] if layer.batch_first else y[-1]).sum().backward()
        norms = tracker.by_distance()
        ratios[name] = float(norms[25] / norms[0])
    assert ratios["RNN"] < 1e-4 and ratios["IRNN"] > 0.05
    assert ratios["LSTM"] < 1e-2 * ratios["LSTM, forget bias 3"]


def test_tracked_gradients_are_autograds():
    layer, x = fusednn.MultiheadAttention(8, 2, batch_first=True), torch.randn(B, T, 8, requires_grad=True)
    with models.GradientTracker(layer) as tracker:
        layer(torch.randn(B, T, 8), x, x)
        (layer(x, x, x)[0].square().sum() + x.sum()).backward()
    (wanted,) = torch.autograd.grad(layer(x, x, x)[0].square().sum(), x)
    torch.testing.assert_close(tracker.by_distance(), wanted.square().sum((0, 2)).sqrt().flip(0))
    before = tracker.by_distance()
    layer(x, x, x)[0].sum().backward()
    assert torch.equal(tracker.by_distance(), before), "outside of it nothing is watched"


def test_initialisations_refuse_other_layers():
    with pytest.raises(ValueError, match=r"weight_hh_l0 of shape \[H, H\]"):
        models.identity_(fusednn.GRU(3, 4))
    with pytest.raises(ValueError, match="only an LSTM has a forget gate, got GRU"):
        models.forget_bias_(fusednn.GRU(3, 4))


ONE = torch.zeros(B, dtype=torch.long)
MISTAKES = {
    "rank of tokens": (r"\[B, T\], got \[2\]", lambda: models.RecurrentLM(V, 8, 12)(ONE)),
    "rank of a step": (r"\[B\], got shape \[2, 1\]", lambda: models.TransformerLM(V, 16, 4).step(ONE[:, None])),
    "cell": ("cell must be one of RNN, LSTM, GRU", lambda: models.RecurrentLM(V, 8, 12, "TLSTM")),
    "positions": ("'learned' or 'sinusoidal', got 'other'", lambda: models.BertEncoder(V, 16, 4, positions="other")),
    "longest": (
        "has 4 positions, the sequence 9",
        lambda: models.TransformerLM(V, 16, 4, longest=4)(torch.zeros(B, T, dtype=torch.long)),
    ),
    "no source": (r"start\(source\) gives it", lambda: models.Seq2Seq(7, V, 8, 12).step(ONE)),
    "no source for attention": (r"start\(source\) gives it", lambda: models.AttentionSeq2Seq(7, V, 8, 12).step(ONE)),
    "heads": ("heads must divide width=16, got 3", lambda: models.EncoderDecoder(V, 16, 3)),
    "reach": ("reach must be at least 1", lambda: models.TransformerXL(V, 16, 4, reach=0)),
    "width": ("width must be even", lambda: models.sinusoidal(4, 3)),
    "buckets": ("furthest > buckets / 2", lambda: models.RelativeBias(2, True, buckets=8, furthest=3)),
    "probability": ("between 0 and 1", lambda: models.AWDLSTM(V, 8, 12, words=1.5)),
    "prompt": ("needs a prompt", lambda: models.RecurrentLM(V, 8, 12).generate(ONE[:, None][:, :0], 2)),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_say_what_was_expected(name):
    message, call = MISTAKES[name]
    with pytest.raises(ValueError, match=message):
        call()


def test_no_gradient_is_an_error():
    with pytest.raises(RuntimeError, match="no gradient has arrived"):
        models.GradientTracker(nn.Linear(2, 2)).by_distance()


def test_the_package_itself_does_not_import_them():
    code = "import sys, fusednn; assert 'fusednn.models' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
