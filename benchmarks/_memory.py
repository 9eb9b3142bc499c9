"""The most memory a call needs beside what was there before the caller was built.

On CUDA what torch's allocator handed out, and what it had reserved of the device for that. On a CPU the resident set of
the process at its highest (Linux; everything counts, oneDNN's buffers too), from a heap that gave back what it could:
good to some MB.
"""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

MIB = 2**20


@dataclass(frozen=True)
class Peak:
    """Megabytes (2^20) above the start.

    Attributes:
        allocated: of tensors on CUDA; of the process on a CPU; None where it cannot be known.
        reserved: CUDA only.
    """

    allocated: float | None
    reserved: float | None = None


class PeakMemory:
    """Made before the caller is built; `of` then runs it.

    Args:
        device: whose memory.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        gc.collect()
        if device.type == "cuda":
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
            self.before, self.reserved = torch.cuda.memory_allocated(device), torch.cuda.memory_reserved(device)
        else:
            _trim()
            self.before = _status("VmRSS")

    def of(self, call: Callable[[], object], calls: int = 1) -> Peak:
        """The peak while `call` runs, `calls` times."""
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)
        elif not self._reset():
            return Peak(None)
        for _ in range(calls):
            call()
        if self.device.type == "cuda":
            torch.cuda.synchronize()
            allocated, reserved = (
                getattr(torch.cuda, f"max_memory_{name}")(self.device) for name in ("allocated", "reserved")
            )
            return Peak((allocated - self.before) / MIB, (reserved - self.reserved) / MIB)
        return Peak((_status("VmHWM") - self.before) / MIB)

    def _reset(self) -> bool:
        """Forget the highest resident set so far."""
        _trim()
        try:
            Path("/proc/self/clear_refs").write_text("5")
        except OSError:
            return False
        return self.before > 0


def _trim() -> None:
    """Give what malloc keeps back to the system, where it is glibc's."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _status(field: str) -> int:
    """Bytes of a field of /proc/self/status; 0 where there is none."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith(f"{field}:")), 0)
