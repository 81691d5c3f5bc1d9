"""Multi-head attention in place of torch.nn's."""

from __future__ import annotations

import math
import warnings
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..functional.attention import scaled_dot_product_attention
from ..reference.attention import is_autocast_on
from .cache import KeyValueCache
from .inputs import check_input, check_token
from .scripting import refuse_script


class MultiheadAttention(nn.MultiheadAttention):
    """Attend from a query sequence to a key and value sequence with several heads.

    A ``torch.nn.MultiheadAttention`` in constructor, initialisation, parameters, ``state_dict`` and ``forward``, so
    that the class of an existing layer can be changed to this one. Without weights (``need_weights=False``) attention
    runs through ``fusednn.functional.scaled_dot_product_attention``; with them the whole score matrix is the result,
    and torch's own forward computes it. Nested tensors and every mistake go to torch's forward too, which knows the
    answer or the error. ``step`` and ``prefill`` are causal self-attention with a cache, for streaming.

    Args:
        embed_dim: width of the queries and of the output, E_total = N * E.
        num_heads: number of heads N.
        dropout: probability of dropping an attention weight in training.
        bias: add a bias to the projections.
        add_bias_kv: append a learned key and value to every sequence.
        add_zero_attn: append a key and value of zeros to every sequence.
        kdim: width of the keys; ``embed_dim`` if None.
        vdim: width of the values; ``embed_dim`` if None.
        batch_first: inputs and output are ``[B, T, E]`` instead of ``[T, B, E]``.
        device: where the parameters are.
        dtype: of the parameters.

    Shape:
        - query ``[M, B, embed_dim]``, key ``[K, B, kdim]``, value ``[K, B, vdim]``, batch dimension first with
          ``batch_first``, none at all for one sequence; the output has the shape of the query.

    Note:
        A query that sees no key: ``need_weights=True`` gives NaN. Without weights the result is the bias of the output
        projection, save where torch would take its fused inference path with bool masks, which gives NaN. All three
        are what torch.nn does.
        Determinism, dtypes and accumulation are those of the functional form.

    Example:
        >>> import torch, fusednn
        >>> layer = fusednn.MultiheadAttention(16, 4, batch_first=True)
        >>> x = torch.randn(2, 5, 16)
        >>> out, weights = layer(x, x, x, need_weights=False)
        >>> out.shape, weights
        (torch.Size([2, 5, 16]), None)

    Source: Vaswani et al. 2017, section 3.2.2.
    """

    __prepare_scriptable__ = refuse_script

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Compute the attention of ``query`` to ``key`` and ``value``.

        Args:
            query: queries.
            key: keys.
            value: values.
            key_padding_mask: ``[B, K]`` (``[K]`` for one sequence): bool, True hides a key, or float, added.
            need_weights: return the attention weights too.
            attn_mask: ``[M, K]`` or ``[B * N, M, K]``: bool, True hides, or float, added.
            average_attn_weights: return the mean of the weights over the heads, instead of each head's.
            is_causal: a promise that ``attn_mask`` is the causal mask, which must be given.

        Returns:
            ``(output, weights)``; weights are None without ``need_weights``.

        Raises:
            AssertionError: shapes that do not fit, as in torch.
            RuntimeError: likewise, for a mask's sizes and for ``is_causal`` without ``attn_mask``.
        """
        if need_weights or not self.is_regular(query, key, value, key_padding_mask, attn_mask, is_causal):
            return super().forward(
                query, key, value, key_padding_mask, need_weights, attn_mask, average_attn_weights, is_causal
            )
        batched = query.dim() == 3
        gives_nan = self._fused_in_torch(query, key, value, key_padding_mask, attn_mask)
        call = self.attention_call(query, key, value, key_padding_mask, attn_mask, is_causal)
        out, mask = scaled_dot_product_attention(*call), call[3]
        if gives_nan and mask is not None:
            out = out.masked_fill(~mask.any(-1, keepdim=True), math.nan)
        out = self._join(out, self.batch_first or not batched)
        return (out if batched else out.squeeze(0)), None

    def attention_call(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        padding: Tensor | None,
        mask: Tensor | None,
        is_causal: bool,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None, float, bool]:
        """What ``forward`` gives to the functional form, once it knows that the inputs fit."""
        q, k, v = self._project(query, key, value)  # [B, N, T, E]
        k, v = self._append(k, v)
        if is_causal and padding is None:
            mask = None  # as torch: the hint replaces the mask
        else:
            is_causal = False
            mask = self._merge(mask, padding, q)
        if mask is not None and k.shape[-2] > mask.shape[-1]:  # appended keys are seen by all
            mask = F.pad(mask, (0, k.shape[-2] - mask.shape[-1]), value=mask.dtype == torch.bool)
        return q, k, v, mask, self.dropout if self.training else 0.0, is_causal

    def step(self, x_t: Tensor, state: KeyValueCache | None = None) -> tuple[Tensor, KeyValueCache]:
        """Let one more token attend to itself and to those before it, for streaming.

        Step by step this is causal self-attention, as ``prefill`` computes it for many tokens at once.

        Args:
            x_t: the token, ``[B, embed_dim]``.
            state: what the previous call returned, or None for the first token.

        Returns:
            ``(y_t, state)`` with ``y_t`` ``[B, embed_dim]``. The state given stays what it was.

        Raises:
            TypeError: a token or state of another kind, or of another dtype or device than the weights.
            ValueError: ``x_t`` is not ``[B, embed_dim]``, the layer takes keys or values of another width than
                its queries, or the state belongs to other sizes.
        """
        check_token(self, x_t, self.embed_dim)
        time = 1 if self.batch_first else 0
        y, state = self.prefill(x_t.unsqueeze(time), state)
        return y.squeeze(time), state

    def prefill(self, x: Tensor, state: KeyValueCache | None = None) -> tuple[Tensor, KeyValueCache]:
        """Causal self-attention of a piece of a sequence that goes on where ``state`` ended.

        Args:
            x: the tokens, ``[T, B, embed_dim]``, ``[B, T, embed_dim]`` with ``batch_first``.
            state: of the tokens before, or None.

        Returns:
            ``(y, state)`` with y of the shape of x.

        Raises:
            TypeError, ValueError: as ``step``.
        """
        if state is not None and not isinstance(state, KeyValueCache):
            raise TypeError(f"state must be what the call before returned, or None, got {type(state).__name__}")
        self._check_sequence(x, self.embed_dim, "tokens")
        if self.kdim != self.embed_dim or self.vdim != self.embed_dim:
            raise ValueError(
                f"self-attention needs keys and values as wide as queries, {self.embed_dim}; this layer was made with"
                f" kdim={self.kdim} and vdim={self.vdim}"
            )
        q, k, v = self._project(x, x, x)
        state = (KeyValueCache() if state is None else state).extend(k, v)
        queries, keys = q.shape[2], len(state)
        k, v = self._append(state.key, state.value)
        mask, is_causal = None, False
        if queries > 1:
            is_causal = self.bias_k is None and not self.add_zero_attn
            if not is_causal:  # appended keys are seen by all
                mask = torch.ones(queries, k.shape[2], dtype=torch.bool, device=q.device)
                mask[:, :keys] = mask[:, :keys].tril(keys - queries)
        out = scaled_dot_product_attention(
            q, k, v, mask, self.dropout if self.training else 0.0, is_causal, causal_alignment="bottom_right"
        )
        return self._join(out, self.batch_first), state

    def remember(self, memory: Tensor) -> KeyValueCache:
        """Keys and values of another sequence, for ``recall``.

        Args:
            memory: the sequence, ``[K, B, kdim]``, ``[B, K, kdim]`` with ``batch_first``; kdim and vdim are one width.

        Raises:
            TypeError: a memory that is no tensor, or of another dtype or device than the weights.
            ValueError: a memory of another shape, or a layer of two widths.
        """
        if self.kdim != self.vdim:
            raise ValueError(f"one memory gives keys and values, got a layer of kdim={self.kdim} and vdim={self.vdim}")
        self._check_sequence(memory, self.kdim, "memory")
        _, k, v = self._project(None, memory, memory)
        return KeyValueCache(*self._append(k, v))

    def recall(self, query: Tensor, memory: KeyValueCache) -> Tensor:
        """Attend to what ``remember`` gave.

        Args:
            query: queries, ``[M, B, embed_dim]``, ``[B, M, embed_dim]`` with ``batch_first``.
            memory: keys and values of the other sequence.

        Returns:
            The output, of the shape of the query.

        Raises:
            TypeError: a query that is no tensor, or of another dtype or device than the weights, or no cache.
            ValueError: a query of another shape.
        """
        if not isinstance(memory, KeyValueCache):
            raise TypeError(f"memory must be what remember() gave, got {type(memory).__name__}")
        self._check_sequence(query, self.embed_dim, "query")
        q, _, _ = self._project(query, None, None)
        dropout_p = self.dropout if self.training else 0.0
        return self._join(scaled_dot_product_attention(q, memory.key, memory.value, None, dropout_p), self.batch_first)

    def _check_sequence(self, x: Any, width: int, name: str) -> None:
        check_input(self, x, self.out_proj.weight, name)
        if x.dim() != 3 or x.shape[-1] != width:
            shape = f"[B, T, {width}]" if self.batch_first else f"[T, B, {width}]"
            raise ValueError(f"{name} must be {shape}, got {list(x.shape)}")

    def _join(self, x: Tensor, batch_first: bool) -> Tensor:
        """[B, N, T, E] to the output projection of [B, T, N * E] or [T, B, N * E]."""
        x = x.transpose(1, 2) if batch_first else x.permute(2, 0, 1, 3)
        return F.linear(x.flatten(-2), self.out_proj.weight, self.out_proj.bias)

    def is_regular(self, query, key, value, padding, mask, is_causal) -> bool:
        """Whether the inputs are what ``forward`` handles; the rest is torch's to handle or to refuse."""
        if query.is_nested or key.is_nested or value.is_nested:
            return False
        dims = query.dim()
        if dims not in (2, 3) or key.dim() != dims or value.dim() != dims or (is_causal and mask is None):
            return False
        time, batch = (1, 0) if self.batch_first else (0, 1)
        rows = query.shape[batch] if dims == 3 else 1
        queries, keys = (query.shape[time], key.shape[time]) if dims == 3 else (query.shape[0], key.shape[0])
        if query.shape[-1] != self.embed_dim or key.shape[-1] != self.kdim or value.shape[-1] != self.vdim:
            return False
        if key.shape[:-1] != value.shape[:-1] or (dims == 3 and key.shape[batch] != rows):
            return False
        for x, shapes in (
            (padding, ((rows, keys) if dims == 3 else (keys,),)),
            (mask, ((queries, keys), (rows * self.num_heads, queries, keys))),
        ):
            if x is not None and (x.dtype not in (torch.bool, torch.float32, query.dtype) or x.shape not in shapes):
                return False
        return True

    def _project(self, *inputs: Tensor | None) -> list[Any]:
        """Projections of query, key and value, split into heads: [B, N, T, E]; None of None."""
        query, key, value = inputs
        if self.in_proj_weight is not None and query is key and key is value:
            assert query is not None
            together = F.linear(query, self.in_proj_weight, self.in_proj_bias).chunk(3, dim=-1)
            return [self._split(x) for x in together]
        if self.in_proj_weight is None:
            weights = (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
        else:
            weights = self.in_proj_weight.chunk(3)
        biases = self.in_proj_bias.chunk(3) if self.in_proj_bias is not None else (None, None, None)
        return [
            None if x is None else self._split(F.linear(x, w, b))
            for x, w, b in zip(inputs, weights, biases, strict=True)
        ]

    def _split(self, x: Tensor) -> Tensor:
        """[T, B, N * E], [B, T, N * E] or [T, N * E] to [B, N, T, E]."""
        x = x.unflatten(-1, (self.num_heads, self.head_dim))
        if x.dim() == 3:
            return x.transpose(0, 1).unsqueeze(0)
        return x.transpose(1, 2) if self.batch_first else x.permute(1, 2, 0, 3)

    def _append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Append the learned key and value, then the zero key and value."""
        rows = k.shape[0]
        if self.bias_k is not None and self.bias_v is not None:
            learned = [x.view(1, self.num_heads, 1, self.head_dim) for x in (self.bias_k, self.bias_v)]
            # Autocast projects in lower precision than the parameters have.
            k, v = (
                torch.cat([x, y.to(x.dtype).expand(rows, -1, -1, -1)], dim=2)
                for x, y in zip((k, v), learned, strict=True)
            )
        if self.add_zero_attn:
            k, v = (F.pad(x, (0, 0, 0, 1)) for x in (k, v))
        return k, v

    def _merge(self, mask: Tensor | None, padding: Tensor | None, q: Tensor) -> Tensor | None:
        """Both masks of torch's layer (True hides) as one of the functional form (True is seen), for [B, N, M, K]."""
        if mask is not None:
            mask = mask[None, None] if mask.dim() == 2 else mask.view(q.shape[0], self.num_heads, *mask.shape[1:])
        if padding is not None:
            padding = padding[:, None, None, :] if padding.dim() == 2 else padding[None, None, None, :]
        given = [x for x in (mask, padding) if x is not None]
        if not given:
            return None
        if all(x.dtype == torch.bool for x in given):
            hidden = given[0] if len(given) == 1 else given[0] | given[1]
            return ~hidden
        if len(given) == 2 and given[0].dtype != given[1].dtype and not torch.compiler.is_compiling():
            warnings.warn(
                "Support for mismatched key_padding_mask and attn_mask is deprecated. Use same type for both instead.",
                stacklevel=6,
            )
        floats = [
            torch.zeros_like(x, dtype=q.dtype).masked_fill(x, -math.inf) if x.dtype == torch.bool else x for x in given
        ]
        return floats[0] if len(floats) == 1 else floats[0] + floats[1]

    def _fused_in_torch(self, query, key, value, padding, mask) -> bool:
        """Whether torch.nn would take its fused inference kernel with bool masks: its empty rows are NaN."""
        masks = [x for x in (padding, mask) if x is not None]
        if (
            self.training
            or not masks
            or not (query is key and key is value)
            or query.dim() != 3
            or not self.batch_first
        ):
            return False
        if any(x.dtype != torch.bool for x in masks) or self.in_proj_weight is None or self.in_proj_bias is None:
            return False
        if (
            self.bias_k is not None
            or self.add_zero_attn
            or self.num_heads % 2
            or query.dtype != self.in_proj_weight.dtype
        ):
            return False
        if is_autocast_on(query.device.type) or not torch.backends.mha.get_fastpath_enabled():
            return False
        tensors = (query, self.in_proj_weight, self.in_proj_bias, self.out_proj.weight, self.out_proj.bias)
        return not (torch.is_grad_enabled() and any(x.requires_grad for x in tensors))
