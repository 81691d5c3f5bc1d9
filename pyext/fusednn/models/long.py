"""Transformers of long sequences: a memory of the segment before, and a window."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .attention import RelativeAttention, WindowedAttention, feed_forward
from .positions import Positions
from .tokens import LanguageModel, State, Vocabulary, check_tokens


class _Block(nn.Module):
    """Attention to a sequence of which x is the end, then a feed-forward network: pre-norm."""

    def __init__(self, width: int, attention: RelativeAttention | WindowedAttention, dropout: float) -> None:
        super().__init__()
        self.attention = attention
        self.feed_forward = feed_forward(width, 4 * width, nn.GELU())
        self.norm1, self.norm2, self.dropout = nn.LayerNorm(width), nn.LayerNorm(width), nn.Dropout(dropout)

    def forward(self, x: Tensor, sequence: Tensor) -> Tensor:
        seen = self.attention.remember(self.norm1(sequence))
        x = x + self.dropout(self.attention(self.norm1(x), seen))
        return x + self.dropout(self.feed_forward(self.norm2(x)))


class TransformerXL(LanguageModel):
    """A language model that remembers, of each layer, the states of the last tokens of the segment before.

    Each token sees ``reach`` tokens back in every layer, whether they are of its own segment or remembered; so any
    division into segments gives the same logits (in the paper a token sees its whole segment, and the memory). No
    gradient flows into the memory.

    Args:
        vocabulary: V.
        width: of the tokens.
        heads: N, in each layer.
        reach: how far a token sees back in a layer, and how many tokens are remembered.
        num_layers: how many; tokens reach ``num_layers * reach`` back in all.
        dropout: behind each attention and feed-forward network.

    Raises:
        ValueError: a reach below 1, heads that do not divide the width, or an odd width.

    Example:
        >>> import torch
        >>> from fusednn.models import TransformerXL
        >>> model, state = TransformerXL(100, 32, heads=4, reach=8), None
        >>> for segment in torch.randint(100, (2, 24)).split(8, 1):
        ...     logits, state = model.prefill(segment, state)
        >>> logits.shape, state[0].shape
        (torch.Size([2, 8, 100]), torch.Size([2, 8, 32]))

    Source: Dai et al., arXiv:1901.02860.
    """

    def __init__(
        self, vocabulary: int, width: int, heads: int, reach: int, num_layers: int = 2, dropout: float = 0.0
    ) -> None:
        super().__init__()
        if reach < 1:
            raise ValueError(f"reach must be at least 1, got {reach}")
        self.reach = reach
        self.vocabulary = Vocabulary(vocabulary, width, tied=True)
        self.layers = nn.ModuleList(
            _Block(width, RelativeAttention(width, heads, reach), dropout) for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(width)

    def prefill(self, tokens: Tensor, state: State = None) -> tuple[Tensor, State]:
        """As ``TokenModel.prefill``; the state holds each layer's inputs at the last tokens, without history."""
        check_tokens(tokens)
        x, after = self.vocabulary(tokens), []
        for layer, memory in zip(self.layers, state or [x[:, :0]] * len(self.layers), strict=True):
            sequence = torch.cat([memory, x], 1)
            after.append(sequence[:, -self.reach :].detach())
            x = layer(x, sequence)
        return self.vocabulary.logits(self.norm(x)), tuple(after)


class Longformer(nn.Module):
    """An encoder whose tokens see their neighbours, and the first ones everything: linear in the length.

    Args:
        vocabulary: V.
        width: of the tokens.
        heads: N, in each layer.
        window: how many neighbours a token sees on each side.
        global_tokens: how many tokens, from the first, see all and are seen by all.
        num_layers: how many; without global tokens a token knows of ``num_layers * window`` on each side.
        longest: how many positions there are.
        dropout: behind each attention and feed-forward network.

    Raises:
        ValueError: heads that do not divide the width, or an odd width.

    Example:
        >>> import torch
        >>> from fusednn.models import Longformer
        >>> Longformer(100, 32, heads=4, window=3, global_tokens=1)(torch.randint(100, (2, 50))).shape
        torch.Size([2, 50, 100])

    Source: Beltagy, Peters and Cohan, arXiv:2004.05150.
    """

    def __init__(
        self, vocabulary: int, width: int, heads: int, window: int, global_tokens: int = 0, num_layers: int = 2,
        longest: int = 4096, dropout: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__()
        self.vocabulary = Vocabulary(vocabulary, width, tied=True)
        self.positions = Positions("learned", longest, width)
        self.layers = nn.ModuleList(
            _Block(width, WindowedAttention(width, heads, window, global_tokens), dropout) for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(width)

    def forward(self, tokens: Tensor) -> Tensor:
        """``[B, T]`` integers to logits ``[B, T, V]``.

        Raises:
            ValueError: tokens of another rank, or more of them than there are positions.
        """
        check_tokens(tokens)
        x = self.positions(self.vocabulary(tokens))
        for layer in self.layers:
            x = layer(x, x)
        return self.vocabulary.logits(self.norm(x))
