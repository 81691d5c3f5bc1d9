"""A compiled layer takes one graph for all lengths, the small and the large, and computes what it does uncompiled."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_leaves

import fusednn

LENGTHS = (5, 6, 17, 600, 2)  # 600: more scores, and more pairs in a window, than any choice calls few
B, E = 3, 8
FIRST = {"batch_first": True, "dtype": torch.float64}


def sequences(length, *more):
    """One tensor [B, T, E] for each number, which is added to T."""
    return tuple(torch.randn(B, length + n, E, dtype=torch.float64) for n in more)


def causal(length):
    return nn.Transformer.generate_square_subsequent_mask(length, dtype=torch.float64)


def in_window(x):
    heads = x.unflatten(-1, (2, 4)).transpose(1, 2)
    return fusednn.functional.scaled_dot_product_attention(heads, heads, heads, is_causal=True, window=(3, 0))


def without_padding(x):
    rows = x.flatten(0, 1).unflatten(-1, (2, 4))
    starts = torch.arange(B + 1, dtype=torch.int32) * x.shape[1]
    return fusednn.functional.varlen_attention(rows, rows, rows, starts, starts, x.shape[1], x.shape[1])


# What is compiled, and what it is called with at a length.
LAYERS = {
    "attention": (
        lambda: (lambda layer: lambda q, k: layer(q, k, k, need_weights=False)[0])(
            fusednn.MultiheadAttention(E, 2, **FIRST)
        ),
        lambda T: sequences(T, 0, 2),
    ),
    "encoder": (lambda: fusednn.TransformerEncoderLayer(E, 2, 16, **FIRST), lambda T: sequences(T, 0)),
    "masked encoder": (
        lambda: fusednn.TransformerEncoderLayer(E, 2, 16, **FIRST),
        lambda T: (*sequences(T, 0), causal(T), torch.arange(T).expand(B, T) >= T - 1),
    ),
    "decoder": (
        lambda: fusednn.TransformerDecoderLayer(E, 2, 16, **FIRST),
        lambda T: (*sequences(T, 0, 2), causal(T)),
    ),
    "prefill": (lambda: fusednn.TransformerEncoderLayer(E, 2, 16, **FIRST).eval().prefill, lambda T: sequences(T, 0)),
    "window": (lambda: in_window, lambda T: sequences(T, 0)),
    "without padding": (lambda: without_padding, lambda T: sequences(T, 0)),
    "additive": (
        lambda: fusednn.AdditiveAttention(E, E, 4, dtype=torch.float64),
        lambda T: sequences(T, 0, 2),
    ),
    "MinGRU": (lambda: fusednn.MinGRU(E, 4, 2, **FIRST), lambda T: sequences(T, 0)),
    "MinLSTM": (lambda: fusednn.MinLSTM(E, 4, **FIRST), lambda T: sequences(T, 0)),
}
OFTEN = [("attention", True), ("attention", None), ("window", True), ("additive", True), ("MinGRU", True)]
CASES = [(name, dynamic) for name in LAYERS for dynamic in (True, None)]


def counted(call, dynamic):
    """The call compiled, and the list of its graphs so far."""
    torch.compiler.reset()
    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph.forward

    return torch.compile(call, fullgraph=True, dynamic=dynamic, backend=backend), graphs


@pytest.mark.parametrize(
    "name,dynamic", [pytest.param(*case, marks=() if case in OFTEN else pytest.mark.slow) for case in CASES]
)
def test_all_lengths_take_one_graph(name, dynamic):
    """A second one where torch tries a graph for the first length alone, which is its default."""
    make, inputs = LAYERS[name]
    layer = make()
    if isinstance(layer, nn.Module):
        layer.eval()
    compiled, graphs = counted(layer, dynamic)
    for length in LENGTHS:
        given = inputs(length)
        found, expected = tree_leaves(compiled(*given)), tree_leaves(layer(*given))
        torch.testing.assert_close(*([x for x in side if isinstance(x, torch.Tensor)] for side in (found, expected)))
    assert 1 <= len(graphs) <= (1 if dynamic else 2)


@pytest.mark.slow
def test_steps_take_one_graph_once_there_is_more_than_one_token_to_remember():
    """The first two are torch's: no state at all, and a size of one."""
    layer, state, expected = fusednn.MultiheadAttention(E, 2), None, None
    compiled, graphs = counted(layer.step, True)
    with torch.no_grad():
        for _ in range(7):
            x = torch.randn(B, E)
            y, state = compiled(x, state)
            y_expected, expected = layer.step(x, expected)
            torch.testing.assert_close(y, y_expected)
    assert len(state) == 7 and len(graphs) == 3
