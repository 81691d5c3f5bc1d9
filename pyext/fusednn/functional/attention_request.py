"""What a call of the attention functions asks for, and whether that makes sense."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..reference.attention import is_autocast_on
from .arguments import check_number

BACKENDS = ("auto", "triton", "torch")
ALIGNMENTS = ("top_left", "bottom_right")
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclasses.dataclass
class Request:
    """Arguments of ``scaled_dot_product_attention``, and what ``varlen_attention`` adds, by their names there.

    Attributes:
        query: [..., N, M, E]; of sequences of different lengths [1, N, rows, E].
        key: likewise, as value.
        value: see there.
        attn_mask: see ``scaled_dot_product_attention``, and so up to backend.
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
        starts_q: where sequences begin among the rows of query, and where the last one ends; or None.
        starts_k: likewise of key.
        longest_q: queries of the longest sequence.
        longest_k: its keys.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    attn_mask: Tensor | None = None
    dropout_p: float = 0.0
    is_causal: bool = False
    scale: float | None = None
    enable_gqa: bool = False
    window: tuple[int | None, int | None] | None = None
    softcap: float | None = None
    alibi_slopes: Tensor | None = None
    sink: Tensor | None = None
    causal_alignment: str = "top_left"
    return_lse: bool = False
    deterministic: bool = False
    backend: str = "auto"
    starts_q: Tensor | None = None
    starts_k: Tensor | None = None
    longest_q: int | None = None
    longest_k: int | None = None

    def autocast(self) -> None:
        """Cast what torch's operator casts under autocast: floating-point tensors but for fp64."""
        if not isinstance(self.query, Tensor) or not is_autocast_on(self.query.device.type):
            return
        low = torch.get_autocast_dtype(self.query.device.type)

        def cast(x):
            wanted = isinstance(x, Tensor) and x.is_floating_point() and x.dtype != torch.float64
            return x.to(low) if wanted else x

        self.query, self.key, self.value = cast(self.query), cast(self.key), cast(self.value)
        self.attn_mask = cast(self.attn_mask)

    @property
    def limits(self) -> tuple[int | None, int | None]:
        """Keys seen to the left and to the right, without causality."""
        return (None, None) if self.window is None else (self.window[0], self.window[1])

    def scores(self) -> int:
        """How many pairs of query and key there are."""
        lead = leading(self.query, self.key, self.value, self.enable_gqa)
        return math.prod(lead) * self.query.shape[-2] * self.key.shape[-2]

    def check(self) -> None:
        """Raise TypeError or ValueError unless the arguments fit together."""
        _check_tensors(self)
        _check_values(self)


def is_at_most(size: int, limit: int) -> bool:
    """Whether a size is that small; one that a graph leaves open counts as large, so that the graph serves all."""
    if not torch.compiler.is_compiling():
        return size <= limit
    from torch.fx.experimental.symbolic_shapes import statically_known_true  # there when something compiles

    return statically_known_true(size <= limit)


def at_least(x: Tensor, dims: int = 4) -> Tensor:
    """Leading dimensions of 1 until there are ``dims``."""
    for _ in range(dims - x.dim()):
        x = x.unsqueeze(0)
    return x


def heads(x: Tensor) -> int:
    """Of [..., N, T, E]; two dimensions are one head."""
    return x.shape[-3] if x.dim() > 2 else 1


def leading(query: Tensor, key: Tensor, value: Tensor, enable_gqa: bool) -> tuple[int, ...]:
    """The leading dimensions [..., N] of the scores."""
    shapes = []
    for name, x in (("query", query), ("key", key), ("value", value)):
        shape = tuple(x.shape[:-2])
        if enable_gqa and name != "query":
            if query.dim() < 3 or not shape:
                raise ValueError(f"enable_gqa needs a head dimension [..., N, T, E], got {name} {list(x.shape)}")
            of_query, shared = query.shape[-3], shape[-1]
            if of_query != shared and (shared == 0 or of_query % shared):
                raise ValueError(f"enable_gqa needs heads of {name} that divide the query's {of_query}, got {shared}")
            shape = (*shape[:-1], of_query)
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


def _check_tensors(request: Request) -> None:
    """Raise unless the tensors fit together."""
    query, key, value = request.query, request.key, request.value
    for name, x in (("query", query), ("key", key), ("value", value)):
        if not isinstance(x, Tensor):
            raise TypeError(f"{name} must be a tensor, got {type(x).__name__}")
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
    lead = leading(query, key, value, request.enable_gqa)
    mask = request.attn_mask
    if mask is not None:
        scores = (*lead, query.shape[-2], key.shape[-2])
        _check_optional("attn_mask", mask, query, (torch.bool, torch.float32, query.dtype))
        if mask.dim() < 2 or not _broadcasts(mask.shape, scores):
            raise ValueError(
                f"attn_mask must have at least 2 dimensions and broadcast to the scores [..., M, K] = {list(scores)},"
                f" got {list(mask.shape)}"
            )
    if request.starts_q is not None:
        lead = (request.starts_q.shape[0] - 1, lead[-1])
    for name, x, forms in (
        ("alibi_slopes", request.alibi_slopes, (lead[-1:], lead)),
        ("sink", request.sink, (lead[-1:],)),
    ):
        if x is not None:
            _check_optional(name, x, query, DTYPES)
            if not lead or tuple(x.shape) not in forms:
                wanted = (
                    " or ".join(str(list(form)) for form in dict.fromkeys(forms))
                    if lead
                    else "a head dimension in query"
                )
                raise ValueError(f"{name} needs shape {wanted}, one number a head, got {list(x.shape)}")


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


def _check_values(request: Request) -> None:
    """Raise unless the options are in range."""
    scale, softcap, window = request.scale, request.softcap, request.window
    check_number("dropout_p", request.dropout_p)
    if not 0.0 <= request.dropout_p <= 1.0:
        raise ValueError(f"dropout_p must be between 0 and 1, got {request.dropout_p}")
    if isinstance(scale, Tensor):
        raise TypeError("scale must be a number, got a tensor: multiply query by it instead, which gives it a gradient")
    if scale is not None:
        check_number("scale", scale)
    if softcap is not None:
        check_number("softcap", softcap)
        if not softcap > 0.0:
            raise ValueError(f"softcap must be greater than 0, or None for no softcap, got {softcap}")
    if window is not None:
        if not isinstance(window, (tuple, list)) or len(window) != 2:
            raise ValueError(f"window must be (left, right), each a number of keys or None, got {window!r}")
        for side in window:
            if side is not None and (isinstance(side, bool) or not isinstance(side, (int, torch.SymInt))):
                raise TypeError(f"window must hold whole numbers or None, got {window!r}")
            if side is not None and side < 0:
                raise ValueError(f"window must not be negative, got {window!r}; None leaves a side unlimited")
    for name, value, known in (
        ("causal_alignment", request.causal_alignment, ALIGNMENTS),
        ("backend", request.backend, BACKENDS),
    ):
        if value not in known:
            raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}")
