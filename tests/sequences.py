"""Layers and inputs for the recurrent tests."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import fusednn
from fusednn.layers.recurrent import RecurrentLayer, layer_of


@dataclass(frozen=True)
class Case:
    """Sizes and options of one layer and its input."""

    T: int
    B: int
    I: int  # noqa: E741
    H: int
    options: dict = field(default_factory=dict)
    packed: bool = False

    def __str__(self) -> str:
        options = "-".join(f"{k}={v}" for k, v in self.options.items())
        return f"T{self.T}-B{self.B}-I{self.I}-H{self.H}" + f"-{options}" * bool(options) + "-packed" * self.packed


CASES = [
    Case(1, 1, 1, 1),
    Case(2, 3, 5, 7),
    Case(17, 9, 8, 31, {"bidirectional": True}),
    Case(113, 1, 3, 40),
    Case(5, 33, 16, 17, {"num_layers": 2, "batch_first": True}),
    Case(9, 8, 20, 128, {"bias": False}),
    Case(3, 2, 65, 193, {"num_layers": 3, "bidirectional": True}),
    Case(21, 16, 4, 64),
    Case(12, 6, 5, 33, {"num_layers": 2, "bidirectional": True}, packed=True),
    Case(30, 17, 9, 16, packed=True),
]


def make_layer(cell: str, case: Case, dtype=torch.float64, **more) -> RecurrentLayer:
    """A fusednn layer that runs ``cell``."""
    layer_class, arguments = layer_of(cell)
    layer = layer_class(case.I, case.H, **arguments, **case.options, **more)
    if cell == "rnn_relu" and layer.bias:
        # Away from the kink: a unit whose sign is decided by rounding has no gradient to compare.
        for name, parameter in layer.named_parameters():
            if name.startswith("bias_ih"):
                parameter.data[0::2] += 3
                parameter.data[1::2] -= 3
            elif name != "weight_ih_l0":
                parameter.data *= 0.25
    return layer.to(dtype)


def torch_twin(layer: RecurrentLayer) -> nn.Module:
    """torch's own layer with the same parameters; the plain reference where torch has no such cell."""
    arguments = {"bidirectional": layer.bidirectional, "batch_first": layer.batch_first, "bias": layer.bias}
    sizes = (layer.input_size, layer.hidden_size, layer.num_layers)
    if layer.cell.startswith("rnn_"):
        twin = nn.RNN(*sizes, nonlinearity=layer.cell.removeprefix("rnn_"), **arguments)
    elif layer.cell == "lstm":
        twin = nn.LSTM(*sizes, proj_size=layer.proj_size, **arguments)
    elif layer.cell == "gru":
        twin = nn.GRU(*sizes, **arguments)
    else:
        return retyped(layer, layer.weight_ih_l0.dtype, strategy="reference")
    twin.to(layer.weight_ih_l0.dtype).load_state_dict(layer.state_dict())
    return twin


def retyped(layer: RecurrentLayer, dtype: torch.dtype, strategy: str) -> RecurrentLayer:
    """A copy in another dtype and with another strategy; the copy in fp64 on the reference is the truth."""
    layer_class, arguments = layer_of(layer.cell)
    if layer.proj_size:
        arguments = {**arguments, "proj_size": layer.proj_size}
    copy = layer_class(
        layer.input_size,
        layer.hidden_size,
        layer.num_layers,
        bidirectional=layer.bidirectional,
        batch_first=layer.batch_first,
        bias=layer.bias,
        strategy=strategy,
        **arguments,
    ).to(dtype)
    copy.load_state_dict(layer.state_dict())
    return copy


def make_input(case: Case, dtype=torch.float64) -> Tensor | PackedSequence:
    """Input rounded to ``dtype``; packed with lengths that differ where the case says so."""
    shape = (case.B, case.T, case.I) if case.options.get("batch_first") else (case.T, case.B, case.I)
    x = torch.randn(shape, dtype=torch.float64).to(dtype)
    if not case.packed:
        return x
    lengths = torch.randint(1, case.T + 1, (case.B,))
    lengths[case.B // 2] = case.T
    return pack_padded_sequence(x, lengths, enforce_sorted=False)


def cast(x: Tensor | PackedSequence, dtype: torch.dtype):
    """A leaf copy of the input in another dtype, and the tensor to differentiate by."""
    if isinstance(x, PackedSequence):
        data = x.data.detach().to(dtype).requires_grad_()
        return PackedSequence(data, *x[1:]), data
    data = x.detach().to(dtype).requires_grad_()
    return data, data


def states_of(hidden) -> tuple[Tensor, ...]:
    """h, or h and c, as a tuple."""
    return hidden if isinstance(hidden, tuple) else (hidden,)


def everything(layer: nn.Module, x, hx=None) -> dict[str, Tensor]:
    """Outputs, final states and every gradient of a weighted sum of them, by name."""
    dtype = next(layer.parameters()).dtype
    inputs, leaf = cast(x, dtype)
    states = None
    if hx is not None:
        states = tuple(state.detach().to(dtype).requires_grad_() for state in hx)
        start = states if len(states) == 2 else states[0]
        y, hidden = layer(inputs, start)
    else:
        y, hidden = layer(inputs)
    results = {"output": y.data if isinstance(y, PackedSequence) else y}
    results |= {name: s for name, s in zip(("h_n", "c_n"), states_of(hidden), strict=False)}
    generator = torch.Generator().manual_seed(7)
    weights = [torch.randn(r.shape, generator=generator, dtype=torch.float64).to(dtype) for r in results.values()]
    loss = sum((r * w).sum() for r, w in zip(results.values(), weights, strict=True))
    wanted = {"x": leaf, **dict(layer.named_parameters())}
    if states is not None:
        wanted |= {f"{name}_0": s for name, s in zip(("h", "c"), states, strict=False)}
    gradients = torch.autograd.grad(loss, list(wanted.values()))
    results |= {f"d_{name}": g for name, g in zip(wanted, gradients, strict=True)}
    return {name: value.detach() for name, value in results.items()}


def initial_states(layer: RecurrentLayer, batch: int) -> tuple[Tensor, ...]:
    """Random initial states in fp64, rounded to the layer's dtype so that every copy starts from the same."""
    stack = layer.num_layers * (2 if layer.bidirectional else 1)
    dtype = layer.weight_ih_l0.dtype
    shapes = [(stack, batch, layer.proj_size or layer.hidden_size)]
    if fusednn.reference.cells.CELLS[layer.cell].has_cell_state:
        shapes.append((stack, batch, layer.hidden_size))
    return tuple(torch.randn(shape, dtype=torch.float64).to(dtype) for shape in shapes)
