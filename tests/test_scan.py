"""The scan and its layers: numerics, gradients, time in segments, streaming, transformations."""

from __future__ import annotations

import copy

import pytest
import torch

import fusednn
from fusednn.functional import scan
from fusednn.reference import scan as reference
from fusednn.reference.scan import SCAN_CELLS
from numerics import assert_numerics

LAYERS = {"min_gru": fusednn.MinGRU, "min_lstm": fusednn.MinLSTM}
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
SIZES = [(1, 1, 1), (2, 3, 5), (63, 2, 17), (113, 9, 33), (17, 1, 193)]


@pytest.fixture(params=sorted(SCAN_CELLS))
def kind(request):
    return request.param


def inputs(kind, T, B, H, dtype, device="cpu"):
    gates = (3 * torch.randn(T, B, len(SCAN_CELLS[kind].gates) * H)).to(device, dtype).requires_grad_()
    return gates, torch.randn(B, H).to(device, dtype).requires_grad_()


def everything(function, kind, gates, h0, grad):
    y = function(gates, h0) if function is not scan else scan(kind, gates, h0)
    return dict(zip(("y", "gates", "h0"), (y, *torch.autograd.grad(y, (gates, h0), grad.to(y.dtype))), strict=True))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_scan_meets_the_rule(kind, size, dtype, device):
    """The yardstick is the loop of torch operators in the same dtype."""
    gates, h0 = inputs(kind, *size, dtype, device)
    grad = torch.randn(size, device=device)
    plain = lambda g, h: reference.scan(g, h, kind)  # noqa: E731
    ours, torchs = everything(scan, kind, gates, h0, grad), everything(plain, kind, gates, h0, grad)
    wide = (gates.detach().double().requires_grad_(), h0.detach().double().requires_grad_())
    truth = everything(plain, kind, *wide, grad.to(dtype))
    for name in truth:
        assert_numerics(ours[name], torchs[name], truth[name], name, "single" if truth[name].numel() == 1 else "rule")


def test_gradcheck_to_second_order(kind):
    gates, h0 = inputs(kind, 4, 2, 3, torch.float64)
    assert torch.autograd.gradcheck(lambda g, h: scan(kind, g, h), (gates, h0))
    assert torch.autograd.gradgradcheck(lambda g, h: scan(kind, g, h), (gates, h0))


def test_extreme_gates_stay_finite(kind):
    for dtype in DTYPES:
        big = 6e4 if dtype == torch.float16 else 1e30
        gates = torch.tensor([big, -big, 100.0, -100.0, 0.0]).repeat(3, 2, len(SCAN_CELLS[kind].gates)).to(dtype)
        gates[..., -5:] = 1  # the candidate itself may be as large as it likes, and then h is
        gates.requires_grad_()
        y = scan(kind, gates, torch.ones(2, 5, dtype=dtype))
        y.sum().backward()
        assert y.isfinite().all() and gates.grad.isfinite().all()


def test_the_operator_passes_opcheck(kind):
    gates, h0 = inputs(kind, 4, 2, 3, torch.float32)
    torch.library.opcheck(torch.ops.fusednn.scan.default, (gates, h0, kind))


def test_a_step_at_a_time_is_the_sequence(kind):
    layer = LAYERS[kind](3, 7, num_layers=2)
    x = torch.randn(6, 4, 3)
    whole, h_n = layer(x)
    state, outputs = None, []
    for x_t in x:
        y_t, state = layer.step(x_t, state)
        outputs.append(y_t)
    torch.testing.assert_close(torch.stack(outputs), whole)
    torch.testing.assert_close(state, h_n)


def test_layouts_and_initial_states_agree(kind):
    layer = LAYERS[kind](3, 7, num_layers=2)
    first = copy.deepcopy(layer)
    first.batch_first = True
    x, hx = torch.randn(6, 4, 3), torch.randn(2, 4, 7)
    y, h_n = layer(x, hx)
    torch.testing.assert_close(first(x.transpose(0, 1), hx)[0].transpose(0, 1), y)
    one, h_one = layer(x[:, 1], hx[:, 1])
    torch.testing.assert_close((one, h_one), (y[:, 1], h_n[:, 1]))
    half, middle = layer(x[:3], hx)
    torch.testing.assert_close(torch.cat([half, layer(x[3:], middle)[0]]), y)


def test_compile_vmap_and_autocast(kind):
    layer, x = LAYERS[kind](3, 7), torch.randn(6, 4, 3)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x)[0], layer(x)[0])
    gates, h0 = (t.detach() for t in inputs(kind, 5, 2, 3, torch.float32))
    many = torch.stack([gates, 2 * gates])
    got = torch.func.vmap(lambda g: scan(kind, g, h0))(many)
    torch.testing.assert_close(got[1], scan(kind, 2 * gates, h0))
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x)[0].dtype == torch.bfloat16


def test_empty_batches_and_sequences(kind):
    layer = LAYERS[kind](3, 7)
    assert layer(torch.zeros(4, 0, 3))[0].shape == (4, 0, 7)
    hx = torch.randn(1, 2, 7)
    y, h_n = layer(torch.zeros(0, 2, 3), hx)
    assert y.shape == (0, 2, 7) and torch.equal(h_n, hx)


def test_a_nan_reaches_no_other_row(kind):
    gates, h0 = (t.detach() for t in inputs(kind, 5, 3, 9, torch.float32))
    clean = scan(kind, gates, h0)
    gates[2, 1, 4] = torch.nan
    y = scan(kind, gates, h0)
    assert torch.equal(y[:, [0, 2]], clean[:, [0, 2]]) and y[2:, 1, 4].isnan().all()


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"cell": "gru"}, ValueError, "cell must be one of min_gru, min_lstm, got 'gru'"),
        ({"gates": torch.zeros(2, 3, 5)}, ValueError, r"expected gates \[T, B, 2 \* H\]"),
        ({"h0": torch.zeros(3, 4, dtype=torch.float64)}, TypeError, "h0 must have the dtype and device of gates"),
    ],
)
def test_bad_arguments_are_refused(change, error, message):
    arguments = {"cell": "min_gru", "gates": torch.zeros(2, 3, 8), "h0": torch.zeros(3, 4)} | change
    with pytest.raises(error, match=message):
        scan(**arguments)


def test_bad_layers_and_inputs_are_refused():
    with pytest.raises(ValueError, match="hidden_size must be at least 1, got 0"):
        fusednn.MinGRU(3, 0)
    with pytest.raises(TypeError, match="input_size must be an int, got float"):
        fusednn.MinGRU(3.0, 4)
    with pytest.raises(ValueError, match="dropout must be between 0 and 1"):
        fusednn.MinLSTM(3, 4, dropout=2)
    layer = fusednn.MinLSTM(3, 4)
    with pytest.raises(ValueError, match=r"MinLSTM expects input \[T, B, 3\]"):
        layer(torch.zeros(2, 2, 4))
    with pytest.raises(ValueError, match=r"expects hx \[1, 2, 4\], got \[1, 1, 4\]"):
        layer(torch.zeros(5, 2, 3), torch.zeros(1, 1, 4))
    with pytest.raises(ValueError, match="step"):
        layer.step(torch.zeros(5, 2, 3))


@pytest.mark.parametrize("batch_first", [False, True])
def test_lengths_are_each_sequence_by_itself_whatever_the_padding_holds(kind, batch_first):
    layer = LAYERS[kind](3, 4, 2, batch_first=batch_first, dtype=torch.float64)
    lengths, time = torch.tensor([6, 0, 2], dtype=torch.uint8), 1 if batch_first else 0
    x, h0 = torch.randn(6, 3, 3, dtype=torch.float64), torch.randn(2, 3, 4, dtype=torch.float64)
    x[2:, 2] = torch.nan
    x = (x.transpose(0, 1) if batch_first else x).requires_grad_()
    y, h_n = layer(x, h0, lengths=lengths)
    for row, (length, of_row, steps) in enumerate(zip(lengths, y.unbind(1 - time), x.unbind(1 - time), strict=True)):
        assert not of_row[length:].any()
        expected = layer(steps[:length], h0[:, row])
        torch.testing.assert_close((of_row[:length], h_n[:, row]), expected)
    (y.sin().sum() + h_n.sum()).backward()
    assert all(t.grad.isfinite().all() for t in (x, *layer.parameters()))


def test_lengths_that_do_not_fit_are_refused(kind):
    layer, x = LAYERS[kind](3, 4), torch.zeros(5, 2, 3)
    with pytest.raises(ValueError, match="between 0 and T = 5, got 6"):
        layer(x, lengths=torch.tensor([6, 1]))
    with pytest.raises(ValueError, match="of a padded batch, .* got 2 dimensions"):
        layer(x[:, 0], lengths=torch.tensor([5]))


def test_a_layer_learns_to_remember(kind):
    """The first input of 8 decides the answer at the end."""
    torch.manual_seed(1)
    layer, head = LAYERS[kind](2, 16), torch.nn.Linear(16, 1)
    optimiser = torch.optim.Adam([*layer.parameters(), *head.parameters()], lr=0.03)
    for _ in range(300):
        x = torch.cat([torch.randn(8, 32, 1), torch.zeros(8, 32, 1)], dim=2)
        x[0, :, 1] = 1
        target = (x[0, :, :1] > 0).float()
        loss = torch.nn.functional.binary_cross_entropy_with_logits(head(layer(x)[1][-1]), target)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert loss < 0.2
