"""Methods by name."""

from __future__ import annotations

from torch import nn

from ard_fast.attacks import PGD
from ard_fast.config import METHODS, TrainConfig
from ard_fast.losses import ARDLoss
from ard_fast.methods.ard import AdversariallyRobustDistillation
from ard_fast.methods.at import AdversarialTraining
from ard_fast.methods.base import Method
from ard_fast.methods.kd import CleanDistillation
from ard_fast.names import unknown


def build_method(config: TrainConfig, teacher: nn.Module | None = None) -> Method:
    """The method that `config.method` names, with its attack and loss.

    Args:
        config: the run's configuration.
        teacher: in eval mode, without trainable parameters; needed by kd and ard.

    Raises:
        ValueError: an unknown method, or a missing teacher.
    """
    if config.method not in METHODS:
        raise ValueError(unknown("method", config.method, METHODS))
    attack = PGD(
        eps=config.eps,
        step_size=config.step_size,
        steps=config.steps,
        bn=config.attack_bn,
        clamp_start=config.clamp_start,
    )
    if config.method == "at":
        return AdversarialTraining(attack)
    if teacher is None:
        raise ValueError(f"teacher: method {config.method} needs one")
    loss = ARDLoss(alpha=config.alpha, temperature=config.temperature, reduction=config.reduction)
    if config.method == "kd":
        return CleanDistillation(teacher, loss)
    return AdversariallyRobustDistillation(teacher, attack, loss)
