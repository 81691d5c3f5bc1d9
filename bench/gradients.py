"""How far a gradient reaches: norms of dL/dx at distance k, in fp64, where nothing underflows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from bench import layers

KINDS = ("RNN", "LSTM", "LSTM forget bias 1", "GRU", "IRNN", "RNN norm 1.5", "RNN radius 1.5")
INPUTS, WIDTH, BATCH = 10, 50, 16


def network(kind: str, impl: str = layers.OURS) -> nn.Module:
    """A recurrent layer in fp64 with the initialisation that its name says."""
    cell = {"IRNN": "RNN"}.get(kind, kind.split()[0])
    options = {"nonlinearity": "relu"} if kind == "IRNN" else {}
    net: Any = layers.recurrent(impl, cell, INPUTS, WIDTH, batch_first=True, dtype=torch.float64, **options)
    with torch.no_grad():
        if kind == "IRNN":  # Le, Jaitly, Hinton 2015: identity and zero biases
            net.weight_hh_l0.copy_(torch.eye(WIDTH, dtype=torch.float64))
            net.bias_ih_l0.zero_()
            net.bias_hh_l0.zero_()
        elif kind == "LSTM forget bias 1":
            net.bias_ih_l0[WIDTH : 2 * WIDTH] = 1.0
            net.bias_hh_l0[WIDTH : 2 * WIDTH] = 0.0
        elif kind == "RNN norm 1.5":
            net.weight_hh_l0.mul_(1.5 / torch.linalg.matrix_norm(net.weight_hh_l0, 2))
        elif kind == "RNN radius 1.5":
            net.weight_hh_l0.mul_(1.5 / torch.linalg.eigvals(net.weight_hh_l0).abs().max())
    return net


def backward(net: nn.Module, T: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Gradients of a random projection of the last state: with respect to x ``[B, T, I]``, and all parameters' norm."""
    x = torch.randn(BATCH, T, INPUTS, dtype=torch.float64, generator=generator).requires_grad_()
    aim = torch.randn(BATCH, WIDTH, dtype=torch.float64, generator=generator)
    net.zero_grad()
    (net(x)[0][:, -1] * aim).sum().backward()
    assert x.grad is not None
    total = torch.stack([p.grad.norm() for p in net.parameters() if p.grad is not None]).norm()
    return x.grad, total


def by_distance(gradient: Tensor) -> Tensor:
    """Norm of dL/dx at distance k = 0, 1, ... from the last step.  # [T]"""
    return gradient.flip(1).square().sum((0, 2)).sqrt()


def log_slope(norms: Tensor) -> float:
    """Slope of log10(norm) against distance, over the distances at which the norm is not zero."""
    keep = norms > 1e-290
    k = torch.arange(norms.numel(), dtype=torch.float64)[keep]
    y = norms[keep].log10()
    k = k - k.mean()
    return float((k * y).sum() / (k * k).sum())
