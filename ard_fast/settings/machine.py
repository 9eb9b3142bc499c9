"""Where a run computes. Nothing here is meant to change its result beyond rounding."""

from __future__ import annotations

from dataclasses import dataclass

from ard_fast.data.loader import RESIDENT
from ard_fast.options import option


@dataclass(frozen=True)
class MachineSettings:
    """Device, layout and threads."""

    device: str = option("cpu", "cpu, cuda or cuda:N; under torchrun cuda is one GPU a process", "machine")
    sync_bn: bool = option(
        True,
        "several processes: batch statistics over the whole batch, as one process has them; false: over each process's "
        "images, running statistics averaged after every step",
        "machine",
    )
    channels_last: bool = option(False, "keep images and weights in channels-last layout", "machine")
    threads: int = option(0, "CPU threads of torch; 0: torch's own choice", "machine")
    resident: str = option(
        "auto",
        "training images on the device: always, never (streamed from the host), or when they take at most half of its "
        "free memory",
        "machine",
        RESIDENT,
    )
