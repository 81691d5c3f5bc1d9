"""Scaled dot-product attention with the modifiers of the attention contract."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import attention_operators, triton_kernels  # noqa: F401  (registers the operators)
from ..reference import attention as reference

BACKENDS = ("auto", "triton", "torch")
ALIGNMENTS = ("top_left", "bottom_right")
MAX_HEAD_SIZE = 256  # of the Triton kernel
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def scaled_dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    *,
    window: tuple[int | None, int | None] | None = None,
    softcap: float | None = None,
    alibi_slopes: Tensor | None = None,
    sink: Tensor | None = None,
    causal_alignment: str = "top_left",
    return_lse: bool = False,
    deterministic: bool = False,
    backend: str = "auto",
) -> Any:  # a tensor, or two with return_lse
    """Attend from each query to the keys it sees and return the weighted mean of their values.

    Positional arguments, layout and semantics are those of ``torch.nn.functional.scaled_dot_product_attention``.
    Different from it:

    * the keyword-only modifiers, which combine freely; they apply in the order scale, softcap, ALiBi, mask;
    * ``attn_mask`` and ``is_causal`` combine (torch documents that as an error);
    * a row that sees no key gives a zero output and zero gradients on every device and path, and so do K = 0 keys;
    * mistakes raise TypeError or ValueError that say what was expected and what came.

    Args:
        query: queries.
        key: keys, of the dtype and device of ``query``.
        value: values, likewise.
        attn_mask: bool, True where a query may attend, or float, added to the scores; in fp32 or in the dtype of
            ``query``; any shape that broadcasts to the scores.
        dropout_p: probability of dropping an attention weight. As in torch it applies whenever it is not 0.
        is_causal: hide the keys that come after the query.
        scale: factor of the scores; None is 1 / sqrt(E).
        enable_gqa: let groups of consecutive query heads share a key and value head.
        window: ``(left, right)``: key j is seen from query i if i - j <= left and j - i <= right, in addition to
            every other mask. None on a side leaves it unlimited.
        softcap: replace a scaled score s by ``softcap * tanh(s / softcap)``.
        alibi_slopes: slope n takes ``slope * |i - j|`` off the scores of head n.
        sink: one extra logit a head, which takes probability and gives no value.
        causal_alignment: ``top_left``, query i stands at key i, as in torch; ``bottom_right``, it stands at key
            i + K - M, so that the last query stands at the last key. Moves ``is_causal``, ``window`` and
            ``alibi_slopes`` alike.
        return_lse: return the log-sum-exp of each row's scores too.
        deterministic: promise the same bits from run to run in the backward pass too.
        backend: ``triton``, the fused kernel, on CUDA tensors, and on CPU tensors in Triton's interpreter; ``torch``,
            PyTorch's own kernels; ``auto``, which on CUDA takes ``triton`` where it can serve the request and ``torch``
            otherwise, and is ``torch`` elsewhere.

    Shape:
        - query: ``[..., N, M, E]``; key: ``[..., N, K, E]``; value: ``[..., N, K, Ev]``; leading dimensions broadcast.
          Two and three dimensions work as in torch; the last but two are the heads. With ``enable_gqa`` key and value
          have numbers of heads that divide N.
        - attn_mask: broadcastable to ``[..., N, M, K]``, at least two dimensions.
        - alibi_slopes: ``[N]``, or ``[B, N]`` (all leading dimensions); sink: ``[N]``.
        - output: ``[..., N, M, Ev]``; LSE: ``[..., N, M]``.

    Returns:
        The output, in the dtype of ``query``. With ``return_lse`` ``(output, lse)``: natural logarithm, sink included,
        -inf where a row sees nothing (and there is no sink), fp32, or fp64 for fp64 inputs. Gradients flow
        through both.

    Raises:
        TypeError: not a tensor, an unsupported dtype, or tensors of different dtype or device.
        ValueError: shapes that do not fit, a value out of range, an unknown backend or alignment, or
            ``backend="triton"`` for a request that it cannot serve; the message says why.

    Note:
        Three paths exist, and ``choose_backend`` names the one a call takes. The Triton kernel has every modifier and
        dtypes up to fp32 (``auto`` leaves fp32 to torch, for speed). It accumulates in fp32,
        repeats bit for bit, forward and backward, and never holds the scores in memory, but for the gradient of a float
        mask. It has no dropout and no head sizes above 256; its second derivative is the composition's. Among
        PyTorch's own, where torch's operator can express the request it runs (a window and combined masks become one
        bool or float mask), with its accumulation and its repeatability: its CPU kernels repeat bit for bit.
        Everything else is composed of PyTorch operations in fp32 (fp64 for fp64 inputs), with the score matrix in
        memory; this path is deterministic and differentiable to any order. Inputs of fp64 that require gradients always
        take it; for others the second derivative is torch's to give
        (``torch.nn.attention.sdpa_kernel(SDPBackend.MATH)`` can). Under autocast query, key, value and a float mask are
        cast to autocast's dtype (fp64 is left alone), as torch does; slopes, sink and LSE keep theirs.

    Example:
        >>> import torch, fusednn
        >>> q, k, v = (torch.randn(2, 4, 5, 8) for _ in range(3))  # [B, N, T, E]
        >>> out, lse = fusednn.functional.scaled_dot_product_attention(
        ...     q, k, v, is_causal=True, window=(2, None), sink=torch.zeros(4), return_lse=True)
        >>> out.shape, lse.shape
        (torch.Size([2, 4, 5, 8]), torch.Size([2, 4, 5]))

    Sources: Vaswani et al. 2017 (attention); Ainslie et al. 2023 (grouped queries); Beltagy et al. 2020, Longformer
    (window); Gemma Team 2024, Gemma 2 (softcap); Press et al. 2022 (ALiBi); Xiao et al. 2023 and gpt-oss (sink).
    """
    query, key, value, attn_mask = _autocast(query, key, value, attn_mask)
    path, _ = _choose(
        query,
        key,
        value,
        attn_mask,
        dropout_p,
        scale,
        enable_gqa,
        window,
        softcap,
        alibi_slopes,
        sink,
        causal_alignment,
        return_lse,
        deterministic,
        backend,
    )
    limits = None if window is None else (window[0], window[1])
    if path == "triton":
        out, lse = _triton(
            query, key, value, attn_mask, is_causal, scale, enable_gqa, limits, softcap, alibi_slopes, sink,
            causal_alignment,
        )  # fmt: skip
        return (out, lse) if return_lse else out
    if path == "torch_sdpa":
        return _torch_sdpa(
            query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa, limits, causal_alignment
        )
    out, lse = reference.attention(
        query,
        key,
        value,
        attn_mask,
        dropout_p,
        is_causal,
        scale,
        window=limits,
        softcap=softcap,
        alibi_slopes=alibi_slopes,
        sink=sink,
        causal_alignment=causal_alignment,
        return_lse=return_lse,
    )
    return (out, lse) if return_lse else out


def choose_backend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    *,
    window: tuple[int | None, int | None] | None = None,
    softcap: float | None = None,
    alibi_slopes: Tensor | None = None,
    sink: Tensor | None = None,
    causal_alignment: str = "top_left",
    return_lse: bool = False,
    deterministic: bool = False,
    backend: str = "auto",
) -> tuple[str, str]:
    """Say which path ``scaled_dot_product_attention`` takes for these arguments, and why; nothing is computed.

    Args:
        query: as every other argument, what the call would be given.
        key: see there.
        value: see there.
        attn_mask: see there.
        dropout_p: see there.
        is_causal: see there.
        scale: see there.
        enable_gqa: see there.
        window: see there.
        softcap: see there.
        alibi_slopes: see there.
        sink: see there.
        causal_alignment: see there.
        return_lse: see there.
        deterministic: see there.
        backend: see there.

    Returns:
        ``(path, reason)`` with path ``triton``, ``torch_sdpa`` or ``composition``.

    Raises:
        TypeError: as ``scaled_dot_product_attention``.
        ValueError: as ``scaled_dot_product_attention``.

    Example:
        >>> import torch
        >>> from fusednn.functional.attention import choose_backend
        >>> x = torch.randn(1, 2, 3, 4)
        >>> choose_backend(x, x, x, softcap=30.0)
        ('composition', "torch's scaled_dot_product_attention has no softcap")
    """
    query, key, value, attn_mask = _autocast(query, key, value, attn_mask)
    return _choose(
        query,
        key,
        value,
        attn_mask,
        dropout_p,
        scale,
        enable_gqa,
        window,
        softcap,
        alibi_slopes,
        sink,
        causal_alignment,
        return_lse,
        deterministic,
        backend,
    )


def _choose(
    query,
    key,
    value,
    attn_mask,
    dropout_p,
    scale,
    enable_gqa,
    window,
    softcap,
    alibi_slopes,
    sink,
    causal_alignment,
    return_lse,
    deterministic,
    backend,
) -> tuple[str, str]:
    """``choose_backend`` after autocast."""
    _check_tensors(query, key, value, attn_mask, enable_gqa, alibi_slopes, sink)
    _check_values(dropout_p, scale, window, softcap, causal_alignment, backend)
    if backend == "triton" or (backend == "auto" and query.device.type == "cuda"):
        refusal = _triton_refusal(query, key, value, dropout_p)
        if refusal is None and backend == "auto" and query.dtype == torch.float32:
            refusal = "the kernels are tuned for 16 bits; backend='triton' runs them in fp32"
        if refusal is None:
            return "triton", "the fused kernel can serve the request"
        if backend == "triton":
            raise ValueError(f"backend='triton' cannot serve this request: {refusal}")
        path, reason = _choose_torch(
            query, key, value, attn_mask, softcap, alibi_slopes, sink, return_lse, deterministic
        )  # fmt: skip
        return path, f"{reason}; not triton: {refusal}"
    return _choose_torch(query, key, value, attn_mask, softcap, alibi_slopes, sink, return_lse, deterministic)


def _triton_refusal(query: Tensor, key: Tensor, value: Tensor, dropout_p: float) -> str | None:
    """Why the Triton kernel cannot serve a request that is right in itself, or None."""
    unavailable = triton_kernels.unavailable(query.device.type)
    if unavailable is not None:
        return unavailable
    if query.is_cuda and torch.cuda.get_device_capability(query.device) < (8, 0):
        return "the kernels need compute capability 8.0 or newer"
    if query.is_cuda and query.dtype == torch.float64:
        return "fp64 runs in the interpreter only, for checks of gradients"
    if dropout_p > 0.0:
        return "the kernels have no dropout"
    size = max(query.shape[-1], value.shape[-1])
    if size > MAX_HEAD_SIZE:
        return f"the kernels serve head sizes up to {MAX_HEAD_SIZE}, got {size}"
    if _heads(key) != _heads(value) and 1 not in (_heads(key), _heads(value)):
        return f"key and value must share heads alike, got {_heads(key)} and {_heads(value)} heads"
    if torch._C._are_functorch_transforms_active():
        return "the kernels do not run inside transforms of torch.func"
    return None


def _heads(x: Tensor) -> int:
    return x.shape[-3] if x.dim() > 2 else 1


def _choose_torch(query, key, value, attn_mask, softcap, alibi_slopes, sink, return_lse, deterministic):
    """The path among PyTorch's operations, and why."""
    if softcap is not None or alibi_slopes is not None or sink is not None or return_lse:
        asked = {"softcap": softcap, "alibi_slopes": alibi_slopes, "sink": sink, "returned LSE": return_lse or None}
        missing = [name for name, given in asked.items() if given is not None]
        return "composition", f"torch's scaled_dot_product_attention has no {', '.join(missing)}"
    if query.numel() == 0 or key.numel() == 0 or value.numel() == 0:
        return "composition", "a dimension is empty: the result is defined as zero on every device"
    if deterministic and query.device.type != "cpu":
        return "composition", f"torch's kernels on {query.device.type} promise no deterministic gradients"
    if attn_mask is not None and attn_mask.dtype not in (torch.bool, query.dtype):
        return "composition", f"not every kernel of torch adds a {attn_mask.dtype} mask to {query.dtype} inputs"
    if torch.is_grad_enabled():
        if attn_mask is not None and attn_mask.requires_grad:
            return "composition", "the mask requires a gradient, which torch's fused kernels do not all give"
        if query.dtype == torch.float64 and (query.requires_grad or key.requires_grad or value.requires_grad):
            return "composition", "fp64 with gradients: torch's fused kernels have no second derivative"
    return "torch_sdpa", "torch's scaled_dot_product_attention expresses the request"


def _triton(
    query, key, value, mask, is_causal, scale, enable_gqa, window, softcap, slopes, sink, alignment
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The fused kernel, on views [B, N, T, E]: batch dimensions become one, shared heads stay shared."""
    lead = _lead(query, key, value, enable_gqa)
    *batch, heads = lead or (1,)
    shared = [_heads(key), _heads(value)]
    if shared[0] != shared[1]:
        shared = [heads, heads]

    def four(x: Tensor, count: int) -> Tensor:
        x = _at_least(x, len(batch) + 3)
        x = x.expand(*batch, count, *x.shape[-2:])
        return x.flatten(0, -4) if batch else x.unsqueeze(0)

    if mask is not None:
        mask = _at_least(mask, len(batch) + 3)
        if len(batch) > 1:
            mask = mask.expand(*batch, *mask.shape[-3:]).flatten(0, -4)
        mask = mask if batch else mask.unsqueeze(0)
    if slopes is not None:
        slopes = slopes.reshape(-1, heads)
    left, right = window if window is not None else (None, None)
    out, lse = torch.ops.fusednn.attention_forward(
        four(query, heads), four(key, shared[0]), four(value, shared[1]), mask, slopes, sink,
        reference.default_scale(query.shape[-1]) if scale is None else float(scale),
        softcap, left, 0 if is_causal else right, alignment == "bottom_right",
    )  # fmt: skip
    return out.reshape(*lead, *out.shape[2:]), lse.reshape(*lead, lse.shape[2])


def _torch_sdpa(query, key, value, mask, dropout_p, is_causal, scale, enable_gqa, window, alignment) -> Tensor:
    """Torch's operator, kept from rows that see nothing: its backends have not always agreed on those.

    Such rows are shown every key, and their output is then replaced by zero, which stops their gradients too.
    """
    dims = max(query.dim(), key.dim(), value.dim())
    # Torch's fused kernels take four dimensions; fewer go to its slow path.
    query, key, value = (_at_least(x) for x in (query, key, value))
    by_position = window is not None or (
        is_causal and (mask is not None or (alignment == "bottom_right" and query.shape[-2] != key.shape[-2]))
    )
    if by_position:
        distance = reference.distances(query.shape[-2], key.shape[-2], alignment, query.device)
        mask = reference.merge_masks(mask, reference.visibility(distance, is_causal, window))
        is_causal = False
    seen = None
    if mask is not None:
        mask = _at_least(mask) if mask.dim() != 2 else mask
        if mask.dtype == torch.bool:
            seen = mask.any(-1, keepdim=True)
            mask = mask | ~seen
        else:
            seen = (mask != -math.inf).any(-1, keepdim=True)
            mask = mask.masked_fill(~seen, 0.0)
    out = F.scaled_dot_product_attention(
        query, key, value, mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
    )
    if seen is not None:
        out = out.masked_fill(~seen, 0.0)
    for _ in range(out.dim() - dims):
        out = out.squeeze(0)
    return out


def _at_least(x: Tensor, dims: int = 4) -> Tensor:
    """Leading dimensions of 1 until there are ``dims``."""
    for _ in range(dims - x.dim()):
        x = x.unsqueeze(0)
    return x


def _autocast(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None):
    """Cast what torch's operator casts under autocast: floating-point tensors but for fp64."""
    if not isinstance(query, Tensor) or not reference.is_autocast_on(query.device.type):
        return query, key, value, mask
    low = torch.get_autocast_dtype(query.device.type)

    def cast(x):
        wanted = isinstance(x, Tensor) and x.is_floating_point() and x.dtype != torch.float64
        return x.to(low) if wanted else x

    return cast(query), cast(key), cast(value), cast(mask)


def _check_tensors(query, key, value, mask, enable_gqa, slopes, sink) -> None:
    """Raise unless the tensors fit together."""
    for name, x in (("query", query), ("key", key), ("value", value)):
        if not isinstance(x, Tensor):
            raise TypeError(f"{name} must be a tensor, got {type(x).__name__}")
        if x.is_nested:
            raise TypeError(f"{name} must not be a nested tensor: pad it and hide the padding with attn_mask")
        if x.dtype not in DTYPES:
            raise TypeError(f"{name} must be float16, bfloat16, float32 or float64, got {x.dtype}")
        if x.dtype != query.dtype or x.device != query.device:
            raise TypeError(
                f"{name} must have the dtype and device of query ({query.dtype}, {query.device}),"
                f" got {x.dtype}, {x.device}"
            )
        if x.dim() < 2:
            raise ValueError(f"{name} must have at least 2 dimensions [..., T, E], got shape {list(x.shape)}")
    if query.shape[-1] != key.shape[-1]:
        raise ValueError(f"query and key must have one head size, got {query.shape[-1]} and {key.shape[-1]}")
    if key.shape[-2] != value.shape[-2]:
        raise ValueError(f"key and value must have one length, got {key.shape[-2]} and {value.shape[-2]}")
    lead = _lead(query, key, value, enable_gqa)
    if mask is not None:
        scores = (*lead, query.shape[-2], key.shape[-2])
        _check_optional("attn_mask", mask, query, (torch.bool, torch.float32, query.dtype))
        if mask.dim() < 2 or not _broadcasts(mask.shape, scores):
            raise ValueError(
                f"attn_mask must have at least 2 dimensions and broadcast to the scores [..., M, K] = {list(scores)},"
                f" got {list(mask.shape)}"
            )
    if slopes is None and sink is None:
        return
    for name, x, forms in (("alibi_slopes", slopes, (lead[-1:], lead)), ("sink", sink, (lead[-1:],))):
        if x is not None:
            _check_optional(name, x, query, DTYPES)
            if not lead or tuple(x.shape) not in forms:
                wanted = (
                    " or ".join(str(list(form)) for form in dict.fromkeys(forms))
                    if lead
                    else "a head dimension in query"
                )
                raise ValueError(f"{name} needs shape {wanted}, one number a head, got {list(x.shape)}")


def _lead(query: Tensor, key: Tensor, value: Tensor, enable_gqa: bool) -> tuple[int, ...]:
    """The leading dimensions [..., N] of the scores."""
    shapes = []
    for name, x in (("query", query), ("key", key), ("value", value)):
        shape = tuple(x.shape[:-2])
        if enable_gqa and name != "query":
            if query.dim() < 3 or not shape:
                raise ValueError(f"enable_gqa needs a head dimension [..., N, T, E], got {name} {list(x.shape)}")
            heads, shared = query.shape[-3], shape[-1]
            if heads != shared and (shared == 0 or heads % shared):
                raise ValueError(f"enable_gqa needs heads of {name} that divide the query's {heads}, got {shared}")
            shape = (*shape[:-1], heads)
        shapes.append(shape)
    if shapes[0] == shapes[1] == shapes[2]:
        return shapes[0]
    try:
        return tuple(torch.broadcast_shapes(*shapes))
    except RuntimeError:
        hint = "" if enable_gqa else "; enable_gqa=True shares heads between groups of query heads"
        raise ValueError(
            "the leading dimensions of query, key and value must broadcast,"
            f" got {', '.join(str(list(x.shape[:-2])) for x in (query, key, value))}{hint}"
        ) from None


def _broadcasts(shape: Sequence[int], full: Sequence[int]) -> bool:
    """Whether ``shape`` expands to ``full``."""
    if len(shape) > len(full):
        return False
    return all(size in (1, wanted) for size, wanted in zip(reversed(shape), reversed(full), strict=False))


def _check_optional(name: str, x: Tensor, query: Tensor, dtypes: Sequence[torch.dtype]) -> None:
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(x).__name__}")
    if x.dtype not in dtypes:
        wanted = ", ".join(dict.fromkeys(str(dtype) for dtype in dtypes))
        raise TypeError(f"{name} must be one of {wanted} for {query.dtype} inputs, got {x.dtype}")
    if x.device != query.device:
        raise TypeError(f"{name} must be on the device of query, {query.device}, got {x.device}")


def _check_values(dropout_p, scale, window, softcap, alignment, backend) -> None:
    """Raise unless the options are in range."""
    if not 0.0 <= dropout_p <= 1.0:
        raise ValueError(f"dropout_p must be between 0 and 1, got {dropout_p}")
    if scale is not None and isinstance(scale, Tensor):
        raise TypeError("scale must be a number, got a tensor: multiply query by it instead, which gives it a gradient")
    if softcap is not None and not softcap > 0.0:
        raise ValueError(f"softcap must be greater than 0, or None for no softcap, got {softcap}")
    if window is not None:
        if not isinstance(window, (tuple, list)) or len(window) != 2:
            raise ValueError(f"window must be (left, right), each a number of keys or None, got {window!r}")
        for side in window:
            if side is not None and (isinstance(side, bool) or not isinstance(side, (int, torch.SymInt))):
                raise TypeError(f"window must hold whole numbers or None, got {window!r}")
            if side is not None and side < 0:
                raise ValueError(f"window must not be negative, got {window!r}; None leaves a side unlimited")
    if alignment not in ALIGNMENTS:
        raise ValueError(f"causal_alignment must be one of {', '.join(ALIGNMENTS)}, got {alignment!r}")
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, got {backend!r}")
