"""Byte-level language models of equal size: RNN, LSTM, GRU, MinGRU, transformer."""

from __future__ import annotations

from torch import Tensor, nn

from bench.flops import GATES, SCANS
from bench.models.factory import Factory
from bench.models.positions import LearnedPositions

BYTES = 256
EMBEDDING = 64  # width of the byte embedding, and of the transformer
HEADS, DEPTH, LONGEST = 4, 2, 128
KINDS = ("RNN", "LSTM", "GRU", "MinGRU", "transformer")


class RecurrentLM(nn.Module):
    """Embedding, one recurrent layer, projection to 256 logits."""

    def __init__(self, factory: Factory, cell: str, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(BYTES, EMBEDDING)
        self.layer = factory.recurrent(cell, EMBEDDING, width)
        self.out = nn.Linear(width, BYTES)

    def forward(self, tokens: Tensor) -> Tensor:
        """[B, T] -> [B, T, 256]."""
        return self.out(self.layer(self.embedding(tokens))[0])


class TransformerLM(nn.Module):
    """Embedding, learned positions, pre-norm encoder layers under a causal mask, projection to 256 logits."""

    def __init__(self, factory: Factory) -> None:
        super().__init__()
        self.embedding = nn.Embedding(BYTES, EMBEDDING)
        self.positions = LearnedPositions(LONGEST, EMBEDDING)
        self.layers = nn.ModuleList(
            factory.encoder_layer(EMBEDDING, HEADS, 4 * EMBEDDING, norm_first=True) for _ in range(DEPTH)
        )
        self.norm = nn.LayerNorm(EMBEDDING)
        self.out = nn.Linear(EMBEDDING, BYTES)

    def forward(self, tokens: Tensor) -> Tensor:
        """[B, T] -> [B, T, 256], position t sees bytes 0 to t."""
        T = tokens.shape[1]
        mask = nn.Transformer.generate_square_subsequent_mask(T, device=tokens.device, dtype=self.out.weight.dtype)
        x = self.positions(self.embedding(tokens))
        for layer in self.layers:
            x = layer(x, src_mask=mask, is_causal=True)
        return self.out(self.norm(x))


ByteLM = RecurrentLM | TransformerLM


def _size(cell: str, width: int) -> int:
    """Parameters of a `RecurrentLM`."""
    inputs = EMBEDDING + 1 if cell in SCANS else EMBEDDING + width + 2  # with biases
    layer = GATES[cell] * width * inputs
    return BYTES * EMBEDDING + layer + BYTES * (width + 1)


def _transformer_size() -> int:
    d = EMBEDDING
    layer = 12 * d * d + 13 * d
    return BYTES * d + LONGEST * d + DEPTH * layer + 2 * d + BYTES * (d + 1)


def equal_width(cell: str) -> int:
    """The width at which a recurrent model comes closest to the transformer's number of parameters."""
    target = _transformer_size()
    return min(range(16, 1024), key=lambda width: abs(_size(cell, width) - target))


def byte_lm(factory: Factory, kind: str) -> ByteLM:
    """A byte model of one of `KINDS`; all have the same number of parameters within 2 %."""
    if kind == "transformer":
        return TransformerLM(factory)
    return RecurrentLM(factory, kind, equal_width(kind))
