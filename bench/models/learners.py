"""The systems of fusednn.models that bench_learning.py trains, each made by its entry from that module."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from bench import tasks

Maker = Callable[[Any], nn.Module]  # from the module fusednn.models


def open_lstm(m: Any) -> nn.Module:
    """An LSTM whose forget gates start open."""
    model = m.RecurrentLM(tasks.SYMBOLS + 1, 16, 64)
    m.forget_bias_(model.layer, 5.0)
    return model


RECALL: dict[str, Maker] = {  # the third and the last have the same size
    "RNN, H = 64": lambda m: m.RecurrentLM(tasks.SYMBOLS + 1, 16, 64, "RNN"),
    "RNN, H = 512": lambda m: m.RecurrentLM(tasks.SYMBOLS + 1, 16, 512, "RNN"),
    "LSTM, H = 64": lambda m: m.RecurrentLM(tasks.SYMBOLS + 1, 16, 64),
    "LSTM, H = 64, forget bias 5": open_lstm,
    "transformer": lambda m: m.TransformerLM(tasks.SYMBOLS + 1, 32, 4, num_layers=1, longest=256),
}
COPY: dict[str, Maker] = {  # of one size
    "seq2seq": lambda m: m.Seq2Seq(tasks.COPIED, tasks.COPIED + 1, 32, 82),
    "seq2seq with attention": lambda m: m.AttentionSeq2Seq(tasks.COPIED, tasks.COPIED + 1, 32, 48),
}
AGREEMENT: dict[str, Maker] = {  # of one size
    "LSTM": lambda m: m.RecurrentLM(tasks.NOUNS + 1, 16, 52),
    "transformer": lambda m: m.TransformerLM(tasks.NOUNS + 1, 32, 4, num_layers=1, longest=64),
}
ORDERING: dict[str, Maker] = {
    "encoder, no positions": lambda m: m.BertEncoder(tasks.ORDERED, 32, 4, 1, positions=None),
    "encoder, learned positions": lambda m: m.BertEncoder(tasks.ORDERED, 32, 4, 1),
    "encoder, sinusoidal positions": lambda m: m.BertEncoder(tasks.ORDERED, 32, 4, 1, positions="sinusoidal"),
    "decoder, no positions": lambda m: m.TransformerLM(tasks.ORDERED, 32, 4, positions=None),
}


class Truncated(nn.Module):
    """A language model that is trained through k steps at a time."""

    def __init__(self, model: Any, k: int, detach: Callable[[Any], Any]) -> None:
        super().__init__()
        self.model, self.k, self.detach = model, k, detach

    def forward(self, tokens: Tensor) -> Tensor:
        """[B, T] -> [B, T, V]; the state goes on, its gradient does not."""
        state, found = None, []
        for segment in tokens.split(self.k, 1):
            logits, state = self.model.prefill(segment, self.detach(state))
            found.append(logits)
        return torch.cat(found, 1)


def truncated_gru(m: Any, k: int) -> Truncated:
    return Truncated(m.RecurrentLM(tasks.SYMBOLS + 1, 16, 64, "GRU"), k, m.detach)
