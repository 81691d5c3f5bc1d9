"""Time series: Elman's network learns a noisy series one step ahead, then goes on alone.

It is fed its own forecast by ``step``, as in use, where the future is not known.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor, nn

from fusednn.models import SimpleRNN

BARS = "▁▂▃▄▅▆▇█"


def series(rows: int, length: int, noise: float) -> Tensor:
    """Two waves of periods 12 and 31 at random phases, and noise.  # [B, T, 1]"""
    t = torch.arange(length)
    phase = 2 * torch.pi * torch.rand(2, rows, 1)
    clean = torch.sin(2 * torch.pi * t / 12 + phase[0]) + 0.6 * torch.sin(2 * torch.pi * t / 31 + phase[1])
    return (clean + noise * torch.randn(rows, length)).unsqueeze(-1)


def sparkline(values: Tensor) -> str:
    """The values as bars."""
    scaled = ((values + 1.7) / 3.4 * len(BARS)).long().clamp(0, len(BARS) - 1)
    return "".join(BARS[i] for i in scaled.tolist())


def main(arguments: list[str] | None = None) -> float:
    """Train, forecast, and return the root of the mean squared error of the forecast."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--hidden", type=int, default=64)
    parser.add_argument("--seen", type=int, default=100, help="steps before the forecast")
    parser.add_argument("--forecast", type=int, default=60)
    parser.add_argument("--noise", type=float, default=0.05)
    asked = parser.parse_args(arguments)
    torch.manual_seed(0)
    model = SimpleRNN(1, asked.hidden, 1)
    optimiser = torch.optim.Adam(model.parameters(), 5e-3)
    schedule = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.02, asked.steps)
    for step in range(asked.steps):
        x = series(32, asked.seen + 1, asked.noise)
        loss = nn.functional.mse_loss(model(x[:, :-1])[0], x[:, 1:])
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        if step % max(asked.steps // 5, 1) == 0:
            print(f"step {step:5d}   error one step ahead {loss.item() ** 0.5:.3f}")
    x = series(64, asked.seen + asked.forecast, asked.noise)
    with torch.inference_mode():
        y, state = model(x[:, : asked.seen])
        found = [y[:, -1]]
        while len(found) < asked.forecast:
            y, state = model.step(found[-1], state)
            found.append(y)
    future, forecast = x[:, asked.seen :, 0], torch.stack(found, 1)[..., 0]
    error, still = (float((future - guess).square().mean().sqrt()) for guess in (forecast, x[:, asked.seen - 1]))
    print(f"\nseen      {sparkline(x[0, max(asked.seen - asked.forecast, 0) : asked.seen, 0])}")
    print(f"future    {sparkline(future[0])}")
    print(f"forecast  {sparkline(forecast[0])}")
    print(f"error over {asked.forecast} steps: {error:.3f}; of repeating the last value: {still:.3f}")
    return error


if __name__ == "__main__":
    main()
