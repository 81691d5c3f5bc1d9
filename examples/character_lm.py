"""Characters: a language model learns a text and writes on; recurrent or transformer, the same lines.

Try: python examples/character_lm.py --model transformer --text a_book.txt --steps 2000
"""

from __future__ import annotations

import argparse
import heapq
import math
from pathlib import Path

import torch
from torch import nn

from fusednn.models import AWDLSTM, LanguageModel, RecurrentLM, TransformerLM, TransformerXL

RECURRENT = ("RNN", "LSTM", "GRU", "MinGRU", "MinLSTM")


def make(kind: str, vocabulary: int, width: int) -> LanguageModel:
    """A model of a kind."""
    if kind in RECURRENT:
        return RecurrentLM(vocabulary, width, 2 * width, kind)
    if kind == "AWD":
        return AWDLSTM(vocabulary, width, 2 * width, num_layers=2)
    if kind == "transformer":
        return TransformerLM(vocabulary, width, heads=4, dropout=0.1)
    return TransformerXL(vocabulary, width, heads=4, reach=32, dropout=0.1)


def main(arguments: list[str] | None = None) -> float:
    """Train, write, and return the last loss in bits a character."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=[*RECURRENT, "AWD", "transformer", "XL"], default="GRU")
    parser.add_argument("--text", type=Path, default=Path(heapq.__file__), help="default: a module of Python's own")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--length", type=int, default=100, help="of a piece of text, and of what is written")
    parser.add_argument("--temperature", type=float, default=0.5)
    asked = parser.parse_args(arguments)
    torch.manual_seed(0)
    text = asked.text.read_text(encoding="utf-8")
    letters = sorted(set(text))
    data = torch.tensor([letters.index(letter) for letter in text])
    model = make(asked.model, len(letters), asked.width)
    optimiser = torch.optim.AdamW(model.parameters(), 4e-3)
    schedule = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.02, asked.steps)
    print(f"{asked.model}: {sum(p.numel() for p in model.parameters()):,} parameters, {len(text):,} characters")
    for step in range(asked.steps):
        rows = torch.randint(len(data) - asked.length - 1, (16, 1)) + torch.arange(asked.length + 1)
        tokens = data[rows]
        loss = nn.functional.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        if step % max(asked.steps // 6, 1) == 0 or step == asked.steps - 1:
            print(f"step {step:5d}   {loss.item() / math.log(2):.2f} bits a character")
    prompt = data[:20].unsqueeze(0)
    written = model.eval().generate(prompt, 4 * asked.length, temperature=asked.temperature)
    print("\n" + "".join(letters[i] for i in [*prompt[0].tolist(), *written[0].tolist()]))
    return loss.item() / math.log(2)


if __name__ == "__main__":
    main()
