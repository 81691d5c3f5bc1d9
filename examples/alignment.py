"""Sequences to sequences: dates as people write them to dates as machines do, and where each digit looked.

Draws Bahdanau's alignment as a picture. Needs matplotlib.
"""

from __future__ import annotations

import argparse
import datetime
import random
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from fusednn.models import AttentionSeq2Seq

LETTERS = " ,0123456789abcdefghijklmnopqrstuvwxyz"
DIGITS = "0123456789-^"  # ^ begins
FORMS = ("%d %B %Y", "%B %d, %Y", "%A %d %b %Y")
LONGEST = 21  # of a date in these forms


def batch(rows: int, generator: random.Random) -> tuple[list[str], Tensor, Tensor]:
    """Dates as text, as sources ``[B, 21]``, and as targets behind the sign that begins, ``[B, 11]``."""
    days = [datetime.date(1900, 1, 1) + datetime.timedelta(generator.randrange(150 * 365)) for _ in range(rows)]
    texts = [day.strftime(generator.choice(FORMS)).lower() for day in days]
    source = [[LETTERS.index(letter) for letter in text.ljust(LONGEST)] for text in texts]
    target = [[DIGITS.index(letter) for letter in f"^{day}"] for day in days]
    return texts, torch.tensor(source), torch.tensor(target)


def draw(source: str, written: str, alignment: Tensor, path: Path) -> None:
    """One row a character written, one column a character read."""
    figure = Figure(figsize=(8, 4))
    axes = figure.add_subplot()
    axes.imshow(alignment[:, : len(source)].numpy(), aspect="auto")
    axes.set_xticks(range(len(source)), list(source))
    axes.set_yticks(range(len(written)), list(written))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120, bbox_inches="tight")
    print(f"alignment of {source!r}: {path}")


def main(arguments: list[str] | None = None) -> float:
    """Train, draw one alignment, and return the share of dates that come out right."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--hidden", type=int, default=64)
    parser.add_argument("--out", type=Path, default=Path("build/alignment.png"))
    asked = parser.parse_args(arguments)
    torch.manual_seed(0)
    generator = random.Random(0)
    model = AttentionSeq2Seq(len(LETTERS), len(DIGITS), 32, asked.hidden)
    optimiser = torch.optim.Adam(model.parameters(), 5e-3)
    for step in range(asked.steps):
        _, source, target = batch(32, generator)
        loss = nn.functional.cross_entropy(model(source, target[:, :-1])[0].flatten(0, 1), target[:, 1:].flatten())
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        if step % max(asked.steps // 6, 1) == 0:
            print(f"step {step:5d}   loss {loss.item():.3f}")
    texts, source, target = batch(200, generator)
    written = model.generate(target[:, :1], 10, model.start(source))
    right = (written == target[:, 1:]).all(1).double().mean().item()
    answers = ["".join(DIGITS[i] for i in row) for row in written.tolist()]
    for text, answer in list(zip(texts, answers, strict=True))[:5]:
        print(f"{text:{LONGEST + 2}s} {answer}")
    print(f"{right:.0%} of 200 dates are right")
    with torch.inference_mode():
        _, alignment = model(source[:1], torch.cat([target[:1, :1], written[:1, :-1]], 1))
    draw(texts[0], answers[0], alignment[0], asked.out)
    return right


if __name__ == "__main__":
    main()
