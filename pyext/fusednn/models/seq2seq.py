"""Sequences to sequences by LSTMs: through one state, and with attention to all of the source."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..functional import additive_attention
from ..layers.additive import AdditiveAttention
from ..layers.recurrent import LSTM
from .tokens import State, TokenModel, Vocabulary, check_tokens

NEEDS_SOURCE = "the first token needs a state: start(source) gives it"


class Seq2Seq(TokenModel):
    """An LSTM reads the source; another goes on from its last state, which is all it knows of the source.

    Args:
        source_vocabulary: how many tokens the source has.
        vocabulary: V, how many the target has.
        width: of a token's vector.
        hidden_size: H.
        num_layers: how many in each of the two.
        reverse: read the source from its end, which brings its beginning closer to the target's (section 3.3).
        dropout: between layers.

    Shape:
        all sources of a batch have one length; so have all targets.

    Example:
        >>> import torch
        >>> from fusednn.models import Seq2Seq
        >>> model, source = Seq2Seq(50, 40, 32, 64), torch.randint(50, (2, 7))
        >>> model(source, torch.randint(40, (2, 5))).shape
        torch.Size([2, 5, 40])
        >>> begin = torch.zeros(2, 1, dtype=torch.long)
        >>> model.generate(begin, 6, model.start(source)).shape
        torch.Size([2, 6])

    Source: Sutskever, Vinyals and Le, arXiv:1409.3215.
    """

    def __init__(
        self, source_vocabulary: int, vocabulary: int, width: int, hidden_size: int, num_layers: int = 1,
        reverse: bool = False, dropout: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__()
        self.reverse = reverse
        self.source = nn.Embedding(source_vocabulary, width)
        self.target = Vocabulary(vocabulary, width, hidden_size)
        self.encoder = LSTM(width, hidden_size, num_layers, batch_first=True, dropout=dropout)
        self.decoder = LSTM(width, hidden_size, num_layers, batch_first=True, dropout=dropout)

    def start(self, source: Tensor) -> State:
        """Read the source, ``[B, K]`` integers: the state before the first target token.

        Raises:
            ValueError: a source of another rank.
        """
        check_tokens(source)
        return self.encoder(self.source(source.flip(1) if self.reverse else source))[1]

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        """Logits ``[B, T, V]`` of the successor of each target token, given the source ``[B, K]``.

        Raises:
            ValueError: tokens of another rank.
        """
        return self.prefill(target, self.start(source))[0]

    def prefill(self, tokens: Tensor, state: State = None) -> tuple[Tensor, State]:
        """As ``TokenModel.prefill``; the state is (h, c)."""
        check_tokens(tokens)
        if state is None:
            raise ValueError(NEEDS_SOURCE)
        y, state = self.decoder(self.target(tokens), state)
        return self.target.logits(y), state


class Attended(NamedTuple):
    """State of ``AttentionSeq2Seq``.

    Attributes:
        hidden: the decoder's (h, c).
        key: the source's states, projected, ``[B, K, H]``.
        value: the source's states, ``[B, K, 2 * H]``.
        alignment: where the last token looked, ``[B, K]``.
    """

    hidden: tuple[Tensor, Tensor]
    key: Tensor
    value: Tensor
    alignment: Tensor


class AttentionSeq2Seq(TokenModel):
    """An LSTM reads the source both ways; another looks, before each token, at the states that matter to it.

    Args:
        source_vocabulary: how many tokens the source has.
        vocabulary: V, how many the target has.
        width: of a token's vector.
        hidden_size: H.

    Shape:
        all sources of a batch have one length; so have all targets.

    Example:
        >>> import torch
        >>> from fusednn.models import AttentionSeq2Seq
        >>> model = AttentionSeq2Seq(50, 40, 32, 64)
        >>> logits, alignment = model(torch.randint(50, (2, 7)), torch.randint(40, (2, 5)))
        >>> logits.shape, alignment.shape
        (torch.Size([2, 5, 40]), torch.Size([2, 5, 7]))

    Source: Bahdanau, Cho and Bengio, arXiv:1409.0473, with LSTMs for its GRUs and a linear projection for its maxout.
    """

    def __init__(self, source_vocabulary: int, vocabulary: int, width: int, hidden_size: int) -> None:
        super().__init__()
        self.source = nn.Embedding(source_vocabulary, width)
        self.target = Vocabulary(vocabulary, width, 3 * hidden_size)
        self.encoder = LSTM(width, hidden_size, batch_first=True, bidirectional=True)
        self.bridge = nn.Linear(hidden_size, hidden_size)
        self.attention = AdditiveAttention(hidden_size, 2 * hidden_size, hidden_size)
        self.decoder = LSTM(width + 2 * hidden_size, hidden_size, batch_first=True)

    def start(self, source: Tensor) -> Attended:
        """Read the source, ``[B, K]`` integers: the state before the first target token.

        Raises:
            ValueError: a source of another rank.
        """
        check_tokens(source)
        value, (h, _) = self.encoder(self.source(source))
        h = torch.tanh(self.bridge(h[1:]))  # of the direction that has read the first word last
        return Attended((h, torch.zeros_like(h)), self.attention.key_projection(value), value, value.new_zeros(
            source.shape))  # fmt: skip

    def forward(self, source: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Logits ``[B, T, V]`` of the successor of each target token, and where each looked, ``[B, T, K]``.

        Raises:
            ValueError: tokens of another rank.
        """
        check_tokens(target)
        state, found = self.start(source), []
        for token in target.unbind(1):
            logits, state = self.step(token, state)
            found.append((logits, state.alignment))
        logits, alignment = zip(*found, strict=True)
        return torch.stack(logits, 1), torch.stack(alignment, 1)

    def prefill(self, tokens: Tensor, state: State = None) -> tuple[Tensor, State]:
        """As ``TokenModel.prefill``, a loop over ``step``: each token's query is the state that the one before left."""
        check_tokens(tokens)
        found = []
        for token in tokens.unbind(1):
            logits, state = self.step(token, state)
            found.append(logits)
        return torch.stack(found, 1), state

    def step(self, token: Tensor, state: State = None) -> tuple[Tensor, Attended]:
        """As ``TokenModel.step``; the state's ``alignment`` says where the token looked."""
        if state is None:
            raise ValueError(NEEDS_SOURCE)
        query = self.attention.query_projection(state.hidden[0][-1]).unsqueeze(1)
        context, alignment = additive_attention(query, state.key, state.value, self.attention.weight)
        context = context.squeeze(1)
        y, hidden = self.decoder.step(torch.cat([self.target(token), context], -1), state.hidden)
        logits = self.target.logits(torch.cat([y, context], -1))
        return logits, state._replace(hidden=hidden, alignment=alignment.squeeze(1))
