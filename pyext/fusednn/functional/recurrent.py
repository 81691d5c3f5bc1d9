"""One layer of a recurrent network over a whole sequence."""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
from torch import Tensor
from torch._C import _functorch  # pyright: ignore[reportAttributeAccessIssue]
from torch.autograd import forward_ad

from .. import operators, padded_operators  # noqa: F401  (operators registers torch.ops.fusednn)
from ..native import EMULATED
from ..plan import SHORT, Request, plan
from ..reference import recurrent as reference_recurrent
from ..reference.cells import CELLS
from ..reference.options import NORM_EPS, PLAIN, Options
from .arguments import check_tensors

ANY_BATCH = 1 << 20  # larger than what any strategy would refuse
_TF32 = ("step", "graph", "block", "cluster", "grid")  # strategies whose own products may use it
_FROM_ZEROS = torch.ops.fusednn.recurrent.from_zeros
_NAMES = ("h0", "c0", "w_ih", "w_hh", "b_ih", "b_hh", "w_hr")


def recurrent(
    cell: str,
    x: Tensor,
    h0: Tensor,
    c0: Tensor | None,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
    w_hr: Tensor | None = None,
    batch_sizes: Tensor | None = None,
    strategy: str = "auto",
    *,
    heads: int = 1,
    recurrent_mask: Tensor | None = None,
    zoneout: float | tuple[float, float] = 0,  # no float: torch.compile would take it for a symbol
    zoneout_seed: Tensor | None = None,
    first_step: int = 0,
    norm_ih: Tensor | None = None,
    norm_hh: Tensor | None = None,
    recompute: bool = False,
    lengths: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Run one recurrent layer, in one or both directions, over all steps of a batch of sequences.

    The operator under ``fusednn.RNN``, ``LSTM`` and ``GRU``. Differentiable to any order; second-order gradients
    recompute the sequence in plain PyTorch, and torch.func's transforms and forward-mode differentiation run there
    altogether, whatever the strategy. Under autocast all tensors are cast to autocast's dtype; sums are
    accumulated in fp32 (fp64 for fp64), gates and the cell state within a call are computed in fp32.

    Args:
        cell: name of the cell: ``rnn_tanh``, ``rnn_relu``, ``lstm``, ``gru`` (reset after the recurrent product, as
            torch's) or ``gru_reset_before``.
        x: input of all steps, ``[T, B, I]``, or as time-major rows, ``[N, I]`` with N = T * B, or the data of a
            PackedSequence.
        h0: initial hidden state, ``[D, B, P]``; D = 2 adds the reverse direction.
        c0: initial cell state, ``[D, B, H]``, for cells that have one; else None.
        w_ih: input weights, ``[D, G * H, I]``, gates in torch's order.
        w_hh: recurrent weights, ``[D, G * H, P]``.
        b_ih: input bias, ``[D, G * H]``, or None.
        b_hh: recurrent bias, ``[D, G * H]``, or None.
        w_hr: projection of h, ``[D, P, H]``, for ``lstm`` with ``proj_size``; else None. Weights and biases may all
            come without D where it is 1.
        batch_sizes: rows of each step, int64 on the CPU, not increasing, as in PackedSequence; None if all have B.
        strategy: a name of the plan table (``fusednn.plan``); ``auto`` takes the best that can serve the request.
        heads: independent recurrences of each direction, which share x alone. D is then one or two times ``heads``,
            the heads of the first direction first, and H and P are the sizes of one head.
        recurrent_mask: multiplies h where it enters W_hh (and what a second product takes), ``[D, B, P]``; not
            differentiated.
        zoneout: probability that a unit keeps its h from the step before; or a pair of those of h and c.
        zoneout_seed: what is kept is drawn from it, int64 on the device of x, one number a direction; None: the
            expectation, as in inference.
        first_step: number of the first step, on which the draws depend: a sequence in pieces draws as in one.
        norm_ih: gain of layer norm over the G * H values of W_ih x, ``[D, G * H]``, which b_ih follows; None without.
        norm_hh: likewise of W_hh h and b_hh, over the gates of each product; both are given or none.
        recompute: keep y and c alone for backward, which computes the gates again, in one product over all steps.
        lengths: of the sequences, integers ``[B]``, where x has the rows of a padded batch: y is zero beyond them. One
            operator, ``recurrent_padded``, which packs each time; a layer packs once for all of its layers.

    Returns:
        ``(y, h_n, c_n)``: the output of all steps, ``[N, D * P]`` or ``[T, B, D * P]``, and the states after each row's
        last step, ``[D, B, P]`` and ``[D, B, H]`` (None for cells without a cell state). The same bits from run to run.

    Raises:
        TypeError: something that is no tensor, or tensors of different dtype or device.
        ValueError: shapes that do not fit, an unknown cell or strategy, or a strategy that cannot serve the request.

    Example:
        >>> import torch, fusednn
        >>> x, h0 = torch.randn(5 * 2, 3), torch.zeros(1, 2, 4)  # T = 5, B = 2
        >>> y, h_n, _ = fusednn.functional.recurrent(
        ...     "rnn_tanh", x, h0, None, torch.randn(1, 4, 3), torch.randn(1, 4, 4))
        >>> y.shape, h_n.shape
        (torch.Size([10, 4]), torch.Size([1, 2, 4]))
    """
    if not (isinstance(x, Tensor) and isinstance(h0, Tensor) and isinstance(w_ih, Tensor) and isinstance(w_hh, Tensor)):
        check_tensors(x=x, h0=h0, w_ih=w_ih, w_hh=w_hh)
    tensors: tuple[Any, ...] = (x, h0, c0, w_ih, w_hh, b_ih, b_hh, w_hr)
    options: Options | None = None
    asked: tuple[str, ...] = ()
    if heads != 1 or recurrent_mask is not None or zoneout or norm_hh is not None or recompute:
        kept_h, kept_c = zoneout if isinstance(zoneout, tuple) else (zoneout, 0.0 if c0 is None else zoneout)
        options = Options(
            heads, recurrent_mask, zoneout_seed, float(kept_h), float(kept_c), first_step, norm_hh, recompute
        )
        asked = options.names
    device = "cpu" if x.is_cpu else x.device.type
    if torch._C._is_any_autocast_enabled() and device != "meta" and torch.is_autocast_enabled(device):
        low = torch.get_autocast_dtype(device)
        tensors = tuple(_cast(t, low) for t in tensors)
        if options is not None:
            mask, norm_ih, norm_hh = (_cast(t, low) for t in (recurrent_mask, norm_ih, norm_hh))
            options = options._replace(mask=mask, norm=norm_hh)
    if options is not None:
        _check_options(options, tensors[1], c0, norm_ih)
    compiling = torch.compiler.is_compiling()
    sizes, short = (1, 0, 1), False  # B, H, D, and whether T is small: what CUDA kernels are chosen by
    if (device != "cpu" or EMULATED) and h0.dim() == 3 and w_hh.dim() in (2, 3) and cell in CELLS:
        batch, short = planned_size(x, h0)
        sizes = (batch, w_hh.shape[-2] // len(CELLS[cell].gates), max(h0.shape[0] // heads, 1))
    tf32 = sizes[1] > 0 and tensors[0].dtype == torch.float32 and _allows_tf32()
    chosen = (_choose if compiling else _cached_choose)(
        cell, device, tensors[0].dtype, w_hr is not None, *sizes, tf32, short, strategy, asked
    )
    if not compiling and _is_transformed():
        chosen = "reference"
    run, sizes_given, given = _RUN.get(chosen, _operator), batch_sizes, tensors
    if lengths is not None:
        if batch_sizes is not None or chosen == "loop":
            raise ValueError("lengths are those of padded rows: without batch_sizes, and not for strategy='loop'")
        run, sizes_given = _padded_operator, lengths
    steps = None
    if compiling or run is not _operator or norm_hh is not None:  # what follows takes rows
        _check(cell, given, norm_ih, norm_hh, batch_sizes=batch_sizes, heads=heads)
        if x.dim() == 3:
            steps, tensors = x.shape[:2], (tensors[0].flatten(0, 1), *tensors[1:])
    if options is not None and norm_ih is not None and norm_hh is not None:
        tensors = _normalised_input(tensors, norm_ih)
        options = options._replace(norm=norm_hh.view(tensors[1].shape[0], -1))
    try:
        y, h_n, c_n = run(tensors, sizes_given, cell, chosen, options)
    except RuntimeError:  # the kernels refuse what does not fit, at less cost, but know one error and no names
        _check(cell, given, norm_ih, norm_hh, batch_sizes=batch_sizes, heads=heads)
        raise
    return y if steps is None else y.view(*steps, y.shape[1]), h_n, c_n if c0 is not None else None


def recurrent_from_zeros(cell: str, x: Any, batch_first: bool, weights: tuple[Any, ...], strategy: str) -> Any:
    """What a layer gives without initial states where gradients are off, at less cost a call: on the CPU.

    Args:
        cell, strategy: as for ``recurrent``.
        x: input of all steps, ``[T, B, I]``, or ``[B, T, I]`` with ``batch_first``.
        weights: w_ih, w_hh, b_ih, b_hh and w_hr, as for ``recurrent``.

    Returns:
        ``(y, h_n)`` or ``(y, (h_n, c_n))`` with y ``[T, B, D * P]`` or ``[B, T, D * P]``. None where ``recurrent`` is
        to be called, be it for what it says of arguments that do not fit.
    """
    if (
        type(x) is not Tensor
        or torch.compiler.is_compiling()
        or not x.is_cpu
        or x.dim() != 3
        or torch._C._is_any_autocast_enabled()
        or torch._C._len_torch_dispatch_stack()  # whose modes know the operator that has all arguments
        or _is_transformed()
        or not _takes_sequence(cell, x.dtype, weights[4] is not None, strategy)
    ):
        return None
    try:
        y, h_n, c_n = _FROM_ZEROS(x.transpose(0, 1) if batch_first else x, *weights, cell)
    except RuntimeError:
        return None
    return (y.transpose(0, 1) if batch_first else y), ((h_n, c_n) if CELLS[cell].has_cell_state else h_n)


def planned_size(x: Tensor, h0: Tensor) -> tuple[int, bool]:
    """B, and whether T is small, as far as a choice may depend on them.

    A graph serves every length; an exported program other batches, too, than the example's.
    """
    if torch.compiler.is_exporting():
        return ANY_BATCH, False
    batch = h0.shape[1]
    return batch, not torch.compiler.is_compiling() and x.shape[:-1].numel() <= SHORT * batch


def _choose(
    cell: str,
    device: str,
    dtype: torch.dtype,
    projection: bool,
    batch: int,
    hidden: int,
    directions: int,
    tf32: bool,
    short: bool,
    strategy: str,
    options: tuple[str, ...],
) -> str:
    name = str(dtype).removeprefix("torch.")
    request = Request(cell, device, name, batch, projection, hidden, directions, tf32, short, options)
    return plan(request, strategy).strategy.name


_cached_choose = functools.cache(_choose)


@functools.cache
def _takes_sequence(cell: str, dtype: torch.dtype, projection: bool, strategy: str) -> bool:
    """Whether a CPU's call does, whatever its sizes."""
    return _choose(cell, "cpu", dtype, projection, 1, 0, 1, False, False, strategy, ()) == "sequence"


def _cast(tensor: Tensor | None, low: torch.dtype) -> Tensor | None:
    return tensor if tensor is None or tensor.dtype == torch.float64 else tensor.to(low)


def _normalised_input(tensors: tuple, gain: Tensor) -> tuple:
    """The tensors of a call whose x is the input part of the gates: layer norm of W_ih x, and b_ih."""
    x, h0, c0, w_ih, w_hh, b_ih, *others = tensors
    product = torch.nn.functional.linear(x, w_ih.flatten(0, -2)).unflatten(1, (h0.shape[0], -1))  # [N, D, G * H]
    normed = torch.nn.functional.layer_norm(product, product.shape[2:], eps=NORM_EPS) * gain.view(product.shape[1:])
    gates = normed if b_ih is None else normed + b_ih.view(product.shape[1:])
    return gates.flatten(1), h0, c0, None, w_hh, None, *others


def _is_transformed() -> bool:
    """Inside torch.func's transforms and forward-mode differentiation, which a compiled kernel cannot follow."""
    return forward_ad._current_level >= 0 or _functorch.maybe_current_level() is not None


def _operator(tensors, batch_sizes, cell, strategy, options):
    if strategy in _TF32 and tensors[0].dtype == torch.float32 and _allows_tf32():
        strategy = f"{strategy}+tf32"
    args = (*tensors, batch_sizes, cell, strategy, *(options or ()))
    return called(torch.ops.fusednn.recurrent.default, args, args)


def _padded_operator(tensors, lengths, cell, strategy, options):
    return torch.ops.fusednn.recurrent_padded(*tensors, lengths, cell, strategy, *(options or ()))


def called(operator, args, leaves):
    """What an operator gives; ``leaves`` are the values among which its tensors are."""
    if torch.compiler.is_compiling() or torch.is_inference_mode_enabled() or _differentiates(leaves):
        return operator(*args)
    with torch._C._AutoDispatchBelowAutograd():  # nothing to record: a third of the time of one small step
        return operator(*args)


@torch.compiler.assume_constant_result  # as it stands when a model is compiled
def _allows_tf32() -> bool:
    return torch.backends.cuda.matmul.fp32_precision == "tf32"


def _differentiates(args) -> bool:
    return torch.is_grad_enabled() and any(isinstance(a, Tensor) and a.requires_grad for a in args)


def _reference(tensors, batch_sizes, cell, _, options):
    args: list[Any] = [*tensors, batch_sizes, cell]
    return reference_recurrent.recurrent(*args, options=options or PLAIN)


def _loop(tensors, batch_sizes, cell, _, options):
    """One operator call a step and direction: what a user's loop over a cell does."""
    x, h0, c0, w_ih, w_hh, b_ih, b_hh, w_hr = tensors
    at_one = "sequence" if x.device.type == "cpu" else "step" if w_hr is None else "gemm"  # the kernel, at T = 1
    batch, rows = h0.shape[1], x.shape[0]
    sizes = batch_sizes.tolist() if batch_sizes is not None else [batch] * (rows // batch if batch else 0)
    tracks = h0.shape[0]
    outputs, last_h, last_c = [], [], []
    heads = 1 if options is None else options.heads
    for d in range(tracks // heads):
        only = slice(d * heads, (d + 1) * heads)
        steps = (x if w_ih is not None else x.chunk(tracks // heads, dim=1)[d]).split(sizes)
        weights = [
            None if t is None else t[only] for t in reference_recurrent.with_directions(w_ih, w_hh, b_ih, b_hh, w_hr)
        ]
        h, c = h0[only], None if c0 is None else c0[only]
        own = options
        if options is not None:
            mask, seed = options.mask, options.seed
            own = options._replace(
                mask=None if mask is None else mask[only],
                seed=None if seed is None else seed[d : d + 1],
                norm=None if options.norm is None else options.norm[only],
            )
        output = [x] * len(steps)
        for t in reversed(range(len(steps))) if d else range(len(steps)):
            n = sizes[t]
            at_t = own
            if own is not None:
                mask = own.mask if own.mask is None else own.mask[:, :n]
                at_t = own._replace(mask=mask, first=own.first + t)
            states = h[:, :n], None if c is None else c[:, :n]
            y, h_t, c_t = _operator((steps[t], *states, *weights), None, cell, at_one, at_t)
            output[t] = y
            h = h_t if n == batch else torch.cat([h_t, h[:, n:]], dim=1)
            if c is not None:
                c = c_t if n == batch else torch.cat([c_t, c[:, n:]], dim=1)
        outputs.append(torch.cat(output) if output else x.new_empty(0, heads * h0.shape[2]))
        last_h.append(h)
        last_c.append(c)
    c_n = x.new_empty(0) if c0 is None else torch.cat(last_c)
    return torch.cat(outputs, dim=1), torch.cat(last_h), c_n


_RUN = {"reference": _reference, "loop": _loop}  # any other strategy: the operator


def _check(cell: str, tensors: tuple[Any, ...], norm_ih, norm_hh, *, batch_sizes: Tensor | None, heads: int) -> None:
    """Raise unless dtypes, devices and shapes fit together."""
    x, h0, c0, w_ih, w_hh, b_ih, b_hh, w_hr = tensors
    dtype, device = x.dtype, x.device
    if not dtype.is_floating_point:
        raise TypeError(f"x must be of a floating-point dtype, got {dtype}")
    for name, tensor in zip(_NAMES, tensors[1:], strict=True):
        if tensor is not None and (tensor.dtype != dtype or tensor.device != device):
            raise TypeError(
                f"{name} must have the dtype and device of x ({dtype}, {device}), got {tensor.dtype}, {tensor.device}"
            )
    one = w_ih.dim() == 2  # direction, which the weights do not name
    if x.dim() not in (2, 3) or h0.dim() != 3 or w_hh.dim() != 3 - one:
        raise ValueError(
            "expected x [N, I] or [T, B, I], h0 [D, B, P] and w_hh [D, G * H, P],"
            f" got {x.dim()}, {h0.dim()} and {w_hh.dim()} dimensions"
        )
    definition = CELLS[cell]
    *steps, inputs = x.shape
    directions, batch, width = h0.shape
    if x.dim() == 3 and (batch_sizes is not None or steps[1] != batch):
        raise ValueError(f"x must be [N, I] with batch_sizes, and else may be [T, {batch}, I], got {list(x.shape)}")
    rows = math.prod(steps)
    units = w_hh.shape[-2] // len(definition.gates)
    if definition.has_cell_state != (c0 is not None):
        wanted = "needs c0, and its layer hx=(h0, c0)" if definition.has_cell_state else "takes no c0"
        raise ValueError(f"cell {cell} {wanted}")
    if w_hr is not None and not definition.has_cell_state:
        raise ValueError(f"cell {cell} takes no w_hr: projections exist for lstm")
    if directions not in (heads, 2 * heads):
        raise ValueError(f"h0 must have 1 or 2 directions, got shape {list(h0.shape)}")
    lines = units * len(definition.gates)  # a number of lines that G does not divide fits no tensor
    for name, tensor, shape in (
        ("c0", c0, (directions, batch, units)),
        ("w_ih", w_ih, (directions, lines, inputs)),
        ("w_hh", w_hh, (directions, lines, width)),
        ("b_ih", b_ih, (directions, lines)),
        ("b_hh", b_hh, (directions, lines)),
        ("w_hr", w_hr, (directions, width, units)),
        ("norm_ih", norm_ih, (directions, lines)),
        ("norm_hh", norm_hh, (directions, lines)),
    ):
        shape = shape[1:] if one and directions == 1 and tensor is not c0 else shape
        if tensor is not None and tensor.shape != shape:
            raise ValueError(f"{name} must have shape {list(shape)} for cell {cell}, got {list(tensor.shape)}")
    if w_hr is None and width != units:
        raise ValueError(f"h0 must have {units} units without w_hr, got {width}")
    if batch_sizes is None and batch and rows % batch:
        raise ValueError(f"x must have a multiple of B = {batch} rows, got {rows}")
    if batch_sizes is not None and (batch_sizes.device.type != "cpu" or batch_sizes.dtype != torch.int64):
        raise TypeError(f"batch_sizes must be int64 on the CPU, got {batch_sizes.dtype} on {batch_sizes.device}")
    if batch_sizes is not None and padded_operators.are_known(batch_sizes):
        sizes = batch_sizes.tolist()
        if sum(sizes) != rows or sizes != sorted(sizes, reverse=True) or max(sizes, default=0) > batch:
            raise ValueError(
                f"batch_sizes must not increase, start with at most B = {batch} and add up to {rows} rows,"
                f" got {sizes if len(sizes) < 20 else f'{sizes[:20]}...'}"
            )


def _check_options(options: Options, h0: Tensor, c0: Tensor | None, norm_ih: Tensor | None) -> None:
    """Raise unless the options make sense; the kernels would not notice."""
    if options.heads < 1 or h0.shape[0] not in (options.heads, 2 * options.heads):
        raise ValueError(f"h0 must have 1 or 2 directions of {options.heads} heads, got shape {list(h0.shape)}")
    mask, seed, directions = options.mask, options.seed, h0.shape[0] // options.heads
    if mask is not None and (mask.shape != h0.shape or mask.dtype != h0.dtype or mask.device != h0.device):
        raise ValueError(
            f"recurrent_mask must be like h0, {list(h0.shape)} {h0.dtype} on {h0.device},"
            f" got {list(mask.shape)} {mask.dtype} on {mask.device}"
        )
    if not (0 <= options.zoneout_h <= 1 and 0 <= options.zoneout_c <= 1):
        raise ValueError(f"zoneout must be a probability, got {options.zoneout_h} for h and {options.zoneout_c} for c")
    if c0 is None and options.zoneout_c:
        raise ValueError("zoneout takes one probability: the cell has no c")
    if seed is not None and (seed.dtype != torch.int64 or seed.shape != (directions,) or seed.device != h0.device):
        raise ValueError(
            f"zoneout_seed must be [{directions}] int64 on {h0.device},"
            f" got {list(seed.shape)} {seed.dtype} on {seed.device}"
        )
    if (norm_ih is None) != (options.norm is None):
        raise ValueError("norm_ih and norm_hh must be given together, or none of them")
    for name, gain in (("norm_ih", norm_ih), ("norm_hh", options.norm)):
        if gain is not None and (gain.dtype != h0.dtype or gain.device != h0.device):
            raise TypeError(f"{name} must be {h0.dtype} on {h0.device}, got {gain.dtype} on {gain.device}")
