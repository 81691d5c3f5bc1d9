"""The transformer's encoder as BERT has it, and its decoder as GPT-2 has it."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ..layers.transformer import TransformerEncoderLayer
from .positions import positions as make_positions
from .tokens import LanguageModel, State, Vocabulary, check_tokens


class BertEncoder(nn.Module):
    """Post-norm layers in which every token sees every other; logits of the tokens, to guess the masked ones.

    Args:
        vocabulary: V.
        width: of the tokens.
        heads: N, in each layer.
        num_layers: how many.
        longest: how many positions there are.
        positions: ``learned``, ``sinusoidal``, or None: then a permutation of the tokens permutes the result.
        dropout: in the layers.
        tied: one matrix for embedding and projection.

    Raises:
        ValueError: another kind of positions, or an odd width.

    Example:
        >>> import torch
        >>> from fusednn.models import BertEncoder
        >>> BertEncoder(100, 32, heads=4)(torch.randint(100, (2, 7))).shape
        torch.Size([2, 7, 100])

    Source: Devlin et al., arXiv:1810.04805.
    """

    def __init__(
        self, vocabulary: int, width: int, heads: int, num_layers: int = 2, longest: int = 512,
        positions: str | None = "learned", dropout: float = 0.0, tied: bool = True,
    ) -> None:  # fmt: skip
        super().__init__()
        self.vocabulary = Vocabulary(vocabulary, width, tied=tied)
        self.positions = make_positions(positions, longest, width)
        self.norm = nn.LayerNorm(width)
        self.layers = nn.ModuleList(
            TransformerEncoderLayer(width, heads, 4 * width, dropout, "gelu", batch_first=True)
            for _ in range(num_layers)
        )
        self.head = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.LayerNorm(width))

    def encode(self, tokens: Tensor, padding: Tensor | None = None) -> Tensor:
        """``[B, T]`` integers to ``[B, T, width]``; ``padding`` ``[B, T]`` is True where a token is to be ignored.

        Raises:
            ValueError: tokens of another rank, or more of them than there are positions.
        """
        check_tokens(tokens)
        x = self.norm(self.positions(self.vocabulary(tokens)))
        for layer in self.layers:
            x = layer(x, src_key_padding_mask=padding)
        return x

    def forward(self, tokens: Tensor, padding: Tensor | None = None) -> Tensor:
        """As ``encode``, to logits ``[B, T, V]``."""
        return self.vocabulary.logits(self.head(self.encode(tokens, padding)))


class TransformerLM(LanguageModel):
    """Pre-norm layers in which a token sees itself and those before it.

    Args:
        vocabulary: V.
        width: of the tokens.
        heads: N, in each layer.
        num_layers: how many.
        longest: how many positions there are.
        positions: ``learned``, ``sinusoidal``, or None.
        dropout: in the layers.
        tied: one matrix for embedding and projection.

    Raises:
        ValueError: another kind of positions, or an odd width.

    Example:
        >>> import torch
        >>> from fusednn.models import TransformerLM
        >>> model = TransformerLM(100, 32, heads=4)
        >>> model(torch.randint(100, (2, 7))).shape
        torch.Size([2, 7, 100])
        >>> logits, state = model.step(torch.tensor([1, 2]))  # as a RecurrentLM
        >>> model.generate(torch.tensor([[1], [2]]), 5).shape
        torch.Size([2, 5])

    Source: Radford et al., Language models are unsupervised multitask learners, 2019.
    """

    def __init__(
        self, vocabulary: int, width: int, heads: int, num_layers: int = 2, longest: int = 512,
        positions: str | None = "learned", dropout: float = 0.0, tied: bool = True,
    ) -> None:  # fmt: skip
        super().__init__()
        self.vocabulary = Vocabulary(vocabulary, width, tied=tied)
        self.positions = make_positions(positions, longest, width)
        self.layers: Any = nn.ModuleList(
            TransformerEncoderLayer(width, heads, 4 * width, dropout, "gelu", batch_first=True, norm_first=True)
            for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(width)

    def prefill(self, tokens: Tensor, state: State = None) -> tuple[Tensor, State]:
        """As ``TokenModel.prefill``; the state holds the keys and values of each layer."""
        check_tokens(tokens)
        before = (None,) * len(self.layers) if state is None else state
        x = self.positions(self.vocabulary(tokens), 0 if state is None else len(state[0]))
        after = []
        for layer, cache in zip(self.layers, before, strict=True):
            x, cache = layer.prefill(x, cache)
            after.append(cache)
        return self.vocabulary.logits(self.norm(x)), tuple(after)
