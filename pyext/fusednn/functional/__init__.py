"""Functions under the layers: recurrence, scans and attention."""

from .additive import additive_attention
from .attention import scaled_dot_product_attention, varlen_attention
from .recurrent import recurrent
from .scan import scan

__all__ = ["additive_attention", "recurrent", "scaled_dot_product_attention", "scan", "varlen_attention"]
