"""One sequence, or one stack of layers, over several processes. ``import fusednn`` does not import this package."""

from .pipeline import pipeline_layers, pipeline_time
from .ring import local_positions, ring_attention

__all__ = ["local_positions", "pipeline_layers", "pipeline_time", "ring_attention"]
