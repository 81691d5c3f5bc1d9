"""Transformer layers in place of torch.nn's."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor, nn

from .attention import MultiheadAttention
from .cache import KeyValueCache
from .inputs import check_token


class DecoderState(NamedTuple):
    """What a decoder layer remembers: its own tokens, and the projected tokens of the encoder."""

    own: KeyValueCache
    memory: KeyValueCache


class TransformerEncoderLayer(nn.TransformerEncoderLayer):
    """Self-attention, then a feed-forward network, each with a residual connection and a layer normalisation.

    A ``torch.nn.TransformerEncoderLayer`` in constructor, initialisation, parameters, ``state_dict`` and ``forward``,
    and inside ``torch.nn.TransformerEncoder``; attention is ``fusednn.MultiheadAttention``. It does not take torch's
    fused inference path, save for nested tensors, which only that path serves (``torch.nn.TransformerEncoder`` makes
    them of left-aligned padding in inference). The class of an existing layer can be changed to this one; change that
    of its ``self_attn`` too, as ``fusednn.convert`` does.

    Args:
        *args: as ``torch.nn.TransformerEncoderLayer``: d_model, nhead, dim_feedforward=2048, dropout=0.1,
            activation=relu, layer_norm_eps=1e-5, batch_first=False, norm_first=False, bias=True, device, dtype.
        **kwargs: the same by name.

    Shape:
        - src and output: ``[T, B, d_model]``, ``[B, T, d_model]`` with ``batch_first``, or ``[T, d_model]``.

    Note:
        Attention has the determinism, dtypes and accumulation of ``MultiheadAttention``; the rest is PyTorch's. A query
        that sees no key gets what ``MultiheadAttention`` gives it; with float masks that stays finite in inference,
        where torch's fused path gives NaN.

    Example:
        >>> import torch, fusednn
        >>> layer = fusednn.TransformerEncoderLayer(16, 4, dim_feedforward=32, batch_first=True)
        >>> torch.nn.TransformerEncoder(layer, num_layers=2)(torch.randn(2, 5, 16)).shape
        torch.Size([2, 5, 16])

    Sources: Vaswani et al. 2017, section 3.1; Xiong et al. 2020 (``norm_first``).
    """

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.self_attn.__class__ = MultiheadAttention

    def forward(
        self,
        src: Tensor,
        src_mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        is_causal: bool = False,
    ) -> Tensor:
        """Pass a sequence through the layer.

        Args:
            src: the sequence.
            src_mask: ``[T, T]`` or ``[B * N, T, T]``: bool, True hides, or float, added.
            src_key_padding_mask: ``[B, T]``: bool, True hides a key, or float, added.
            is_causal: a promise that ``src_mask`` is the causal mask, which must be given.

        Returns:
            The sequence, of the same shape.
        """
        if src.is_nested:
            return super().forward(src, src_mask, src_key_padding_mask, is_causal)
        x = src
        if self.norm_first:
            x = x + self._sa_block(self.norm1(x), src_mask, src_key_padding_mask, is_causal=is_causal)
            return x + self._ff_block(self.norm2(x))
        x = self.norm1(x + self._sa_block(x, src_mask, src_key_padding_mask, is_causal=is_causal))
        return self.norm2(x + self._ff_block(x))

    self_attn: MultiheadAttention  # pyright: ignore[reportIncompatibleVariableOverride]

    def step(self, x_t: Tensor, state: KeyValueCache | None = None) -> tuple[Tensor, KeyValueCache]:
        """Pass one more token through the layer, which sees itself and those before it.

        Args:
            x_t: the token, ``[B, d_model]``.
            state: what the previous call returned, or None for the first token.

        Returns:
            ``(y_t, state)`` with ``y_t`` ``[B, d_model]``.

        Raises:
            TypeError: a token or state of another kind, or of another dtype or device than the weights.
            ValueError: a token or state of a wrong shape.
        """
        check_token(self, x_t, self.self_attn.embed_dim)
        return self._advance(x_t, state, self.self_attn.step)

    def prefill(self, x: Tensor, state: KeyValueCache | None = None) -> tuple[Tensor, KeyValueCache]:
        """Pass a piece of a sequence through the layer, causally, going on where ``state`` ended.

        Args:
            x: the tokens, ``[T, B, d_model]``, ``[B, T, d_model]`` with ``batch_first``.
            state: of the tokens before, or None.

        Returns:
            ``(y, state)`` with y of the shape of x.

        Raises:
            TypeError, ValueError: as ``step``.
        """
        return self._advance(x, state, self.self_attn.prefill)

    def _advance(
        self, x: Tensor, state: KeyValueCache | None, attend: Callable[..., tuple[Tensor, KeyValueCache]]
    ) -> tuple[Tensor, KeyValueCache]:
        attended, extended = attend(self.norm1(x) if self.norm_first else x, state)
        x = x + self.dropout1(attended)
        if self.norm_first:
            return x + self._ff_block(self.norm2(x)), extended
        x = self.norm1(x)
        return self.norm2(x + self._ff_block(x)), extended


class TransformerDecoderLayer(nn.TransformerDecoderLayer):
    """Self-attention, attention to an encoder's output, then a feed-forward network.

    A ``torch.nn.TransformerDecoderLayer`` in constructor, initialisation, parameters, ``state_dict`` and ``forward``,
    and inside ``torch.nn.TransformerDecoder``; both attentions are ``fusednn.MultiheadAttention``, and torch's own
    forward drives them. The class of an existing layer can be changed to this one; change that of its ``self_attn`` and
    ``multihead_attn`` too, as ``fusednn.convert`` does.

    Args:
        *args: as ``torch.nn.TransformerDecoderLayer``: d_model, nhead, dim_feedforward=2048, dropout=0.1,
            activation=relu, layer_norm_eps=1e-5, batch_first=False, norm_first=False, bias=True, device, dtype.
        **kwargs: the same by name.

    Shape:
        - tgt and output: ``[T, B, d_model]``, ``[B, T, d_model]`` with ``batch_first``, or ``[T, d_model]``; memory:
          the same with its own length.

    Note:
        Attention has the determinism, dtypes and accumulation of ``MultiheadAttention``; the rest is PyTorch's.

    Example:
        >>> import torch, fusednn
        >>> layer = fusednn.TransformerDecoderLayer(16, 4, dim_feedforward=32, batch_first=True)
        >>> layer(torch.randn(2, 5, 16), torch.randn(2, 7, 16)).shape
        torch.Size([2, 5, 16])

    Source: Vaswani et al. 2017, section 3.1.
    """

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.self_attn.__class__ = MultiheadAttention
        self.multihead_attn.__class__ = MultiheadAttention

    self_attn: MultiheadAttention  # pyright: ignore[reportIncompatibleVariableOverride]
    multihead_attn: MultiheadAttention  # pyright: ignore[reportIncompatibleVariableOverride]

    def step(
        self, x_t: Tensor, state: DecoderState | None = None, memory: Tensor | None = None
    ) -> tuple[Tensor, DecoderState]:
        """Pass one more token through the layer, which sees itself, those before it, and all of the memory.

        Args:
            x_t: the token, ``[B, d_model]``.
            state: what the previous call returned, or None for the first token.
            memory: the encoder's output, ``[K, B, d_model]``, ``[B, K, d_model]`` with ``batch_first``; needed for the
                first token only, since the state keeps its keys and values.

        Returns:
            ``(y_t, state)`` with ``y_t`` ``[B, d_model]``.

        Raises:
            TypeError: a token, state or memory of another kind, or of another dtype or device than the weights.
            ValueError: a token or state of a wrong shape, or no memory with the first token.
        """
        check_token(self, x_t, self.self_attn.embed_dim)
        time = 1 if self.self_attn.batch_first else 0
        y, state = self.prefill(x_t.unsqueeze(time), state, memory)
        return y.squeeze(time), state

    def prefill(
        self, x: Tensor, state: DecoderState | None = None, memory: Tensor | None = None
    ) -> tuple[Tensor, DecoderState]:
        """Pass a piece of a sequence through the layer, causally, going on where ``state`` ended.

        Args:
            x: the tokens, ``[T, B, d_model]``, ``[B, T, d_model]`` with ``batch_first``.
            state: of the tokens before, or None.
            memory: as for ``step``.

        Returns:
            ``(y, state)`` with y of the shape of x.

        Raises:
            TypeError, ValueError: as ``step``.
        """
        if state is None:
            if memory is None:
                raise ValueError("the first token needs memory, the encoder's output; later ones find it in the state")
            state = DecoderState(KeyValueCache(), self.multihead_attn.remember(memory))
        elif not isinstance(state, DecoderState):
            hint = "; memory= is the argument behind it" if isinstance(state, Tensor) else ""
            raise TypeError(f"state must be what the call before returned, or None, got {type(state).__name__}{hint}")
        attended, own = self.self_attn.prefill(self.norm1(x) if self.norm_first else x, state.own)
        x = x + self.dropout1(attended)
        x = x if self.norm_first else self.norm1(x)
        x = x + self.dropout2(self.multihead_attn.recall(self.norm2(x) if self.norm_first else x, state.memory))
        x = x if self.norm_first else self.norm2(x)
        x = x + self._ff_block(self.norm3(x) if self.norm_first else x)
        return x if self.norm_first else self.norm3(x), DecoderState(own, state.memory)
