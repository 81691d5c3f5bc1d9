"""The transformer's encoder and decoder with relative positions, as T5 has them."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn

from ..layers.cache import KeyValueCache
from .attention import Attention, feed_forward
from .positions import RelativeBias
from .seq2seq import NEEDS_SOURCE
from .tokens import State, TokenModel, Vocabulary, check_tokens


class Memories(NamedTuple):
    """State of ``EncoderDecoder``: of each layer, the target's keys and values so far, and the source's."""

    own: tuple[KeyValueCache, ...]
    source: tuple[KeyValueCache, ...]


class _Block(nn.Module):
    """Self-attention, attention to the source in the decoder, feed-forward: each behind a norm, added to its input."""

    def __init__(self, width: int, heads: int, with_source: bool, dropout: float) -> None:
        super().__init__()
        self.own = Attention(width, heads, bias=False)
        self.source = Attention(width, heads, bias=False) if with_source else None
        self.feed_forward = feed_forward(width, 4 * width, nn.ReLU(), bias=False)
        self.norms = nn.ModuleList(nn.RMSNorm(width) for _ in range(3 if with_source else 2))
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, x: Tensor, bias: Tensor, own: KeyValueCache | None = None, source: KeyValueCache | None = None
    ) -> tuple[Tensor, KeyValueCache]:
        """``[B, M, width]``, the scores' bias ``[N, M, K]``, and what was before; causal where there is a source."""
        y = self.norms[0](x)
        own = self.own.remember(y, own)
        causal = self.source is not None
        x = x + self.dropout(self.own(y, own, attn_mask=bias, is_causal=causal, causal_alignment="bottom_right"))
        if self.source is not None and source is not None:
            x = x + self.dropout(self.source(self.norms[1](x), source))
        return x + self.dropout(self.feed_forward(self.norms[-1](x))), own


class EncoderDecoder(TokenModel):
    """One stack reads the source, every token all of it; another writes the target, and looks at the source.

    Order is known by ``RelativeBias`` alone, one of each stack, which all its layers share; so there is no longest
    sequence. Scores are scaled by 1 / sqrt(E), where T5 takes that into its initialisation.

    Args:
        vocabulary: V, of source and target alike, one tied matrix for both.
        width: of the tokens.
        heads: N, in each layer.
        num_layers: how many in each stack.
        dropout: behind each attention and feed-forward network.

    Shape:
        all sources of a batch have one length; so have all targets.

    Raises:
        ValueError: heads that do not divide the width.

    Example:
        >>> import torch
        >>> from fusednn.models import EncoderDecoder
        >>> model, source = EncoderDecoder(50, 32, heads=4), torch.randint(50, (2, 7))
        >>> model(source, torch.randint(50, (2, 5))).shape
        torch.Size([2, 5, 50])
        >>> begin = torch.zeros(2, 1, dtype=torch.long)
        >>> model.generate(begin, 6, model.start(source)).shape
        torch.Size([2, 6])

    Source: Raffel et al., arXiv:1910.10683, section 2.1.
    """

    def __init__(self, vocabulary: int, width: int, heads: int, num_layers: int = 2, dropout: float = 0.0) -> None:
        super().__init__()
        self.vocabulary = Vocabulary(vocabulary, width, tied=True)
        self.encoder = nn.ModuleList(_Block(width, heads, False, dropout) for _ in range(num_layers))
        self.decoder = nn.ModuleList(_Block(width, heads, True, dropout) for _ in range(num_layers))
        self.encoder_bias, self.decoder_bias = RelativeBias(heads, causal=False), RelativeBias(heads, causal=True)
        self.encoder_norm, self.decoder_norm = nn.RMSNorm(width), nn.RMSNorm(width)

    def start(self, source: Tensor) -> Memories:
        """Read the source, ``[B, K]`` integers: the state before the first target token.

        Raises:
            ValueError: a source of another rank.
        """
        check_tokens(source)
        x, bias = self.vocabulary(source), self.encoder_bias(source.shape[1], source.shape[1])
        for block in self.encoder:
            x, _ = block(x, bias)
        x = self.encoder_norm(x)
        source_caches = tuple(block.source.remember(x) for block in self.decoder)  # type: ignore[union-attr]
        return Memories(tuple(KeyValueCache() for _ in self.decoder), source_caches)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        """Logits ``[B, T, V]`` of the successor of each target token, given the source ``[B, K]``.

        Raises:
            ValueError: tokens of another rank.
        """
        return self.prefill(target, self.start(source))[0]

    def prefill(self, tokens: Tensor, state: State = None) -> tuple[Tensor, Memories]:
        """As ``TokenModel.prefill``, from the state that ``start`` gave."""
        check_tokens(tokens)
        if state is None:
            raise ValueError(NEEDS_SOURCE)
        x, own = self.vocabulary(tokens), []
        bias = self.decoder_bias(tokens.shape[1], len(state.own[0]) + tokens.shape[1])
        for block, before, source in zip(self.decoder, state.own, state.source, strict=True):
            x, cache = block(x, bias, before, source)
            own.append(cache)
        return self.vocabulary.logits(self.decoder_norm(x)), Memories(tuple(own), state.source)
