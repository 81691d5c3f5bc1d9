"""The operator library ``torch.ops.fusednn``: schemas, shapes for tracing, gradients, and what runs on which device.

Letters: B batch, T time, I input size, H hidden size, P size of h (H, or ``proj_size``), G gates, S values saved per
unit, D tracks: recurrences that share the input alone, the ``heads`` of one direction and then those of the second,
which runs in reverse time; H and P are those of one head. Rows: N = T * B time-major, or the sum of ``batch_sizes`` in
the layout of ``torch.nn.utils.rnn.PackedSequence``. ``reference.options`` defines what follows the strategy.

``recurrent`` is the operator that everything calls. x and y are rows, ``[N, I]`` and ``[N, D * P]``, or x is
``[T, B, I]`` and y ``[T, B, D * P]``. It is differentiable to any order:

* where a compiled kernel exists for the device, forward is one ``recurrent_forward``, which computes the input product
  with the recurrence on the CPU and has a library GEMM before it on a GPU; backward is one ``recurrent_backward``,
  which walks the steps in reverse and yields the gradients of the pre-activations, and products over all rows for
  weights and inputs: one ``linear_gradients`` on the CPU, library GEMMs on a GPU;
* where none exists, the plain PyTorch reference is registered for the device, and autograd differentiates that;
* second-order gradients always differentiate the reference;
* with ``recompute`` forward keeps y and c alone, and backward begins with the gates of all rows, which are those of one
  step from all states at once.

``recurrent.from_zeros`` is the same without initial states, options and gradients, for what a small call costs: on a
CPU alone, x ``[T, B, I]`` and y ``[T, B, D * P]``.

Weights and biases come with their tracks in front, or all without where D is 1: a layer's parameters as they are.
Without w_ih, x is the input part of the gates itself, ``[N, D * G * H]``.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .native import COMPILED_DEVICES
from .reference import recurrent as reference_recurrent
from .reference.cells import CELLS, Cell
from .reference.options import NORM_EPS, PLAIN, Options

LIBRARY = torch.library.Library("fusednn", "DEF")
DEVICES = ("CPU", "CUDA", "XPU", "MPS")

_OPTIONS = (
    "int heads=1, Tensor? mask=None, Tensor? seed=None, float zoneout_h=0, float zoneout_c=0, int first=0,"
    " Tensor? norm=None"
)
LIBRARY.define(
    "recurrent(Tensor x, Tensor h0, Tensor? c0, Tensor? w_ih, Tensor w_hh, Tensor? b_ih, Tensor? b_hh, Tensor? w_hr,"
    f" Tensor? batch_sizes, str cell, str strategy, {_OPTIONS}, bool recompute=False)"
    " -> (Tensor y, Tensor h_n, Tensor c_n)",
    tags=torch.Tag.pt2_compliant_tag,
)
LIBRARY.define(
    "recurrent.from_zeros(Tensor x, Tensor w_ih, Tensor w_hh, Tensor? b_ih, Tensor? b_hh, Tensor? w_hr, str cell)"
    " -> (Tensor y, Tensor h_n, Tensor c_n)",
    tags=torch.Tag.pt2_compliant_tag,
)
LIBRARY.define(
    "recurrent_forward(Tensor x, Tensor h0, Tensor? c0, Tensor? w_ih, Tensor w_hh, Tensor? b_ih, Tensor? b_hh,"
    f" Tensor? w_hr, Tensor? batch_sizes, str cell, str strategy, bool save, {_OPTIONS}, bool recompute=False)"
    " -> (Tensor y, Tensor h_n, Tensor c_n, Tensor saved, Tensor states)",
    tags=torch.Tag.pt2_compliant_tag,
)
LIBRARY.define(
    "recurrent_backward(Tensor? grad_y, Tensor? grad_h_n, Tensor? grad_c_n, Tensor y, Tensor saved, Tensor? states,"
    " Tensor? normed, Tensor? rstd, Tensor h0, Tensor? c0, Tensor w_hh, Tensor? b_hh, Tensor? w_hr,"
    f" Tensor? batch_sizes, str cell, str strategy, {_OPTIONS})"
    " -> (Tensor d_gates, Tensor d_recurrent, Tensor d_h0, Tensor d_c0, Tensor d_proj, Tensor d_products)",
    tags=torch.Tag.pt2_compliant_tag,
)
LIBRARY.define(
    "linear_gradients(Tensor d_y, Tensor[] x, Tensor? w, bool bias) -> (Tensor[] d_w, Tensor d_b, Tensor d_x)",
    tags=torch.Tag.pt2_compliant_tag,
)


@torch.library.register_fake("fusednn::recurrent", lib=LIBRARY)
def _(x, h0, c0, w_ih, w_hh, b_ih, b_hh, w_hr, batch_sizes, cell, strategy, *options):
    _require_one_device(x, h0, w_hh)
    y = x.new_empty(*x.shape[:-1], h0.shape[0] * h0.shape[2])
    return y, h0.new_empty(h0.shape), x.new_empty(0) if c0 is None else c0.new_empty(c0.shape)


@torch.library.register_fake("fusednn::recurrent.from_zeros", lib=LIBRARY)
def _(x, w_ih, w_hh, b_ih, b_hh, w_hr, cell):
    _require_one_device(x, w_ih, w_hh)
    tracks, (steps, batch, _) = w_hh.shape[0] if w_hh.dim() == 3 else 1, x.shape
    c_n = x.new_empty(tracks, batch, _units(cell, w_hh)) if CELLS[cell].has_cell_state else x.new_empty(0)
    return x.new_empty(steps, batch, tracks * w_hh.shape[-1]), x.new_empty(tracks, batch, w_hh.shape[-1]), c_n


@torch.library.register_fake("fusednn::recurrent_forward", lib=LIBRARY)
def _(x, h0, c0, w_ih, w_hh, b_ih, b_hh, w_hr, batch_sizes, cell, strategy, save, *options):
    _require_one_device(x, h0, w_hh)
    asked = Options(*options)
    units = h0.shape[0] * _units(cell, w_hh)
    saved = 0 if asked.recompute else len(CELLS[cell].saved) * units
    states = c0 is not None if asked.recompute else asked.zones
    rows = math.prod(x.shape[:-1])
    return (
        x.new_empty(*x.shape[:-1], h0.shape[0] * h0.shape[2]),
        h0.new_empty(h0.shape),
        x.new_empty(0) if c0 is None else c0.new_empty(c0.shape),
        x.new_empty(rows, saved) if save and saved else x.new_empty(0),
        x.new_empty(rows, units) if save and states else x.new_empty(0),
    )


@torch.library.register_fake("fusednn::recurrent_backward", lib=LIBRARY)
def _(
    grad_y, grad_h_n, grad_c_n, y, saved, states, normed, rstd, h0, c0, w_hh, b_hh, w_hr, batch_sizes, cell, strategy,
    *options,
):  # fmt: skip
    d_gates = y.new_empty(y.shape[0], h0.shape[0] * w_hh.shape[-2])
    return (
        d_gates,
        torch.empty_like(d_gates) if CELLS[cell].split else y.new_empty(0),
        h0.new_empty(h0.shape),
        y.new_empty(0) if c0 is None else c0.new_empty(c0.shape),
        y.new_empty(0) if w_hr is None else y.new_empty(y.shape),
        y.new_empty(0) if normed is None else torch.empty_like(d_gates),
    )


@torch.library.register_fake("fusednn::linear_gradients", lib=LIBRARY)
def _(d_y, x, w, bias):
    """Of y = x W^T + b over rows [N, M]: of the W of each x [N, K], of b, and with a W of its x."""
    _require_one_device(d_y, *x)
    return (
        [d_y.new_empty(d_y.shape[1], each.shape[1]) for each in x],
        d_y.new_empty(d_y.shape[1] if bias else 0),
        d_y.new_empty(0) if w is None else d_y.new_empty(d_y.shape[0], w.shape[1]),
    )


def _require_one_device(*tensors: Tensor) -> None:
    """One tensor without storage brings a call here; of the others, no one would write the results."""
    if len({t.device for t in tensors}) > 1:
        raise RuntimeError(f"expected tensors on one device, got {', '.join(str(t.device) for t in tensors)}")


def _units(cell: str, w_hh: Tensor) -> int:
    """H, from the weights ``[D, G * H, P]``, or without D."""
    return w_hh.shape[-2] // len(CELLS[cell].gates)


def _reference(x, h0, c0, w_ih, w_hh, b_ih, b_hh, w_hr, batch_sizes, cell, strategy, *options):
    tensors = (x.flatten(0, -2), h0, c0, w_ih, w_hh, b_ih, b_hh, w_hr, batch_sizes)
    y, *states = reference_recurrent.recurrent(*tensors, cell, Options(*options))
    return y.view(*x.shape[:-1], y.shape[1]), *states


def _previous(y: Tensor, h0: Tensor, batch_sizes: Tensor | None, reverse: bool) -> Tensor:
    """The h that each row's step started from, in the layout of y.  # [N, P]"""
    batch, rows = h0.shape[0], y.shape[0]
    if batch_sizes is None:
        return torch.cat([y[batch:], h0]) if reverse else torch.cat([h0, y[: rows - batch]])
    row = torch.arange(rows, device=batch_sizes.device)
    if reverse:  # row b of step t continues row b of step t + 1, if that step has one
        start = torch.cumsum(batch_sizes, 0) - batch_sizes
        following = torch.cat([batch_sizes[1:], batch_sizes.new_zeros(1)])
        spread = lambda per_step: per_step.repeat_interleave(batch_sizes, output_size=rows)  # noqa: E731
        b = row - spread(start)
        source = torch.where(b < spread(following), row + spread(batch_sizes), rows + b)
        return torch.cat([y, h0])[source.to(y.device)]
    before = torch.cat([batch_sizes.new_full((1,), batch), batch_sizes])[:-1]  # rows before a step: h0's, then y's
    source = row + batch - before.repeat_interleave(batch_sizes, output_size=rows)
    return torch.cat([h0, y])[source.to(y.device)]


def _row_of_batch(rows: int, batch: int, batch_sizes: Tensor | None, device: torch.device) -> Tensor:
    """Which row of the batch each of the N rows belongs to.  # [N]"""
    row = torch.arange(rows, device="cpu" if batch_sizes is not None else device)
    if batch_sizes is None:
        return row % batch
    start = torch.cumsum(batch_sizes, 0) - batch_sizes
    return (row - start.repeat_interleave(batch_sizes, output_size=rows)).to(device)


def _early(cell: Cell, units: int) -> int:
    """Lines of W_hh that take part in the first product."""
    return (len(cell.gates) - len(cell.late)) * units


def _factors(cell: Cell, previous: Tensor, saved: Tensor, mask: Tensor | None) -> list[Tensor]:
    """What each product of one track multiplied, from [N, P], [N, S * H] and [N, P].  # [N, P], and [N, H]"""
    factors = [previous]
    if cell.late:
        assert cell.late_input is not None
        values = dict(zip(cell.saved, saved.split(previous.shape[1], dim=1), strict=True))
        factors.append(cell.late_input(values, previous))
    return factors if mask is None else [factor * mask for factor in factors]


def _recurrent_weight_gradient(gradients, cell: Cell, d_products: Tensor, factors: list[Tensor]) -> Tensor:
    """dW_hh of one track from [N, G * H].  # [G * H, P]"""
    early = _early(cell, factors[-1].shape[1]) if cell.late else d_products.shape[1]
    parts = zip((d_products[:, :early], d_products[:, early:]), factors, strict=False)
    found = [gradients(d, [factor], None, False)[0][0] for d, factor in parts]
    return found[0] if len(found) == 1 else torch.cat(found)


def _normed_products(cell: Cell, w_hh: Tensor, factors: list[Tensor]) -> tuple[Tensor, Tensor]:
    """What layer norm makes of one track's products, before the gain, and 1 / sqrt(var).  # [N, G * H], [N, 1 or 2]"""
    early = _early(cell, w_hh.shape[0] // len(cell.gates))
    normed, rstd = [], []
    for weight, factor in zip((w_hh[:early], w_hh[early:]), factors, strict=False):
        value, _, scale = torch.native_layer_norm(factor @ weight.t(), [weight.shape[0]], None, None, NORM_EPS)
        normed.append(value)
        rstd.append(scale.to(value.dtype))
    return torch.cat(normed, dim=1), torch.cat(rstd, dim=1)


def _projection_weight_gradient(gradients, cell: Cell, d_h: Tensor, saved: Tensor, units: int) -> Tensor:
    """dW_hr of one track; the projected vector is o * tanh(c).  # [P, H]"""
    values = dict(zip(cell.saved, saved.split(units, dim=1), strict=True))
    return gradients(d_h, [values["o"] * torch.tanh(values["c"])], None, False)[0][0]


def _joined(tracks: list[Tensor], like: Tensor) -> Tensor:
    """A weight's gradient from those of its tracks."""
    return _shaped(tracks[0], like) if len(tracks) == 1 else torch.stack(tracks)


def _shaped(gradient: Tensor, like: Tensor | None) -> Tensor:
    """A gradient of one track or of all their lines, with the dimensions of its weight."""
    return gradient if like is None or gradient.dim() == like.dim() else gradient.view_as(like)


def _gates_again(inputs, cell: str, strategy: str, previous, masks, states: Tensor, options: Options):
    """What forward would have saved: one step of all rows at once, each from the states that it started from."""
    x, h0, c0, *weights, batch_sizes = inputs
    at_one = strategy if strategy == "sequence" else "gemm"
    before = None
    if c0 is not None:
        parts = zip(states.chunk(h0.shape[0], dim=1), c0, strict=True)
        before = torch.stack([_previous(c, c0_k, batch_sizes, k >= options.heads) for k, (c, c0_k) in enumerate(parts)])
    one = PLAIN._replace(heads=options.heads, mask=None if options.mask is None else masks, norm=options.norm)
    found, _, _, saved, _ = torch.ops.fusednn.recurrent_forward(
        x, torch.stack(previous), before, *weights, None, cell, at_one, True, *one
    )
    return saved, states if c0 is not None else found


_NORM = 11 + Options._fields.index("norm")  # among the operator's arguments


class _Recurrent(torch.autograd.Function):
    """``recurrent`` where a compiled kernel does forward and backward."""

    @staticmethod
    def forward(ctx, *args):
        *tensors, cell, strategy = args[:11]
        options = Options(*args[11:]) if len(args) > 11 else PLAIN  # the dispatcher leaves defaults out
        y, h_n, c_n, saved, states = torch.ops.fusednn.recurrent_forward.default(*args[:11], True, *args[11:])
        ctx.save_for_backward(*tensors, options.mask, options.seed, options.norm, y, saved, states)
        ctx.cell, ctx.strategy = cell, strategy
        ctx.options = options if options is PLAIN else options._replace(mask=None, seed=None, norm=None)
        ctx.set_materialize_grads(False)
        if tensors[2] is None:
            ctx.mark_non_differentiable(c_n)
        return y, h_n, c_n

    @staticmethod
    def backward(ctx, *grads):  # pyright: ignore[reportIncompatibleMethodOverride]
        *inputs, mask, seed, norm, y, saved, states = ctx.saved_tensors
        options = ctx.options._replace(mask=mask, seed=seed, norm=norm)
        if torch.is_grad_enabled():
            return _differentiable_backward(ctx, inputs, grads, options)
        shape = inputs[0].shape
        if len(shape) == 3:
            inputs[0], y = inputs[0].flatten(0, 1), y.flatten(0, 1)
            grads = (None if grads[0] is None else grads[0].flatten(0, 1), *grads[1:])
        d_x, *others = _Recurrent.of_layer(
            ctx.cell, ctx.strategy, inputs, (y, saved, states), grads, ctx.needs_input_grad, options
        )
        return d_x.view(shape) if d_x is not None and ctx.needs_input_grad[0] else None, *others

    @staticmethod
    def of_layer(name: str, strategy: str, inputs, kept, grads, needs, options: Options) -> tuple[Tensor | None, ...]:
        """Gradients of the operator's arguments by the compiled kernels, None where none is needed.

        ``inputs`` are its tensors up to ``batch_sizes``, ``kept`` what forward gave: y, saved and states.
        """
        x, h0, c0, w_ih, w_hh, b_ih, b_hh, w_hr, batch_sizes = inputs
        (y, saved, states), mask, norm = kept, options.mask, options.norm
        cell = CELLS[name]
        need = dict(zip(("x", "h0", "c0", "w_ih", "w_hh", "b_ih", "b_hh", "w_hr"), needs, strict=False))
        tracks = h0.shape[0]

        def each_track(tensor: Tensor) -> tuple[Tensor, ...]:
            return (tensor,) if tracks == 1 else tensor.chunk(tracks, dim=1)

        previous, factors, masks = [], [], [None] * tracks
        if options.recompute or norm is not None or need["w_hh"]:
            parts = zip(each_track(y), h0.unbind(), strict=True)
            previous = [_previous(h, h0_k, batch_sizes, k >= options.heads) for k, (h, h0_k) in enumerate(parts)]
            if mask is not None:  # of each row  # [D, N, P]
                masks = mask[:, _row_of_batch(y.shape[0], h0.shape[1], batch_sizes, y.device)]
        if options.recompute and (cell.saved or options.zones):
            saved, states = _gates_again(inputs, name, strategy, previous, masks, states, options)
        saved_parts = each_track(saved) if cell.saved else [saved] * tracks
        if norm is not None or need["w_hh"]:
            factors = [_factors(cell, *part) for part in zip(previous, saved_parts, masks, strict=True)]
        normed = rstd = None
        if norm is not None:
            parts = zip(w_hh.view(tracks, *w_hh.shape[-2:]), factors, strict=True)
            normed, rstd = (torch.cat(t, dim=1) for t in zip(*(_normed_products(cell, *p) for p in parts), strict=True))
        d_gates, d_recurrent, d_h0, d_c0, d_proj, d_products = torch.ops.fusednn.recurrent_backward(
            *(None if g is None else g.contiguous() for g in grads),
            *(y, saved, states if options.zones else None, normed, rstd, h0, c0, w_hh, b_hh, w_hr, batch_sizes),
            *(name, strategy, *options[:-1]),
        )
        d_recurrent = d_recurrent if cell.split else d_gates
        d_products = d_recurrent if norm is None else d_products
        gradients = _gradients_of_linear(strategy, x, h0, tracks // options.heads)

        # A call takes all that has one gradient of gates: of d_gates x and its weights, and unless the cell splits it
        # all of W_hh, where that has one product.
        own = factors[0] if need["w_hh"] and tracks == 1 and norm is None and not cell.late else []
        d_w, d_b_ih, d_x = gradients(
            d_gates,
            ([x] if need["w_ih"] else []) + ([] if cell.split else own),
            None if w_ih is None or not need["x"] else w_ih.flatten(0, -2),
            need["b_ih"] or (need["b_hh"] and not cell.split),
        )
        d_w_ih = _shaped(d_w.pop(0), w_ih) if need["w_ih"] else None
        d_b_hh, d_w_hr = d_b_ih, None
        if cell.split and (own or need["b_hh"]):
            d_w, d_b_hh, _ = gradients(d_recurrent, own, None, need["b_hh"])
        d_w_hh = _shaped(d_w[0], w_hh) if own else None
        if need["w_hh"] and not own:
            parts = zip(each_track(d_products), factors, strict=True)
            d_w_hh = _joined([_recurrent_weight_gradient(gradients, cell, *part) for part in parts], w_hh)
        if need["w_hr"]:
            parts = zip(each_track(d_proj), saved_parts, strict=True)
            units = _units(name, w_hh)
            d_w_hr = _joined([_projection_weight_gradient(gradients, cell, *part, units) for part in parts], w_hr)
        if need["x"] and w_ih is None:
            d_x = d_gates
        others: list[Tensor | None] = [None] * (len(needs) - 8)
        if normed is not None and norm is not None and needs[_NORM]:
            others[_NORM - 8] = (d_recurrent * normed).sum(0).view_as(norm)
        return (
            d_x,
            d_h0 if need["h0"] else None,
            d_c0 if need["c0"] else None,
            d_w_ih,
            d_w_hh,
            _shaped(d_b_ih, b_ih) if need["b_ih"] else None,
            _shaped(d_b_hh, b_hh) if need["b_hh"] else None,
            d_w_hr,
            *others,
        )


_LIBRARY_ROWS = {torch.bfloat16: 512}  # measured: from so many on the library's dot products outrun the kernel's


def _gradients_of_linear(strategy: str, x: Tensor, h0: Tensor, directions: int) -> Callable:
    """``linear_gradients`` by the kernel behind ``sequence``, or by library GEMMs: on a GPU, and for one step alone."""
    rows = x.shape[0]
    if strategy == "sequence" and h0.shape[1] < rows < _LIBRARY_ROWS.get(x.dtype, rows + 1):
        return torch.ops.fusednn.linear_gradients
    return functools.partial(_library_gradients, directions=directions)


def _library_gradients(d_y: Tensor, x: list[Tensor], w: Tensor | None, bias: bool, directions: int):
    """d_x takes a product a direction, as torch's: one over all gates of both would round twice as long a sum."""
    d_x = None
    if w is not None:
        parts = zip(d_y.chunk(directions, dim=1), w.chunk(directions), strict=True)
        d_x = functools.reduce(torch.add, (d @ w_k for d, w_k in parts))
    return [d_y.t() @ each for each in x], d_y.sum(0) if bias else None, d_x


def _differentiable_backward(ctx, inputs, grads, options):
    """Gradients that can be differentiated again: autograd through the reference, recomputed from the inputs."""
    # Views, so that each gradient is the partial one even where one input was computed from another.
    views: list[Any] = [None if t is None else t.view_as(t) for t in inputs]
    norm = None if options.norm is None else options.norm.view_as(options.norm)
    outputs = _reference(*views, ctx.cell, None, *options._replace(norm=norm))
    arguments: list[Any] = [*views, *[None] * (len(ctx.needs_input_grad) - len(views))]
    if norm is not None:
        arguments[_NORM] = norm
    return differentiable_gradients(outputs, grads, arguments, ctx.needs_input_grad)


def differentiable_gradients(outputs, grads, arguments, needs) -> tuple[Tensor | None, ...]:
    """Of the arguments that need one, through outputs that autograd recorded; an output without gradient has None."""
    wanted = [a for a, needed in zip(arguments, needs, strict=True) if needed]
    pairs = [(o, g) for o, g in zip(outputs, grads, strict=True) if g is not None]
    found = iter(
        torch.autograd.grad([o for o, _ in pairs], wanted, [g for _, g in pairs], create_graph=True, allow_unused=True)
    )
    return (*(next(found) if needed else None for needed in needs),)


def _autograd(keyset, *args):
    if torch.is_grad_enabled() and any(isinstance(a, Tensor) and a.requires_grad for a in args):
        return _Recurrent.apply(*args)
    with torch._C._AutoDispatchBelowAutograd():
        return torch.ops.fusednn.recurrent.default.redispatch(keyset & torch._C._after_autograd_keyset, *args)


def register_recurrence(name: str, autograd: Callable, reference: Callable) -> None:
    """Compiled kernels where they exist, the reference on every other device."""
    for device in DEVICES:
        if device.lower() in COMPILED_DEVICES:
            LIBRARY.impl(name, autograd, f"Autograd{device}", with_keyset=True)
        else:
            LIBRARY.impl(name, reference, device)
            LIBRARY.impl(name, reference, f"Autograd{device}")


register_recurrence("recurrent", _autograd, _reference)
