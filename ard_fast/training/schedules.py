"""Learning-rate schedules, as pure functions of the epoch: nothing to save, nothing to restore."""

from __future__ import annotations

import math

from ard_fast._typing import known
from ard_fast.training.config import TrainConfig


def learning_rate(config: TrainConfig, epoch: float) -> float:
    """The learning rate at a moment of training.

    Args:
        config: `schedule`, `lr`, `lr_factor`, `epochs`, `replays` and `milestones` are read.
        epoch: epochs done so far, replays counted, with the fraction of the current one (2.5: in the middle of the
            third).

    `ard` reproduces the official ARD code, whose every drop multiplies the constant initial rate: the first milestone
    acts, the later ones set the same rate again (0.1 then 0.01; 0.001 is never reached).
    """
    rate = known(config.lr)
    if config.schedule == "constant":
        return rate
    total = config.passes() * (config.replays or 1)  # at least `epochs`, and at most replays - 1 more
    if config.schedule == "cosine":
        return rate * 0.5 * (1.0 + math.cos(math.pi * epoch / total))
    if config.schedule == "cyclic":  # one triangle (Wong, Rice, Kolter 2020)
        half = total / 2
        return rate * (1.0 - abs(epoch - half) / half)
    drops = sum(epoch >= milestone for milestone in config.milestone_epochs())
    return rate * config.lr_factor ** (min(drops, 1) if config.schedule == "ard" else drops)


def relative_rate(config: TrainConfig, epoch: int) -> float:
    """The learning rate when a pass over the images (from 0) begins, in units of `lr`."""
    return learning_rate(config, epoch * (config.replays or 1)) / known(config.lr)
