"""The models that are measured. Each takes a layer factory, so that fusednn's and torch.nn's layers are both measured
in one and the same model. That, and that the suites run where fusednn cannot be imported, sets them apart from
``fusednn.models``, whose systems are to be learned from."""

from bench.models.byte_lm import ByteLM, byte_lm
from bench.models.factory import Factory
from bench.models.seeds import SeedLSTM, SeedTransformer
from bench.models.stacks import EncoderStack, recurrent_stack

__all__ = [
    "ByteLM",
    "EncoderStack",
    "Factory",
    "SeedLSTM",
    "SeedTransformer",
    "byte_lm",
    "recurrent_stack",
]
