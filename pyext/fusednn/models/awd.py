"""The weight-dropped LSTM language model."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..layers.recurrent import LSTM
from .tokens import LanguageModel, State, Vocabulary, check_tokens


class AWDLSTM(LanguageModel):
    """Tied LSTM layers that drop recurrent weights, units of their inputs and outputs, and whole words, in training.

    Of each sequence and step of training the same: a weight that is dropped is dropped at every step, a unit that is
    dropped likewise (locked dropout), and a word that is dropped wherever it occurs. Each call draws anew, and so does
    each ``step`` in training. The paper's averaged SGD is the trainer's part: ``torch.optim.ASGD``.

    Args:
        vocabulary: V.
        width: of a token's vector, and of the last layer, which is tied to it.
        hidden_size: H of the layers before the last.
        num_layers: how many.
        weight_drop: probability that a recurrent weight is dropped.
        dropout: of the last layer's output; ``between``: of the layers' outputs before; ``inputs``: of the vectors.
        between: see there.
        inputs: see there.
        words: probability that a word is dropped.

    Raises:
        ValueError: a probability outside 0 to 1.

    Example:
        >>> import torch
        >>> from fusednn.models import AWDLSTM
        >>> AWDLSTM(100, 32, 64, num_layers=2)(torch.randint(100, (2, 7))).shape
        torch.Size([2, 7, 100])

    Source: Merity, Keskar and Socher, arXiv:1708.02182; locked dropout and words by Gal and Ghahramani,
    arXiv:1512.05287.
    """

    def __init__(
        self, vocabulary: int, width: int, hidden_size: int, num_layers: int = 3, weight_drop: float = 0.5,
        dropout: float = 0.4, between: float = 0.25, inputs: float = 0.4, words: float = 0.1,
    ) -> None:  # fmt: skip
        super().__init__()
        drops = (weight_drop, dropout, between, inputs, words)
        if not all(0 <= p <= 1 for p in drops):
            raise ValueError(f"probabilities lie between 0 and 1, got {drops}")
        self.vocabulary = Vocabulary(vocabulary, width, tied=True)
        sizes = [width, *[hidden_size] * (num_layers - 1), width]
        self.layers = nn.ModuleList(LSTM(i, o, batch_first=True, weight_drop=weight_drop) for i, o in pairwise(sizes))
        self.drops = [inputs, *[between] * (num_layers - 1), dropout]
        self.words = words

    def prefill(self, tokens: Tensor, state: State = None) -> tuple[Tensor, State]:
        """As ``TokenModel.prefill``; the state holds (h, c) of each layer."""
        check_tokens(tokens)
        x = locked_dropout(self._embed(tokens), self.drops[0], self.training)
        states = []
        for layer, before, drop in zip(self.layers, state or [None] * len(self.layers), self.drops[1:], strict=True):
            x, after = layer(x, before)
            x = locked_dropout(x, drop, self.training)
            states.append(after)
        return self.vocabulary.logits(x), tuple(states)

    def _embed(self, tokens: Tensor) -> Tensor:
        x = self.vocabulary(tokens)
        if not self.training or not self.words:
            return x
        kept = F.dropout(x.new_ones(self.vocabulary.embedding.num_embeddings), self.words)
        return x * kept[tokens].unsqueeze(-1)


def locked_dropout(x: Tensor, p: float, training: bool) -> Tensor:
    """Drop units of ``[B, T, width]`` at all steps of a sequence alike."""
    if not training or not p:
        return x
    return x * F.dropout(torch.ones_like(x[:, :1]), p)
