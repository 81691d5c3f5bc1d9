"""``python -m fusednn profile``: Nsight Compute, Nsight Systems, torch's profiler on a layer, a benchmark, a script.

``target`` says what runs, ``tools`` with which commands, ``reports`` reads what they wrote; ``workload`` is the program
that runs a layer, ``recorder`` the one that puts torch's profiler around another. ``ranges`` marks the time line.
"""

from .ranges import listen_to_nvtx, measured, span

__all__ = ["listen_to_nvtx", "measured", "span"]
