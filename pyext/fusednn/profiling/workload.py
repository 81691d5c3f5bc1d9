"""Run a layer or an attention again and again: what ``profile`` profiles, and ``python -m fusednn compare`` times."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .. import functional
from ..layers.attention import MultiheadAttention
from ..layers.minimal import MinGRU, MinLSTM
from ..layers.recurrent import GRU, LSTM, RNN
from ..layers.transformer import TransformerEncoderLayer
from ..plan import NAMES
from .ranges import measured

DTYPES = ("float64", "float32", "bfloat16", "float16")
RECURRENT = {"rnn": RNN, "lstm": LSTM, "gru": GRU}
KINDS = (*RECURRENT, "mingru", "minlstm", "attention", "multihead", "transformer")
WARM = 3  # calls before: the first ones compile, allocate and record graphs


def positive(text: str) -> int:
    """A number of at least 1, for argparse."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected a positive number, got {value}")
    return value


def add_sizes(parser: argparse.ArgumentParser, batch: int = 8, hidden: int = 256, device: str = "cpu") -> None:
    """The options that say how large a layer is, of which type, where, and by which strategy."""
    parser.add_argument("--batch", type=positive, default=batch, metavar="B")
    parser.add_argument("--time", type=positive, default=100, metavar="T", help="steps; for attention queries and keys")
    parser.add_argument(
        "--hidden", type=positive, default=hidden, metavar="H", help="input and hidden size; model width"
    )
    parser.add_argument("--heads", type=positive, default=8, metavar="N", help="of attention")
    parser.add_argument("--layers", type=positive, default=1, metavar="L", help="of rnn, lstm and gru")
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--device", default=device, help="cpu, cuda, cuda:1 ...")
    parser.add_argument("--strategy", choices=NAMES, default="auto", help="of rnn, lstm and gru")


def check(options: argparse.Namespace) -> None:
    """Refuse what the sizes of `add_sizes` cannot mean together.

    Raises:
        ValueError: with what was expected and what came.
    """
    if torch.device(options.device).type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"--device {options.device}: torch sees no such GPU; `python -m fusednn` says what is there")
    if options.what not in RECURRENT and (options.strategy != "auto" or options.layers != 1):
        raise ValueError(f"--strategy and --layers are for rnn, lstm and gru, got one with {options.what}")
    if options.what in ("attention", "multihead", "transformer"):
        check_heads(options)


def check_heads(options: argparse.Namespace) -> None:
    """Refuse heads of no whole size.

    Raises:
        ValueError: with what was expected and what came.
    """
    if options.hidden % options.heads:
        raise ValueError(f"--hidden must be a multiple of --heads, got {options.hidden} and {options.heads}")


def place_of(options: argparse.Namespace) -> dict[str, Any]:
    """Device and dtype, as keywords of tensors and layers."""
    return {"device": options.device, "dtype": getattr(torch, options.dtype)}


def recurrent_layer(options: argparse.Namespace) -> nn.Module:
    """The RNN, LSTM or GRU of the options, batch first."""
    asked = {"num_layers": options.layers, "strategy": options.strategy, "batch_first": True}
    return RECURRENT[options.what](options.hidden, options.hidden, **asked, **place_of(options))


def call_of(options: argparse.Namespace) -> Callable[[], Tensor]:
    """One call; gives the tensor that training goes back from. Inputs are random and want gradients in training."""
    check(options)
    width, heads, made = options.hidden, options.heads, place_of(options)
    place = {**made, "requires_grad": options.training}
    if options.what == "attention":
        q, k, v = (torch.randn(options.batch, heads, options.time, width // heads, **place) for _ in range(3))
        return lambda: functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    x = torch.randn(options.batch, options.time, width, **place)
    if options.what == "multihead":
        attention = MultiheadAttention(width, heads, batch_first=True, **made)
        return lambda: attention(x, x, x, need_weights=False)[0]
    if options.what == "transformer":
        block = TransformerEncoderLayer(width, heads, 4 * width, dropout=0.0, batch_first=True, **made)
        return lambda: block(x)
    if options.what in RECURRENT:
        layer = recurrent_layer(options)
    else:
        layer = {"mingru": MinGRU, "minlstm": MinLSTM}[options.what](width, width, batch_first=True, **made)
    return lambda: layer(x)[0]


def run(options: argparse.Namespace) -> None:
    """Warm up, then make ``options.repeat`` calls, which are what is `measured`."""
    call = call_of(options)

    def once() -> None:
        with torch.set_grad_enabled(options.training):
            result = call()
            if options.training:
                result.backward(torch.ones_like(result))

    for _ in range(WARM):
        once()
    _settle(options.device)
    with measured():
        for _ in range(options.repeat):
            once()
        _settle(options.device)


def _settle(device: str) -> None:
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def parser() -> argparse.ArgumentParser:
    """Of the workload's own command line."""
    made = argparse.ArgumentParser(
        prog="python -m fusednn profile --", formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        description="a layer, batch first, on random input",
    )  # fmt: skip
    made.add_argument("what", choices=KINDS)
    add_sizes(made, device="cuda" if torch.cuda.is_available() else "cpu")
    made.add_argument("--training", action="store_true", help="forward and backward")
    made.add_argument("--repeat", type=positive, default=3, help="calls that are profiled")
    return made


if __name__ == "__main__":
    options = parser().parse_args()
    try:
        run(options)
    except ValueError as error:
        raise SystemExit(f"fusednn: {error}") from error
