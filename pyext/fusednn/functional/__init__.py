"""Functions under the layers: ``fusednn.functional.recurrent``, ``fusednn.functional.scaled_dot_product_attention``."""

from .attention import scaled_dot_product_attention
from .recurrent import recurrent

__all__ = ["recurrent", "scaled_dot_product_attention"]
