"""Functions under the layers: ``recurrent``, ``scan``, ``scaled_dot_product_attention``, ``additive_attention``."""

from .additive import additive_attention
from .attention import scaled_dot_product_attention
from .recurrent import recurrent
from .scan import scan

__all__ = ["additive_attention", "recurrent", "scaled_dot_product_attention", "scan"]
