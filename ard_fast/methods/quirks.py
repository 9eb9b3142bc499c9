"""Quirks that several published codes share."""

from __future__ import annotations

from ard_fast.methods.base import Quirk

RATE_STUCK = Quirk(
    "learning rate: every drop multiplies the initial rate, so 0.1 becomes 0.01 at the first milestone and stays",
    {"schedule": "ard"},
)
UNCLAMPED_UNIFORM = Quirk("the random start is not clamped to [0, 1]", {"clamp_start": False})
UNCLAMPED_NORMAL = Quirk("the attack's start, x + 0.001 N(0, 1), is not clamped to [0, 1]", {"clamp_start": False})
TRAIN_MODE_ATTACK = Quirk(
    "batch norm in train mode inside the attack: each of its forwards updates the running statistics",
    {"attack_bn": "train"},
)
KL_MEAN = Quirk("KL reduction 'mean': divided by batch x classes, so the gradient is C times smaller",
                {"reduction": "mean"})  # fmt: skip
