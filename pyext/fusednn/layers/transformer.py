"""Transformer layers in place of torch.nn's."""

from __future__ import annotations

from torch import Tensor, nn

from .attention import MultiheadAttention


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
