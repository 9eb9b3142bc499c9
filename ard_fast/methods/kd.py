"""Distillation on clean images only (Hinton et al. 2015): the baseline that transfers little robustness."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from ard_fast.data import Batch
from ard_fast.losses import ARDLoss
from ard_fast.methods.base import StepResult


@dataclass(frozen=True)
class CleanDistillation:
    """alpha T^2 KL(T^T(x) || S^T(x)) + (1 - alpha) CE(S(x), y): no attack, one forward of each network."""

    teacher: nn.Module
    loss: ARDLoss
    name: str = "kd"

    def __call__(self, student: nn.Module, batch: Batch) -> StepResult:
        with torch.no_grad():
            target = self.teacher(batch.x)
        logits = student(batch.x)
        return StepResult(self.loss(logits, target, logits, batch.y), logits)

    def conventions(self) -> list[str]:
        return [f"loss {self.loss.describe(distilled='S(x)')}", "teacher sees x, eval mode; no attack"]
