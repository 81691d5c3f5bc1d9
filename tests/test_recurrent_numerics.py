"""Every output, state and gradient of every layer meets the numerics rule, in every dtype."""

from __future__ import annotations

import pytest
import torch

from numerics import assert_numerics
from sequences import CASES, Case, everything, initial_states, make_input, make_layer, retyped, torch_twin

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
PROJECTED = Case(11, 5, 6, 24, {"proj_size": 9, "num_layers": 2, "bidirectional": True})


def check(layer, case, dtype):
    x, hx = make_input(case, dtype), initial_states(layer, case.B)
    ours = everything(layer, x, hx)
    torchs = everything(torch_twin(layer), x, hx)
    truth = everything(retyped(layer, torch.float64, "reference"), x, hx)
    for name in truth:
        row = "rows" if name.startswith("d_weight") else "rule"
        assert_numerics(ours[name], torchs[name], truth[name], name, row)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_auto_meets_the_rule(cell, case, dtype):
    check(make_layer(cell, case, dtype), case, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("packed", [False, True])
def test_projection_meets_the_rule(dtype, packed):
    case = Case(PROJECTED.T, PROJECTED.B, PROJECTED.I, PROJECTED.H, PROJECTED.options, packed)
    check(make_layer("lstm", case, dtype), case, dtype)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_loop_meets_the_rule(cell, case):
    check(make_layer(cell, case, torch.float32, strategy="loop"), case, torch.float32)


@pytest.mark.parametrize("cell", ["rnn_tanh", "rnn_relu", "lstm", "gru"])
@pytest.mark.parametrize("case", [*CASES, PROJECTED], ids=str)
def test_reference_is_torch(cell, case):
    """In fp64 the definition of correct agrees with torch.nn to a few roundings."""
    if "proj_size" in case.options and cell != "lstm":
        case = Case(case.T, case.B, case.I, case.H, {k: v for k, v in case.options.items() if k != "proj_size"})
    layer = make_layer(cell, case, strategy="reference")
    x, hx = make_input(case), initial_states(layer, case.B)
    ours, torchs = everything(layer, x, hx), everything(torch_twin(layer), x, hx)
    for name in torchs:
        torch.testing.assert_close(ours[name], torchs[name], rtol=1e-11, atol=1e-11)


def test_reset_before_is_the_printed_form():
    """n = tanh(W x + U (r h)), h' = (1 - z) h + z n, written out once more by hand."""
    case = Case(4, 2, 3, 5)
    layer = make_layer("gru_reset_before", case)
    x, (h0,) = make_input(case), initial_states(layer, case.B)
    h = h0[0]
    w, u, b, d = layer.weight_ih_l0, layer.weight_hh_l0, layer.bias_ih_l0, layer.bias_hh_l0
    (wr, wz, wn), (ur, uz, un) = w.chunk(3), u.chunk(3)
    (br, bz, bn), (dr, dz, dn) = b.chunk(3), d.chunk(3)
    for x_t in x:
        r = torch.sigmoid(x_t @ wr.T + br + h @ ur.T + dr)
        z = torch.sigmoid(x_t @ wz.T + bz + h @ uz.T + dz)
        n = torch.tanh(x_t @ wn.T + bn + (r * h) @ un.T + dn)
        h = (1 - z) * h + z * n
    torch.testing.assert_close(layer(x, h0)[1][0], h, rtol=1e-12, atol=1e-12)
