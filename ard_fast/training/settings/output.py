"""What a run writes beside its results."""

from __future__ import annotations

from dataclasses import dataclass

from ard_fast.training.options import option


@dataclass(frozen=True)
class OutputSettings:
    """Files that do not change the result."""

    save_every_seconds: float | None = option(
        None,
        "also write a checkpoint inside an epoch when the last one is this old; default only after epochs",
        "output",
    )
    tensorboard: bool = option(False, "write the metrics for TensorBoard too, to the run's folder", "output")
