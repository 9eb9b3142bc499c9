"""Plain adversarial training (Madry et al. 2018)."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as tf
from torch import nn

from ard_fast.attacks import PGD
from ard_fast.data import Batch
from ard_fast.methods.base import StepResult


@dataclass(frozen=True)
class AdversarialTraining:
    """Cross-entropy on images attacked at their own label: CE(S(x'), y), averaged over the batch."""

    attack: PGD
    name: str = "at"

    def __call__(self, student: nn.Module, batch: Batch) -> StepResult:
        adversarial = self.attack(student, batch.x, batch.y, seed=batch.seed, sample_ids=batch.ids)
        logits = student(adversarial)
        return StepResult(tf.cross_entropy(logits, batch.y), logits)

    def conventions(self) -> list[str]:
        return ["loss CE(S(x'), y), mean over the batch"]
