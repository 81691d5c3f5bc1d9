"""The systems that explain how attention came to displace recurrence, small and on our layers.

``docs/models.md`` lists them, with what each learns in the tests and where it fails.
"""

from ..layers.state import detach
from .awd import AWDLSTM
from .encoder_decoder import EncoderDecoder
from .gradients import GradientTracker
from .long import Longformer, TransformerXL
from .positions import Positions, RelativeBias, sinusoidal
from .recurrent import BidirectionalEncoder, RecurrentLM, SimpleRNN, forget_bias_, identity_
from .seq2seq import AttentionSeq2Seq, Seq2Seq
from .tokens import LanguageModel, TokenModel
from .transformer import BertEncoder, TransformerLM

__all__ = [
    "AWDLSTM",
    "AttentionSeq2Seq",
    "BertEncoder",
    "BidirectionalEncoder",
    "EncoderDecoder",
    "GradientTracker",
    "LanguageModel",
    "Longformer",
    "Positions",
    "RecurrentLM",
    "RelativeBias",
    "Seq2Seq",
    "SimpleRNN",
    "TokenModel",
    "TransformerLM",
    "TransformerXL",
    "detach",
    "forget_bias_",
    "identity_",
    "sinusoidal",
]
