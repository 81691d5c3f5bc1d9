"""The two models that the seeds compare. Both end in the same projection to the vocabulary, at every position."""

from __future__ import annotations

from torch import Tensor, nn

from bench.models.factory import Factory
from bench.models.positions import LearnedPositions

VOCABULARY, WIDTH, LAYERS, HEADS, LONGEST = 10_000, 512, 6, 8, 1024


class SeedLSTM(nn.Module):
    """Embedding 10000 x 512, one LSTM layer of width 512, projection."""

    def __init__(self, factory: Factory, vocabulary: int = VOCABULARY, width: int = WIDTH) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.lstm = factory.recurrent("LSTM", width, width)
        self.out = nn.Linear(width, vocabulary)

    def forward(self, tokens: Tensor) -> Tensor:
        """[B, T] -> [B, T, vocabulary]."""
        hidden, _ = self.lstm(self.embedding(tokens))
        return self.out(hidden)


class SeedTransformer(nn.Module):
    """Embedding, learned positions, six encoder layers of eight heads (feed-forward 4 x width), projection."""

    def __init__(
        self, factory: Factory, vocabulary: int = VOCABULARY, width: int = WIDTH, layers: int = LAYERS,
        heads: int = HEADS, longest: int = LONGEST,
    ) -> None:  # fmt: skip
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.positions = LearnedPositions(longest, width)
        self.layers = nn.ModuleList(factory.encoder_layer(width, heads, 4 * width) for _ in range(layers))
        self.out = nn.Linear(width, vocabulary)

    def forward(self, tokens: Tensor) -> Tensor:
        """[B, T] -> [B, T, vocabulary]."""
        x = self.positions(self.embedding(tokens))
        for layer in self.layers:
            x = layer(x)
        return self.out(x)
