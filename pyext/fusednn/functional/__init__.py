"""Functions under the layers: ``recurrent``, ``scan`` and ``scaled_dot_product_attention``."""

from .attention import scaled_dot_product_attention
from .recurrent import recurrent
from .scan import scan

__all__ = ["recurrent", "scaled_dot_product_attention", "scan"]
