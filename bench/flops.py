"""Arithmetic of a layer by formula (a multiply and an add are two), so that every implementation is billed alike."""

from __future__ import annotations

GATES = {"RNN": 1, "GRU": 3, "LSTM": 4, "MinGRU": 2, "MinLSTM": 3}
SCANS = ("MinGRU", "MinLSTM")  # no recurrent product
BACKWARD = 2  # a backward pass costs two products for each one of the forward pass


def recurrent(cell: str, B: int, T: int, I: int, H: int, layers: int = 1, directions: int = 1) -> int:  # noqa: E741
    """Input and recurrent products of a whole sequence, without pointwise work."""
    total, width = 0, I
    for _ in range(layers):
        total += directions * 2 * B * T * GATES[cell] * H * (width + (0 if cell in SCANS else H))
        width = directions * H
    return total


def attention(B: int, N: int, M: int, K: int, E: int, causal: bool = False) -> int:
    """Scores and weighted sum: 4 B N M K E, half of that under a causal mask."""
    full = 4 * B * N * M * K * E
    return full // 2 if causal else full


def encoder(B: int, T: int, d: int, ff: int, layers: int, causal: bool = False) -> int:
    """Encoder layers of width ``d``: four projections, attention over T, feed-forward of width ``ff``."""
    products = 2 * B * T * (4 * d * d + 2 * d * ff)
    return layers * (products + attention(B, 1, T, T, d, causal))


def linear(rows: int, inputs: int, outputs: int) -> int:
    return 2 * rows * inputs * outputs


def of_mode(forward: int, mode: str) -> int:
    """FLOPs of a forward pass, or of forward and backward in mode ``training``."""
    return forward * (1 + BACKWARD) if mode == "training" else forward
