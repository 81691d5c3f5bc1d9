"""Scaled dot-product attention with the modifiers of the attention contract, dense and of different lengths."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import attention_paths
from .attention_request import Request


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

    Nested tensors of the jagged layout (``[B, N, j, E]``, as torch's operator takes them) go to ``varlen_attention``,
    and so do the results; they take no ``attn_mask``.

    Note:
        ``choose_backend`` names the path that a call takes. ``triton``, the fused kernel, has every modifier and dtypes
        up to fp32 (``auto`` leaves fp32 to torch, for speed). It accumulates in fp32, repeats bit for bit with
        ``deterministic``, and never holds the scores in memory, but for the gradient of a float mask. It has no head
        sizes above 256. ``torch_sdpa``, torch's operator, runs where it can express the request, windows and sequences
        one by one, with its accumulation and its repeatability: its CPU kernels repeat bit for bit. Everything else is
        ``blocked``: PyTorch operations on blocks of queries in fp32 (fp64 for fp64 inputs), with memory that grows with
        T and not with T * T, and deterministic on CPUs. Where the scores are few, and inside transforms of
        ``torch.func``, a ``composition`` of plain operations takes its place. Of all but torch's operator the second
        derivative is the composition's, with the score matrix in memory; of torch's it is torch's to give
        (``torch.nn.attention.sdpa_kernel(SDPBackend.MATH)`` can).
        Dropout: ``torch_sdpa`` and ``composition`` draw from torch's generator, weight by weight; ``triton`` and
        ``blocked`` draw one seed from it, and from that the same weights on every device. Under autocast query, key,
        value and a float mask are cast to autocast's dtype (fp64 is left alone), as torch does; slopes, sink and LSE
        keep theirs.

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
    if isinstance(query, Tensor) and query.is_nested:
        return _nested(
            query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa, window=window, softcap=softcap,
            alibi_slopes=alibi_slopes, sink=sink, causal_alignment=causal_alignment, return_lse=return_lse,
            deterministic=deterministic, backend=backend,
        )  # fmt: skip
    request = Request(
        query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa, window, softcap, alibi_slopes, sink,
        causal_alignment, return_lse, deterministic, backend,
    )  # fmt: skip
    out, lse = attention_paths.run(request, _path(request)[0])
    return (out, lse) if return_lse else out


def choose_backend(*args: Any, **options: Any) -> tuple[str, str]:
    """Say which path ``scaled_dot_product_attention`` takes for these arguments, and why; nothing is computed.

    Args:
        *args: what the call would be given.
        **options: the same by name.

    Returns:
        ``(path, reason)`` with path ``triton``, ``torch_sdpa``, ``blocked`` or ``composition``.

    Raises:
        TypeError: as ``scaled_dot_product_attention``.
        ValueError: as ``scaled_dot_product_attention``.

    Example:
        >>> import torch
        >>> from fusednn.functional.attention import choose_backend
        >>> x = torch.randn(1, 8, 512, 16)
        >>> choose_backend(x, x, x, softcap=30.0)
        ('blocked', "torch's scaled_dot_product_attention has no softcap")
    """
    return _path(Request(*args, **options))


def varlen_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
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
    """Attend within sequences of different lengths that lie one after another, without padding.

    Each sequence gets what ``scaled_dot_product_attention`` would give it alone.

    Args:
        query: queries of all sequences.
        key: keys, of the dtype and device of ``query``.
        value: values, likewise.
        cu_seqlens_q: where each sequence begins among the rows of ``query``, and where the last one ends; int32 (int64
            is converted), on the device of ``query``. It starts with 0 and does not decrease; on CPU tensors that is
            checked, elsewhere it would mean waiting for the device.
        cu_seqlens_k: likewise for ``key`` and ``value``.
        max_seqlen_q: length of the longest sequence of queries, or more.
        max_seqlen_k: of keys.
        dropout_p: as for ``scaled_dot_product_attention``, and so all others.
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

    Shape:
        - query: ``[rows, N, E]``; key: ``[rows of keys, N, E]``; value: ``[rows of keys, N, Ev]``, with ``enable_gqa``
          numbers of heads that divide N.
        - cu_seqlens_q and cu_seqlens_k: ``[S + 1]`` for S sequences.
        - alibi_slopes: ``[N]`` or ``[S, N]``; sink: ``[N]``.
        - output: ``[rows, N, Ev]``; LSE: ``[N, rows]``.

    Returns:
        The output, in the dtype of ``query``, or with ``return_lse`` ``(output, lse)``. Rows of queries outside of all
        sequences cannot exist: the last entry of ``cu_seqlens_q`` is their number.

    Raises:
        TypeError: as ``scaled_dot_product_attention``, and for sequence starts that are not integers.
        ValueError: likewise, and for sequence starts that do not fit.

    Note:
        The paths are those of ``scaled_dot_product_attention``, with their determinism and accumulation.

    Example:
        >>> import torch, fusednn
        >>> x = torch.randn(7, 2, 8)  # sequences of 3 and 4 rows
        >>> starts = torch.tensor([0, 3, 7], dtype=torch.int32)
        >>> fusednn.functional.varlen_attention(x, x, x, starts, starts, 4, 4, is_causal=True).shape
        torch.Size([7, 2, 8])

    Sources: as ``scaled_dot_product_attention``; the layout is that of Dao 2023, FlashAttention-2.
    """
    request = _varlen_request(
        query, key, value, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p, is_causal, scale,
        enable_gqa, window=window, softcap=softcap, alibi_slopes=alibi_slopes, sink=sink,
        causal_alignment=causal_alignment, return_lse=return_lse, deterministic=deterministic, backend=backend,
    )  # fmt: skip
    out, lse = attention_paths.run(request, _path(request)[0])
    out = out.squeeze(0).transpose(0, 1)
    return (out, lse.squeeze(0)) if return_lse and lse is not None else out


def choose_varlen_backend(*args: Any, **options: Any) -> tuple[str, str]:
    """Say which path ``varlen_attention`` takes, and why, as ``choose_backend`` does.

    Args:
        *args: what the call would be given.
        **options: the same by name.

    Returns:
        ``(path, reason)``.

    Raises:
        TypeError: as ``varlen_attention``.
        ValueError: as ``varlen_attention``.
    """
    return _path(_varlen_request(*args, **options))


def _varlen_request(
    query: Tensor, key: Tensor, value: Tensor, cu_seqlens_q: Tensor, cu_seqlens_k: Tensor, max_seqlen_q: int,
    max_seqlen_k: int, dropout_p: float = 0.0, is_causal: bool = False, scale: float | None = None,
    enable_gqa: bool = False, **modifiers: Any,
) -> Request:  # fmt: skip
    """The request for arguments of ``varlen_attention``, whose starts are checked."""
    for name, x in (("query", query), ("key", key), ("value", value)):
        if not isinstance(x, Tensor):
            raise TypeError(f"{name} must be a tensor, got {type(x).__name__}")
        if x.dim() != 3:
            raise ValueError(f"{name} must have 3 dimensions [rows, N, E], got shape {list(x.shape)}")
    starts_q = _starts("q", cu_seqlens_q, max_seqlen_q, query)
    starts_k = _starts("k", cu_seqlens_k, max_seqlen_k, key)
    if starts_q.shape != starts_k.shape:
        raise ValueError(
            "cu_seqlens_q and cu_seqlens_k must count the same sequences,"
            f" got {starts_q.shape[0] - 1} and {starts_k.shape[0] - 1}"
        )
    query, key, value = (x.transpose(0, 1).unsqueeze(0) for x in (query, key, value))
    return Request(
        query, key, value, None, dropout_p, is_causal, scale, enable_gqa, **modifiers, starts_q=starts_q,
        starts_k=starts_k, longest_q=max_seqlen_q, longest_k=max_seqlen_k,
    )  # fmt: skip


def _path(request: Request) -> tuple[str, str]:
    """Path and reason of a request, which is checked first."""
    request.autocast()
    request.check()
    return attention_paths.choose(request)


def _starts(side: str, starts: Tensor, longest: int, rows: Tensor) -> Tensor:
    """Checked sequence starts, int32."""
    name = f"cu_seqlens_{side}"
    if not isinstance(starts, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(starts).__name__}")
    if starts.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"{name} must be int32 or int64, got {starts.dtype}")
    if starts.device != rows.device:
        raise TypeError(f"{name} must be on the device of query, {rows.device}, got {starts.device}")
    if starts.dim() != 1 or starts.shape[0] < 1:
        raise ValueError(f"{name} must have shape [S + 1] for S sequences, got {list(starts.shape)}")
    if isinstance(longest, bool) or not isinstance(longest, (int, torch.SymInt)):
        raise TypeError(f"max_seqlen_{side} must be a whole number, got {longest!r}")
    if longest < 0:
        raise ValueError(f"max_seqlen_{side} must not be negative, got {longest}")
    if starts.device.type == "cpu" and not torch.compiler.is_compiling():
        lengths = starts.diff()
        if starts[0] != 0 or starts[-1] != rows.shape[0] or (lengths < 0).any():
            raise ValueError(
                f"{name} must go from 0 to the {rows.shape[0]} rows without decreasing, got {starts.tolist()}"
            )
        if (lengths > longest).any():
            raise ValueError(f"max_seqlen_{side} must be at least {int(lengths.max())}, the longest, got {longest}")
    return starts.int()


def _nested(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None, *args: Any, **options: Any) -> Any:
    """The same for jagged nested tensors [B, N, j, E], by ``varlen_attention`` on their rows."""
    if attn_mask is not None:
        raise ValueError("nested tensors take no attn_mask: their lengths say what is there")
    rows, starts, longest = [], [], []
    for name, x in (("query", query), ("key", key), ("value", value)):
        if not isinstance(x, Tensor):
            raise TypeError(f"{name} must be a tensor, got {type(x).__name__}")
        if not x.is_nested or x.layout != torch.jagged or x.dim() != 4:
            got = "a nested tensor of the strided layout" if x.is_nested and x.layout != torch.jagged else "another"
            raise TypeError(
                f"{name} must be a nested tensor [B, N, j, E] of layout torch.jagged, as query, got {got};"
                " torch.nested.as_nested_tensor(x, layout=torch.jagged) makes one"
            )
        inner: Any = x.transpose(1, 2)
        rows.append(inner.values())  # [rows, N, E]
        starts.append(inner.offsets())
        longest.append(int(inner.offsets().diff().max()) if inner.shape[0] else 0)
    if starts[1] is not starts[2] and not torch.equal(starts[1], starts[2]):
        raise ValueError("key and value must have the same lengths")
    return_lse = options["return_lse"]
    result = varlen_attention(*rows, *starts[:2], *longest[:2], *args, **options)
    out, lse = result if return_lse else (result, None)

    def jagged(x: Tensor) -> Tensor:
        return torch.nested.nested_tensor_from_jagged(x, offsets=starts[0]).transpose(1, 2)

    return (jagged(out), jagged(lse.transpose(0, 1))) if lse is not None else jagged(out)
