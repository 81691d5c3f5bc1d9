"""Streaming: models of four kinds read one stream, byte by byte, through one method, ``step``.

A recurrent state stays as large as it is; a transformer's cache of keys and values grows with every token;
Transformer-XL forgets what lies beyond its reach. Try: python examples/streaming.py --lengths 100 1000 5000
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import torch

from fusednn.models import RecurrentLM, TransformerLM, TransformerXL


def state_bytes(state: Any) -> int:
    """Bytes of all tensors and caches in a state."""
    return sum(map(state_bytes, state)) if isinstance(state, tuple) else state.nbytes


def main(arguments: list[str] | None = None) -> None:
    """Print microseconds a step and bytes of the state, after so many tokens."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lengths", type=int, nargs="+", default=[16, 128, 1024, 4096])
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--reach", type=int, default=64, help="of Transformer-XL")
    asked = parser.parse_args(arguments)
    lengths, width = sorted(asked.lengths), asked.width
    models = {
        "GRU": RecurrentLM(256, width, width, "GRU"),
        "LSTM": RecurrentLM(256, width, width, "LSTM"),
        "transformer": TransformerLM(256, width, heads=4, longest=lengths[-1]),
        "Transformer-XL": TransformerXL(256, width, heads=4, reach=asked.reach),
    }
    text = Path(__file__).read_bytes()
    stream = torch.tensor([text[t % len(text)] for t in range(lengths[-1])])
    print("tokens read".ljust(16) + "".join(f"{n:>22,}" for n in lengths))
    for name, model in models.items():
        state, cells, begun, before = None, [], time.perf_counter(), 0
        with torch.inference_mode():
            for t, token in enumerate(stream.split(1), 1):
                _, state = model.step(token, state)  # the same call, whatever the model
                if t in lengths:
                    us = (time.perf_counter() - begun) / (t - before) * 1e6
                    cells.append(f"{us:8.0f} us {state_bytes(state):8,} B")
                    begun, before = time.perf_counter(), t
        print(name.ljust(16) + "".join(cell.rjust(22) for cell in cells))


if __name__ == "__main__":
    main()
