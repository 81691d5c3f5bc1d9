"""Fused recurrent and attention kernels for PyTorch, as layers that take the place of torch.nn's."""

import os

from . import functional, integrations, onnx, profiling  # noqa: F401  (integrations registers itself)
from .comparison import compare
from .conversion import convert, revert
from .explanation import explain
from .layers.additive import AdditiveAttention
from .layers.attention import MultiheadAttention
from .layers.cells import GRUCell, LSTMCell, RNNCell
from .layers.minimal import MinGRU, MinLSTM
from .layers.recurrent import GRU, LSTM, RNN
from .layers.state import detach
from .layers.transformer import TransformerDecoderLayer, TransformerEncoderLayer

if os.environ.get("FUSEDNN_NVTX") == "1":
    profiling.listen_to_nvtx()

__version__ = "0.1.0"
__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "AdditiveAttention",
    "GRUCell",
    "LSTMCell",
    "MinGRU",
    "MinLSTM",
    "MultiheadAttention",
    "RNNCell",
    "TransformerDecoderLayer",
    "TransformerEncoderLayer",
    "compare",
    "convert",
    "detach",
    "explain",
    "functional",
    "revert",
]


def __getattr__(name: str):
    """Parts that few use, imported when they are named first."""
    if name in ("distributed", "models"):
        from importlib import import_module

        return import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
