"""The flat record of a cell. A value that was not measured is None, never 0."""

from __future__ import annotations

from typing import Any

IDENTITY = ("impl", "cell", "basis", "B", "T", "H", "N", "E", "dtype", "mode", "device", "threads_torch", "seed")
TIMES = (
    "clock", "l2", "us_per_step", "us_per_token", "tokens_per_s", "host_us_per_step", "launch_us_per_step",
    "gap_fraction", "flops", "bytes_min", "tflops", "pct_peak_flops", "gbps", "pct_peak_bw",
)  # fmt: skip
COUNTS = ("launches", "launches_per_step", "launch_source", "aten_ops")
KERNEL = (
    "regs", "smem", "spills", "threads", "grid", "waves", "occupancy_theoretical", "occupancy_limiter",
    "occupancy_achieved", "occupancy_source", "sm_active_pct", "tensor_active_pct", "sm_mhz", "throttle",
)  # fmt: skip
MEMORY = ("peak_mem_mib", "saved_mib", "state_bytes")
TRUST = ("max_err", "err_budget", "foreign_cpus", "rejected_rounds", "disturbed", "skip_reason")
MODEL = ("params", "ratio", "ratio_low", "ratio_high", "other", "held_out_bits", "unigram_bits", "train_bytes")
GRADIENT = ("slope", "slope_low", "slope_high", "slope_of")
TEXTS = ("impl", "cell", "basis", "dtype", "mode", "device", "clock", "l2", "launch_source", "occupancy_limiter",
         "occupancy_source", "throttle", "skip_reason", "other", "slope_of")  # fmt: skip
FLAGS = ("disturbed",)
FIELDS = (*IDENTITY, *TIMES, *COUNTS, *KERNEL, *MEMORY, *TRUST, *MODEL, *GRADIENT)


def record(**known: Any) -> dict[str, Any]:
    """A full record with ``known`` filled in and None elsewhere; refuses names that are not fields."""
    unknown = set(known) - set(FIELDS)
    if unknown:
        raise ValueError(f"not a field of a record: {', '.join(sorted(unknown))}")
    nested = [name for name, value in known.items() if not isinstance(value, (str, int, float, bool, type(None)))]
    if nested:
        raise ValueError(f"a record is flat, but these are not scalars: {', '.join(nested)}")
    return {name: known.get(name) for name in FIELDS}
