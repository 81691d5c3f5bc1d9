"""The models that are measured. Each takes a layer factory, so that fusednn's and torch.nn's layers are both measured
in one and the same model."""

from bench.models.byte_lm import ByteLM, byte_lm
from bench.models.factory import Factory
from bench.models.seeds import SeedLSTM, SeedTransformer
from bench.models.simple_rnn import SimpleRNN
from bench.models.stacks import EncoderStack, recurrent_stack

__all__ = [
    "ByteLM",
    "EncoderStack",
    "Factory",
    "SeedLSTM",
    "SeedTransformer",
    "SimpleRNN",
    "byte_lm",
    "recurrent_stack",
]
