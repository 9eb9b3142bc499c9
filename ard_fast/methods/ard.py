"""Adversarially Robust Distillation (Goldblum, Fowl, Feizi, Goldstein; AAAI 2020, arXiv 1905.09747)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from ard_fast.attacks import PGD
from ard_fast.data import Batch
from ard_fast.losses import ARDLoss
from ard_fast.methods.base import StepResult


@dataclass(frozen=True)
class AdversariallyRobustDistillation:
    """alpha T^2 KL(T^T(x) || S^T(x')) + (1 - alpha) CE(S(x), y), with x' attacking CE(S(x'), y).

    The teacher sees the clean image; only the student is attacked, at the hard label. At alpha = 1 the clean images
    never go through the student: the official code runs that forward and backward and multiplies them by zero, which
    is dead work, except that in train mode the forward also moves the running batch-norm statistics towards those of
    the clean images once a step. Here it does not.
    """

    teacher: nn.Module
    attack: PGD
    loss: ARDLoss
    name: str = "ard"

    def __call__(self, student: nn.Module, batch: Batch) -> StepResult:
        with torch.no_grad():
            target = self.teacher(batch.x)
        adversarial = self.attack(student, batch.x, batch.y, seed=batch.seed, sample_ids=batch.ids)
        logits = student(adversarial)
        if self.loss.alpha == 1.0:
            return StepResult(self.loss(logits, target), logits)
        return StepResult(self.loss(logits, target, student(batch.x), batch.y), logits)

    def conventions(self) -> list[str]:
        clean = "no clean forward (alpha = 1)" if self.loss.alpha == 1.0 else "clean forward for the CE term"
        attacked = "x' attacks CE(S(x'), y)"
        return [f"loss {self.loss.describe()}", f"teacher sees x, eval mode; {attacked}; {clean}"]
