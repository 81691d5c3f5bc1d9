"""What a GPU's clock does while we measure: its frequency, and why the driver holds it back. From NVML.

Needs the package ``nvidia-ml-py`` (extra ``profile``); without it, or where the driver refuses, nothing is known and
nothing is rejected.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

DROP = 0.9  # share of the highest clock of the run below which rounds don't count
# Bits of nvmlClocksEventReasons in nvml.h. An idle GPU, clocks that somebody has set, and a display are no reasons.
POWER_CAP = "power cap"  # what sustained products meet on any GPU: it counts where the clock drops
REASONS = {
    0x04: POWER_CAP,
    0x08: "hardware slowdown",
    0x20: "software thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "power brake",
}


@dataclass(frozen=True)
class Reading:
    """The clock of the multiprocessors in MHz and the reasons that hold it back, at one moment."""

    mhz: int
    reasons: tuple[str, ...] = ()


@dataclass
class GpuState:
    """Reads one GPU, and knows the highest clock that this run has seen."""

    nvml: Any
    handle: Any
    highest: int = field(default=0)

    def read(self) -> Reading | None:
        """The state now, or None where the driver refuses."""
        try:
            mhz = self.nvml.nvmlDeviceGetClockInfo(self.handle, self.nvml.NVML_CLOCK_SM)
            mask = self.nvml.nvmlDeviceGetCurrentClocksThrottleReasons(self.handle)
        except self.nvml.NVMLError:
            return None
        self.highest = max(self.highest, mhz)
        return Reading(mhz, tuple(name for bit, name in REASONS.items() if mask & bit))

    def disturbs(self, reading: Reading | None) -> bool:
        """Whether rounds that ended so must be repeated."""
        if reading is None:
            return False
        return bool(set(reading.reasons) - {POWER_CAP}) or reading.mhz < DROP * self.highest


def gpu_state(device: torch.device) -> GpuState | None:
    """The state of a CUDA device, found by its UUID, because NVML numbers devices differently; else None."""
    if device.type != "cuda":
        return None
    try:
        import pynvml  # pyright: ignore[reportMissingImports]
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")
    except pynvml.NVMLError:
        return None
    return GpuState(pynvml, handle)
