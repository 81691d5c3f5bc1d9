"""Digits, one pixel after the other: 64 steps of one number each, then a class. Needs scikit-learn.

The first pixels matter to the last step, so this asks how far a recurrent layer remembers.
"""

from __future__ import annotations

import argparse
from functools import partial

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

import fusednn
from fusednn.models import forget_bias_, identity_

SHADES = " .:-=+*#%@"


class Classifier(nn.Module):
    """A recurrent layer over the pixels; the last state decides."""

    def __init__(self, layer: nn.Module, hidden: int) -> None:
        super().__init__()
        self.layer, self.out = layer, nn.Linear(hidden, 10)

    def forward(self, pixels: Tensor) -> Tensor:
        """``[B, 64, 1]`` to ``[B, 10]``."""
        return self.out(self.layer(pixels)[0][:, -1])


CONTENDERS = {
    "RNN": fusednn.RNN,
    "IRNN": lambda *sizes, **options: identity_(fusednn.RNN(*sizes, nonlinearity="relu", **options)),
    "LSTM": fusednn.LSTM,
    "LSTM-open": lambda *sizes, **options: forget_bias_(fusednn.LSTM(*sizes, **options), 3.0),
    "GRU": fusednn.GRU,
    "MinGRU": partial(fusednn.MinGRU, num_layers=2),
}


def main(arguments: list[str] | None = None) -> dict[str, float]:
    """Train each layer, print its accuracy on unseen digits and a mistake of its own, and return the accuracies."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--hidden", type=int, default=64)
    parser.add_argument("--layers", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    asked = parser.parse_args(arguments)
    torch.manual_seed(0)
    digits, found = load_digits(), {}
    pixels = torch.tensor(digits.data, dtype=torch.float32).unsqueeze(-1) / 16  # [1797, 64, 1]
    classes = torch.tensor(digits.target)
    order = torch.randperm(len(pixels))
    train, test = order[:1437], order[1437:]
    for name in asked.layers:
        model = Classifier(CONTENDERS[name](1, asked.hidden, batch_first=True), asked.hidden)
        optimiser = torch.optim.Adam(model.parameters(), 1e-3 if name == "IRNN" else 4e-3)
        for _ in range(asked.epochs):
            for rows in train[torch.randperm(len(train))].split(64):
                loss = nn.functional.cross_entropy(model(pixels[rows]), classes[rows])
                optimiser.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimiser.step()
        with torch.inference_mode():
            guess = model(pixels[test]).argmax(-1)
        found[name] = (guess == classes[test]).double().mean().item()
        print(f"{name:12s} {found[name]:6.1%}")
        for row in (guess != classes[test]).nonzero().flatten()[:1]:
            print(f"takes this {int(classes[test][row])} for {int(guess[row])}:")
            for line in pixels[test][row].view(8, 8):
                print("".join(2 * SHADES[int(shade * 9)] for shade in line))
    return found


if __name__ == "__main__":
    main()
