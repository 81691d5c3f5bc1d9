"""What models of tokens share: a vocabulary, states, and generation one token at a time."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

State = Any  # of a model: tensors and caches, in tuples; None before the first token


class Vocabulary(nn.Module):
    """Tokens to vectors of variance 1, and vectors to logits.

    Args:
        size: V, how many tokens there are.
        width: of a token's vector.
        out_width: of the vectors that become logits; ``width`` if None.
        tied: use one matrix for both, as Press and Wolf, arXiv:1608.05859; scaled on the way in as Vaswani et al. 2017,
            section 3.4.

    Raises:
        ValueError: tied with two widths.
    """

    def __init__(self, size: int, width: int, out_width: int | None = None, tied: bool = False) -> None:
        super().__init__()
        out_width = out_width or width
        if tied and out_width != width:
            raise ValueError(f"tied weights need one width, got {width} and {out_width}")
        self.embedding = nn.Embedding(size, width)
        self.out = nn.Linear(out_width, size)
        self.scale = width**0.5 if tied else 1.0
        if tied:
            nn.init.normal_(self.embedding.weight, std=1 / self.scale)
            self.out.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        """``[...]`` integers to ``[..., width]``."""
        return self.embedding(tokens) * self.scale

    def logits(self, x: Tensor) -> Tensor:
        """``[..., out_width]`` to ``[..., V]``."""
        return self.out(x)


class TokenModel(nn.Module):
    """A model that reads tokens from the left. A subclass gives ``prefill``; the rest follows from it.

    States do not change: a call gives a new one, so that one state can be continued twice.
    """

    def prefill(self, tokens: Tensor, state: State = None) -> tuple[Tensor, State]:
        """Read a piece of a sequence that goes on where ``state`` ended.

        Args:
            tokens: ``[B, T]`` integers.
            state: of the tokens before, or None.

        Returns:
            ``(logits, state)``: ``[B, T, V]``, at each token those of its successor.

        Raises:
            ValueError: tokens of another rank, or more of them than the model has positions.
        """
        raise NotImplementedError

    def step(self, token: Tensor, state: State = None) -> tuple[Tensor, State]:
        """Read one token: ``[B]`` integers to logits ``[B, V]``, and the state. Token by token this is ``prefill``.

        Raises:
            ValueError: as ``prefill``.
        """
        if token.dim() != 1:
            raise ValueError(f"step() expects one token a row, [B], got shape {list(token.shape)}")
        logits, state = self.prefill(token.unsqueeze(1), state)
        return logits.squeeze(1), state

    @torch.no_grad()
    def generate(
        self, prompt: Tensor, steps: int, state: State = None, temperature: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> Tensor:  # fmt: skip
        """Continue a prompt; ``eval()`` first, where dropout shall be off.

        Args:
            prompt: ``[B, T]``, at least one token.
            steps: how many tokens to add.
            state: of the tokens before the prompt; what ``start`` gave, for a model with a source.
            temperature: of the distribution that tokens are drawn from; 0 takes the likeliest.
            generator: of the random numbers; torch's own if None.

        Returns:
            The tokens added, ``[B, steps]``.

        Raises:
            ValueError: an empty prompt, no steps, a negative temperature, or what ``prefill`` refuses.
        """
        check_tokens(prompt)
        if not prompt.shape[1] or steps < 1 or temperature < 0:
            raise ValueError(
                f"generate() needs a prompt, steps >= 1 and temperature >= 0,"
                f" got {prompt.shape[1]} tokens, {steps} and {temperature}"
            )
        logits, state = self.prefill(prompt, state)
        found = [_pick(logits[:, -1], temperature, generator)]
        while len(found) < steps:
            logits, state = self.step(found[-1], state)
            found.append(_pick(logits, temperature, generator))
        return torch.stack(found, 1)


class LanguageModel(TokenModel):
    """A model of a sequence by itself."""

    def forward(self, tokens: Tensor) -> Tensor:
        """``[B, T]`` integers to logits ``[B, T, V]``; logits t see tokens 0 to t.

        Raises:
            ValueError: as ``prefill``.
        """
        return self.prefill(tokens)[0]


def check_tokens(tokens: Tensor) -> None:
    """Raise ValueError unless these are ``[B, T]``."""
    if tokens.dim() != 2:
        raise ValueError(f"expected tokens of shape [B, T], got {list(tokens.shape)}")


def _pick(logits: Tensor, temperature: float, generator: torch.Generator | None) -> Tensor:
    """One token a row of [B, V]."""
    if temperature == 0:
        return logits.argmax(-1)
    return torch.multinomial(torch.softmax(logits / temperature, -1), 1, generator=generator).squeeze(1)
